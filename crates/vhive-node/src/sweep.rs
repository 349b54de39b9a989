//! Whose state directory it is, what an earlier node left behind, and how to remove everything.
//!
//! One lock file covers a state directory and, since every name on the host derives from it, all
//! that its node makes outside. Who holds the lock may remove what carries the node's tag; nothing
//! else is ever touched.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use vhive_api::Cpus;
use vhive_sandbox::{RunRoot, cgroup, network, oci, trial};

/// The lock's name in the state directory.
const LOCK: &str = "node.lock";

/// What this project keeps in a state directory; a purge removes these and nothing else.
pub const STATE_ENTRIES: &[&str] = &[
    LOCK,
    "state.redb",
    "async.redb",
    "events.redb",
    "images",
    "kernels",
    "snapshots",
    "records",
    "host",
    "api.sock",
    "api.token",
    "api.token.draft",
    "api.crt",
    "api.ca.crt",
    "api.key",
    "api.draft",
    "api.ca.draft",
];

/// Why a state directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It could not be made or read.
    #[error("cannot use state directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another node holds it.
    #[error(
        "state directory {} is held by another node (process {holder}); stop that one, or use \
         another directory", path.display()
    )]
    Held {
        /// The directory.
        path: PathBuf,
        /// Its process id as far as known, else `unknown`.
        holder: String,
    },
}

/// A state directory that is ours as long as this lives, or until it is released.
#[derive(Debug)]
pub struct StateLock {
    dir: PathBuf,
    file: Mutex<Option<File>>,
}

