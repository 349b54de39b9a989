//! Taking a snapshot of a running microVM.
//!
//! ```text
//!   PrepareSnapshot ─► Prepared ─► vm: Paused ─► snapshot/create (into files lent to it) ─► vm: Resumed
//!                                                     ─► Resume ─► Resumed ─► copy, sparse
//! ```
//!
//! A guest without an operating system is told nothing. Firecracker writes its memory whole, zeros too, into a file that it may keep open; so what is
//! published is a copy of that.
//!
//! # Source
//! Firecracker, `docs/snapshotting/snapshot-support.md`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::api::{ApiError, CreateSnapshot, SnapshotType};
use super::sandbox::FirecrackerSandbox;
use crate::contract::{self, chain, time_to_go_on};
use crate::deadline::Deadline;
use crate::runtime::{Checkpoint, SnapshotError};
use crate::snapshot::{
    DraftError, MEMORY, MemoryShape, Platform, SnapshotDraft, VM_STATE, copy_sparse,
};

/// Under which names Firecracker writes what is to become a snapshot.
const NAMES: [(&str, &str); 2] = [(VM_STATE, "new-vmstate"), (MEMORY, "new-memory")];

/// What a booted microVM's snapshots have in common.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) platform: Platform,
    pub(super) shape: MemoryShape,
}

impl Checkpoint for FirecrackerSandbox {
    fn snapshot_into(
        &mut self,
        draft: &mut SnapshotDraft,
        deadline: Deadline,
    ) -> Result<(), SnapshotError> {
        let Some(taken) = self.taken.clone() else {
            let reason = "it is a clone".to_owned();
            return Err(SnapshotError::Runtime { step: "snapshot the microVM", reason });
        };
        let share = self.vm.share.clone();
        let _whole = share.lift();
        let guest_ns = if self.is_bare {
            // It has no clock to tell.
            0
        } else {
            contract::prepare(&self.vm.supervised, deadline)?
        };
        let raws = NAMES.map(|(_, name)| Raw(draft.dir().join(name)));
        let written = self.write(&raws, deadline);
        let resumed = self.go_on(deadline);
        // A sandbox that stands still is the worse news.
        resumed?;
        written?;
        for ((name, _), raw) in NAMES.iter().zip(&raws) {
            let to = draft.file(name)?;
            let path = draft.dir().join(name);
            let wanted = (*name == MEMORY).then_some(taken.shape.memory.0);
            let copied = copy(&raw.0, &to, wanted, deadline);
            copied.map_err(|source| DraftError::Write { path, source })?;
        }
        let network = Some(self.network.guest().clone());
        draft.describe(taken.platform, taken.shape, network, guest_ns);
        Ok(())
    }
}

impl FirecrackerSandbox {
    /// Stops the guest and has Firecracker write both files.
    fn write(&mut self, raws: &[Raw; 2], deadline: Deadline) -> Result<(), SnapshotError> {
        let refused =
            |step| move |error: ApiError| SnapshotError::Runtime { step, reason: chain(&error) };
        self.vm.api.pause(deadline).map_err(refused("pause the guest"))?;
        let mut loans = Vec::new();
        for ((_, name), Raw(path)) in NAMES.iter().zip(raws) {
            let lent = File::create_new(path)
                .and_then(|_| self.vm.jail.lend_out(self.pids[0], name, path));
            let failed = |source| DraftError::Write { path: path.clone(), source };
            loans.push(lent.map_err(failed)?);
        }
        let [(_, state), (_, memory)] = NAMES;
        let create = CreateSnapshot {
            snapshot_type: SnapshotType::Full,
            snapshot_path: self.vm.jail.inside(state),
            mem_file_path: self.vm.jail.inside(memory),
        };
        let created = self.vm.api.create_snapshot(&create, deadline);
        created.map_err(refused("save the guest"))
    }

    /// Lets the guest run again, with the right time.
    fn go_on(&mut self, deadline: Deadline) -> Result<(), SnapshotError> {
        let deadline = time_to_go_on(deadline);
        let resumed = self.vm.api.resume(deadline);
        resumed.map_err(|error| SnapshotError::Lost(chain(&error)))?;
        if self.is_bare {
            return Ok(());
        }
        contract::go_on(&self.vm.supervised, &self.id, deadline)
    }
}

/// A file that Firecracker has written. Dropping it removes it.
struct Raw(PathBuf);

impl Drop for Raw {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "copied file not removed");
            }
            _ => {}
        }
    }
}

/// Copies what is not zero, if there are as many bytes as wanted.
fn copy(from: &Path, to: &File, wanted: Option<u64>, deadline: Deadline) -> io::Result<()> {
    let from = File::open(from)?;
    let length = from.metadata()?.len();
    if wanted.is_some_and(|wanted| wanted != length) {
        let what = format!("Firecracker has written {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    copy_sparse(&from, to, deadline)?;
    // Another user has to read it.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    to.set_permissions(mode)
}
