//! Requests that are none: refused, never routed anywhere, and never the front of another one.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use vhive_node::Runtimes;

use crate::support::{InProcess, Reply, Setup, World, host, read_head, within};

pub(crate) type Seen = Arc<Mutex<Vec<String>>>;

/// A function that notes each request's head and answers; bodies are read by length or chunks as
/// far as the head says.
pub(crate) async fn note(mut stream: TcpStream, seen: Seen) {
    while let Some((head, mut rest)) = read_head(&mut stream).await {
        let lower = head.to_lowercase();
        seen.lock().unwrap().push(head);
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
        if let Some(length) = length {
            let length: usize = length.trim().parse().unwrap();
            while rest.len() < length {
                if stream.read_buf(&mut rest).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            assert_eq!(rest.len(), length, "the gateway sends no more than it announced");
        } else if lower.contains("transfer-encoding: chunked") {
            while !rest.ends_with(b"0\r\n\r\n") {
                if stream.read_buf(&mut rest).await.unwrap_or(0) == 0 {
                    return;
                }
            }
        }
        let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        if stream.write_all(reply).await.is_err() {
            return;
        }
    }
}

async fn world(seen: &Seen) -> World {
    let seen = Arc::clone(seen);
    let runtime = InProcess::new(move |stream| note(stream, Arc::clone(&seen)));
    let world = Setup::of(Runtimes::new().with(runtime)).start().await;
    world.apply("hello", |_| {}).await;
    world
}

/// Every reply that comes until the gateway ends the connection, by status.
async fn statuses(world: &World, wire: &str) -> Vec<u16> {
    let stream = world.connect().await;
    read_statuses(stream, wire, false).await
}

async fn read_statuses(mut stream: TcpStream, wire: &str, ends: bool) -> Vec<u16> {
    stream.write_all(wire.as_bytes()).await.unwrap();
    if ends {
        stream.shutdown().await.unwrap();
    }
    let mut reply = Vec::new();
    let _ = within(stream.read_to_end(&mut reply)).await;
    let text = String::from_utf8_lossy(&reply).into_owned();
    let starts = text.match_indices("HTTP/1.1 ");
    starts.filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect()
}

#[tokio::test]
async fn what_is_no_request_gets_400_and_goes_nowhere() {
    let seen = Seen::default();
    let world = world(&seen).await;
    let h = host("hello");
    let table = [
        (
            "differing lengths",
            format!(
                "POST / HTTP/1.1\r\nHost: {h}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"
            ),
        ),
        (
            "a length list",
            format!("POST / HTTP/1.1\r\nHost: {h}\r\nContent-Length: 5, 5\r\n\r\nhello"),
        ),
        (
            "a signed length",
            format!("POST / HTTP/1.1\r\nHost: {h}\r\nContent-Length: +5\r\n\r\nhello"),
        ),
        (
            "a negative length",
            format!("POST / HTTP/1.1\r\nHost: {h}\r\nContent-Length: -1\r\n\r\n"),
        ),
        (
            "an unreadable length",
            format!("POST / HTTP/1.1\r\nHost: {h}\r\nContent-Length: 0x5\r\n\r\nhello"),
        ),
        (
            "a huge length",
            format!("POST / HTTP/1.1\r\nHost: {h}\r\nContent-Length: 99999999999999999999\r\n\r\n"),
        ),
        (
            "unknown coding",
            format!("POST / HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: cow\r\n\r\n"),
        ),
        (
            "chunked not last",
            format!("POST / HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: chunked, gzip\r\n\r\n"),
        ),
        (
            "coding in 1.0",
            format!("POST / HTTP/1.0\r\nHost: {h}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
        ("a folded field", format!("GET / HTTP/1.1\r\nHost: {h}\r\nA: b\r\n c\r\n\r\n")),
        ("a space before the colon", format!("GET / HTTP/1.1\r\nHost: {h}\r\nA : b\r\n\r\n")),
        ("a field without name", format!("GET / HTTP/1.1\r\nHost: {h}\r\n: b\r\n\r\n")),
        ("a zero byte", format!("GET / HTTP/1.1\r\nHost: {h}\r\nA: b\0c\r\n\r\n")),
        ("a bare CR", format!("GET / HTTP/1.1\r\nHost: {h}\r\nA: b\rc\r\n\r\n")),
        ("no version", format!("GET /\r\nHost: {h}\r\n\r\n")),
        ("another version", format!("GET / HTTP/3.0\r\nHost: {h}\r\n\r\n")),
        ("a bad method", format!("G@T{{ / HTTP/1.1\r\nHost: {h}\r\n\r\n")),
        ("spaces in the target", format!("GET /a b HTTP/1.1\r\nHost: {h}\r\n\r\n")),
        ("two hosts", format!("GET / HTTP/1.1\r\nHost: {h}\r\nHost: other\r\n\r\n")),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("CONNECT", format!("CONNECT {h}:80 HTTP/1.1\r\nHost: {h}\r\n\r\n")),
        ("noise", "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03 TLS, perhaps\r\n\r\n".to_owned()),
    ];
    for (what, wire) in table {
        let statuses = statuses(&world, &wire).await;
        assert_eq!(statuses, [400], "{what}: {wire:?}");
    }
    assert_eq!(*seen.lock().unwrap(), Vec::<String>::new());
    world.stop().await;
}

#[tokio::test]
async fn both_lengths_at_once_never_split_a_request() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: hello.default.example.com\r\n\r\n";
    for lengths in [
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nTransfer-Encoding:  chunked\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    ] {
        let seen = Seen::default();
        let world = world(&seen).await;
        let h = host("hello");
        let wire = format!("POST / HTTP/1.1\r\nHost: {h}\r\n{lengths}\r\n0\r\n\r\n{smuggled}");
        let statuses = statuses(&world, &wire).await;
        // RFC 9112, 6.1: refuse it, or take the chunks, forward no length, and hang up after it.
        assert_eq!(statuses.len(), 1, "{lengths:?}");
        for head in seen.lock().unwrap().iter() {
            assert!(head.starts_with("POST / "), "{head:?}");
            assert!(!head.to_lowercase().contains("content-length: 5"), "{head:?}");
        }
        world.stop().await;
    }
}

#[tokio::test]
async fn broken_chunks_break_the_request_only() {
    let h = host("hello");
    for chunks in [
        "Z\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "FFFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
        "5\r\nhel",
    ] {
        let seen = Seen::default();
        let world = world(&seen).await;
        let head = format!("POST / HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: chunked\r\n\r\n");
        let wire = format!("{head}{chunks}GET /smuggled HTTP/1.1\r\nHost: {h}\r\n\r\n");
        let statuses = read_statuses(world.connect().await, &wire, true).await;
        assert!(statuses.iter().all(|status| *status == 400), "{chunks:?}: {statuses:?}");
        assert!(seen.lock().unwrap().iter().all(|head| head.starts_with("POST / ")), "{chunks:?}");
        assert_eq!(world.get("hello").await.status, 200, "after {chunks:?}");
        world.stop().await;
    }
}

#[tokio::test]
async fn lenient_line_ends_are_made_strict() {
    let seen = Seen::default();
    let world = world(&seen).await;
    let h = host("hello");
    let wire = format!("GET / HTTP/1.1\nHost: {h}\nConnection: close\nA: b\n\n");
    let statuses = statuses(&world, &wire).await;
    assert!(statuses == [400] || statuses == [200], "{statuses:?}");
    for head in seen.lock().unwrap().iter() {
        assert!(!head.replace("\r\n", "").contains('\n'), "{head:?}");
    }
    world.stop().await;
}

#[tokio::test]
async fn too_much_is_told_as_such() {
    let seen = Seen::default();
    let runtime = {
        let seen = Arc::clone(&seen);
        InProcess::new(move |stream| note(stream, Arc::clone(&seen)))
    };
    let mut setup = Setup::of(Runtimes::new().with(runtime));
    setup.serving.gateway.max_body = Some(vhive_api::Bytes(1000));
    let world = setup.start().await;
    world.apply("hello", |_| {}).await;
    let h = host("hello");

    let long = "x".repeat(100_000);
    let head = world.request("GET", &h, &format!("X-Long: {long}\r\n"), b"").await;
    assert_eq!(head.status, 431, "{head:?}");
    let many: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    assert_eq!(world.request("GET", &h, &many, b"").await.status, 431);

    let sized = world.request("POST", &h, "", &[b'x'; 1001]).await;
    assert_eq!((sized.status, sized.header("x-vhive-error")), (413, Some("body-too-large")));
    let chunk = "1f4\r\n".to_owned() + &"x".repeat(500) + "\r\n";
    let chunked = format!(
        "POST / HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}{chunk}0\r\n\r\n"
    );
    let mut stream = world.connect().await;
    stream.write_all(chunked.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    let _ = within(stream.read_to_end(&mut reply)).await;
    assert_eq!(Reply::parse(&reply).status, 413);
    assert_eq!(world.request("POST", &h, "", &[b'x'; 1000]).await.status, 200);
    let records = world.records(|records| records.len() == 2).await;
    assert_eq!(records[1].request_bytes, 1000);
    world.stop().await;
}
