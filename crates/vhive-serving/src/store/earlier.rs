//! What earlier versions of the store hold.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use vhive_api::Revision;

use super::StoredObject;
use super::stored::{StoredRevision, StoredService, uid_of};
use crate::autoscale::Rules;
use crate::document::Document;
use crate::traffic::Assigned;

/// A service of format 1, which had one revision.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service1 {
    uid: String,
    created: Timestamp,
    updated: Timestamp,
    generation: u64,
    resource_version: u64,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    spec: Value,
    revision: Revision,
    rules: Rules,
    queue_depth: u32,
}

/// Reads a service of format 1.
///
/// # Errors
/// What is wrong with its JSON.
pub(super) fn read_1(bytes: &[u8]) -> Result<StoredService, serde_json::Error> {
    let old: Service1 = serde_json::from_slice(bytes)?;
    let name = old.revision.key.name.clone();
    let revision = StoredRevision {
        uid: uid_of(&old.uid, &name),
        created: old.updated,
        generation: old.generation,
        template: Document::of(old.spec.get("template").unwrap_or(&Value::Null)),
        ready: true,
        idle_since: None,
        rules: old.rules,
        queue_depth: old.queue_depth,
        revision: old.revision,
        inputs: None,
        marks: None,
        routes: BTreeSet::new(),
    };
    let object = StoredObject {
        namespace: revision.revision.key.namespace.clone(),
        name: revision.revision.service.clone(),
        uid: old.uid,
        created: old.created,
        generation: old.generation,
        resource_version: old.resource_version,
        labels: old.labels,
        annotations: old.annotations,
        managed: Document::default(),
        spec: Document::of(&old.spec),
        routed: vec![Assigned { revision: name, latest: true, percent: 100, tag: None }],
    };
    Ok(StoredService {
        object,
        standalone: false,
        configuration_generation: old.generation,
        revisions: vec![revision],
        configuration_marks: None,
        route_marks: None,
    })
}
