//! The head of an instance's reply: what it says about the reply's length, and whether it says so
//! in a way that can be trusted.
//!
//! # Source
//! RFC 9112 §6 (message body length), RFC 9110 §15.2 (interim replies).

use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use httparse::{Header, Status};

use super::field::{Field, lists};
use super::head::{Length, strip_hop_fields};

/// Longest reply head that an instance may send, in bytes, and most fields in it.
pub(super) const MAX_REPLY_HEAD: usize = 64 << 10;
pub(super) const MAX_REPLY_FIELDS: usize = 128;

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
    #[error("it switched protocols without having been asked, or without saying to which")]
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

/// Takes the head of a reply that goes over to another protocol from the front of `input`, with
/// that protocol; none if it is another reply, or not complete yet. Interim replies before it are
/// skipped.
pub(super) fn read_switch(
    input: &mut BytesMut,
    to: &Method,
) -> Result<Option<(ReplyHead, HeaderValue)>, BadReply> {
    loop {
        let mut slots = [const { MaybeUninit::uninit() }; MAX_REPLY_FIELDS];
        let Some(raw) = parse_reply(input, &mut slots)? else { return Ok(None) };
        match raw.status {
            StatusCode::SWITCHING_PROTOCOLS => break,
            status if status.is_informational() => {}
            _ => return Ok(None),
        }
        read_one_reply(input, to)?;
    }
    let mut slots = [const { MaybeUninit::uninit() }; MAX_REPLY_FIELDS];
    let Some(raw) = parse_reply(input, &mut slots)? else { return Ok(None) };
    let mut fields = raw.fields.iter();
    let protocol = fields.find(|field| Field::of(field.name.as_bytes()) == Field::Upgrade);
    let protocol = protocol.and_then(|field| HeaderValue::from_bytes(field.value).ok());
    let protocol = protocol.ok_or(BadReply::Upgrade)?;
    let size = raw.size;
    let head = collect_fields(&raw, input, to)?;
    input.advance(size);
    Ok(Some((head, protocol)))
}

fn read_one_reply(input: &mut BytesMut, to: &Method) -> Result<Option<ReplyHead>, BadReply> {
    let mut slots = [const { MaybeUninit::uninit() }; MAX_REPLY_FIELDS];
    let Some(raw) = parse_reply(input, &mut slots)? else { return Ok(None) };
    let size = raw.size;
    let head = collect_fields(&raw, input, to)?;
    input.advance(size);
    Ok(Some(head))
}

/// A reply's head as it stands in the input.
#[derive(Debug)]
pub(super) struct RawReply<'b, 'h> {
    pub(super) status: StatusCode,
    pub(super) is_http11: bool,
    pub(super) fields: &'h [Header<'b>],
    pub(super) size: usize,
}

/// Finds a reply's head at the front of `input`; none if it is not complete yet.
pub(super) fn parse_reply<'b, 'h>(
    input: &'b [u8],
    slots: &'h mut [MaybeUninit<Header<'b>>; MAX_REPLY_FIELDS],
) -> Result<Option<RawReply<'b, 'h>>, BadReply> {
    if !b"HTTP/1.".starts_with(&input[..input.len().min(7)]) {
        return Err(BadReply::Head);
    }
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let size = match config.parse_response_with_uninit_headers(&mut parsed, input, slots) {
        Ok(Status::Complete(size)) if size > MAX_REPLY_HEAD => return Err(BadReply::TooLarge),
        Ok(Status::Complete(size)) if input[..size].ends_with(b"\r\n\r\n") => size,
        Ok(Status::Partial) if input.len() < MAX_REPLY_HEAD => return Ok(None),
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(BadReply::TooLarge);
        }
        Ok(Status::Complete(_)) | Err(_) => return Err(BadReply::Head),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(BadReply::Head)?;
    let (is_http11, fields) = (parsed.version == Some(1), &*parsed.headers);
    Ok(Some(RawReply { status, is_http11, fields, size }))
}

