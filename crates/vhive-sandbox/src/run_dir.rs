//! Where a node's sandboxes keep what must not outlive them, and how a sweep recognises its own.
//!
//! ```text
//!   /run/vhive/<tag>/sandboxes/<id>/   sandbox.json (written first)  console.log  *.sock
//! ```
//!
//! Every name that a node makes on the host (run directory, namespaces, interfaces, cgroups,
//! firewall table) carries its tag, the digest of its state directory; so nodes with different
//! state directories live side by side and sweep only their own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vhive_api::{Cpus, Digest, RuntimeName, SandboxId};

/// The run directory of one node, the tag in all names that it makes on the host, and the
/// processors that everything below its control group runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRoot {
    dir: PathBuf,
    tag: String,
    cpus: Option<Arc<Cpus>>,
}

impl RunRoot {
    /// The run directory below `/run/vhive` of the node with this (absolute) state directory.
    #[must_use]
    pub fn of_state_dir(state_dir: &Path) -> Self {
        Self::below(Path::new("/run/vhive"), state_dir)
    }

    /// Likewise below another base: for tests.
    #[must_use]
    pub fn below(base: &Path, state_dir: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt as _;
        let mut tag = Digest::of(state_dir.as_os_str().as_bytes()).hex();
        tag.truncate(8);
        Self { dir: base.join(&tag), tag, cpus: None }
    }

    /// The same, but its sandboxes run on these processors only;
    /// [`check_cpus`](crate::cgroup::check_cpus) says whether they can.
    #[must_use]
    pub fn on(self, cpus: Cpus) -> Self {
        Self { cpus: Some(Arc::new(cpus)), ..self }
    }

    /// The processors that its sandboxes are kept to; none = any.
    #[must_use]
    pub fn cpus(&self) -> Option<&Cpus> {
        self.cpus.as_deref()
    }

    /// The directory; made on first use.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Eight hexadecimal digits.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Directory of all sandboxes.
    #[must_use]
    pub fn sandboxes(&self) -> PathBuf {
        self.dir.join("sandboxes")
    }
}

/// What a sweep needs to know of a sandbox; written before anything else of it exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxRecord {
    /// Its identifier, equal to the directory's name.
    pub id: SandboxId,
    /// Its runtime.
    pub runtime: RuntimeName,
}

/// The directory of one sandbox. Dropping it removes it with all its content.
#[derive(Debug)]
pub struct SandboxDir {
    path: PathBuf,
}

impl SandboxDir {
    /// Makes the directory and writes its record.
    ///
    /// # Errors
    /// Any I/O error; nothing is left behind. `AlreadyExists` if the identifier is in use.
    pub fn create(root: &RunRoot, record: &SandboxRecord) -> io::Result<Self> {
        fs::create_dir_all(root.sandboxes())?;
        let path = root.sandboxes().join(record.id.as_str());
        fs::create_dir(&path)?;
        let dir = Self { path };
        fs::write(dir.path.join("sandbox.json"), serde_json::to_vec(record)?)?;
        Ok(dir)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SandboxDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "sandbox directory not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_its_guard_and_is_never_shared() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let root = RunRoot::below(base.path(), Path::new("/var/lib/vhive"));
        let record = SandboxRecord { id: SandboxId::random(), runtime: RuntimeName::Sim };
        let dir = SandboxDir::create(&root, &record).expect("made");
        let again = SandboxDir::create(&root, &record).expect_err("in use");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let path = dir.path().to_owned();
        assert!(path.join("sandbox.json").exists());
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn tags_differ_by_state_directory() {
        let base = Path::new("/run/vhive");
        let one = RunRoot::below(base, Path::new("/a"));
        assert_ne!(one.tag(), RunRoot::below(base, Path::new("/b")).tag());
        assert_eq!(one.tag().len(), 8);
    }
}
