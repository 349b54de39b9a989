//! The objects that clients see, as Kubernetes and Knative write them. Pure: from what is stored
//! and how it stands.
//!
//! # Source
//! Knative Serving, `specs/serving/knative-api-specification-1.0.md`; Kubernetes API conventions.

mod conditions;
mod data;
mod namespace;
mod plain;
mod pod;
mod revision;
mod service;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub(crate) use self::data::data;
pub(crate) use self::namespace::NAME_LABEL;
pub(crate) use self::plain::{BROKER_LABEL, plain};
pub(crate) use self::pod::{is_pod_of, pod};
pub(crate) use self::revision::revision;
use crate::catalog::{Catalog, Entry};
use crate::kind::{Kind, SERVING};
use crate::store::{Marks, StoredObject, StoredService, uid_of};

/// A service, its configuration or its route; none for other kinds, and of a configuration that no
/// service makes only itself.
pub(crate) fn of_service(kind: Kind, catalog: &Catalog, entry: &Entry) -> Option<Value> {
    match kind {
        Kind::Service | Kind::Route if entry.stored.standalone => None,
        Kind::Service => Some(service::service(catalog, entry)),
        Kind::Configuration => Some(service::configuration(entry)),
        Kind::Route => Some(service::route(catalog, entry)),
        Kind::Revision
        | Kind::Pod
        | Kind::Namespace
        | Kind::Event
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::Broker
        | Kind::Trigger => None,
    }
}

/// The uid of a service's configuration or route, or of such a configuration.
fn uid_of_kind(stored: &StoredService, kind: Kind) -> String {
    if stored.standalone { stored.uid.clone() } else { uid_of(&stored.uid, kind.as_str()) }
}

/// The `metadata` of an object that clients make.
fn metadata(stored: &StoredObject, version: u64) -> Value {
    let mut metadata = json!({
        "name": stored.name,
        "namespace": stored.namespace,
        "uid": stored.uid,
        "resourceVersion": version.to_string(),
        "generation": stored.generation,
        "creationTimestamp": seconds(stored.created),
    });
    put_strings(&mut metadata, "labels", &stored.labels);
    put_strings(&mut metadata, "annotations", &stored.annotations);
    if !stored.managed.is_null() {
        metadata["managedFields"] = stored.managed.value();
    }
    metadata
}

/// Where a service or route answers, and which part of the requests each revision gets.
fn addresses(catalog: &Catalog, stored: &StoredObject) -> Value {
    let host = catalog.host(stored);
    let traffic = stored.routed.iter().map(|assigned| {
        let mut shown = json!({
            "latestRevision": assigned.latest,
            "percent": assigned.percent,
            "revisionName": assigned.revision,
        });
        if let Some(tag) = &assigned.tag {
            let host = catalog.tag_host(tag, stored);
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

/// A reference to the one that an object goes away with.
fn owner(kind: Kind, name: &str, uid: &str) -> Value {
    json!([{
        "apiVersion": kind.api_version(),
        "kind": kind.as_str(),
        "name": name,
        "uid": uid,
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

/// Adds a map of strings unless it is empty.
fn put_strings(metadata: &mut Value, field: &str, strings: &BTreeMap<String, String>) {
    if !strings.is_empty() {
        metadata[field] = json!(strings);
    }
}

/// Adds who set which of an object's marks.
fn put_managed(metadata: &mut Value, marks: &Marks) {
    if !marks.managed.is_null() {
        metadata["managedFields"] = marks.managed.value();
    }
}

/// The labels that were given, then those that say where an object belongs.
fn labels(given: Option<Value>, more: &[(&str, &str)]) -> Value {
    let mut labels = match given {
        Some(Value::Object(given)) => given,
        _ => Map::new(),
    };
    for (name, value) in more {
        labels.insert((*name).to_owned(), Value::from(*value));
    }
    Value::Object(labels)
}

/// A time as Kubernetes writes it: UTC, whole seconds.
pub(crate) fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn serving(kind: Kind, metadata: &Value, spec: &Value, status: &Value) -> Value {
    json!({
        "apiVersion": SERVING,
        "kind": kind.as_str(),
        "metadata": metadata,
        "spec": spec,
        "status": status,
    })
}
