//! Starting a clone of a snapshot.
//!
//! ```text
//!   spawn, may wait here ─► Spawned ─► snapshot/load ─► userfaultfd arrives, pager serves
//!                        ─► loaded ─► (working set in place) ─► vm: Resumed = Restored
//!                        ─► Resume{name, clock, entropy} ─► init answers = Resumed
//! ```
//!
//! Firecracker touches guest memory while it loads, so its faults are served before it answers.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhive_api::{Digest, MemoryMode};
use vhive_pager::Pager;

use super::Firecracker;
use super::api::{Api, ApiError, BackendType, LoadSnapshot, MemBackend};
use super::boot::ROOTFS;
use super::checkpoint::Taken;
use super::diff::{self, Base};
use super::ground::Ground;
use super::sandbox::FirecrackerSandbox;
use super::vm::{Port, UFFD, Vm, Wanted, guest_memory};
use crate::bare;
use crate::contract::{become_clone, chain, own_words};
use crate::deadline::Deadline;
use crate::journal::{End, Milestone};
use crate::network::NetworkSlot;
use crate::paging::{self, ClonePaging, Preparing};
use crate::run_dir::SandboxDir;
use crate::runtime::{
    BootError, Guest, HostLacks, Memory, Prespawned, Restore, RestoreError, Sandbox, SandboxSpec,
};
use crate::snapshot::{MEMORY, Mismatch, Platform, Snapshot, VM_STATE};
use crate::userfaultfd;

impl Restore for Firecracker {
    fn memory_modes(&self) -> &[MemoryMode] {
        userfaultfd::memory_modes()
    }

    fn lacks(&self, mode: MemoryMode) -> Option<HostLacks> {
        userfaultfd::lacks_for(mode)
    }

    fn platform(&self, guest: &Guest) -> Result<Platform, HostLacks> {
        let platform = &self.ground()?.platform;
        match guest {
            Guest::Linux => Ok(self.linux()?.on(platform)),
            Guest::Bare { .. } => Ok(platform.clone()),
        }
    }

    fn prespawn(
        &self,
        spec: &SandboxSpec,
        from: &Snapshot,
        mode: MemoryMode,
        deadline: Deadline,
    ) -> Result<Option<Box<dyn Prespawned>>, RestoreError> {
        let waiting = self.spawn_waiting(spec, from, mode, deadline)?;
        Ok(Some(Box::new(waiting)))
    }

    fn restore(
        &self,
        spec: &SandboxSpec,
        from: &Snapshot,
        memory: Memory,
        deadline: Deadline,
    ) -> Result<Box<dyn Sandbox>, RestoreError> {
        let ground = self.ground_for(spec)?;
        // Reading goes on while Firecracker starts.
        let preparing = prepare(&ground, from, memory)?;
        let waiting = self.spawn_waiting(spec, from, memory.mode, deadline)?;
        spec.journal.reach(Milestone::Spawned, Instant::now());
        Ok(Box::new(waiting.go(preparing, deadline)?))
    }
}

/// A Firecracker that waits for a snapshot. The fields are dropped in this order: first the
/// process.
#[derive(Debug)]
pub struct WaitingFirecracker {
    vm: Vm,
    /// Where its userfaultfd arrives, if the pager is to serve its memory.
    listener: Option<UnixListener>,
    mode: MemoryMode,
    spec: SandboxSpec,
    from: Snapshot,
    /// What a snapshot of the clone is written over, if one can be taken.
    base: Option<Base>,
    has_balloon: bool,
    ground: Arc<Ground>,
    dir: SandboxDir,
    network: Arc<NetworkSlot>,
}

impl Firecracker {
    fn ground_for(&self, spec: &SandboxSpec) -> Result<Arc<Ground>, RestoreError> {
        Ok(self.ground_of(&spec.guest)?.0)
    }

