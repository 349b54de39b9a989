//! HTTP/1.1: connections that are kept, one request at a time on each.
//!
//! The sender writes a request into an idle connection's socket itself; the connection's task
//! reads the reply. There is no hyper in between: its hand-over to a task of its own would come
//! after the moment that is recorded as the send.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

use super::reply::{Reader, Reply};
use super::{Shared, bad_status, is_good, no_connection};
use crate::call::{self, Plain, Protocol};
use crate::clock::nanos;
use crate::collect::{End, Pending, locked};
use crate::row::Outcome;

/// A request's bytes.
pub(super) fn request(
    method: &Method,
    path: &str,
    host: &str,
    headers: &[(HeaderName, HeaderValue)],
    body: &[u8],
) -> Bytes {
    let mut out = Vec::with_capacity(256 + body.len());
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
    put(&[method.as_str().as_bytes(), b" ", path.as_bytes(), b" HTTP/1.1\r\n"]);
    if !headers.iter().any(|(name, _)| *name == http::header::HOST) {
        put(&[b"host: ", host.as_bytes(), b"\r\n"]);
    }
    for (name, value) in headers {
        put(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    if !body.is_empty() || method == Method::POST || method == Method::PUT {
        if !headers.iter().any(|(name, _)| *name == http::header::CONTENT_TYPE) {
            put(&[b"content-type: application/json\r\n"]);
        }
        put(&[b"content-length: ", body.len().to_string().as_bytes(), b"\r\n"]);
    }
    put(&[b"\r\n", body]);
    out.into()
}

/// The bytes of the request that is the same each time.
pub(super) fn plain(host: &str, plain: &Plain) -> Bytes {
    request(&plain.method, &plain.path, host, &plain.headers, &plain.body)
}

#[derive(Debug)]
enum State {
    Idle,
    Busy(Pending),
    Dead,
}

#[derive(Debug)]
struct Connection {
    write: OwnedWriteHalf,
    state: Mutex<State>,
    killed: Notify,
}

impl Connection {
    /// Takes what it is busy with, and makes it `then`.
    fn take(&self, then: State) -> Option<Pending> {
        match std::mem::replace(&mut *locked(&self.state), then) {
            State::Busy(pending) => Some(pending),
            State::Idle | State::Dead => None,
        }
    }

    /// Ends the request `number`, if it is still under way, and the connection with it.
    fn give_up(&self, number: u64, outcome: Outcome) {
        let pending = {
            let mut state = locked(&self.state);
            match &*state {
                State::Busy(pending) if pending.number == number => {}
                _ => return,
            }
            match std::mem::replace(&mut *state, State::Dead) {
                State::Busy(pending) => pending,
                State::Idle | State::Dead => return,
            }
        };
        self.killed.notify_one();
        let why = if outcome == Outcome::Timeout { "no reply in time" } else { "the run ended" };
        pending.fail(outcome, why);
    }

    fn is_busy_with(&self, number: u64) -> bool {
        matches!(&*locked(&self.state), State::Busy(pending) if pending.number == number)
    }
}

/// Connections to one address.
#[derive(Debug)]
pub(super) struct Pool {
    address: SocketAddr,
    /// Last in, first out: the rest may be closed by the peer when they are idle for long.
    idle: Mutex<Vec<Arc<Connection>>>,
    /// Requests that found as many connections as there may be, all busy.
    waiting: Mutex<VecDeque<(Pending, Bytes)>>,
    /// Connections there are, those under way included.
    open: AtomicUsize,
    shared: Arc<Shared>,
    expiry: Arc<Expiry>,
}

/// Counts a connection as long as it is held.
struct Place(Arc<Pool>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        if let Some((pending, bytes)) = self.0.next() {
            self.0.send(pending, bytes);
        }
    }
}

impl Pool {
    pub(super) fn new(
        shared: &Arc<Shared>,
        expiry: &Arc<Expiry>,
        address: SocketAddr,
    ) -> Arc<Self> {
        let (shared, expiry) = (Arc::clone(shared), Arc::clone(expiry));
        let (idle, waiting, open) = (Mutex::default(), Mutex::default(), AtomicUsize::new(0));
        Arc::new(Self { address, idle, waiting, open, shared, expiry })
    }

    /// Opens a connection ahead; returns what that took.
    pub(super) async fn open(self: &Arc<Self>, most: Duration) -> Result<u64, String> {
        let Some(place) = self.place() else { return Err("no more connections".to_owned()) };
        let (connection, took) = self.connect(place, most).await?;
        locked(&self.idle).push(connection);
        Ok(took)
    }

    pub(super) fn send(self: &Arc<Self>, mut pending: Pending, bytes: Bytes) {
        loop {
            let Some(connection) = locked(&self.idle).pop() else { break };
            match self.write(&connection, pending, &bytes) {
                None => return,
                Some(back) => pending = back,
            }
        }
        if self.shared.abandon.is_cancelled() {
            return;
        }
        let Some(place) = self.place() else {
            locked(&self.waiting).push_back((pending, bytes));
            return;
        };
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            let abandon = pool.shared.abandon.clone();
            tokio::select! {
                () = pool.connect_and_send(place, pending, bytes) => {}
                () = abandon.cancelled() => {}
            }
        });
    }

    /// A place for one more connection, if there may be one.
    fn place(self: &Arc<Self>) -> Option<Place> {
        self.shared.one_more(&self.open).then(|| Place(Arc::clone(self)))
    }

    /// Gives a connection that has become free to the next request, or keeps it.
    fn free(self: &Arc<Self>, connection: &Arc<Connection>) {
        match self.next() {
            Some((pending, bytes)) => {
                if let Some(back) = self.write(connection, pending, &bytes) {
                    self.send(back, bytes);
                }
            }
            None => locked(&self.idle).push(Arc::clone(connection)),
        }
    }

    /// The request that has waited longest for a connection; those that have waited too long are
    /// ended.
    fn next(&self) -> Option<(Pending, Bytes)> {
        loop {
            let (pending, bytes) = locked(&self.waiting).pop_front()?;
            if !self.time_left(&pending).is_zero() {
                return Some((pending, bytes));
            }
            pending.fail(Outcome::Timeout, "no connection was free in time");
        }
    }

    /// How long a request may still wait for a connection, or be connecting: both together take no longer than
    /// its reply may.
    fn time_left(&self, pending: &Pending) -> Duration {
        let due = pending.shot.at_ns.saturating_add(nanos(self.shared.patience));
        Duration::from_nanos(due.saturating_sub(self.shared.collector.clock().now_ns()))
    }

    /// Gives up what waits for a connection.
    pub(super) fn abandon(&self) {
        let waiting = std::mem::take(&mut *locked(&self.waiting));
        // Dropped, each tells that it is unfinished.
        drop(waiting);
    }

    async fn connect_and_send(self: &Arc<Self>, place: Place, mut pending: Pending, bytes: Bytes) {
        match self.connect(place, self.time_left(&pending)).await {
            Ok((connection, took)) => {
                pending.connect_ns = Some(took);
                if let Some(pending) = self.write(&connection, pending, &bytes) {
                    pending.fail(Outcome::Error, "the connection was closed at once");
                }
            }
            Err(why) => pending.fail(Outcome::Error, why),
        }
    }

    async fn connect(
        self: &Arc<Self>,
        place: Place,
        most: Duration,
    ) -> Result<(Arc<Connection>, u64), String> {
        let begun = Instant::now();
        let address = self.address;
        let connected = tokio::time::timeout(most, TcpStream::connect(address)).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(no_connection(address, &error)),
            Err(_) => return Err(format!("cannot connect to {address}: no answer in time")),
        };
        let took = nanos(begun.elapsed());
        stream.set_nodelay(true).map_err(|error| format!("{address}: {error}"))?;
        let (read, write) = stream.into_split();
        let (state, killed) = (Mutex::new(State::Idle), Notify::new());
        let connection = Arc::new(Connection { write, state, killed });
        tokio::spawn(Arc::clone(self).serve(place, Arc::clone(&connection), read));
        Ok((connection, took))
    }

    /// Writes a request; gives it back when the connection has died meanwhile.
    fn write(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        mut pending: Pending,
        bytes: &Bytes,
    ) -> Option<Pending> {
        let number = pending.number;
        {
            let mut state = locked(&connection.state);
            if matches!(*state, State::Dead) {
                return Some(pending);
            }
            pending.sent_ns = Some(self.shared.collector.clock().now_ns());
            *state = State::Busy(pending);
        }
        match connection.write.try_write(bytes) {
            Ok(all) if all == bytes.len() => {}
            Ok(some) => self.write_rest(connection, bytes.slice(some..)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.write_rest(connection, bytes.clone());
            }
            // The reader learns of it too; whoever is first tells it.
            Err(error) => {
                if let Some(pending) = connection.take(State::Dead) {
                    pending.fail(Outcome::Error, format!("cannot send: {error}"));
                }
                connection.killed.notify_one();
            }
        }
        self.expiry.push(Instant::now() + self.shared.patience, connection, number);
        None
    }

    /// Writes what the socket's buffer had no room for.
    fn write_rest(&self, connection: &Arc<Connection>, mut rest: Bytes) {
        let connection = Arc::clone(connection);
        let abandon = self.shared.abandon.clone();
        tokio::spawn(async move {
            while !rest.is_empty() {
                let ready = tokio::select! {
                    ready = connection.write.writable() => ready,
                    () = abandon.cancelled() => return,
                };
                match ready.and_then(|()| connection.write.try_write(&rest)) {
                    Ok(some) => drop(rest.split_to(some)),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    // The reader tells it.
                    Err(_) => return,
                }
            }
        });
    }

    /// Reads a connection's replies until it ends.
    async fn serve(
        self: Arc<Self>,
        _place: Place,
        connection: Arc<Connection>,
        mut read: OwnedReadHalf,
    ) {
        let no_body = self.shared.plain.method == Method::HEAD;
        let mut reader = Reader::new(self.shared.keep_body, no_body);
        let mut buffer = vec![0; 16 << 10];
        let abandon = self.shared.abandon.clone();
        let abandoned = abandon.cancelled();
        tokio::pin!(abandoned);
        let why = loop {
            let got = tokio::select! {
                biased;
                got = read.read(&mut buffer) => got,
                () = connection.killed.notified() => return,
                () = &mut abandoned => return,
            };
            let now_ns = self.shared.collector.clock().now_ns();
            let fed = match got {
                Ok(0) => match reader.end() {
                    Some(reply) => Ok(Some(reply)),
                    None => break "the connection was closed before the reply's end".to_owned(),
                },
                Ok(n) => reader.feed(&buffer[..n], now_ns),
                Err(error) => break format!("the connection broke: {error}"),
            };
            match fed {
                Ok(None) => {}
                Err(nonsense) => break nonsense.0.to_owned(),
                Ok(Some(reply)) => {
                    let keeps = reply.keeps && !reader.has_rest();
                    let then = if keeps { State::Idle } else { State::Dead };
                    let Some(pending) = connection.take(then) else {
                        break "a reply that nobody asked for".to_owned();
                    };
                    // Idle again before the row is told: a closed loop sends its next at once.
                    if keeps {
                        self.free(&connection);
                    }
                    finish(pending, reply, now_ns);
                    if !keeps {
                        return;
                    }
                }
            }
        };
        if let Some(pending) = connection.take(State::Dead) {
            pending.fail(Outcome::Error, why);
        }
        locked(&self.idle).retain(|other| !Arc::ptr_eq(other, &connection));
    }
}

