//! Servers that behave, and some that do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use vhive_load::{Load, Protocol, Row, Shot, Target};

/// A run of a test's own: on one thread, as the engine wants.
pub(crate) fn on_one_thread<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test)
}

/// Short patience, one connection ahead.
pub(crate) fn load(address: &str, protocol: Protocol) -> Load {
    let target = Target { hostname: "f.default.test".into(), address: address.into(), protocol };
    let mut load = Load::to(vec![target]);
    load.patience = Duration::from_secs(5);
    load.drain = Duration::from_secs(5);
    load.connections = 1;
    load
}

/// So many shots, so many milliseconds apart.
pub(crate) fn shots(count: u64, every_ms: u64) -> Vec<Shot> {
    (0..count)
        .map(|n| Shot { at_ns: n * every_ms * 1_000_000, target: 0, work: None, nth: 0 })
        .collect()
}

/// Runs and gives the rows back in the order of the schedule.
pub(crate) async fn run(load: &Load, shots: Vec<Shot>) -> Vec<Row> {
    let (out, rows) = channel();
    let planned = shots.len();
    let ran = vhive_load::open_loop(load, shots, out, &vhive_load::Stop::default()).await;
    let ran = ran.expect("a run");
    let rows = sorted(rows.into_iter().flatten().collect());
    assert_eq!((rows.len(), ran.unsent), (planned, 0), "one row per shot");
    rows
}

pub(crate) fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by_key(|row| row.number);
    assert!(rows.windows(2).all(|two| two[0].number != two[1].number), "no request has two rows");
    rows
}

/// Gives each connection to `serve`, by number; returns where it listens.
pub(crate) async fn listen<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(u64, TcpStream) -> F + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("set");
            tokio::spawn(serve(number, stream));
            number += 1;
        }
    });
    address
}

/// Reads one request's head; `false` at the end.
pub(crate) async fn head(stream: &mut TcpStream) -> bool {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte).await {
            Ok(1) => seen.push(byte[0]),
            _ => return false,
        }
    }
    true
}

pub(crate) const HELLO: &[u8] =
    b"HTTP/1.1 200 OK\r\nx-request-id: id-1\r\ncontent-length: 5\r\n\r\nhello";

/// Answers each request after `delay`; counts connections.
pub(crate) async fn hello(delay: Duration) -> (String, Arc<AtomicU64>) {
    let connections = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&connections);
    let address = listen(move |_, mut stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            while head(&mut stream).await {
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                if stream.write_all(HELLO).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (address, connections)
}

/// Speaks HTTP/2: greets by gRPC where it is asked to, and else echoes the body.
pub(crate) async fn h2() -> String {
    listen(|_, stream| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let grpc = request.uri().path() == "/helloworld.Greeter/SayHello";
            let execute = request.uri().path() == "/faas.Executor/Execute";
            let host = request.uri().host().map(str::to_owned);
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let reply = match (grpc, execute) {
                (true, _) => Bytes::from_static(b"\0\0\0\0\x0b\x0a\x09Hello|123"),
                // duration 7, memory 8
                (_, true) => Bytes::from_static(b"\0\0\0\0\x04\x10\x07\x18\x08"),
                _ => body,
            };
            let mut trailers = http::HeaderMap::new();
            if grpc || execute {
                trailers.insert("grpc-status", "0".parse().expect("a value"));
            }
            let frames = [Ok::<_, std::convert::Infallible>(Frame::data(reply))];
            let frames: Vec<_> =
                frames.into_iter().chain([Ok(Frame::trailers(trailers))]).collect();
            let body = StreamBody::new(futures_util::stream::iter(frames));
            Response::builder().header("x-request-id", host.unwrap_or_default()).body(body)
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(server.serve_connection(TokioIo::new(stream), service).await);
    })
    .await
}
