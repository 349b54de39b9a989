//! Spans in Zipkin's JSON.
//!
//! # Source
//! Zipkin API v2, `POST /api/v2/spans`.

use serde::Serialize;
use serde_json::{Map, Value as Json};

use super::Finished;
use super::spans::{self, Kind, Value};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Span<'a> {
    trace_id: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    timestamp: u64,
    duration: u64,
    local_endpoint: Endpoint<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote_endpoint: Option<Endpoint<'a>>,
    tags: Map<String, Json>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint<'a> {
    service_name: &'a str,
}

/// A batch as one list.
pub(super) fn encode(batch: &[impl AsRef<Finished>], service: &str) -> Vec<u8> {
    let each = batch.iter().map(AsRef::as_ref);
    let all: Vec<Span<'_>> = each.flat_map(|finished| translate(finished, service)).collect();
    serde_json::to_vec(&all).unwrap_or_default()
}

fn translate<'a>(finished: &'a Finished, service: &'a str) -> impl Iterator<Item = Span<'a>> {
    let trace = finished.trace.id.to_string();
    let trace = if finished.trace.short { trace[16..].to_owned() } else { trace };
    spans::spans(finished).into_iter().map(move |span| {
        let tags = span.attributes.into_iter().map(|(key, value)| {
            let text = match value {
                Value::Text(text) => text,
                Value::Whole(number) => number.to_string(),
                Value::Flag(flag) => flag.to_string(),
            };
            (key.to_owned(), Json::String(text))
        });
        let error = span.error.map(|error| ("error".to_owned(), Json::String(error)));
        let function = Endpoint { service_name: &finished.record.service };
        Span {
            trace_id: trace.clone(),
            id: span.id.to_string(),
            parent_id: span.parent.map(|parent| parent.to_string()),
            name: span.name,
            kind: match span.kind {
                Kind::Server => Some("SERVER"),
                Kind::Client => Some("CLIENT"),
                Kind::Internal => None,
            },
            timestamp: span.begin_us,
            // Zipkin takes zero for "not known".
            duration: span.length_us.max(1),
            local_endpoint: Endpoint { service_name: service },
            remote_endpoint: (span.kind == Kind::Client).then_some(function),
            tags: tags.chain(error).collect(),
        }
    })
}
