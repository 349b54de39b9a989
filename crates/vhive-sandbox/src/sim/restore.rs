//! Snapshots of simulated sandboxes: real, small files.
//!
//! `vmstate` is a line of text that says whose state it is and how many connections were open when
//! it was taken; `memory` is sparse and has a page of text at its beginning and one in its middle.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhive_api::{Bytes, MemoryMode, RuntimeName, SandboxId};

use super::fault::{Fault, Plan, Step};
use super::paging::SimPaging;
use super::serve::{Server, UnitNo};
use super::{Sim, SimSnapshot, Steps, pass};
use crate::deadline::Deadline;
use crate::journal::Milestone;
use crate::runtime::{
    Checkpoint, Guest, HostLacks, Memory, Restore, RestoreError, Runtime as _, Sandbox,
    SandboxSpec, SnapshotError,
};
use crate::snapshot::{
    DraftError, MEMORY, MemoryShape, Platform, Snapshot, SnapshotDraft, VM_STATE,
};

/// Beginning of every saved state.
const STATE: &str = "state of simulated sandbox ";

/// How long a checkpoint waits for connections that are being closed.
const CLOSING: Duration = Duration::from_millis(200);

impl SimSnapshot {
    fn platform(&self) -> Platform {
        Platform {
            runtime: RuntimeName::Sim,
            version: self.version.clone(),
            cpu: "none".to_owned(),
            kernel: None,
            page_size: 4096,
        }
    }

    fn takes(&self, mode: MemoryMode) -> Duration {
        match mode {
            MemoryMode::File => self.restore_file.0,
            MemoryMode::Lazy => self.restore_lazy.0,
            MemoryMode::Record => self.restore_record.0,
            MemoryMode::Prefetch => self.restore_prefetch.0,
        }
    }
}

impl Restore for Sim {
    fn memory_modes(&self) -> &[MemoryMode] {
        &self.config.snapshot.modes
    }

    fn lacks(&self, mode: MemoryMode) -> Option<HostLacks> {
        let modes = &self.config.snapshot.modes;
        (!modes.contains(&mode)).then(|| HostLacks {
            what: format!("sim.snapshot.modes has no {mode}"),
            fix: "add it there".to_owned(),
        })
    }

    fn platform(&self, _: &Guest) -> Result<Platform, HostLacks> {
        self.check_host().map(|()| self.config.snapshot.platform())
    }

    fn restore(
        &self,
        spec: &SandboxSpec,
        from: &Snapshot,
        memory: Memory,
        deadline: Deadline,
    ) -> Result<Box<dyn Sandbox>, RestoreError> {
        let config = &self.config.snapshot;
        if let Some(lacks) = self.lacks(memory.mode) {
            return Err(RestoreError::Mode { mode: memory.mode, reason: lacks.to_string() });
        }
        let plan = self.plan(spec)?;
        let dir = self.dir(spec)?;
        let journal = &spec.journal;
        let mut steps = Steps { plan: &plan, spec, deadline };
        steps.take(Step::Spawn, plan.spawn, Milestone::Spawned)?;
        journal.reach(Milestone::Spawned, Instant::now());
        let refused = |reason: &str| {
            let program = "sim".to_owned();
            RestoreError::State { program, reason: reason.to_owned() }
        };
        let mut state = String::new();
        let file = from.file(VM_STATE).map_err(RestoreError::Snapshot)?;
        let read = file.take(1 << 10).read_to_string(&mut state);
        if read.is_err() || !state.starts_with(STATE) {
            return Err(refused("it is not a state"));
        }
        from.file(MEMORY).map_err(RestoreError::Snapshot)?;
        if plan.fault == Some(Fault::RefuseState) {
            return Err(refused("it does so as told"));
        }
        let paging = SimPaging::new(config, from, memory).map_err(RestoreError::Pager)?;
        steps.take(Step::Restore, config.takes(memory.mode), Milestone::Restored)?;
        journal.reach(Milestone::Restored, Instant::now());
        pass(config.resume.0.min(deadline.left()));
        let sandbox = self.open(spec, &plan, dir, Some(Arc::new(paging)))?;
        journal.reach(Milestone::Resumed, Instant::now());
        if plan.fault != Some(Fault::DeafRestored) {
            sandbox.server.begin(sandbox.unit, Duration::ZERO);
        }
        Ok(Box::new(sandbox))
    }
}

/// Takes snapshots of one sandbox.
#[derive(Debug)]
pub(super) struct Saver {
    config: SimSnapshot,
    plan: Plan,
    id: SandboxId,
    shape: MemoryShape,
    unit: (Arc<Server>, UnitNo),
}

impl Saver {
    pub(super) fn new(
        config: SimSnapshot,
        plan: &Plan,
        spec: &SandboxSpec,
        unit: (Arc<Server>, UnitNo),
    ) -> Self {
        let vcpus = spec.cpu_millis.div_ceil(1000).max(1);
        let shape = MemoryShape { memory: Bytes::mib(spec.memory.mib_ceil()), vcpus };
        Self { config, plan: *plan, id: spec.id.clone(), shape, unit }
    }
}

impl Checkpoint for Saver {
    fn snapshot_into(
        &mut self,
        draft: &mut SnapshotDraft,
        deadline: Deadline,
    ) -> Result<(), SnapshotError> {
        let (server, unit) = &self.unit;
        let connections = server.connections(*unit, deadline.or_after(CLOSING));
        let write = |path| move |source| DraftError::Write { path, source };
        let state = format!("{STATE}{}, {connections} connections open\n", self.id);
        let mut file = draft.file(VM_STATE)?;
        file.write_all(state.as_bytes()).map_err(write(draft.dir().join(VM_STATE)))?;
        let hangs = self.plan.fault == Some(Fault::HangAt(Step::Checkpoint));
        pass(if hangs { deadline.left() } else { self.config.checkpoint.0.min(deadline.left()) });
        match self.plan.fault {
            Some(Fault::FailAt(Step::Checkpoint)) => {
                return Err(SnapshotError::Guest("sim fails as told".to_owned()));
            }
            Some(Fault::LostAtCheckpoint) => {
                return Err(SnapshotError::Lost("sim is lost as told".to_owned()));
            }
            #[expect(clippy::panic, reason = "the fault to be injected")]
            Some(Fault::PanicAt(Step::Checkpoint)) => panic!("sim panics at checkpoint as told"),
            _ => {}
        }
        if deadline.passed() {
            let reason = "deadline passed".to_owned();
            return Err(SnapshotError::Runtime { step: "checkpoint", reason });
        }
        let mut memory = draft.file(MEMORY)?;
        let bytes = self.shape.memory.0;
        let mut page = [0; 4096];
        let mut text = &mut page[..];
        // A page has room for a sandbox's name.
        text.write_all(self.id.as_str().as_bytes()).map_err(write(draft.dir().join(MEMORY)))?;
        let written = memory.write_all(&page).and_then(|()| {
            memory.set_len(bytes.max(4096))?;
            memory.write_all_at(&page, bytes / 2 / 4096 * 4096)
        });
        written.map_err(write(draft.dir().join(MEMORY)))?;
        draft.describe(self.config.platform(), self.shape, None, 0);
        Ok(())
    }
}
