//! A namespace.

use serde_json::{Value, json};

use super::{put_strings, seconds};
use crate::store::StoredObject;

/// The label that Kubernetes gives every namespace.
pub(crate) const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The object.
pub(super) fn namespace(stored: &StoredObject, version: u64) -> Value {
    let mut metadata = json!({
        "name": stored.name,
        "uid": stored.uid,
        "resourceVersion": version.to_string(),
        "creationTimestamp": seconds(stored.created),
    });
    put_strings(&mut metadata, "labels", &stored.labels);
    metadata["labels"][NAME_LABEL] = Value::from(stored.name.as_str());
    put_strings(&mut metadata, "annotations", &stored.annotations);
    if !stored.managed.is_null() {
        metadata["managedFields"] = stored.managed.value();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": metadata,
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}
