//! The short way and hyper's way give the same: the same connection is played to a gateway that
//! has both and to one that has hyper only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use vhive_node::Runtimes;

use crate::support::{InProcess, Setup, World, eventually, host, read_head, within};

/// What reached the function: line, fields by name, body.
type Seen = Arc<Mutex<Vec<Message>>>;

/// A request or a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    line: String,
    fields: BTreeMap<String, Vec<String>>,
    body: Text,
}

/// Bytes that are shown as text.
#[derive(Clone, Default, PartialEq, Eq)]
struct Text(Vec<u8>);

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let most = self.0.len().min(200);
        write!(f, "{} bytes {:?}", self.0.len(), String::from_utf8_lossy(&self.0[..most]))
    }
}

impl Message {
    fn head(head: &str) -> Self {
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap().to_owned();
        let mut fields = BTreeMap::<String, Vec<String>>::new();
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let name = name.to_lowercase();
            let value = match name.as_str() {
                "date" => continue,
                // An invocation's own.
                "x-request-id" if value.trim().len() == 16 => "random".to_owned(),
                _ => value.trim().to_owned(),
            };
            fields.entry(name).or_default().push(value);
        }
        Self { line, fields, body: Text::default() }
    }

    fn first(&self, name: &str) -> Option<&str> {
        Some(self.fields.get(name)?.first()?.as_str())
    }
}

/// Reads a body by length or chunks; what comes behind it stays in `rest`.
fn take_body(message: &Message, rest: &mut Vec<u8>) -> Option<Vec<u8>> {
    if message.first("transfer-encoding") == Some("chunked") {
        let mut body = Vec::new();
        let mut at = 0;
        loop {
            let end = at + rest[at..].windows(2).position(|two| two == b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&rest[at..end]).ok()?, 16).ok()?;
            if size == 0 {
                let trailers = rest[end..].windows(4).position(|four| four == b"\r\n\r\n")?;
                rest.drain(..end + trailers + 4);
                return Some(body);
            }
            body.extend_from_slice(rest.get(end + 2..end + 2 + size)?);
            at = end + 2 + size + 2;
            rest.get(..at)?;
        }
    }
    let length = message.first("content-length").map_or(Ok(0), str::parse).ok()?;
    rest.get(..length)?;
    Some(rest.drain(..length).collect())
}

/// Notes each request whole, and replies by the last part of its path.
async fn function(mut stream: TcpStream, seen: Seen) {
    let mut rest = Vec::new();
    loop {
        let (head, more) = match rest.is_empty() {
            true => match read_head(&mut stream).await {
                Some(read) => read,
                None => return,
            },
            false => return,
        };
        rest = more;
        let mut message = Message::head(&head);
        message.body.0 = loop {
            if let Some(body) = take_body(&message, &mut rest) {
                break body;
            }
            if stream.read_buf(&mut rest).await.unwrap_or(0) == 0 {
                message.line.push_str(" (cut off)");
                break std::mem::take(&mut rest);
            }
        };
        let line = message.line.clone();
        seen.lock().unwrap().push(message);
        let (reply, close) = reply_to(&line);
        if stream.write_all(&reply).await.is_err() || close {
            return;
        }
    }
}

/// Bytes of a long reply.
const LONG: usize = 100_000;

