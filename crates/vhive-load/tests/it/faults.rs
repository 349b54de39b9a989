//! Peers that break: every request still has its row, and the row says why.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use vhive_load::output::{Files, Writer};
use vhive_load::{Outcome, Protocol, Row, RunError, Stop, Target, open_loop};

use crate::peer::{HELLO, head, hello, listen, load, on_one_thread, run, shots};

fn error(row: &Row) -> &str {
    row.error.as_deref().unwrap_or_default()
}

#[test]
fn an_endpoint_that_goes_mid_run_is_told_from_then_on() {
    on_one_thread(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound").to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            drop(listener);
            for _ in 0..5 {
                assert!(head(&mut stream).await);
                stream.write_all(HELLO).await.expect("written");
            }
        });
        let rows = run(&load(&address, Protocol::Http1), shots(20, 20)).await;
        assert!(rows[..5].iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
        assert!(rows[5..].iter().all(|row| row.outcome == Outcome::Error), "{rows:?}");
        assert!(error(&rows[19]).contains("cannot connect"), "{}", error(&rows[19]));
    });
}

#[test]
fn nobody_there_at_all_is_told_per_request() {
    on_one_thread(async {
        let address = {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            listener.local_addr().expect("bound").to_string()
        };
        for protocol in [Protocol::Http1, Protocol::Grpc] {
            let rows = run(&load(&address, protocol), shots(5, 2)).await;
            assert!(rows.iter().all(|row| row.outcome == Outcome::Error && row.status.is_none()));
            assert!(rows.iter().all(|row| error(row).contains("cannot connect")), "{rows:?}");
            never_sent(&rows);
        }
    });
}

/// What was never sent has no latency of nothing in any file.
fn never_sent(rows: &[Row]) {
    assert!(rows.iter().all(|row| !row.sent), "{rows:?}");
    let dir = tempfile::tempdir().expect("made");
    let files = Files {
        dir: dir.path().to_owned(),
        latencies: "lat.csv".to_owned(),
        durations: None,
        targets: vec!["f".to_owned()],
    };
    let (writer, out) = Writer::begin(files, None).expect("begun");
    out.send(rows.to_vec()).expect("taken");
    drop(out);
    let done = writer.end();
    let latencies = std::fs::read_to_string(done.name_latencies().expect("named")).expect("read");
    let wanted: String = rows.iter().map(|row| format!("{}\n", row.total_ns() / 1000)).collect();
    assert_eq!(latencies, wanted, "from before it connects, as the original");
    let text = std::fs::read_to_string(dir.path().join("rows.jsonl")).expect("rows");
    for line in text.lines() {
        let row: serde_json::Value = serde_json::from_str(line).expect("a row");
        assert!(row["latency_us"].is_null() && row["late_us"].is_null(), "{row}");
        assert!(row["total_us"].as_f64().is_some_and(|us| us > 0.0), "{row}");
    }
    assert_eq!(done.tally.late().count(), 0);
    assert!(done.tally.latency(Outcome::Error).is_none());
}

#[test]
fn a_server_that_accepts_and_never_answers_is_a_timeout() {
    on_one_thread(async {
        for protocol in [Protocol::Http1, Protocol::H2c, Protocol::Grpc] {
            let (address, connections) = hello(Duration::from_secs(600)).await;
            let mut load = load(&address, protocol);
            load.patience = Duration::from_millis(100);
            let rows = run(&load, shots(10, 30)).await;
            for row in &rows {
                assert_eq!(row.outcome, Outcome::Timeout, "{row:?}");
                assert!(row.latency_ns() >= 95_000_000, "{row:?}");
            }
            let made = connections.load(Ordering::Relaxed);
            let most = if protocol == Protocol::Http1 { 11 } else { 3 };
            assert!(made <= most, "{made} connections for {protocol:?}");
        }
    });
}

