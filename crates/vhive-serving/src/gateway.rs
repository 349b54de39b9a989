//! One request from the client's head to the reply: the hop between client and instance.
//!
//! ```text
//!   client ──► plain::serve ───────────► answer ┐
//!                   │ what is not plain         ├─► obtain: Throttle::admit ──► Node::acquire
//!                   └──► hyper ───────► handle ─┘       │
//!                                                       ▼
//!   client ◄── relay, or hyper ◄── upstream (our own HTTP/1.1 half, or hyper for h2c)
//! ```
//!
//! Nothing is buffered beyond one read, in either direction; a slow side slows the other down.

mod chunks;
mod crowd;
mod field;
mod flight;
mod h2c;
mod head;
mod ingress;
mod ledger;
mod listen;
mod outgoing;
mod plain;
mod pool;
mod probe;
mod replay;
mod reply;
mod reply_head;
mod respond_async;
mod timer;
mod upgrade;
mod upload;
mod upstream;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio::time::Instant;
use vhive_api::Protocol;
use vhive_node::{AcquireError, Lease, Node};

use self::flight::{Client, Flight};
use self::head::{Length, Origin};
pub(crate) use self::ledger::Ledger;
pub(crate) use self::listen::{Listening, listen};
pub(crate) use self::pool::Upstreams;
use self::reply::{Exchange, ReplyBody};
use self::timer::Lost;
use self::upload::{RequestBody, UploadError};
use self::upstream::{Connection, ExchangeError};
use crate::catalog::{Catalog, Choice, Route};
use crate::config::GatewayConfig;
use crate::deferred::Deferred;
use crate::eventing::Eventing;
use crate::status::GatewayError;
use crate::trace::Tracer;

/// Where a reply of the gateway's own says what went wrong, for programs.
const ERROR: HeaderName = HeaderName::from_static("x-vhive-error");

/// Where a client says which tag of a service it wants.
///
/// # Source
/// Knative Serving, tag header based routing.
const TAG: HeaderName = HeaderName::from_static("knative-serving-tag");

/// Instances tried when they do not even accept a connection.
const TRIES: usize = 3;

/// How long what an instance said before its end may take to arrive, once its end is known.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How long a doubtful instance may take to accept a connection.
const SUSPICION: Duration = Duration::from_secs(2);

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) node: Node,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) config: GatewayConfig,
    pub(crate) ledger: Ledger,
    pub(crate) deferred: Arc<Deferred>,
    pub(crate) tracer: Tracer,
    pub(crate) eventing: Arc<Eventing>,
    ids: AtomicU64,
}

impl Gateway {
    pub(crate) fn new(
        node: Node,
        catalog: Arc<Catalog>,
        config: GatewayConfig,
        (deferred, eventing, tracer): (Arc<Deferred>, Arc<Eventing>, Tracer),
    ) -> Arc<Self> {
        let seed = getrandom::u64().expect("the kernel's random source answers after boot");
        let (ids, ledger) = (AtomicU64::new(seed), Ledger::default());
        Arc::new(Self { node, catalog, config, ledger, deferred, eventing, tracer, ids })
    }

