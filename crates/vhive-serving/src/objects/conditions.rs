//! Conditions: what holds of an object, why, and since when.
//!
//! # Source
//! Knative Serving, "Error conditions and reporting".

use jiff::Timestamp;
use serde_json::{Value, json};

use super::seconds;
use crate::catalog::Entry;
use crate::standing::{Readiness, Standing};
use crate::traffic::Held;

/// One condition, without its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    status: &'static str,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Condition {
    pub(super) fn holds() -> Self {
        Self { status: "True", reason: None, message: None }
    }

    pub(super) fn unknown(reason: &'static str, message: String) -> Self {
        Self { status: "Unknown", reason: Some(reason), message: Some(message) }
    }

    pub(super) fn fails(reason: &'static str, message: String) -> Self {
        Self { status: "False", reason: Some(reason), message: Some(message) }
    }

    /// As it stands in `status.conditions`.
    pub(super) fn show(&self, kind: &str, since: Timestamp) -> Value {
        let mut shown = json!({
            "type": kind,
            "status": self.status,
            "lastTransitionTime": seconds(since),
        });
        if let Some(reason) = self.reason {
            shown["reason"] = Value::from(reason);
        }
        if let Some(message) = &self.message {
            shown["message"] = Value::from(message.as_str());
        }
        shown
    }
}

/// Whether a revision can serve.
pub(super) fn of_revision(standing: &Standing) -> Condition {
    match (&standing.readiness, standing.failure()) {
        (Readiness::Ready, _) => Condition::holds(),
        (Readiness::Failed(_) | Readiness::Unconfigured(_), Some(why)) => {
            Condition::fails(standing.reason(), why)
        }
        (Readiness::Deploying | Readiness::Failed(_) | Readiness::Unconfigured(_), _) => {
            Condition::unknown("Deploying", "its first instances are being started".to_owned())
        }
    }
}

/// Whether instances of a revision run.
pub(super) fn of_instances(standing: &Standing) -> Condition {
    if standing.actual > 0 {
        return Condition::holds();
    }
    Condition::fails("NoTraffic", "The target is not receiving traffic.".to_owned())
}

/// Whether the latest revision can serve.
pub(super) fn of_configuration(entry: &Entry) -> Condition {
    let Some(standing) = entry.standings.last() else { return Condition::holds() };
    let name = entry.stored.latest().name();
    match (&standing.readiness, standing.failure()) {
        (Readiness::Ready, _) => Condition::holds(),
        (Readiness::Failed(_) | Readiness::Unconfigured(_), Some(why)) => {
            let message = format!("Revision {name:?} failed with message: {why}.");
            Condition::fails("RevisionFailed", message)
        }
        (Readiness::Deploying | Readiness::Failed(_) | Readiness::Unconfigured(_), _) => {
            Condition::unknown("Deploying", format!("Revision {name:?} is not yet ready."))
        }
    }
}

/// Whether requests go where the service wants them.
pub(super) fn of_route(entry: &Entry) -> Condition {
    match entry.stored.assign() {
        Ok(_) => Condition::holds(),
        Err(held @ Held::Missing(_)) => Condition::fails("RevisionMissing", held.to_string()),
        Err(held) => Condition::unknown("RevisionMissing", held.to_string()),
    }
}

/// Whether both hold; what does not hold counts more than what is not known.
pub(super) fn both(one: &Condition, two: &Condition) -> Condition {
    let worst = [one, two].into_iter().min_by_key(|condition| match condition.status {
        "False" => 0,
        "Unknown" => 1,
        _ => 2,
    });
    worst.cloned().unwrap_or_else(Condition::holds)
}
