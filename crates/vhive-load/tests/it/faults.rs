//! Peers that break: every request still has its row, and the row says why.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
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
        }
    });
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
            let made = connections.load(std::sync::atomic::Ordering::Relaxed);
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
fn what_waits_too_long_for_a_connection_is_not_sent_any_more() {
    on_one_thread(async {
        for protocol in [Protocol::Http1, Protocol::H2c] {
            let (address, connections) = hello(Duration::from_secs(600)).await;
            let mut load = load(&address, protocol);
            (load.patience, load.most_connections) = (Duration::from_millis(100), 1);
            // More than one connection of HTTP/2 takes.
            let rows =
                run(&load, shots(if protocol == Protocol::Http1 { 10 } else { 110 }, 1)).await;
            assert!(rows.iter().all(|row| row.outcome == Outcome::Timeout), "{rows:?}");
            let waited = |row: &&Row| error(row).contains("no connection was free in time");
            let never_sent = rows.iter().filter(waited).count();
            assert!(never_sent >= 8, "{never_sent} of {protocol:?}: {rows:?}");
            let made = connections.load(std::sync::atomic::Ordering::Relaxed);
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
