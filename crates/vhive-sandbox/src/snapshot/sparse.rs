//! Copying guest memory so that what is zero takes no room.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::deadline::Deadline;

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// The unit in which zeros become holes.
const PAGE: usize = 4096;

/// Copies what is not zero; the rest becomes holes. The deadline is looked at before each mebibyte.
///
/// # Errors
/// Any error of reading or writing; [`io::ErrorKind::TimedOut`] at the deadline.
pub(crate) fn copy_sparse(from: &File, to: &File, deadline: Deadline) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        if deadline.passed() {
            let why = format!("only {at} of {length} bytes were copied before the deadline");
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let most = usize::try_from(length - at).unwrap_or(PIECE).min(PIECE);
        from.read_exact_at(&mut piece[..most], at)?;
        write_non_zero(&piece[..most], to, at)?;
        at += most as u64;
    }
    Ok(())
}

/// Writes runs of pages that are not all zero.
fn write_non_zero(piece: &[u8], to: &File, at: u64) -> io::Result<()> {
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let mut begin = 0;
    while begin < piece.len() {
        let end = piece.len().min(begin + PAGE);
        if is_zero(&piece[begin..end]) {
            begin = end;
            continue;
        }
        let rest = piece[begin..].chunks(PAGE);
        let run: usize = rest.take_while(|page| !is_zero(page)).map(<[u8]>::len).sum();
        to.write_all_at(&piece[begin..begin + run], at + begin as u64)?;
        begin += run;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Deadline {
        Deadline::after(std::time::Duration::from_secs(30))
    }

    #[test]
    fn a_copy_ends_at_its_deadline() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.write_all_at(&[1; 2 * PIECE], 0).unwrap();
        let passed = Deadline::at(std::time::Instant::now());
        let error = copy_sparse(&from, &to, passed).expect_err("it is over");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "only 0 of 2097152 bytes were copied before the deadline");
        copy_sparse(&from, &to, soon()).unwrap();
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]
        #[test]
        fn a_sparse_copy_is_equal_and_no_larger(pages: Vec<Option<u8>>, tail in 0_usize..PAGE) {
            let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            let length = pages.len() * PAGE + tail;
            from.set_len(length as u64).unwrap();
            for (at, byte) in pages.iter().enumerate() {
                if let Some(byte) = byte {
                    from.write_all_at(&[*byte; PAGE], (at * PAGE) as u64).unwrap();
                }
            }
            copy_sparse(&from, &to, soon()).unwrap();
            let read = |file: &File| {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            };
            assert_eq!(read(&from), read(&to));
            let blocks = |file: &File| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
            assert!(blocks(&to) <= blocks(&from));
        }
    }
}
