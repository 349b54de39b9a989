//! The hop: what is added, what is taken away, and what happens when a side fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use vhive_api::{Outcome, Phase, StartKind};

use crate::support::{Setup, World, eventually, host, read_head, within};

/// Answers each request with its own head as the body.
async fn mirror(mut stream: TcpStream) {
    while let Some((head, _)) = read_head(&mut stream).await {
        let reply = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: X-Private\r\nX-Private: 1\r\n\
             Keep-Alive: timeout=5\r\nX-Own: 2\r\n\r\n{head}",
            head.len()
        );
        if stream.write_all(reply.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn fields<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

#[tokio::test]
async fn heads_are_forwarded_with_the_clients_address_and_without_the_hops() {
    let world = Setup::with_functions(mirror).start().await;
    world.apply("mirror", |_| {}).await;
    let h = host("mirror");
    let extra = "X-Forwarded-For: 10.1.2.3\r\nForwarded: for=10.1.2.3\r\nTE: trailers\r\n\
                 Upgrade: websocket\r\nX-Hop: 1\r\nX-End: 2\r\nKeep-Alive: 5\r\nX-End: 3\r\n";
    let wire =
        format!("GET /p?q=1 HTTP/1.1\r\nHost: {h}\r\nConnection: close, X-Hop\r\n{extra}\r\n");
    let reply = world.raw(wire.as_bytes()).await;
    assert_eq!(reply.status, 200);
    let head = reply.text();
    assert!(head.starts_with("GET /p?q=1 HTTP/1.1\r\n"), "{head}");
    assert_eq!(fields(&head, "host"), [h.as_str()]);
    assert_eq!(fields(&head, "x-forwarded-for"), ["10.1.2.3, 127.0.0.1"]);
    assert_eq!(fields(&head, "forwarded"), ["for=10.1.2.3, for=127.0.0.1;proto=http"]);
    assert_eq!(fields(&head, "x-forwarded-proto"), ["http"]);
    assert_eq!(fields(&head, "x-end"), ["2", "3"]);
    for hop in ["x-hop", "connection", "te", "upgrade", "keep-alive"] {
        assert_eq!(fields(&head, hop), Vec::<&str>::new(), "{hop}");
    }
    assert_eq!(reply.header("x-own"), Some("2"));
    assert_eq!(reply.header("x-private"), None);
    assert_eq!(reply.header("keep-alive"), None);
    let id = reply.header("x-request-id").expect("the invocation's identifier").to_owned();
    assert_eq!(fields(&head, "x-request-id"), [id.as_str()]);
    let records = world.records(|records| records.len() == 1).await;
    assert_eq!(records[0].id.as_str(), id);

    let mine = world.request("GET", &h, "X-Request-Id: mine\r\n", b"").await;
    assert_eq!(fields(&mine.text(), "x-request-id"), ["mine"]);
    world.stop().await;
}

#[tokio::test]
async fn hosts_are_found_with_port_case_and_dot_and_others_are_named() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    for host in [
        "hello.default.example.com:8080",
        "HELLO.default.Example.com",
        "hello.default.example.com.",
    ] {
        assert_eq!(world.request("GET", host, "", b"").await.status, 200, "{host}");
    }
    let absolute = "GET http://hello.default.example.com/ HTTP/1.1\r\nHost: ignored\r\nConnection: close\r\n\r\n";
    assert_eq!(world.raw(absolute.as_bytes()).await.status, 200);
    for host in ["none.default.example.com", "hello.default.example.com.evil", "hello", "[::1]:80"]
    {
        let reply = world.request("GET", host, "", b"").await;
        assert_eq!((reply.status, reply.header("x-vhive-error")), (404, Some("unknown-host")));
        assert!(reply.text().contains(host), "{}", reply.text());
    }
    world.stop().await;
}

/// Echoes a chunked body chunk by chunk, as it comes.
async fn echo(mut stream: TcpStream) {
    let Some((_, rest)) = read_head(&mut stream).await else { return };
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut data = rest;
    loop {
        if !data.is_empty() {
            let last = data.ends_with(b"0\r\n\r\n");
            if last {
                data.truncate(data.len() - 2);
                data.extend_from_slice(b"X-Sum: 42\r\n\r\n");
            }
            stream.write_all(&data).await.unwrap();
            if last {
                return;
            }
            data.clear();
        }
        if stream.read_buf(&mut data).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

#[tokio::test]
async fn bodies_stream_in_both_directions_at_once() {
    let world = Setup::with_functions(echo).start().await;
    world.apply("echo", |_| {}).await;
    let mut stream = world.connect().await;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\
         Connection: TE\r\n\r\n",
        host("echo")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    for n in 0..5 {
        let piece = format!("piece-{n}");
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        stream.write_all(chunk.as_bytes()).await.unwrap();
        within(async {
            while !String::from_utf8_lossy(&got).contains(&piece) {
                assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0, "ended early");
            }
        })
        .await;
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    within(async {
        while !got.ends_with(b"\r\n\r\n") || !got.windows(3).any(|w| w == b"\n0\r") {
            assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0, "ended early");
        }
    })
    .await;
    let text = String::from_utf8_lossy(&got).to_lowercase();
    assert!(text.contains("x-sum: 42"), "{text}");
    drop(stream);
    let records = world.records(|records| records.len() == 1).await;
    assert_eq!((records[0].request_bytes, records[0].response_bytes), (35, 35));
    assert_eq!(records[0].outcome, Outcome::Replied);
    world.stop().await;
}

#[tokio::test]
async fn cold_and_warm_are_told_apart_with_their_phases() {
    let world = World::new().await;
    world
        .apply("hello", |document| {
            document["spec"]["template"]["spec"]["containers"][0]["env"] =
                json!([{"name": "VHIVE_SIM_BOOT_MS", "value": "30"}]);
        })
        .await;
    for _ in 0..2 {
        assert_eq!(world.request("POST", &host("hello"), "", b"12345").await.status, 200);
    }
    let records = world.records(|records| records.len() == 2).await;
    let (cold, warm) = (&records[0], &records[1]);
    assert_eq!((cold.start, warm.start), (Some(StartKind::Boot), Some(StartKind::Warm)));
    let length = |record: &vhive_api::InvocationRecord, phase| {
        record.phases.iter().find(|span| span.phase == phase).map(|span| span.length_us)
    };
    let of = |phase| length(cold, phase).expect("measured");
    assert!(of(Phase::Start) >= 30_000 && of(Phase::KernelBoot) >= 30_000, "{cold:?}");
    assert!(of(Phase::Total) >= of(Phase::Start) + of(Phase::Request), "{cold:?}");
    assert!(of(Phase::Queue) < of(Phase::Start), "{cold:?}");
    assert_eq!(length(warm, Phase::Start), None);
    assert_eq!(length(warm, Phase::Queue), None);
    assert_eq!((warm.status, warm.request_bytes, warm.error.as_deref()), (200, 5, None));
    world.stop().await;
}

fn one_second(document: &mut serde_json::Value) {
    document["spec"]["template"]["spec"]["timeoutSeconds"] = json!(1);
}

#[tokio::test]
async fn no_reply_in_time_is_504() {
    let world = World::new().await;
    world
        .apply("mute", |document| {
            one_second(document);
            document["spec"]["template"]["spec"]["containers"][0]["env"] =
                json!([{"name": "VHIVE_SIM_FAULT", "value": "mute"}]);
        })
        .await;
    let reply = world.get("mute").await;
    assert_eq!((reply.status, reply.header("x-vhive-error")), (504, Some("timeout")));
    let records = world.records(|records| records.len() == 1).await;
    assert_eq!((records[0].outcome.clone(), records[0].status), (Outcome::TimedOut, 504));
    world.stop().await;
}

/// Waits before its head if asked to, and in the middle of its reply otherwise.
async fn slow(mut stream: TcpStream) {
    while let Some((head, _)) = read_head(&mut stream).await {
        let pause = Duration::from_millis(1300);
        if head.to_ascii_lowercase().contains("x-late: 1") {
            tokio::time::sleep(pause).await;
        }
        let first = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf";
        let Ok(()) = stream.write_all(first).await else { return };
        tokio::time::sleep(pause).await;
        let Ok(()) = stream.write_all(b"more").await else { return };
    }
}

#[tokio::test]
async fn a_reply_must_begin_in_time_and_may_take_longer() {
    let mut ways = vec![("", "X-Late: 1\r\n")];
    // What is not plain goes through hyper.
    ways.push(("TE: gzip\r\n", "TE: gzip\r\nX-Late: 1\r\n"));
    let world = Setup::with_functions(slow).start().await;
    world
        .apply("slow", |document| {
            document["spec"]["template"]["spec"]["timeoutSeconds"] = json!(10);
            document["spec"]["template"]["spec"]["responseStartTimeoutSeconds"] = json!(1);
        })
        .await;
    for (early, late) in ways {
        let reply = world.request("GET", &host("slow"), early, b"").await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "halfmore"));
        let reply = world.request("GET", &host("slow"), late, b"").await;
        assert_eq!((reply.status, reply.header("x-vhive-error")), (504, Some("timeout")));
        assert!(reply.text().contains("responseStartTimeoutSeconds"), "{}", reply.text());
    }
    world.stop().await;
}