    /// Spawns a Firecracker for a snapshot, as [`Restore::prespawn`] does.
    ///
    /// # Errors
    /// [`RestoreError`]; every host resource has been released by then.
    pub fn spawn_waiting(
        &self,
        spec: &SandboxSpec,
        from: &Snapshot,
        mode: MemoryMode,
        deadline: Deadline,
    ) -> Result<WaitingFirecracker, RestoreError> {
        let ground = self.ground_for(spec)?;
        let network = super::network_of(spec)?;
        if let Some(was) = &from.manifest().network
            && was != network.guest()
        {
            let (has, wanted) = (format!("{was:?}"), format!("{:?}", network.guest()));
            return Err(RestoreError::Mismatch(Mismatch { field: "network", has, wanted }));
        }
        same_guest(spec, from)?;
        let served = mode != MemoryMode::File;
        if let Some(lacks) = userfaultfd::lacks_for(mode) {
            return Err(RestoreError::Mode { mode, reason: lacks.to_string() });
        }
        // To find out whether they are there: Firecracker opens them by itself.
        from.file(VM_STATE).map_err(RestoreError::Snapshot)?;
        let memory = from.file(MEMORY).map_err(RestoreError::Snapshot)?;
        let increments = self.config.diff_snapshots
            && diff::is_sound(ground.version, from.manifest().shape.memory);
        let base = increments.then(|| Base::File(Arc::new(memory)));
        let dir = super::directory(spec)?;
        let mut lent = vec![(VM_STATE, from.dir().join(VM_STATE))];
        if !served {
            lent.push((MEMORY, from.dir().join(MEMORY)));
        }
        let is_bare = spec.guest != Guest::Linux;
        if !is_bare {
            lent.push((ROOTFS, spec.rootfs.clone()));
        }
        let wanted = Wanted {
            spec,
            network: Some(&network),
            ground: &ground,
            config: &self.config,
            dir: dir.path(),
            lent: &lent,
            served,
            port: if is_bare { Port::Console } else { Port::Clone },
        };
        let spawned = Vm::spawn(&wanted, deadline).map_err(RestoreError::from);
        let (vm, listener) = spawned.inspect_err(|error| failed(spec, error))?;
        let (spec, from) = (spec.clone(), from.clone());
        Ok(WaitingFirecracker {
            vm,
            listener,
            mode,
            spec,
            from,
            base,
            has_balloon: self.config.balloon,
            ground,
            dir,
            network,
        })
    }
}

/// A clone runs what was snapshotted, whatever is said now.
fn same_guest(spec: &SandboxSpec, from: &Snapshot) -> Result<(), RestoreError> {
    let was = &from.manifest().platform;
    let is = spec.guest.platform(was.clone()).map_err(|source| {
        let step = "read the bare guest".to_owned();
        RestoreError::from(BootError::Resource { step, source })
    })?;
    if is.kernel == was.kernel {
        return Ok(());
    }
    let text = |digest: Option<Digest>| digest.map_or_else(|| "none".to_owned(), |d| d.to_string());
    let (has, wanted) = (text(was.kernel), text(is.kernel));
    Err(RestoreError::Mismatch(Mismatch { field: "platform.kernel", has, wanted }))
}

/// Begins to read what the pager is going to need.
fn prepare(ground: &Ground, from: &Snapshot, memory: Memory) -> Result<Preparing, RestoreError> {
    let pager: Option<Arc<Pager>> = match memory.mode {
        MemoryMode::File => None,
        _ => Some(ground.pager().map_err(|error| RestoreError::Pager(chain(&error)))?),
    };
    Preparing::begin(from, memory, pager.as_deref())
}

fn failed(spec: &SandboxSpec, error: &RestoreError) {
    let (step, reason) = ("restore".to_owned(), chain(error));
    spec.journal.end(End::Failed { step, reason });
}

impl Prespawned for WaitingFirecracker {
    fn restore(
        self: Box<Self>,
        memory: Memory,
        deadline: Deadline,
    ) -> Result<Box<dyn Sandbox>, RestoreError> {
        Ok(Box::new(self.load(memory, deadline)?))
    }
}

impl WaitingFirecracker {
    /// Becomes a clone, as [`Prespawned::restore`] does.
    ///
    /// # Errors
    /// [`RestoreError`]; every host resource has been released by then.
    pub fn load(
        self,
        memory: Memory,
        deadline: Deadline,
    ) -> Result<FirecrackerSandbox, RestoreError> {
        self.spec.journal.reach(Milestone::Spawned, Instant::now());
        let is_file = |mode| mode == MemoryMode::File;
        if is_file(memory.mode) != is_file(self.mode) {
            let reason = format!("it was spawned for mode {}", self.mode);
            return Err(RestoreError::Mode { mode: memory.mode, reason });
        }
        let preparing = prepare(&self.ground, &self.from, memory)?;
        self.go(preparing, deadline)
    }

