//! Files in the making, and the locks of a store.
//!
//! A draft is invisible until [`Draft::publish`] renames it into place, and is removed when it is
//! dropped instead. Its maker holds a lock on it, so that a sweep knows the drafts of killed
//! processes from those in use.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;

/// An unpublished file in the store's `drafts` directory.
#[derive(Debug)]
pub(crate) struct Draft {
    file: File,
    path: PathBuf,
}

impl Draft {
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        let word = getrandom::u64().map_err(io::Error::other)?;
        let path = directory.join(format!("{word:016x}"));
        // Against a sweep between making the file and locking it.
        let _sweeping = Lock::shared(&directory.join(SWEEP_LOCK))?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(&path)?;
        let draft = Self { file, path };
        flock(&draft.file, FlockOperation::LockExclusive)?;
        Ok(draft)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name, replacing what has it. With `Sync::Yes` content and name survive
    /// a power cut.
    pub(crate) fn publish(self, to: &Path, sync: Sync) -> io::Result<()> {
        if sync == Sync::Yes {
            self.file.sync_all()?;
        }
        fs::rename(&self.path, to)?;
        if sync == Sync::Yes
            && let Some(directory) = to.parent()
        {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }
}

/// Whether a published file must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    Yes,
    /// It can be made again, and a damaged one is noticed.
    No,
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `publish` there is nothing of that name any more.
        let _ = fs::remove_file(&self.path);
    }
}

const SWEEP_LOCK: &str = ".lock";

/// Removes the drafts of processes that are gone; returns how many.
pub(crate) fn sweep(directory: &Path) -> io::Result<usize> {
    let Some(_alone) = Lock::try_exclusive(&directory.join(SWEEP_LOCK))? else { return Ok(0) };
    let mut swept = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name == SWEEP_LOCK) {
            continue;
        }
        if path.is_dir() {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove_tree(&path.with_extension(DIRECTORY))?;
            fs::remove_file(&path)?;
            swept += 1;
        }
    }
    Ok(swept)
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

const DIRECTORY: &str = "d";

/// A directory for the work of other programs; removed with all in it on drop, or by a sweep.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    /// Dropped after the directory is removed.
    _draft: Draft,
}

impl Scratch {
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        let draft = Draft::new(directory)?;
        let path = draft.path().with_extension(DIRECTORY);
        fs::create_dir(&path)?;
        Ok(Self { path, _draft: draft })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "scratch directory left behind");
        }
    }
}

/// A lock on a file, across processes and within one; released on drop.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until nobody holds it exclusively.
    pub(crate) fn shared(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        retry_on_intr(|| flock(&file, FlockOperation::LockShared))?;
        Ok(Self { _file: file })
    }

    /// Waits until nobody holds it.
    pub(crate) fn exclusive(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
        Ok(Self { _file: file })
    }

    /// Takes it only if nobody holds it.
    pub(crate) fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}
