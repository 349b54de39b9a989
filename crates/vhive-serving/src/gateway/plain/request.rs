//! Which requests are plain: nothing about them can be read in two ways.
//!
//! # Source
//! RFC 9112 §2 to §6; what hyper makes of the same bytes is the yardstick, see
//! `tests/door/ways.rs`.

use std::mem::MaybeUninit;

use http::Method;
use httparse::{Header, ParserConfig, Status};

use crate::gateway::field::Field;
use crate::gateway::head::Length;
use crate::gateway::probe;

/// Most fields of a plain request.
pub(super) const MOST_FIELDS: usize = 64;

/// Room for the fields of one.
pub(super) type Slots<'b> = [MaybeUninit<Header<'b>>; MOST_FIELDS];

/// The head of a plain request.
#[derive(Debug)]
pub(super) struct PlainRequest<'b, 'h> {
    pub(super) method: Method,
    /// In origin form.
    pub(super) target: &'b str,
    pub(super) host: &'b str,
    /// `Content-Length`, if it says one.
    pub(super) length: Option<u64>,
    /// The connection ends after the reply.
    pub(super) close: bool,
    /// It brings an `X-Request-Id`.
    pub(super) has_id: bool,
    fields: &'h [Header<'b>],
    kinds: [Field; MOST_FIELDS],
    /// Bytes up to the body.
    pub(super) size: usize,
}

impl PlainRequest<'_, '_> {
    pub(super) fn fields(&self) -> impl Iterator<Item = (Field, &str, &[u8])> {
        let fields = self.kinds.iter().zip(self.fields);
        fields.map(|(kind, field)| (*kind, field.name, field.value))
    }

    /// What an instance is told about the body's length.
    pub(super) fn told_length(&self) -> Length {
        match self.length {
            Some(length) => Length::Exact(length),
            None if matches!(self.method, Method::POST | Method::PUT | Method::PATCH) => {
                Length::Exact(0)
            }
            None => Length::None,
        }
    }
}

/// What stands at the front of some input.
#[derive(Debug)]
pub(super) enum Parsed<'b, 'h> {
    Plain(PlainRequest<'b, 'h>),
    /// The beginning of what may become a plain request.
    Partial,
    /// Something else.
    Other,
}

/// Looks at the front of what a client has sent.
pub(super) fn parse<'b, 'h>(input: &'b [u8], slots: &'h mut Slots<'b>) -> Parsed<'b, 'h> {
    // No empty lines before it.
    if input.first().is_some_and(|first| !first.is_ascii_uppercase()) {
        return Parsed::Other;
    }
    let mut head = httparse::Request::new(&mut []);
    let config = ParserConfig::default();
    match config.parse_request_with_uninit_headers(&mut head, input, slots) {
        Ok(Status::Complete(size)) => {
            let (method, target, version) = (head.method, head.path, head.version);
            let (Some(method), Some(target), Some(1)) = (method, target, version) else {
                return Parsed::Other;
            };
            let fields = head.headers;
            check(&input[..size], method, target, fields).map_or(Parsed::Other, Parsed::Plain)
        }
        Ok(Status::Partial) => Parsed::Partial,
        Err(_) => Parsed::Other,
    }
}

fn check<'b, 'h>(
    head: &'b [u8],
    method: &str,
    target: &'b str,
    fields: &'h [Header<'b>],
) -> Option<PlainRequest<'b, 'h>> {
    let method = match method {
        "GET" => Method::GET,
        "POST" => Method::POST,
        "HEAD" => Method::HEAD,
        "PUT" => Method::PUT,
        "DELETE" => Method::DELETE,
        "PATCH" => Method::PATCH,
        "OPTIONS" => Method::OPTIONS,
        _ => return None,
    };
    let plain_target = target.starts_with('/') && target.bytes().all(|b| TARGET[usize::from(b)]);
    if !plain_target || !ends_lines_with_crlf(head) {
        return None;
    }
    let mut kinds = [Field::Other; MOST_FIELDS];
    let (mut host, mut length, mut close, mut has_id) = (None, None, false, false);
    for (field, kind) in fields.iter().zip(&mut kinds) {
        *kind = Field::of(field.name.as_bytes());
        match *kind {
            Field::Host if host.is_none() => host = Some(plain_host(field.value)?),
            Field::ContentLength if length.is_none() => length = Some(plain_length(field.value)?),
            Field::Connection if field.value.eq_ignore_ascii_case(b"keep-alive") => {}
            Field::Connection if field.value.eq_ignore_ascii_case(b"close") => close = true,
            Field::RequestId => has_id = true,
            Field::Host
            | Field::ContentLength
            | Field::Connection
            | Field::TransferEncoding
            | Field::Te
            | Field::Upgrade
            | Field::Expect
            | Field::Prefer
            | Field::Probe => return None,
            Field::UserAgent if probe::is_kubelet(field.value) => return None,
            // The connection's option is no field's name, but might be taken for one.
            Field::Other if field.name.eq_ignore_ascii_case("close") => return None,
            _ => {}
        }
    }
    let (host, size) = (host?, head.len());
    Some(PlainRequest { method, target, host, length, close, has_id, fields, kinds, size })
}