    fn go(
        mut self,
        preparing: Preparing,
        deadline: Deadline,
    ) -> Result<FirecrackerSandbox, RestoreError> {
        let paging =
            self.run(preparing, deadline).inspect_err(|error| failed(&self.spec, error))?;
        let Self { vm, spec, dir, network, from, base, has_balloon, .. } = self;
        let (platform, shape) = (from.manifest().platform.clone(), from.manifest().shape);
        let taken = base.map(|base| Taken { platform, shape, base: Some(base) });
        Ok(FirecrackerSandbox {
            pids: [vm.supervised.pid()],
            vm,
            id: spec.id.clone(),
            port: spec.port,
            journal: Arc::clone(&spec.journal),
            is_bare: spec.guest != Guest::Linux,
            has_balloon,
            taken,
            paging: Some(paging),
            _dir: dir,
            network,
        })
    }

    fn run(
        &mut self,
        preparing: Preparing,
        deadline: Deadline,
    ) -> Result<Arc<ClonePaging>, RestoreError> {
        let journal = Arc::clone(&self.spec.journal);
        // Only a working set is worth waiting for; else the load's answer is the resumption's.
        let resume_vm = !preparing.is_prefetched();
        let backend_type = match self.listener {
            Some(_) => BackendType::Uffd,
            None => BackendType::File,
        };
        let backend = if backend_type == BackendType::Uffd { UFFD } else { MEMORY };
        let jail = Arc::clone(&self.vm.jail);
        let load = LoadSnapshot {
            snapshot_path: jail.inside(VM_STATE),
            mem_backend: MemBackend { backend_type, backend_path: jail.inside(backend) },
            resume_vm,
            track_dirty_pages: self.base.is_some(),
            // The interface needs no other tap: all network slots' have the same name.
        };
        let api = &mut self.vm.api;
        let sent = api.begin_load(&load, deadline);
        sent.map_err(|error| self.refused(&error))?;
        let arrived = match &self.listener {
            None => None,
            Some(listener) => wait_handoff(listener, &self.vm.api, deadline)
                .map_err(|error| RestoreError::Pager(chain(&error)))?,
        };
        let handed = arrived
            .map(|socket| paging::receive(&socket, guest_memory(&self.spec).0, deadline))
            .transpose()?;
        let handed_over = handed.is_some() || self.listener.is_none();
        let paging = preparing.attach(handed, &self.vm.supervised, &journal)?;
        let loaded = self.vm.api.loaded(deadline);
        loaded.map_err(|error| self.refused(&error))?;
        if !handed_over {
            let reason = "Firecracker has loaded without handing its memory over".to_owned();
            return Err(RestoreError::Pager(reason));
        }
        if !resume_vm {
            paging.may_resume(deadline)?;
            let resumed = self.vm.api.resume(deadline);
            resumed.map_err(|error| self.refused(&error))?;
        }
        journal.reach(Milestone::Restored, Instant::now());
        if self.spec.guest == Guest::Linux {
            let kept = self.vm.keep_every_byte();
            kept.map_err(|source| {
                let step = "keep what the guest says".to_owned();
                RestoreError::from(BootError::Resource { step, source })
            })?;
            become_clone(&self.vm.supervised, &self.spec, &self.network, deadline)?;
        } else {
            bare::resumed(&journal);
        }
        self.vm.serve()?;
        Ok(paging)
    }

    /// What a failed load says of the snapshot.
    fn refused(&self, error: &ApiError) -> RestoreError {
        let program = self.ground.binary.display().to_string();
        if let ApiError::Refused { reason, .. } = error {
            let reason = reason.clone();
            if HOSTS.iter().any(|words| reason.contains(words)) {
                return BootError::Spawn { program, reason }.into();
            }
            return RestoreError::State { program, reason };
        }
        // It has ended, or hangs: nothing is known of the state.
        let reason = own_words(&self.vm.supervised, &self.spec.journal, &chain(error));
        BootError::Guest { wanted: Milestone::Restored, attempts: 1, reason }.into()
    }
}

/// How Firecracker's refusals read that are about the host and not about the snapshot (`TapError`,
/// `GuestMemoryFromUffdError`).
const HOSTS: [&str; 3] = ["tap device", "UFFD", "UDS"];

/// Waits for Firecracker to connect with its userfaultfd; none if it answers the load first, which
/// it does only to refuse.
fn wait_handoff(
    listener: &UnixListener,
    api: &Api,
    deadline: Deadline,
) -> io::Result<Option<UnixStream>> {
    let answer = api.as_fd();
    loop {
        let timeout = Timespec::try_from(deadline.left()).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(&answer, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if !fds[0].revents().is_empty() {
            return Ok(Some(listener.accept()?.0));
        }
        return Ok(None);
    }
}