/// Begins a long reply and never goes on.
async fn stall(mut stream: TcpStream) {
    while read_head(&mut stream).await.is_some() {
        let part = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe beginning";
        stream.write_all(part).await.unwrap();
        let mut nothing = [0];
        let _ = stream.read(&mut nothing).await;
    }
}

#[tokio::test]
async fn the_timeout_covers_the_whole_reply() {
    let world = Setup::with_functions(stall).start().await;
    world.apply("stall", one_second).await;
    let reply = world.get("stall").await;
    assert_eq!((reply.status, reply.text()), (200, "the beginning".to_owned()));
    let records = world.records(|records| records.len() == 1).await;
    assert_eq!(records[0].outcome, Outcome::TimedOut, "cut off, not ended");
    world.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_slot_and_the_function_hears_of_it() {
    static OPEN: AtomicU64 = AtomicU64::new(0);
    async fn count(stream: TcpStream) {
        OPEN.fetch_add(1, Ordering::SeqCst);
        stall(stream).await;
        OPEN.fetch_sub(1, Ordering::SeqCst);
    }
    let world = Setup::with_functions(count).start().await;
    world
        .apply("stall", |document| {
            document["spec"]["template"]["spec"]["containerConcurrency"] = json!(1);
        })
        .await;
    let key = vhive_api::RevisionKey::new("default", "stall-00001");
    let in_flight = || world.node.counts(&key).map_or(0, |counts| counts.in_flight);
    for _ in 0..2 {
        let mut stream = world.connect().await;
        let wire = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host("stall"));
        stream.write_all(wire.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        within(async {
            while !got.ends_with(b"the beginning") {
                assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0);
            }
        })
        .await;
        assert_eq!(in_flight(), 1);
        drop(stream);
        eventually(|| (in_flight() == 0).then_some(())).await;
        eventually(|| (OPEN.load(Ordering::SeqCst) == 0).then_some(())).await;
    }
    let records = world.records(|records| records.len() == 2).await;
    assert!(records.iter().all(|record| record.outcome == Outcome::ClientGone), "{records:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_while_waiting_does_not_stop_the_start() {
    let world = World::new().await;
    world
        .apply("slow", |document| {
            document["spec"]["template"]["spec"]["containers"][0]["env"] =
                json!([{"name": "VHIVE_SIM_BOOT_MS", "value": "300"}]);
        })
        .await;
    let mut stream = world.connect().await;
    let wire = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host("slow"));
    stream.write_all(wire.as_bytes()).await.unwrap();
    let key = vhive_api::RevisionKey::new("default", "slow-00001");
    let counts = || world.node.counts(&key).unwrap_or_default();
    eventually(|| (counts().starting == 1).then_some(())).await;
    drop(stream);
    let records = world.records(|records| records.len() == 1).await;
    assert_eq!(records[0].outcome, Outcome::ClientGone);
    eventually(|| (counts().ready == 1).then_some(())).await;
    world.stop().await;
}

