//! HTTP/2 by prior knowledge, plain or gRPC: many requests at a time on each connection.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::Shared;
use crate::call::{self, Did, Plain, Protocol, Work};
use crate::clock::nanos;
use crate::collect::{End, Pending, locked};
use crate::row::Outcome;

/// Requests at a time on one connection: what servers commonly allow. More would queue inside
/// the client, unseen.
const STREAMS: usize = 100;

/// A request for a host.
pub(super) fn request(
    host: &str,
    grpc: bool,
    plain: &Plain,
    work: Option<Work>,
) -> Result<Request<Full<Bytes>>, http::Error> {
    if grpc {
        let (path, body) = call::grpc_call(plain, work);
        return Request::post(format!("http://{host}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(body));
    }
    let (method, path, body) = match work {
        Some(work) => (&Method::POST, "/", call::work_json(work)),
        None => (&plain.method, plain.path.as_str(), plain.body.clone()),
    };
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{host}{path}"))
        .body(Full::new(body))?;
    if work.is_none() {
        request.headers_mut().extend(plain.headers.iter().cloned());
    }
    Ok(request)
}

#[derive(Clone, Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    streams: Arc<AtomicUsize>,
}

/// Connections to one address.
#[derive(Debug)]
pub(super) struct Pool {
    address: SocketAddr,
    open: Mutex<Vec<Connection>>,
    shared: Arc<Shared>,
}

impl Pool {
    pub(super) fn new(shared: &Arc<Shared>, address: SocketAddr) -> Arc<Self> {
        Arc::new(Self { address, open: Mutex::default(), shared: Arc::clone(shared) })
    }

    pub(super) async fn open(&self) -> Result<u64, String> {
        self.connect().await.map(|(_, took)| took)
    }

    pub(super) fn send(
        self: &Arc<Self>,
        mut pending: Pending,
        request: Request<Full<Bytes>>,
        grpc: bool,
    ) {
        let free = {
            let mut open = locked(&self.open);
            open.retain(|connection| !connection.sender.is_closed());
            let least = open.iter().min_by_key(|one| one.streams.load(Ordering::Relaxed));
            least.filter(|one| one.streams.load(Ordering::Relaxed) < STREAMS).cloned()
        };
        let pool = Arc::clone(self);
        let (begun, request) = match free {
            Some(connection) => {
                pending.sent_ns = Some(pool.shared.collector.clock().now_ns());
                (Some(start(connection, request)), None)
            }
            None => (None, Some(request)),
        };
        tokio::spawn(async move {
            let abandon = pool.shared.abandon.clone();
            let patience = pool.shared.patience;
            let work = async {
                let (has_work, shared) = (pending.shot.work.is_some(), &pool.shared);
                if let Some(request) = request {
                    let (connection, took) = pool.connect().await?;
                    pending.connect_ns = Some(took);
                    pending.sent_ns = Some(shared.collector.clock().now_ns());
                    return read(shared, start(connection, request), grpc, has_work).await;
                }
                match begun {
                    Some(reply) => read(shared, reply, grpc, has_work).await,
                    None => Err("neither sent nor to be sent".to_owned()),
                }
            };
            tokio::select! {
                done = tokio::time::timeout(patience, work) => match done {
                    Ok(Ok((outcome, end))) => pending.end(outcome, end),
                    Ok(Err(why)) => pending.fail(Outcome::Error, why),
                    Err(_) => pending.fail(Outcome::Timeout, "no reply in time"),
                },
                () = abandon.cancelled() => {}
            }
        });
    }

    async fn connect(&self) -> Result<(Connection, u64), String> {
        let begun = Instant::now();
        let address = self.address;
        let why = |error: &dyn std::fmt::Display| format!("cannot connect to {address}: {error}");
        let connected = TcpStream::connect(address);
        let stream = match tokio::time::timeout(self.shared.patience, connected).await {
            Ok(stream) => stream.map_err(|error| why(&error))?,
            Err(_) => return Err(why(&"no answer in time")),
        };
        stream.set_nodelay(true).map_err(|error| why(&error))?;
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new());
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (sender, driver) = handshake.map_err(|error| why(&error))?;
        // Its error is also that of each of its requests.
        tokio::spawn(async move { drop(driver.await) });
        let connection = Connection { sender, streams: Arc::default() };
        locked(&self.open).push(connection.clone());
        Ok((connection, nanos(begun.elapsed())))
    }
}

/// One place on a connection.
struct Stream(Arc<AtomicUsize>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

type Sent = hyper::Result<http::Response<hyper::body::Incoming>>;

/// Hands a request to its connection; the future is its reply.
fn start(
    mut connection: Connection,
    request: Request<Full<Bytes>>,
) -> impl Future<Output = (Stream, Sent)> + Send {
    connection.streams.fetch_add(1, Ordering::Relaxed);
    let stream = Stream(Arc::clone(&connection.streams));
    let reply = connection.sender.send_request(request);
    async move { (stream, reply.await) }
}

async fn read(
    shared: &Shared,
    reply: impl Future<Output = (Stream, Sent)>,
    grpc: bool,
    has_work: bool,
) -> Result<(Outcome, End), String> {
    let (_stream, reply) = reply.await;
    let broken = |error: hyper::Error| format!("the request broke: {}", chain(&error));
    let (head, mut incoming) = reply.map_err(broken)?.into_parts();
    let first_byte_ns = Some(shared.collector.clock().now_ns());
    let (mut body, mut body_bytes, mut trailers) = (Vec::new(), 0, None);
    while let Some(frame) = incoming.frame().await {
        match frame.map_err(broken)?.into_data() {
            Ok(data) => {
                body_bytes += data.len() as u64;
                if shared.keep_body && body.len() < 1 << 20 {
                    body.extend_from_slice(&data);
                }
            }
            Err(other) => trailers = other.into_trailers().ok(),
        }
    }
    let done_ns = shared.collector.clock().now_ns();
    let field = |name: &str| {
        let value = trailers.as_ref().and_then(|map| map.get(name)).or(head.headers.get(name));
        value.and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let status = head.status.as_u16();
    let grpc_status =
        if grpc { field("grpc-status").and_then(|text| text.parse().ok()) } else { None };
    let reason = field("x-vhive-error").map_or_else(String::new, |reason| format!(": {reason}"));
    let error = match grpc_status {
        _ if status >= 400 => Some(format!("status {status}{reason}")),
        None if grpc => Some("the reply has no grpc-status".to_owned()),
        Some(code) if code != 0 => {
            Some(format!("grpc-status {code}: {}", field("grpc-message").unwrap_or_default()))
        }
        _ => None,
    };
    let protocol = if grpc { Protocol::Grpc } else { Protocol::H2c };
    let end = End {
        done_ns,
        first_byte_ns,
        status: Some(status),
        grpc_status,
        error: error.map(String::into_boxed_str),
        id: field("x-request-id").map(String::into_boxed_str),
        body_bytes,
        // What a method of another kind replies says nothing of itself.
        did: match &shared.plain.call {
            Some(_) if !has_work => Did::default(),
            _ => call::did(protocol, has_work, &body),
        },
    };
    Ok((if end.error.is_some() { Outcome::Error } else { Outcome::Ok }, end))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}
