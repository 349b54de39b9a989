//! HTTP/2 by prior knowledge, plain or gRPC: many requests at a time on each connection.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::oneshot::{Receiver, Sender, channel};

use super::{Shared, bad_status, is_good, no_connection};
use crate::call::{self, Did, Plain, Protocol, Work};
use crate::clock::nanos;
use crate::collect::{End, Pending, locked};
use crate::row::Outcome;

/// Requests at a time on one connection, at most: what servers commonly allow. One that allows less
/// says so; more would queue inside the client, unseen.
const STREAMS: usize = 100;
/// What a connection is begun with, and no server can say: its settings have not come yet.
const UNTOLD: usize = usize::MAX - 1;

/// The field by which a gRPC server knows how long its caller waits.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// DEADLINE_EXCEEDED.
const DEADLINE_EXCEEDED: i32 = 4;

/// A request for a host. `deadline` makes it one of gRPC, and is sent with it unless the caller's metadata
/// has another.
pub(super) fn request(
    host: &str,
    deadline: Option<&HeaderValue>,
    plain: &Plain,
    work: Option<Work>,
) -> Result<Request<Full<Bytes>>, http::Error> {
    if let Some(deadline) = deadline {
        let (path, body) = call::grpc_call(plain, work);
        let mut request = Request::post(format!("http://{host}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(body))?;
        if work.is_none() {
            // Metadata, as gRPC calls it; what makes it gRPC stays.
            let more =
                plain.headers.iter().filter(|(name, _)| !request.headers().contains_key(name));
            let more: Vec<_> = more.cloned().collect();
            request.headers_mut().extend(more);
        }
        request.headers_mut().entry(GRPC_TIMEOUT).or_insert_with(|| deadline.clone());
        return Ok(request);
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

/// A time-out as gRPC writes it, in at most eight digits: exactly, or if these do not suffice rounded up.
///
/// # Source
/// gRPC over HTTP/2, `PROTOCOL-HTTP2.md`, `Timeout`.
pub(super) fn deadline(most: Duration) -> Option<HeaderValue> {
    const UNITS: [(u128, char); 6] = [
        (3_600_000_000_000, 'H'),
        (60_000_000_000, 'M'),
        (1_000_000_000, 'S'),
        (1_000_000, 'm'),
        (1_000, 'u'),
        (1, 'n'),
    ];
    let ns = most.as_nanos();
    let fits = |unit: u128| ns.div_ceil(unit) < 100_000_000;
    let exact = UNITS.iter().find(|(unit, _)| ns.is_multiple_of(*unit) && fits(*unit));
    let (unit, letter) = exact.or_else(|| UNITS.iter().rfind(|(unit, _)| fits(*unit)))?;
    HeaderValue::try_from(format!("{}{letter}", ns.div_ceil(*unit))).ok()
}

/// A connection, and how many requests are under way on it.
#[derive(Clone, Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    streams: Arc<AtomicUsize>,
    /// As many may be: what the server says, once it has.
    most: Arc<AtomicUsize>,
}

impl Connection {
    fn count(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }
}

/// Connections to one address.
#[derive(Debug)]
pub(super) struct Pool {
    address: SocketAddr,
    open: Mutex<Vec<Connection>>,
    /// Connections there are, those under way included.
    places: AtomicUsize,
    /// Requests that found neither a stream nor a place for one more connection, the first in front.
    waiting: Mutex<VecDeque<Sender<Room>>>,
    shared: Arc<Shared>,
}

/// Where a request can go.
#[derive(Debug)]
enum Room {
    On(Connection, Stream),
    New(Place),
}

/// One request's place on a connection.
#[derive(Debug)]
struct Stream {
    streams: Arc<AtomicUsize>,
    pool: Arc<Pool>,
}

impl Stream {
    fn on(connection: &Connection, pool: &Arc<Pool>) -> Self {
        connection.streams.fetch_add(1, Ordering::Relaxed);
        Self { streams: Arc::clone(&connection.streams), pool: Arc::clone(pool) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
        self.pool.hand_out();
    }
}

/// Counts a connection as long as it is held.
#[derive(Debug)]
struct Place(Arc<Pool>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.fetch_sub(1, Ordering::Relaxed);
        self.0.hand_out();
    }
}

/// How far a request has come.
enum Way {
    Sent(Reply),
    To(Place, Request<Full<Bytes>>),
    Waits(Receiver<Room>, Request<Full<Bytes>>),
}

impl Pool {
    pub(super) fn new(shared: &Arc<Shared>, address: SocketAddr) -> Arc<Self> {
        let (places, open, waiting) = (AtomicUsize::new(0), Mutex::default(), Mutex::default());
        Arc::new(Self { address, open, places, waiting, shared: Arc::clone(shared) })
    }

    pub(super) async fn open(self: &Arc<Self>, most: Duration) -> Result<u64, String> {
        let Some(place) = self.place() else { return Err("no more connections".to_owned()) };
        self.connect(place, most).await.map(|(.., took)| took)
    }

    pub(super) fn send(
        self: &Arc<Self>,
        mut pending: Pending,
        request: Request<Full<Bytes>>,
        grpc: bool,
    ) {
        let way = match self.ask() {
            Ok(Room::On(connection, stream)) => {
                pending.sent_ns = Some(self.shared.collector.clock().now_ns());
                Way::Sent(start(connection, stream, request))
            }
            Ok(Room::New(place)) => Way::To(place, request),
            Err(told) => Way::Waits(told, request),
        };
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            let abandon = pool.shared.abandon.clone();
            tokio::select! {
                () = pool.follow(pending, way, grpc) => {}
                () = abandon.cancelled() => {}
            }
        });
    }

    /// Sends a request, unless it is sent, and ends it.
    async fn follow(self: &Arc<Self>, mut pending: Pending, mut way: Way, grpc: bool) {
        let (shared, clock) = (&self.shared, self.shared.collector.clock());
        if let Way::Waits(told, request) = way {
            let due = clock.at(pending.shot.at_ns) + shared.patience;
            let room = tokio::time::timeout_at(due.into(), told).await;
            // Room may come in the very moment in which it is too late.
            way = match room.ok().and_then(Result::ok).filter(|_| Instant::now() <= due) {
                Some(Room::On(connection, stream)) => {
                    pending.sent_ns = Some(clock.now_ns());
                    Way::Sent(start(connection, stream, request))
                }
                Some(Room::New(place)) => Way::To(place, request),
                None => return pending.fail(Outcome::Timeout, "no connection was free in time"),
            };
        }
        let has_work = pending.shot.work.is_some();
        let work = async {
            let reply = match way {
                Way::Sent(reply) => reply,
                Way::To(place, request) => {
                    let (connection, stream, took) = self.connect(place, shared.patience).await?;
                    pending.connect_ns = Some(took);
                    pending.sent_ns = Some(clock.now_ns());
                    start(connection, stream, request)
                }
                Way::Waits(..) => return Err("it waits for a connection".to_owned()),
            };
            read(shared, reply, grpc, has_work).await
        };
        match tokio::time::timeout(shared.patience, work).await {
            Ok(Ok((outcome, end))) => pending.end(outcome, end),
            Ok(Err(why)) => pending.fail(Outcome::Error, why),
            Err(_) => pending.fail(Outcome::Timeout, "no reply in time"),
        }
    }

    /// A stream of the connection that has most left, or a place for one more connection.
    fn room(self: &Arc<Self>) -> Option<Room> {
        let mut open = locked(&self.open);
        open.retain(|connection| !connection.sender.is_closed());
        let has_room = |one: &&Connection| one.count() < one.most.load(Ordering::Relaxed);
        let least = open.iter().filter(has_room).min_by_key(|one| one.count());
        match least {
            Some(connection) => Some(Room::On(connection.clone(), Stream::on(connection, self))),
            None => self.place().map(Room::New),
        }
    }

    /// Room, or what tells of it later. Nobody overtakes those that wait.
    fn ask(self: &Arc<Self>) -> Result<Room, Receiver<Room>> {
        let mut waiting = locked(&self.waiting);
        leave(&mut waiting);
        let room = if waiting.is_empty() { self.room() } else { None };
        room.ok_or_else(|| {
            let (tell, told) = channel();
            waiting.push_back(tell);
            told
        })
    }

    /// Gives the room that there is to those that wait: called whenever there may be more than before.
    fn hand_out(self: &Arc<Self>) {
        loop {
            let mut waiting = locked(&self.waiting);
            leave(&mut waiting);
            if waiting.is_empty() {
                return;
            }
            let Some(room) = self.room() else { return };
            let first = waiting.pop_front();
            // Room that nobody takes comes here again as it is dropped.
            drop(waiting);
            drop(first.map(|first| first.send(room)));
        }
    }

    /// A place for one more connection, if there may be one.
    fn place(self: &Arc<Self>) -> Option<Place> {
        self.shared.one_more(&self.places).then(|| Place(Arc::clone(self)))
    }

    /// Connects; the first stream is that of whoever asks for it.
    async fn connect(
        self: &Arc<Self>,
        place: Place,
        most: Duration,
    ) -> Result<(Connection, Stream, u64), String> {
        let begun = Instant::now();
        let address = self.address;
        let why = |error: &dyn std::fmt::Display| format!("cannot connect to {address}: {error}");
        let stream = match tokio::time::timeout(most, TcpStream::connect(address)).await {
            Ok(stream) => stream.map_err(|error| no_connection(address, &error))?,
            Err(_) => return Err(why(&"no answer in time")),
        };
        stream.set_nodelay(true).map_err(|error| why(&error))?;
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).initial_max_send_streams(UNTOLD);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (sender, driver) = handshake.map_err(|error| why(&error))?;
        let streams = Arc::new(AtomicUsize::new(STREAMS));
        let most = Arc::clone(&streams);
        tokio::spawn(async move { drive(driver, &streams, &place).await });
        let connection = Connection { sender, streams: Arc::default(), most };
        let stream = Stream::on(&connection, self);
        locked(&self.open).push(connection.clone());
        Ok((connection, stream, nanos(begun.elapsed())))
    }
}

