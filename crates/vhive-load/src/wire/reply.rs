//! Reading HTTP/1.1 replies as they come in.
//!
//! # Source
//! RFC 9112.

use httparse::Status;

/// Longest head of a reply.
const MAX_HEAD: usize = 64 << 10;
/// Most bytes of a body that are kept, where they are kept at all.
const MAX_KEPT: usize = 1 << 20;

/// A reply that has come in whole.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) id: Option<Box<str>>,
    /// The gateway's reason, `x-vhive-error`.
    pub(super) reason: Option<Box<str>>,
    pub(super) first_byte_ns: u64,
    pub(super) body_bytes: u64,
    pub(super) body: Vec<u8>,
    /// Whether the connection may carry another request.
    pub(super) keeps: bool,
}

#[derive(Debug, PartialEq)]
enum Part {
    Head,
    Exact(u64),
    ToEnd,
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
}

/// Takes a connection's bytes in and gives replies out.
#[derive(Debug)]
pub(super) struct Reader {
    part: Part,
    buffer: Vec<u8>,
    reply: Reply,
    keep_body: bool,
    no_body: bool,
}

/// What a peer said is no HTTP.
#[derive(Debug, PartialEq)]
pub(super) struct NoHttp(pub(super) &'static str);

impl Reader {
    /// `no_body` for replies to HEAD.
    pub(super) fn new(keep_body: bool, no_body: bool) -> Self {
        let buffer = Vec::with_capacity(1024);
        Self { part: Part::Head, buffer, reply: Reply::default(), keep_body, no_body }
    }

    /// Takes bytes in; returns the reply that they complete.
    pub(super) fn feed(&mut self, data: &[u8], now_ns: u64) -> Result<Option<Reply>, NoHttp> {
        if self.reply.first_byte_ns == 0 {
            self.reply.first_byte_ns = now_ns;
        }
        self.buffer.extend_from_slice(data);
        loop {
            if self.part == Part::Head {
                if !self.head()? {
                    return Ok(None);
                }
            } else if !self.body()? {
                return Ok(None);
            }
            if self.part == Part::Head && self.reply.status != 0 {
                return Ok(Some(std::mem::take(&mut self.reply)));
            }
        }
    }

    /// The reply that a connection's end completes, if it is one.
    pub(super) fn end(&mut self) -> Option<Reply> {
        (self.part == Part::ToEnd).then(|| std::mem::take(&mut self.reply))
    }

    /// Bytes that belong to no reply.
    pub(super) fn has_rest(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether it went on; `false` when bytes are missing.
    fn head(&mut self) -> Result<bool, NoHttp> {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Response::new(&mut fields);
        let length = match parsed.parse(&self.buffer) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) if self.buffer.len() > MAX_HEAD => {
                return Err(NoHttp("the reply's head is too long"));
            }
            Ok(Status::Partial) => return Ok(false),
            Err(_) => return Err(NoHttp("the reply is not HTTP/1.1")),
        };
        let status = parsed.code.unwrap_or(0);
        let mut exact = None;
        let (mut chunked, mut keeps) = (false, parsed.version == Some(1));
        for field in parsed.headers.iter() {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            let text = || String::from_utf8_lossy(field.value).into_owned().into_boxed_str();
            if is("content-length") {
                let value = std::str::from_utf8(field.value).ok();
                let value = value.and_then(|text| text.trim().parse::<u64>().ok());
                exact = Some(value.ok_or(NoHttp("the reply's length is no number"))?);
            } else if is("transfer-encoding") {
                chunked = has_word(field.value, b"chunked");
            } else if is("connection") && has_word(field.value, b"close") {
                keeps = false;
            } else if is("x-request-id") {
                self.reply.id = Some(text());
            } else if is("x-vhive-error") {
                self.reply.reason = Some(text());
            }
        }
        self.buffer.drain(..length);
        if (100..200).contains(&status) && status != 101 {
            return Ok(true);
        }
        self.reply.status = status;
        self.reply.keeps = keeps;
        self.part = if self.no_body || matches!(status, 204 | 304) {
            Part::Head
        } else if chunked {
            Part::ChunkSize
        } else {
            match exact {
                Some(0) => Part::Head,
                Some(length) => Part::Exact(length),
                None => {
                    self.reply.keeps = false;
                    Part::ToEnd
                }
            }
        };
        Ok(true)
    }

    fn body(&mut self) -> Result<bool, NoHttp> {
        match self.part {
            Part::Head => Ok(true),
            Part::Exact(left) => {
                let left = left - self.take(left);
                self.part = if left == 0 { Part::Head } else { Part::Exact(left) };
                Ok(left == 0)
            }
            Part::ToEnd => {
                self.take(u64::MAX);
                Ok(false)
            }
            Part::Chunk(left) => {
                let left = left - self.take(left);
                self.part = if left == 0 { Part::ChunkEnd } else { Part::Chunk(left) };
                Ok(left == 0)
            }
            Part::ChunkEnd | Part::ChunkSize | Part::Trailers => self.line(),
        }
    }

    fn line(&mut self) -> Result<bool, NoHttp> {
        let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else {
            let too_long = self.buffer.len() > MAX_HEAD;
            return if too_long { Err(NoHttp("a chunk's line is too long")) } else { Ok(false) };
        };
        let line = self.buffer[..end].trim_ascii();
        self.part = match self.part {
            Part::ChunkEnd if line.is_empty() => Part::ChunkSize,
            Part::Trailers if line.is_empty() => Part::Head,
            Part::Trailers => Part::Trailers,
            Part::ChunkSize => {
                let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
                let digits = std::str::from_utf8(digits.trim_ascii()).unwrap_or_default();
                match u64::from_str_radix(digits, 16) {
                    Ok(0) => Part::Trailers,
                    Ok(size) => Part::Chunk(size),
                    Err(_) => return Err(NoHttp("a chunk's size is no number")),
                }
            }
            _ => return Err(NoHttp("a chunk does not end where it says")),
        };
        self.buffer.drain(..=end);
        Ok(true)
    }

    fn take(&mut self, most: u64) -> u64 {
        let have = self.buffer.len();
        let taken = usize::try_from(most).map_or(have, |most| most.min(have));
        if self.keep_body {
            let room = MAX_KEPT.saturating_sub(self.reply.body.len()).min(taken);
            self.reply.body.extend_from_slice(&self.buffer[..room]);
        }
        self.buffer.drain(..taken);
        self.reply.body_bytes += taken as u64;
        taken as u64
    }
}

