//! As much of HTTP/1.1 as a simulated function needs: where a request ends, and what it wants.
//!
//! # Source
//! RFC 9112, sections 6 (message body) and 9 (connections).

/// Longest head of a request in bytes.
const LONGEST_HEAD: usize = 64 << 10;
/// Most headers of a request.
const MOST_HEADERS: usize = 128;

/// What becomes of a body that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// So many bytes to come.
    Sized(u64),
    /// A chunk's size line comes next.
    ChunkSize,
    /// So many bytes of a chunk (and its line end) to come.
    Chunk(u64),
    /// Trailers up to an empty line.
    Trailers,
}

/// A request of which the head has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The client wants to be told to go on.
    pub(super) expects_continue: bool,
    /// The connection ends after the reply.
    pub(super) closes: bool,
    /// The reply has no body.
    pub(super) head_only: bool,
}

/// What reading on has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More bytes are needed.
    Wait,
    /// A head is complete; its body may be to come.
    Head(Head),
    /// The request is complete.
    Whole,
    /// This is no request; the status says why.
    Bad(u16),
}

/// Reads one request after another off a growing buffer.
#[derive(Debug, Default)]
pub(super) struct Reader {
    body: Option<Body>,
}

impl Reader {
    /// Consumes what it can from the front of `input`.
    pub(super) fn read(&mut self, input: &mut Vec<u8>) -> Progress {
        loop {
            let Some(body) = self.body else { return self.head(input) };
            match body {
                Body::Sized(0) => {
                    self.body = None;
                    return Progress::Whole;
                }
                Body::Sized(left) => match skip(input, left) {
                    0 => self.body = Some(Body::Sized(0)),
                    left => {
                        self.body = Some(Body::Sized(left));
                        return Progress::Wait;
                    }
                },
                Body::Chunk(left) => match skip(input, left) {
                    0 => self.body = Some(Body::ChunkSize),
                    left => {
                        self.body = Some(Body::Chunk(left));
                        return Progress::Wait;
                    }
                },
                Body::ChunkSize => match httparse::parse_chunk_size(input) {
                    Ok(httparse::Status::Complete((used, size))) => {
                        input.drain(..used);
                        let Some(whole) = size.checked_add(2) else { return Progress::Bad(400) };
                        self.body =
                            Some(if size == 0 { Body::Trailers } else { Body::Chunk(whole) });
                    }
                    Ok(httparse::Status::Partial) if input.len() < LONGEST_HEAD => {
                        return Progress::Wait;
                    }
                    _ => return Progress::Bad(400),
                },
                Body::Trailers => {
                    let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else {
                        let bad = input.len() >= LONGEST_HEAD;
                        return if bad { Progress::Bad(431) } else { Progress::Wait };
                    };
                    input.drain(..end + 2);
                    if end == 0 {
                        self.body = Some(Body::Sized(0));
                    }
                }
            }
        }
    }

    fn head(&mut self, input: &mut Vec<u8>) -> Progress {
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let used = match request.parse(input) {
            Ok(httparse::Status::Complete(used)) => used,
            Ok(httparse::Status::Partial) if input.len() < LONGEST_HEAD => return Progress::Wait,
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Progress::Bad(431);
            }
            Err(_) => return Progress::Bad(400),
        };
        let mut head = Head {
            expects_continue: false,
            closes: request.version != Some(1),
            head_only: request.method == Some("HEAD"),
        };
        let mut length = None;
        let mut chunked = false;
        for header in request.headers.iter() {
            let Ok(value) = std::str::from_utf8(header.value) else { continue };
            let has =
                |word: &str| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word));
            match header.name.to_ascii_lowercase().as_str() {
                "content-length" => match value.trim().parse::<u64>() {
                    Ok(n) if length.is_none_or(|known| known == n) => length = Some(n),
                    _ => return Progress::Bad(400),
                },
                "transfer-encoding" => chunked = has("chunked"),
                "connection" => head.closes |= has("close"),
                "expect" => head.expects_continue = has("100-continue"),
                _ => {}
            }
        }
        if chunked && length.is_some() {
            return Progress::Bad(400);
        }
        self.body =
            Some(if chunked { Body::ChunkSize } else { Body::Sized(length.unwrap_or_default()) });
        input.drain(..used);
        Progress::Head(head)
    }
}

/// Drops up to `most` bytes from the front and says how many are still to come.
fn skip(input: &mut Vec<u8>, most: u64) -> u64 {
    let here = usize::try_from(most).unwrap_or(usize::MAX).min(input.len());
    input.drain(..here);
    most - here as u64
}

/// A whole reply.
pub(super) fn reply(status: u16, head: Head, body: &str) -> Vec<u8> {
    let text = match status {
        200 => "OK",
        431 => "Request Header Fields Too Large",
        _ => "Bad Request",
    };
    let close = if head.closes { "connection: close\r\n" } else { "" };
    let length = body.len();
    let body = if head.head_only { "" } else { body };
    format!(
        "HTTP/1.1 {status} {text}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n{close}\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(reader: &mut Reader, input: &mut Vec<u8>) -> Vec<Progress> {
        let mut seen = Vec::new();
        loop {
            let progress = reader.read(input);
            seen.push(progress);
            if matches!(progress, Progress::Wait | Progress::Bad(_)) {
                return seen;
            }
        }
    }

    #[test]
    fn requests_in_a_row_are_told_apart_however_they_are_cut() {
        let wire = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\
            POST /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello\
            POST /y HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: 1\r\n\r\n\
            HEAD / HTTP/1.0\r\n\r\n";
        for step in [1, 2, 7, 1000] {
            let (mut reader, mut input, mut seen) = (Reader::default(), Vec::new(), Vec::new());
            for part in wire.chunks(step) {
                input.extend_from_slice(part);
                seen.extend(run(&mut reader, &mut input));
            }
            let whole = seen.iter().filter(|p| **p == Progress::Whole).count();
            assert_eq!((whole, input.len()), (4, 0), "cut into {step}");
            let last = Head { expects_continue: false, closes: true, head_only: true };
            assert!(seen.contains(&Progress::Head(last)));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let bad: [(&[u8], u16); 5] = [
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            (b"P / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            (b"P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", 400),
        ];
        for (wire, status) in bad {
            let seen = run(&mut Reader::default(), &mut wire.to_vec());
            assert_eq!(seen.last(), Some(&Progress::Bad(status)), "{wire:?}");
        }
        let mut endless = b"GET / HTTP/1.1\r\nX: ".to_vec();
        endless.resize(LONGEST_HEAD, b'x');
        assert_eq!(Reader::default().read(&mut endless), Progress::Bad(431));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes: Vec<u8>) {
            run(&mut Reader::default(), &mut bytes.clone());
        }
    }
}
