//! A service with its configuration and its route, which are made and go away with it.

use serde_json::{Value, json};

use super::conditions::{both, of_configuration, of_route};
use super::{owner, put_strings, seconds, serving, uid_of_kind};
use crate::catalog::{Catalog, Entry};
use crate::kind::Kind;

/// A service with its status.
pub(super) fn service(catalog: &Catalog, entry: &Entry) -> Value {
    let stored = &entry.stored;
    let mut metadata = json!({
        "name": stored.name,
        "namespace": stored.namespace,
        "uid": stored.uid,
        "resourceVersion": entry.version.to_string(),
        "generation": stored.generation,
        "creationTimestamp": seconds(stored.created),
    });
    put_strings(&mut metadata, "labels", &stored.labels);
    put_strings(&mut metadata, "annotations", &stored.annotations);
    if !stored.managed.is_null() {
        metadata["managedFields"] = stored.managed.clone();
    }
    let (configuration, route) = (of_configuration(entry), of_route(entry));
    let mut status = addresses(catalog, entry);
    status["observedGeneration"] = Value::from(stored.generation);
    put_revisions(&mut status, entry);
    status["conditions"] = json!([
        configuration.show("ConfigurationsReady", entry.changed),
        both(&configuration, &route).show("Ready", entry.changed),
        route.show("RoutesReady", entry.changed),
    ]);
    serving(Kind::Service, &metadata, &stored.spec.value(), &status)
}

/// The part of a service that makes revisions.
pub(super) fn configuration(entry: &Entry) -> Value {
    let stored = &entry.stored;
    let metadata = part(entry, Kind::Configuration, stored.configuration_generation);
    let mut spec = json!({});
    if let Some(template) = stored.spec.value().get("template") {
        spec["template"] = template.clone();
    }
    let mut status = json!({
        "observedGeneration": stored.configuration_generation,
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
    let mut status = addresses(catalog, entry);
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
    json!({
        "name": stored.name,
        "namespace": stored.namespace,
        "uid": uid_of_kind(stored, kind),
        "resourceVersion": entry.version.to_string(),
        "generation": generation,
        "creationTimestamp": seconds(stored.created),
        "labels": {
            "serving.knative.dev/service": stored.name,
            "serving.knative.dev/serviceUID": stored.uid,
        },
        "ownerReferences": owner(Kind::Service, &stored.name, &stored.uid),
    })
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

/// Where a service answers, and which part of the requests each revision gets.
fn addresses(catalog: &Catalog, entry: &Entry) -> Value {
    let stored = &entry.stored;
    let host = catalog.host(&stored.namespace, &stored.name);
    let traffic = stored.routed.iter().map(|assigned| {
        let mut shown = json!({
            "latestRevision": assigned.latest,
            "percent": assigned.percent,
            "revisionName": assigned.revision,
        });
        if let Some(tag) = &assigned.tag {
            let host = catalog.tag_host(tag, &stored.namespace, &stored.name);
            shown["tag"] = Value::from(tag.as_str());
            shown["url"] = Value::from(format!("http://{host}"));
        }
        shown
    });
    json!({
        "url": format!("http://{host}"),
        "address": {
            "url": format!("http://{}.{}.svc.cluster.local", stored.name, stored.namespace),
        },
        "traffic": traffic.collect::<Vec<_>>(),
    })
}
