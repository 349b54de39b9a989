//! Services as Kubernetes objects.
//!
//! # Source
//! Knative Serving, `pkg/apis/serving/v1/service_types.go`.

use serde_json::{Value, json};

use crate::catalog::Entry;
use crate::services::Services;
use crate::status::chain;

/// A service with its status.
pub(super) fn service(services: &Services, entry: &Entry) -> Value {
    let stored = &entry.stored;
    let (namespace, name) = (stored.namespace(), stored.name());
    let revision = &stored.revision.key.name;
    let host = services.catalog.host(namespace, name);
    let status = services.node.status(&stored.revision.key);
    let (mut ready, mut why) = (true, None);
    if let Some(status) = &status
        && let Some(failure) = &status.last_failure
        && status.ready == 0
        && status.last_start.as_ref().is_none_or(|start| start.at < failure.at)
    {
        ready = false;
        why = Some(chain(failure.as_ref()));
    }
    let condition = |kind: &str| {
        let mut condition = json!({
            "type": kind,
            "status": if ready { "True" } else { "False" },
            "lastTransitionTime": seconds(stored.updated),
        });
        if let Some(why) = &why {
            condition["reason"] = Value::from("StartFailed");
            condition["message"] = Value::from(why.as_str());
        }
        condition
    };
    let mut object = json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": stored.uid,
            "resourceVersion": stored.resource_version.to_string(),
            "generation": stored.generation,
            "creationTimestamp": seconds(stored.created),
        },
        "spec": stored.spec,
        "status": {
            "observedGeneration": stored.generation,
            "url": format!("http://{host}"),
            "address": {"url": format!("http://{host}")},
            "latestCreatedRevisionName": revision,
            "conditions": [
                condition("ConfigurationsReady"),
                condition("Ready"),
                condition("RoutesReady"),
            ],
            "traffic": [{"latestRevision": true, "percent": 100, "revisionName": revision}],
        },
    });
    if ready {
        object["status"]["latestReadyRevisionName"] = Value::from(revision.as_str());
    }
    for (field, map) in [("labels", &stored.labels), ("annotations", &stored.annotations)] {
        if !map.is_empty() {
            object["metadata"][field] = json!(map);
        }
    }
    object
}

/// A time as Kubernetes writes it: UTC, whole seconds.
fn seconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
