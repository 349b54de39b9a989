//! The head of an instance's reply: what it says about the reply's length, and whether it says so
//! in a way that can be trusted.
//!
//! # Source
//! RFC 9112 §6 (message body length), RFC 9110 §15.2 (interim replies).

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

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
    let mut framing = Framing::new(is_http11);
    for field in fields {
        let value = bytes.slice_ref(field.value);
        let kind = Field::of(field.name.as_bytes());
        let first = framing.learn(kind, &value)?;
        let skip = match kind {
            Field::Connection => !framing.names_others,
            Field::ContentLength => !first,
            _ => kind.is_hop(),
        };
        if skip {
            continue;
        }
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BadReply::Head)?;
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| BadReply::Head)?;
        headers.append(name, value);
    }
    if framing.names_others {
        strip_hop_fields(&mut headers);
    }
    let (length, keep_alive) = framing.conclude(status, to)?;
    if length == Length::Chunked {
        headers.remove(header::CONTENT_LENGTH);
    }
    Ok(ReplyHead { status, headers, length, keep_alive })
}

/// What the fields of a reply say about where it ends.
#[derive(Debug)]
pub(super) struct Framing {
    keep_alive: bool,
    exact: Option<u64>,
    coded: bool,
    chunked: bool,
    /// A `Connection` field names other fields.
    pub(super) names_others: bool,
}

impl Framing {
    pub(super) fn new(is_http11: bool) -> Self {
        let (exact, coded, chunked) = (None, false, false);
        Self { keep_alive: is_http11, exact, coded, chunked, names_others: false }
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
                self.coded = true;
                self.chunked = value.trim_ascii().eq_ignore_ascii_case(b"chunked");
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
        match (bodiless, self.coded, self.exact) {
            (true, ..) => Ok((Length::None, self.keep_alive)),
            (false, true, _) if !self.chunked => Err(BadReply::Length),
            // Both lengths at once: the chunks count, and nothing after them can be trusted.
            (false, true, exact) => Ok((Length::Chunked, self.keep_alive && exact.is_none())),
            (false, false, Some(exact)) => Ok((Length::Exact(exact), self.keep_alive)),
            (false, false, None) => Ok((Length::ToEnd, false)),
        }
    }
}

fn parse_length(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value.trim_ascii()).ok()?;
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}
