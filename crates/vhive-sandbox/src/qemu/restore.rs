//! Starting a clone of a snapshot.
//!
//! ```text
//!   spawn -incoming defer, may wait here ─► Spawned ─► load devices ─► cont = Restored
//!                        ─► Resume{name, clock, entropy} ─► init answers = Resumed
//! ```
//!
//! A bare guest goes on where it was: it is not told anything, and does not answer.
//!
//! The command line is the boot's, so that the machine is the same; QEMU loads no kernel while it
//! waits for incoming state.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use vhive_api::{MemoryMode, RuntimeName};
use vhive_pager::{Handoff, Pager};

use super::checkpoint::{set_capabilities, wait_migration};
use super::ground::Ground;
use super::memory::Backing;
use super::qmp::QmpError;
use super::sandbox::QemuSandbox;
use super::vm::{self, Spawned, Vm};
use super::{Qemu, chain};
use crate::bare;
use crate::contract::{Supervised, become_clone, own_words as words};
use crate::deadline::Deadline;
use crate::journal::{End, Journal, Milestone};
use crate::network::NetworkSlot;
use crate::paging::{self, ClonePaging, Preparing};
use crate::run_dir::{SandboxDir, SandboxRecord};
use crate::runtime::{
    BootError, Guest, HostLacks, Memory, Prespawned, Restore, RestoreError, Runtime as _, Sandbox,
    SandboxSpec,
};
use crate::snapshot::{MEMORY, Mismatch, Platform, Snapshot, VM_STATE};
use crate::userfaultfd;

impl Restore for Qemu {
    fn memory_modes(&self) -> &[MemoryMode] {
        userfaultfd::memory_modes()
    }

    fn lacks(&self, mode: MemoryMode) -> Option<HostLacks> {
        userfaultfd::lacks_for(mode)
    }

    fn platform(&self, _: &Guest) -> Result<Platform, HostLacks> {
        Ok(self.ground()?.platform.clone())
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
        // Reading goes on while QEMU starts.
        let pager = pager_for(&ground, memory.mode)?;
        let preparing = Preparing::begin(from, memory, pager.as_deref())?;
        let waiting = self.spawn_waiting(spec, from, memory.mode, deadline)?;
        spec.journal.reach(Milestone::Spawned, Instant::now());
        waiting.go(preparing, deadline)
    }
}

impl Qemu {
    fn ground_for(&self, spec: &SandboxSpec) -> Result<Arc<Ground>, RestoreError> {
        if spec.network.is_none() {
            super::network_of(spec)?;
        }
        let host = |lacks| BootError::Host { runtime: self.name(), lacks };
        Ok(self.ground().map_err(host)?)
    }

    /// Spawns a QEMU that waits for its state, and takes over its memory, which it has not touched.
    fn spawn_waiting(
        &self,
        spec: &SandboxSpec,
        from: &Snapshot,
        mode: MemoryMode,
        deadline: Deadline,
    ) -> Result<Waiting, RestoreError> {
        let ground = self.ground_for(spec)?;
        let network = super::network_of(spec)?;
        if let Some(was) = &from.manifest().network
            && was != network.guest()
        {
            let (has, wanted) = (format!("{was:?}"), format!("{:?}", network.guest()));
            return Err(RestoreError::Mismatch(Mismatch { field: "network", has, wanted }));
        }
        let kernel = super::kernel_of(spec, &network, &ground)?;
        let was = from.manifest().platform.kernel;
        if spec.guest != Guest::Linux && was != Some(kernel.digest) {
            // The one part of the platform that the caller knows nothing of.
            let has = was.map_or_else(|| "none".to_owned(), |digest| digest.to_string());
            let (field, wanted) = ("platform.kernel", kernel.digest.to_string());
            return Err(RestoreError::Mismatch(Mismatch { field, has, wanted }));
        }
        let record = SandboxRecord { id: spec.id.clone(), runtime: RuntimeName::Qemu };
        let dir = SandboxDir::create(&spec.run_root, &record).map_err(|source| {
            let step = format!("create the directory of sandbox {}", spec.id);
            BootError::Resource { step, source }
        })?;
        let spawned = self.spawn(spec, (&ground, &kernel), from, mode, deadline);
        let (vm, state_fd, handed) = spawned.inspect_err(|error| failed(spec, error))?;
        let (spec, from) = (spec.clone(), from.clone());
        let binary = self.config.binary.display().to_string();
        Ok(Waiting { vm, handed, state_fd, mode, spec, from, ground, binary, dir, network })
    }

