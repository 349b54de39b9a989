//! What an incremental snapshot's pages are written over, so that what is published is whole.
//!
//! ```text
//!   booted ─ Zeros ─┐
//!   a clone ─ File ─┴─► copy of the base ─► pause ─► Firecracker writes the pages that were written
//!                          since into it ─► resume ─► a whole memory file, which is the next base
//! ```
//!
//! The base is copied before the guest is paused, and Firecracker itself puts its pages into the
//! copy, as it does with a file of the memory's length: so no block of a file system, which may be
//! larger than a page, can hide what lies beside a page.
//!
//! # Source
//! Firecracker, `docs/snapshotting/snapshot-support.md`, “Creating diff snapshots”.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhive_api::Bytes;

use super::api::SnapshotType;
use super::version::{Ability, Version};
use crate::deadline::Deadline;
use crate::snapshot::copy_sparse;

/// Memory as it was at the moment from which Firecracker counts what is written.
#[derive(Clone, Debug)]
pub(super) enum Base {
    /// A machine that is booted begins with nothing in its memory.
    Zeros,
    /// Of the snapshot that it was restored from, or that was taken of it last. Open, so that it
    /// outlives its name.
    File(Arc<File>),
    /// A snapshot failed halfway, and since when it counts is not known.
    Unknown,
}

/// Memory up to this lies in one piece below the devices' addresses.
const ONE_PIECE: Bytes = Bytes::mib(3 << 10);

/// Whether what this version writes for a guest of this size can be relied on.
pub(super) fn is_sound(version: Version, memory: Bytes) -> bool {
    memory <= ONE_PIECE || version.has(Ability::DiffOfPieces)
}

impl Base {
    /// What Firecracker is asked for.
    pub(super) const fn kind(&self) -> SnapshotType {
        match self {
            Self::Zeros | Self::File(_) => SnapshotType::Diff,
            Self::Unknown => SnapshotType::Full,
        }
    }

    /// Puts into an empty file what Firecracker is to write over.
    pub(super) fn lay_into(
        &self,
        file: &File,
        length: Bytes,
        deadline: Deadline,
    ) -> io::Result<()> {
        match self {
            Self::Zeros => file.set_len(length.0),
            Self::File(base) => {
                // Another length, and Firecracker would begin with an empty file.
                let its = base.metadata()?.len();
                if its != length.0 {
                    let what = format!("the memory that it was restored from has {its} bytes");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                copy_sparse(base, file, deadline)
            }
            Self::Unknown => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn a_base_is_laid_whole_or_not_at_all() {
        let (base, file) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        base.write_all_at(b"page", 4096).unwrap();
        base.set_len(3 * 4096).unwrap();
        let base = Base::File(Arc::new(base));
        let deadline = Deadline::after(std::time::Duration::from_secs(20));
        assert!(base.lay_into(&file, Bytes(4096), deadline).is_err());
        base.lay_into(&file, Bytes(3 * 4096), deadline).unwrap();
        let mut bytes = [0; 3 * 4096];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes[4096..4100], bytes[0], bytes[3 * 4096 - 1]), (&b"page"[..], 0, 0));
        let empty = tempfile::tempfile().unwrap();
        Base::Zeros.lay_into(&empty, Bytes(8192), deadline).unwrap();
        assert_eq!(empty.metadata().unwrap().len(), 8192);
    }

    #[test]
    fn what_is_not_known_is_written_whole() {
        assert_eq!(Base::Unknown.kind(), SnapshotType::Full);
        assert_eq!(Base::Zeros.kind(), SnapshotType::Diff);
    }

    #[test]
    fn versions_that_mix_up_pieces_of_memory_write_large_guests_whole() {
        let version = |text| Version::parse(text).expect("a version");
        let large = Bytes::mib(4 << 10);
        assert!(is_sound(version("1.13.0"), Bytes::mib(3 << 10)));
        assert!(!is_sound(version("1.14.4"), large));
        assert!(is_sound(version("1.15.0"), large));
    }
}