/// Bytes that a target may have so that it is forwarded as it is: those of RFC 3986 without `#`.
const TARGET: [bool; 256] = {
    let mut table = [false; 256];
    let plain =
        b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()*+,;=:@/?";
    let mut at = 0;
    while at < plain.len() {
        table[plain[at] as usize] = true;
        at += 1;
    }
    table
};

fn plain_host(value: &[u8]) -> Option<&str> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
    let sound = !value.is_empty() && value.iter().all(plain);
    if sound { std::str::from_utf8(value).ok() } else { None }
}

fn plain_length(value: &[u8]) -> Option<u64> {
    let sound = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    if sound { std::str::from_utf8(value).ok()?.parse().ok() } else { None }
}

fn ends_lines_with_crlf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head[at - 1] == b'\r')
}

/// Whether a head may have become complete by what has come behind `known` bytes of it.
pub(super) fn may_be_complete(input: &[u8], known: usize) -> bool {
    let new = input.get(known.saturating_sub(3)..).unwrap_or_default();
    memchr::memchr_iter(b'\n', new).any(|at| {
        let next = &new[at + 1..];
        next.starts_with(b"\n") || next.starts_with(b"\r\n")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_plain(wire: &[u8]) -> bool {
        let mut slots = [const { MaybeUninit::uninit() }; MOST_FIELDS];
        matches!(parse(wire, &mut slots), Parsed::Plain(_))
    }

    #[test]
    fn ordinary_requests_are_plain() {
        for wire in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a%20b/c?d=e&f=(g) HTTP/1.1\r\nhost: a.b:80\r\nAccept:*/*\r\n\r\n",
            "POST / HTTP/1.1\r\nHost:a\r\nContent-Length: 5 \r\n\r\nhello",
            "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n",
            "DELETE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        ] {
            assert!(is_plain(wire.as_bytes()), "{wire:?}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_plain() {
        for wire in [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999999\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\tc\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n A: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA: b\0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA\0: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET /\r\nHost: a\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
            "get / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, te\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nClose: x\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ] {
            assert!(!is_plain(wire.as_bytes()), "{wire:?}");
        }
    }

    #[test]
    fn too_many_fields_are_not_plain() {
        let with = |n: usize| {
            let fields: String = (0..n).map(|n| format!("X-{n}: y\r\n")).collect();
            format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
        };
        assert!(is_plain(with(MOST_FIELDS - 1).as_bytes()));
        assert!(!is_plain(with(MOST_FIELDS).as_bytes()));
    }

    #[test]
    fn the_end_is_seen_across_any_cut() {
        for end in ["a\r\n\r\n", "a\n\n", "a\r\n\n", "a\n\r\n"] {
            for known in 0..end.len() {
                assert!(may_be_complete(end.as_bytes(), known), "{end:?} after {known}");
            }
        }
        assert!(!may_be_complete(b"a\r\nb\r\n", 0));
        assert!(!may_be_complete(b"", 7));
    }

    proptest! {
        #[test]
        fn any_bytes_are_one_of_the_three(wire: Vec<u8>) {
            let mut slots = [const { MaybeUninit::uninit() }; MOST_FIELDS];
            let _ = parse(&wire, &mut slots);
            let _ = may_be_complete(&wire, wire.len() / 2);
        }

        #[test]
        fn a_prefix_of_a_plain_request_is_partial(cut in 1_usize..60) {
            let wire = b"POST /x?y HTTP/1.1\r\nHost: a.b\r\nContent-Length: 3\r\nA: b\r\n\r\n";
            let mut slots = [const { MaybeUninit::uninit() }; MOST_FIELDS];
            prop_assume!(cut < wire.len());
            prop_assert!(matches!(parse(&wire[..cut], &mut slots), Parsed::Partial));
        }
    }
}