/// Those that have given up wait no longer.
fn leave(waiting: &mut VecDeque<Sender<Room>>) {
    while waiting.front().is_some_and(Sender::is_closed) {
        waiting.pop_front();
    }
}

type Driver =
    hyper::client::conn::http2::Connection<TokioIo<TcpStream>, Full<Bytes>, TokioExecutor>;

/// Keeps a connection going until it ends, and `most` at what the server allows on it. Those that wait
/// get none of it before the server has said what it allows. Its error is also that of each of its
/// requests.
async fn drive(driver: Driver, most: &AtomicUsize, place: &Place) {
    tokio::pin!(driver);
    let mut told = false;
    let step = |context: &mut Context<'_>| {
        let done = driver.as_mut().poll(context);
        let allowed = driver.current_max_send_streams();
        if allowed != UNTOLD {
            let now = allowed.clamp(1, STREAMS);
            let more = most.swap(now, Ordering::Relaxed) < now;
            if more || !told {
                place.0.hand_out();
            }
            told = true;
        }
        done
    };
    drop(std::future::poll_fn(step).await);
}

type Sent = hyper::Result<http::Response<hyper::body::Incoming>>;
type Reply = Pin<Box<dyn Future<Output = (Stream, Sent)> + Send>>;

/// Hands a request to its connection; the future is its reply.
fn start(mut connection: Connection, stream: Stream, request: Request<Full<Bytes>>) -> Reply {
    let reply = connection.sender.send_request(request);
    Box::pin(async move { (stream, reply.await) })
}

