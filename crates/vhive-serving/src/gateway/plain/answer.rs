//! One plain request, from its head to the end of its reply.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::Buf as _;
use http::Method;
use vhive_api::InvocationId;
use vhive_node::AcquireError;

use super::relay::Relay;
use super::reply::{self, Added, ReplyLine};
use super::{Alarm, Front};
use crate::gateway::field::{write_field, write_own};
use crate::gateway::flight::Flight;
use crate::gateway::head::Length;
use crate::gateway::reply::ReplyBody;
use crate::gateway::timer::Lost;
use crate::gateway::upstream::{Connection, ExchangeError};
use crate::gateway::{LAST_WORDS, connect, fail, failed, lose, obtain};
use crate::status::GatewayError;
use crate::trace::{TRACE_RESPONSE, TraceResponse};

/// A request whose head has been taken.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) flight: Option<Box<Flight>>,
    pub(super) method: Method,
    /// What the instance is told about the body's length.
    pub(super) told: Length,
    /// Bytes of the body that have not been taken from the input.
    pub(super) left: u64,
    /// The connection ends after the reply.
    pub(super) close: bool,
    /// The identifier that the client is told.
    pub(super) id: Option<InvocationId>,
    /// The trace that it is told.
    pub(super) trace: Option<TraceResponse>,
}

/// Why there is no reply of the instance's.
enum Stop {
    Failed(GatewayError),
    Alarm(Alarm),
}

impl From<GatewayError> for Stop {
    fn from(error: GatewayError) -> Self {
        Self::Failed(error)
    }
}

impl Front {
    /// Answers a request; whether another one may follow.
    pub(super) async fn answer(&mut self, mut request: Accepted) -> bool {
        let Some(mut flight) = request.flight.take() else { return false };
        self.start_timer(flight.head_deadline());
        self.out.clear();
        let mut doing = "waiting for an instance";
        let error = match self.exchange(&mut flight, &mut request, &mut doing).await {
            Ok((line, connection)) => {
                flight.set_status(line.status);
                self.start_timer(flight.deadline());
                return self.relay(Relay::new(flight, connection, line, request)).await;
            }
            Err(Stop::Failed(error)) => error,
            Err(Stop::Alarm(Alarm::Late)) => flight.late(doing),
            Err(Stop::Alarm(Alarm::Gone)) if request.left > self.input.len() as u64 => {
                GatewayError::ClientGone
            }
            Err(Stop::Alarm(Alarm::Gone)) => {
                flight.sent = request.sent();
                return false;
            }
        };
        self.refuse(flight, request, &error).await
    }

    /// Gets an instance, sends it the request and waits for the reply's head, which is then in
    /// `out` as the client gets it.
    async fn exchange(
        &mut self,
        flight: &mut Flight,
        request: &mut Accepted,
        doing: &mut &'static str,
    ) -> Result<(ReplyLine, Box<Connection>), Stop> {
        let Some(mut connection) = self.watch(request.left, pin!(obtain(flight, doing))).await??
        else {
            // Its revision has just been replaced by one that speaks HTTP/2.
            let key = flight.route.revision.key.clone();
            return Err(GatewayError::NoInstance(AcquireError::Closing(key)).into());
        };
        connection.begin(request.told, |out| out.extend_from_slice(&self.head));
        loop {
            match self.reply_head(flight, &mut connection, request).await? {
                Ok(line) => {
                    connection.expect_body(line.length, line.keep_alive);
                    flight.sent = request.sent();
                    return Ok((line, connection));
                }
                Err(ExchangeError::NothingSent(_)) if connection.is_used() => {
                    let fresh = self.watch(request.left, pin!(connect(flight))).await??;
                    connection.switch_to(*fresh);
                }
                Err(error) => {
                    drop(connection);
                    flight.sent = request.sent();
                    return Err(failed(flight, error).into());
                }
            }
        }
    }