fn finish(pending: Pending, reply: Reply, done_ns: u64) {
    let bad = !is_good(reply.status);
    let error = bad.then(|| bad_status(reply.status, reply.reason.as_deref()).into_boxed_str());
    let end = End {
        done_ns,
        first_byte_ns: Some(reply.first_byte_ns),
        status: Some(reply.status),
        grpc_status: None,
        error,
        id: reply.id,
        body_bytes: reply.body_bytes,
        did: call::did(Protocol::Http1, pending.shot.work.is_some(), &reply.body),
    };
    pending.end(if bad { Outcome::Error } else { Outcome::Ok }, end);
}

/// Ends requests that take too long. All have the same patience, so the oldest is the first.
#[derive(Debug)]
pub(super) struct Expiry {
    queue: Mutex<VecDeque<(Instant, Arc<Connection>, u64)>>,
    filled: Notify,
}

impl Expiry {
    pub(super) fn begin(shared: &Arc<Shared>) -> Arc<Self> {
        let expiry = Arc::new(Self { queue: Mutex::default(), filled: Notify::new() });
        let (this, abandon) = (Arc::clone(&expiry), shared.abandon.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = this.watch() => {}
                () = abandon.cancelled() => {}
            }
        });
        expiry
    }

    fn push(&self, deadline: Instant, connection: &Arc<Connection>, number: u64) {
        let mut queue = locked(&self.queue);
        while queue.front().is_some_and(|(_, first, number)| !first.is_busy_with(*number)) {
            queue.pop_front();
        }
        let was_empty = queue.is_empty();
        queue.push_back((deadline, Arc::clone(connection), number));
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
    }

    async fn watch(&self) {
        loop {
            let first = locked(&self.queue).front().map(|(deadline, ..)| *deadline);
            let Some(deadline) = first else {
                self.filled.notified().await;
                continue;
            };
            if deadline > Instant::now() {
                tokio::time::sleep_until(deadline.into()).await;
            }
            let due = {
                let mut queue = locked(&self.queue);
                let is_due = queue.front().is_some_and(|(at, ..)| *at <= Instant::now());
                if is_due { queue.pop_front() } else { None }
            };
            if let Some((_, connection, number)) = due {
                connection.give_up(number, Outcome::Timeout);
            }
        }
    }

    /// Gives up all requests.
    pub(super) fn abandon(&self) {
        for (_, connection, number) in std::mem::take(&mut *locked(&self.queue)) {
            connection.give_up(number, Outcome::Unfinished);
        }
    }
}
