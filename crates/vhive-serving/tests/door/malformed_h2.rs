//! The same for HTTP/2: what would mean something else, or more, once it is HTTP/1.1.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use vhive_node::Runtimes;

use crate::malformed::{Seen, note};
use crate::support::{InProcess, Setup, World, host, within};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, stream]);
    frame.extend(payload);
    frame
}

/// A header block of plain literals (RFC 7541 §6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "a length of one byte");
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// What the gateway says of stream 1.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// A reply's head.
    Reply,
    /// The stream, or the connection with it, is refused.
    Refused,
}

/// Sends one request in frames of the test's own.
async fn send(world: &World, fields: &[(&str, &str)], data: &[&[u8]]) -> Said {
    let mut stream = world.connect().await;
    let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    wire.extend(frame(SETTINGS, 0, 0, &[]));
    let ends = if data.is_empty() { END_STREAM } else { 0 };
    wire.extend(frame(HEADERS, END_HEADERS | ends, 1, &block(fields)));
    for (at, piece) in data.iter().enumerate() {
        let ends = if at + 1 == data.len() { END_STREAM } else { 0 };
        wire.extend(frame(DATA, ends, 1, piece));
    }
    stream.write_all(&wire).await.unwrap();
    let mut read = Vec::new();
    within(async {
        loop {
            while let Some(head) = read.first_chunk::<9>() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                if read.len() < 9 + length {
                    break;
                }
                match head[3] {
                    HEADERS => return Said::Reply,
                    RST_STREAM | GOAWAY => return Said::Refused,
                    _ => drop(read.drain(..9 + length)),
                }
            }
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return Said::Refused;
            }
        }
    })
    .await
}

async fn world(seen: &Seen) -> World {
    let seen = Arc::clone(seen);
    let runtime = InProcess::new(move |stream| note(stream, Arc::clone(&seen)));
    let world = Setup::of(Runtimes::new().with(runtime)).start().await;
    world.apply("hello", |_| {}).await;
    world
}

type Fields<'a> = Vec<(&'a str, &'a str)>;

fn request<'a>(host: &'a str, method: &'a str) -> Fields<'a> {
    vec![(":method", method), (":scheme", "http"), (":path", "/"), (":authority", host)]
}

#[tokio::test]
async fn what_cannot_be_said_in_http1_goes_nowhere() {
    let seen = Seen::default();
    let world = world(&seen).await;
    let h = host("hello");
    let smuggled = "x\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: hello.default.example.com\r\n\r\n";
    let get = |more: Fields<'static>| [request(&h, "GET"), more].concat();
    let instead = |name: &str, value: &'static str| -> Fields<'_> {
        let all = request(&h, "GET").into_iter();
        all.map(|(n, v)| (n, if n == name { value } else { v })).collect()
    };
    let table = [
        ("CR and LF in a value", get(vec![("a", "b\r\nx-evil: 1")])),
        ("LF in a value", get(vec![("a", "b\nx-evil: 1")])),
        ("CR in a value", get(vec![("a", "b\rx-evil: 1")])),
        ("zero in a value", get(vec![("a", "b\0x-evil: 1")])),
        ("a request in a value", get(vec![("a", smuggled)])),
        ("a colon in a name", get(vec![("a: b\r\nx-evil", "1")])),
        ("a space in a name", get(vec![("x evil", "1")])),
        ("an empty name", get(vec![("", "x-evil: 1")])),
        ("capitals in a name", get(vec![("X-Evil", "1")])),
        ("a coding", get(vec![("transfer-encoding", "chunked")])),
        ("fields of a connection", get(vec![("connection", "x-evil"), ("x-evil", "1")])),
        ("an upgrade", get(vec![("upgrade", "websocket")])),
        ("a second path", get(vec![(":path", "/smuggled")])),
        ("a path behind fields", [vec![("a", "b")], request(&h, "GET")].concat()),
        ("an unknown pseudo field", get(vec![(":evil", "1")])),
        ("lines in the path", instead(":path", "/ HTTP/1.1\r\nx-evil: 1\r\n\r\n")),
        ("a space in the path", instead(":path", "/ HTTP/1.1")),
        ("lines in the method", instead(":method", "GET / HTTP/1.1\r\nx-evil: 1\r\n\r\n")),
        ("a space in the method", instead(":method", "GET /smuggled")),
        ("lines in the host", instead(":authority", "hello.default.example.com\r\nx-evil: 1")),
    ];
    for (what, fields) in table {
        assert_eq!(send(&world, &fields, &[]).await, Said::Refused, "{what}");
        assert_eq!(*seen.lock().unwrap(), Vec::<String>::new(), "{what}");
    }
    let (status, _) = world.api("GET", "/healthz", None).await;
    assert_eq!((status, world.get("hello").await.status), (200, 200));
    world.stop().await;
}

#[tokio::test]
async fn a_length_that_is_not_that_of_the_data_splits_nothing() {
    let h = host("hello");
    let smuggled: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: hello.default.example.com\r\n\r\n";
    let post = |more: Fields<'static>| [request(&h, "POST"), more].concat();
    let table: [(&str, Fields<'_>, &[&[u8]]); 6] = [
        ("more data", post(vec![("content-length", "4")]), &[b"four", smuggled]),
        ("less data", post(vec![("content-length", "100")]), &[b"four"]),
        ("no data", post(vec![("content-length", "4")]), &[]),
        (
            "two lengths",
            post(vec![("content-length", "4"), ("content-length", "64")]),
            &[b"four", smuggled],
        ),
        ("a list of lengths", post(vec![("content-length", "4, 4")]), &[b"four", smuggled]),
        ("an odd length", post(vec![("content-length", "+4")]), &[b"four", smuggled]),
    ];
    for (what, fields, data) in table {
        let seen = Seen::default();
        let world = world(&seen).await;
        let said = send(&world, &fields, data).await;
        // A request of that kind may have begun; what comes behind it belongs to nobody else.
        let status = world.request("GET", &h, "X-Next: 1\r\n", b"").await.status;
        assert_eq!(status, 200, "after {what}");
        let heads = seen.lock().unwrap().clone();
        assert!(!heads.iter().any(|head| head.contains("smuggled")), "{what}: {said:?}, {heads:?}");
        for head in &heads {
            let lower = head.to_lowercase();
            let lengths = lower.matches("\r\ncontent-length:").count();
            let codings = lower.matches("\r\ntransfer-encoding:").count();
            assert!(lengths + codings <= 1, "{what}: {head}");
        }
        assert!(heads.iter().any(|head| head.contains("x-next: 1")), "{what}: {heads:?}");
        world.stop().await;
    }
}

#[tokio::test]
async fn the_authority_goes_before_a_host_field_and_is_the_only_one() {
    let seen = Seen::default();
    let world = world(&seen).await;
    let h = host("hello");
    let both = [request(&h, "GET"), vec![("host", "other.default.example.com")]].concat();
    assert_eq!(send(&world, &both, &[]).await, Said::Reply);
    let head = seen.lock().unwrap().first().cloned().unwrap().to_lowercase();
    assert_eq!(head.matches("\r\nhost:").count(), 1, "{head}");
    assert!(head.contains(&format!("\r\nhost: {h}\r\n")), "{head}");
    // The other way round it is another one's, who is not there.
    let away = [
        vec![(":method", "GET"), (":scheme", "http"), (":path", "/")],
        vec![(":authority", "other.default.example.com"), ("host", h.as_str())],
    ]
    .concat();
    send(&world, &away, &[]).await;
    assert_eq!(seen.lock().unwrap().len(), 1);
    world.stop().await;
}