fn has_word(value: &[u8], word: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-request-id: a-1\r\n\
        \r\n5;x=y\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nt: 1\r\n\r\n";
    const EXACT: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 3\r\nx-vhive-error: queue-full\r\n\
        connection: close\r\n\r\nabc";

    #[test]
    fn replies_of_each_length_are_read() {
        let mut reader = Reader::new(true, false);
        let reply = reader.feed(CHUNKED.as_bytes(), 5).unwrap().unwrap();
        assert_eq!((reply.status, reply.body_bytes, reply.keeps), (200, 21, true));
        assert_eq!((reply.id.as_deref(), reply.first_byte_ns), (Some("a-1"), 5));
        assert_eq!(reply.body, b"hello0123456789abcdef");
        let reply = reader.feed(EXACT.as_bytes(), 6).unwrap().unwrap();
        assert_eq!((reply.status, reply.reason.as_deref()), (503, Some("queue-full")));
        assert!(!reply.keeps && !reader.has_rest());
        let interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n";
        assert_eq!(reader.feed(interim, 7).unwrap().unwrap().status, 204);
        assert_eq!(reader.feed(b"HTTP/1.0 200 OK\r\n\r\nrest", 8), Ok(None));
        let reply = reader.end().unwrap();
        assert_eq!((reply.body_bytes, reply.keeps), (4, false));
        let mut head = Reader::new(false, true);
        let reply = head.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", 1).unwrap();
        assert_eq!(reply.unwrap().body_bytes, 0);
    }

    #[test]
    fn nonsense_is_named() {
        for bad in [
            "SSH-2.0\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
        ] {
            assert!(Reader::new(false, false).feed(bad.as_bytes(), 1).is_err(), "{bad:?}");
        }
        let long = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(MAX_HEAD));
        assert!(Reader::new(false, false).feed(long.as_bytes(), 1).is_err());
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_reply_is_cut(cuts in prop::collection::vec(1_usize..20, 0..40)) {
            for whole in [CHUNKED, EXACT] {
                let mut reader = Reader::new(true, false);
                let mut rest = whole.as_bytes();
                let mut cuts = cuts.iter().copied().chain(std::iter::repeat(1));
                let mut found = None;
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
                    rest = later;
                    if let Some(reply) = reader.feed(now, 1).unwrap() {
                        prop_assert!(rest.is_empty());
                        found = Some(reply);
                    }
                }
                let once = Reader::new(true, false).feed(whole.as_bytes(), 1).unwrap();
                prop_assert_eq!(found, once);
            }
        }

        #[test]
        fn nothing_makes_it_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = Reader::new(true, false);
            let _any_answer_is_fine = reader.feed(&data, 1);
            let mut reader = Reader::new(true, false);
            let mut bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            bytes.extend_from_slice(&data);
            let _any_answer_is_fine = reader.feed(&bytes, 1);
        }
    }
}
