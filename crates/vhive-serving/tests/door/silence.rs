//! `idleTimeoutSeconds`: how long a function may say nothing.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use vhive_api::{Outcome, Span};
use vhive_node::Runtimes;
use vhive_sandbox::sim::{Sim, SimConfig};

use crate::support::{Setup, host, read_head, within};

/// The short way and hyper's.
const WAYS: [&str; 2] = ["", "TE: gzip\r\n"];

const LONG: usize = 24 << 20;

fn one_second(document: &mut Value) {
    document["spec"]["template"]["spec"]["timeoutSeconds"] = json!(30);
    document["spec"]["template"]["spec"]["idleTimeoutSeconds"] = json!(1);
}

/// Does what the request's `X-Do` says.
async fn obey(mut stream: TcpStream) {
    while let Some((head, _)) = read_head(&mut stream).await {
        let head = head.to_ascii_lowercase();
        let says = |what: &str| head.contains(&format!("x-do: {what}\r\n"));
        if says("nothing") {
            std::future::pending::<()>().await;
        }
        if says("interim") {
            for _ in 0..6 {
                let hint = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n";
                let Ok(()) = stream.write_all(hint).await else { return };
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
        let length = if says("long") { LONG } else { 8 };
        let first = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(first.as_bytes()).await.unwrap();
        if says("half") {
            stream.write_all(b"half").await.unwrap();
            std::future::pending::<()>().await;
        }
        if says("drip") {
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(300)).await;
                let Ok(()) = stream.write_all(b".").await else { return };
            }
        }
        if says("long") {
            let Ok(()) = stream.write_all(&vec![b'x'; LONG]).await else { return };
        }
    }
}

#[tokio::test]
async fn a_function_that_says_nothing_for_too_long_is_given_up() {
    let world = Setup::with_functions(obey).start().await;
    world.apply("obey", one_second).await;
    for (n, way) in WAYS.into_iter().enumerate() {
        let ask = |what: &str| format!("{way}X-Do: {what}\r\n");
        let silent = world.request("GET", &host("obey"), &ask("nothing"), b"").await;
        assert_eq!((silent.status, silent.header("x-vhive-error")), (504, Some("timeout")));
        assert!(silent.text().contains("idleTimeoutSeconds"), "{}", silent.text());
        let half = world.request("GET", &host("obey"), &ask("half"), b"").await;
        assert_eq!((half.status, half.text().as_str()), (200, "half"), "cut off");
        let records = world.records(|records| records.len() == 2 + 3 * n).await;
        assert!(
            records[3 * n..].iter().all(|record| record.outcome == Outcome::TimedOut),
            "{records:?}"
        );
        assert!(records[3 * n + 1].error.as_ref().unwrap().contains("idleTimeoutSeconds"));
        // It may take as long as it likes, if it says something now and then.
        let drip = world.request("GET", &host("obey"), &ask("drip"), b"").await;
        assert_eq!((drip.status, drip.text().as_str()), (200, "........"));
    }
    world.stop().await;
}

#[tokio::test]
async fn an_interim_reply_is_a_word_of_the_functions() {
    let world = Setup::with_functions(obey).start().await;
    world.apply("obey", one_second).await;
    // The third way is that of requests which ask for another protocol.
    for way in [WAYS[0], WAYS[1], "Connection: Upgrade\r\nUpgrade: echo\r\n"] {
        let mut stream = world.connect().await;
        let wire =
            format!("GET / HTTP/1.1\r\nHost: {}\r\n{way}X-Do: interim\r\n\r\n", host("obey"));
        stream.write_all(wire.as_bytes()).await.unwrap();
        let (head, _) = within(read_head(&mut stream)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{way}: {head}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_the_functions_silence() {
    let world = Setup::with_functions(obey).start().await;
    world.apply("obey", one_second).await;
    for way in WAYS {
        let mut stream = world.connect().await;
        let wire = format!(
            "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{way}X-Do: long\r\n\r\n",
            host("obey")
        );
        stream.write_all(wire.as_bytes()).await.unwrap();
        let mut some = [0; 100];
        within(stream.read_exact(&mut some)).await.unwrap();
        // More than all buffers on the way hold is still to come, and nobody reads.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let mut rest = Vec::new();
        within(stream.read_to_end(&mut rest)).await.unwrap();
        assert!(some.len() + rest.len() > LONG, "all of it came: {}", rest.len());
    }
    let records = world.records(|records| records.len() == 2).await;
    assert!(records.iter().all(|r| r.outcome == Outcome::Replied), "{records:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_start_is_not_the_functions_silence() {
    let pause = Span(Duration::from_millis(1300));
    let sim = SimConfig { boot: pause, ..SimConfig::default() };
    let world = Setup::of(Runtimes::new().with(Sim::new(sim))).start().await;
    world.apply("hello", one_second).await;
    assert_eq!(world.get("hello").await.status, 200);
    world.stop().await;
}

/// Never answers, in HTTP/2.
async fn silent_h2(stream: TcpStream) {
    let service = service_fn(|_: Request<Incoming>| async move {
        std::future::pending::<()>().await;
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

#[tokio::test]
async fn silence_is_noticed_in_http2_as_well() {
    let world = Setup::with_functions(silent_h2).start().await;
    world
        .apply("two", |document| {
            one_second(document);
            document["spec"]["template"]["spec"]["containers"][0]["ports"] =
                json!([{"name": "h2c", "containerPort": 8080}]);
        })
        .await;
    let io = TokioIo::new(world.connect().await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("http://{}/", host("two"))).body(Empty::<Bytes>::new());
    let reply = within(sender.send_request(request.unwrap())).await.unwrap();
    assert_eq!(reply.status(), 504);
    let text = reply.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("idleTimeoutSeconds"), "{text:?}");
    world.stop().await;
}