impl StateLock {
    /// Makes the directory if needed (mode 0700) and takes its lock.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(state_dir: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Directory { path: state_dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(failed)?;
        let dir = fs::canonicalize(state_dir).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(dir.join(LOCK)).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let read = (&file).take(20).read_to_string(&mut holder);
                let known = read.is_ok() && holder.trim().parse::<u32>().is_ok();
                let holder = if known { holder.trim().to_owned() } else { "unknown".to_owned() };
                return Err(LockError::Held { path: dir, holder });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let note = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        note(&mut file).map_err(failed)?;
        Ok(Self { dir, file: Mutex::new(Some(file)) })
    }

    /// Lets others have the directory.
    pub fn release(&self) {
        drop(self.file.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The directory's canonical path, from which every name on the host derives.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Why leftovers could not be removed; what could be removed was.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// A directory could not be read or removed.
    #[error("cannot remove leftovers in {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Processes or control groups of sandboxes could not be removed.
    #[error("cannot remove processes and control groups of an earlier node")]
    Cgroups(#[source] io::Error),
    /// Network namespaces, interfaces or firewall rules could not be removed.
    #[error("cannot remove networks of an earlier node")]
    Networks(#[source] network::SweepError),
    /// Images could not be unmounted.
    #[error("cannot unmount images of an earlier node")]
    Images(#[source] io::Error),
}

/// Why a node has no ground to stand on.
#[derive(Debug, thiserror::Error)]
pub enum GroundError {
    /// The state directory is in use or cannot be used.
    #[error("no state directory")]
    Lock(#[from] LockError),
    /// What an earlier node left behind could not be removed.
    #[error("leftovers of an earlier node remain")]
    Sweep(#[from] SweepError),
}

/// What a node needs before anything else of it exists: its state directory, locked, and a host
/// without leftovers of the node that had it before.
#[derive(Debug)]
pub struct Ground {
    lock: StateLock,
    run_root: RunRoot,
    swept: usize,
}

impl Ground {
    /// Takes the state directory, then removes what an earlier node with it left on the host:
    /// processes and control groups, networks, sandbox directories. Blocks for that.
    ///
    /// # Errors
    /// [`GroundError`]; the lock is free again.
    pub fn take(state_dir: &Path, run_dir: &Path) -> Result<Self, GroundError> {
        let lock = StateLock::take(state_dir)?;
        let run_root = RunRoot::below(run_dir, lock.dir());
        let swept = sweep(&run_root)?;
        let trials = lock.dir().join("host");
        trial::sweep(&trials)
            .map_err(|source| SweepError::Directory { path: trials.clone(), source })?;
        if swept > 0 {
            tracing::warn!(sandboxes = swept, "leftovers of an earlier node removed");
        }
        Ok(Self { lock, run_root, swept })
    }

    /// The same ground, whose sandboxes run on these processors only.
    pub(crate) fn on(mut self, cpus: Cpus) -> Self {
        self.run_root = self.run_root.clone().on(cpus);
        self
    }

    /// The run directory, and the tag in every name that the node makes on the host.
    #[must_use]
    pub fn run_root(&self) -> &RunRoot {
        &self.run_root
    }

    /// The canonical state directory.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        self.lock.dir()
    }

    /// Lets the next node have the directory, once nothing of this one is left.
    pub(crate) fn release(&self) {
        self.lock.release();
    }

    /// Sandboxes of which something was left.
    #[must_use]
    pub fn swept(&self) -> usize {
        self.swept
    }
}

impl Drop for Ground {
    /// Leaves no empty directories; one that something is in stays for the next sweep.
    fn drop(&mut self) {
        let run_root = &self.run_root;
        let dirs = [run_root.sandboxes(), run_root.dir().join("images"), run_root.dir().to_owned()];
        for dir in dirs {
            if let Err(error) = fs::remove_dir(&dir) {
                tracing::debug!(path = %dir.display(), %error, "run directory not removed");
            }
        }
    }
}

/// Processes go first, so that nothing is in use when the rest goes.
fn sweep(root: &RunRoot) -> Result<usize, SweepError> {
    let mut swept: BTreeSet<String> =
        cgroup::sweep(root).map_err(SweepError::Cgroups)?.into_iter().collect();
    network::sweep(root).map_err(SweepError::Networks)?;
    oci::sweep(root).map_err(SweepError::Images)?;
    let dir = root.sandboxes();
    let failed = |source| SweepError::Directory { path: dir.clone(), source };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(swept.len()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        swept.insert(entry.file_name().to_string_lossy().into_owned());
        remove_any(&entry.path()).map_err(failed)?;
    }
    Ok(swept.len())
}

/// Why a purge stopped.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// The state directory is in use or cannot be used.
    #[error("nothing was removed")]
    Lock(#[from] LockError),
    /// What is on the host could not be removed; the state is still there.
    #[error("not everything was removed")]
    Sweep(#[from] SweepError),
    /// A part of the state could not be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What a purge did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// What was removed.
    pub removed: Vec<PathBuf>,
    /// What lies in the state directory and is not ours; it was left, and the directory with it.
    pub left: Vec<PathBuf>,
}

/// Removes everything that nodes with this state directory made on the host, the directory
/// included. What is not ours in it is left and named.
///
/// # Errors
/// [`PurgeError`]; a purge may be repeated.
pub fn purge(state_dir: &Path, run_dir: &Path) -> Result<Purged, PurgeError> {
    let mut purged = Purged::default();
    if !state_dir.exists() {
        return Ok(purged);
    }
    let lock = StateLock::take(state_dir)?;
    let root = RunRoot::below(run_dir, lock.dir());
    sweep(&root)?;
    let mut remove = |path: PathBuf| match remove_any(&path) {
        Ok(true) => {
            purged.removed.push(path);
            Ok(())
        }
        Ok(false) => Ok(()),
        Err(source) => Err(PurgeError::Remove { path, source }),
    };
    remove(root.dir().to_owned())?;
    for name in STATE_ENTRIES.iter().filter(|name| **name != LOCK) {
        remove(lock.dir().join(name))?;
    }
    remove(lock.dir().join(LOCK))?;
    let failed = |source| PurgeError::Remove { path: state_dir.to_owned(), source };
    for entry in fs::read_dir(lock.dir()).map_err(failed)? {
        purged.left.push(entry.map_err(failed)?.path());
    }
    purged.left.sort();
    if purged.left.is_empty() {
        fs::remove_dir(lock.dir()).map_err(failed)?;
        purged.removed.push(lock.dir().to_owned());
    }
    // The base of all run directories goes with the last of them.
    let _still_used = fs::remove_dir(run_dir);
    Ok(purged)
}

fn remove_any(path: &Path) -> io::Result<bool> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if meta.is_dir() {
        fs::remove_dir_all(path)?
    } else {
        fs::remove_file(path)?
    }
    Ok(true)
}
