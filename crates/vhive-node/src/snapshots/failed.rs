//! Why there is no snapshot: what came of the last try, for who asks.

use std::time::{Duration, Instant};

use vhive_api::{Revision, RevisionKey};

use super::{SnapshotId, Snapshots};
use crate::pool::BackOff;

/// That the last try to take a snapshot came to nothing.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    /// Whose it would have been.
    pub(super) revision: RevisionKey,
    pub(super) gate: BackOff,
    pub(super) why: String,
}

/// Why a revision has no snapshot, though it wants one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotTaken {
    /// Why the last try came to nothing.
    pub why: String,
    /// Until when no other is made; none if the next occasion will do.
    pub again_in: Option<Duration>,
}

impl Snapshots {
    /// Why the revision has no snapshot, if one has been tried to take and none fits.
    pub(crate) fn not_taken(&self, revision: &Revision) -> Option<NotTaken> {
        let (state, id) = (self.state(), SnapshotId::of(revision));
        if state.has_fitting(&id) {
            return None;
        }
        let failed = state.failed.get(&id)?;
        let now = Instant::now();
        let until = failed.gate.closed_until(now);
        let again_in = until.map(|until| until.saturating_duration_since(now));
        Some(NotTaken { why: failed.why.clone(), again_in })
    }

    /// Keeps why the last try to take a snapshot of the revision came to nothing.
    pub(crate) fn explain(&self, revision: &Revision, why: &str) {
        if let Some(failed) = self.state().failed.get_mut(&SnapshotId::of(revision)) {
            why.clone_into(&mut failed.why);
        }
    }
}
