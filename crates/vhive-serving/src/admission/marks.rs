//! Labels and annotations of Knative's beside those that scale: what they mean where they stand, and
//! which are refused because they would mean something elsewhere, or in a cluster.
//!
//! # Source
//! Knative Serving, `pkg/apis/serving/register.go`, `metadata_validation.go` and
//! `pkg/apis/config/features.go`; Knative Networking, `pkg/apis/networking/register.go`.

use std::time::Duration;

use serde_json::Value;

use super::PREFIX;
use super::annotations::{KNATIVE, span};
use super::cursor::Cursor;
use crate::config::HOUR;
use crate::kind::Kind;

/// The label of a service or route that says whom its host is for.
pub(crate) const VISIBILITY: &str = "networking.knative.dev/visibility";

/// Its only value.
pub(crate) const CLUSTER_LOCAL: &str = "cluster-local";

const SERVING: &str = "serving.knative.dev/";
const NETWORKING: &str = "networking.knative.dev/";
const FEATURES: &str = "features.knative.dev/";
const SIDECAR: &str = "queue.sidecar.serving.knative.dev/";

/// Where what concerns revisions stands.
const TEMPLATE: &str = "spec.template.metadata.annotations";

/// What a template's marks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TemplateMarks {
    /// How long a start may take.
    pub(super) start_deadline: Option<Duration>,
}

/// Checks the marks of a service, configuration or route itself.
pub(super) fn of_owner(root: &Cursor<'_>, kind: Kind) {
    let Some(metadata) = root.get("metadata") else { return };
    for (name, entry) in entries(&metadata, "labels") {
        match (name, kind) {
            (VISIBILITY, Kind::Configuration) => {
                entry.unsupported("a configuration has no host; label its Route");
            }
            (VISIBILITY, _) if entry.value() != CLUSTER_LOCAL => {
                entry.invalid(format!("must be `{CLUSTER_LOCAL}`"));
            }
            _ => {}
        }
    }
    for (name, entry) in entries(&metadata, "annotations") {
        if of_a_cluster(name, &entry) {
            continue;
        }
        let own = name.strip_prefix(SERVING);
        if name.starts_with(KNATIVE) {
            entry
                .invalid(format!("autoscaling annotations must be put under {TEMPLATE:?} to work"));
        } else if name.starts_with(PREFIX) || matches!(own, Some("progress-deadline" | "no-gc")) {
            entry.invalid(format!("must be put under {TEMPLATE:?} to work"));
        } else if let Some("rollout-duration" | "rolloutDuration") = own
            && !matches!(entry.value().as_str(), None | Some("0" | "0s"))
        {
            entry.unsupported("not supported: traffic moves in one step");
        }
    }
}

/// Checks the marks of a template.
pub(super) fn of_template(metadata: &Cursor<'_>) -> TemplateMarks {
    for (name, entry) in entries(metadata, "labels") {
        if name == VISIBILITY {
            entry.invalid("must be put under \"metadata.labels\" to work");
        }
    }
    let mut marks = TemplateMarks::default();
    for (name, entry) in entries(metadata, "annotations") {
        if of_a_cluster(name, &entry) {
            continue;
        }
        let Some(text) = entry.value().as_str() else { continue };
        match name.strip_prefix(SERVING) {
            Some("progress-deadline") => {
                let found = span(&entry, text, Duration::from_secs(1), HOUR);
                marks.start_deadline = found.map(|span| span.0);
            }
            Some("no-gc") if !matches!(text, "true" | "false") => {
                entry.invalid("must be `true` or `false`, in quotes");
            }
            Some("rollout-duration" | "rolloutDuration") => {
                entry.invalid("must be put under \"metadata.annotations\" to work");
            }
            _ => {}
        }
    }
    marks
}

/// Whether the template of a revision keeps it, however long nothing reaches it.
pub(crate) fn is_kept(template: &Value) -> bool {
    let annotations = template.pointer("/metadata/annotations");
    annotations.is_some_and(|all| all[format!("{SERVING}no-gc")] == "true")
}

/// Refuses what concerns a part that there is only in a cluster.
fn of_a_cluster(name: &str, entry: &Cursor<'_>) -> bool {
    let why = if name.starts_with(SIDECAR) {
        "there is no queue proxy beside a function"
    } else if name.starts_with(FEATURES) {
        "there are no features to be switched"
    } else if name.starts_with(NETWORKING) {
        "the node's gateway is the only ingress"
    } else {
        return false;
    };
    entry.unsupported(format!("not supported: {why}"));
    true
}

fn entries<'a>(metadata: &Cursor<'a>, field: &str) -> Vec<(&'a str, Cursor<'a>)> {
    metadata.get(field).map(|map| map.entries()).unwrap_or_default()
}
