//! Starting a clone of a snapshot.
//!
//! ```text
//!   spawn -incoming defer ─► greeting = Spawned ─► load devices ─► cont = Restored
//!                        ─► Resume{name, clock, entropy} ─► init answers = Resumed
//! ```
//!
//! The command line is the boot's, so that the machine is the same; QEMU loads no kernel while it
//! waits for incoming state.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use vhive_api::guest::{Identity, ToGuest};
use vhive_api::{MemoryMode, RuntimeName};

use super::checkpoint::{set_capabilities, wait_migration};
use super::conversation::{Answer, unix_now_ns};
use super::ground::Ground;
use super::memory::Backing;
use super::paging::{Preparing, QemuPaging};
use super::qmp::QmpError;
use super::sandbox::QemuSandbox;
use super::supervisor::Supervised;
use super::vm::{Spawned, Vm, words};
use super::{Qemu, chain, entropy};
use crate::deadline::Deadline;
use crate::journal::{End, Milestone};
use crate::network::NetworkSlot;
use crate::run_dir::{SandboxDir, SandboxRecord};
use crate::runtime::{
    BootError, HostLacks, Memory, Restore, RestoreError, Runtime as _, Sandbox, SandboxSpec,
};
use crate::snapshot::{MEMORY, Mismatch, Platform, Snapshot, VM_STATE};

impl Restore for Qemu {
    fn memory_modes(&self) -> &[MemoryMode] {
        let all = &[MemoryMode::File, MemoryMode::Lazy, MemoryMode::Record, MemoryMode::Prefetch];
        let served = self.ground().is_ok_and(|ground| ground.has_userfaultfd);
        if served { all } else { &all[..1] }
    }

    fn platform(&self) -> Result<Platform, HostLacks> {
        Ok(self.ground()?.platform.clone())
    }

    fn restore(
        &self,
        spec: &SandboxSpec,
        from: &Snapshot,
        memory: Memory,
        deadline: Deadline,
    ) -> Result<Box<dyn Sandbox>, RestoreError> {
        let host = |lacks| BootError::Host { runtime: self.name(), lacks };
        let ground = self.ground().map_err(host)?;
        let network = super::network_of(spec)?;
        if let Some(was) = &from.manifest().network
            && was != network.guest()
        {
            let (has, wanted) = (format!("{was:?}"), format!("{:?}", network.guest()));
            return Err(RestoreError::Mismatch(Mismatch { field: "network", has, wanted }));
        }
        let record = SandboxRecord { id: spec.id.clone(), runtime: RuntimeName::Qemu };
        let dir = SandboxDir::create(&spec.run_root, &record).map_err(|source| {
            let step = format!("create the directory of sandbox {}", spec.id);
            BootError::Resource { step, source }
        })?;
        let clone = Clone { qemu: self, spec, network: &network, ground: &ground };
        let restored = clone.restore(from, memory, deadline);
        let (vm, paging) = restored.inspect_err(|error| {
            let (step, reason) = ("restore".to_owned(), chain(error));
            spec.journal.end(End::Failed { step, reason });
        })?;
        Ok(Box::new(QemuSandbox {
            pids: [vm.supervised.pid()],
            vm,
            id: spec.id.clone(),
            port: spec.port,
            journal: Arc::clone(&spec.journal),
            taken: None,
            paging: Some(paging),
            _dir: dir,
            network,
        }))
    }
}

/// What a clone is made of.
struct Clone<'a> {
    qemu: &'a Qemu,
    spec: &'a SandboxSpec,
    network: &'a NetworkSlot,
    ground: &'a Ground,
}

