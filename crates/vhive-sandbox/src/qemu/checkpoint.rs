//! Taking a snapshot of a running microVM.
//!
//! ```text
//!   PrepareSnapshot ─► Prepared ─► stop ─► migrate (devices, 60 KB) ─► copy memory ─► cont ─► Resume
//! ```
//!
//! Guest memory is a file that the host shares with QEMU, so QEMU saves devices only
//! (`x-ignore-shared`) and the memory is copied from the file while the guest stands still.
//!
//! # Source
//! QEMU, `docs/devel/migration.rst`, `qapi/migration.json` (`migrate`, `x-ignore-shared`).

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};

use serde_json::{Value, json};

use super::qmp::{Qmp, QmpError};
use super::sandbox::QemuSandbox;
use crate::cgroup::MachineShare;
use crate::contract::{self, time_to_go_on};
use crate::deadline::Deadline;
use crate::runtime::{Checkpoint, SnapshotError};
use crate::snapshot::{
    DraftError, MEMORY, MemoryShape, Platform, SnapshotDraft, VM_STATE, copy_sparse,
};

/// Name under which QEMU is given the file for its state.
const STATE: &str = "vhive-state";

/// What a booted microVM's snapshots have in common.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) platform: Platform,
    pub(super) shape: MemoryShape,
}

impl Checkpoint for QemuSandbox {
    fn snapshot_into(
        &mut self,
        draft: &mut SnapshotDraft,
        deadline: Deadline,
    ) -> Result<(), SnapshotError> {
        let Some(taken) = self.taken.clone() else {
            let reason = "it is a clone, whose memory is not shared".to_owned();
            return Err(SnapshotError::Runtime { step: "snapshot the microVM", reason });
        };
        let share = self.vm.share.clone();
        let _whole = share.as_ref().map(MachineShare::lift);
        let guest_ns = self.prepare(deadline)?;
        let written = self.write(draft, deadline);
        let resumed = self.go_on(deadline);
        // A sandbox that stands still is the worse news.
        resumed?;
        written?;
        let network = Some(self.network.guest().clone());
        draft.describe(taken.platform, taken.shape, network, guest_ns);
        Ok(())
    }
}

impl QemuSandbox {
    /// Has the guest get ready, and says its time. A bare guest does neither.
    fn prepare(&self, deadline: Deadline) -> Result<u64, SnapshotError> {
        if self.is_bare {
            return Ok(0);
        }
        contract::prepare(&self.vm.supervised, deadline)
    }

    /// Stops the guest and writes both files.
    fn write(
        &mut self,
        draft: &mut SnapshotDraft,
        deadline: Deadline,
    ) -> Result<(), SnapshotError> {
        let (state, memory) = (draft.file(VM_STATE)?, draft.file(MEMORY)?);
        let qmp = &mut self.vm.qmp;
        let refused = |step| {
            move |error: QmpError| SnapshotError::Runtime { step, reason: super::chain(&error) }
        };
        qmp.execute("stop", None, deadline).map_err(refused("stop the guest"))?;
        save(qmp, state.as_fd(), deadline).map_err(refused("save the devices"))?;
        let Some(guest) = &self.vm.memory else {
            let reason = "its memory is not shared".to_owned();
            return Err(SnapshotError::Runtime { step: "copy guest memory", reason });
        };
        let guest = guest.try_clone().map(File::from);
        let copied = guest.and_then(|guest| copy_sparse(&guest, &memory, deadline));
        let path = draft.dir().join(MEMORY);
        copied.map_err(|source| DraftError::Write { path, source })?;
        Ok(())
    }

    /// Lets the guest run again, with the right time.
    fn go_on(&mut self, deadline: Deadline) -> Result<(), SnapshotError> {
        let deadline = time_to_go_on(deadline);
        let cont = self.vm.qmp.execute("cont", None, deadline);
        cont.map_err(|error| SnapshotError::Lost(super::chain(&error)))?;
        if self.is_bare {
            return Ok(());
        }
        contract::go_on(&self.vm.supervised, &self.id, deadline)
    }
}

/// What saving and loading have in common: memory is not in the stream, and the end is told.
pub(super) fn set_capabilities(qmp: &mut Qmp, deadline: Deadline) -> Result<(), QmpError> {
    let on = |name: &str| json!({ "capability": name, "state": true });
    let capabilities = json!({ "capabilities": [on("events"), on("x-ignore-shared")] });
    qmp.execute("migrate-set-capabilities", Some(capabilities), deadline).map(drop)
}

/// Waits until saving or loading has ended.
pub(super) fn wait_migration(qmp: &mut Qmp, deadline: Deadline) -> Result<(), QmpError> {
    let over = |data: &Value| data["status"] == "completed" || data["status"] == "failed";
    let data = qmp.wait_event("MIGRATION", over, deadline)?;
    if data["status"] == "completed" {
        return Ok(());
    }
    let state = qmp.execute("query-migrate", None, deadline)?;
    let reason = state["error-desc"].as_str().unwrap_or("no reason given").to_owned();
    Err(QmpError::Refused { command: "migrate".to_owned(), reason })
}

fn save(qmp: &mut Qmp, state: BorrowedFd<'_>, deadline: Deadline) -> Result<(), QmpError> {
    set_capabilities(qmp, deadline)?;
    qmp.give_fd(STATE, state, deadline)?;
    qmp.execute("migrate", Some(json!({ "uri": format!("fd:{STATE}") })), deadline)?;
    wait_migration(qmp, deadline)
}
