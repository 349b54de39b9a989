//! Message heads between the two sides of the gateway: what is forwarded, what is added, what
//! stops here.
//!
//! # Source
//! RFC 9110 §7.6 (hop-by-hop fields), RFC 7239 (`Forwarded`), RFC 9112 (HTTP/1.1 messages).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Uri};
use vhive_api::InvocationId;

use super::field::{Field, lists, write_field, write_own};
use crate::trace::{TRACE_RESPONSE, Trace, TraceField, TraceResponse};

/// Where `X-Request-Id` travels.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What the gateway says to a function about where a request came from.
pub(super) struct Origin<'a> {
    /// The client's address.
    pub(super) client: &'a str,
    /// Whether it came by TLS.
    pub(super) secure: bool,
    /// The host that the client asked for.
    pub(super) host: &'a str,
    /// The invocation's identifier, used unless the client sent one.
    pub(super) id: &'a str,
    /// The trace context that takes the place of the client's.
    pub(super) trace: Option<&'a Trace>,
}

impl Origin<'_> {
    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// How long the body of a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// There is none, and nothing is said about it.
    None,
    /// So many bytes.
    Exact(u64),
    /// As many as come, in chunks.
    Chunked,
    /// As many as come until the connection ends (replies only).
    ToEnd,
}

/// Whether a `Connection` field names `name` as one for its connection only.
fn is_named_by_connection(headers: &HeaderMap, name: &HeaderName) -> bool {
    let named = |value: &HeaderValue| lists(value.as_bytes(), name.as_str().as_bytes());
    headers.get_all(header::CONNECTION).iter().any(named)
}

/// Writes a request's head in HTTP/1.1 for an instance.
pub(super) fn write_request(out: &mut Vec<u8>, parts: &Parts, length: Length, from: &Origin<'_>) {
    let headers = &parts.headers;
    let has_named = headers.contains_key(header::CONNECTION);
    let fields = headers.iter().filter(|(name, _)| !has_named || stays(headers, name)).map(
        |(name, value)| (Field::of(name.as_str().as_bytes()), name.as_str(), value.as_bytes()),
    );
    let line = (parts.method.as_str(), target(&parts.method, &parts.uri));
    write_request_of(out, line, fields, length, from);
}

/// Whether a field goes on in spite of what a `Connection` field names: those that get an element
/// appended always do.
fn stays(headers: &HeaderMap, name: &HeaderName) -> bool {
    *name == FORWARDED_FOR || *name == header::FORWARDED || !is_named_by_connection(headers, name)
}

