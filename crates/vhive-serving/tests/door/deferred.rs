//! Asynchronous invocations.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use vhive_node::Runtimes;

use crate::support::{InProcess, Reply, Setup, World, host, read_head, within};
use crate::traces::collector::{Collector, Manner};

const ASYNC: &str = "Prefer: wait=1, respond-async\r\nX-Own: kept\r\n";

/// Says the request's body again, with a field of its head.
async fn echo(mut stream: TcpStream) {
    while let Some((head, mut body)) = read_head(&mut stream).await {
        let lower = head.to_ascii_lowercase();
        let length = lower.split("content-length: ").nth(1).and_then(|t| t.lines().next());
        let length: usize = length.map_or(0, |text| text.trim().parse().unwrap());
        while body.len() < length {
            if stream.read_buf(&mut body).await.unwrap_or(0) == 0 {
                return;
            }
        }
        assert!(!lower.contains("prefer:"), "{head}");
        let own = if lower.contains("x-own: kept\r\n") { "yes" } else { "no" };
        let reply = format!(
            "HTTP/1.1 201 Created\r\nX-Own: {own}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[reply.as_bytes(), &body].concat()).await.unwrap();
    }
}

/// Sends a request that is answered later; the invocation's identifier.
async fn send(world: &World, name: &str, body: &[u8]) -> String {
    let accepted = world.request("POST", &host(name), ASYNC, body).await;
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    assert_eq!(accepted.header("preference-applied"), Some("respond-async"));
    let told: Value = serde_json::from_slice(&accepted.body).unwrap();
    let id = told["id"].as_str().unwrap().to_owned();
    assert_eq!(accepted.header("location"), Some(format!("/vhive/v1/async/{id}").as_str()));
    assert_eq!(accepted.header("x-request-id"), Some(id.as_str()));
    id
}

async fn state(world: &World, id: &str) -> Value {
    world.api("GET", &format!("/vhive/v1/async/{id}"), None).await.1
}

async fn ended(world: &World, id: &str) -> Value {
    within(async {
        loop {
            let told = state(world, id).await;
            if told["state"] == "done" || told["state"] == "failed" {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

async fn reply(world: &World, id: &str) -> Reply {
    let mut stream = UnixStream::connect(&world.serving.addresses().socket).await.unwrap();
    let request = format!(
        "GET /vhive/v1/async/{id}/reply HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut wire = Vec::new();
    within(stream.read_to_end(&mut wire)).await.unwrap();
    Reply::parse(&wire)
}

#[tokio::test]
async fn a_reply_can_be_fetched_later_byte_for_byte_also_from_the_next_node() {
    let world = Setup::with_functions(echo).start().await;
    world.apply("echo", |_| {}).await;
    let body = b"a\0b\xFF".repeat(1000);
    let id = send(&world, "echo", &body).await;
    let told = ended(&world, &id).await;
    assert_eq!(
        (&told["state"], &told["status"], &told["attempts"]),
        (&"done".into(), &201.into(), &1.into()),
        "{told}"
    );
    let kept = reply(&world, &id).await;
    assert_eq!((kept.status, &kept.body), (201, &body));
    assert_eq!((kept.header("x-own"), kept.header("x-vhive-async")), (Some("yes"), Some("done")));
    let records = world.records(|all| !all.is_empty()).await;
    assert_eq!((records.len(), records[0].status), (1, 201), "it is an invocation like any other");

    let dir = world.dir.clone();
    world.stop().await;
    let runtimes = Runtimes::new().with(InProcess::new(echo));
    let world = Setup::again(runtimes, dir).start().await;
    assert_eq!(reply(&world, &id).await.body, body);
    assert_eq!(world.api("DELETE", &format!("/vhive/v1/async/{id}"), None).await.0, 200);
    assert_eq!(world.api("GET", &format!("/vhive/v1/async/{id}"), None).await.0, 404);
    assert_eq!(reply(&world, &id).await.status, 404);
    world.stop().await;
}

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Breaks the first two requests.
async fn breaks_twice(mut stream: TcpStream) {
    while read_head(&mut stream).await.is_some() {
        if CALLS.fetch_add(1, Ordering::SeqCst) < 2 {
            return;
        }
        stream.write_all(b"HTTP/1.1 500 Mine\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    }
}

#[tokio::test]
async fn what_the_gateway_could_not_do_is_tried_again_and_what_a_function_says_is_said() {
    let world = Setup::with_functions(breaks_twice).start().await;
    world.apply("breaks", |_| {}).await;
    let id = send(&world, "breaks", b"").await;
    let told = ended(&world, &id).await;
    // 500 is the function's own word.
    assert_eq!(
        (&told["state"], &told["status"], &told["attempts"]),
        (&"done".into(), &500.into(), &3.into()),
        "{told}"
    );
    world.stop().await;
}

#[tokio::test]
async fn what_never_succeeds_is_given_up_and_bounds_hold() {
    let mut setup = Setup::new();
    setup.serving.deferred.attempts = 2;
    setup.serving.deferred.max_body = vhive_api::Bytes(10);
    setup.serving.deferred.max_pending = 1;
    let world = setup.start().await;
    world
        .apply("broken", |document| {
            document["spec"]["template"]["spec"]["containers"][0]["env"] =
                serde_json::json!([{"name": "VHIVE_SIM_FAULT", "value": "fail:boot"}]);
        })
        .await;
    let id = send(&world, "broken", b"0123456789").await;
    let full = world.request("POST", &host("broken"), ASYNC, b"x").await;
    assert_eq!((full.status, full.header("x-vhive-error")), (503, Some("async-queue-full")));
    let told = ended(&world, &id).await;
    assert_eq!((&told["state"], &told["attempts"]), (&"failed".into(), &2.into()), "{told}");
    assert!(told["error"].as_str().unwrap().starts_with("start-"), "{told}");
    assert_eq!(reply(&world, &id).await.header("x-vhive-async"), Some("failed"));
    let long = world.request("POST", &host("broken"), ASYNC, b"01234567890").await;
    assert_eq!((long.status, long.header("x-vhive-error")), (413, Some("body-too-large")));
    let unknown = world.request("POST", &host("none"), ASYNC, b"").await;
    assert_eq!(unknown.status, 404, "a host that nobody answers to is refused at once");
    world.stop().await;
}

/// Replies with the head of its request.
async fn mirror(mut stream: TcpStream) {
    while let Some((head, _)) = read_head(&mut stream).await {
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
        stream.write_all(reply.as_bytes()).await.unwrap();
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[tokio::test]
async fn what_is_sent_later_belongs_to_the_trace_of_who_asked() {
    let w3c = format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\ntracestate: a=1\r\n");
    let b3 =
        format!("X-B3-TraceId: {TRACE}\r\nX-B3-SpanId: 00f067aa0ba902b7\r\nX-B3-Sampled: 1\r\n");
    let single = format!("b3: {TRACE}-00f067aa0ba902b7-1\r\n");
    let collector = Collector::new(Manner::Takes).await;
    for sampled in [false, true] {
        let mut setup = Setup::with_functions(mirror);
        if sampled {
            setup.serving.tracing.otlp = collector.url();
            setup.serving.tracing.interval = vhive_api::Span(Duration::from_millis(5));
        }
        let world = setup.start().await;
        world.apply("mirror", |_| {}).await;
        for context in [&w3c, &b3, &single] {
            let fields = format!("{ASYNC}{context}");
            let accepted = world.request("POST", &host("mirror"), &fields, b"").await;
            let told: Value = serde_json::from_slice(&accepted.body).unwrap();
            let id = told["id"].as_str().unwrap();
            assert_eq!(ended(&world, id).await["state"], "done");
            let head = reply(&world, id).await.text().to_lowercase();
            if sampled {
                // Its parent is the gateway's span of the same trace.
                assert!(head.contains(TRACE), "{head}");
                assert!(!head.contains("00f067aa0ba902b7"), "{head}");
                continue;
            }
            for line in context.to_lowercase().lines() {
                assert!(head.lines().any(|one| one == line), "{line} is not in {head}");
            }
        }
        world.stop().await;
    }
    let spans = collector.spans();
    let servers: Vec<_> = spans.iter().filter(|span| !span.parent_span_id.is_empty()).collect();
    assert!(servers.iter().all(|span| hex::encode(&span.trace_id) == TRACE), "{spans:?}");
    assert!(servers.len() >= 3, "{spans:?}");
}

/// Never replies.
async fn hangs(mut stream: TcpStream) {
    while read_head(&mut stream).await.is_some() {
        std::future::pending::<()>().await;
    }
}

#[tokio::test]
async fn what_was_under_way_when_the_node_ended_is_sent_by_the_next_one() {
    let world = Setup::with_functions(hangs).start().await;
    world.apply("echo", |_| {}).await;
    let id = send(&world, "echo", b"again").await;
    within(async {
        while state(&world, &id).await["state"] != "running" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(reply(&world, &id).await.status, 202, "not yet");
    let dir = world.dir.clone();
    let World { node, serving, .. } = world;
    serving.shutdown(vhive_node::Deadline::after(Duration::from_millis(50))).await;
    node.shutdown(vhive_node::Deadline::after(Duration::from_secs(5))).await.unwrap();
    drop(node);
    let runtimes = Runtimes::new().with(InProcess::new(echo));
    let world = Setup::again(runtimes, dir).start().await;
    let told = ended(&world, &id).await;
    assert_eq!(told["state"], "done", "{told}");
    assert_eq!(reply(&world, &id).await.body, b"again");
    world.stop().await;
}

#[tokio::test]
async fn a_connection_that_has_served_before_takes_asynchronous_requests_and_goes_on() {
    let world = Setup::with_functions(echo).start().await;
    world.apply("echo", |_| {}).await;
    let mut stream = world.connect().await;
    let mut ids = Vec::new();
    // One that waits for its reply, one that does not, and so on.
    for (number, later) in [false, true, true, false, true].into_iter().enumerate() {
        let (prefer, body) =
            (if later { "Prefer: respond-async\r\n" } else { "" }, format!("body {number}"));
        let wire = format!(
            "POST / HTTP/1.1\r\nHost: {}\r\n{prefer}Content-Length: {}\r\n\r\n{body}",
            host("echo"),
            body.len()
        );
        stream.write_all(wire.as_bytes()).await.unwrap();
        let (head, mut rest) = within(read_head(&mut stream)).await.expect("a reply");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
        });
        let length: usize = length.expect("a length");
        let there = rest.len();
        rest.resize(length.max(there), 0);
        within(stream.read_exact(&mut rest[there..])).await.unwrap();
        let status = if later { "202" } else { "201" };
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{number}: {head}");
        if later {
            let told: Value = serde_json::from_slice(&rest).unwrap();
            ids.push((told["id"].as_str().unwrap().to_owned(), body));
        } else {
            assert_eq!(String::from_utf8_lossy(&rest), body);
        }
    }
    for (id, body) in ids {
        assert_eq!(ended(&world, &id).await["state"], "done");
        assert_eq!(reply(&world, &id).await.text(), body);
    }
    world.stop().await;
}
