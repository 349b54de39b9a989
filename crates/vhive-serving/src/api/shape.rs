//! In which form a client wants objects: whole, as rows of a table, or only their metadata.
//!
//! # Source
//! Kubernetes API concepts, "Receiving resources as Tables" and "Metadata-only fetches".

use http::{HeaderMap, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::Kind;

/// A form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Whole,
    Table,
    Metadata,
}

impl Shape {
    /// The first form in `Accept` that can be had.
    pub(super) fn wanted(headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        for wanted in accept.unwrap_or_default().split(',') {
            let mut parts = wanted.split(';').map(str::trim);
            let json = matches!(parts.next(), Some("application/json" | "*/*" | "application/*"));
            let parts: Vec<&str> = parts.collect();
            let form = parts.iter().find_map(|part| part.strip_prefix("as="));
            let v1 = parts.iter().all(|part| !part.starts_with("v=") || *part == "v=v1");
            match form {
                _ if !json || !v1 => {}
                None => return Self::Whole,
                Some("Table") => return Self::Table,
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => {
                    return Self::Metadata;
                }
                Some(_) => {}
            }
        }
        Self::Whole
    }

    /// One object in this form.
    pub(super) fn one(self, kind: Kind, object: Value, include: &str) -> Value {
        match self {
            Self::Whole => object,
            Self::Metadata => partial(&object),
            Self::Table => {
                let version = object.pointer("/metadata/resourceVersion").cloned();
                table(kind, vec![object], &json!({"resourceVersion": version}), include)
            }
        }
    }

    /// A list in this form.
    pub(super) fn list(
        self,
        kind: Kind,
        items: Vec<Value>,
        metadata: &Value,
        include: &str,
    ) -> Value {
        match self {
            Self::Whole => json!({
                "apiVersion": kind.api_version(),
                "kind": format!("{}List", kind.as_str()),
                "metadata": metadata,
                "items": items,
            }),
            Self::Metadata => json!({
                "apiVersion": "meta.k8s.io/v1",
                "kind": "PartialObjectMetadataList",
                "metadata": metadata,
                "items": items.iter().map(partial).collect::<Vec<_>>(),
            }),
            Self::Table => table(kind, items, metadata, include),
        }
    }
}

fn partial(object: &Value) -> Value {
    json!({
        "apiVersion": "meta.k8s.io/v1",
        "kind": "PartialObjectMetadata",
        "metadata": object.get("metadata"),
    })
}

/// Name, type and where to find it; a condition by its type after `!` and one of its fields.
type Column = (&'static str, &'static str, &'static str);

const NAME: Column = ("Name", "string", "/metadata/name");
const AGE: Column = ("Age", "string", "age");
const READY: Column = ("Ready", "string", "!Ready/status");
const REASON: Column = ("Reason", "string", "!Ready/reason");
const CREATED: Column = ("LatestCreated", "string", "/status/latestCreatedRevisionName");
const LATEST: Column = ("LatestReady", "string", "/status/latestReadyRevisionName");
const URL: Column = ("URL", "string", "/status/url");

/// The columns of a kind.
///
/// # Source
/// Knative Serving, `additionalPrinterColumns` of its custom resources.
const fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Service => &[NAME, URL, CREATED, LATEST, READY, REASON],
        Kind::Configuration => &[NAME, CREATED, LATEST, READY, REASON],
        Kind::Route => &[NAME, URL, READY, REASON],
        Kind::Revision => &[
            NAME,
            ("Config Name", "string", "/metadata/labels/serving.knative.dev~1configuration"),
            (
                "Generation",
                "string",
                "/metadata/labels/serving.knative.dev~1configurationGeneration",
            ),
            READY,
            REASON,
            ("Actual Replicas", "integer", "/status/actualReplicas"),
            ("Desired Replicas", "integer", "/status/desiredReplicas"),
        ],
        Kind::Pod => &[
            NAME,
            ("Ready", "string", "containers"),
            ("Status", "string", "/status/phase"),
            ("Restarts", "integer", "/status/containerStatuses/0/restartCount"),
            AGE,
            ("IP", "string", "/status/podIP"),
        ],
        Kind::ConfigMap => &[NAME, ("Data", "string", "keys"), AGE],
        Kind::Secret => &[NAME, ("Type", "string", "/type"), ("Data", "integer", "keys"), AGE],
        Kind::Broker => &[NAME, ("URL", "string", "/status/address/url"), AGE, READY, REASON],
        Kind::Trigger => &[
            NAME,
            ("Broker", "string", "/spec/broker"),
            ("Subscriber_URI", "string", "/status/subscriberUri"),
            AGE,
            READY,
            REASON,
        ],
        Kind::Namespace => &[NAME, ("Status", "string", "/status/phase"), AGE],
        Kind::Event => &[
            ("Last Seen", "string", "age"),
            ("Type", "string", "/type"),
            ("Reason", "string", "/reason"),
            ("Object", "string", "involved"),
            ("Message", "string", "/message"),
        ],
    }
}