/// Writes a request's head from its method, its target and its fields; those of the connection
/// are left out here, but not those that a `Connection` field names.
pub(super) fn write_request_of<'a>(
    out: &mut Vec<u8>,
    (method, target): (&str, &str),
    fields: impl Iterator<Item = (Field, &'a str, &'a [u8])>,
    length: Length,
    from: &Origin<'_>,
) {
    out.reserve(512);
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(from.host.as_bytes());
    out.extend_from_slice(b"\r\n");
    let mut has_id = false;
    let (mut seen_for, mut seen_proto, mut seen_forwarded) = (None, false, None);
    for (field, name, value) in fields {
        match field {
            Field::Host | Field::ContentLength | Field::Expect => continue,
            Field::ForwardedFor => {
                collect(&mut seen_for, value);
                continue;
            }
            Field::Forwarded => {
                collect(&mut seen_forwarded, value);
                continue;
            }
            Field::RequestId => has_id = true,
            Field::Trace(_) if from.trace.is_some() => continue,
            Field::ForwardedProto => seen_proto = true,
            _ if field.is_hop() => continue,
            _ => {}
        }
        write_field(out, name.as_bytes(), value);
    }
    finish_joined(out, seen_for, FORWARDED_FOR.as_str());
    out.extend_from_slice(from.client.as_bytes());
    if !seen_proto {
        out.extend_from_slice(b"\r\nx-forwarded-proto: ");
        out.extend_from_slice(from.scheme().as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    finish_joined(out, seen_forwarded, header::FORWARDED.as_str());
    write_forwarded(out, from);
    out.extend_from_slice(b"\r\n");
    if !has_id {
        write_own(out, "x-request-id", from.id.as_bytes());
    }
    if let Some(trace) = from.trace {
        trace.each_field(|name, value| write_own(out, name, value.as_bytes()));
    }
    match length {
        Length::Exact(n) => {
            out.extend_from_slice(b"content-length: ");
            out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
            out.extend_from_slice(b"\r\n\r\n");
        }
        Length::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n"),
        Length::None | Length::ToEnd => out.extend_from_slice(b"\r\n"),
    }
}

/// Fields that exist once and get an element appended: earlier elements are collected here.
type Joined = Option<Vec<u8>>;

fn collect(seen: &mut Joined, value: &[u8]) {
    let all = seen.get_or_insert_with(Vec::new);
    all.extend_from_slice(value);
    all.extend_from_slice(b", ");
}

fn finish_joined(out: &mut Vec<u8>, seen: Joined, name: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    if let Some(earlier) = seen {
        out.extend_from_slice(&earlier);
    }
}

fn write_forwarded(out: &mut Vec<u8>, from: &Origin<'_>) {
    let client = from.client;
    let (before, after) = if client.contains(':') { ("\"[", "]\"") } else { ("", "") };
    for part in ["for=", before, client, after, ";proto=", from.scheme()] {
        out.extend_from_slice(part.as_bytes());
    }
}

fn target<'a>(method: &Method, uri: &'a Uri) -> &'a str {
    match uri.path_and_query().map(http::uri::PathAndQuery::as_str) {
        Some("") | None if *method == Method::OPTIONS => "*",
        Some("") | None => "/",
        Some(target) => target,
    }
}

/// Changes a request's fields in place for an instance that speaks HTTP/2.
pub(super) fn adapt_for_h2(headers: &mut HeaderMap, from: &Origin<'_>) {
    let trailers = headers.get_all(header::TE).iter().any(|te| lists(te.as_bytes(), b"trailers"));
    strip_hop_fields(headers);
    for name in [header::HOST, header::EXPECT] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let mut forwarded = Vec::new();
    write_forwarded(&mut forwarded, from);
    append_element(headers, header::FORWARDED, &forwarded);
    append_element(headers, FORWARDED_FOR, from.client.as_bytes());
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(from.scheme()));
    }
    if !headers.contains_key(REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(from.id)
    {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(trace) = from.trace {
        for field in TraceField::ALL {
            headers.remove(field.name());
        }
        trace.each_field(|name, value| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        });
    }
}

/// Tells the client the invocation's identifier, unless the function gave one.
pub(super) fn tell_id(headers: &mut HeaderMap, id: &InvocationId) {
    if let header::Entry::Vacant(place) = headers.entry(REQUEST_ID)
        && let Ok(value) = HeaderValue::from_str(id.as_str())
    {
        place.insert(value);
    }
}

/// Tells the client its trace, unless the function gave one.
pub(super) fn tell_trace(headers: &mut HeaderMap, trace: TraceResponse) {
    if let header::Entry::Vacant(place) = headers.entry(TRACE_RESPONSE)
        && let Ok(value) = HeaderValue::from_str(&trace.to_string())
    {
        place.insert(value);
    }
}

fn append_element(headers: &mut HeaderMap, name: HeaderName, element: &[u8]) {
    let mut all = Vec::new();
    for earlier in headers.get_all(&name) {
        all.extend_from_slice(earlier.as_bytes());
        all.extend_from_slice(b", ");
    }
    all.extend_from_slice(element);
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(all)) {
        headers.insert(name, value);
    }
}

/// Removes what concerns one connection only.
pub(super) fn strip_hop_fields(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> =
            headers.keys().filter(|name| is_named_by_connection(headers, name)).cloned().collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
    ] {
        headers.remove(name);
    }
}