impl Clone<'_> {
    fn restore(
        &self,
        from: &Snapshot,
        memory: Memory,
        deadline: Deadline,
    ) -> Result<(Vm, Arc<QemuPaging>), RestoreError> {
        let journal = &self.spec.journal;
        let (preparing, backing) = self.prepare(from, memory)?;
        let mut wanted = self.qemu.wanted(self.spec, self.network, self.ground, backing);
        wanted.incoming = Some(from.file(VM_STATE).map_err(RestoreError::Snapshot)?);
        wanted.config = None;
        let binary = wanted.binary;
        let spawned = Spawned::spawn(wanted)?;
        let state_fd = spawned.state_fd;
        let attached = preparing.attach(&spawned.supervised, journal, deadline);
        let paging = attached.map_err(|error| self.own_words(&spawned.supervised, error))?;
        let mut vm = spawned.greet(journal, binary, deadline)?;
        let loaded = load(&mut vm, state_fd, &paging, deadline)?;
        loaded.map_err(|error| {
            let reason = words(&vm.supervised, journal, &chain(&error));
            RestoreError::State { program: binary.display().to_string(), reason }
        })?;
        journal.reach(Milestone::Restored, Instant::now());
        self.resume(&vm, deadline)?;
        Ok((vm, paging))
    }

    /// A QEMU that ends before it hands over its memory has the better reason.
    fn own_words(&self, supervised: &Supervised, error: RestoreError) -> RestoreError {
        let text = chain(&error);
        let reason = words(supervised, &self.spec.journal, &text);
        if reason == text {
            return error;
        }
        let program = self.qemu.config.binary.display().to_string();
        BootError::Spawn { program, reason }.into()
    }

    fn prepare(
        &self,
        from: &Snapshot,
        memory: Memory,
    ) -> Result<(Preparing, Backing), RestoreError> {
        let size = super::guest_memory(self.spec);
        let shim = &self.ground.shim;
        let failed = |source| {
            let step = "prepare guest memory".to_owned();
            RestoreError::from(BootError::Resource { step, source })
        };
        if memory.mode == MemoryMode::File {
            let preparing = Preparing::by_kernel(from, memory)?;
            let file = from.file(MEMORY).map_err(RestoreError::Snapshot)?;
            return Ok((preparing, Backing::mapped(size, file, shim).map_err(failed)?));
        }
        if !self.ground.has_userfaultfd {
            let reason = "/dev/userfaultfd cannot be opened".to_owned();
            return Err(RestoreError::Mode { mode: memory.mode, reason });
        }
        let pager = self.ground.pager().map_err(|error| RestoreError::Pager(chain(&error)))?;
        let (preparing, socket) = Preparing::by_pager(from, memory, &pager)?;
        Ok((preparing, Backing::served(size, socket, shim).map_err(failed)?))
    }

    /// Tells the guest who it is now, and waits until it is.
    fn resume(&self, vm: &Vm, deadline: Deadline) -> Result<(), RestoreError> {
        let identity = Identity {
            clone: true,
            hostname: self.spec.id.to_string(),
            network: Some(self.network.guest().clone()),
            now_unix_ns: unix_now_ns(),
            entropy: entropy(),
        };
        let journal = &self.spec.journal;
        match vm.supervised.ask(ToGuest::Resume(Box::new(identity)), deadline) {
            Some(Answer::Resumed) => {
                let now = Instant::now();
                journal.reach(Milestone::Resumed, now);
                // It listened when the snapshot was taken.
                journal.reach(Milestone::Listening, now);
                Ok(())
            }
            _ => {
                let silent = "its init does not answer";
                let reason = words(&vm.supervised, journal, silent);
                let wanted = Milestone::Resumed;
                Err(BootError::Guest { wanted, attempts: 1, reason }.into())
            }
        }
    }
}

/// Loads devices and virtual CPUs, and lets the guest run once its memory may be used.
fn load(
    vm: &mut Vm,
    state_fd: Option<RawFd>,
    paging: &QemuPaging,
    deadline: Deadline,
) -> Result<Result<(), QmpError>, RestoreError> {
    let qmp = &mut vm.qmp;
    let uri = format!("fd:{}", state_fd.unwrap_or(-1));
    let loaded = set_capabilities(qmp, deadline)
        .and_then(|()| qmp.execute("migrate-incoming", Some(json!({ "uri": uri })), deadline))
        .and_then(|_| wait_migration(qmp, deadline));
    if loaded.is_err() {
        return Ok(loaded);
    }
    paging.may_resume(deadline)?;
    Ok(qmp.execute("cont", None, deadline).map(drop))
}
