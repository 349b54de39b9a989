//! The body of a plain request on its way to an instance.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use crate::gateway::upload::UploadError;

/// Bytes asked for by one read.
const READ: usize = 64 << 10;

/// So many bytes: first those that came with the head, then those that still come.
#[derive(Debug)]
pub(super) struct Body<'a> {
    pub(super) io: &'a mut TcpStream,
    pub(super) input: &'a mut BytesMut,
    pub(super) left: &'a mut u64,
}

impl http_body::Body for Body<'_> {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Self { io, input, left } = self.get_mut();
        if **left == 0 {
            return Poll::Ready(None);
        }
        if input.is_empty() {
            input.reserve(usize::try_from(**left).unwrap_or(READ).min(READ));
            match ready!(poll_read_buf(Pin::new(&mut **io), cx, *input)) {
                Ok(size) if size > 0 => {}
                _ => return Poll::Ready(Some(Err(UploadError::ClientGone))),
            }
        }
        let take = usize::try_from(**left).unwrap_or(usize::MAX).min(input.len());
        **left -= take as u64;
        let data = input.split_to(take).freeze();
        if input.is_empty() {
            // The next head gets memory of its own, of the ordinary size.
            **input = BytesMut::new();
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}
