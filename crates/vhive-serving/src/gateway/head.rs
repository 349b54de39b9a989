//! Message heads between the two sides of the gateway: what is forwarded, what is added, what
//! stops here.
//!
//! # Source
//! RFC 9110 §7.6 (hop-by-hop fields), RFC 7239 (`Forwarded`), RFC 9112 (HTTP/1.1 messages).

use std::mem::MaybeUninit;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode, Uri};
use vhive_api::InvocationId;

/// Where `X-Request-Id` travels.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Longest reply head that an instance may send, in bytes, and most fields in it.
pub(super) const MAX_REPLY_HEAD: usize = 64 << 10;
const MAX_REPLY_FIELDS: usize = 128;

/// What the gateway says to a function about where a request came from.
pub(super) struct Origin<'a> {
    /// The client's address.
    pub(super) client: &'a str,
    /// The host that the client asked for.
    pub(super) host: &'a str,
    /// The invocation's identifier, used unless the client sent one.
    pub(super) id: &'a str,
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

/// Whether a field concerns one connection only, or is written anew for each.
fn is_hop(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || *name == header::TE
        || *name == header::PROXY_AUTHENTICATE
        || *name == header::PROXY_AUTHORIZATION
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
}

/// Whether a `Connection` field names `name` as one for its connection only.
fn is_named_by_connection(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| lists(value.as_bytes(), name.as_str()))
}

