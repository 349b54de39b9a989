//! Namespaces: each name is one, whether or not anything is in it.

use serde_json::{Value, json};

/// A namespace.
pub(crate) fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "uid": crate::store::uid_of("namespace", name),
            "resourceVersion": "1",
            "creationTimestamp": null,
            "labels": {"kubernetes.io/metadata.name": name},
        },
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    })
}