fn reply_to(line: &str) -> (Vec<u8>, bool) {
    let target = line.split(' ').nth(1).unwrap_or_default();
    let is_head = line.starts_with("HEAD ");
    let (head, body, close) = match target.rsplit('/').next().unwrap_or_default() {
        "empty" => ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", false),
        "none" => ("HTTP/1.1 204 Nothing\r\nX-A: b\r\n\r\n", "", false),
        "same" => ("HTTP/1.1 304 Same\r\nContent-Length: 7\r\nETag: x\r\n\r\n", "", false),
        "odd" => ("HTTP/1.1 299 Odd\r\nContent-Length: 003\r\n\r\n", "odd", false),
        "named" => (
            "HTTP/1.1 200 OK\r\nConnection: X-Private, keep-alive\r\nX-Private: 1\r\nX-End: 2\r\n\
             Content-Length: 2\r\nX-End: 3\r\nKeep-Alive: 9\r\n\r\n",
            "ok",
            false,
        ),
        "chunks" => (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n",
            "2\r\nok\r\n3;x=y\r\nok2\r\n0\r\nX-T: 1\r\n\r\n",
            false,
        ),
        "both" => (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n",
            "2\r\nok\r\n0\r\n\r\n",
            false,
        ),
        "to-end" => ("HTTP/1.1 200 OK\r\n\r\n", "until the end", true),
        "old" => ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", "ok", false),
        "early" => (
            "HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nX-Request-Id: own\r\n\
             Content-Length: 2\r\n\r\n",
            "ok",
            false,
        ),
        "closing" => {
            ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n", "ok", true)
        }
        "noise" => ("what?\r\n\r\n", "", true),
        "lengths" => {
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "x", true)
        }
        "hang-up" => ("", "", true),
        "long" => {
            let mut reply =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n").into_bytes();
            if !is_head {
                reply.resize(reply.len() + LONG, b'l');
            }
            return (reply, false);
        }
        _ => ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDate: then\r\n\r\n", "ok", false),
    };
    let mut reply = head.as_bytes().to_vec();
    if !is_head {
        reply.extend_from_slice(body.as_bytes());
    }
    (reply, close)
}

/// A gateway with its function, and what that has seen.
struct Way {
    world: World,
    seen: Seen,
}

/// What came of one connection.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    replies: Vec<Message>,
    /// Bytes behind the last whole reply, and whether the gateway ended the connection.
    more: Text,
    ended: bool,
    seen: Vec<Message>,
}

impl Way {
    async fn open(by_hyper_only: bool) -> Self {
        let seen = Seen::default();
        let runtime = {
            let seen = Arc::clone(&seen);
            InProcess::new(move |stream| function(stream, Arc::clone(&seen)))
        };
        let mut setup = Setup::of(Runtimes::new().with(runtime));
        setup.serving.gateway.by_hyper_only = by_hyper_only;
        setup.serving.gateway.max_body = Some(vhive_api::Bytes(LONG as u64));
        let world = setup.start().await;
        world.apply("hello", |_| {}).await;
        assert_eq!(world.get("hello").await.status, 200);
        Self { world, seen }
    }

    /// Sends the pieces one by one and reads until the gateway ends the connection, or says
    /// nothing more although it could.
    async fn play(&self, pieces: &[&[u8]], methods: &[String]) -> Outcome {
        self.seen.lock().unwrap().clear();
        let (mut read, mut write) = self.world.connect().await.into_split();
        let mut wire = Vec::new();
        let mut ended = false;
        let sending = async {
            for piece in pieces {
                if write.write_all(piece).await.is_err() {
                    break;
                }
                // So that the gateway reads it by itself.
                for _ in 0..70 {
                    tokio::task::yield_now().await;
                }
            }
            std::future::pending::<()>().await;
        };
        let reading = async {
            loop {
                let quiet = Duration::from_millis(500);
                match tokio::time::timeout(quiet, read.read_buf(&mut wire)).await {
                    Ok(Ok(0) | Err(_)) => {
                        ended = true;
                        break;
                    }
                    Ok(Ok(_)) => {}
                    Err(_) => break,
                }
            }
        };
        within(async {
            tokio::select! { () = reading => {}, () = sending => {} }
        })
        .await;
        let (replies, more) = parse_replies(wire, methods);
        let more = Text(more);
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        Outcome { replies, more, ended, seen }
    }
}

fn parse_replies(mut wire: Vec<u8>, methods: &[String]) -> (Vec<Message>, Vec<u8>) {
    let mut replies = Vec::new();
    let mut methods = methods.iter().map(String::as_str);
    while let Some(end) = wire.windows(4).position(|four| four == b"\r\n\r\n") {
        let mut reply = Message::head(std::str::from_utf8(&wire[..end]).unwrap());
        let mut rest = wire[end + 4..].to_vec();
        let bodiless = methods.next() == Some("HEAD") || reply.line.contains(" 304 ");
        if !bodiless {
            let Some(body) = take_body(&reply, &mut rest) else { break };
            reply.body.0 = body;
            // An instance has another name on the other way.
            if reply.first("x-vhive-error") == Some("instance-failed") {
                let text = String::from_utf8_lossy(&reply.body.0).into_owned();
                let words = text.split(' ').filter(|word| word.len() != 16);
                reply.body.0 = words.collect::<Vec<_>>().join(" ").into_bytes();
            }
        }
        replies.push(reply);
        wire = rest;
    }
    (replies, wire)
}

