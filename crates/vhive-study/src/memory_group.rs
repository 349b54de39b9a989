//! The control group of all sandboxes of a node on this host, and its memory limit.
//!
//! ```text
//!   v1    /sys/fs/cgroup/memory/vhive-<tag>/memory.limit_in_bytes
//!   v2    /sys/fs/cgroup/vhive-<tag>/memory.max
//! ```
//!
//! The node's own process is not in it.

use std::fs;
use std::path::{Path, PathBuf};

use vhive_api::Bytes;

use crate::host::HostError;

/// The group with its limit. Dropping it takes the limit away again.
#[derive(Debug)]
pub struct MemoryGroup {
    dir: PathBuf,
    version: Version,
    limit: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// What the kernel charges the group with, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charged {
    /// In all.
    pub all: Option<u64>,
    /// Of that, the kernel's own objects: page tables, stacks, namespaces, sockets.
    pub kernel: Option<u64>,
    /// Of that, pages of files, which can be taken back.
    pub files: Option<u64>,
}

impl MemoryGroup {
    /// Limits the node with this tag. The group is made if no sandbox runs.
    ///
    /// # Errors
    /// Without root, or where the host has no memory controller.
    pub fn limit(tag: &str, limit: Bytes) -> Result<Self, HostError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let (mount, version) = hierarchy(&mounts).ok_or(HostError::NoMemoryController)?;
        if version == Version::V2 {
            // Where it is enabled already, or the root is not ours, the limit below tells.
            let _ = fs::write(mount.join("cgroup.subtree_control"), "+memory");
        }
        let group = Self { dir: mount.join(format!("vhive-{tag}")), version, limit };
        group.hold()?;
        Ok(group)
    }

    /// Sets the limit if it is not set: a node removes its group with its last sandbox.
    ///
    /// # Errors
    /// When it cannot be set.
    pub fn hold(&self) -> Result<(), HostError> {
        let path = self.dir.join(self.file());
        let set = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        if set.is_some_and(|set: u64| set <= self.limit.0) {
            return Ok(());
        }
        let made = fs::create_dir_all(&self.dir);
        let set = made.and_then(|()| fs::write(&path, self.limit.0.to_string()));
        set.map_err(|source| HostError::Write { path, source })
    }

    /// Its directory, in the hierarchy of the memory controller.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether a sandbox of the node still has a group.
    #[must_use]
    pub fn is_used(&self) -> bool {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    }

    /// What it is charged with at present.
    #[must_use]
    pub fn charged(&self) -> Charged {
        let number = |file: &str| -> Option<u64> {
            fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()
        };
        let stat = fs::read_to_string(self.dir.join("memory.stat")).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        };
        match self.version {
            Version::V1 => Charged {
                all: number("memory.usage_in_bytes"),
                kernel: number("memory.kmem.usage_in_bytes"),
                // Memory of tmpfs and memfds is in `cache`, and cannot be taken back.
                files: field("total_cache")
                    .zip(field("total_shmem").or(Some(0)))
                    .map(|(cache, shared)| cache.saturating_sub(shared)),
            },
            Version::V2 => Charged {
                all: number("memory.current"),
                kernel: field("kernel"),
                files: field("file")
                    .zip(field("shmem").or(Some(0)))
                    .map(|(file, shared)| file.saturating_sub(shared)),
            },
        }
    }

    const fn file(&self) -> &'static str {
        match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        }
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let none = match self.version {
            Version::V1 => "-1",
            Version::V2 => "max",
        };
        // With its last sandbox the node has removed it; otherwise an empty one goes here.
        drop(fs::write(self.dir.join(self.file()), none));
        drop(fs::remove_dir(&self.dir));
    }
}

/// Where the memory controller is mounted.
///
/// # Source
/// proc_pid_mountinfo(5)
fn hierarchy(mountinfo: &str) -> Option<(PathBuf, Version)> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        Some((before.split(' ').nth(4)?, after.next()?, after.nth(1).unwrap_or_default()))
    });
    let all: Vec<_> = mounts.collect();
    let one = all.iter().find(|(_, kind, options)| {
        *kind == "cgroup" && options.split(',').any(|option| option == "memory")
    });
    let two = || all.iter().find(|(_, kind, _)| *kind == "cgroup2");
    let at = |mount: &str, version| (Path::new(mount).to_owned(), version);
    one.map(|(mount, ..)| at(mount, Version::V1))
        .or_else(|| two().map(|(mount, ..)| at(mount, Version::V2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "30 25 0:27 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_controller_is_found_in_either_version() {
        let hybrid = format!(
            "27 25 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             28 25 0:25 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n{UNIFIED}"
        );
        let found = hierarchy(&hybrid).expect("it is mounted");
        assert_eq!(found, ("/sys/fs/cgroup/memory".into(), Version::V1));
        assert_eq!(hierarchy(UNIFIED), Some(("/sys/fs/cgroup".into(), Version::V2)));
        assert_eq!(hierarchy(""), None);
    }

    #[test]
    fn a_limit_is_set_once_and_taken_away() {
        let dir = tempfile::tempdir().expect("made");
        let at = dir.path().join("vhive-0");
        fs::create_dir(&at).expect("made");
        let (file, stat) = (at.join("memory.max"), at.join("memory.stat"));
        fs::write(&file, "max\n").expect("written");
        fs::write(&stat, "anon 5\nfile 900\nkernel 70\nshmem 100\n").expect("written");
        fs::write(at.join("memory.current"), "1000\n").expect("written");
        let group = MemoryGroup { dir: at, version: Version::V2, limit: Bytes::mib(64) };
        group.hold().expect("set");
        assert_eq!(fs::read_to_string(&file).expect("there"), "67108864");
        group.hold().expect("set already");
        let charged = Charged { all: Some(1000), kernel: Some(70), files: Some(800) };
        assert_eq!((group.charged(), group.is_used()), (charged, false));
        drop(group);
        assert_eq!(fs::read_to_string(&file).expect("there"), "max");
    }
}
