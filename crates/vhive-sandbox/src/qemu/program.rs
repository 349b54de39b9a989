//! QEMU's process.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cgroup::Cgroup;
use crate::process::{self, Child, Confinement, Launch};

/// What to run, and everything that becomes the child's.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
    /// `NAME=value`; nothing else but `PATH` is in its environment.
    pub(super) environment: Vec<OsString>,
    pub(super) inherit: Vec<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) confinement: Confinement,
    /// The network namespace in which it runs; `None` = the caller's.
    pub(super) netns: Option<PathBuf>,
    /// Where its limits are; it is moved there right after it has been spawned.
    pub(super) cgroup: Option<Arc<Cgroup>>,
}

impl Program {
    /// Spawns it from the calling thread, which is in its network namespace afterwards. It has its
    /// own copies of the descriptors; ours would hide its end from the readers.
    pub(super) fn spawn(self) -> io::Result<Child> {
        if let Some(netns) = &self.netns {
            enter(netns)?;
        }
        let inherit: Vec<_> = self.inherit.iter().map(AsFd::as_fd).collect();
        let child = process::spawn(&Launch {
            program: &self.path,
            args: &self.arguments,
            environment: &self.environment,
            inherit: &inherit,
            stdin: None,
            stdout: self.stdout.as_fd(),
            stderr: self.stderr.as_fd(),
            confinement: Some(self.confinement),
        })?;
        child.make_expendable();
        if let Some(cgroup) = &self.cgroup {
            // Here, where nobody can have reaped it: its number is still its own.
            cgroup.add(child.pid())?;
        }
        Ok(child)
    }
}

fn enter(netns: &Path) -> io::Result<()> {
    let file = std::fs::File::open(netns)?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}