#[test]
fn a_server_that_closes_after_each_reply_is_connected_to_again() {
    on_one_thread(async {
        for reply in [
            &b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"[..],
            b"HTTP/1.0 200 OK\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        ] {
            let address = listen(move |_, mut stream| async move {
                if head(&mut stream).await {
                    stream.write_all(reply).await.expect("written");
                }
            })
            .await;
            let rows = run(&load(&address, Protocol::Http1), shots(10, 20)).await;
            assert!(rows.iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
            assert!(rows.iter().all(|row| row.body_bytes == 2));
            let made = rows.iter().filter(|row| row.connect_ns.is_some()).count();
            assert_eq!(made, 9, "all but the first connect, and say so");
        }
    });
}

#[test]
fn replies_that_break_off_or_are_none_are_errors() {
    on_one_thread(async {
        for (reply, why) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nshort"[..], "closed before"),
            (b"", "closed before"),
            (b"SSH-2.0-x\r\n", "not HTTP"),
            (
                b"HTTP/1.1 503 Busy\r\nx-vhive-error: queue-full\r\ncontent-length: 0\r\n\r\n",
                "503: queue-full",
            ),
            (
                b"HTTP/1.1 301 Moved\r\nlocation: https://x/\r\ncontent-length: 0\r\n\r\n",
                "301: a redirect",
            ),
        ] {
            let address = listen(move |_, mut stream| async move {
                if head(&mut stream).await {
                    stream.write_all(reply).await.expect("written");
                }
            })
            .await;
            let rows = run(&load(&address, Protocol::Http1), shots(3, 20)).await;
            assert!(rows.iter().all(|row| row.outcome == Outcome::Error), "{rows:?}");
            assert!(rows.iter().all(|row| error(row).contains(why)), "{why}: {rows:?}");
        }
    });
}

#[test]
fn only_a_status_of_success_is_one() {
    on_one_thread(async {
        for (status, good) in [(204, true), (304, true), (302, false), (307, false), (404, false)] {
            let address = listen(move |_, stream| async move {
                let service = service_fn(move |_: Request<Incoming>| async move {
                    Response::builder().status(status).body(Full::new(Bytes::new()))
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            })
            .await;
            let rows = run(&load(&address, Protocol::H2c), shots(2, 1)).await;
            assert!(rows.iter().all(|row| (row.outcome == Outcome::Ok) == good), "{rows:?}");
            let told = |row: &Row| error(row).contains(&status.to_string());
            assert!(rows.iter().all(|row| good || told(row)), "{rows:?}");
        }
    });
}

/// What a server of HTTP/2 does with a connection after so many replies.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// Says that it goes (GOAWAY), and closes.
    GoAway,
    /// Cuts it.
    Cut,
}

/// Serves a connection until `then`; what comes as it is cut has no reply.
async fn h2_until(stream: tokio::net::TcpStream, replies: u32, then: Then) {
    let served = Arc::new(AtomicU32::new(0));
    let done = Arc::new(tokio::sync::Notify::new());
    let told = Arc::clone(&done);
    let serve = move |served: Arc<AtomicU32>, done: Arc<tokio::sync::Notify>| async move {
        let nth = served.fetch_add(1, Ordering::Relaxed) + 1;
        if then == Then::Cut && nth > replies {
            done.notify_one();
            std::future::pending::<()>().await;
        }
        if then == Then::GoAway && nth == replies {
            done.notify_one();
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a value"));
        let frames = [Frame::data(Bytes::from_static(b"\0\0\0\0\0")), Frame::trailers(trailers)];
        let frames = frames.map(Ok::<_, std::convert::Infallible>);
        let body = StreamBody::new(futures_util::stream::iter(frames));
        Ok::<_, std::convert::Infallible>(Response::new(body))
    };
    let service =
        service_fn(move |_: Request<Incoming>| serve(Arc::clone(&served), Arc::clone(&done)));
    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let connection = server.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = told.notified() => {}
    }
    if then == Then::GoAway {
        connection.as_mut().graceful_shutdown();
        drop(connection.await);
    }
}

const OVER_H2: [Protocol; 2] = [Protocol::H2c, Protocol::Grpc];

#[test]
fn a_server_of_http2_that_goes_mid_run_is_told_from_then_on() {
    on_one_thread(async {
        for protocol in OVER_H2 {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let address = listener.local_addr().expect("bound").to_string();
            tokio::spawn(async move {
                let (stream, _) = listener.accept().await.expect("accepted");
                drop(listener);
                h2_until(stream, 5, Then::Cut).await;
            });
            let rows = run(&load(&address, protocol), shots(20, 20)).await;
            assert!(rows[..5].iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
            assert!(rows[5..].iter().all(|row| row.outcome == Outcome::Error), "{rows:?}");
            assert!(error(&rows[5]).contains("broke"), "{}", error(&rows[5]));
            assert!(error(&rows[19]).contains("cannot connect"), "{}", error(&rows[19]));
        }
    });
}

#[test]
fn a_server_of_http2_that_goes_away_after_each_reply_is_connected_to_again() {
    on_one_thread(async {
        for protocol in OVER_H2 {
            let address = listen(|_, stream| h2_until(stream, 1, Then::GoAway)).await;
            let rows = run(&load(&address, protocol), shots(10, 50)).await;
            assert!(rows.iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
            // All but the first connect, and say so, unless two come before a connection's end is known.
            let made = rows.iter().filter(|row| row.connect_ns.is_some()).count();
            assert!((5..=9).contains(&made), "{made} connect: {rows:?}");
        }
    });
}

#[test]
fn replies_over_http2_that_break_off_or_are_none_are_errors() {
    on_one_thread(async {
        for protocol in OVER_H2 {
            for reply in
                [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
            {
                let address = listen(move |_, mut stream| async move {
                    use tokio::io::AsyncReadExt as _;
                    let mut preface = [0; 24];
                    stream.read_exact(&mut preface).await.expect("a preface");
                    stream.write_all(reply).await.expect("written");
                })
                .await;
                let rows = run(&load(&address, protocol), shots(3, 20)).await;
                assert!(rows.iter().all(|row| row.outcome == Outcome::Error), "{rows:?}");
                assert!(rows.iter().all(|row| error(row).contains("broke")), "{rows:?}");
            }
            // A message that breaks off: headers and half of it, then nothing.
            let address = listen(|_, stream| async move {
                let service = service_fn(|_: Request<Incoming>| async {
                    let half = futures_util::stream::iter([
                        Ok(Frame::data(Bytes::from_static(b"\0\0\0"))),
                        Err(std::io::Error::other("lost")),
                    ]);
                    Ok::<_, std::convert::Infallible>(Response::new(StreamBody::new(half)))
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            })
            .await;
            let rows = run(&load(&address, protocol), shots(3, 20)).await;
            assert!(rows.iter().all(|row| row.outcome == Outcome::Error), "{rows:?}");
        }
    });
}

/// Allows `most` requests at a time on a connection and answers each after 50 ms; counts connections.
async fn narrow(most: u32) -> (String, Arc<AtomicU64>) {
    let connections = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&connections);
    let address = listen(move |_, stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            let service = service_fn(|_: Request<Incoming>| async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::new())))
            });
            let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.max_concurrent_streams(most);
            drop(server.serve_connection(TokioIo::new(stream), service).await);
        }
    })
    .await;
    (address, connections)
}

