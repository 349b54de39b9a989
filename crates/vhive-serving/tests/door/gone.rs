//! A guest that is gone: its connections stay open, for no kernel is left there that would close them.

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use vhive_api::Outcome;
use vhive_node::Runtimes;
use vhive_sandbox::{End, Journal};

use crate::support::{InProcess, Setup, World, host, read_head, within};

/// Keeps the connection open, whatever becomes of the sandbox.
fn keep(stream: TcpStream) {
    tokio::spawn(async move {
        let _stream = stream;
        pending::<()>().await;
    });
}

async fn takes(mut stream: TcpStream, came: Arc<Notify>) {
    // The probe connects and says nothing.
    if read_head(&mut stream).await.is_none() {
        return;
    }
    came.notify_one();
    keep(stream);
}

async fn begins(mut stream: TcpStream, came: Arc<Notify>) {
    if read_head(&mut stream).await.is_none() {
        return;
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
    came.notify_one();
    keep(stream);
}

/// Says enough of HTTP/2 to be sent a request: its settings.
async fn shakes(mut stream: TcpStream, came: Arc<Notify>) {
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut preface = [0; 24];
    if stream.read_exact(&mut preface).await.is_err() {
        return;
    }
    stream.write_all(&settings).await.unwrap();
    came.notify_one();
    keep(stream);
}

/// Sends a request, ends the sandbox once that is there and `first` has come back, and says what came.
async fn told(world: &World, first: &str, came: &Notify, journals: &Journals) -> String {
    let mut stream = world.connect().await;
    let wire = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host("gone"));
    stream.write_all(wire.as_bytes()).await.unwrap();
    within(came.notified()).await;
    let mut reply = Vec::new();
    while !reply.ends_with(first.as_bytes()) {
        assert_ne!(within(stream.read_buf(&mut reply)).await.unwrap(), 0);
    }
    end_all(journals);
    // A reply that has begun is cut off.
    let _cut = within(stream.read_to_end(&mut reply)).await;
    String::from_utf8(reply).unwrap()
}

type Journals = Mutex<Vec<Arc<Journal>>>;

#[tokio::test]
async fn a_guest_that_is_gone_keeps_no_request() {
    let came = Arc::new(Notify::new());
    let of = || Arc::clone(&came);
    let (one, two, three) = (of(), of(), of());
    let cases = [
        (InProcess::new(move |stream| takes(stream, Arc::clone(&one))), "http1", ""),
        (InProcess::new(move |stream| begins(stream, Arc::clone(&two))), "http1", "half"),
        (InProcess::new(move |stream| shakes(stream, Arc::clone(&three))), "h2c", ""),
    ];
    for (runtime, protocol, first) in cases {
        let journals = Arc::clone(&runtime.journals);
        let world = Setup::of(Runtimes::new().with(runtime)).start().await;
        let change = |document: &mut serde_json::Value| {
            document["spec"]["template"]["spec"]["containers"][0]["ports"] =
                serde_json::json!([{"name": protocol, "containerPort": 8080}]);
        };
        world.apply("gone", change).await;
        let reply = told(&world, first, &came, &journals).await;
        if first.is_empty() {
            assert!(reply.starts_with("HTTP/1.1 502"), "{protocol}: {reply}");
            assert!(reply.contains("it was killed"), "{protocol}: {reply}");
        } else {
            assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with(first), "{reply}");
        }
        let records = world.records(|records| records.len() == 1).await;
        assert_eq!(records[0].outcome, Outcome::InstanceFailed, "{records:?}");
        world.stop().await;
    }
}

/// Ends the sandbox and replies, in this order.
async fn speaks_last(mut stream: TcpStream, journals: Arc<OnceLock<Arc<Journals>>>, is_h2: bool) {
    let end = move || {
        for journal in journals.get().unwrap().lock().unwrap().iter() {
            journal.end(End::Vanished("it was killed".to_owned()));
        }
    };
    if !is_h2 {
        if read_head(&mut stream).await.is_some() {
            end();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nlast!").await.unwrap();
            keep(stream);
        }
        return;
    }
    let service = service_fn(move |_: Request<Incoming>| {
        let end = end.clone();
        async move {
            end();
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"last!"))))
        }
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

#[tokio::test]
async fn what_a_guest_said_before_its_end_is_heard() {
    for (protocol, is_h2) in [("http1", false), ("h2c", true)] {
        let journals = Arc::<OnceLock<Arc<Journals>>>::default();
        let told = Arc::clone(&journals);
        let runtime = InProcess::new(move |stream| speaks_last(stream, Arc::clone(&told), is_h2));
        assert!(journals.set(Arc::clone(&runtime.journals)).is_ok());
        let world = Setup::of(Runtimes::new().with(runtime)).start().await;
        let change = |document: &mut serde_json::Value| {
            document["spec"]["template"]["spec"]["containers"][0]["ports"] =
                serde_json::json!([{"name": protocol, "containerPort": 8080}]);
        };
        world.apply("gone", change).await;
        let reply = world.get("gone").await;
        assert_eq!(reply.status, 200, "{protocol}: {}", reply.text());
        world.stop().await;
    }
}

/// Goes over to another protocol and says no more.
async fn switches(mut stream: TcpStream, came: Arc<Notify>) {
    if read_head(&mut stream).await.is_none() {
        return;
    }
    let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(head).await.unwrap();
    came.notify_one();
    keep(stream);
}

