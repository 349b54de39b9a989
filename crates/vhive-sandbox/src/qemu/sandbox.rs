//! A running microVM as the node sees it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustix::process::Pid;
use vhive_api::SandboxId;

use super::checkpoint::Taken;
use super::vm::Vm;
use crate::contract;
use crate::deadline::Deadline;
use crate::journal::{End, Journal};
use crate::network::NetworkSlot;
use crate::paging::ClonePaging;
use crate::run_dir::SandboxDir;
use crate::runtime::{Checkpoint, Paging, RunError, Sandbox};

/// The fields are dropped in this order: process, what served its memory, directory, network slot.
#[derive(Debug)]
pub(super) struct QemuSandbox {
    pub(super) vm: Vm,
    pub(super) pids: [Pid; 1],
    pub(super) id: SandboxId,
    pub(super) port: u16,
    pub(super) journal: Arc<Journal>,
    /// Whether it is a bare guest, which does not speak the guest contract.
    pub(super) is_bare: bool,
    /// What its snapshots say of themselves; none of a clone, which cannot be snapshotted.
    pub(super) taken: Option<Taken>,
    /// How a clone's memory arrives.
    pub(super) paging: Option<Arc<ClonePaging>>,
    pub(super) _dir: SandboxDir,
    pub(super) network: Arc<NetworkSlot>,
}

impl Sandbox for QemuSandbox {
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
        if self.is_bare {
            // There is nobody to be asked, and nothing to be lost.
            self.journal.end(End::Vanished("the sandbox was stopped".to_owned()));
            self.vm.supervised.kill();
            return;
        }
        contract::stop(&self.vm.supervised, &self.journal, deadline);
    }
}

impl Drop for QemuSandbox {
    fn drop(&mut self) {
        // What follows is our doing, whatever QEMU's exit looks like.
        self.journal.end(End::Vanished("the sandbox was removed".to_owned()));
    }
}
