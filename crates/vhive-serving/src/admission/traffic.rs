//! `spec.traffic`, of services and of routes.
//!
//! # Source
//! Knative Serving, `pkg/apis/serving/v1/route_validation.go`.

use super::cursor::{Cursor, Fields};
use super::metadata::label;
use crate::traffic::Target;

/// The fields of a service's target.
pub(super) const IN_SERVICE: Fields = Fields {
    known: &["latestRevision", "percent", "revisionName", "tag"],
    refused: &[
        ("configurationName", "a service has one configuration"),
        ("url", "set by the server"),
    ],
};

/// The fields of a route's.
pub(super) const IN_ROUTE: Fields = Fields {
    known: &["configurationName", "latestRevision", "percent", "revisionName", "tag"],
    refused: &[("url", "set by the server")],
};

/// Longest tag, so that `<tag>-<name>` may still be a label.
const MAX_TAG: usize = 32;

/// Targets of one object: more than any share or tag needs, and few enough to be compared with each
/// other.
const MOST_TARGETS: usize = 1000;

/// Reads `spec.traffic`, whose targets have such fields. Whether what they name exists is seen by who
/// knows it.
pub(super) fn read_traffic(traffic: &Cursor<'_>, fields: &Fields) -> Vec<Target> {
    let items = traffic.items();
    if items.len() > MOST_TARGETS {
        traffic.invalid(format!("must have at most {MOST_TARGETS} targets, not {}", items.len()));
        return Vec::new();
    }
    let targets: Vec<Target> = items.iter().map(|target| read_target(target, fields)).collect();
    let sum: u32 = targets.iter().map(|target| target.percent).sum();
    if !targets.is_empty() && sum != 100 {
        traffic.invalid(format!("percent of all targets together must be 100, not {sum}"));
    }
    let tags: Vec<&String> = targets.iter().filter_map(|target| target.tag.as_ref()).collect();
    for (at, tag) in tags.iter().enumerate() {
        if tags[..at].contains(tag) {
            traffic.invalid(format!("tag {tag:?} is given to more than one target"));
        }
    }
    targets
}

fn read_target(target: &Cursor<'_>, fields: &Fields) -> Target {
    target.expect_fields(fields);
    let percent = target.get("percent").and_then(|percent| percent.whole(0..=100)).unwrap_or(0);
    let named = |field: &str, longest: usize| {
        let given = target.get(field).filter(|given| given.value() != "");
        given.and_then(|_| label(target, field, longest))
    };
    let tag = named("tag", MAX_TAG);
    let (revision, configuration) = (named("revisionName", 63), named("configurationName", 63));
    let latest = target.get("latestRevision").map(|latest| (latest.boolean(), latest));
    match (&revision, latest) {
        (Some(_), Some((Some(true), latest))) => {
            latest.invalid("must not be true for a target with revisionName");
        }
        (None, Some((Some(false), _))) => target.missing("revisionName"),
        _ => {}
    }
    if fields.known.contains(&"configurationName") {
        match (&revision, &configuration) {
            (Some(_), Some(_)) => {
                target.invalid("must have one of revisionName and configurationName, not both");
            }
            (None, None) => target.invalid("must have revisionName or configurationName"),
            _ => {}
        }
    }
    Target { revision, configuration, percent, tag }
}
