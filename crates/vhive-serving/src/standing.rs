//! How a revision does, in the words of conditions. Pure.
//!
//! # Source
//! Knative Serving, "Error conditions and reporting".

use std::sync::Arc;

use jiff::Timestamp;
use vhive_node::{RevisionStanding, StartFailure};

use crate::status::chain;
use crate::store::StoredRevision;

/// Whether a revision can serve.
#[derive(Clone, Debug)]
pub(crate) enum Readiness {
    /// It can.
    Ready,
    /// Its first instances are being started.
    Deploying,
    /// What it takes from config maps and secrets is not all there, and nothing of it runs.
    Unconfigured(Arc<str>),
    /// Its last start failed, and nothing of it runs.
    Failed(Arc<StartFailure>),
}

impl PartialEq for Readiness {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ready, Self::Ready) | (Self::Deploying, Self::Deploying) => true,
            (Self::Unconfigured(one), Self::Unconfigured(two)) => one == two,
            (Self::Failed(one), Self::Failed(two)) => Arc::ptr_eq(one, two),
            _ => false,
        }
    }
}

/// What is shown of a revision's state.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Standing {
    pub(crate) readiness: Readiness,
    /// Since when.
    pub(crate) since: Timestamp,
    /// Instances that serve.
    pub(crate) actual: u32,
    /// Instances that serve or start.
    pub(crate) desired: u32,
    /// Version of the revision as an object.
    pub(crate) version: u64,
}

impl Standing {
    /// What is shown of a revision that nothing is known of yet.
    pub(crate) fn at_first(stored: &StoredRevision, version: u64) -> Self {
        let readiness = if stored.ready { Readiness::Ready } else { Readiness::Deploying };
        Self { readiness, since: stored.created, actual: 0, desired: 0, version }
    }

    /// What is shown now; the version and, unless readiness changes, the time stay.
    pub(crate) fn next(
        &self,
        stored: &StoredRevision,
        node: &RevisionStanding,
        missing: Option<&str>,
        now: Timestamp,
    ) -> Self {
        let missing = missing.filter(|_| node.counts.ready == 0);
        let readiness = match (missing, node.failure()) {
            (Some(missing), _) => Readiness::Unconfigured(missing.into()),
            (None, Some(failure)) => Readiness::Failed(Arc::clone(failure)),
            (None, None) if stored.ready || has_begun(stored, node) => Readiness::Ready,
            (None, None) => Readiness::Deploying,
        };
        let since = if readiness == self.readiness { self.since } else { now };
        let (actual, desired) = (node.counts.ready, node.counts.ready + node.counts.starting);
        Self { readiness, since, actual, desired, version: self.version }
    }

    /// Whether it differs in more than the number of instances.
    pub(crate) fn differs_in_words(&self, other: &Self) -> bool {
        self.readiness != other.readiness || (self.actual == 0) != (other.actual == 0)
    }

    /// The word for what went wrong.
    pub(crate) const fn reason(&self) -> &'static str {
        match &self.readiness {
            Readiness::Unconfigured(_) => "CreateContainerConfigError",
            Readiness::Ready | Readiness::Deploying | Readiness::Failed(_) => "StartFailed",
        }
    }

    /// What went wrong, in one line.
    pub(crate) fn failure(&self) -> Option<String> {
        match &self.readiness {
            Readiness::Failed(failure) => Some(chain(failure.as_ref())),
            Readiness::Unconfigured(missing) => Some(missing.to_string()),
            Readiness::Ready | Readiness::Deploying => None,
        }
    }
}

/// Whether so many instances serve as shall at the beginning.
pub(crate) fn has_begun(stored: &StoredRevision, node: &RevisionStanding) -> bool {
    node.counts.ready >= stored.rules.initial.max(stored.rules.min)
}
