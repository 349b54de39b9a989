//! A connection that becomes another protocol's, as WebSocket's do: the request goes to the instance
//! with its `Upgrade`, and once the instance has agreed, bytes pass both ways until either side ends.
//!
//! # Source
//! RFC 9110 §7.8 (`Upgrade`), RFC 6455 §4 (WebSocket's handshake).

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::BytesMut;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use vhive_api::Protocol;

use super::field::lists;
use super::flight::{Client, Flight};
use super::head::{self, Length, Origin};
use super::reply::{Exchange, ReplyBody};
use super::reply_head::{BadReply, ReplyHead, read_reply, read_switch};
use super::timer::Lost;
use super::upload::RequestBody;
use super::{LAST_WORDS, fail, failed, host_of, lose, obtain};
use crate::catalog::Route;
use crate::status::GatewayError;

/// Bytes that are held of each direction.
const HELD: usize = 16 << 10;

/// The protocol that a request asks to go over to; none if it asks for nothing of that kind.
pub(super) fn wanted(parts: &Parts, route: &Route) -> Option<HeaderValue> {
    let wanted = parts.headers.get(header::UPGRADE)?;
    let mut named = parts.headers.get_all(header::CONNECTION).iter();
    let asked = named.any(|value| lists(value.as_bytes(), b"upgrade"));
    // HTTP/2 is begun by prior knowledge here, and a function that speaks it has no upgrades.
    let other = wanted.as_bytes().eq_ignore_ascii_case(b"h2c");
    let possible = parts.version == Version::HTTP_11 && route.revision.protocol == Protocol::Http1;
    (asked && possible && !other).then(|| wanted.clone())
}

/// Serves a request that asks for another protocol. The tunnel, if it comes to one, is left with
/// the client, whose connection's task runs it.
pub(super) async fn handle(
    mut flight: Box<Flight>,
    mut request: Request<Incoming>,
    wanted: &HeaderValue,
) -> Response<ReplyBody> {
    let on_upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let limit = flight.client().gateway.config.max_body.map_or(u64::MAX, |bytes| bytes.0);
    let body = RequestBody::new(body, limit);
    flight.uploaded = body.uploaded();
    let timer = flight.start_timer();
    flight.put_timer(timer);
    let mut doing = "waiting for an instance";
    let deadline = flight.head_deadline();
    let exchanged = {
        let work = pin!(exchange(&mut flight, &mut doing, (&parts, wanted), body));
        tokio::time::timeout_at(deadline, work).await
    };
    match exchanged {
        Ok(Ok((Answer::Reply(head), exchange))) => {
            flight.set_status(head.status);
            let mut response = Response::new(ReplyBody::http1(exchange, flight));
            *response.status_mut() = head.status;
            *response.headers_mut() = head.headers;
            response
        }
        Ok(Ok((Answer::Switch(head, protocol), exchange))) => {
            flight.set_status(StatusCode::SWITCHING_PROTOCOLS);
            let client = Arc::clone(flight.client());
            let (instance, read) = exchange.connection.into_parts();
            client.leave_tunnel(Box::new(Tunnel { on_upgrade, instance, read, flight }));
            let mut response = Response::new(ReplyBody::Text(bytes::Bytes::new()));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.headers_mut() = head.headers;
            let headers = response.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, protocol);
            response
        }
        Ok(Err(error)) => fail(flight, &error),
        Err(_) => {
            let late = flight.late(doing);
            fail(flight, &late)
        }
    }
}

/// What an instance says to it.
pub(super) enum Answer {
    /// An ordinary reply: it stays with HTTP.
    Reply(ReplyHead),
    /// It goes over to this protocol.
    Switch(ReplyHead, HeaderValue),
}

