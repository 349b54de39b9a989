//! The body of a client's request on its way to an instance: counted and bounded.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// Why a request's body cannot be forwarded to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UploadError {
    #[error("the request's body is too long")]
    TooLarge,
    #[error("the request's body broke off")]
    ClientGone,
}

/// Bytes forwarded so far; shared with the invocation's record.
pub(super) type Uploaded = Arc<AtomicU64>;

/// A request's body.
#[derive(Debug)]
pub(super) struct RequestBody {
    inner: Incoming,
    left: u64,
    uploaded: Option<Uploaded>,
}

impl RequestBody {
    /// Lets at most `limit` bytes through.
    pub(super) fn new(inner: Incoming, limit: u64) -> Self {
        let uploaded = (!inner.is_end_stream()).then(Uploaded::default);
        Self { inner, left: limit, uploaded }
    }

    /// The counter; none if there is no body.
    pub(super) fn uploaded(&self) -> Option<Uploaded> {
        self.uploaded.clone()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Some(frame) = ready!(Pin::new(&mut self.inner).poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        let Ok(frame) = frame else { return Poll::Ready(Some(Err(UploadError::ClientGone))) };
        if let Some(data) = frame.data_ref() {
            let size = data.remaining() as u64;
            let Some(left) = self.left.checked_sub(size) else {
                return Poll::Ready(Some(Err(UploadError::TooLarge)));
            };
            self.left = left;
            if let Some(uploaded) = &self.uploaded {
                uploaded.fetch_add(size, Ordering::Relaxed);
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
