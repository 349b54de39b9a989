//! A small HTTP/1.1 client over one kept-open unix stream socket: what Firecracker's API needs.
//!
//! One request at a time; sending and receiving are two calls, because Firecracker asks for pages
//! of guest memory *while* it carries out a load. The other side is believed nothing: heads and
//! bodies are bounded, every wait has a deadline, and after any error the connection is not used
//! again.
//!
//! # Source
//! RFC 9112; Firecracker's `micro_http`, which neither sends chunked bodies nor closes by itself.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::deadline::Deadline;

/// Longest head of an answer, in bytes.
const MOST_HEAD: usize = 8 << 10;

/// Most header lines of an answer.
const MOST_HEADERS: usize = 32;

/// Longest body of an answer, in bytes: a whole machine's description takes a tenth.
const MOST_BODY: usize = 1 << 20;

/// Interim answers (1xx) that are passed over before the real one.
const MOST_INTERIM: usize = 4;

/// An open connection.
#[derive(Debug)]
pub(super) struct Client {
    stream: UnixStream,
    /// Received and not used yet.
    pending: Vec<u8>,
    /// After an error it is not known what comes next.
    broken: bool,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// The connection failed or did not answer in time.
    #[error("the connection failed")]
    Connection(#[from] io::Error),
    /// The connection ended within or before an answer.
    #[error("the connection ended before the answer was complete")]
    Ended,
    /// An earlier error left the connection in an unknown state.
    #[error("the connection has failed before")]
    Broken,
    /// It is no HTTP.
    #[error("the answer is no HTTP")]
    Head(#[from] httparse::Error),
    /// It is longer than any sensible answer.
    #[error("the {0} of the answer is too long")]
    TooLong(&'static str),
    /// Its body has no stated length.
    #[error("the answer's length is stated in a way that is not understood")]
    Length,
}

impl Client {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, pending: Vec::new(), broken: false }
    }

    /// Sends a request; a body is JSON.
    ///
    /// # Errors
    /// [`HttpError`]; the connection is of no more use then.
    pub(super) fn send(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        deadline: Deadline,
    ) -> Result<(), HttpError> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(HttpError::Broken);
        }
        let mut message = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
        if let Some(body) = body {
            let length = body.len();
            let head = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
            message.extend_from_slice(head.as_bytes());
        }
        message.extend_from_slice(b"\r\n");
        message.extend_from_slice(body.unwrap_or_default());
        self.stream.set_write_timeout(Some(left(deadline)?))?;
        self.stream.write_all(&message)?;
        self.broken = false;
        Ok(())
    }

    /// Receives the answer to what was sent last.
    ///
    /// # Errors
    /// [`HttpError`]; the connection is of no more use then.
    pub(super) fn receive(&mut self, deadline: Deadline) -> Result<Answer, HttpError> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(HttpError::Broken);
        }
        for _ in 0..=MOST_INTERIM {
            let answer = self.receive_one(deadline)?;
            if answer.status >= 200 {
                self.broken = false;
                return Ok(answer);
            }
        }
        Err(HttpError::TooLong("preface"))
    }

    fn receive_one(&mut self, deadline: Deadline) -> Result<Answer, HttpError> {
        let (head, status, length) = loop {
            if let Some(head) = parse(&self.pending)? {
                break head;
            }
            if self.pending.len() >= MOST_HEAD {
                return Err(HttpError::TooLong("head"));
            }
            self.fill(MOST_HEAD, deadline)?;
        };
        if length > MOST_BODY {
            return Err(HttpError::TooLong("body"));
        }
        let whole = head + length;
        while self.pending.len() < whole {
            self.fill(whole, deadline)?;
        }
        let body = self.pending[head..whole].to_vec();
        self.pending.drain(..whole);
        Ok(Answer { status, body })
    }

    /// Reads once, until there are at most so many bytes.
    fn fill(&mut self, most: usize, deadline: Deadline) -> Result<(), HttpError> {
        let mut piece = [0; 4096];
        let room = most.saturating_sub(self.pending.len()).min(piece.len());
        self.stream.set_read_timeout(Some(left(deadline)?))?;
        match self.stream.read(&mut piece[..room]) {
            Ok(0) => Err(HttpError::Ended),
            Ok(got) => {
                self.pending.extend_from_slice(&piece[..got]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Readable when an answer, or the connection's end, is there.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Length of the head, status, length of the body; none until the head is complete.
fn parse(bytes: &[u8]) -> Result<Option<(usize, u16, usize)>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = answer.parse(bytes)? else { return Ok(None) };
    let status = answer.code.ok_or(HttpError::Length)?;
    let mut length = None;
    for header in &*answer.headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(HttpError::Length);
        }
        if !header.name.eq_ignore_ascii_case("content-length") {
            continue;
        }
        let text = std::str::from_utf8(header.value).map_err(|_| HttpError::Length)?.trim();
        // `parse` alone would take a sign.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let stated = text.parse().ok().filter(|_| digits).ok_or(HttpError::Length)?;
        if length.is_some_and(|before: usize| before != stated) {
            return Err(HttpError::Length);
        }
        length = Some(stated);
    }
    let none = status == 204 || status < 200;
    match length {
        Some(length) if !none => Ok(Some((head, status, length))),
        Some(0) => Ok(Some((head, status, 0))),
        None if none => Ok(Some((head, status, 0))),
        // What ends with the connection would never end here.
        _ => Err(HttpError::Length),
    }
}

/// The time left, which a socket takes only if there is some.
fn left(deadline: Deadline) -> io::Result<std::time::Duration> {
    let left = deadline.left();
    if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    /// A client, and somebody who has already said all this, whatever is asked.
    fn told(bytes: &[u8]) -> (Client, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        theirs.write_all(bytes).expect("written");
        (Client::new(ours), theirs)
    }

    /// What a server that says this and hangs up is taken for.
    fn heard(bytes: &[u8]) -> Result<Answer, HttpError> {
        let (mut client, theirs) = told(bytes);
        theirs.shutdown(std::net::Shutdown::Write).expect("shut down");
        client.receive(soon())
    }

    #[test]
    fn answers_follow_each_other_on_one_connection() {
        let (mut client, mut theirs) = told(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 \r\nServer: Firecracker API\r\n\
              Connection: keep-alive\r\n\r\nHTTP/1.1 400 \r\nContent-Length: 2\r\n\r\n{}",
        );
        client.send("PUT", "/entropy", Some(b"{}"), soon()).expect("sent");
        let none = Answer { status: 204, body: Vec::new() };
        assert_eq!(client.receive(soon()).expect("heard"), none);
        let answer = client.receive(soon()).expect("heard");
        assert_eq!(answer, Answer { status: 400, body: b"{}".to_vec() });
        let mut sent = vec![0; 1000];
        let got = theirs.read(&mut sent).expect("read");
        let text = String::from_utf8_lossy(&sent[..got]).into_owned();
        assert!(text.starts_with("PUT /entropy HTTP/1.1\r\nHost: "), "{text}");
        assert!(text.ends_with("Content-Length: 2\r\n\r\n{}"), "{text}");
    }

    #[test]
    fn hostile_answers_are_errors_by_name() {
        let long = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &[b'a'; 2 * MOST_HEAD]].concat();
        let interim = b"HTTP/1.1 100 \r\n\r\n".repeat(MOST_INTERIM + 1);
        let cases: &[(&[u8], &str)] = &[
            (b"", "Ended"),
            (b"HTTP/1.1 204 \r\n", "Ended"),
            (b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nab", "Ended"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "Head(Version)"),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "Head("),
            (&long, "TooLong(\"head\")"),
            (&interim, "TooLong(\"preface\")"),
            (b"HTTP/1.1 200 \r\nContent-Length: 99999999\r\n\r\n", "TooLong(\"body\")"),
            (b"HTTP/1.1 200 \r\nContent-Length: 99999999999999999999999\r\n\r\n", "Length"),
            (b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n", "Length"),
            (b"HTTP/1.1 200 \r\nContent-Length: +1\r\n\r\na", "Length"),
            (b"HTTP/1.1 200 \r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "Length"),
            (b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Length"),
            (b"HTTP/1.1 200 \r\n\r\nuntil I hang up", "Length"),
            (b"HTTP/1.1 204 \r\nContent-Length: 5\r\n\r\nhello", "Length"),
        ];
        for (bytes, wanted) in cases {
            let error = format!("{:?}", heard(bytes).expect_err(wanted));
            assert!(error.contains(wanted), "{error} instead of {wanted}");
        }
    }

    #[test]
    fn silence_ends_at_the_deadline_and_breaks_the_connection() {
        let (mut client, mut theirs) = told(b"HTTP/1.1 20");
        let begin = Instant::now();
        let error = client.receive(Deadline::after(Duration::from_millis(30)));
        assert!(matches!(error, Err(HttpError::Connection(_))), "{error:?}");
        assert!(begin.elapsed() < Duration::from_secs(5));
        // What comes too late is nobody's answer.
        theirs.write_all(b"4 \r\n\r\n").expect("written");
        assert!(matches!(client.receive(soon()), Err(HttpError::Broken)));
        assert!(matches!(client.send("GET", "/", None, soon()), Err(HttpError::Broken)));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(256))]
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, tail: Vec<u8>) {
            let _ = heard(&bytes);
            let head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n";
            let _ = heard(&[head.as_slice(), &bytes, b"\r\n\r\n", &tail].concat());
        }
    }
}
