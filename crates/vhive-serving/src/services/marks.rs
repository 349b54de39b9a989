//! Labels and annotations of what clients do not make: of revisions, and of a service's own
//! configuration and route. Nothing else of these can be changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use vhive_api::RevisionKey;

use super::change::whole;
use super::{ChangeError, Mode, Seen, Services, Wish};
use crate::admission::{Head, Problem, ProblemKind, VISIBILITY, admit_head};
use crate::catalog::Entry;
use crate::kind::Kind;
use crate::objects;
use crate::store::{Marks, StoredService};

/// Begins the labels and annotations that the node gives, and others that a template may have.
const OURS: &str = "serving.knative.dev/";

/// What the node says itself, of those that begin so.
const SAID: [&str; 7] = [
    "configuration",
    "configurationGeneration",
    "configurationUID",
    "routingState",
    "service",
    "serviceUID",
    "routes",
];

/// Begin the annotations that say something of a template, or of a cluster.
const MEANT: [&str; 6] = [
    OURS,
    "autoscaling.knative.dev/",
    "vhive.dev/",
    "features.knative.dev/",
    "queue.sidecar.serving.knative.dev/",
    "networking.knative.dev/",
];

impl Services {
    /// Takes the labels and annotations of a document for an object that clients do not make.
    ///
    /// # Errors
    /// [`ChangeError`], also if the document says anything else that is new.
    pub(crate) async fn put_marks(
        self: &Arc<Self>,
        kind: Kind,
        document: &Value,
        wish: Wish,
    ) -> Result<(Value, bool), ChangeError> {
        let (services, document) = (Arc::clone(self), document.clone());
        whole(async move { services.put_marks_whole(kind, document, wish).await }).await
    }

    async fn put_marks_whole(
        &self,
        kind: Kind,
        mut document: Value,
        wish: Wish,
    ) -> Result<(Value, bool), ChangeError> {
        let uid = document.pointer("/metadata/uid").and_then(Value::as_str);
        let uid = uid.filter(|uid| !uid.is_empty()).map(str::to_owned);
        let owners = document.get_mut("metadata").and_then(Value::as_object_mut);
        let owners = owners.and_then(|metadata| metadata.remove("ownerReferences"));
        let head = admit_head(kind, &document)
            .map_err(|invalid| unfit(kind, &invalid.name, invalid.problems))?;
        let (namespace, name) = (head.namespace.as_str(), head.name.as_str());
        let _changing = self.changing.lock().await;
        let found = self.marked(kind, namespace, name);
        let entry = found.filter(|_| wish.mode == Mode::Replace);
        let entry = entry.ok_or_else(|| ChangeError::NotFound { kind, name: name.to_owned() })?;
        let live = self.shown(kind, &entry, name);
        let text = |path| live.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let version = text("/metadata/resourceVersion").parse().unwrap_or(0);
        let seen = Seen { version: head.resource_version.clone(), uid };
        seen.expect((kind, name), text("/metadata/uid"), version)?;
        let same = document.get("spec").is_none_or(|spec| *spec == live["spec"])
            && owners.is_none_or(|owners| owners == live["metadata"]["ownerReferences"]);
        if !same {
            return Err(fixed(kind, name));
        }
        let marks = marks(kind, &head, &live, &wish)?;
        let mut stored = StoredService::clone(&entry.stored);
        let place = match kind {
            Kind::Configuration => Some(&mut stored.configuration_marks),
            Kind::Route => Some(&mut stored.route_marks),
            _ => {
                let mut revisions = stored.revisions.iter_mut();
                revisions.find(|one| one.name() == name).map(|one| &mut one.marks)
            }
        };
        if let Some(place) = place {
            *place = Some(Box::new(marks));
        }
        if stored == *entry.stored {
            return Ok((live, false));
        }
        if wish.dry_run {
            let would = Entry { stored: Arc::new(stored), ..entry };
            return Ok((self.shown(kind, &would, name), false));
        }
        stored.resource_version = self.next_version();
        let stored = self.write(stored).await?;
        let entry = self.install(stored, Some(&entry), Timestamp::now());
        Ok((self.shown(kind, &entry, name), false))
    }