    async fn reply_head(
        &mut self,
        flight: &mut Flight,
        connection: &mut Connection,
        request: &mut Accepted,
    ) -> Result<Result<ReplyLine, ExchangeError>, Stop> {
        match self.reply_head_or_end(flight, connection, request, true).await {
            Ok(head) => return head,
            Err(Lost::Ended) => {}
            Err(lost) => {
                flight.sent = request.sent();
                return Err(lose(flight, lost).into());
            }
        }
        // The news of its end may have overtaken what it had said before.
        let heard = self.reply_head_or_end(flight, connection, request, false);
        if let Ok(Ok(head)) = tokio::time::timeout(LAST_WORDS, heard).await {
            return head;
        }
        flight.sent = request.sent();
        Err(lose(flight, Lost::Ended).into())
    }

    /// Waits for the reply's head, or until it is waited for no longer, if that is heeded.
    async fn reply_head_or_end(
        &mut self,
        flight: &mut Flight,
        connection: &mut Connection,
        request: &mut Accepted,
        heed: bool,
    ) -> Result<Result<Result<ReplyLine, ExchangeError>, Stop>, Lost> {
        poll_fn(|cx| {
            let Self { io, input, out, date, end, .. } = self;
            let mut body = super::Body { io, input, left: &mut request.left };
            let id = request.id.as_ref();
            let close = request.close || end.is_draining();
            let mut added = Added { id, trace: request.trace, close, date };
            let read =
                |from: &mut _| reply::translate(from, &request.method, &mut out.first, &mut added);
            match connection.poll_head(cx, &mut body, read) {
                Poll::Ready(head) => return Poll::Ready(Ok(Ok(head))),
                Poll::Pending => {}
            }
            flight.hear_interim(connection);
            if heed && let Poll::Ready(lost) = flight.poll_lost(cx) {
                return Poll::Ready(Err(lost));
            }
            self.poll_alarm(cx, request.left).map(|alarm| Ok(Err(Stop::Alarm(alarm))))
        })
        .await
    }

    /// Does something for a request as long as nothing speaks against it.
    async fn watch<T>(
        &mut self,
        left: u64,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, Stop> {
        poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => self.poll_alarm(cx, left).map(Stop::Alarm).map(Err),
        })
        .await
    }

    /// Tells the client an error; whether another request may follow.
    async fn refuse(
        &mut self,
        flight: Box<Flight>,
        mut request: Accepted,
        error: &GatewayError,
    ) -> bool {
        let response = fail(flight, error);
        let out = &mut self.out.first;
        out.clear();
        reply::write_status(out, response.status());
        let mut says_close = false;
        for (name, value) in response.headers() {
            says_close |= *name == http::header::CONNECTION;
            write_field(out, name.as_str().as_bytes(), value.as_bytes());
        }
        request.close |= self.end.is_draining();
        let ReplyBody::Text(text) = response.into_body() else { return false };
        let length = text.len() as u64;
        let number = itoa::Buffer::new().format(length).to_owned();
        write_own(out, "content-length", number.as_bytes());
        if let Some(id) = &request.id {
            write_own(out, "x-request-id", id.as_str().as_bytes());
        }
        let close = request.close && !says_close;
        if let Some(trace) = request.trace {
            write_own(out, TRACE_RESPONSE, trace.to_string().as_bytes());
        }
        let date = &mut self.date;
        reply::finish(out, &mut Added { id: None, trace: None, close, date }, false);
        if request.method != Method::HEAD {
            out.extend_from_slice(&text);
        }
        let Self { io, out, .. } = self;
        let written = poll_fn(|cx| out.poll_write(io, cx)).await;
        written.is_ok() && !says_close && self.may_go_on(&mut request)
    }

    /// Whether another request may follow this one. What is left of its body is skipped if it is
    /// there already.
    pub(super) fn may_go_on(&mut self, request: &mut Accepted) -> bool {
        let left = usize::try_from(request.left).unwrap_or(usize::MAX);
        if request.close || self.end.is_draining() || left > self.input.len() {
            return false;
        }
        self.input.advance(left);
        true
    }
}

impl Accepted {
    /// Bytes of the body that have been taken.
    pub(super) fn sent(&self) -> u64 {
        match self.told {
            Length::Exact(length) => length - self.left,
            _ => 0,
        }
    }
}
