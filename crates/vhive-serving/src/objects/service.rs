//! A service with its configuration and its route, which are made and go away with it.

use serde_json::{Value, json};

use super::conditions::{both, of_configuration, of_route};
use super::{
    addresses, labels, metadata, owner, put_managed, put_strings, seconds, serving, uid_of_kind,
};
use crate::catalog::{Catalog, Entry};
use crate::kind::Kind;

/// A service with its status.
pub(super) fn service(catalog: &Catalog, entry: &Entry) -> Value {
    let stored = &entry.stored;
    let metadata = metadata(stored, entry.version);
    let (configuration, route) = (of_configuration(entry), of_route(entry));
    let mut status = addresses(catalog, &entry.stored);
    status["observedGeneration"] = Value::from(stored.generation);
    put_revisions(&mut status, entry);
    status["conditions"] = json!([
        configuration.show("ConfigurationsReady", entry.changed),
        both(&configuration, &route).show("Ready", entry.changed),
        route.show("RoutesReady", entry.changed),
    ]);
    serving(Kind::Service, &metadata, &stored.spec.value(), &status)
}

/// What makes revisions: a part of a service, or an object that stands alone.
pub(super) fn configuration(entry: &Entry) -> Value {
    let stored = &entry.stored;
    let metadata = match stored.standalone {
        true => metadata(stored, entry.version),
        false => part(entry, Kind::Configuration, stored.configuration_generation),
    };
    let mut spec = json!({});
    if let Some(template) = stored.spec.value().get("template") {
        spec["template"] = template.clone();
    }
    let mut status = json!({
        "observedGeneration": metadata["generation"],
        "conditions": [of_configuration(entry).show("Ready", entry.changed)],
    });
    put_revisions(&mut status, entry);
    serving(Kind::Configuration, &metadata, &spec, &status)
}

/// The part of a service that leads requests to revisions.
pub(super) fn route(catalog: &Catalog, entry: &Entry) -> Value {
    let stored = &entry.stored;
    let metadata = part(entry, Kind::Route, stored.generation);
    let configured = json!([{
        "configurationName": stored.name, "latestRevision": true, "percent": 100,
    }]);
    let mut traffic = stored.spec.value().get("traffic").cloned().unwrap_or(configured);
    for target in traffic.as_array_mut().into_iter().flatten() {
        if target.get("revisionName").is_none_or(Value::is_null) {
            target["configurationName"] = Value::from(stored.name.as_str());
        }
    }
    let assigned = of_route(entry);
    let mut status = addresses(catalog, &entry.stored);
    status["observedGeneration"] = Value::from(stored.generation);
    status["conditions"] = json!([
        assigned.show("AllTrafficAssigned", entry.changed),
        assigned.show("IngressReady", entry.changed),
        assigned.show("Ready", entry.changed),
    ]);
    serving(Kind::Route, &metadata, &json!({"traffic": traffic}), &status)
}

fn part(entry: &Entry, kind: Kind, generation: u64) -> Value {
    let stored = &entry.stored;
    let marks = if kind == Kind::Route { &stored.route_marks } else { &stored.configuration_marks };
    let ours = [
        ("serving.knative.dev/service", stored.name.as_str()),
        ("serving.knative.dev/serviceUID", stored.uid.as_str()),
    ];
    let mut metadata = json!({
        "name": stored.name,
        "namespace": stored.namespace,
        "uid": uid_of_kind(stored, kind),
        "resourceVersion": entry.version.to_string(),
        "generation": generation,
        "creationTimestamp": seconds(stored.created),
        "labels": labels(marks.as_ref().map(|marks| json!(marks.labels)), &ours),
        "ownerReferences": owner(Kind::Service, &stored.name, &stored.uid),
    });
    if let Some(marks) = marks {
        put_strings(&mut metadata, "annotations", &marks.annotations);
        put_managed(&mut metadata, marks);
    }
    metadata
}

fn put_revisions(status: &mut Value, entry: &Entry) {
    status["latestCreatedRevisionName"] = Value::from(entry.stored.latest().name());
    let fine = entry.revisions().rev().find(|(stored, standing)| {
        // One that fails now is not the one to be sent to, unless nothing else ever was ready.
        stored.ready && standing.failure().is_none()
    });
    if let Some((ready, _)) = fine {
        status["latestReadyRevisionName"] = Value::from(ready.name());
    }
}