#[tokio::test]
async fn a_connection_that_went_over_ends_with_its_sandbox() {
    let came = Arc::new(Notify::new());
    let of = Arc::clone(&came);
    let runtime = InProcess::new(move |stream| switches(stream, Arc::clone(&of)));
    let journals = Arc::clone(&runtime.journals);
    let world = Setup::of(Runtimes::new().with(runtime)).start().await;
    world.apply("gone", |_| {}).await;
    let mut stream = world.connect().await;
    let wire = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
        host("gone")
    );
    stream.write_all(wire.as_bytes()).await.unwrap();
    within(came.notified()).await;
    let mut reply = Vec::new();
    while !reply.ends_with(b"\r\n\r\n") {
        assert_ne!(within(stream.read_buf(&mut reply)).await.unwrap(), 0);
    }
    assert!(reply.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&reply));
    end_all(&journals);
    let mut rest = Vec::new();
    let _ended = within(stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    // Its slot is free again, so that nothing holds the record back.
    let records = world.records(|records| records.len() == 1).await;
    assert_eq!(records[0].outcome, Outcome::InstanceFailed, "{records:?}");
    world.stop().await;
}

fn end_all(journals: &Journals) {
    for journal in journals.lock().unwrap().iter() {
        journal.end(End::Vanished("it was killed".to_owned()));
    }
}

/// Takes a request's head and something of its body, which goes on.
async fn takes_some(mut stream: TcpStream, came: Arc<Notify>) {
    let Some((_, mut body)) = read_head(&mut stream).await else { return };
    while body.len() < 4 {
        if stream.read_buf(&mut body).await.unwrap_or(0) == 0 {
            return;
        }
    }
    came.notify_one();
    keep(stream);
}

#[tokio::test]
async fn an_upload_ends_with_the_sandbox_that_it_goes_to() {
    for (length, piece) in
        [("Content-Length: 1000000", "half"), ("Transfer-Encoding: chunked", "4\r\nhalf\r\n")]
    {
        let came = Arc::new(Notify::new());
        let of = Arc::clone(&came);
        let runtime = InProcess::new(move |stream| takes_some(stream, Arc::clone(&of)));
        let journals = Arc::clone(&runtime.journals);
        let world = Setup::of(Runtimes::new().with(runtime)).start().await;
        world.apply("gone", |_| {}).await;
        let mut stream = world.connect().await;
        let wire = format!("POST / HTTP/1.1\r\nHost: {}\r\n{length}\r\n\r\n{piece}", host("gone"));
        stream.write_all(wire.as_bytes()).await.unwrap();
        within(came.notified()).await;
        end_all(&journals);
        let mut reply = Vec::new();
        while !reply.windows(4).any(|four| four == b"\r\n\r\n") {
            assert_ne!(within(stream.read_buf(&mut reply)).await.unwrap(), 0, "{length}");
        }
        let text = String::from_utf8(reply).unwrap();
        assert!(text.starts_with("HTTP/1.1 502"), "{length}: {text}");
        let records = world.records(|records| records.len() == 1).await;
        assert_eq!(records[0].outcome, Outcome::InstanceFailed, "{records:?}");
        world.stop().await;
    }
}

/// Replies by HTTP/2 with a head, some data, and neither more data nor trailers.
fn begins_by_h2(stream: TcpStream, data: &'static [u8]) -> std::future::Ready<()> {
    let service = service_fn(move |_: Request<Incoming>| {
        let first = Ok::<_, Infallible>(Frame::data(Bytes::from_static(data)));
        let first = stream::iter((!data.is_empty()).then_some(first));
        let body = StreamBody::new(first.chain(stream::pending()));
        let reply = Response::builder().header("content-type", "application/grpc").body(body);
        std::future::ready(reply)
    });
    // Its connection stays open, whatever becomes of the sandbox.
    tokio::spawn(async move {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    });
    std::future::ready(())
}

#[tokio::test]
async fn a_reply_by_http2_ends_with_its_sandbox_and_not_as_if_it_were_whole() {
    for data in [b"".as_slice(), b"message"] {
        let runtime = InProcess::new(move |stream| begins_by_h2(stream, data));
        let journals = Arc::clone(&runtime.journals);
        let world = Setup::of(Runtimes::new().with(runtime)).start().await;
        let change = |document: &mut serde_json::Value| {
            document["spec"]["template"]["spec"]["containers"][0]["ports"] =
                serde_json::json!([{"name": "h2c", "containerPort": 8080}]);
        };
        world.apply("gone", change).await;
        let io = TokioIo::new(world.connect().await);
        let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
        let (mut sender, connection) = shaken.unwrap();
        tokio::spawn(connection);
        let request = Request::post(format!("http://{}/", host("gone")))
            .header("te", "trailers")
            .body(Full::new(Bytes::from_static(b"hello")))
            .unwrap();
        let reply = within(sender.send_request(request)).await.unwrap();
        assert_eq!(reply.status(), 200);
        let mut body = reply.into_body();
        if !data.is_empty() {
            let frame = within(body.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), data);
        }
        end_all(&journals);
        let last = within(body.frame()).await;
        assert!(matches!(last, Some(Err(_))), "a cut, and neither an end nor trailers: {last:?}");
        let records = world.records(|records| records.len() == 1).await;
        assert_eq!(records[0].outcome, Outcome::InstanceFailed, "{records:?}");
        world.stop().await;
    }
}
