//! HTTP/2 by prior knowledge on both sides, and what lies between it and HTTP/1.1.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;
use vhive_api::Outcome;
use vhive_node::Runtimes;

use crate::support::{InProcess, Setup, World, annotate, eventually, host, within};

type Body = StreamBody<tokio_stream::Frames>;

/// Frames that are there already.
mod tokio_stream {
    use super::{Bytes, Frame, Infallible};

    pub(super) type Frames =
        futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>;
}

/// A gRPC function: echoes the message and ends with trailers; `/fail` has trailers only.
async fn grpc(stream: TcpStream) {
    let service = service_fn(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["te"], "trailers");
        assert!(request.headers().contains_key("x-forwarded-for"));
        assert_eq!(request.uri().authority().unwrap().as_str(), host("greeter"));
        let status = match request.uri().path() {
            "/fail" => "5",
            "/sick" => "14",
            _ => "0",
        };
        let fails = status != "0";
        let message = request.into_body().collect().await.unwrap().to_bytes();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().unwrap());
        let mut frames = vec![];
        if !fails {
            frames.push(Ok(Frame::data(message)));
        }
        frames.push(Ok(Frame::trailers(trailers)));
        let body: Body = StreamBody::new(futures_util::stream::iter(frames));
        let mut reply = Response::new(body);
        reply.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        Ok::<_, Infallible>(reply)
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn connect(world: &World) -> SendRequest<Full<Bytes>> {
    let io = TokioIo::new(world.connect().await);
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (sender, connection) = shaken.unwrap();
    tokio::spawn(connection);
    sender
}

fn call(name: &str, path: &str, message: &'static [u8]) -> Request<Full<Bytes>> {
    Request::post(format!("http://{}{path}", host(name)))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(message)))
        .unwrap()
}

fn h2c(document: &mut serde_json::Value) {
    document["spec"]["template"]["spec"]["containers"][0]["ports"] =
        json!([{"name": "h2c", "containerPort": 8080}]);
}

#[tokio::test]
async fn grpc_passes_with_its_trailers() {
    let world = Setup::with_functions(grpc).start().await;
    world.apply("greeter", h2c).await;
    let mut sender = connect(&world).await;
    for n in 0..3 {
        let reply = within(sender.send_request(call("greeter", "/say", b"hello"))).await.unwrap();
        assert_eq!(reply.status(), 200, "call {n}");
        let body = within(reply.into_body().collect()).await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), "hello");
    }
    let reply = within(sender.send_request(call("greeter", "/fail", b"hello"))).await.unwrap();
    let body = within(reply.into_body().collect()).await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "5");
    let records = world.records(|records| records.len() == 4).await;
    assert!(records.iter().all(|record| record.outcome == Outcome::Replied), "{records:?}");
    assert_eq!((records[0].request_bytes, records[0].response_bytes), (5, 5));
    drop(sender);
    world.stop().await;
}

#[tokio::test]
async fn many_streams_share_two_connections() {
    let world = Setup::with_functions(grpc).start().await;
    world.apply("greeter", h2c).await;
    let sender = connect(&world).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let mut sender = sender.clone();
        calls.spawn(async move {
            let reply = sender.send_request(call("greeter", "/say", b"hello")).await.unwrap();
            let body = reply.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        });
    }
    while let Some(one) = within(calls.join_next()).await {
        one.unwrap();
    }
    world.records(|records| records.len() == 100).await;
    drop(sender);
    world.stop().await;
}

#[tokio::test]
async fn http2_clients_reach_http1_functions_and_the_other_way_round() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    let mut sender = connect(&world).await;
    let reply = within(sender.send_request(call("hello", "/", b"hello"))).await.unwrap();
    assert_eq!(reply.status(), 200);
    assert!(!within(reply.into_body().collect()).await.unwrap().to_bytes().is_empty());
    let reply = within(sender.send_request(call("nobody", "/", b"hello"))).await.unwrap();
    assert_eq!(
        (reply.status().as_u16(), &reply.headers()["x-vhive-error"]),
        (404, &"unknown-host".parse().unwrap())
    );
    drop(sender);
    world.stop().await;

    let world = Setup::with_functions(grpc).start().await;
    world.apply("greeter", h2c).await;
    let extra = "TE: trailers\r\nContent-Type: application/grpc\r\n";
    let reply = world.request("POST", &host("greeter"), extra, b"hello").await;
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains("hello"), "{reply:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_cancelled_stream_frees_its_slot_and_no_other() {
    async fn stall(mut stream: TcpStream) {
        while crate::support::read_head(&mut stream).await.is_some() {
            std::future::pending::<()>().await;
        }
    }
    let world = Setup::with_functions(stall).start().await;
    world.apply("stall", |_| {}).await;
    let sender = connect(&world).await;
    let key = vhive_api::RevisionKey::new("default", "stall-00001");
    let in_flight = || world.node.counts(&key).map_or(0, |counts| counts.in_flight);
    let begin = || {
        let mut sender = sender.clone();
        tokio::spawn(async move {
            let _ = sender.send_request(call("stall", "/", b"")).await;
        })
    };
    let (one, two) = (begin(), begin());
    eventually(|| (in_flight() == 2).then_some(())).await;
    one.abort();
    eventually(|| (in_flight() == 1).then_some(())).await;
    two.abort();
    eventually(|| (in_flight() == 0).then_some(())).await;
    drop(sender);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shared_connection_is_closed_before_a_snapshot_and_made_again_after_it() {
    let runtime = InProcess::new(grpc);
    let found = std::sync::Arc::clone(&runtime.found);
    let world = Setup::of(Runtimes::new().with(runtime)).start().await;
    world
        .apply("greeter", |document| {
            h2c(document);
            annotate(document, "vhive.dev/snapshot-policy", "vanilla");
        })
        .await;
    let mut sender = connect(&world).await;
    for n in 0..2 {
        let reply = within(sender.send_request(call("greeter", "/say", b"hello"))).await.unwrap();
        assert_eq!(reply.status(), 200, "call {n}");
        let whole = within(reply.into_body().collect()).await.unwrap();
        assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
        eventually(|| (!found.lock().unwrap().is_empty()).then_some(())).await;
    }
    assert_eq!(*found.lock().unwrap(), [0], "the function still had a connection");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_snapshot_is_taken_behind_a_grpc_failure() {
    let runtime = InProcess::new(grpc);
    let found = std::sync::Arc::clone(&runtime.found);
    let world = Setup::of(Runtimes::new().with(runtime)).start().await;
    world
        .apply("greeter", |document| {
            h2c(document);
            annotate(document, "vhive.dev/snapshot-policy", "vanilla");
        })
        .await;
    let mut sender = connect(&world).await;
    let evict = "/vhive/v1/namespaces/default/services/greeter/evict";
    // A function that knows that it was asked something wrong is well.
    for (path, snapshots) in [("/sick", 0), ("/fail", 1)] {
        let reply = within(sender.send_request(call("greeter", path, b"hello"))).await.unwrap();
        within(reply.into_body().collect()).await.unwrap();
        // With what is done behind replies.
        assert_eq!(within(world.api("POST", evict, None)).await.0, 200);
        assert_eq!(found.lock().unwrap().len(), snapshots, "{path}");
    }
    drop(sender);
    world.stop().await;
}
