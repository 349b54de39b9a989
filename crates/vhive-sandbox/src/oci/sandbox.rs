//! A running container as the node sees it.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::Pid;
use vhive_api::SandboxId;

use super::criu::Criu;
use super::gvisor::Gvisor;
use super::image::Mounted;
use super::outside::Outside;
use super::restore::Loaded;
use crate::cgroup::Cgroup;
use crate::contract::{self, Supervised};
use crate::deadline::Deadline;
use crate::journal::{End, Journal};
use crate::network::NetworkSlot;
use crate::run_dir::SandboxDir;
use crate::runtime::{Checkpoint, Paging, RunError, Sandbox};

/// The fields are dropped in this order: who looks at it, processes, then what they used.
#[derive(Debug)]
pub(super) struct OciSandbox {
    /// What is done from outside, where no init of ours is inside.
    pub(super) outside: Option<Outside>,
    pub(super) supervised: Supervised,
    /// The first process; none if it had ended before it was known.
    pub(super) pid: Option<Pid>,
    pub(super) id: SandboxId,
    pub(super) port: u16,
    pub(super) journal: Arc<Journal>,
    /// What its snapshots are made with, if it can be snapshotted.
    pub(super) gvisor: Option<Gvisor>,
    pub(super) criu: Option<Criu>,
    /// Whether it was restored from one.
    pub(super) clone: bool,
    /// Ends what its first process left, and what the runtime keeps running beside it.
    pub(super) cgroup: Cgroup,
    pub(super) _image: Arc<Mounted>,
    pub(super) dir: SandboxDir,
    pub(super) netns: Arc<OwnedFd>,
    pub(super) network: Arc<NetworkSlot>,
}

impl Sandbox for OciSandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.network.address()), self.port)
    }

    fn processes(&self) -> &[Pid] {
        self.pid.as_slice()
    }

    fn group(&self) -> Option<PathBuf> {
        self.cgroup.members().map(Path::to_owned)
    }

    fn checkpoint(&mut self) -> Option<&mut dyn Checkpoint> {
        if self.gvisor.is_some() || self.criu.is_some() { Some(self) } else { None }
    }

    fn run(&mut self, command: &[String], deadline: Deadline) -> Result<i32, RunError> {
        if self.outside.is_some() {
            // Its specification says that there would be none.
            return Err(RunError::Unsupported);
        }
        contract::run(&self.supervised, command, deadline)
    }

    fn paging(&self) -> Option<Arc<dyn Paging>> {
        self.clone.then(|| Arc::new(Loaded) as Arc<dyn Paging>)
    }

    fn stop(&mut self, deadline: Deadline) {
        match &self.outside {
            Some(outside) => outside.stop(deadline),
            None => contract::stop(&self.supervised, &self.journal, deadline),
        }
    }
}

impl Drop for OciSandbox {
    fn drop(&mut self) {
        // What follows is our doing, whatever the container's end looks like.
        self.journal.end(End::Vanished("the sandbox was removed".to_owned()));
    }
}
