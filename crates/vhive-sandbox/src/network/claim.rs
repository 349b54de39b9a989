//! Who uses which addresses on this host: one locked file per node.
//!
//! ```text
//!   /run/vhive/network/<namespace>/lock         held while any file beside it is made or changed
//!   /run/vhive/network/<namespace>/<tag>.json   a Record; locked by its node while that lives
//! ```
//!
//! The directory is the same for all nodes in a network namespace (named by its inode), wherever
//! their run directories are, since they share its addresses. It goes with its last claim.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Where the claims of the calling thread's network namespace are.
pub(super) fn directory() -> io::Result<PathBuf> {
    let namespace = fs::metadata("/proc/thread-self/ns/net")?.ino();
    Ok(Path::new("/run/vhive/network").join(namespace.to_string()))
}

/// What a node says about itself to the others and to a later sweep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The node's addresses.
    pub(super) range: Ipv4Net,
    /// Interface through which its guests leave for anywhere.
    pub(super) uplink: Option<String>,
    /// All interfaces through which its guests leave.
    pub(super) ways: Vec<String>,
    /// Those of them whose forwarding was off before, so that the last user turns it off again.
    pub(super) opened: Vec<String>,
    /// Whether the host forwarded by default. If it does so later, somebody else wants it to.
    pub(super) forwarding: bool,
}

/// A node's claim. Dropping it only unlocks the file, as a killed node would; `Claim::release`
/// is the proper end.
#[derive(Debug)]
pub(super) struct Claim {
    path: PathBuf,
    file: File,
}

/// The lock under which claims change.
#[derive(Debug)]
pub(super) struct Registry {
    directory: PathBuf,
    lock: File,
}

/// Another node's claim, as [`Registry::others`] finds it.
#[derive(Debug)]
pub(super) struct Other {
    pub(super) tag: String,
    /// Whether its node lives.
    pub(super) alive: bool,
    pub(super) claim: Claim,
    /// `None` if it has not been written (completely).
    pub(super) record: Option<Record>,
}

impl Registry {
    /// Waits for the lock. Holders do a few reads and writes, so it is never held for long.
    pub(super) fn lock(directory: &Path) -> io::Result<Self> {
        let path = directory.join("lock");
        loop {
            fs::create_dir_all(directory)?;
            let options = File::options().create(true).truncate(false).write(true).clone();
            let lock = match options.open(&path) {
                // Its last holder has just removed the directory.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result?,
            };
            lock.lock()?;
            let same =
                |there: fs::Metadata| Ok::<_, io::Error>(there.ino() == lock.metadata()?.ino());
            if fs::metadata(&path).is_ok_and(|there| same(there).unwrap_or(false)) {
                return Ok(Self { directory: directory.to_owned(), lock });
            }
        }
    }

    /// Removes the directory if no claim is left in it.
    pub(super) fn tidy(self) -> io::Result<()> {
        let claims = fs::read_dir(&self.directory)?
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name() != "lock");
        if claims.count() == 0 {
            // Whoever waits for the lock meanwhile finds it gone and makes a new one.
            fs::remove_file(self.directory.join("lock"))?;
            fs::remove_dir(&self.directory)?;
        }
        drop(self.lock);
        Ok(())
    }

    /// Takes the claim of a tag; `None` if a living node has it.
    pub(super) fn claim(&self, tag: &str) -> io::Result<Option<Claim>> {
        let path = self.directory.join(format!("{tag}.json"));
        let file =
            File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Claim { path, file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// All claims but that of `tag`.
    pub(super) fn others(&self, tag: &str) -> io::Result<Vec<Other>> {
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if path.extension().is_none_or(|end| end != "json") || stem == tag {
                continue;
            }
            let other = stem.to_owned();
            let file = File::options().read(true).write(true).open(&path)?;
            let alive = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
            let mut claim = Claim { path, file };
            let record = claim.read()?;
            others.push(Other { tag: other, alive, claim, record });
        }
        Ok(others)
    }
}

impl Claim {
    /// What is written in it; `None` if nothing sensible is.
    pub(super) fn read(&mut self) -> io::Result<Option<Record>> {
        let mut text = Vec::new();
        self.file.rewind()?;
        (&self.file).take(1 << 16).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text).ok())
    }

    /// Replaces what is written in it. Call it with the registry locked.
    pub(super) fn write(&mut self, record: &Record) -> io::Result<()> {
        let text = serde_json::to_vec(record)?;
        self.file.rewind()?;
        self.file.write_all(&text)?;
        self.file.set_len(text.len() as u64)
    }

    /// Ends the claim. Call it with the registry locked.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(range: &str) -> Record {
        let range = range.parse().unwrap();
        let (uplink, ways) = (Some("eth0".to_owned()), vec!["eth0".to_owned()]);
        Record { range, uplink, ways, opened: Vec::new(), forwarding: false }
    }

    #[test]
    fn a_claim_is_one_nodes_as_long_as_it_lives_and_the_last_tidies_up() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("claims");
        let registry = Registry::lock(&directory).unwrap();
        let mut claim = registry.claim("aa").unwrap().expect("nobody has it");
        claim.write(&record("198.18.4.0/22")).unwrap();
        assert!(registry.claim("aa").unwrap().is_none());
        assert!(registry.others("aa").unwrap().is_empty());

        let seen = registry.others("bb").unwrap();
        assert!(seen[0].alive);
        assert_eq!(seen[0].record, Some(record("198.18.4.0/22")));
        drop((seen, claim));
        assert!(!registry.others("bb").unwrap()[0].alive, "as after a kill");

        let mut again = registry.claim("aa").unwrap().expect("its node is dead");
        // A shorter record leaves nothing of a longer one behind.
        again.write(&record("10.0.0.0/8")).unwrap();
        assert_eq!(again.read().unwrap(), Some(record("10.0.0.0/8")));
        again.remove().unwrap();
        registry.tidy().unwrap();
        assert!(!directory.exists());
    }

    #[test]
    fn a_claim_that_was_not_written_completely_is_no_record() {
        let base = tempfile::tempdir().unwrap();
        let registry = Registry::lock(base.path()).unwrap();
        for text in ["", "{", "{\"range\":\"198.18.4.0/22\"", "[]", "{\"range\":\"198.18.4.0/99\"}"]
        {
            fs::write(base.path().join("cc.json"), text).unwrap();
            let mut claim = registry.claim("cc").unwrap().expect("nobody has it");
            assert_eq!(claim.read().unwrap(), None, "{text}");
        }
    }
}