    #[expect(clippy::too_many_arguments, reason = "everything that a machine is made of")]
    fn spawn(
        &self,
        spec: &SandboxSpec,
        (ground, kernel): (&Ground, &vm::Guest),
        from: &Snapshot,
        mode: MemoryMode,
        deadline: Deadline,
    ) -> Result<(Vm, Option<RawFd>, Option<Handoff>), RestoreError> {
        let (backing, socket) = backing(spec, ground, from, mode)?;
        let network = super::network_of(spec)?;
        let mut wanted = self.wanted(spec, &network, (ground, kernel), backing);
        wanted.incoming = Some(from.file(VM_STATE).map_err(RestoreError::Snapshot)?);
        wanted.config = None;
        let binary = wanted.binary;
        let spawned = Spawned::spawn(wanted)?;
        let state_fd = spawned.state_fd;
        let bytes = super::guest_memory(spec).0;
        let handed = socket.map(|socket| paging::receive(&socket, bytes, deadline)).transpose();
        let handed =
            handed.map_err(|error| own_words(&spawned.supervised, &spec.journal, binary, error))?;
        let mut vm = spawned.greet(&spec.journal, binary, deadline)?;
        set_capabilities(&mut vm.qmp, deadline).map_err(|error| {
            let reason = words(&vm.supervised, &spec.journal, &chain(&error));
            BootError::Spawn { program: binary.display().to_string(), reason }
        })?;
        Ok((vm, state_fd, handed))
    }
}

/// The pager, for the modes that need it.
fn pager_for(ground: &Ground, mode: MemoryMode) -> Result<Option<Arc<Pager>>, RestoreError> {
    if mode == MemoryMode::File {
        return Ok(None);
    }
    ground.pager().map(Some).map_err(|error| RestoreError::Pager(chain(&error)))
}

fn failed(spec: &SandboxSpec, error: &RestoreError) {
    let (step, reason) = ("restore".to_owned(), chain(error));
    spec.journal.end(End::Failed { step, reason });
}

/// A QEMU that ends before it hands over its memory has the better reason.
fn own_words(
    supervised: &Supervised,
    journal: &Journal,
    binary: &Path,
    error: RestoreError,
) -> RestoreError {
    let text = chain(&error);
    let reason = words(supervised, journal, &text);
    if reason == text {
        return error;
    }
    BootError::Spawn { program: binary.display().to_string(), reason }.into()
}

/// What QEMU maps, and the socket over which it hands that over.
fn backing(
    spec: &SandboxSpec,
    ground: &Ground,
    from: &Snapshot,
    mode: MemoryMode,
) -> Result<(Backing, Option<UnixStream>), RestoreError> {
    let size = super::guest_memory(spec);
    let failed = |source| {
        let step = "prepare guest memory".to_owned();
        RestoreError::from(BootError::Resource { step, source })
    };
    if mode == MemoryMode::File {
        let file = from.file(MEMORY).map_err(RestoreError::Snapshot)?;
        let backing = Backing::mapped(size, file, &ground.shim).map_err(failed)?;
        return Ok((backing, None));
    }
    if let Some(lacks) = userfaultfd::lacks_for(mode) {
        return Err(RestoreError::Mode { mode, reason: lacks.to_string() });
    }
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let backing = Backing::served(size, theirs.into(), &ground.shim).map_err(failed)?;
    Ok((backing, Some(ours)))
}

/// A QEMU that waits for its state. The fields are dropped in this order: first the process.
#[derive(Debug)]
struct Waiting {
    vm: Vm,
    /// Its memory, if the pager is to serve it.
    handed: Option<Handoff>,
    state_fd: Option<RawFd>,
    mode: MemoryMode,
    spec: SandboxSpec,
    from: Snapshot,
    ground: Arc<Ground>,
    binary: String,
    dir: SandboxDir,
    network: Arc<NetworkSlot>,
}

impl Prespawned for Waiting {
    fn restore(
        self: Box<Self>,
        memory: Memory,
        deadline: Deadline,
    ) -> Result<Box<dyn Sandbox>, RestoreError> {
        self.spec.journal.reach(Milestone::Spawned, Instant::now());
        let is_file = |mode| mode == MemoryMode::File;
        if is_file(memory.mode) != is_file(self.mode) {
            let reason = format!("it was spawned for mode {}", self.mode);
            return Err(RestoreError::Mode { mode: memory.mode, reason });
        }
        let pager = pager_for(&self.ground, memory.mode)?;
        let preparing = Preparing::begin(&self.from, memory, pager.as_deref())?;
        self.go(preparing, deadline)
    }
}