/// Sends 64 MiB as fast as it is taken, and counts.
static WRITTEN: AtomicU64 = AtomicU64::new(0);
const LARGE: u64 = 64 << 20;

async fn flood(mut stream: TcpStream) {
    while read_head(&mut stream).await.is_some() {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let block = vec![b'x'; 64 << 10];
        for _ in 0..LARGE / block.len() as u64 {
            if stream.write_all(&block).await.is_err() {
                return;
            }
            WRITTEN.fetch_add(block.len() as u64, Ordering::SeqCst);
        }
    }
}

#[tokio::test]
async fn a_slow_client_slows_the_function_down() {
    let world = Setup::with_functions(flood).start().await;
    world.apply("flood", |_| {}).await;
    let mut stream = world.connect().await;
    let wire = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host("flood"));
    stream.write_all(wire.as_bytes()).await.unwrap();
    // The kernel's socket buffers fill, and then nothing moves.
    let mut before = 1;
    while before != WRITTEN.load(Ordering::SeqCst) || before == 0 {
        before = WRITTEN.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < LARGE / 2, "{before} bytes are buffered somewhere");
    let mut all = Vec::new();
    within(stream.read_to_end(&mut all)).await.unwrap();
    assert!(all.len() as u64 > LARGE);
    let records = world.records(|records| records.len() == 1).await;
    assert_eq!((records[0].outcome.clone(), records[0].response_bytes), (Outcome::Replied, LARGE));
    world.stop().await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_let_go_at_the_deadline() {
    let world = Setup::with_functions(flood).start().await;
    world.apply("flood", one_second).await;
    let mut stream = world.connect().await;
    let wire = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host("flood"));
    stream.write_all(wire.as_bytes()).await.unwrap();
    let records = world.records(|records| records.len() == 1).await;
    assert_ne!(records[0].outcome, Outcome::Replied, "{records:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_crash_in_the_middle_is_502_or_a_cut_and_the_instance_is_replaced() {
    let world = World::new().await;
    world
        .apply("crash", |document| {
            document["spec"]["template"]["spec"]["containers"][0]["env"] =
                json!([{"name": "VHIVE_SIM_FAULT", "value": "crash-at:2"}]);
        })
        .await;
    assert_eq!(world.get("crash").await.status, 200);
    // The sandbox goes in the middle of its reply.
    let mut stream = world.connect().await;
    let wire = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host("crash"));
    stream.write_all(wire.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    let _ = within(stream.read_to_end(&mut reply)).await;
    assert_eq!(world.get("crash").await.status, 200);
    let records = world.records(|records| records.len() == 3).await;
    assert_eq!(records[1].outcome, Outcome::InstanceFailed, "{records:?}");
    assert_ne!(records[0].sandbox, records[2].sandbox);
    world.stop().await;
}

