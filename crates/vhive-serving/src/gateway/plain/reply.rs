//! An instance's reply head, written anew for the client without a table of fields in between.
//! What is refused, and what is made of the rest, is as in [`read_reply`].
//!
//! [`read_reply`]: crate::gateway::reply_head::read_reply

use std::mem::MaybeUninit;

use bytes::{Buf as _, BytesMut};
use http::{Method, StatusCode};
use httparse::Header;
use vhive_api::InvocationId;

use super::date::Date;
use crate::gateway::field::{Field, lists, write_field, write_own};
use crate::gateway::head::Length;
use crate::gateway::reply_head::{BadReply, Framing, MAX_REPLY_FIELDS, RawReply, parse_reply};
use crate::trace::{TRACE_RESPONSE, TraceResponse};

/// What the gateway adds to a reply's head.
pub(super) struct Added<'a> {
    /// The invocation's identifier, unless the function tells one.
    pub(super) id: Option<&'a InvocationId>,
    /// The trace, likewise.
    pub(super) trace: Option<TraceResponse>,
    /// The connection ends after the reply.
    pub(super) close: bool,
    pub(super) date: &'a mut Date,
}

/// A reply whose head has been translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyLine {
    pub(super) status: StatusCode,
    pub(super) length: Length,
    /// Whether the instance's connection may be used again.
    pub(super) keep_alive: bool,
}

/// Takes a reply's head from the front of `input` and writes the client's to `out`; none, and
/// nothing written, if it is not complete yet. Interim replies are skipped.
pub(super) fn translate(
    input: &mut BytesMut,
    to: &Method,
    out: &mut Vec<u8>,
    added: &mut Added<'_>,
) -> Result<Option<ReplyLine>, BadReply> {
    loop {
        let Some((size, line)) = translate_one(input, to, out, added)? else { return Ok(None) };
        input.advance(size);
        if line.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(BadReply::Upgrade);
        }
        if !line.status.is_informational() {
            return Ok(Some(line));
        }
    }
}

fn translate_one(
    input: &[u8],
    to: &Method,
    out: &mut Vec<u8>,
    added: &mut Added<'_>,
) -> Result<Option<(usize, ReplyLine)>, BadReply> {
    let mut slots = [const { MaybeUninit::uninit() }; MAX_REPLY_FIELDS];
    let Some(raw) = parse_reply(input, &mut slots)? else { return Ok(None) };
    let RawReply { status, is_http11, fields, size } = raw;
    let mut kinds = [Field::Other; MAX_REPLY_FIELDS];
    let mut framing = Framing::new(is_http11);
    let (mut has_date, mut has_id, mut exact) = (false, false, None);
    for (field, kind) in fields.iter().zip(&mut kinds) {
        *kind = Field::of(field.name.as_bytes());
        if framing.learn(*kind, field.value)? && *kind == Field::ContentLength {
            exact = Some(field.value);
        }
        has_date |= *kind == Field::Date;
        has_id |= *kind == Field::RequestId;
    }
    if framing.names_others {
        let names = |kind: Field, kinds: &[Field; MAX_REPLY_FIELDS]| kinds.contains(&kind);
        drop_named(fields, &mut kinds);
        (has_date, has_id) = (names(Field::Date, &kinds), names(Field::RequestId, &kinds));
        exact = exact.filter(|_| names(Field::ContentLength, &kinds) || *to != Method::HEAD);
    }
    let (length, keep_alive) = framing.conclude(status, to)?;
    let line = ReplyLine { status, length, keep_alive };
    if status.is_informational() {
        return Ok(Some((size, line)));
    }

    write_status(out, status);
    for (field, kind) in fields.iter().zip(kinds) {
        match kind {
            Field::ContentLength => continue,
            // Only chunks have trailers.
            Field::Trailer if length == Length::None => continue,
            _ if kind.is_hop() => continue,
            _ => write_field(out, field.name.as_bytes(), field.value),
        }
    }
    match (length, exact) {
        (Length::Exact(0), _) => write_own(out, "content-length", b"0"),
        (Length::Exact(_), Some(exact)) => write_own(out, "content-length", exact),
        // The length that the reply to a GET would have.
        (Length::None, Some(exact)) if *to == Method::HEAD => {
            write_own(out, "content-length", exact);
        }
        (Length::Chunked | Length::ToEnd, _) => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        _ => {}
    }
    if let Some(id) = added.id.filter(|_| !has_id) {
        write_own(out, "x-request-id", id.as_str().as_bytes());
    }
    if let Some(trace) = added.trace
        && !kinds.contains(&Field::TraceResponse)
    {
        write_own(out, TRACE_RESPONSE, trace.to_string().as_bytes());
    }
    finish(out, added, has_date);
    Ok(Some((size, line)))
}

/// Fields that `Connection` names stop here.
fn drop_named(fields: &[Header<'_>], kinds: &mut [Field; MAX_REPLY_FIELDS]) {
    let of_connection = |field: &&Header<'_>| Field::of(field.name.as_bytes()) == Field::Connection;
    for (field, kind) in fields.iter().zip(kinds) {
        let name = field.name.as_bytes();
        if fields.iter().filter(of_connection).any(|list| lists(list.value, name)) {
            *kind = Field::Hop;
        }
    }
}

pub(super) fn write_status(out: &mut Vec<u8>, status: StatusCode) {
    if status == StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    let reason = status.canonical_reason().unwrap_or("<none>");
    for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Ends a head.
pub(super) fn finish(out: &mut Vec<u8>, added: &mut Added<'_>, has_date: bool) {
    if added.close {
        out.extend_from_slice(b"connection: close\r\n");
    }
    if !has_date {
        write_own(out, "date", added.date.now().as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
