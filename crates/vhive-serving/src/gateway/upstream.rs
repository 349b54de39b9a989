//! One HTTP/1.1 exchange with an instance, driven by the task of the client's connection: no task
//! and no channel of its own, so that a request costs two wake-ups in all.
//!
//! ```text
//!   open or idle ──► begin ──► poll_head (request goes out) ──► poll_piece (reply comes in) ──► idle
//! ```
//!
//! # Source
//! RFC 9112; why this half is not hyper's is in `docs/decisions/0012-gateway.md`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::HeaderMap;
use http_body::Body;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::chunks::{Chunks, Piece};
use super::head::Length;
use super::outgoing::Outgoing;
use super::reply_head::{BadReply, MAX_REPLY_HEAD};
use super::upload::UploadError;

/// Bytes asked for in the first read, and in later ones when replies turn out to be long.
const FIRST_READ: usize = 8 << 10;
const LONG_READ: usize = 64 << 10;

/// A connection to an instance, with the one exchange that it carries at a time. Kept in a box, so
/// that the way of a request moves a pointer only.
#[derive(Debug)]
pub(super) struct Connection {
    io: TcpStream,
    input: BytesMut,
    output: Outgoing,
    upload: Upload,
    decode: Decode,
    /// It was there before the request.
    used: bool,
    keep_alive: bool,
    /// Bytes asked for by the next read of a reply's body.
    at_once: usize,
    /// An interim reply has come that nobody has been told of.
    interim: bool,
}

#[derive(Debug)]
enum Upload {
    /// More is asked of the body, and sent as it is or in chunks.
    Body {
        chunked: bool,
    },
    /// All is in the buffers.
    Last,
    Done,
    /// The instance takes no more; it may still reply.
    Refused,
}

#[derive(Debug)]
enum Decode {
    Exact(u64),
    Chunked(Chunks),
    ToEnd,
    Done,
}

/// Connects to an instance.
///
/// # Errors
/// As `connect`.
pub(super) async fn connect(endpoint: SocketAddr) -> io::Result<TcpStream> {
    let io = TcpStream::connect(endpoint).await?;
    io.set_nodelay(true)?;
    Ok(io)
}

/// Goes on with the connection that has shown that an instance listens; none if the instance has closed it
/// since, or said something that nobody asked for.
pub(super) fn adopt(stream: std::net::TcpStream) -> Option<TcpStream> {
    stream.set_nonblocking(true).ok()?;
    stream.set_nodelay(true).ok()?;
    let said = stream.peek(&mut [0]);
    let is_quiet = matches!(&said, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    if is_quiet { TcpStream::from_std(stream).ok() } else { None }
}

impl Connection {
    /// For exchanges over a stream on which nothing has been said.
    pub(super) fn over(io: TcpStream) -> Box<Self> {
        Box::new(Self {
            io,
            input: BytesMut::new(),
            output: Outgoing::default(),
            upload: Upload::Done,
            decode: Decode::Done,
            used: false,
            keep_alive: true,
            at_once: FIRST_READ,
            interim: false,
        })
    }

    /// It is older than the request: if nothing of that leaves, another connection may do.
    pub(super) fn reused(mut self: Box<Self>) -> Box<Self> {
        self.used = true;
        self
    }

    /// Whether the other side has closed it, or said something that nobody asked for. Costs a
    /// system call only if something has arrived.
    pub(super) fn is_stale(&self) -> bool {
        let mut byte = [0];
        let read = self.io.try_read(&mut byte);
        !matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether it was there before the present request.
    pub(super) fn is_used(&self) -> bool {
        self.used
    }

    /// Prepares to send a request; `write_head` appends its head.
    pub(super) fn begin(&mut self, length: Length, write_head: impl FnOnce(&mut Vec<u8>)) {
        self.output.clear();
        write_head(&mut self.output.first);
        self.upload = match length {
            Length::None | Length::Exact(0) => Upload::Last,
            Length::Exact(_) | Length::ToEnd => Upload::Body { chunked: false },
            Length::Chunked => Upload::Body { chunked: true },
        };
    }

    /// Goes on with another connection, when nothing had been sent.
    pub(super) fn switch_to(&mut self, fresh: Self) {
        self.io = fresh.io;
        self.input.clear();
        self.used = false;
    }

    /// Whether an interim reply has come since this was asked last.
    pub(super) fn take_interim(&mut self) -> bool {
        std::mem::take(&mut self.interim)
    }

    /// The stream itself, and what has been read of it beyond the reply's head.
    pub(super) fn into_parts(self) -> (TcpStream, BytesMut) {
        let Self { io, input, .. } = self;
        (io, input)
    }

    /// Turns to reading the reply's body.
    pub(super) fn expect_body(&mut self, length: Length, keep_alive: bool) {
        self.keep_alive = keep_alive;
        self.decode = match length {
            Length::None | Length::Exact(0) => Decode::Done,
            Length::Exact(left) => Decode::Exact(left),
            Length::Chunked => Decode::Chunked(Chunks::default()),
            Length::ToEnd => Decode::ToEnd,
        };
    }

    /// Whether the reply has been read to its end.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.decode, Decode::Done)
    }

    /// The length that is still to come, if known.
    pub(super) fn left(&self) -> Option<u64> {
        match self.decode {
            Decode::Done => Some(0),
            Decode::Exact(left) => Some(left),
            Decode::Chunked(_) | Decode::ToEnd => None,
        }
    }

    /// Moves the rest of the reply to `out` if it is there already and no longer than this, and
    /// says how long it was.
    pub(super) fn take_short(&mut self, most: usize, out: &mut Vec<u8>) -> Option<usize> {
        let Decode::Exact(left) = self.decode else { return None };
        let left = usize::try_from(left).ok().filter(|left| *left <= most)?;
        if !matches!(self.upload, Upload::Done) {
            return None;
        }
        out.extend_from_slice(self.input.get(..left)?);
        self.input.advance(left);
        self.decode = Decode::Done;
        Some(left)
    }

    /// Ends the exchange; whether another request may follow.
    pub(super) fn finish(&mut self) -> bool {
        let complete = self.is_done() && matches!(self.upload, Upload::Done);
        self.used = true;
        self.keep_alive && complete && self.input.is_empty()
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, at_once: usize) -> Poll<io::Result<usize>> {
        if self.input.capacity() - self.input.len() < at_once / 2 {
            self.input.reserve(at_once);
        }
        poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input)
    }
}

