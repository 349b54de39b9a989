//! A snapshot: the immutable directory from which clones of an instance are restored.
//!
//! ```text
//!   <dir>/manifest.json   what it is, and the length and digest of every other file
//!         vmstate         devices and virtual CPUs, in the runtime's own format
//!         memory          guest memory, sparse
//!         working-set.<n> pages that an invocation touched; added later, each by rename
//! ```
//!
//! A [`SnapshotDraft`] is written by a runtime's checkpoint in a directory of its own and appears
//! under its final name by one rename, complete and on disk. Nothing is changed after that; only
//! working sets are added. The format's page is `docs/design/snapshot-format.md`.
//!
//! The writable layer of a microVM is a tmpfs in guest memory, so a snapshot needs no disk besides
//! the read-only image that its manifest names by digest.

mod digest;
mod draft;
mod manifest;
mod sparse;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

pub use digest::page_digest;
use digest::page_digest_while;
pub use draft::{DraftError, SnapshotDraft};
pub use manifest::{FORMAT, FileEntry, Manifest, MemoryShape, Mismatch, Owner, Platform, with_tsc};
pub(crate) use sparse::copy_sparse;

/// Names of the files.
pub const MANIFEST: &str = "manifest.json";
/// Devices and virtual CPUs.
pub const VM_STATE: &str = "vmstate";
/// Guest memory.
pub const MEMORY: &str = "memory";

/// Longest manifest that is read, in bytes.
const MOST_MANIFEST: u64 = 1 << 20;

/// A published snapshot. Cheap to clone; it holds nothing open.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    dir: PathBuf,
    manifest: Manifest,
}

/// Why a directory is no usable snapshot.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file is missing, or cannot be read now.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The manifest is not one, or not one of this version's.
    #[error("{} is no snapshot manifest", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by a later version of this program.
    #[error("snapshot format {0}; this program reads formats up to {FORMAT}")]
    Format(u32),
    /// A file has another length or content than the manifest says.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// What a failure says of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// It is at fault: no other attempt will fare better.
    Snapshot,
    /// It may be at fault, or not: only several such failures in a row are held against it.
    Either,
    /// Nothing: the host lacked something for the moment, or it was not the snapshot that was asked for.
    Host,
}

impl OpenError {
    /// What it says of the snapshot.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            // A later version can read what this one cannot.
            Self::Format(_) => Blame::Host,
            Self::Manifest { source, .. } if is_in_other_words(source) => Blame::Host,
            Self::Manifest { .. } | Self::Damaged { .. } => Blame::Snapshot,
            Self::Read { source, .. } => blame_of(source),
        }
    }
}

/// Whether a manifest has fields or values that this version does not know, or lacks some that it does: it
/// is another version's. A known field with a value that cannot be is damage.
fn is_in_other_words(error: &serde_json::Error) -> bool {
    let text = error.to_string();
    let unknown = ["unknown field", "missing field", "unknown variant"];
    error.is_data() && unknown.iter().any(|words| text.starts_with(words))
}

/// What an error of opening or reading a file says of the file.
fn blame_of(error: &io::Error) -> Blame {
    match error.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::InvalidData => return Blame::Snapshot,
        _ => {}
    }
    match Errno::from_io_error(error) {
        // The medium, or the way to it.
        Some(Errno::IO) => Blame::Either,
        _ => Blame::Host,
    }
}

impl Snapshot {
    /// Opens a snapshot: reads its manifest and checks that every file has the length that it
    /// says. Contents are not read; see [`Snapshot::verify`].
    ///
    /// # Errors
    /// [`OpenError`]; nothing is changed.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let dir = dir.into();
        let manifest = Manifest::read(&dir.join(MANIFEST))?;
        for (name, entry) in &manifest.files {
            let path = dir.join(name);
            let found = fs::symlink_metadata(&path)
                .map_err(|source| OpenError::Read { path: path.clone(), source })?;
            if !found.is_file() {
                let what = "it is not a plain file".to_owned();
                return Err(OpenError::Damaged { path, what });
            }
            if found.len() != entry.bytes {
                let what = format!("{} bytes instead of {}", found.len(), entry.bytes);
                return Err(OpenError::Damaged { path, what });
            }
        }
        Ok(Self { dir, manifest })
    }

    /// Reads every file and compares its digest with the manifest's.
    ///
    /// # Errors
    /// [`OpenError::Damaged`] names the first file that differs; [`OpenError::Read`] one that cannot be
    /// read, which need not be its fault ([`OpenError::blame`]).
    pub fn verify(&self) -> Result<(), OpenError> {
        self.verify_while(&|| true)
    }

    /// The same as long as it is wanted, which is asked before each mebibyte.
    ///
    /// # Errors
    /// As [`Snapshot::verify`]; what is not wanted any more has not been read ([`OpenError::Read`]).
    pub fn verify_while(&self, wanted: &dyn Fn() -> bool) -> Result<(), OpenError> {
        for (name, entry) in &self.manifest.files {
            let path = self.dir.join(name);
            let digest = File::open(&path).and_then(|file| page_digest_while(&file, wanted));
            let digest = digest.map_err(|source| OpenError::Read { path: path.clone(), source })?;
            if digest != entry.digest {
                let what = format!("its digest is {digest} instead of {}", entry.digest);
                return Err(OpenError::Damaged { path, what });
            }
        }
        Ok(())
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Digest of the memory file: working sets are named after it.
    #[must_use]
    pub fn memory_digest(&self) -> Option<vhive_api::Digest> {
        self.manifest.files.get(MEMORY).map(|entry| entry.digest)
    }

    /// Opens one of its files for reading.
    ///
    /// # Errors
    /// [`OpenError::Read`].
    pub fn file(&self, name: &str) -> Result<File, OpenError> {
        let path = self.dir.join(name);
        File::open(&path).map_err(|source| OpenError::Read { path, source })
    }
}

#[cfg(test)]
mod tests;