impl Outcome {
    /// Whether these are the same. How much is skipped of a body that nobody wanted, to go on
    /// with the next request, depends on what has arrived: a connection may end after a refusal.
    fn agrees_with(&self, other: &Self) -> bool {
        let (short, long) = match self.replies.len() < other.replies.len() {
            true => (self, other),
            false => (other, self),
        };
        let refused =
            short.replies.last().is_some_and(|reply| reply.first("x-vhive-error").is_some());
        self == other
            || (refused
                && short.ended
                && short.more.0.is_empty()
                && long.replies.starts_with(&short.replies)
                && long.seen.starts_with(&short.seen))
    }
}

/// One request of a script.
#[derive(Clone, Debug)]
struct Step {
    method: String,
    wire: Vec<u8>,
}

fn step() -> impl Strategy<Value = Step> {
    let of = |options: &[&'static str]| prop::sample::select(options.to_vec());
    let method = of(&["GET", "GET", "GET", "POST", "POST", "HEAD", "PUT", "DELETE", "FETCH"]);
    let path = of(&[
        "/ok",
        "/a/ok?b=c",
        "/empty",
        "/none",
        "/same",
        "/odd",
        "/named",
        "/chunks",
        "/both",
        "/to-end",
        "/old",
        "/early",
        "/closing",
        "/noise",
        "/lengths",
        "/hang-up",
        "/long",
        "/a%20{b}/ok",
        "/ok#x",
        "http://other/ok",
        "//ok",
    ]);
    let version = of(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]);
    let field = of(&[
        "Accept: */*",
        "X-End: 1",
        "x-end:2",
        "X-Forwarded-For: 10.0.0.1",
        "Forwarded: for=x",
        "X-Forwarded-Proto: https",
        "X-Request-Id: mine",
        "Connection: keep-alive",
        "Connection: X-End",
        "Keep-Alive: 5",
        "Proxy-Connection: x",
        "TE: trailers",
        "Upgrade: websocket",
        "User-Agent: \u{e4}",
        "Cookie: a=b; c=d",
        "A : b",
        "X-Empty:",
        "Content-Length: 4",
        "Transfer-Encoding: identity",
        "Host: other",
        "Proxy-Authorization: x",
        "K-Kubelet-Probe:",
    ]);
    let body = prop_oneof![
        4 => Just(None),
        3 => (0_usize..200).prop_map(|n| Some((n, false))),
        1 => Just(Some((30_000, false))),
        1 => (1_usize..200).prop_map(|n| Some((n, true))),
    ];
    let end = of(&["\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n"]);
    let change = prop::option::weighted(0.15, any::<(prop::sample::Index, u8)>());
    let fields = prop::collection::vec(field, 0..4);
    (method, path, version, fields, body, (end, change)).prop_map(
        |(method, path, version, fields, body, (end, change))| {
            let mut head = format!("{method} {path} {version}{end}Host: {}{end}", host("hello"));
            for field in fields {
                head.push_str(field);
                head.push_str(end);
            }
            let mut content = Vec::new();
            match body {
                Some((size, false)) => {
                    head.push_str(&format!("Content-Length: {size}{end}"));
                    content.resize(size, b'c');
                }
                Some((size, true)) => {
                    head.push_str(&format!("Transfer-Encoding: chunked{end}"));
                    content.extend_from_slice(format!("{size:x}\r\n").as_bytes());
                    content.resize(content.len() + size, b'c');
                    content.extend_from_slice(b"\r\n0\r\n\r\n");
                }
                None => {}
            }
            head.push_str(end);
            let mut wire = head.into_bytes();
            if let Some((at, byte)) = change {
                let at = at.index(wire.len());
                wire[at] = byte;
            }
            wire.extend_from_slice(&content);
            Step { method: method.to_owned(), wire }
        },
    )
}

