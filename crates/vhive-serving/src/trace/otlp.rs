//! Spans in OTLP's protobuf, the same over HTTP and over gRPC.
//!
//! Only what is written here is declared; a test decodes it with OpenTelemetry's own types.
//!
//! # Source
//! `opentelemetry-proto` 1.x: `trace/v1/trace.proto`, `collector/trace/v1/trace_service.proto`.

use bytes::Bytes;
use prost::Message as _;

use super::spans::{self, Kind};
use super::{Finished, Trace};

#[derive(Clone, PartialEq, prost::Message)]
struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(bytes = "bytes", tag = "1")]
    trace_id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    span_id: Bytes,
    #[prost(string, tag = "3")]
    trace_state: String,
    #[prost(bytes = "bytes", tag = "4")]
    parent_span_id: Bytes,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 2, 3")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Flag(bool),
    #[prost(int64, tag = "3")]
    Whole(i64),
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// Of `Status.code`.
const ERROR: i32 = 2;

/// Of `Span.flags`: W3C's sampled; it is known whether the parent is elsewhere; it is.
const SAMPLED: u32 = 1;
const KNOWN: u32 = 0x100;
const REMOTE: u32 = 0x200;

/// A batch as one message.
pub(super) fn encode(batch: &[impl AsRef<Finished>], service: &str) -> Vec<u8> {
    let spans = batch.iter().flat_map(|one| translate(one.as_ref())).collect();
    let version = env!("CARGO_PKG_VERSION");
    let resource = Resource {
        attributes: vec![
            text("service.name", service),
            text("service.version", version),
            text("telemetry.sdk.name", "vhive"),
            text("telemetry.sdk.language", "rust"),
        ],
    };
    let scope = Scope { name: "vhive.gateway".to_owned(), version: version.to_owned() };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
    let resource_spans = vec![ResourceSpans { resource: Some(resource), scope_spans }];
    ExportRequest { resource_spans }.encode_to_vec()
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::Text(value.to_owned())) });
    KeyValue { key: key.to_owned(), value }
}

fn translate(finished: &Finished) -> impl Iterator<Item = Span> {
    let trace = &finished.trace;
    spans::spans(finished).into_iter().map(move |span| one(trace, span))
}

fn one(trace: &Trace, span: spans::Span) -> Span {
    let bytes = |id: u64| Bytes::copy_from_slice(&id.to_be_bytes());
    let is_remote = span.kind == Kind::Server && span.parent.is_some();
    let attributes = span.attributes.into_iter().map(|(key, value)| {
        let value = match value {
            spans::Value::Text(text) => Value::Text(text),
            spans::Value::Flag(flag) => Value::Flag(flag),
            spans::Value::Whole(number) => Value::Whole(number),
        };
        KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
    });
    Span {
        trace_id: Bytes::copy_from_slice(&trace.id.0.get().to_be_bytes()),
        span_id: bytes(span.id.0.get()),
        trace_state: trace.state.as_deref().unwrap_or_default().to_owned(),
        parent_span_id: span.parent.map(|parent| bytes(parent.0.get())).unwrap_or_default(),
        name: span.name,
        kind: match span.kind {
            Kind::Internal => 1,
            Kind::Server => 2,
            Kind::Client => 3,
        },
        start_time_unix_nano: span.begin_us.saturating_mul(1000),
        end_time_unix_nano: span.begin_us.saturating_add(span.length_us).saturating_mul(1000),
        attributes: attributes.collect(),
        status: span.error.map(|message| Status { message, code: ERROR }),
        flags: SAMPLED | KNOWN | if is_remote { REMOTE } else { 0 },
    }
}

/// What a collector says that it has not taken of a batch that it has taken.
pub(super) fn rejected(reply: &[u8]) -> Option<String> {
    let reply = ExportResponse::decode(reply).ok()?;
    let partial = reply.partial_success.filter(|partial| partial.rejected_spans > 0)?;
    Some(format!("{} spans rejected: {}", partial.rejected_spans, partial.error_message))
}

/// A message as gRPC frames it: not compressed, with its length.
///
/// # Source
/// gRPC over HTTP/2, `Length-Prefixed-Message`.
pub(super) fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut framed = Vec::with_capacity(5 + message.len());
    framed.push(0);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    framed
}