/// Why an exchange ended before the reply's head.
#[derive(Debug)]
pub(super) enum ExchangeError {
    /// The connection was dead; not one byte of the request has left.
    NothingSent(io::Error),
    /// The connection ended or failed.
    Broke(io::Error),
    /// What came is no reply.
    Bad(BadReply),
    /// The client's body ended early or is too long.
    Upload(UploadError),
}

// === sending ===

impl Connection {
    /// Sends what can be sent and looks for the reply's head, which `read` takes from the front of
    /// what has come.
    pub(super) fn poll_head<B, T>(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut B,
        mut read: impl FnMut(&mut BytesMut) -> Result<Option<T>, BadReply>,
    ) -> Poll<Result<T, ExchangeError>>
    where
        B: Body<Data = Bytes, Error = UploadError> + Unpin,
    {
        match self.poll_upload(cx, body) {
            Poll::Ready(Ok(())) | Poll::Pending => {}
            Poll::Ready(Err(SendError::Upload(error))) => {
                return Poll::Ready(Err(ExchangeError::Upload(error)));
            }
            Poll::Ready(Err(SendError::Io(error))) if !self.output.begun => {
                return Poll::Ready(Err(ExchangeError::NothingSent(error)));
            }
            // It may have replied before it closed.
            Poll::Ready(Err(SendError::Io(_))) => self.upload = Upload::Refused,
        }
        if !self.output.begun {
            return Poll::Pending;
        }
        loop {
            let had = self.input.len();
            match read(&mut self.input) {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                // What it takes without a reply are interim ones.
                Ok(None) => self.interim |= self.input.len() < had,
                Err(bad) => return Poll::Ready(Err(ExchangeError::Bad(bad))),
            }
            if self.input.len() >= MAX_REPLY_HEAD {
                return Poll::Ready(Err(ExchangeError::Bad(BadReply::TooLarge)));
            }
            match ready!(self.poll_fill(cx, FIRST_READ)) {
                Ok(0) => {
                    let end = io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "it closed the connection without a reply",
                    );
                    return Poll::Ready(Err(ExchangeError::Broke(end)));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(ExchangeError::Broke(error))),
            }
        }
    }

    fn poll_upload<B>(&mut self, cx: &mut Context<'_>, body: &mut B) -> Poll<Result<(), SendError>>
    where
        B: Body<Data = Bytes, Error = UploadError> + Unpin,
    {
        loop {
            if matches!(self.upload, Upload::Done | Upload::Refused) {
                return Poll::Ready(Ok(()));
            }
            // Content that is there already leaves together with the head.
            if self.output.is_open() {
                match self.poll_more(cx, body) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(SendError::Upload(error))),
                    Poll::Pending => {
                        ready!(self.poll_write(cx)).map_err(SendError::Io)?;
                        return Poll::Pending;
                    }
                }
            }
            ready!(self.poll_write(cx)).map_err(SendError::Io)?;
            if matches!(self.upload, Upload::Last) {
                self.upload = Upload::Done;
            }
        }
    }

    /// Takes the next piece of the client's body into the buffers.
    fn poll_more<B>(&mut self, cx: &mut Context<'_>, body: &mut B) -> Poll<Result<(), UploadError>>
    where
        B: Body<Data = Bytes, Error = UploadError> + Unpin,
    {
        let Upload::Body { chunked } = self.upload else {
            return Poll::Ready(Ok(()));
        };
        match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else {
                    // Trailers of a request: HTTP/1.1 functions do not get them.
                    return Poll::Ready(Ok(()));
                };
                if chunked && !data.is_empty() {
                    let size = format!("{:x}\r\n", data.len());
                    self.output.first.extend_from_slice(size.as_bytes());
                    self.output.tail = b"\r\n";
                }
                self.output.data = data;
            }
            Some(Err(error)) => return Poll::Ready(Err(error)),
            None => {
                self.upload = Upload::Last;
                if chunked {
                    self.output.tail = b"0\r\n\r\n";
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.poll_write(&mut self.io, cx)
    }
}

enum SendError {
    Io(io::Error),
    Upload(UploadError),
}

/// A piece of a reply's body.
pub(super) enum ReplyPiece {
    Data(Bytes),
    End(Option<HeaderMap>),
}

/// Why a reply broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrokenReply {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Bad(#[from] BadReply),
    #[error("{0}")]
    Upload(UploadError),
}