fn last() -> Step {
    let wire = format!("GET /ok HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host("hello"));
    Step { method: "GET".to_owned(), wire: wire.into_bytes() }
}

#[test]
fn both_ways_give_the_same_whatever_comes_and_however_it_is_cut() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (short, long) = runtime.block_on(async { (Way::open(false).await, Way::open(true).await) });
    let cuts = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    let script = (prop::collection::vec(step(), 0..4), cuts);
    let mut runner =
        TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let played = runner.run(&script, |(mut steps, cuts)| {
        steps.push(last());
        let wire = steps.iter().flat_map(|step| step.wire.clone()).collect::<Vec<_>>();
        let methods: Vec<String> = steps.into_iter().map(|step| step.method).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([wire.len()]) {
            pieces.push(&wire[from..cut]);
            from = cut;
        }
        let ours = runtime.block_on(short.play(&pieces, &methods));
        let hypers = runtime.block_on(long.play(&pieces, &methods));
        let wire = String::from_utf8_lossy(&wire);
        prop_assert!(ours.agrees_with(&hypers), "{ours:#?}\nby hyper: {hypers:#?}\n{wire}");
        Ok(())
    });
    played.unwrap();
    runtime.block_on(async {
        short.world.stop().await;
        long.world.stop().await;
    });
}

fn request(line: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let mut wire = format!("{line} HTTP/1.1\r\nHost: {}\r\n{fields}", host("hello")).into_bytes();
    if !body.is_empty() {
        wire.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    wire.extend_from_slice(b"\r\n");
    wire.extend_from_slice(body);
    wire
}

#[tokio::test]
async fn both_ways_write_the_same_records() {
    let mut all = Vec::new();
    for by_hyper_only in [false, true] {
        let way = Way::open(by_hyper_only).await;
        let body = vec![b'b'; 70_000];
        for (line, body) in [
            ("GET /ok", &b""[..]),
            ("POST /ok", b"12345"),
            ("POST /long", &body),
            ("HEAD /long", b""),
            ("GET /chunks", b""),
            ("GET /to-end", b""),
            ("GET /same", b""),
            ("PUT /lengths", b"1"),
            ("GET /hang-up", b""),
            ("GET /early", b""),
        ] {
            let before = way.world.node.records().pushed();
            let wire = request(line, "Connection: close\r\n", body);
            way.play(&[&wire], &["HEAD".to_owned()]).await;
            let pushed = || way.world.node.records().pushed();
            eventually(|| (pushed() > before).then_some(())).await;
        }
        // A body that ends early, and a client that does not wait.
        let mut stream = way.world.connect().await;
        stream.write_all(&request("POST /ok", "", &body)[..1000]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut reply = String::new();
        within(stream.read_to_string(&mut reply)).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 400 "), "{reply:?}");
        let records = way.world.records(|records| records.len() == 12).await;
        let told: Vec<_> = records
            .iter()
            .map(|record| {
                // How much of a broken body has been forwarded depends on what has arrived.
                let sent = if record.status == 400 { 0 } else { record.request_bytes };
                (record.outcome.clone(), record.status, sent, record.response_bytes)
            })
            .collect();
        all.push(told);
        way.world.stop().await;
    }
    assert_eq!(all[0], all[1]);
}

#[tokio::test]
async fn http2_does_not_begin_behind_a_request() {
    for by_hyper_only in [false, true] {
        let way = Way::open(by_hyper_only).await;
        let mut wire = request("GET /ok", "", b"");
        wire.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        let came = way.play(&[&wire], &[]).await;
        assert!(came.ended && came.seen.len() == 1, "{came:?}");
        assert!(came.replies.len() <= 2 && !came.more.0.starts_with(b"\0"), "{came:?}");
        way.world.stop().await;
    }
}

#[tokio::test]
async fn what_is_not_plain_is_answered_by_hyper_in_the_middle_of_a_connection() {
    let way = Way::open(false).await;
    let mut wire = request("GET /ok", "", b"");
    wire.extend_from_slice(&request("POST /ok", "Expect: 100-continue\r\n", b"12345"));
    wire.extend_from_slice(&request(
        "GET /chunks",
        "TE: trailers\r\nConnection: close, TE\r\n",
        b"",
    ));
    let mut stream = way.world.connect().await;
    stream.write_all(&wire).await.unwrap();
    let mut all = Vec::new();
    within(stream.read_to_end(&mut all)).await.unwrap();
    let all = String::from_utf8(all).unwrap();
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 3, "{all}");
    assert!(all.to_lowercase().contains("\r\nx-t: 1\r\n"), "{all}");
    way.world.stop().await;
}
