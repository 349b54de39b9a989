//! A digest of a sparse file that does not read its holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use vhive_api::Digest;

/// Bytes in a page, the unit of the digest.
const PAGE: usize = 4096;

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// SHA-256 over the file's length and, in order, every page that is not all zero with its index
/// (both as 64-bit little endian; a last page that is shorter is taken as it is). Holes and
/// written zeros are the same, so a sparse copy has the same digest.
///
/// # Errors
/// Any error of reading.
pub fn page_digest(file: &File) -> io::Result<Digest> {
    page_digest_while(file, &|| true)
}

/// The same, as long as it is wanted: asked before each mebibyte.
pub(super) fn page_digest_while(file: &File, wanted: &dyn Fn() -> bool) -> io::Result<Digest> {
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        if !wanted() {
            let why = "it is not wanted any more";
            return Err(io::Error::new(io::ErrorKind::Interrupted, why));
        }
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            // Whole pages, should a file system have smaller holes.
            Ok(data) => data / PAGE as u64 * PAGE as u64,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let most = usize::try_from(length - at).unwrap_or(PIECE).min(PIECE);
        file.read_exact_at(&mut piece[..most], at)?;
        for (page, index) in piece[..most].chunks(PAGE).zip(at / PAGE as u64..) {
            if page.iter().any(|byte| *byte != 0) {
                hash.update(index.to_le_bytes());
                hash.update(page);
            }
        }
        at += most as u64;
    }
    Ok(Digest::from_bytes(hash.finalize().into()))
}