/// Hangs up without a word.
async fn hang_up(mut stream: TcpStream) {
    read_head(&mut stream).await;
}

#[tokio::test]
async fn no_byte_of_a_reply_is_502_and_a_sound_instance_stays() {
    let world = Setup::with_functions(hang_up).start().await;
    world.apply("rude", |_| {}).await;
    for _ in 0..2 {
        let reply = world.get("rude").await;
        assert_eq!((reply.status, reply.header("x-vhive-error")), (502, Some("instance-failed")));
        assert!(reply.text().contains("without a reply"), "{}", reply.text());
    }
    let records = world.records(|records| records.len() == 2).await;
    assert_eq!(records[0].sandbox, records[1].sandbox);
    assert_eq!(records[0].outcome, Outcome::InstanceFailed);
    world.stop().await;
}

/// Answers once per connection and hangs up, without saying so.
async fn once(mut stream: TcpStream) {
    if read_head(&mut stream).await.is_some() {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    }
}

#[tokio::test]
async fn a_kept_connection_that_died_is_not_used() {
    let world = Setup::with_functions(once).start().await;
    world.apply("once", |_| {}).await;
    for n in 0..20 {
        assert_eq!(world.get("once").await.status, 200, "request {n}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.stop().await;
}

/// Replies that are none, by path.
async fn nonsense(mut stream: TcpStream) {
    while let Some((head, _)) = read_head(&mut stream).await {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let reply: &[u8] = match path {
            "/noise" => b"\x16\x03\x01 what?\r\n\r\n",
            "/lengths" => b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
            "/coding" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
            "/upgrade" => b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            "/interim" => b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            "/to-end" => b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
            "/none" => b"HTTP/1.1 204 No Content\r\n\r\n",
            _ => b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        };
        stream.write_all(reply).await.unwrap();
        if path == "/to-end" {
            return;
        }
    }
}

#[tokio::test]
async fn replies_are_judged_as_strictly_as_requests() {
    let world = Setup::with_functions(nonsense).start().await;
    world.apply("odd", |_| {}).await;
    for (path, status, body) in [
        ("/noise", 502, None),
        ("/lengths", 502, None),
        ("/coding", 502, None),
        ("/upgrade", 502, None),
        ("/interim", 200, Some("ok")),
        ("/none", 204, Some("")),
        ("/old", 200, Some("ok")),
    ] {
        let h = host("odd");
        let wire = format!("GET {path} HTTP/1.1\r\nHost: {h}\r\nConnection: close\r\n\r\n");
        let reply = world.raw(wire.as_bytes()).await;
        assert_eq!(reply.status, status, "{path}");
        if let Some(body) = body {
            assert_eq!(reply.text(), body, "{path}");
        }
    }
    let wire =
        format!("GET /to-end HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host("odd"));
    let reply = world.raw(wire.as_bytes()).await;
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains("until the end"), "{reply:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_client_may_ask_before_it_sends() {
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    let mut stream = world.connect().await;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\
         Connection: close\r\n\r\n",
        host("hello")
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    within(async {
        while !got.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0);
        }
    })
    .await;
    assert!(got.starts_with(b"HTTP/1.1 100 Continue"), "{:?}", String::from_utf8_lossy(&got));
    stream.write_all(b"12345").await.unwrap();
    got.clear();
    within(stream.read_to_end(&mut got)).await.unwrap();
    assert!(got.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&got));
    world.stop().await;
}