fn table(kind: Kind, items: Vec<Value>, metadata: &Value, include: &str) -> Value {
    let now = Timestamp::now();
    let definitions = columns(kind).iter().map(|(name, kind, from)| {
        json!({
            "name": name,
            "type": kind,
            "format": if *name == "Name" { "name" } else { "" },
            "description": "",
            "priority": i32::from(*from == "/status/podIP"),
        })
    });
    let definitions: Vec<Value> = definitions.collect();
    let rows = items.into_iter().map(|item| {
        let cells = columns(kind).iter().map(|(_, _, from)| cell(&item, from, now));
        let cells: Vec<Value> = cells.collect();
        let object = match include {
            "Object" => item,
            "None" => Value::Null,
            _ => partial(&item),
        };
        json!({"cells": cells, "object": object})
    });
    json!({
        "apiVersion": "meta.k8s.io/v1",
        "kind": "Table",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows.collect::<Vec<_>>(),
    })
}

fn cell(item: &Value, from: &str, now: Timestamp) -> Value {
    if let Some((condition, field)) = from.strip_prefix('!').and_then(|from| from.split_once('/')) {
        let all = item.pointer("/status/conditions").and_then(Value::as_array);
        let one = all.into_iter().flatten().find(|one| one["type"] == condition);
        return one.and_then(|one| one.get(field)).cloned().unwrap_or(Value::Null);
    }
    match from {
        "age" => {
            let at =
                item.get("lastTimestamp").or_else(|| item.pointer("/metadata/creationTimestamp"));
            let at: Option<Timestamp> =
                at.and_then(Value::as_str).and_then(|text| text.parse().ok());
            Value::from(
                at.map_or("<unknown>".to_owned(), |at| age(now.duration_since(at).as_secs())),
            )
        }
        "containers" => {
            let ready =
                item.pointer("/status/containerStatuses/0/ready") == Some(&Value::Bool(true));
            Value::from(if ready { "1/1" } else { "0/1" })
        }
        "keys" => {
            let count =
                |field| item.get(field).and_then(Value::as_object).map_or(0, |map| map.len());
            Value::from(count("data") + count("binaryData"))
        }
        "involved" => {
            let text = |field: &str| {
                item.pointer(field).and_then(Value::as_str).unwrap_or_default().to_lowercase()
            };
            let (kind, name) = (text("/involvedObject/kind"), text("/involvedObject/name"));
            Value::from(format!("{kind}/{name}"))
        }
        pointer => item.pointer(pointer).cloned().unwrap_or(Value::Null),
    }
}

/// A span as kubectl writes it.
fn age(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{}s", seconds.max(0)),
        120..600 => format!("{}m{}s", seconds / 60, seconds % 60),
        600..10_800 => format!("{}m", seconds / 60),
        10_800..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(accept: &'static str) -> Shape {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, http::HeaderValue::from_static(accept));
        Shape::wanted(&headers)
    }

    #[test]
    fn the_first_form_that_can_be_had() {
        assert_eq!(Shape::wanted(&HeaderMap::new()), Shape::Whole);
        assert_eq!(wanted("application/json"), Shape::Whole);
        assert_eq!(
            wanted(
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
            ),
            Shape::Table
        );
        assert_eq!(
            wanted("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"),
            Shape::Whole
        );
        assert_eq!(
            wanted(
                "application/vnd.kubernetes.protobuf,application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
            ),
            Shape::Metadata
        );
    }

    #[test]
    fn cells_come_from_their_places() {
        let item = json!({
            "metadata": {"name": "hello", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"url": "http://hello", "conditions": [{"type": "Ready", "status": "False", "reason": "Why"}]},
        });
        let table = Shape::Table.one(Kind::Service, item, "");
        assert_eq!(
            table["rows"][0]["cells"],
            json!(["hello", "http://hello", null, null, "False", "Why"])
        );
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        for (seconds, text) in [
            (-3, "0s"),
            (119, "119s"),
            (125, "2m5s"),
            (4000, "66m"),
            (90_000, "25h"),
            (200_000, "2d"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