/// The same shots, later: by then a server has said how much it allows.
fn later(shots: Vec<vhive_load::Shot>, by_ms: u64) -> Vec<vhive_load::Shot> {
    let later =
        |shot: vhive_load::Shot| vhive_load::Shot { at_ns: shot.at_ns + by_ms * 1_000_000, ..shot };
    shots.into_iter().map(later).collect()
}

#[test]
fn what_a_server_of_http2_allows_at_a_time_is_kept_to() {
    on_one_thread(async {
        let (address, connections) = narrow(2).await;
        let rows = run(&load(&address, Protocol::H2c), later(shots(10, 2), 1_000)).await;
        assert!(rows.iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
        let made = connections.load(Ordering::Relaxed);
        assert!(made >= 5, "{made} connections for ten requests at a time, two on each");
    });
}

#[test]
fn connections_of_http2_are_no_more_than_asked_for_and_who_waits_is_late() {
    on_one_thread(async {
        let (address, connections) = narrow(2).await;
        let mut load = load(&address, Protocol::H2c);
        load.most_connections = 2;
        let rows = run(&load, later(shots(12, 1), 1_000)).await;
        assert!(rows.iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
        assert_eq!(connections.load(Ordering::Relaxed), 2);
        // Four at a time: the last four wait for two replies.
        let waited = rows.iter().filter(|row| row.late_ns() > 70_000_000).count();
        assert!(waited >= 4, "{waited}: {rows:?}");
        assert!(rows.iter().all(|row| row.late_ns() < 2_000_000_000), "{rows:?}");
    });
}

#[test]
fn a_new_connection_of_http2_has_room_for_all_that_wait_for_it() {
    on_one_thread(async {
        let (address, connections) = narrow(100).await;
        let mut load = load(&address, Protocol::H2c);
        (load.connections, load.most_connections) = (0, 1);
        let rows = run(&load, shots(50, 0)).await;
        assert!(rows.iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
        assert_eq!(connections.load(Ordering::Relaxed), 1);
        // One after the other they would be up to 2.5 s late.
        assert!(rows.iter().all(|row| row.late_ns() < 1_000_000_000), "{rows:?}");
        let connected: Vec<bool> = rows.iter().map(|row| row.connect_ns.is_some()).collect();
        assert!(connected[0] && !connected[1..].contains(&true), "{connected:?}");
    });
}

#[test]
fn what_waits_too_long_for_a_connection_is_not_sent_any_more() {
    on_one_thread(async {
        for protocol in [Protocol::Http1, Protocol::H2c] {
            let (address, connections) = hello(Duration::from_secs(600)).await;
            let mut load = load(&address, protocol);
            (load.patience, load.most_connections) = (Duration::from_millis(100), 1);
            // At once more than one connection of HTTP/2 takes.
            let shots = if protocol == Protocol::Http1 { shots(10, 1) } else { shots(110, 0) };
            let rows = run(&load, shots).await;
            assert!(rows.iter().all(|row| row.outcome == Outcome::Timeout), "{rows:?}");
            let waited = |row: &&Row| error(row).contains("no connection was free in time");
            let never_sent = rows.iter().filter(waited).count();
            assert!(never_sent >= 8, "{never_sent} of {protocol:?}: {rows:?}");
            let made = connections.load(Ordering::Relaxed);
            assert!(made <= 2, "{made} connections, though those that waited had no time left");
        }
    });
}

/// An address that connecting to takes for ever: the queue of connections that nobody accepts is full.
async fn black_hole() -> (String, TcpListener, Vec<tokio::net::TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let listener = socket.listen(1).expect("listens");
    let address = listener.local_addr().expect("bound");
    let mut held = Vec::new();
    let connect = || tokio::net::TcpStream::connect(address);
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(200), connect()).await {
        held.push(stream);
    }
    (address.to_string(), listener, held)
}

#[test]
fn a_stop_while_connecting_ends_the_run_at_once() {
    on_one_thread(async {
        let (address, _listener, _held) = black_hole().await;
        for protocol in [Protocol::Http1, Protocol::Grpc] {
            let mut load = load(&address, protocol);
            load.patience = Duration::from_secs(600);
            let stop = Stop::default();
            let asks = stop.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                asks.ask();
            });
            let (out, rows) = std::sync::mpsc::channel();
            let begun = std::time::Instant::now();
            let ran = open_loop(&load, shots(7, 1), out, &stop).await.expect("a run");
            assert_eq!((ran.sent, ran.unsent, rows.iter().count()), (0, 7, 0));
            assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());

            let again = open_loop(&load, shots(1, 1), std::sync::mpsc::channel().0, &stop).await;
            assert!(matches!(again, Err(RunError::Stopped)), "it was stopped before: {again:?}");
        }
    });
}

