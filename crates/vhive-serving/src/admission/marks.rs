//! Labels and annotations of Knative's beside those that scale: what they mean where they stand, and
//! which are refused because they would mean something elsewhere, or in a cluster.
//!
//! # Source
//! Knative Serving, `pkg/apis/serving/register.go`, `metadata_validation.go` and
//! `pkg/apis/config/features.go`; Knative Networking, `pkg/apis/networking/register.go`.

use std::time::Duration;

use serde_json::{Value, json};

use super::PREFIX;
use super::annotations::{KNATIVE, span};
use super::cursor::{Cursor, Passed};
use crate::config::HOUR;
use crate::kind::Kind;
use crate::store::StoredObject;

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

/// Where an object's own marks stand, and those of its template.
const PLACES: [&str; 2] = ["metadata", "spec.template.metadata"];

/// The paths of the marks of a document that stood there before with the same values: whatever is
/// said of them now, an object that has been accepted can be changed otherwise.
pub(crate) fn unchanged(document: &Value, before: &StoredObject) -> Passed {
    let own = json!({ "labels": before.labels, "annotations": before.annotations });
    let template = before.spec.value().pointer("/template/metadata").cloned().unwrap_or_default();
    let mut same = Passed::new();
    for (place, before) in PLACES.into_iter().zip([own, template]) {
        for field in ["labels", "annotations"] {
            let now = document.pointer(&format!("/{}/{field}", place.replace('.', "/")));
            for (name, value) in now.and_then(Value::as_object).into_iter().flatten() {
                if is_ours(place, name) && before[field].get(name) == Some(value) {
                    same.insert(format!("{place}.{field}[{name}]"));
                }
            }
        }
    }
    same
}

/// Whether a mark is looked at here, and nowhere else.
fn is_ours(place: &str, name: &str) -> bool {
    let of_scaling = name.starts_with(KNATIVE) || name.starts_with(PREFIX);
    let beside = [SERVING, NETWORKING, FEATURES, SIDECAR];
    beside.iter().any(|prefix| name.starts_with(prefix)) || (of_scaling && place == PLACES[0])
}

/// Whether the same stands where it has effect: `kn` gives the service and its template alike
/// whatever it is told to give.
fn is_also<'a>(root: &Cursor<'a>, path: &[&str], value: &'a Value) -> bool {
    let found = path.iter().try_fold(root.clone(), |at, step| at.get(step));
    found.is_some_and(|found| found.value() == value)
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
        let in_template = ["spec", "template", "metadata", "annotations", name];
        let of_scaling = name.starts_with(KNATIVE);
        if of_scaling
            || name.starts_with(PREFIX)
            || matches!(own, Some("progress-deadline" | "no-gc"))
        {
            if !is_also(root, &in_template, entry.value()) {
                let which = if of_scaling { "autoscaling annotations " } else { "" };
                entry.invalid(format!("{which}must be put under {TEMPLATE:?} to work"));
            }
        } else if let Some("rollout-duration" | "rolloutDuration") = own
            && !matches!(entry.value().as_str(), None | Some("0" | "0s"))
        {
            entry.unsupported("not supported: traffic moves in one step");
        }
    }
}

/// Checks the marks of a document's template.
pub(super) fn of_template(root: &Cursor<'_>) -> TemplateMarks {
    let mut marks = TemplateMarks::default();
    let template = root.get("spec").and_then(|spec| spec.get("template"));
    let Some(metadata) = template.and_then(|template| template.get("metadata")) else {
        return marks;
    };
    let metadata = &metadata;
    for (name, entry) in entries(metadata, "labels") {
        if name == VISIBILITY && !is_also(root, &["metadata", "labels", name], entry.value()) {
            entry.invalid("must be put under \"metadata.labels\" to work");
        }
    }
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
            Some("rollout-duration" | "rolloutDuration")
                if !is_also(root, &["metadata", "annotations", name], entry.value()) =>
            {
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
