//! One revision.

use serde_json::{Map, Value, json};
use vhive_api::Revision;

use super::conditions::{of_instances, of_revision};
use super::{labels, owner, put_managed, seconds, serving, uid_of_kind};
use crate::catalog::Entry;
use crate::kind::Kind;
use crate::standing::Standing;
use crate::store::StoredRevision;

/// A revision with its status.
pub(crate) fn revision(entry: &Entry, one: &StoredRevision, standing: &Standing) -> Value {
    let owned_by = &entry.stored;
    let template = one.template.value();
    let key = &one.revision.key;
    let routed = owned_by.is_routed(one);
    let generation = one.generation.to_string();
    let configuration = uid_of_kind(owned_by, Kind::Configuration);
    let mut more: Vec<(&str, &str)> = vec![
        ("serving.knative.dev/configuration", owned_by.name.as_str()),
        ("serving.knative.dev/configurationGeneration", generation.as_str()),
        ("serving.knative.dev/configurationUID", configuration.as_str()),
        ("serving.knative.dev/routingState", if routed { "active" } else { "reserve" }),
    ];
    if !owned_by.standalone {
        more.push(("serving.knative.dev/service", &owned_by.name));
        more.push(("serving.knative.dev/serviceUID", &owned_by.uid));
    }
    let mut metadata = json!({
        "name": key.name,
        "namespace": key.namespace,
        "uid": one.uid,
        "resourceVersion": standing.version.to_string(),
        "generation": 1,
        "creationTimestamp": seconds(one.created),
        "labels": Value::Null,
        "ownerReferences": owner(Kind::Configuration, &owned_by.name, &configuration),
    });
    let given = |field: &str| template.pointer(&format!("/metadata/{field}")).cloned();
    let (given, annotations) = match &one.marks {
        Some(marks) => {
            put_managed(&mut metadata, marks);
            (Some(json!(marks.labels)), Some(json!(marks.annotations)))
        }
        None => (given("labels"), given("annotations")),
    };
    metadata["labels"] = labels(given, &more);
    let mut annotations = match annotations {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    if routed {
        let own = owned_by.routed.iter().any(|assigned| assigned.revision == one.name());
        let own = own.then_some(owned_by.name.as_str());
        let routes: Vec<&str> =
            own.into_iter().chain(one.routes.iter().map(String::as_str)).collect();
        let routes = Value::from(routes.join(","));
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
            "imageDigest": pinned(&one.revision),
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

/// The image by its digest, as a reference that can take the place of the one that was given: `kn`
/// puts it there.
fn pinned(revision: &Revision) -> String {
    let name = revision.image.split_once('@').map_or(revision.image.as_str(), |(name, _)| name);
    let tag = name.rfind(':').filter(|colon| !name[*colon..].contains('/'));
    format!("{}@{}", &name[..tag.unwrap_or(name.len())], revision.image_digest)
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
