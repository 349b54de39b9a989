//! The reply on its way from an instance to a client.

use std::future::poll_fn;
use std::task::{Context, Poll};

use super::answer::Accepted;
use super::reply::ReplyLine;
use super::{Alarm, Body, Front};
use crate::gateway::flight::Flight;
use crate::gateway::head::Length;
use crate::gateway::reply::{CutOff, cut, keep};
use crate::gateway::timer::Lost;
use crate::gateway::upstream::{Connection, ReplyPiece};

/// Content up to this length is copied behind what goes out before it, and so much is collected
/// before it leaves.
const SHORT: usize = 4 << 10;
const COLLECTED: usize = 16 << 10;

/// A reply whose head is about to leave.
pub(super) struct Relay {
    flight: Option<Box<Flight>>,
    /// None once all has been read from it.
    connection: Option<Box<Connection>>,
    chunked: bool,
    request: Accepted,
}

/// How far a reply has come.
enum Step {
    Read,
    Waits,
}

/// How it ended for the client.
enum Ended {
    Whole,
    CutOff,
    Gone,
}

impl Relay {
    pub(super) fn new(
        flight: Box<Flight>,
        connection: Box<Connection>,
        line: ReplyLine,
        request: Accepted,
    ) -> Self {
        let chunked = matches!(line.length, Length::Chunked | Length::ToEnd);
        Self { flight: Some(flight), connection: Some(connection), chunked, request }
    }
}

/// Whether what comes next is waited for no longer.
fn poll_lost(cx: &mut Context<'_>, flight: &mut Option<Box<Flight>>) -> Poll<Lost> {
    flight.as_mut().map_or(Poll::Pending, |flight| flight.poll_lost(cx))
}

impl Front {
    /// Sends the client the reply; whether another request may follow.
    pub(super) async fn relay(&mut self, mut relay: Relay) -> bool {
        let ended = poll_fn(|cx| self.poll_relay(cx, &mut relay)).await;
        if let Some(mut flight) = relay.flight.take() {
            flight.sent = relay.request.sent();
            if matches!(ended, Ended::Gone) {
                drop(flight);
            } else {
                flight.settle();
            }
        }
        matches!(ended, Ended::Whole) && self.may_go_on(&mut relay.request)
    }

    fn poll_relay(&mut self, cx: &mut Context<'_>, relay: &mut Relay) -> Poll<Ended> {
        loop {
            let read = self.collect(cx, relay);
            let Self { io, out, .. } = self;
            match out.poll_write(io, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Ended::Gone),
                // The client is slow. If it stays so, the connection's own timer ends this.
                Poll::Pending if read.is_ok() => {
                    if let Some(flight) = &mut relay.flight {
                        flight.hear();
                    }
                    return self.poll_gone(cx, relay.request.left).map(|_| Ended::Gone);
                }
                Poll::Pending => return Poll::Ready(Ended::CutOff),
            }
            match read {
                Err(()) => return Poll::Ready(Ended::CutOff),
                Ok(_) if relay.connection.is_none() => return Poll::Ready(Ended::Whole),
                Ok(Step::Read) => {}
                Ok(Step::Waits) => {
                    if let Poll::Ready(lost) = poll_lost(cx, &mut relay.flight) {
                        if let Some(flight) = &mut relay.flight {
                            flight.sent = relay.request.sent();
                        }
                        cut(&mut relay.flight, &CutOff::from(lost));
                        return Poll::Ready(Ended::CutOff);
                    }
                    match self.poll_alarm(cx, relay.request.left) {
                        Poll::Ready(Alarm::Late) => {
                            if let Some(flight) = &mut relay.flight {
                                flight.sent = relay.request.sent();
                            }
                            cut(&mut relay.flight, &CutOff::TimedOut);
                            return Poll::Ready(Ended::CutOff);
                        }
                        Poll::Ready(Alarm::Gone) => return Poll::Ready(Ended::Gone),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }
        }
    }

    /// Reads what there is of the reply, as much as one write should take.
    fn collect(&mut self, cx: &mut Context<'_>, relay: &mut Relay) -> Result<Step, ()> {
        let Self { io, input, out, .. } = self;
        let Relay { flight, connection: slot, chunked, request } = relay;
        let (Some(connection), Some(flying)) = (slot.as_mut(), flight.as_mut()) else {
            return Ok(Step::Read);
        };
        let mut step = Step::Read;
        while out.is_open() && out.first.len() < COLLECTED && !connection.is_done() {
            if let Some(size) = connection.take_short(SHORT, &mut out.first) {
                flying.downloaded += size as u64;
                break;
            }
            let mut body = Body { io, input, left: &mut request.left };
            let data = match connection.poll_piece(cx, &mut body) {
                Poll::Ready(Ok(ReplyPiece::Data(data))) => data,
                // Trailers are for clients that have asked for them, and those are hyper's.
                Poll::Ready(Ok(ReplyPiece::End(_))) => break,
                Poll::Ready(Err(error)) => {
                    flying.sent = request.sent();
                    cut(flight, &CutOff::from(error));
                    return Err(());
                }
                Poll::Pending => {
                    step = Step::Waits;
                    break;
                }
            };
            flying.downloaded += data.len() as u64;
            flying.hear();
            if *chunked {
                let size = format!("{:x}\r\n", data.len());
                out.first.extend_from_slice(size.as_bytes());
                out.tail = b"\r\n";
            }
            if data.len() > SHORT {
                out.data = data;
            } else {
                out.first.extend_from_slice(&data);
                out.first.extend_from_slice(std::mem::take(&mut out.tail));
            }
        }
        // A reply that is complete gives connection and slot back before it leaves.
        if let Some(done) = slot.take_if(|connection| connection.is_done()) {
            if *chunked && out.is_open() {
                out.first.extend_from_slice(b"0\r\n\r\n");
            } else if *chunked {
                out.tail = b"\r\n0\r\n\r\n";
            }
            flying.sent = request.sent();
            keep(done, flying);
            flying.replied();
        }
        Ok(step)
    }
}
