//! A config map or a secret.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use vhive_api::guest::Content;

use super::{put_strings, seconds};
use crate::data::StoredData;
use crate::inputs::DataKind;
use crate::kind::Kind;

/// The object with its values.
pub(crate) fn data(stored: &StoredData) -> Value {
    let kind = Kind::from(stored.kind);
    let mut metadata = json!({
        "name": stored.name,
        "namespace": stored.namespace,
        "uid": stored.uid,
        "resourceVersion": stored.resource_version.to_string(),
        "creationTimestamp": seconds(stored.created),
    });
    put_strings(&mut metadata, "labels", &stored.labels);
    put_strings(&mut metadata, "annotations", &stored.annotations);
    if !stored.managed.is_null() {
        metadata["managedFields"] = stored.managed.value();
    }
    let mut object = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.as_str(),
        "metadata": metadata,
    });
    let plain = stored.kind == DataKind::ConfigMap;
    for (field, values) in [("data", &stored.data), ("binaryData", &stored.binary)] {
        if values.is_empty() {
            continue;
        }
        let each = values.iter().map(|(key, content)| {
            let value = match content {
                Content::Text(text) if plain && field == "data" => text.clone(),
                other => STANDARD.encode(other.bytes().unwrap_or_default()),
            };
            (key.clone(), Value::from(value))
        });
        object[field] = Value::Object(each.collect::<Map<_, _>>());
    }
    if let Some(class) = &stored.class {
        object["type"] = Value::from(class.as_str());
    }
    if let Some(immutable) = stored.immutable {
        object["immutable"] = Value::from(immutable);
    }
    object
}