fn lists(value: &[u8], name: &str) -> bool {
    value.split(|b| *b == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

/// Writes a request's head in HTTP/1.1 for an instance.
pub(super) fn write_request(out: &mut BytesMut, parts: &Parts, length: Length, from: &Origin<'_>) {
    out.reserve(512);
    out.put_slice(parts.method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(target(&parts.method, &parts.uri).as_bytes());
    out.put_slice(b" HTTP/1.1\r\nhost: ");
    out.put_slice(from.host.as_bytes());
    out.put_slice(b"\r\n");
    let has_named = parts.headers.contains_key(header::CONNECTION);
    let mut has_id = false;
    let (mut seen_for, mut seen_proto, mut seen_forwarded) = (None, false, None);
    for (name, value) in &parts.headers {
        if *name == header::HOST
            || *name == header::CONTENT_LENGTH
            || *name == header::EXPECT
            || is_hop(name)
        {
            continue;
        }
        if *name == FORWARDED_FOR {
            collect(&mut seen_for, value);
            continue;
        }
        if *name == header::FORWARDED {
            collect(&mut seen_forwarded, value);
            continue;
        }
        if has_named && is_named_by_connection(&parts.headers, name) {
            continue;
        }
        has_id |= *name == REQUEST_ID;
        seen_proto |= *name == FORWARDED_PROTO;
        write_field(out, name.as_str(), value.as_bytes());
    }
    finish_joined(out, seen_for, FORWARDED_FOR.as_str());
    out.put_slice(from.client.as_bytes());
    if !seen_proto {
        out.put_slice(b"\r\nx-forwarded-proto: http");
    }
    out.put_slice(b"\r\n");
    finish_joined(out, seen_forwarded, header::FORWARDED.as_str());
    write_forwarded(out, from.client);
    out.put_slice(b"\r\n");
    if !has_id {
        write_field(out, REQUEST_ID.as_str(), from.id.as_bytes());
    }
    match length {
        Length::Exact(n) => {
            out.put_slice(b"content-length: ");
            out.put_slice(itoa::Buffer::new().format(n).as_bytes());
            out.put_slice(b"\r\n\r\n");
        }
        Length::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n\r\n"),
        Length::None | Length::ToEnd => out.put_slice(b"\r\n"),
    }
}

/// Fields that exist once and get an element appended: earlier elements are collected here.
type Joined = Option<BytesMut>;

fn collect(seen: &mut Joined, value: &HeaderValue) {
    let all = seen.get_or_insert_with(BytesMut::new);
    all.put_slice(value.as_bytes());
    all.put_slice(b", ");
}

fn finish_joined(out: &mut BytesMut, seen: Joined, name: &str) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    if let Some(earlier) = seen {
        out.put_slice(&earlier);
    }
}

fn write_forwarded(out: &mut BytesMut, client: &str) {
    if client.contains(':') {
        out.put_slice(b"for=\"[");
        out.put_slice(client.as_bytes());
        out.put_slice(b"]\";proto=http");
    } else {
        out.put_slice(b"for=");
        out.put_slice(client.as_bytes());
        out.put_slice(b";proto=http");
    }
}

fn write_field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
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
    let trailers = headers.get_all(header::TE).iter().any(|te| lists(te.as_bytes(), "trailers"));
    strip_hop_fields(headers);
    for name in [header::HOST, header::EXPECT] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let mut forwarded = BytesMut::new();
    write_forwarded(&mut forwarded, from.client);
    append_element(headers, header::FORWARDED, &forwarded);
    append_element(headers, FORWARDED_FOR, from.client.as_bytes());
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !headers.contains_key(REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(from.id)
    {
        headers.insert(REQUEST_ID, id);
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

fn append_element(headers: &mut HeaderMap, name: HeaderName, element: &[u8]) {
    let mut all = BytesMut::new();
    for earlier in headers.get_all(&name) {
        all.put_slice(earlier.as_bytes());
        all.put_slice(b", ");
    }
    all.put_slice(element);
    if let Ok(value) = HeaderValue::from_maybe_shared(all.freeze()) {
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

/// The head of a reply in HTTP/1.1.
#[derive(Debug)]
pub(super) struct ReplyHead {
    pub(super) status: StatusCode,
    /// Without fields for one connection only.
    pub(super) headers: HeaderMap,
    pub(super) length: Length,
    /// Whether the connection may carry another request afterwards.
    pub(super) keep_alive: bool,
}

/// Why a reply is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadReply {
    #[error("its reply is not HTTP/1.1")]
    Head,
    #[error("the head of its reply is longer than 64 KiB or has more than 128 fields")]
    TooLarge,
    #[error("its reply has contradictory or unreadable lengths")]
    Length,
    #[error("it switched protocols, which is not supported")]
    Upgrade,
    #[error("its reply has a broken chunk")]
    Chunk,
}

/// Takes a reply's head from the front of `input`; none if it is not complete yet. Interim
/// replies (1xx) are skipped.
pub(super) fn read_reply(input: &mut BytesMut, to: &Method) -> Result<Option<ReplyHead>, BadReply> {
    loop {
        let Some(head) = read_one_reply(input, to)? else { return Ok(None) };
        if !head.status.is_informational() {
            return Ok(Some(head));
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(BadReply::Upgrade);
        }
    }
}

fn read_one_reply(input: &mut BytesMut, to: &Method) -> Result<Option<ReplyHead>, BadReply> {
    let Some(end) = memchr::memmem::find(input, b"\r\n\r\n") else {
        let sound =
            input.len() < MAX_REPLY_HEAD && b"HTTP/1.".starts_with(&input[..input.len().min(7)]);
        return match sound {
            true => Ok(None),
            false if input.len() < MAX_REPLY_HEAD => Err(BadReply::Head),
            false => Err(BadReply::TooLarge),
        };
    };
    if end > MAX_REPLY_HEAD {
        return Err(BadReply::TooLarge);
    }
    // The values share the input's memory.
    let bytes = input.split_to(end + 4).freeze();
    let mut fields = [const { MaybeUninit::uninit() }; MAX_REPLY_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, &bytes, &mut fields) {
        Ok(httparse::Status::Complete(size)) if size == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(BadReply::TooLarge),
        Ok(_) | Err(_) => return Err(BadReply::Head),
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(BadReply::Head)?;
    collect_fields(&bytes, parsed.headers, status, parsed.version == Some(1), to).map(Some)
}

fn collect_fields(
    bytes: &Bytes,
    fields: &[httparse::Header<'_>],
    status: StatusCode,
    is_http11: bool,
    to: &Method,
) -> Result<ReplyHead, BadReply> {
    // One more for the invocation's identifier.
    let mut headers = HeaderMap::with_capacity(fields.len() + 1);
    let mut keep_alive = is_http11;
    let (mut named, mut chunked, mut coded, mut exact) = (false, false, false, None);
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BadReply::Head)?;
        let value = bytes.slice_ref(field.value);
        if name == header::CONTENT_LENGTH {
            let length = parse_length(&value).ok_or(BadReply::Length)?;
            if exact.is_some_and(|earlier| earlier != length) {
                return Err(BadReply::Length);
            }
            if exact.replace(length).is_some() {
                continue;
            }
        } else if name == header::TRANSFER_ENCODING {
            coded = true;
            chunked = value.trim_ascii().eq_ignore_ascii_case(b"chunked");
            continue;
        } else if name == header::CONNECTION {
            if lists(&value, "close") {
                keep_alive = false;
            } else if lists(&value, "keep-alive") {
                keep_alive = true;
            }
            named |= !value.trim_ascii().eq_ignore_ascii_case(b"keep-alive")
                && !value.trim_ascii().eq_ignore_ascii_case(b"close");
            if !named {
                continue;
            }
        } else if is_hop(&name) {
            continue;
        }
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| BadReply::Head)?;
        headers.append(name, value);
    }
    if named {
        strip_hop_fields(&mut headers);
    }
    let bodiless = *to == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || status.is_informational();
    let length = if bodiless {
        Length::None
    } else if coded {
        // Both lengths at once: the chunks count, and nothing after them can be trusted.
        if headers.remove(header::CONTENT_LENGTH).is_some() {
            keep_alive = false;
        }
        if !chunked {
            return Err(BadReply::Length);
        }
        Length::Chunked
    } else if let Some(exact) = exact {
        Length::Exact(exact)
    } else {
        keep_alive = false;
        Length::ToEnd
    };
    Ok(ReplyHead { status, headers, length, keep_alive })
}

fn parse_length(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value.trim_ascii()).ok()?;
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}
