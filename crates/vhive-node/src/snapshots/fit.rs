//! Whether a snapshot fits this node as it is now. A start looks, and so does whoever counts on there being one: the
//! runtime or the guest's kernel may have been replaced since it was taken, and may be put back.

use vhive_api::{Bytes, Revision};
use vhive_sandbox::snapshot::{MemoryShape, Mismatch, Platform};
use vhive_sandbox::{Guest, Restore};

use super::stored::Stored;
use super::{SnapshotId, Snapshots, Unfit, owner};

/// What a snapshot is to be restored with: the runtime, and what runs in its sandboxes.
pub(crate) type On<'a> = (&'a dyn Restore, &'a Guest);

/// What that is at present. May take seconds the first time.
pub(super) fn platform((restorer, guest): On<'_>) -> Result<Platform, Unfit> {
    let platform = restorer.platform(guest).map_err(|lacks| Unfit(lacks.to_string()))?;
    guest.platform(platform).map_err(|error| Unfit(error.to_string()))
}

impl Snapshots {
    /// Whether the revision has a snapshot, of use or not.
    pub(crate) fn has(&self, revision: &Revision) -> bool {
        self.find(&SnapshotId::of(revision)).is_some()
    }

    /// Looks whether the revision's snapshot, if there is one, fits what there is now, and notes it. Where that
    /// cannot be told, what is known stays.
    pub(crate) fn look_whether_it_fits(&self, revision: &Revision, on: On<'_>) {
        let Some(stored) = self.find(&SnapshotId::of(revision)) else { return };
        match platform(on) {
            Ok(platform) => _ = self.compare(&stored, revision, &platform),
            Err(Unfit(why)) => {
                tracing::debug!(snapshot = %stored.id, why, "not known whether it fits");
            }
        }
    }

    /// As [`Snapshots::look_whether_it_fits`] for one whose revision is not known here: it may fit with any of
    /// these guests.
    pub(crate) fn look_whether_it_may_fit(
        &self,
        id: &SnapshotId,
        restorer: &dyn Restore,
        guests: &[Guest],
    ) {
        let Some(stored) = self.find(id) else { return };
        let manifest = stored.snapshot.manifest();
        let mut found = None;
        for guest in guests {
            let Ok(platform) = platform((restorer, guest)) else { return };
            match manifest.check(&manifest.owner, &platform, manifest.shape) {
                Ok(()) => return,
                Err(mismatch) => found = found.or(Some(mismatch)),
            }
        }
        if found.is_some() {
            self.note_fit(&stored, found);
        }
    }

    /// Compares with what the revision is and where it would run.
    pub(super) fn compare(
        &self,
        stored: &Stored,
        revision: &Revision,
        platform: &Platform,
    ) -> Result<(), Unfit> {
        // Guests have whole mebibytes.
        let memory = Bytes::mib(revision.memory.mib_ceil());
        let shape = MemoryShape { memory, vcpus: revision.vcpus() };
        let found = stored.snapshot.manifest().check(&owner(revision), platform, shape);
        self.note_fit(stored, found.err());
        match &stored.state().stale {
            Some(mismatch) => Err(Unfit(format!("snapshot does not fit: {mismatch}"))),
            None => Ok(()),
        }
    }

    fn note_fit(&self, stored: &Stored, found: Option<Mismatch>) {
        if stored.set_fit(found) {
            // Another may be wanted now, or none any more.
            self.wish();
        }
    }
}
