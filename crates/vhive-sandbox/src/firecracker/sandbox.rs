//! A running microVM as the node sees it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustix::process::Pid;
use vhive_api::SandboxId;

use super::balloon::{self, GivenBack};
use super::checkpoint::Taken;
use super::metrics::{self, Metrics};
use super::vm::{METRICS, Vm};
use crate::contract::{self, chain};
use crate::deadline::Deadline;
use crate::journal::{End, Journal};
use crate::network::NetworkSlot;
use crate::paging::ClonePaging;
use crate::run_dir::SandboxDir;
use crate::runtime::{Checkpoint, Paging, RunError, Sandbox};

/// A sandbox in a Firecracker of its own. The fields are dropped in this order: process, what
/// served its memory, directory, network slot.
#[derive(Debug)]
pub struct FirecrackerSandbox {
    pub(super) vm: Vm,
    pub(super) pids: [Pid; 1],
    pub(super) id: SandboxId,
    pub(super) port: u16,
    pub(super) journal: Arc<Journal>,
    /// Whether it is a bare guest, which does not speak the guest contract.
    pub(super) is_bare: bool,
    /// Whether it has a balloon that can be used.
    pub(super) has_balloon: bool,
    /// What its snapshots say of themselves; none of a clone that cannot be snapshotted.
    pub(super) taken: Option<Taken>,
    /// How a clone's memory arrives.
    pub(super) paging: Option<Arc<ClonePaging>>,
    pub(super) _dir: SandboxDir,
    pub(super) network: Arc<NetworkSlot>,
}

impl FirecrackerSandbox {
    /// What its Firecracker has measured so far.
    ///
    /// # Errors
    /// It does not answer in time, or writes nothing down
    /// ([`FirecrackerConfig::metrics`](super::FirecrackerConfig::metrics)).
    pub fn metrics(&mut self, deadline: Deadline) -> io::Result<Metrics> {
        self.vm.api.flush_metrics(deadline).map_err(io::Error::other)?;
        metrics::read(&self.vm.jail.host(METRICS))
    }
}

impl FirecrackerSandbox {
    /// Has the guest give back the memory that is free, which its next snapshot then has no more; a
    /// guest without a driver for the balloon gives nothing. It runs on in any case.
    ///
    /// # Errors
    /// There is no balloon
    /// ([`FirecrackerConfig::balloon`](super::FirecrackerConfig::balloon)), or Firecracker does not
    /// answer in time.
    pub fn give_back(&mut self, deadline: Deadline) -> io::Result<GivenBack> {
        let ended = self.vm.supervised.pidfd()?;
        balloon::give_back(&mut self.vm.api, &ended, deadline)
            .map_err(|error| io::Error::other(chain(&error)))
    }
}

impl Sandbox for FirecrackerSandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.network.address()), self.port)
    }

    fn processes(&self) -> &[Pid] {
        &self.pids
    }

    fn checkpoint(&mut self) -> Option<&mut dyn Checkpoint> {
        if self.taken.is_some() { Some(self) } else { None }
    }

    fn run(&mut self, command: &[String], deadline: Deadline) -> Result<i32, RunError> {
        if self.is_bare {
            return Err(RunError::Unsupported);
        }
        contract::run(&self.vm.supervised, command, deadline)
    }

    fn paging(&self) -> Option<Arc<dyn Paging>> {
        self.paging.clone().map(|paging| paging as Arc<dyn Paging>)
    }

    fn stop(&mut self, deadline: Deadline) {
        if self.vm.jail.host(METRICS).exists() {
            match self.metrics(deadline) {
                Ok(it) => {
                    tracing::info!(sandbox = %self.id, metrics = ?it, "Firecracker's metrics")
                }
                Err(error) => tracing::warn!(sandbox = %self.id, %error, "no metrics"),
            }
        }
        if !self.is_bare {
            contract::stop(&self.vm.supervised, &self.journal, deadline);
            return;
        }
        // There is nobody to be asked, and nothing to be lost.
        self.journal.end(End::Vanished("the sandbox was stopped".to_owned()));
        self.vm.supervised.kill();
    }
}

impl Drop for FirecrackerSandbox {
    fn drop(&mut self) {
        // What follows is our doing, whatever Firecracker's exit looks like.
        self.journal.end(End::Vanished("the sandbox was removed".to_owned()));
    }
}
