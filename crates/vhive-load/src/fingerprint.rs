//! What a run was given to read: whether it is still the same can be told later.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

const CHUNK: usize = 1 << 16;
/// The files of a trace that is a directory.
const OF_A_TRACE: [&str; 4] =
    ["invocations.csv", "durations.csv", "memory.csv", "dag_structure.csv"];

/// A file's content as a word: its length in bytes and a hash. When it was written does not matter. What is
/// no file (a pipe can be read once) has none.
///
/// # Errors
/// When it cannot be read.
///
/// # Source
/// Fowler, Noll, Vo: FNV-1a, 64 bits.
pub fn fingerprint(path: &Path) -> io::Result<Option<String>> {
    if !fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    let (mut file, mut chunk) = (File::open(path)?, vec![0; CHUNK]);
    let (mut length, mut word) = (0, 0xcbf2_9ce4_8422_2325);
    let mix = |word: u64, byte: &u8| (word ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(Some(format!("{length} bytes, {word:016x}"))),
            n => {
                word = chunk[..n].iter().fold(word, mix);
                length += n as u64;
            }
        }
    }
}

/// The files that are read of a trace: itself, or those of a directory that are there.
#[must_use]
pub fn files_of_trace(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    OF_A_TRACE.map(|name| path.join(name)).into_iter().filter(|path| path.exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_has_another_fingerprint_and_what_was_only_written_again_has_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("invocations.csv");
        let write = |text: &str| {
            fs::write(&path, text).unwrap();
            fingerprint(&path).unwrap().unwrap()
        };
        let first = write("1,2");
        assert!(first.starts_with("3 bytes, "), "{first}");
        assert_eq!(write("1,2"), first);
        assert_ne!(write("1,3"), first);
        assert_eq!(fingerprint(Path::new("/dev/null")).unwrap(), None);
        assert!(fingerprint(&dir.path().join("none")).is_err());
        fs::write(dir.path().join("notes.txt"), "x").unwrap();
        assert_eq!(files_of_trace(dir.path()), std::slice::from_ref(&path));
        assert_eq!(files_of_trace(&path), [path]);
    }
}