// === receiving ===

impl Connection {
    /// The next piece. The rest of the request goes on being sent meanwhile.
    pub(super) fn poll_piece<B>(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut B,
    ) -> Poll<Result<ReplyPiece, BrokenReply>>
    where
        B: Body<Data = Bytes, Error = UploadError> + Unpin,
    {
        match self.poll_upload(cx, body) {
            Poll::Ready(Ok(())) | Poll::Pending => {}
            Poll::Ready(Err(SendError::Upload(error))) => {
                return Poll::Ready(Err(BrokenReply::Upload(error)));
            }
            Poll::Ready(Err(SendError::Io(_))) => self.upload = Upload::Refused,
        }
        loop {
            if let Some(piece) = self.next_piece()? {
                return Poll::Ready(Ok(piece));
            }
            let got = ready!(self.poll_fill(cx, self.at_once))?;
            if got == 0 {
                if matches!(self.decode, Decode::ToEnd) {
                    self.decode = Decode::Done;
                    continue;
                }
                let reason = "it closed the connection in the middle of its reply";
                let end = io::Error::new(io::ErrorKind::UnexpectedEof, reason);
                return Poll::Ready(Err(end.into()));
            }
            if got >= FIRST_READ {
                self.at_once = LONG_READ;
            }
        }
    }

    fn next_piece(&mut self) -> Result<Option<ReplyPiece>, BadReply> {
        let input = &mut self.input;
        match &mut self.decode {
            Decode::Done => Ok(Some(ReplyPiece::End(None))),
            _ if input.is_empty() => Ok(None),
            Decode::ToEnd => Ok(Some(ReplyPiece::Data(input.split().freeze()))),
            Decode::Exact(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                let data = input.split_to(take).freeze();
                *left -= take as u64;
                if *left == 0 {
                    self.decode = Decode::Done;
                }
                Ok(Some(ReplyPiece::Data(data)))
            }
            Decode::Chunked(chunks) => match chunks.next(input)? {
                Piece::Data(data) => Ok(Some(ReplyPiece::Data(data))),
                Piece::More => Ok(None),
                Piece::End(trailers) => {
                    self.decode = Decode::Done;
                    Ok(Some(ReplyPiece::End(trailers)))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use super::adopt;

    #[tokio::test]
    async fn a_connection_that_was_closed_or_spoken_on_is_not_gone_on_with() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let pair = || {
            let stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("made");
            (stream, listener.accept().expect("accepted").0)
        };
        let (quiet, _other) = pair();
        assert!(adopt(quiet).is_some());
        let (spoken_on, mut other) = pair();
        other.write_all(b"220 ready\r\n").expect("written");
        // Loopback delivers before it returns.
        assert!(adopt(spoken_on).is_none());
        let (closed, other) = pair();
        drop(other);
        assert!(adopt(closed).is_none());
    }
}