    /// A fresh number that looks random: a counter through the finaliser of `SplitMix64`, which is a
    /// bijection, so that no two are equal.
    fn next_id(&self) -> u64 {
        let step = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.ids.fetch_add(step, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Serves one request.
    async fn handle(client: &Arc<Client>, request: Request<Incoming>) -> Response<ReplyBody> {
        let began = Instant::now();
        let (parts, body) = request.into_parts();
        let gateway = &client.gateway;
        let choice = match gateway.route(&parts) {
            Ok(choice) => choice,
            Err(GatewayError::UnknownHost(_)) if ingress::is_wanted(client, &parts) => {
                return Box::pin(ingress::accept(client, &parts, body)).await;
            }
            Err(error) => return refusal(&error),
        };
        if let Some(answer) = probe::answer(&parts.headers) {
            return answer;
        }
        let host = host_of(&parts).ok().flatten().unwrap_or_default();
        if respond_async::is_wanted(&parts) {
            let revision = &choice.route.revision;
            // Whichever of its hosts and revisions was asked for.
            let lane = format!("{}/{}", revision.key.namespace, revision.service);
            return Box::pin(respond_async::accept(client, lane, (parts, body))).await;
        }
        if let Some(protocol) = upgrade::wanted(&parts, &choice.route) {
            let mut flight = Flight::begin(client, choice, host, began);
            flight.trace_from(&parts);
            let request = Request::from_parts(parts, body);
            let traced = flight.trace_response();
            let mut response = Box::pin(upgrade::handle(flight, request, &protocol)).await;
            if let Some(trace) = traced {
                head::tell_trace(response.headers_mut(), trace);
            }
            return response;
        }
        let limit = gateway.config.max_body.map_or(u64::MAX, |bytes| bytes.0);
        if body.size_hint().lower() > limit {
            return refusal(&gateway.too_large());
        }
        let mut flight = Flight::begin(client, choice, host, began);
        flight.trace_from(&parts);
        let traced = flight.trace_response();
        let tell_id = (!parts.headers.contains_key(&head::REQUEST_ID)).then(|| flight.id());
        let body = RequestBody::new(body, limit);
        flight.uploaded = body.uploaded();
        let mut request = Some((parts, body));

        let mut timer = flight.start_timer();
        let mut doing = "waiting for an instance";
        let served = {
            let mut work = pin!(forward(&mut flight, &mut doing, &mut request));
            poll_fn(|cx| {
                if let Poll::Ready(served) = work.as_mut().poll(cx) {
                    return Poll::Ready(Some(served));
                }
                timer.poll(cx).map(|()| None)
            })
            .await
        };
        flight.put_timer(timer);
        let mut response = match served {
            Some(Ok(Served::Http1(head, exchange))) => {
                flight.set_status(head.status);
                let mut response = Response::new(ReplyBody::http1(exchange, flight));
                *response.status_mut() = head.status;
                *response.headers_mut() = head.headers;
                response
            }
            Some(Ok(Served::Http2(response))) => {
                flight.set_status(response.status());
                flight.set_grpc_status(response.headers());
                let (mut parts, body) = response.into_parts();
                parts.version = Version::HTTP_11;
                parts.extensions = http::Extensions::default();
                head::strip_hop_fields(&mut parts.headers);
                Response::from_parts(parts, ReplyBody::http2(body, flight))
            }
            Some(Err(error)) => fail(flight, &error),
            None => {
                let late = flight.late(doing);
                fail(flight, &late)
            }
        };
        if let Some(id) = tell_id {
            head::tell_id(response.headers_mut(), &id);
        }
        if let Some(trace) = traced {
            head::tell_trace(response.headers_mut(), trace);
        }
        response
    }

    /// Finds the revision that answers to the request's host.
    fn route(&self, parts: &Parts) -> Result<Choice, GatewayError> {
        let bad = |why| Err(GatewayError::BadRequest(why));
        if parts.method == Method::CONNECT {
            return bad("CONNECT is not for functions");
        }
        let Some(host) = host_of(parts)? else { return bad("there is no Host") };
        if parts.headers.contains_key(header::TRANSFER_ENCODING)
            && parts.headers.contains_key(header::CONTENT_LENGTH)
        {
            return bad("it has both Content-Length and Transfer-Encoding");
        }
        let unknown = || GatewayError::UnknownHost(host.chars().take(255).collect());
        let tag = parts.headers.get(TAG).and_then(|value| value.to_str().ok());
        let choice = self.catalog.choose(without_port(host), tag, || self.next_id());
        choice.ok_or_else(unknown)
    }

    /// The revision that requests go to now, in the place of one that is gone.
    fn successor(&self, flight: &Flight) -> Option<Arc<Route>> {
        self.catalog.choose_again(flight.host(), &flight.route, self.next_id())
    }

    fn too_large(&self) -> GatewayError {
        GatewayError::BodyTooLarge(self.config.max_body.unwrap_or_default())
    }
}

/// The host that a request is for: the target's authority, or else the one `Host` field.
///
/// # Source
/// RFC 9112 §3.2 and §3.2.2.
fn host_of(parts: &Parts) -> Result<Option<&str>, GatewayError> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(GatewayError::BadRequest("there is more than one Host"));
    }
    if let Some(authority) = parts.uri.authority() {
        let text = authority.as_str();
        return Ok(Some(text.rsplit_once('@').map_or(text, |(_, host)| host)));
    }
    match host.map(HeaderValue::to_str) {
        Some(Ok(host)) => Ok(Some(host)),
        Some(Err(_)) => Err(GatewayError::BadRequest("its Host is not a host")),
        None => Ok(None),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// A reply whose head has come.
enum Served {
    Http1(reply_head::ReplyHead, Box<Exchange>),
    Http2(Response<Incoming>),
}

/// Gets an instance, sends it the request and waits for the reply's head.
async fn forward(
    flight: &mut Flight,
    doing: &mut &'static str,
    request: &mut Option<(Parts, RequestBody)>,
) -> Result<Served, GatewayError> {
    let connection = obtain(flight, doing).await?;
    let Some((parts, body)) = request.take() else { unreachable!("a request is sent once") };
    match connection {
        Some(connection) => exchange(flight, connection, &parts, body).await,
        None => h2c::exchange(flight, parts, body).await.map(Served::Http2),
    }
}

/// Gets an instance and an HTTP/1.1 connection to it; no connection if it speaks HTTP/2.
async fn obtain(
    flight: &mut Flight,
    doing: &mut &'static str,
) -> Result<Option<Box<Connection>>, GatewayError> {
    let client = Arc::clone(flight.client());
    let mut tries = 0;
    let connection = loop {
        tries += 1;
        let route = Arc::clone(&flight.route);
        // Pinned here: it is large, and would be moved on the way.
        let acquire = pin!(client.gateway.node.acquire(&route.revision.key));
        let (lease, waited) =
            route.throttle.admit(acquire).await.map_err(GatewayError::QueueFull)?;
        match lease {
            Ok(lease) => flight.hold(lease, waited),
            Err(error @ (AcquireError::Unknown(_) | AcquireError::Closing(_))) => {
                match client.gateway.successor(flight) {
                    Some(successor) if tries < TRIES => {
                        flight.reroute(successor);
                        continue;
                    }
                    _ => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
        *doing = "being sent to an instance";
        let Some(lease) = &flight.lease else { unreachable!("hold keeps the lease") };
        if route.revision.protocol == Protocol::H2c {
            break None;
        }
        let idle = route.upstreams.take(lease.sandbox());
        match idle {
            Some(connection) => break Some(connection),
            None => match connect(flight).await {
                Ok(connection) => break Some(connection),
                Err(error) if tries == TRIES => return Err(error),
                Err(_) => *doing = "waiting for an instance",
            },
        }
    };
    flight.forward();
    *doing = "being served";
    Ok(connection)
}

/// Connects to the leased instance. One that does not accept is given up as broken.
async fn connect(flight: &mut Flight) -> Result<Box<Connection>, GatewayError> {
    let Some(lease) = &flight.lease else { unreachable!("a connection is made under a lease") };
    if let Some(connection) = lease.connection().and_then(upstream::adopt) {
        return Ok(Connection::over(connection).reused());
    }
    let limit = flight.client().gateway.config.connect_timeout.0;
    let opened = tokio::time::timeout(limit, upstream::connect(lease.endpoint())).await;
    let reason = match opened {
        Ok(Ok(connection)) => return Ok(Connection::over(connection)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("not within {} ms", limit.as_millis()),
    };
    let reason = lease.ended().map_or(reason, |end| end.to_string());
    let error = GatewayError::Unreachable { sandbox: lease.sandbox().clone(), reason };
    if let Some(lease) = flight.lease.take() {
        lease.failed();
    }
    Err(error)
}

/// Sends the request over HTTP/1.1 and waits for the reply's head.
async fn exchange(
    flight: &mut Flight,
    mut connection: Box<Connection>,
    parts: &Parts,
    mut body: RequestBody,
) -> Result<Served, GatewayError> {
    let id = flight.id();
    let length = length_of(parts, &body);
    let client = Arc::clone(flight.client());
    connection.begin(length, |out| {
        let host = host_of(parts).ok().flatten().unwrap_or_default();
        let (address, secure) = (&client.address, client.secure);
        let trace = flight.trace.as_deref();
        let origin = Origin { client: address, secure, host, id: id.as_str(), trace };
        head::write_request(out, parts, length, &origin);
    });
    loop {
        let read = |input: &mut BytesMut| reply_head::read_reply(input, &parts.method);
        let head = poll_fn(|cx| match connection.poll_head(cx, &mut body, read) {
            Poll::Ready(head) => Poll::Ready(Ok(head)),
            Poll::Pending => {
                flight.hear_interim(&mut connection);
                flight.poll_lost(cx).map(Err)
            }
        });
        let mut head = head.await;
        if head.as_ref().err() == Some(&Lost::Ended) {
            // The news of its end may have overtaken what it had said before.
            let heard = poll_fn(|cx| connection.poll_head(cx, &mut body, read));
            head = tokio::time::timeout(LAST_WORDS, heard).await.map_err(|_| Lost::Ended);
        }
        let head = match head {
            Ok(head) => head,
            Err(lost) => {
                drop(connection);
                return Err(lose(flight, lost));
            }
        };
        match head {
            Ok(head) => {
                connection.expect_body(head.length, head.keep_alive);
                return Ok(Served::Http1(head, Box::new(Exchange { connection, body })));
            }
            Err(ExchangeError::NothingSent(_)) if connection.is_used() => {
                connection.switch_to(*connect(flight).await?);
            }
            Err(error) => {
                drop(connection);
                return Err(failed(flight, error));
            }
        }
    }
}

/// What is said of an exchange that failed before the reply's head.
fn failed(flight: &mut Flight, error: ExchangeError) -> GatewayError {
    match error {
        ExchangeError::NothingSent(error) | ExchangeError::Broke(error) => {
            broke(flight, error.to_string())
        }
        ExchangeError::Bad(bad) => broke(flight, bad.to_string()),
        ExchangeError::Upload(UploadError::TooLarge) => flight.client().gateway.too_large(),
        ExchangeError::Upload(UploadError::ClientGone) => GatewayError::ClientGone,
    }
}

/// What is said about the length of a request's body.
fn length_of(parts: &Parts, body: &RequestBody) -> Length {
    if body.is_end_stream() {
        let says_so = parts.headers.contains_key(header::CONTENT_LENGTH)
            || matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
        return if says_so { Length::Exact(0) } else { Length::None };
    }
    body.size_hint().exact().map_or(Length::Chunked, Length::Exact)
}

/// The function's reply is waited for no longer.
fn lose(flight: &mut Flight, lost: Lost) -> GatewayError {
    match lost {
        Lost::Ended => broke(flight, "its sandbox ended".to_owned()),
        Lost::Silent(limit) => GatewayError::Idle { limit, doing: "being served" },
    }
}

/// The instance broke before it replied: says how, and has it looked at.
fn broke(flight: &mut Flight, reason: String) -> GatewayError {
    let Some(lease) = flight.lease.take() else { unreachable!("an exchange runs under a lease") };
    let sandbox = lease.sandbox().clone();
    let reason = lease.ended().map_or(reason, |end| end.to_string());
    suspect(lease);
    GatewayError::Broke { sandbox, reason }
}

/// An instance broke a request. If it has ended or does not accept connections, it is given up;
/// if only that one request went wrong, it stays. The slot is held until that is known.
fn suspect(lease: Lease) {
    if lease.ended().is_some() {
        lease.failed();
        return;
    }
    tokio::spawn(async move {
        let accepted = tokio::time::timeout(SUSPICION, TcpStream::connect(lease.endpoint())).await;
        if !matches!(accepted, Ok(Ok(_))) || lease.ended().is_some() {
            lease.failed();
        }
    });
}

/// Ends a request with an error of the gateway's.
fn fail(mut flight: Box<Flight>, error: &GatewayError) -> Response<ReplyBody> {
    let told = error.told();
    flight.set_status(told.status);
    flight.fail(told.outcome, crate::status::chain(error));
    refusal(error)
}

/// The reply that tells an error.
fn refusal(error: &GatewayError) -> Response<ReplyBody> {
    let told = error.told();
    let mut response = Response::new(ReplyBody::Text(Bytes::from(error.text())));
    *response.status_mut() = told.status;
    let headers = response.headers_mut();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, plain);
    headers.insert(ERROR, HeaderValue::from_static(told.code));
    if let Some(seconds) = told.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if told.status == StatusCode::PAYLOAD_TOO_LARGE || told.status == StatusCode::BAD_REQUEST {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What went wrong with the client's body, if that is why hyper failed.
fn upload_error(error: &hyper::Error) -> Option<UploadError> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(upload) = error.downcast_ref::<UploadError>() {
            return Some(*upload);
        }
        cause = error.source();
    }
    None
}
