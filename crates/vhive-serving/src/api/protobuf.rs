//! Documents in Kubernetes' protobuf: kubectl sends kinds of the core in it. Answers are JSON, which
//! it takes as well.
//!
//! # Source
//! Kubernetes `apimachinery/pkg/runtime/serializer/protobuf` (the prefix and `Unknown`),
//! `apimachinery/pkg/runtime/generated.proto`, `apimachinery/pkg/apis/meta/v1/generated.proto`,
//! `api/core/v1/generated.proto`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use serde_json::{Map, Value, json};

/// What a document in it begins with.
const PREFIX: &[u8] = b"k8s\0";

#[derive(Clone, PartialEq, prost::Message)]
struct Unknown {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
    #[prost(string, tag = "3")]
    encoding: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TypeMeta {
    #[prost(string, tag = "1")]
    api_version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

/// What clients say of an object; what the server alone says is passed over.
#[derive(Clone, PartialEq, prost::Message)]
struct ObjectMeta {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    generate_name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(string, tag = "5")]
    uid: String,
    #[prost(string, tag = "6")]
    resource_version: String,
    #[prost(btree_map = "string, string", tag = "11")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ConfigMap {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(btree_map = "string, string", tag = "2")]
    data: BTreeMap<String, String>,
    #[prost(btree_map = "string, bytes", tag = "3")]
    binary_data: BTreeMap<String, Vec<u8>>,
    #[prost(bool, optional, tag = "4")]
    immutable: Option<bool>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Secret {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(btree_map = "string, bytes", tag = "2")]
    data: BTreeMap<String, Vec<u8>>,
    #[prost(string, tag = "3")]
    class: String,
    #[prost(btree_map = "string, string", tag = "4")]
    string_data: BTreeMap<String, String>,
    #[prost(bool, optional, tag = "5")]
    immutable: Option<bool>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Namespace {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeleteOptions {
    #[prost(message, optional, tag = "2")]
    preconditions: Option<Preconditions>,
    #[prost(bool, optional, tag = "3")]
    orphan_dependents: Option<bool>,
    #[prost(string, optional, tag = "4")]
    propagation_policy: Option<String>,
    #[prost(string, repeated, tag = "5")]
    dry_run: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Preconditions {
    #[prost(string, optional, tag = "1")]
    uid: Option<String>,
    #[prost(string, optional, tag = "2")]
    resource_version: Option<String>,
}

/// The document as if it had come as JSON.
///
/// # Errors
/// Why it cannot be read.
pub(super) fn read(body: &[u8]) -> Result<Value, String> {
    let Some(body) = body.strip_prefix(PREFIX) else {
        return Err("it does not begin as Kubernetes' protobuf does".to_owned());
    };
    let unknown = Unknown::decode(body).map_err(|error| error.to_string())?;
    if !unknown.encoding.is_empty() {
        return Err(format!("its encoding {:?} is not known", unknown.encoding));
    }
    let TypeMeta { api_version, kind } = unknown.type_meta.unwrap_or_default();
    let raw = unknown.raw.as_slice();
    let broken = |error: prost::DecodeError| error.to_string();
    let mut document = match kind.as_str() {
        "ConfigMap" => config_map(ConfigMap::decode(raw).map_err(broken)?),
        "Secret" => secret(Secret::decode(raw).map_err(broken)?),
        "Namespace" => {
            let object = Namespace::decode(raw).map_err(broken)?;
            json!({"metadata": metadata(object.metadata)})
        }
        "DeleteOptions" => delete_options(DeleteOptions::decode(raw).map_err(broken)?),
        other => return Err(format!("{other:?} is not read from it; send JSON or YAML")),
    };
    document["apiVersion"] = Value::from(api_version);
    document["kind"] = Value::from(kind);
    Ok(document)
}

fn config_map(object: ConfigMap) -> Value {
    let mut document = json!({"metadata": metadata(object.metadata), "data": object.data});
    if !object.binary_data.is_empty() {
        document["binaryData"] = base64(object.binary_data);
    }
    put_immutable(&mut document, object.immutable);
    document
}

fn secret(object: Secret) -> Value {
    let mut document = json!({"metadata": metadata(object.metadata), "data": base64(object.data)});
    if !object.string_data.is_empty() {
        document["stringData"] = json!(object.string_data);
    }
    if !object.class.is_empty() {
        document["type"] = Value::from(object.class);
    }
    put_immutable(&mut document, object.immutable);
    document
}

fn delete_options(options: DeleteOptions) -> Value {
    let mut document = json!({});
    if let Some(Preconditions { uid, resource_version }) = options.preconditions {
        let fields = [("uid", uid), ("resourceVersion", resource_version)];
        let given = fields.into_iter().filter_map(|(name, text)| Some((name, text?)));
        document["preconditions"] =
            given.map(|(name, text)| (name.to_owned(), Value::from(text))).collect();
    }
    if let Some(orphan) = options.orphan_dependents {
        document["orphanDependents"] = Value::from(orphan);
    }
    if let Some(policy) = options.propagation_policy {
        document["propagationPolicy"] = Value::from(policy);
    }
    if !options.dry_run.is_empty() {
        document["dryRun"] = json!(options.dry_run);
    }
    document
}

fn metadata(meta: Option<ObjectMeta>) -> Value {
    let meta = meta.unwrap_or_default();
    let texts = [
        ("name", meta.name),
        ("generateName", meta.generate_name),
        ("namespace", meta.namespace),
        ("uid", meta.uid),
        ("resourceVersion", meta.resource_version),
    ];
    let given = texts.into_iter().filter(|(_, text)| !text.is_empty());
    let mut fields: Map<String, Value> =
        given.map(|(name, text)| (name.to_owned(), Value::from(text))).collect();
    for (name, map) in [("labels", meta.labels), ("annotations", meta.annotations)] {
        if !map.is_empty() {
            fields.insert(name.to_owned(), json!(map));
        }
    }
    Value::Object(fields)
}

fn base64(values: BTreeMap<String, Vec<u8>>) -> Value {
    let each = values.into_iter().map(|(key, bytes)| (key, Value::from(STANDARD.encode(bytes))));
    each.collect()
}

fn put_immutable(document: &mut Value, immutable: Option<bool>) {
    if let Some(immutable) = immutable {
        document["immutable"] = Value::from(immutable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(kind: &str, raw: Vec<u8>) -> Vec<u8> {
        let type_meta = Some(TypeMeta { api_version: "v1".to_owned(), kind: kind.to_owned() });
        let unknown = Unknown { type_meta, raw, encoding: String::new() };
        [PREFIX, &unknown.encode_to_vec()].concat()
    }

    #[test]
    fn objects_are_those_of_json() {
        let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let named =
            ObjectMeta { name: "a".to_owned(), labels: one("l", "v"), ..ObjectMeta::default() };
        let map = ConfigMap {
            metadata: Some(named.clone()),
            data: one("k", "text"),
            immutable: Some(true),
            ..ConfigMap::default()
        };
        let meta = json!({"name": "a", "labels": {"l": "v"}});
        assert_eq!(
            read(&wire("ConfigMap", map.encode_to_vec())).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta,
                   "data": {"k": "text"}, "immutable": true}),
        );
        let secret = Secret {
            metadata: Some(named),
            data: BTreeMap::from([("k".to_owned(), vec![0xff, 0])]),
            class: "Opaque".to_owned(),
            ..Secret::default()
        };
        assert_eq!(
            read(&wire("Secret", secret.encode_to_vec())).unwrap(),
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta,
                   "data": {"k": "/wA="}, "type": "Opaque"}),
        );
    }

    #[test]
    fn what_a_deletion_wants_is_read() {
        let options = DeleteOptions {
            propagation_policy: Some("Orphan".to_owned()),
            dry_run: vec!["All".to_owned()],
            ..DeleteOptions::default()
        };
        let read = read(&wire("DeleteOptions", options.encode_to_vec())).unwrap();
        assert_eq!(
            (&read["propagationPolicy"], &read["dryRun"]),
            (&json!("Orphan"), &json!(["All"]))
        );
    }

    #[test]
    fn what_is_not_read_is_said() {
        for bad in [&b""[..], b"k8s", b"{}", b"k8s\0\xff\xff"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        let error = read(&wire("Pod", Vec::new())).unwrap_err();
        assert!(error.contains("\"Pod\""), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = read(&[PREFIX, bytes.as_slice()].concat());
            for kind in ["ConfigMap", "Secret", "Namespace", "DeleteOptions"] {
                let _ = read(&wire(kind, bytes.clone()));
            }
        }
    }
}
