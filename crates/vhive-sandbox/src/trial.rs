//! Where something is tried out to learn what a host can do, and how a sweep finds it again.
//!
//! ```text
//!   <state directory>/host/probe-XXXXXX/     sandbox directory, bundle or jail of the trial
//! ```
//!
//! What is tried out carries the tag of the node whose state directory it is: if the trier is
//! killed, the node's next sweep ends what runs, by its control groups, and removes the directory.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::TempDir;

use crate::run_dir::RunRoot;

/// How the names of their directories begin.
const PREFIX: &str = "probe-";

/// A directory for one trial, that other users can get through. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Trial {
    dir: TempDir,
    root: RunRoot,
}

impl Trial {
    /// Makes it in `cache`, which lies in the node's state directory.
    ///
    /// # Errors
    /// Any I/O error; nothing is left behind.
    pub(crate) fn begin(cache: &Path) -> io::Result<Self> {
        fs::create_dir_all(cache)?;
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(cache)?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        // As the node itself knows it, however it is written.
        let state_dir = fs::canonicalize(cache.parent().unwrap_or(cache))?;
        let root = RunRoot::below(dir.path(), &state_dir);
        Ok(Self { dir, root })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The names on the host: the node's own.
    pub(crate) fn root(&self) -> &RunRoot {
        &self.root
    }
}

/// Removes the directories of killed trials in `cache`. Only for a node that holds the lock on its
/// state directory, once their processes are gone.
///
/// # Errors
/// Any I/O error.
pub fn sweep(cache: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(cache) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            match fs::remove_dir_all(entry.path()) {
                // Somebody's trial has just ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_trial_has_its_nodes_tag_however_the_state_directory_is_written() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let state_dir = base.path().join("state");
        fs::create_dir(&state_dir).expect("made");
        symlink(&state_dir, base.path().join("link")).expect("linked");
        let trial = Trial::begin(&base.path().join("link/host")).expect("begun");
        let state_dir = fs::canonicalize(&state_dir).expect("it is there");
        assert_eq!(trial.root().tag(), RunRoot::of_state_dir(&state_dir).tag());
        assert!(trial.root().dir().starts_with(trial.dir()));
    }

    #[test]
    fn a_killed_trials_directory_is_swept_and_nothing_else() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let cache = base.path().join("host");
        sweep(&cache).expect("nothing to sweep");
        let Trial { dir, .. } = Trial::begin(&cache).expect("begun");
        let killed = dir.keep();
        fs::create_dir(killed.join("bundle")).expect("made");
        fs::write(cache.join("accelerator.json"), "{}").expect("written");
        sweep(&cache).expect("swept");
        assert!(!killed.exists());
        assert!(cache.join("accelerator.json").exists());
        let going = Trial::begin(&cache).expect("begun");
        let dir = going.dir().to_owned();
        drop(going);
        assert!(!dir.exists());
    }
}