async fn read(
    shared: &Shared,
    reply: Reply,
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
    let error = match grpc_status {
        _ if !is_good(status) => Some(bad_status(status, field("x-vhive-error").as_deref())),
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
    let outcome = match (&end.error, grpc_status) {
        (None, _) => Outcome::Ok,
        // The server knows the deadline and may tell of it before it has passed here.
        (_, Some(DEADLINE_EXCEEDED)) => Outcome::Timeout,
        _ => Outcome::Error,
    };
    Ok((outcome, end))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_has_eight_digits_and_is_never_shorter() {
        let told = |most| deadline(most).map(|value| value.to_str().unwrap_or("").to_owned());
        for (most, text) in [
            (Duration::from_secs(30), "30S"),
            (Duration::from_secs(900), "15M"),
            (Duration::from_secs(7200), "2H"),
            (Duration::from_millis(1500), "1500m"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_001), "100001u"),
            (Duration::new(100, 1), "100001m"),
            (crate::LONGEST, "87600H"),
            (crate::LONGEST + Duration::from_nanos(1), "5256001M"),
        ] {
            assert_eq!(told(most).as_deref(), Some(text), "{most:?}");
        }
    }

    #[test]
    fn a_deadline_goes_with_grpc_only_and_the_callers_own_goes_before() {
        let mut plain = Plain::default();
        let of = |plain: &Plain, deadline: Option<&HeaderValue>, work| {
            let request = request("f.test", deadline, plain, work).expect("a request");
            let all = request.headers().get_all("grpc-timeout").iter();
            all.map(|value| value.to_str().expect("text").to_owned()).collect::<Vec<_>>()
        };
        let ours = deadline(Duration::from_secs(30));
        let work = Some(Work { runtime_ms: 1, memory_mib: 1 });
        assert_eq!(of(&plain, ours.as_ref(), None), ["30S"]);
        assert_eq!(of(&plain, ours.as_ref(), work), ["30S"]);
        assert!(of(&plain, None, None).is_empty() && of(&plain, None, work).is_empty());
        plain.headers = vec![(GRPC_TIMEOUT, HeaderValue::from_static("1S"))];
        assert_eq!(of(&plain, ours.as_ref(), None), ["1S"]);
    }
}
