//! A snapshot being written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use vhive_api::SandboxId;
use vhive_api::guest::GuestNetwork;

use super::{
    FORMAT, FileEntry, MANIFEST, Manifest, MemoryShape, OpenError, Owner, Platform, Snapshot,
    page_digest,
};

/// Beginning of every draft's name: what a store removes when it is opened.
const PREFIX: &str = "draft-";

/// A snapshot that is not there yet. Dropping it removes it.
#[derive(Debug)]
pub struct SnapshotDraft {
    dir: PathBuf,
    owner: Owner,
    told: Option<Told>,
    files: Vec<String>,
}

/// What the runtime says about what it has written.
#[derive(Debug)]
struct Told {
    platform: Platform,
    shape: MemoryShape,
    network: Option<GuestNetwork>,
    guest_ns: u64,
}

/// Why a snapshot could not be written. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The runtime did not say what it had written: a defect.
    #[error("the checkpoint is incomplete")]
    Incomplete,
    /// What has been published cannot be opened.
    #[error("the published snapshot cannot be opened")]
    Open(#[source] Box<OpenError>),
}

impl SnapshotDraft {
    /// Begins a draft beside its final place: in the directory `beside`, which is made.
    ///
    /// # Errors
    /// [`DraftError::Write`].
    pub fn begin(beside: &Path, owner: Owner) -> Result<Self, DraftError> {
        let dir = beside.join(format!("{PREFIX}{}", SandboxId::random().as_str()));
        let write = |source| DraftError::Write { path: dir.clone(), source };
        fs::create_dir_all(beside).map_err(write)?;
        fs::create_dir(&dir).map_err(write)?;
        Ok(Self { dir, owner, told: None, files: Vec::new() })
    }

    /// Whether a directory's name is a draft's.
    #[must_use]
    pub fn is_draft(name: &str) -> bool {
        name.starts_with(PREFIX)
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates one of its files, for reading and writing.
    ///
    /// # Errors
    /// [`DraftError::Write`].
    pub fn file(&mut self, name: &str) -> Result<File, DraftError> {
        let path = self.dir.join(name);
        let made = File::options().read(true).write(true).create_new(true).open(&path);
        let file = made.map_err(|source| DraftError::Write { path, source })?;
        self.files.push(name.to_owned());
        Ok(file)
    }

    /// Takes a file that a runtime has written inside [`SnapshotDraft::dir`] as one of its own.
    ///
    /// # Errors
    /// [`DraftError::Write`].
    pub fn adopt(&mut self, name: &str, file: &Path) -> Result<(), DraftError> {
        let path = self.dir.join(name);
        fs::rename(file, &path).map_err(|source| DraftError::Write { path, source })?;
        self.files.push(name.to_owned());
        Ok(())
    }

    /// Says what the files were taken of; called by the runtime once they are complete.
    pub fn describe(
        &mut self,
        platform: Platform,
        shape: MemoryShape,
        network: Option<GuestNetwork>,
        guest_ns: u64,
    ) {
        self.told = Some(Told { platform, shape, network, guest_ns });
    }

    /// Writes manifest and files to disk and gives the directory its final name, `to`, which must
    /// be free and on the same file system.
    ///
    /// # Errors
    /// [`DraftError`]; nothing is left behind. [`DraftError::Write`] with `AlreadyExists` or
    /// `DirectoryNotEmpty` if somebody else has published there first.
    pub fn publish(mut self, to: &Path) -> Result<Snapshot, DraftError> {
        let told = self.told.take().ok_or(DraftError::Incomplete)?;
        let mut files = BTreeMap::new();
        for name in &self.files {
            let path = self.dir.join(name);
            let entry = finish(&path);
            files.insert(name.clone(), entry.map_err(|source| DraftError::Write { path, source })?);
        }
        let manifest = Manifest {
            format: FORMAT,
            owner: self.owner.clone(),
            platform: told.platform,
            shape: told.shape,
            network: told.network,
            at: humantime(),
            guest_ns: told.guest_ns,
            files,
        };
        let path = self.dir.join(MANIFEST);
        let written = write_manifest(&path, &manifest);
        written.map_err(|source| DraftError::Write { path, source })?;
        let moved = sync_dir(&self.dir).and_then(|()| {
            let here = rustix::fs::CWD;
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            rustix::fs::renameat_with(here, &self.dir, here, to, flags)?;
            sync_dir(to.parent().unwrap_or(Path::new("/")))
        });
        moved.map_err(|source| DraftError::Write { path: to.to_owned(), source })?;
        Snapshot::open(to).map_err(|error| DraftError::Open(Box::new(error)))
    }
}

/// The present time as a manifest has it.
fn humantime() -> String {
    jiff::Timestamp::now().to_string()
}

/// Brings a file to the disk and says what is in it.
fn finish(path: &Path) -> io::Result<FileEntry> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(FileEntry { bytes: file.metadata()?.len(), digest: page_digest(&file)? })
}

pub(super) fn write_manifest(path: &Path, manifest: &Manifest) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(manifest)?;
    text.push(b'\n');
    fs::write(path, text)?;
    File::open(path)?.sync_all()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Drop for SnapshotDraft {
    fn drop(&mut self) {
        // After publishing, nothing is there any more under this name.
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.dir.display(), %error, "snapshot draft not removed");
            }
            _ => {}
        }
    }
}
