//! One revision.

use serde_json::{Map, Value, json};

use super::conditions::{of_instances, of_revision};
use super::{labels, owner, seconds, serving, uid_of_kind};
use crate::catalog::Entry;
use crate::kind::Kind;
use crate::standing::Standing;
use crate::store::StoredRevision;

/// A revision with its status.
pub(crate) fn revision(entry: &Entry, one: &StoredRevision, standing: &Standing) -> Value {
    let service = &entry.stored;
    let template = one.template.value();
    let key = &one.revision.key;
    let routed = service.is_routed(one.name());
    let generation = one.generation.to_string();
    let state = if routed { "active" } else { "reserve" };
    let mut metadata = json!({
        "name": key.name,
        "namespace": key.namespace,
        "uid": one.uid,
        "resourceVersion": standing.version.to_string(),
        "generation": 1,
        "creationTimestamp": seconds(one.created),
        "labels": labels(&template, &[
            ("serving.knative.dev/configuration", &service.name),
            ("serving.knative.dev/configurationGeneration", &generation),
            ("serving.knative.dev/configurationUID", &uid_of_kind(service, Kind::Configuration)),
            ("serving.knative.dev/routingState", state),
            ("serving.knative.dev/service", &service.name),
            ("serving.knative.dev/serviceUID", &service.uid),
        ]),
        "ownerReferences": owner(
            Kind::Configuration, &service.name, &uid_of_kind(service, Kind::Configuration),
        ),
    });
    let given = template.pointer("/metadata/annotations").and_then(Value::as_object);
    let mut annotations = given.cloned().unwrap_or_else(Map::new);
    if routed {
        let routes = Value::from(service.name.as_str());
        annotations.insert("serving.knative.dev/routes".to_owned(), routes);
    }
    if !annotations.is_empty() {
        metadata["annotations"] = Value::Object(annotations);
    }
    let (ready, active) = (of_revision(standing), of_instances(standing));
    let status = json!({
        "observedGeneration": 1,
        "actualReplicas": standing.actual,
        "desiredReplicas": standing.desired,
        "containerStatuses": [{
            "name": container_name(&template),
            "imageDigest": one.revision.image_digest,
        }],
        "conditions": [
            active.show("Active", standing.since),
            ready.show("ContainerHealthy", standing.since),
            ready.show("Ready", standing.since),
            ready.show("ResourcesAvailable", standing.since),
        ],
    });
    serving(Kind::Revision, &metadata, &spec(one, &template), &status)
}

/// The template's `spec` with the defaults that hold.
fn spec(one: &StoredRevision, template: &Value) -> Value {
    let mut spec = template.get("spec").cloned().unwrap_or_else(|| json!({}));
    let fill = |spec: &mut Value, field: &str, value: Value| {
        if spec.get(field).is_none_or(Value::is_null) {
            spec[field] = value;
        }
    };
    let revision = &one.revision;
    fill(&mut spec, "containerConcurrency", Value::from(revision.container_concurrency));
    fill(&mut spec, "timeoutSeconds", Value::from(revision.timeout.as_secs()));
    fill(&mut spec, "runtimeClassName", Value::from(revision.runtime.as_str()));
    if let Some(container) = spec.pointer_mut("/containers/0") {
        fill(container, "name", Value::from(container_name(template)));
    }
    spec
}

/// The name of a template's container.
pub(super) fn container_name(template: &Value) -> &str {
    let name = template.pointer("/spec/containers/0/name").and_then(Value::as_str);
    name.filter(|name| !name.is_empty()).unwrap_or("user-container")
}