    /// What a revision, or a service's own configuration or route, is a part of.
    fn marked(&self, kind: Kind, namespace: &str, name: &str) -> Option<Entry> {
        if kind != Kind::Revision {
            return self.of_kind(Kind::Service, namespace, name);
        }
        let entry = self.catalog.of_revision(&RevisionKey::new(namespace, name))?;
        entry.stored.revision(name).is_some().then_some(entry)
    }

    fn shown(&self, kind: Kind, entry: &Entry, name: &str) -> Value {
        if kind != Kind::Revision {
            return objects::of_service(kind, &self.catalog, entry).unwrap_or_default();
        }
        let found = entry.revisions().find(|(one, _)| one.name() == name);
        let shown = found.map(|(one, standing)| objects::revision(entry, one, standing));
        shown.unwrap_or_default()
    }
}

fn fixed(kind: Kind, name: &str) -> ChangeError {
    if kind != Kind::Revision {
        return ChangeError::Owned { kind, name: name.to_owned() };
    }
    let reason = "a revision never changes, only its labels and annotations do; change the Service \
                  or the Configuration instead";
    let (path, reason) = ("spec".to_owned(), reason.to_owned());
    unfit(kind, name, vec![Problem { path, kind: ProblemKind::Invalid, reason }])
}

/// What is kept of a document's metadata: without what the node says itself, which must be as it is
/// shown or not there.
fn marks(kind: Kind, head: &Head, live: &Value, wish: &Wish) -> Result<Marks, ChangeError> {
    let mut problems = Vec::new();
    let mut kept = |field: &str, given: &BTreeMap<String, String>, meant: &[&str], why: &str| {
        let shown = &live["metadata"][field];
        let is_meant = |key: &str| meant.iter().any(|prefix| key.starts_with(prefix));
        for (key, value) in given.iter().filter(|(key, _)| is_meant(key)) {
            if shown[key.as_str()] != value.as_str() {
                let path = format!("metadata.{field}[{key}]");
                let reason = why.to_owned();
                problems.push(Problem { path, kind: ProblemKind::Invalid, reason });
            }
        }
        let mut kept = given.clone();
        kept.retain(|key, _| !is_meant(key));
        // What a revision's template says stays, whether or not the document repeats it.
        let of_template = shown.as_object().filter(|_| kind == Kind::Revision);
        for (key, value) in of_template.into_iter().flatten() {
            let said = key.strip_prefix(OURS).is_some_and(|name| SAID.contains(&name));
            if let Some(text) = value.as_str()
                && is_meant(key)
                && !said
            {
                kept.insert(key.clone(), text.to_owned());
            }
        }
        kept
    };
    let labels = kept("labels", &head.labels, &[OURS], "is the node's own");
    let why = "says something of the template; change that of the Service or Configuration instead";
    let annotations = kept("annotations", &head.annotations, &MEANT, why);
    let visibility = head.labels.get(VISIBILITY);
    if visibility.is_some_and(|value| live["metadata"]["labels"][VISIBILITY] != value.as_str()) {
        let path = format!("metadata.labels[{VISIBILITY}]");
        let reason = match kind {
            Kind::Revision => "has no effect on a revision; label the Service or Route instead",
            _ => "has no effect on what a service makes; label the Service instead",
        };
        problems.push(Problem { path, kind: ProblemKind::Invalid, reason: reason.to_owned() });
    }
    if problems.is_empty() {
        return Ok(Marks { labels, annotations, managed: wish.managed.clone() });
    }
    Err(unfit(kind, &head.name, problems))
}

fn unfit(kind: Kind, name: &str, problems: Vec<Problem>) -> ChangeError {
    ChangeError::Unfit { kind, name: name.to_owned(), problems }
}