impl Waiting {
    fn go(
        mut self,
        preparing: Preparing,
        deadline: Deadline,
    ) -> Result<Box<dyn Sandbox>, RestoreError> {
        let paging =
            self.run(preparing, deadline).inspect_err(|error| failed(&self.spec, error))?;
        let Self { vm, spec, dir, network, .. } = self;
        Ok(Box::new(QemuSandbox {
            pids: [vm.supervised.pid()],
            vm,
            id: spec.id.clone(),
            port: spec.port,
            journal: Arc::clone(&spec.journal),
            is_bare: spec.guest != Guest::Linux,
            taken: None,
            paging: Some(paging),
            _dir: dir,
            network,
        }))
    }

    fn run(
        &mut self,
        preparing: Preparing,
        deadline: Deadline,
    ) -> Result<Arc<ClonePaging>, RestoreError> {
        let journal = &self.spec.journal;
        let paging = preparing.attach(self.handed.take(), &self.vm.supervised, journal)?;
        let loaded = load(&mut self.vm, self.state_fd, &paging, deadline)?;
        loaded.map_err(|error| {
            let supervised = &self.vm.supervised;
            let reason = words(supervised, journal, &chain(&error));
            if supervised.was_killed() || !is_refusal(&error, &reason) {
                return BootError::Guest { wanted: Milestone::Restored, attempts: 1, reason }
                    .into();
            }
            RestoreError::State { program: self.binary.clone(), reason }
        })?;
        journal.reach(Milestone::Restored, Instant::now());
        if self.spec.guest == Guest::Linux {
            become_clone(&self.vm.supervised, &self.spec, &self.network, deadline)?;
        } else {
            bare::resumed(journal);
        }
        self.vm.serve()?;
        Ok(paging)
    }
}

/// Whether a failed load says something of the saved state: QEMU has refused it, or has ended over it. One that
/// has not answered in time may only be slow, and one that lacked something may have it the next time.
fn is_refusal(error: &QmpError, reason: &str) -> bool {
    let is_late = |kind| matches!(kind, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock);
    let silent = matches!(error, QmpError::Connection(source) if is_late(source.kind()));
    !silent && !LACKS.iter().any(|words| reason.contains(words))
}

/// How the errors of a host that lacks memory, descriptors or room read.
const LACKS: [&str; 3] =
    ["Cannot allocate memory", "Too many open files", "No space left on device"];

/// Loads devices and virtual CPUs, and lets the guest run once its memory may be used.
fn load(
    vm: &mut Vm,
    state_fd: Option<RawFd>,
    paging: &ClonePaging,
    deadline: Deadline,
) -> Result<Result<(), QmpError>, RestoreError> {
    let qmp = &mut vm.qmp;
    let uri = format!("fd:{}", state_fd.unwrap_or(-1));
    let incoming = Some(json!({ "uri": uri }));
    let loaded = qmp
        .execute("migrate-incoming", incoming, deadline)
        .and_then(|_| wait_migration(qmp, deadline));
    if loaded.is_err() {
        return Ok(loaded);
    }
    paging.may_resume(deadline)?;
    Ok(qmp.execute("cont", None, deadline).map(drop))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;
    use crate::qemu::qmp::Qmp;

    /// What comes of asking a QEMU to load, that says these lines and then hangs or ends.
    fn load_from(lines: &[&str], hangs: bool) -> QmpError {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        let greeting = [r#"{"QMP": {}}"#, r#"{"return": {}}"#];
        for line in greeting.iter().chain(lines) {
            writeln!(theirs, "{line}").expect("written");
        }
        let mut qmp = Qmp::greet(ours, Deadline::after(Duration::from_secs(10))).expect("greeted");
        let _theirs = hangs.then_some(theirs);
        let brief = Deadline::after(Duration::from_millis(50));
        let asked = qmp.execute("migrate-incoming", None, brief);
        asked.and_then(|_| wait_migration(&mut qmp, brief)).expect_err("not loaded")
    }

    #[test]
    fn a_qemu_that_is_only_slow_says_nothing_of_the_saved_state() {
        let failed = [
            r#"{"return": {}}"#,
            r#"{"event": "MIGRATION", "data": {"status": "failed"}}"#,
            r#"{"return": {"error-desc": "bad section"}}"#,
        ];
        let refused = r#"{"error": {"desc": "no such file"}}"#;
        let told = |error: &QmpError| is_refusal(error, &chain(error));
        assert!(!told(&load_from(&[], true)), "it has not even begun");
        assert!(!told(&load_from(&failed[..1], true)), "it has begun");
        assert!(told(&load_from(&failed[..1], false)), "it has ended over it");
        assert!(told(&load_from(&failed, true)) && told(&load_from(&[refused], true)));
        let lacks = r#"{"error": {"desc": "mmap: Cannot allocate memory"}}"#;
        assert!(!told(&load_from(&[lacks], true)), "it may have it the next time");
    }
}