#[test]
fn addresses_that_do_not_answer_cost_the_time_of_one() {
    on_one_thread(async {
        let (address, _) = hello(Duration::ZERO).await;
        let mut load = load(&address, Protocol::Http1);
        load.patience = Duration::from_secs(1);
        let mut holes = Vec::new();
        for _ in 0..6 {
            let hole = black_hole().await;
            load.targets.push(Target { address: hole.0.clone(), ..load.targets[0].clone() });
            holes.push(hole);
        }
        let (out, rows) = std::sync::mpsc::channel();
        let begun = std::time::Instant::now();
        let ran = open_loop(&load, shots(3, 1), out, &Stop::default()).await.expect("a run");
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        assert_eq!((ran.opened.ahead_ns.len(), ran.opened.failed.len()), (1, 6), "{ran:?}");
        assert!(rows.into_iter().flatten().all(|row| row.outcome == Outcome::Ok));
    });
}

#[test]
fn a_name_that_leads_nowhere_ends_the_run_before_it_begins() {
    on_one_thread(async {
        let load = load("no-such-host.invalid:80", Protocol::Http1);
        let (out, rows) = std::sync::mpsc::channel();
        let ran = open_loop(&load, shots(3, 1), out, &Stop::default()).await;
        let refused = ran.expect_err("no address");
        let named = matches!(&refused, RunError::Resolve { .. } | RunError::ResolveTimeout { .. });
        assert!(named && refused.to_string().contains("no-such-host.invalid:80"), "{refused}");
        assert_eq!(rows.iter().count(), 0);
    });
}

#[test]
fn a_request_larger_than_the_sockets_buffer_arrives() {
    on_one_thread(async {
        const SIZE: usize = 8 << 20;
        let address = listen(|_, mut stream| async move {
            use tokio::io::AsyncReadExt as _;
            while head(&mut stream).await {
                let mut body = vec![0; SIZE];
                stream.read_exact(&mut body).await.expect("the whole body");
                stream.write_all(HELLO).await.expect("written");
            }
        })
        .await;
        let mut load = load(&address, Protocol::Http1);
        load.plain.method = http::Method::POST;
        load.plain.body = vec![b'x'; SIZE].into();
        let rows = run(&load, shots(2, 500)).await;
        assert!(rows.iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
    });
}
