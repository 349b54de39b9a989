//! What is about to be written to one side.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::AsyncWrite as _;
use tokio::net::TcpStream;

/// Bytes in the order in which they leave, in one write if the kernel takes them.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// A message's head, the beginning of a chunk, or short content.
    pub(super) first: Vec<u8>,
    /// How much of it has left.
    at: usize,
    pub(super) data: Bytes,
    pub(super) tail: &'static [u8],
    /// A byte has left since the last [`Outgoing::clear`].
    pub(super) begun: bool,
}

impl Outgoing {
    pub(super) fn clear(&mut self) {
        self.first.clear();
        self.at = 0;
        self.data = Bytes::new();
        self.tail = b"";
        self.begun = false;
    }

    /// Whether there is nothing after `first`, so that more may be appended to it.
    pub(super) fn is_open(&self) -> bool {
        self.data.is_empty() && self.tail.is_empty()
    }

    /// Writes all that there is.
    pub(super) fn poll_write(
        &mut self,
        io: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let first = &self.first[self.at..];
            let io = Pin::new(&mut *io);
            let written = if self.data.is_empty() && self.tail.is_empty() {
                if first.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                ready!(io.poll_write(cx, first))?
            } else {
                let parts =
                    [IoSlice::new(first), IoSlice::new(&self.data), IoSlice::new(self.tail)];
                ready!(io.poll_write_vectored(cx, &parts))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.begun = true;
            let of_first = written.min(first.len());
            if of_first == first.len() {
                self.first.clear();
                self.at = 0;
            } else {
                self.at += of_first;
            }
            let of_data = (written - of_first).min(self.data.len());
            self.data.advance(of_data);
            self.tail = &self.tail[written - of_first - of_data..];
        }
    }
}
