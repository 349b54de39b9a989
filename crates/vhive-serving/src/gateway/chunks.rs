//! The chunked transfer coding, read strictly.
//!
//! # Source
//! RFC 9112 §7.1.

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::reply_head::BadReply;

/// Longest chunk size line, and longest trailer section, in bytes.
const MAX_LINE: usize = 4 << 10;
const MAX_TRAILERS: usize = 16 << 10;

/// Reads one chunked body.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// A chunk's size line comes next.
    #[default]
    Size,
    /// So much of a chunk is left.
    Data(u64),
    /// The line end after a chunk comes next.
    DataEnd,
    /// The trailer section comes next.
    Trailers,
    /// All has been read.
    Done,
}

/// What a step found.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    /// Content; never empty.
    Data(Bytes),
    /// More input is needed.
    More,
    /// The end, with trailers if there were any.
    End(Option<HeaderMap>),
}

impl Chunks {
    /// Takes the next piece from the front of `input`.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Piece, BadReply> {
        loop {
            match self.state {
                State::Size => {
                    let Some(line) = take_line(input, MAX_LINE)? else { return Ok(Piece::More) };
                    self.state = match parse_size(&line)? {
                        0 => State::Trailers,
                        size => State::Data(size),
                    };
                }
                State::Data(left) => {
                    if input.is_empty() {
                        return Ok(Piece::More);
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    let left = left - take as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    return Ok(Piece::Data(input.split_to(take).freeze()));
                }
                State::DataEnd => {
                    match (input.first(), input.get(1)) {
                        (Some(b'\r'), Some(b'\n')) => input.advance(2),
                        (None, _) | (Some(b'\r'), None) => return Ok(Piece::More),
                        _ => return Err(BadReply::Chunk),
                    }
                    self.state = State::Size;
                }
                State::Trailers => {
                    if input.starts_with(b"\r\n") {
                        input.advance(2);
                        self.state = State::Done;
                        return Ok(Piece::End(None));
                    }
                    let Some(trailers) = take_trailers(input)? else { return Ok(Piece::More) };
                    self.state = State::Done;
                    return Ok(Piece::End(Some(trailers)));
                }
                State::Done => return Ok(Piece::End(None)),
            }
        }
    }
}

/// Takes a line that ends with CR LF, without that.
fn take_line(input: &mut BytesMut, most: usize) -> Result<Option<BytesMut>, BadReply> {
    match input.iter().position(|b| *b == b'\n') {
        Some(at) if at > 0 && at <= most && input[at - 1] == b'\r' => {
            let mut line = input.split_to(at + 1);
            line.truncate(at - 1);
            Ok(Some(line))
        }
        Some(_) => Err(BadReply::Chunk),
        None if input.len() > most => Err(BadReply::Chunk),
        None => Ok(None),
    }
}

fn parse_size(line: &[u8]) -> Result<u64, BadReply> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (number, rest) = line.split_at(digits);
    let extension = rest.trim_ascii_start();
    let sound = (1..=15).contains(&digits)
        && (extension.is_empty() || extension.starts_with(b";"))
        && !rest.contains(&b'\r');
    let text = std::str::from_utf8(number).map_err(|_| BadReply::Chunk)?;
    let size = u64::from_str_radix(text, 16).map_err(|_| BadReply::Chunk)?;
    if sound { Ok(size) } else { Err(BadReply::Chunk) }
}

fn take_trailers(input: &mut BytesMut) -> Result<Option<HeaderMap>, BadReply> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let size = match httparse::parse_headers(input, &mut fields) {
        Ok(httparse::Status::Complete((size, _))) if size <= MAX_TRAILERS => size,
        Ok(httparse::Status::Partial) if input.len() <= MAX_TRAILERS => return Ok(None),
        Ok(_) | Err(_) => return Err(BadReply::Chunk),
    };
    let mut trailers = HeaderMap::new();
    for field in fields.iter().take_while(|field| !field.name.is_empty()) {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| BadReply::Chunk)?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| BadReply::Chunk)?;
        trailers.append(name, value);
    }
    input.advance(size);
    Ok(Some(trailers))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(wire: &[u8], step: usize) -> Result<(Vec<u8>, Option<HeaderMap>, usize), BadReply> {
        let mut chunks = Chunks::default();
        let mut input = BytesMut::new();
        let mut content = Vec::new();
        let mut fed = 0;
        loop {
            match chunks.next(&mut input)? {
                Piece::Data(data) => content.extend_from_slice(&data),
                Piece::End(trailers) => {
                    return Ok((content, trailers, wire.len() - fed + input.len()));
                }
                Piece::More if fed == wire.len() => return Ok((content, None, usize::MAX)),
                Piece::More => {
                    let end = (fed + step).min(wire.len());
                    input.extend_from_slice(&wire[fed..end]);
                    fed = end;
                }
            }
        }
    }

    #[test]
    fn trailers_are_kept() {
        let wire = b"5;x=y\r\nhello\r\n0\r\nGrpc-Status: 0\r\n\r\n";
        let (content, trailers, left) = read_all(wire, 3).unwrap();
        assert_eq!((content.as_slice(), left), (&b"hello"[..], 0));
        assert_eq!(trailers.unwrap()["grpc-status"], "0");
    }

    #[test]
    fn what_is_not_exactly_chunked_is_refused() {
        for wire in [
            "5\nhello\r\n",
            "\r\n",
            "-1\r\n",
            "0x5\r\nhello\r\n",
            "5 5\r\nhello\r\n",
            "FFFFFFFFFFFFFFFFF\r\n",
            "5\r\nhelloX\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\rX\nhello",
            "0\r\n: no name\r\n\r\n",
        ] {
            assert_eq!(read_all(wire.as_bytes(), 1).map(|_| ()), Err(BadReply::Chunk), "{wire:?}");
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_content(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            step in 1_usize..50,
        ) {
            let mut wire = Vec::new();
            for part in &parts {
                wire.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                wire.extend_from_slice(part);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\nNEXT");
            let (content, trailers, left) = read_all(&wire, step).unwrap();
            prop_assert_eq!(content, parts.concat());
            prop_assert!(trailers.is_none());
            prop_assert_eq!(left, 4);
        }

        #[test]
        fn any_bytes_are_an_error_or_content(wire: Vec<u8>, step in 1_usize..50) {
            let _ = read_all(&wire, step);
        }
    }
}
