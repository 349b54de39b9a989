//! A service and its revisions as they are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vhive_api::{Digest, Revision, RevisionKey};

use super::StoredObject;
use crate::admission::Admitted;
use crate::autoscale::Rules;
use crate::document::Document;
use crate::inputs::Inputs;
use crate::kind::Kind;
use crate::traffic::{Assigned, Held, Known, assign};

/// One service with all that belongs to it, or a configuration that no service makes, which has no
/// hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredService {
    /// What every object has.
    #[serde(flatten)]
    pub(crate) object: StoredObject,
    /// Whether it is such a configuration.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) standalone: bool,
    /// Counts the changes of `spec.template`, from 1; the names of revisions have it.
    pub(crate) configuration_generation: u64,
    /// Its revisions in the order of their making; at least one.
    pub(crate) revisions: Vec<StoredRevision>,
    /// Of the configuration that a service makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) configuration_marks: Option<Box<Marks>>,
    /// Of the route that a service makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) route_marks: Option<Box<Marks>>,
}

/// Labels and annotations that clients have given to what they do not make, besides those that the
/// node gives.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Marks {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Who set which of them.
    #[serde(default)]
    pub(crate) managed: Document,
}

/// What every object has, since that is what most who look at a service want.
impl Deref for StoredService {
    type Target = StoredObject;

    fn deref(&self) -> &StoredObject {
        &self.object
    }
}

impl DerefMut for StoredService {
    fn deref_mut(&mut self) -> &mut StoredObject {
        &mut self.object
    }
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
    /// What it takes from config maps and secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inputs: Option<Arc<Inputs>>,
    /// In the place of its template's labels and annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) marks: Option<Box<Marks>>,
    /// The routes that no service makes and that lead to it, or are to; as those say, so not kept.
    #[serde(skip)]
    pub(crate) routes: BTreeSet<String>,
}

impl StoredRevision {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.revision.key.name
    }
}

impl StoredService {
    /// Whether versions that know none of what clients do not make can read it.
    pub(super) fn is_plain(&self) -> bool {
        let marks = self.revisions.iter().map(|one| &one.marks);
        let mut marks = marks.chain([&self.configuration_marks, &self.route_marks]);
        !self.standalone && marks.all(Option::is_none)
    }

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

    /// What it is.
    pub(crate) fn kind(&self) -> Kind {
        if self.standalone { Kind::Configuration } else { Kind::Service }
    }

    /// Where a service's requests shall go, and can.
    ///
    /// # Errors
    /// [`Held`].
    pub(crate) fn assign(&self) -> Result<Vec<Assigned>, Held> {
        if self.standalone {
            return Ok(Vec::new());
        }
        assign(&self.targets(), &self.known())
    }

    /// Whether requests can reach a revision.
    pub(crate) fn is_routed(&self, revision: &StoredRevision) -> bool {
        let name = revision.name();
        !revision.routes.is_empty() || self.routed.iter().any(|one| one.revision == name)
    }
}

/// What is found out when a revision is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Basis {
    /// Its image's manifest.
    pub(crate) digest: Digest,
    /// Whether all its inputs are there.
    pub(crate) complete: bool,
}

/// A service's first generation, or a later one's revision: the next revision of `admitted`.
pub(crate) fn revision(
    admitted: &Admitted,
    generation: u64,
    basis: Basis,
    now: Timestamp,
) -> StoredRevision {
    let owner = &admitted.head.name;
    let named = || format!("{owner}-{generation:05}");
    let name = admitted.revision_name.clone().unwrap_or_else(named);
    let key = RevisionKey::new(&admitted.head.namespace, name);
    let template = &admitted.template;
    let revision = template.revision(key, owner, basis.digest);
    StoredRevision {
        uid: uid(),
        created: now,
        generation,
        template: Document::of(admitted.spec.get("template").unwrap_or(&Value::Null)),
        revision: Revision { standalone: admitted.standalone, ..revision },
        rules: template.rules.clone(),
        queue_depth: template.queue_depth,
        // Nothing is to be started before the first request: what could be waited for?
        ready: basis.complete && template.rules.initial.max(template.rules.min) == 0,
        idle_since: None,
        inputs: template.inputs.clone().map(Arc::new),
        marks: None,
        routes: BTreeSet::new(),
    }
}

/// A service that there has not been before.
pub(crate) fn first(admitted: &Admitted, basis: Basis, now: Timestamp) -> StoredService {
    StoredService {
        object: StoredObject::new(&admitted.head, &admitted.spec, now),
        standalone: admitted.standalone,
        configuration_generation: 1,
        revisions: vec![revision(admitted, 1, basis, now)],
        configuration_marks: None,
        route_marks: None,
    }
}

/// A random identifier in the form of RFC 9562, version 4.
pub(crate) fn uid() -> String {
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
