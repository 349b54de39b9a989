//! A service and its revisions as they are kept.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vhive_api::{Digest, Revision, RevisionKey};

use crate::admission::Admitted;
use crate::autoscale::Rules;
use crate::document::Document;
use crate::traffic::{Assigned, Known, Target, targets};

/// One service with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredService {
    /// Namespace.
    pub(crate) namespace: String,
    /// Name.
    pub(crate) name: String,
    /// Random, for as long as the service exists.
    pub(crate) uid: String,
    /// When it was made, UTC.
    pub(crate) created: Timestamp,
    /// Counts the changes of `spec`, from 1.
    pub(crate) generation: u64,
    /// Counts the changes of `spec.template`, from 1; the names of revisions have it.
    pub(crate) configuration_generation: u64,
    /// Version of the last change by a client.
    pub(crate) resource_version: u64,
    /// Labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Annotations.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Who set which fields, as `metadata.managedFields` says it; null if nobody said who it was.
    #[serde(default)]
    pub(crate) managed: Value,
    /// The `spec` as written.
    pub(crate) spec: Document,
    /// Its revisions in the order of their making; at least one.
    pub(crate) revisions: Vec<StoredRevision>,
    /// Where requests go; empty until a revision has been ready.
    pub(crate) routed: Vec<Assigned>,
}

/// One revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredRevision {
    /// Random.
    pub(crate) uid: String,
    /// When it was made, UTC.
    pub(crate) created: Timestamp,
    /// `configuration_generation` that it came of.
    pub(crate) generation: u64,
    /// The template as written.
    pub(crate) template: Document,
    /// What is run.
    pub(crate) revision: Revision,
    /// Its scaling rules.
    pub(crate) rules: Rules,
    /// Requests that may wait for it.
    pub(crate) queue_depth: u32,
    /// Whether it has ever been ready.
    pub(crate) ready: bool,
    /// Since when no request can reach it.
    pub(crate) idle_since: Option<Timestamp>,
}

impl StoredRevision {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.revision.key.name
    }
}

impl StoredService {
    /// The revision made last.
    pub(crate) fn latest(&self) -> &StoredRevision {
        self.revisions.last().expect("a service has a revision from its making on")
    }

    /// The revision of a name.
    pub(crate) fn revision(&self, name: &str) -> Option<&StoredRevision> {
        self.revisions.iter().find(|revision| revision.name() == name)
    }

    /// What traffic is decided from.
    pub(crate) fn known(&self) -> Vec<Known<'_>> {
        let each = self.revisions.iter();
        each.map(|one| Known { name: one.name(), ready: one.ready }).collect()
    }

    /// What its `spec` asks for.
    pub(crate) fn targets(&self) -> Vec<Target> {
        targets(&self.spec.value())
    }

    /// Whether requests can reach a revision.
    pub(crate) fn is_routed(&self, revision: &str) -> bool {
        self.routed.iter().any(|assigned| assigned.revision == revision)
    }
}

/// A service's first generation, or a later one's revision: the next revision of `admitted`.
pub(crate) fn revision(
    admitted: &Admitted,
    generation: u64,
    digest: Digest,
    now: Timestamp,
) -> StoredRevision {
    let named = || format!("{}-{generation:05}", admitted.name);
    let name = admitted.revision_name.clone().unwrap_or_else(named);
    let key = RevisionKey::new(&admitted.namespace, name);
    let template = &admitted.template;
    StoredRevision {
        uid: uid(),
        created: now,
        generation,
        template: Document::of(admitted.spec.get("template").unwrap_or(&Value::Null)),
        revision: template.revision(key, &admitted.name, digest),
        rules: template.rules.clone(),
        queue_depth: template.queue_depth,
        // Nothing is to be started before the first request: what could be waited for?
        ready: template.rules.initial.max(template.rules.min) == 0,
        idle_since: None,
    }
}

/// A service that there has not been before.
pub(crate) fn first(admitted: &Admitted, digest: Digest, now: Timestamp) -> StoredService {
    StoredService {
        namespace: admitted.namespace.clone(),
        name: admitted.name.clone(),
        uid: uid(),
        created: now,
        generation: 1,
        configuration_generation: 1,
        resource_version: 0,
        labels: admitted.labels.clone(),
        annotations: admitted.annotations.clone(),
        managed: Value::Null,
        spec: Document::of(&admitted.spec),
        revisions: vec![revision(admitted, 1, digest, now)],
        routed: Vec::new(),
    }
}

/// A random identifier in the form of RFC 9562, version 4.
pub(super) fn uid() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel's random source answers after boot");
    bytes[6] = (bytes[6] & 0x0F) | 0x40;
    bytes[8] = (bytes[8] & 0x3F) | 0x80;
    uuid(&bytes)
}

/// The identifier of what a service brings with it, for as long as the service exists.
pub(crate) fn uid_of(service: &str, what: &str) -> String {
    let digest = Digest::of(format!("{service}/{what}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest.as_bytes()[..16]);
    bytes[6] = (bytes[6] & 0x0F) | 0x80;
    bytes[8] = (bytes[8] & 0x3F) | 0x80;
    uuid(&bytes)
}

fn uuid(bytes: &[u8; 16]) -> String {
    let hex = hex::encode(bytes);
    let part = |from: usize, to: usize| &hex[from..to];
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}
