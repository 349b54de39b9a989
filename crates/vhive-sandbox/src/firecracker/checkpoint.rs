//! Taking a snapshot of a running microVM.
//!
//! ```text
//!   vm: Paused ─► snapshot/create (into files lent to it) ─► vm: Resumed ─► copy, sparse
//! ```
//!
//! Firecracker writes its memory whole, zeros too, into a file that it may keep open; so what is
//! published is a copy of that.
//!
//! # Source
//! Firecracker, `docs/snapshotting/snapshot-support.md`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::api::{ApiError, CreateSnapshot, SnapshotType};
use super::sandbox::FirecrackerSandbox;
use crate::contract::chain;
use crate::deadline::Deadline;
use crate::runtime::{Checkpoint, SnapshotError};
use crate::snapshot::{
    DraftError, MEMORY, MemoryShape, Platform, SnapshotDraft, VM_STATE, copy_sparse,
};

/// Under which names Firecracker writes what is to become a snapshot.
const NAMES: [(&str, &str); 2] = [(VM_STATE, "new-vmstate"), (MEMORY, "new-memory")];

/// How long a paused guest may take to go on.
const RESUME: Duration = Duration::from_secs(10);

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
            let copied = copy(&raw.0, &to, wanted);
            copied.map_err(|source| DraftError::Write { path, source })?;
        }
        let network = Some(self.network.guest().clone());
        // A guest without an operating system has no clock to tell.
        draft.describe(taken.platform, taken.shape, network, 0);
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

    /// Lets the guest run again.
    fn go_on(&mut self, deadline: Deadline) -> Result<(), SnapshotError> {
        // The deadline may be what went wrong; a guest that cannot be resumed at once never will.
        let deadline = Deadline::at(deadline.instant().max(Instant::now() + RESUME));
        let resumed = self.vm.api.resume(deadline);
        resumed.map_err(|error| SnapshotError::Lost(chain(&error)))
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
fn copy(from: &Path, to: &File, wanted: Option<u64>) -> io::Result<()> {
    let from = File::open(from)?;
    let length = from.metadata()?.len();
    if wanted.is_some_and(|wanted| wanted != length) {
        let what = format!("Firecracker has written {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    copy_sparse(&from, to)?;
    // Another user has to read it.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    to.set_permissions(mode)
}
