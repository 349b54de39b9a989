//! Taking a snapshot of a running microVM.
//!
//! ```text
//!   PrepareSnapshot ─► Prepared ─► vm: Paused ─► snapshot/create (into files lent to it) ─► vm: Resumed
//!                                                     ─► Resume ─► Resumed ─► copy, sparse
//! ```
//!
//! A guest without an operating system is told nothing. Firecracker writes its memory whole, zeros
//! too, into a file that it may keep open; so what is published is a copy of that. Where snapshots
//! are incremental, it writes what has changed into a copy of the rest: see [`super::diff`].
//!
//! # Source
//! Firecracker, `docs/snapshotting/snapshot-support.md`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::api::{ApiError, CreateSnapshot, SnapshotType};
use super::diff::Base;
use super::sandbox::FirecrackerSandbox;
use crate::contract::{self, chain, time_to_go_on};
use crate::deadline::Deadline;
use crate::runtime::{Checkpoint, SnapshotError};
use crate::snapshot::{
    DraftError, MEMORY, MemoryShape, Platform, SnapshotDraft, VM_STATE, copy_sparse,
};

/// Under which names Firecracker writes what is to become a snapshot.
const NAMES: [(&str, &str); 2] = [(VM_STATE, "new-vmstate"), (MEMORY, "new-memory")];

/// How long a guest is asked for its free memory before a snapshot.
const MOST_GIVING: Duration = Duration::from_secs(2);

/// What a microVM's snapshots have in common.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) platform: Platform,
    pub(super) shape: MemoryShape,
    /// What the next one's pages are written over; none if it is written whole.
    pub(super) base: Option<Base>,
}

impl Taken {
    fn kind(&self) -> SnapshotType {
        self.base.as_ref().map_or(SnapshotType::Full, Base::kind)
    }
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
        let raws = NAMES.map(|(_, name)| Raw(draft.dir().join(name)));
        make(&raws, &taken, deadline)?;
        self.free_before_snapshot(deadline);
        let guest_ns = if self.is_bare {
            // It has no clock to tell.
            0
        } else {
            contract::prepare(&self.vm.supervised, deadline)?
        };
        // Whatever comes of it, Firecracker may have begun to count anew.
        self.set_base(Base::Unknown);
        let written = self.write(&raws, taken.kind(), deadline);
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
        if taken.base.is_some() {
            let path = draft.dir().join(MEMORY);
            let file = File::open(&path).map_err(|source| DraftError::Write { path, source })?;
            self.set_base(Base::File(Arc::new(file)));
        }
        let network = Some(self.network.guest().clone());
        draft.describe(taken.platform, taken.shape, network, guest_ns);
        Ok(())
    }
}

impl FirecrackerSandbox {
    /// What is free takes no room in the snapshot. One that is larger is better than none.
    fn free_before_snapshot(&mut self, deadline: Deadline) {
        if !self.has_balloon {
            return;
        }
        match self.give_back(deadline.or_after(MOST_GIVING)) {
            Ok(it) => tracing::debug!(sandbox = %self.id, ?it, "memory given back"),
            Err(error) => tracing::warn!(sandbox = %self.id, %error, "no memory given back"),
        }
    }

    fn set_base(&mut self, base: Base) {
        if let Some(Taken { base: Some(known), .. }) = &mut self.taken {
            *known = base;
        }
    }

    /// Stops the guest and has Firecracker write both files.
    fn write(
        &mut self,
        raws: &[Raw; 2],
        snapshot_type: SnapshotType,
        deadline: Deadline,
    ) -> Result<(), SnapshotError> {
        let refused =
            |step| move |error: ApiError| SnapshotError::Runtime { step, reason: chain(&error) };
        self.vm.api.pause(deadline).map_err(refused("pause the guest"))?;
        let mut loans = Vec::new();
        for ((_, name), Raw(path)) in NAMES.iter().zip(raws) {
            let lent = self.vm.jail.lend_out(self.pids[0], name, path);
            let failed = |source| DraftError::Write { path: path.clone(), source };
            loans.push(lent.map_err(failed)?);
        }
        let [(_, state), (_, memory)] = NAMES;
        let create = CreateSnapshot {
            snapshot_type,
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

/// Makes the files that Firecracker is to write, with what is in them already.
fn make(raws: &[Raw; 2], taken: &Taken, deadline: Deadline) -> Result<(), DraftError> {
    for ((name, _), Raw(path)) in NAMES.iter().zip(raws) {
        let base = taken.base.as_ref().filter(|_| *name == MEMORY);
        let lay =
            |file| base.map_or(Ok(()), |base| base.lay_into(&file, taken.shape.memory, deadline));
        let made = File::create_new(path).and_then(lay);
        made.map_err(|source| DraftError::Write { path: path.clone(), source })?;
    }
    Ok(())
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