fn collect_fields(
    raw: &RawReply<'_, '_>,
    input: &[u8],
    to: &Method,
) -> Result<ReplyHead, BadReply> {
    // The values share memory of their own.
    let bytes = Bytes::copy_from_slice(&input[..raw.size]);
    // One more for the invocation's identifier.
    let mut headers = HeaderMap::with_capacity(raw.fields.len() + 1);
    let mut framing = Framing::new(raw.is_http11);
    for field in raw.fields {
        let kind = Field::of(field.name.as_bytes());
        let first = framing.learn(kind, field.value)?;
        let skip = match kind {
            Field::Connection => !framing.names_others,
            Field::ContentLength => !first,
            _ => kind.is_hop(),
        };
        if skip {
            continue;
        }
        let at = field.value.as_ptr().addr() - input.as_ptr().addr();
        let value = bytes.slice(at..at + field.value.len());
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BadReply::Head)?;
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| BadReply::Head)?;
        headers.append(name, value);
    }
    if framing.names_others {
        strip_hop_fields(&mut headers);
    }
    let (length, keep_alive) = framing.conclude(raw.status, to)?;
    if length == Length::Chunked {
        headers.remove(header::CONTENT_LENGTH);
    }
    Ok(ReplyHead { status: raw.status, headers, length, keep_alive })
}

/// What a reply's last `Transfer-Encoding` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    None,
    Chunked,
    Unknown,
}

/// What the fields of a reply say about where it ends.
#[derive(Debug)]
pub(super) struct Framing {
    keep_alive: bool,
    exact: Option<u64>,
    coding: Coding,
    /// A `Connection` field names other fields.
    pub(super) names_others: bool,
}

impl Framing {
    pub(super) fn new(is_http11: bool) -> Self {
        let (exact, coding) = (None, Coding::None);
        Self { keep_alive: is_http11, exact, coding, names_others: false }
    }

    /// Takes note of a field. False for one that only repeats what has been said.
    pub(super) fn learn(&mut self, field: Field, value: &[u8]) -> Result<bool, BadReply> {
        match field {
            Field::ContentLength => {
                let length = parse_length(value).ok_or(BadReply::Length)?;
                if self.exact.is_some_and(|earlier| earlier != length) {
                    return Err(BadReply::Length);
                }
                return Ok(self.exact.replace(length).is_none());
            }
            Field::TransferEncoding => {
                let chunked = value.trim_ascii().eq_ignore_ascii_case(b"chunked");
                self.coding = if chunked { Coding::Chunked } else { Coding::Unknown };
            }
            Field::Connection => {
                if lists(value, b"close") {
                    self.keep_alive = false;
                } else if lists(value, b"keep-alive") {
                    self.keep_alive = true;
                }
                let alone = value.trim_ascii();
                self.names_others |= !alone.eq_ignore_ascii_case(b"keep-alive")
                    && !alone.eq_ignore_ascii_case(b"close");
            }
            _ => {}
        }
        Ok(true)
    }

    /// The length of a reply with these fields, and whether its connection may be used again.
    pub(super) fn conclude(
        self,
        status: StatusCode,
        to: &Method,
    ) -> Result<(Length, bool), BadReply> {
        let bodiless = *to == Method::HEAD
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
            || status.is_informational();
        if bodiless {
            return Ok((Length::None, self.keep_alive));
        }
        match (self.coding, self.exact) {
            (Coding::Unknown, _) => Err(BadReply::Length),
            // Both lengths at once: the chunks count, and nothing after them can be trusted.
            (Coding::Chunked, exact) => Ok((Length::Chunked, self.keep_alive && exact.is_none())),
            (Coding::None, Some(exact)) => Ok((Length::Exact(exact), self.keep_alive)),
            (Coding::None, None) => Ok((Length::ToEnd, false)),
        }
    }
}

fn parse_length(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value.trim_ascii()).ok()?;
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}
