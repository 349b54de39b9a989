//! What a store tells of its snapshots.

use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vhive_api::{Bytes, Digest, RevisionKey, RuntimeName};

use super::evict::Sweep;
use super::stored::{Stored, Verdict};
use super::{SnapshotId, Snapshots};

/// One snapshot, for people and programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each holds or not, whatever the others do")]
pub struct SnapshotInfo {
    /// Digest of its owner: the namespace and the revision's digest.
    pub digest: Digest,
    /// The runtime that it belongs to.
    pub runtime: RuntimeName,
    /// The revision's name when it was taken.
    pub revision: RevisionKey,
    /// Manifest of its image.
    pub image: Digest,
    /// When it was taken, UTC.
    pub taken: String,
    /// When it was last used or extended.
    pub used: Timestamp,
    /// The guest's memory.
    pub memory: Bytes,
    /// Lengths of its files together, holes included; without working sets.
    pub apparent: Bytes,
    /// What it takes up on the disk, with working sets.
    pub allocated: Bytes,
    /// Numbers of its working sets.
    pub working_sets: Vec<u32>,
    /// Living instances that came from it.
    pub clones: u32,
    /// Whether somebody needs its files at present.
    pub held: bool,
    /// Whether its content has been compared with its digests since the node began.
    pub verified: bool,
    /// Whether its revision is no more.
    #[serde(default)]
    pub orphan: bool,
    /// Whether it may outlive its revision, or be there before it: it was taken in, or left by a deletion.
    #[serde(default)]
    pub kept: bool,
    /// Why it is of no use here any more.
    pub stale: Option<StaleField>,
    /// The last start by prefetching missed so much that the next one records again.
    pub missed: bool,
    /// Runtime version that it was taken on.
    pub version: String,
    /// Where it is.
    pub path: std::path::PathBuf,
}

/// The field in which a snapshot and this node disagree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaleField {
    /// Which, e.g. `platform.version`.
    pub field: String,
    /// What the snapshot has.
    pub has: String,
    /// What this node has.
    pub wanted: String,
}

impl SnapshotInfo {
    fn of(stored: &Stored, orphan: bool) -> Self {
        let manifest = stored.snapshot.manifest();
        let state = stored.state();
        Self {
            digest: stored.id.digest,
            runtime: stored.id.runtime,
            revision: manifest.owner.revision.clone(),
            image: manifest.owner.image,
            taken: manifest.at.clone(),
            used: state.used,
            memory: manifest.shape.memory,
            apparent: Bytes(manifest.files.values().map(|file| file.bytes).sum()),
            allocated: Bytes(state.bytes),
            working_sets: state.working_sets.iter().copied().collect(),
            clones: state.clones,
            held: state.is_held(),
            orphan,
            kept: state.kept,
            verified: state.verdict == Verdict::Sound,
            stale: state.stale.as_ref().map(|mismatch| StaleField {
                field: mismatch.field.to_owned(),
                has: mismatch.has.clone(),
                wanted: mismatch.wanted.clone(),
            }),
            missed: state.missed,
            version: manifest.platform.version.clone(),
            path: stored.snapshot.dir().to_owned(),
        }
    }

    /// What names it.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        SnapshotId { digest: self.digest, runtime: self.runtime }
    }
}

/// What a collection removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Snapshots removed.
    pub removed: u32,
    /// What they took up on the disk.
    pub freed: Bytes,
    /// What is left takes up so much.
    pub left: Bytes,
}

impl Snapshots {
    /// Every snapshot, by digest.
    #[must_use]
    pub fn list(&self) -> Vec<SnapshotInfo> {
        let all: Vec<_> = self.state().entries.values().cloned().collect();
        all.iter().map(|stored| self.info(stored)).collect()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: &SnapshotId) -> Option<SnapshotInfo> {
        self.find(id).map(|stored| self.info(&stored))
    }

    pub(super) fn info(&self, stored: &Stored) -> SnapshotInfo {
        SnapshotInfo::of(stored, self.is_orphan(stored))
    }

    /// Removes one; false if there is none. Instances that came from it go on; if somebody is just
    /// being made from it, its files go when that is done.
    ///
    /// # Errors
    /// When its files cannot be removed; it is out of the list all the same.
    pub fn remove(&self, id: &SnapshotId) -> io::Result<bool> {
        let Some(stored) = self.state().entries.remove(id) else { return Ok(false) };
        tracing::info!(snapshot = %id, "snapshot removed");
        let gone = self.doom(&stored).map(|()| true);
        self.wish();
        gone
    }

    /// Removes stale snapshots but for those that are marked as kept, those of revisions that are no more, and then those used least recently until
    /// the rest fits the configured size.
    pub fn collect(&self) -> Collected {
        let orphans = self.take_orphans();
        let (removed, freed) = orphans.figures();
        self.discard_all(orphans);
        let mut collected = self.sweep(Sweep::Stale);
        collected.removed += removed;
        collected.freed.0 += freed;
        collected
    }

    pub(super) fn sweep(&self, sweep: Sweep) -> Collected {
        let mut state = self.state();
        let all: Vec<_> = state.entries.values().cloned().collect();
        let seen = all.iter().map(|stored| super::evict::Candidate::of(stored)).collect();
        let victims = super::evict::victims(seen, self.0.max_bytes, sweep);
        let gone: Vec<_> = victims.iter().filter_map(|id| state.entries.remove(id)).collect();
        drop(state);
        let mut collected = Collected::default();
        for stored in &gone {
            tracing::info!(snapshot = %stored.id, "snapshot collected");
            collected.removed += 1;
            collected.freed.0 += stored.state().bytes;
            self.discard(stored);
        }
        collected.left = Bytes(self.figures().bytes);
        collected
    }

    /// For metrics.
    pub(crate) fn figures(&self) -> Figures {
        let state = self.state();
        let bytes = state.entries.values().map(|stored| stored.state().bytes).sum();
        let count = u32::try_from(state.entries.len()).unwrap_or(u32::MAX);
        Figures { count, bytes, retired: state.retired }
    }
}

/// How many there are, and how large.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) count: u32,
    pub(crate) bytes: u64,
    /// Taken out because they were at fault.
    pub(crate) retired: u64,
}