async fn exchange(
    flight: &mut Flight,
    doing: &mut &'static str,
    (parts, wanted): (&Parts, &HeaderValue),
    mut body: RequestBody,
) -> Result<(Answer, Box<Exchange>), GatewayError> {
    let Some(mut connection) = obtain(flight, doing).await? else {
        unreachable!("functions that speak HTTP/2 are not asked")
    };
    let id = flight.id();
    let client = Arc::clone(flight.client());
    let length = super::length_of(parts, &body);
    connection.begin(length, |out| {
        let host = host_of(parts).ok().flatten().unwrap_or_default();
        let (address, secure) = (&client.address, client.secure);
        let trace = flight.trace.as_deref();
        let origin = Origin { client: address, secure, host, id: id.as_str(), trace };
        head::write_request(out, parts, length, &origin);
        // Before the empty line.
        out.truncate(out.len() - 2);
        out.extend_from_slice(b"connection: Upgrade\r\nupgrade: ");
        out.extend_from_slice(wanted.as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
    });
    let read = |input: &mut BytesMut| -> Result<Option<Answer>, BadReply> {
        if let Some((head, protocol)) = read_switch(input, &parts.method)? {
            return Ok(Some(Answer::Switch(head, protocol)));
        }
        Ok(read_reply(input, &parts.method)?.map(Answer::Reply))
    };
    let answer = poll_fn(|cx| match connection.poll_head(cx, &mut body, read) {
        std::task::Poll::Ready(answer) => std::task::Poll::Ready(Ok(answer)),
        std::task::Poll::Pending => {
            flight.hear_interim(&mut connection);
            flight.poll_lost(cx).map(Err)
        }
    });
    let mut answer = answer.await;
    if answer.as_ref().err() == Some(&Lost::Ended) {
        // The news of its end may have overtaken what it had said before.
        let heard = poll_fn(|cx| connection.poll_head(cx, &mut body, read));
        answer = tokio::time::timeout(LAST_WORDS, heard).await.map_err(|_| Lost::Ended);
    }
    match answer {
        Ok(Ok(answer)) => {
            match &answer {
                Answer::Reply(head) => connection.expect_body(head.length, head.keep_alive),
                Answer::Switch(..) => connection.expect_body(Length::None, false),
            }
            Ok((answer, Box::new(Exchange { connection, body })))
        }
        Ok(Err(error)) => {
            drop(connection);
            Err(failed(flight, error))
        }
        Err(lost) => {
            drop(connection);
            Err(lose(flight, lost))
        }
    }
}

/// Two connections that have gone over to another protocol.
#[derive(Debug)]
pub(super) struct Tunnel {
    on_upgrade: OnUpgrade,
    instance: TcpStream,
    /// What the instance has said behind its head.
    read: BytesMut,
    flight: Box<Flight>,
}

impl Tunnel {
    /// Passes bytes both ways until either side ends. No timeout holds; the slot is held as long.
    pub(super) async fn run(self) {
        let Self { on_upgrade, mut instance, read, mut flight } = self;
        let mut ended = false;
        let passed = async {
            let client = on_upgrade.await.map_err(io::Error::other)?;
            let mut client = TokioIo::new(client);
            client.write_all(&read).await?;
            copy_bidirectional_with_sizes(&mut client, &mut instance, HELD, HELD).await
        };
        let passed = tokio::select! {
            passed = passed => passed,
            // A sandbox that is gone closes nothing.
            () = poll_fn(|cx| flight.poll_ended(cx)) => {
                ended = true;
                Err(io::Error::other("the sandbox ended"))
            }
        };
        match passed {
            Ok((up, down)) => {
                flight.uploaded = None;
                flight.sent = up;
                flight.downloaded = down.saturating_add(read.len() as u64);
            }
            // Either side may end it in any way it likes.
            Err(error) => tracing::debug!(%error, "tunnel ended"),
        }
        if ended {
            flight.fail(vhive_api::Outcome::InstanceFailed, "its sandbox ended".to_owned());
            return;
        }
        flight.replied();
        flight.settle();
    }
}

/// For the client that is kept until its tunnel ends.
pub(super) async fn run_tunnel(client: &Client) {
    if let Some(tunnel) = client.take_tunnel() {
        tunnel.run().await;
    }
}
