//! The short way: plain HTTP/1.1 requests, without hyper.
//!
//! ```text
//!   accept ──► read a head ──► plain? ──yes──► answer ──► read a head ──► …
//!                                └───no──► hyper, with what has been read and not answered
//! ```
//!
//! Plain is a request about which nothing can be read in two ways (see [`request`]); all others
//! are hyper's, with their errors. Once hyper has a connection it keeps it.
//!
//! One task, no channel, no table of header fields: heads are written from the slices that the
//! parser found.

mod answer;
mod body;
mod date;
mod relay;
mod reply;
mod request;

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWrite as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;
use vhive_api::Protocol;

use self::answer::Accepted;
use self::body::Body;
use self::date::Date;
use self::request::{MOST_FIELDS, Parsed, PlainRequest};
use super::flight::{Client, Flight};
use super::head::{self, Origin};
use super::listen::End;
use super::outgoing::Outgoing;
use super::timer::Timer;
use crate::trace::Asked;

/// Bytes kept for a head and what comes behind it; a longer head is hyper's.
const ROOM: usize = 8 << 10;

/// A connection that hyper goes on with.
#[derive(Debug)]
pub(super) struct HandedOver {
    pub(super) io: TcpStream,
    /// What has been read and not been answered.
    pub(super) read: Bytes,
    /// Whether a request has been answered before: HTTP/2 cannot begin any more.
    pub(super) begun: bool,
}

/// Serves plain requests until the client or the gateway ends the connection, or until something
/// comes that is not plain.
pub(super) async fn serve(io: TcpStream, client: Arc<Client>, end: Arc<End>) -> Option<HandedOver> {
    let mut front = Front {
        io,
        input: BytesMut::new(),
        known: 0,
        head: Vec::new(),
        out: Outgoing::default(),
        client,
        end,
        timer: None,
        date: Date::default(),
        begun: false,
    };
    loop {
        match front.next().await {
            Next::Request(accepted) => {
                front.begun = true;
                if front.answer(accepted).await {
                    continue;
                }
                // An error means that it is closed already.
                drop(poll_fn(|cx| Pin::new(&mut front.io).poll_shutdown(cx)).await);
                return None;
            }
            Next::Other => {
                let Front { io, input, begun, .. } = front;
                return Some(HandedOver { io, read: input.freeze(), begun });
            }
            Next::Closed => return None,
        }
    }
}

/// One client's connection.
#[derive(Debug)]
struct Front {
    io: TcpStream,
    input: BytesMut,
    /// How much of `input` has been seen to be an incomplete head.
    known: usize,
    /// The present request's head, as an instance gets it.
    head: Vec<u8>,
    out: Outgoing,
    client: Arc<Client>,
    end: Arc<End>,
    timer: Option<Timer>,
    date: Date,
    begun: bool,
}

/// What comes next on a connection.
#[derive(Debug)]
enum Next {
    Request(Accepted),
    Other,
    Closed,
}

/// Why a request is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alarm {
    /// Its deadline has passed.
    Late,
    /// The client has gone.
    Gone,
}

impl Front {
    async fn next(&mut self) -> Next {
        self.known = 0;
        loop {
            if !self.input.is_empty()
                && let Some(next) = self.take()
            {
                return next;
            }
            if self.input.len() >= ROOM {
                return Next::Other;
            }
            let more = poll_fn(|cx| {
                if (self.begun || self.input.is_empty()) && self.end.is_draining() {
                    return Poll::Ready(false);
                }
                self.poll_fill(cx).map(|read| read.is_ok_and(|size| size > 0))
            });
            if !more.await {
                return Next::Closed;
            }
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let room = ROOM.saturating_sub(self.input.len());
        if self.input.capacity() - self.input.len() < room.min(ROOM / 2) {
            self.input.reserve(room);
        }
        poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input)
    }

    /// Takes a request from the input; none if more must be read.
    fn take(&mut self) -> Option<Next> {
        // As hyper does: the first piece is looked at, and then nothing before there is an end.
        if self.known > 0 && !request::may_be_complete(&self.input, self.known) {
            self.known = self.input.len();
            return None;
        }
        let began = Instant::now();
        let mut slots = [const { MaybeUninit::uninit() }; MOST_FIELDS];
        let request = match request::parse(&self.input, &mut slots) {
            Parsed::Plain(request) => request,
            Parsed::Partial => {
                self.known = self.input.len();
                return None;
            }
            Parsed::Other => return Some(Next::Other),
        };
        let Some(mut flight) = begin(&self.client, &request, began) else {
            return Some(Next::Other);
        };
        let id = flight.id();
        let (client, secure) = (&self.client.address, self.client.secure);
        if self.client.gateway.tracer.is_on() {
            let fields = request.fields();
            let of_trace = fields.filter_map(|(kind, _, value)| Some((kind.of_trace()?, value)));
            let asked = Asked { method: &request.method, target: request.target, secure };
            flight.trace(of_trace, &asked);
        }
        let trace = flight.trace.as_deref();
        let origin = Origin { client, secure, host: request.host, id: id.as_str(), trace };
        let told = request.told_length();
        let line = (request.method.as_str(), request.target);
        self.head.clear();
        head::write_request_of(&mut self.head, line, request.fields(), told, &origin);
        let accepted = Accepted {
            told,
            left: request.length.unwrap_or(0),
            close: request.close,
            id: (!request.has_id).then_some(id),
            trace: flight.trace_response(),
            method: request.method,
            flight: Some(flight),
        };
        let size = request.size;
        self.input.advance(size);
        Some(Next::Request(accepted))
    }

    /// What must be looked at whenever a request waits: its deadline, and whether the client is
    /// still there. `left` bytes of the request's body have not been taken from the input.
    fn poll_alarm(&mut self, cx: &mut Context<'_>, left: u64) -> Poll<Alarm> {
        if let Some(timer) = &mut self.timer
            && timer.poll_from_same_task(cx).is_ready()
        {
            return Poll::Ready(Alarm::Late);
        }
        self.poll_gone(cx, left)
    }

    /// Whether the client has gone. One that has sent another request already is believed to be
    /// there.
    fn poll_gone(&mut self, cx: &mut Context<'_>, left: u64) -> Poll<Alarm> {
        while self.input.len() < ROOM && self.input.len() as u64 <= left {
            match self.poll_fill(cx) {
                Poll::Ready(Ok(size)) if size > 0 => {}
                Poll::Ready(_) => return Poll::Ready(Alarm::Gone),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Pending
    }

    fn start_timer(&mut self, deadline: Instant) {
        match &mut self.timer {
            Some(timer) => timer.set(deadline),
            None => self.timer = Some(Timer::new(deadline)),
        }
    }
}

/// Counts a request in. None if it is one for hyper: nobody answers to its host, its body is too
/// long, its function speaks HTTP/2, or a header may choose the revision.
fn begin(
    client: &Arc<Client>,
    request: &PlainRequest<'_, '_>,
    began: Instant,
) -> Option<Box<Flight>> {
    let gateway = &client.gateway;
    let most = gateway.config.max_body.map_or(u64::MAX, |bytes| bytes.0);
    if request.length.is_some_and(|length| length > most) {
        return None;
    }
    let host = super::without_port(request.host);
    let choice = gateway.catalog.choose(host, None, || gateway.next_id())?;
    if choice.has_tags || choice.route.revision.protocol == Protocol::H2c {
        return None;
    }
    Some(Flight::begin(client, choice, host, began))
}