#[tokio::test]
async fn a_head_request_gets_the_head() {
    let world = Setup::with_functions(mirror).start().await;
    world.apply("mirror", |_| {}).await;
    let reply = world.request("GET", &host("mirror"), "", b"").await;
    assert_eq!(reply.status, 200);
    world.stop().await;
    let world = World::new().await;
    world.apply("hello", |_| {}).await;
    let reply = world.request("HEAD", &host("hello"), "", b"").await;
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    assert_ne!(reply.header("content-length"), Some("0"), "the length of the reply that GET has");
    world.stop().await;
}

#[tokio::test]
async fn idle_and_dripping_clients_are_let_go() {
    let mut setup = Setup::new();
    setup.serving.gateway.head_timeout = vhive_api::Span(Duration::from_millis(300));
    let world = setup.start().await;
    world.apply("hello", |_| {}).await;
    for beginning in ["", "GET / HTTP/1.1\r\nHost: "] {
        let mut stream = world.connect().await;
        stream.write_all(beginning.as_bytes()).await.unwrap();
        let mut nothing = Vec::new();
        let _ = within(stream.read_to_end(&mut nothing)).await;
        assert!(nothing.is_empty() || nothing.starts_with(b"HTTP/1.1 4"), "{nothing:?}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_drain_finishes_what_is_under_way_and_takes_nothing_more() {
    let world = World::new().await;
    world
        .apply("slow", |document| {
            document["spec"]["template"]["spec"]["containers"][0]["env"] =
                json!([{"name": "VHIVE_SIM_REPLY_MS", "value": "300"}]);
        })
        .await;
    let mut idle = world.connect().await;
    let mut busy = world.connect().await;
    let wire = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host("slow"));
    busy.write_all(wire.as_bytes()).await.unwrap();
    let key = vhive_api::RevisionKey::new("default", "slow-00001");
    let counts = || world.node.counts(&key).unwrap_or_default();
    eventually(|| (counts().in_flight == 1).then_some(())).await;
    let (gateway, node) = (world.gateway(), world.node.clone());
    let deadline = vhive_sandbox::Deadline::after(Duration::from_secs(10));
    let drained = within(world.serving.shutdown(deadline)).await;
    assert_eq!(drained.cut, 0);
    let mut reply = Vec::new();
    within(busy.read_to_end(&mut reply)).await.unwrap();
    assert!(reply.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&reply));
    let mut nothing = Vec::new();
    let _ = within(idle.read_to_end(&mut nothing)).await;
    assert!(nothing.is_empty());
    assert!(TcpStream::connect(gateway).await.is_err());
    node.shutdown(deadline).await.unwrap();
}

#[tokio::test]
async fn a_drain_cuts_off_what_is_left_at_the_deadline() {
    let world = Setup::with_functions(stall).start().await;
    world.apply("stall", |_| {}).await;
    let mut stream = world.connect().await;
    let wire = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", host("stall"));
    stream.write_all(wire.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    within(stream.read_buf(&mut got)).await.unwrap();
    let deadline = vhive_sandbox::Deadline::after(Duration::from_millis(200));
    let drained = within(world.serving.shutdown(deadline)).await;
    assert_eq!(drained.cut, 1);
    let deadline = vhive_sandbox::Deadline::after(Duration::from_secs(5));
    world.node.shutdown(deadline).await.unwrap();
}
