//! The body of a reply on its way to the client.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use vhive_api::Outcome;

use super::flight::Flight;
use super::timer::Lost;
use super::upload::{RequestBody, UploadError};
use super::upstream::{BrokenReply, Connection, ReplyPiece};

/// What a client gets.
#[derive(Debug)]
pub(super) enum ReplyBody {
    /// A text of the gateway's own.
    Text(Bytes),
    /// From an instance that speaks HTTP/1.1.
    Http1 { exchange: Option<Box<Exchange>>, flight: Option<Box<Flight>> },
    /// From an instance that speaks HTTP/2.
    Http2 { body: Incoming, flight: Option<Box<Flight>> },
}

/// A reply that is being read, with the request that may still be on its way.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) connection: Box<Connection>,
    pub(super) body: RequestBody,
}

/// Why a reply is cut off: the client sees its connection (or stream) aborted.
#[derive(Debug, thiserror::Error)]
pub(super) enum CutOff {
    #[error("the instance broke in the middle of its reply: {0}")]
    Instance(String),
    #[error("the revision's timeout passed in the middle of the reply")]
    TimedOut,
    #[error("the function said nothing for {} s (idleTimeoutSeconds)", .0.as_secs())]
    Silent(Duration),
    #[error("the request's body broke off")]
    Upload,
}

impl From<Lost> for CutOff {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Ended => Self::Instance("its sandbox ended".to_owned()),
            Lost::Silent(limit) => Self::Silent(limit),
        }
    }
}

impl From<BrokenReply> for CutOff {
    fn from(error: BrokenReply) -> Self {
        match error {
            BrokenReply::Upload(UploadError::ClientGone | UploadError::TooLarge) => Self::Upload,
            BrokenReply::Io(_) | BrokenReply::Bad(_) => Self::Instance(error.to_string()),
        }
    }
}

/// Keeps a connection whose reply has been read to its end, if it may be used again.
pub(super) fn keep(mut connection: Box<Connection>, flight: &Flight) {
    if let Some(lease) = &flight.lease
        && connection.finish()
    {
        flight.route.upstreams.put(lease.sandbox(), connection);
    }
}

impl ReplyBody {
    /// The reply of an HTTP/1.1 instance. One without content ends here.
    pub(super) fn http1(exchange: Box<Exchange>, flight: Box<Flight>) -> Self {
        let mut body = Self::Http1 { exchange: Some(exchange), flight: Some(flight) };
        body.end_if_done();
        body
    }

    /// The reply of an HTTP/2 instance.
    pub(super) fn http2(body: Incoming, flight: Box<Flight>) -> Self {
        if body.is_end_stream() {
            flight.complete();
            return Self::Text(Bytes::new());
        }
        Self::Http2 { body, flight: Some(flight) }
    }

    /// Returns connection and slot as soon as the last byte has been read.
    fn end_if_done(&mut self) {
        let Self::Http1 { exchange, flight } = self else { return };
        let Some(done) = exchange.take_if(|exchange| exchange.connection.is_done()) else { return };
        let Some(flight) = flight.take() else { return };
        keep(done.connection, &flight);
        flight.complete();
    }
}

/// Ends a request whose reply has begun.
pub(super) fn cut(flight: &mut Option<Box<Flight>>, cut_off: &CutOff) {
    if let Some(mut flight) = flight.take() {
        let outcome = match cut_off {
            CutOff::Instance(_) => Outcome::InstanceFailed,
            CutOff::TimedOut | CutOff::Silent(_) => Outcome::TimedOut,
            CutOff::Upload => Outcome::ClientGone,
        };
        if matches!(cut_off, CutOff::Instance(_))
            && let Some(lease) = flight.lease.take()
        {
            super::suspect(lease);
        }
        flight.fail(outcome, cut_off.to_string());
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        let this = &mut *self;
        let (polled, flight) = match this {
            Self::Text(text) => {
                let text = std::mem::take(text);
                let frame = (!text.is_empty()).then(|| Ok(Frame::data(text)));
                return Poll::Ready(frame);
            }
            Self::Http1 { exchange: None, .. } => return Poll::Ready(None),
            Self::Http1 { exchange: Some(exchange), flight } => {
                let Exchange { connection, body } = &mut **exchange;
                let polled = connection.poll_piece(cx, body).map(|piece| match piece {
                    Ok(ReplyPiece::Data(data)) => Ok(Some(Frame::data(data))),
                    Ok(ReplyPiece::End(trailers)) => Ok(trailers.map(Frame::trailers)),
                    Err(error) => Err(CutOff::from(error)),
                });
                (polled, flight)
            }
            Self::Http2 { body, flight } => {
                let polled = Pin::new(&mut *body).poll_frame(cx).map(|frame| match frame {
                    Some(Ok(frame)) => Ok(Some(frame)),
                    Some(Err(error)) => Err(CutOff::Instance(crate::status::chain(&error))),
                    None => Ok(None),
                });
                if let Poll::Ready(Ok(frame)) = &polled
                    && (frame.is_none() || body.is_end_stream())
                    && let Some(mut flight) = flight.take()
                {
                    if let Some(data) = frame.as_ref().and_then(Frame::data_ref) {
                        flight.downloaded += data.len() as u64;
                    }
                    if let Some(trailers) = frame.as_ref().and_then(Frame::trailers_ref) {
                        flight.set_grpc_status(trailers);
                    }
                    flight.complete();
                }
                (polled, flight)
            }
        };
        match polled {
            Poll::Ready(Ok(frame)) => {
                if let Some(data) = frame.as_ref().and_then(Frame::data_ref)
                    && let Some(flight) = flight
                {
                    flight.downloaded += data.len() as u64;
                    flight.hear();
                }
                this.end_if_done();
                Poll::Ready(frame.map(Ok))
            }
            Poll::Ready(Err(cut_off)) => {
                cut(flight, &cut_off);
                if let Self::Http1 { exchange, .. } = this {
                    *exchange = None;
                }
                Poll::Ready(Some(Err(cut_off)))
            }
            Poll::Pending => {
                let Some(waiting) = flight else { return Poll::Pending };
                let cut_off = if waiting.poll_deadline(cx).is_ready() {
                    CutOff::TimedOut
                } else if let Poll::Ready(lost) = waiting.poll_lost(cx) {
                    lost.into()
                } else {
                    return Poll::Pending;
                };
                cut(flight, &cut_off);
                if let Self::Http1 { exchange, .. } = this {
                    *exchange = None;
                }
                Poll::Ready(Some(Err(cut_off)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Http1 { exchange, .. } => exchange.is_none(),
            Self::Http2 { body, flight } => flight.is_none() || body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.len() as u64),
            Self::Http1 { exchange: None, .. } => SizeHint::with_exact(0),
            Self::Http1 { exchange: Some(exchange), .. } => {
                exchange.connection.left().map_or_else(SizeHint::default, SizeHint::with_exact)
            }
            Self::Http2 { body, .. } => body.size_hint(),
        }
    }
}
