//! What a run sends, when, and what it says of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use vhive_load::{Outcome, Plain, Protocol, Row, Shot, Stop, Target, Work, closed_loop, open_loop};

use crate::peer::{HELLO, h2, head, hello, listen, load, on_one_thread, run, shots, sorted};

const MS: u64 = 1_000_000;

#[test]
fn each_shot_gives_one_row_over_a_kept_connection() {
    on_one_thread(async {
        let (address, connections) = hello(Duration::ZERO).await;
        let rows = run(&load(&address, Protocol::Http1), shots(50, 2)).await;
        for row in &rows {
            assert_eq!((row.outcome, row.status, row.body_bytes), (Outcome::Ok, Some(200), 5));
            assert_eq!(row.id.as_deref(), Some("id-1"));
            assert!(row.sent_ns >= row.intended_ns && row.done_ns >= row.sent_ns, "{row:?}");
            assert!(row.first_byte_ns.is_some_and(|at| at >= row.sent_ns && at <= row.done_ns));
        }
        // A machine that is busy elsewhere may make it two or three.
        assert!(rows.iter().filter(|row| row.connect_ns.is_some()).count() < 10);
        assert!(connections.load(Ordering::Relaxed) < 10, "connections are kept");
    });
}

#[test]
fn a_slow_function_delays_no_send_and_hides_no_wait() {
    on_one_thread(async {
        // A closed loop would send one per reply.
        let address = listen(|_, mut stream| async move {
            while head(&mut stream).await {
                tokio::time::sleep(Duration::from_millis(300)).await;
                if stream.write_all(HELLO).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let rows = run(&load(&address, Protocol::Http1), shots(40, 5)).await;
        let last = rows.last().expect("rows");
        assert!(rows[0].done_ns > last.intended_ns, "all are sent before the first reply");
        assert!(rows.iter().all(|row| row.outcome == Outcome::Ok));
        assert!(rows.iter().all(|row| row.latency_ns() >= 300 * MS));
        assert!(rows.iter().all(|row| row.total_ns() == row.late_ns() + row.latency_ns()));
        // One connection was there; the others were made for their requests, and say so.
        assert_eq!(rows.iter().filter(|row| row.connect_ns.is_some()).count(), 39);
        assert!(rows.iter().all(|row| row.connect_ns.is_none_or(|ns| ns <= row.late_ns())));
    });
}

#[test]
fn http2_and_grpc_are_spoken() {
    on_one_thread(async {
        let address = h2().await;
        let mut plain = load(&address, Protocol::H2c);
        plain.plain =
            Plain { method: http::Method::POST, body: "12345".into(), ..Plain::default() };
        let rows = run(&plain, shots(20, 1)).await;
        let fine = |row: &Row| (row.outcome, row.status, row.grpc_status, row.body_bytes);
        assert!(rows.iter().all(|row| fine(row) == (Outcome::Ok, Some(200), None, 5)), "{rows:?}");
        assert_eq!(rows[0].id.as_deref(), Some("f.default.test"), "the authority is the host name");

        let mut greet = load(&address, Protocol::Grpc);
        greet.reads_replies = true;
        let rows = run(&greet, shots(20, 1)).await;
        assert!(rows.iter().all(|row| fine(row) == (Outcome::Ok, Some(200), Some(0), 16)));
        assert!(rows.iter().all(|row| row.function_us == Some(123)), "{rows:?}");

        let work = Some(Work { runtime_ms: 3, memory_mib: 4 });
        let rows = run(&greet, vec![Shot { at_ns: 0, target: 0, work, nth: 0 }]).await;
        let said = (rows[0].function_us, rows[0].function_memory_kib);
        assert_eq!((said, rows[0].work), ((Some(7), Some(8)), work), "{rows:?}");
    });
}

#[test]
fn targets_are_told_apart_though_they_share_an_address() {
    on_one_thread(async {
        let address = listen(|_, mut stream| async move {
            use tokio::io::AsyncReadExt as _;
            let mut buffer = vec![0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                let host = text.split("host: ").nth(1).and_then(|rest| rest.lines().next());
                let host = host.expect("a host");
                let body = format!("{host} {}", text.contains("{\"cpu_ms\":7,\"memory_mib\":8}"));
                let length = body.len();
                let reply = format!(
                    "HTTP/1.1 200 OK\r\nx-request-id: {body}\r\ncontent-length: {length}\r\n\r\n{body}"
                );
                stream.write_all(reply.as_bytes()).await.expect("written");
            }
        })
        .await;
        let mut load = load(&address, Protocol::Http1);
        let second = Target { hostname: "g.test".into(), ..load.targets[0].clone() };
        load.targets.push(second);
        let work = Some(Work { runtime_ms: 7, memory_mib: 8 });
        let plan = vec![
            Shot { at_ns: 0, target: 1, work: None, nth: 0 },
            Shot { at_ns: MS, target: 0, work, nth: 0 },
            Shot { at_ns: 2 * MS, target: 9, work: None, nth: 0 },
        ];
        let rows = run(&load, plan).await;
        assert_eq!(rows[0].id.as_deref(), Some("g.test false"));
        assert_eq!(rows[1].id.as_deref(), Some("f.default.test true"));
        assert_eq!((rows[2].outcome, rows[2].target), (Outcome::Error, 9), "an absurd plan");
    });
}

#[test]
fn a_closed_loop_keeps_so_many_under_way() {
    on_one_thread(async {
        let (address, _) = hello(Duration::from_millis(20)).await;
        let mut load = load(&address, Protocol::Http1);
        load.connections = 4;
        let (out, rows) = channel();
        let time = Duration::from_millis(300);
        let ran = closed_loop(&load, 4, time, out, &Stop::default()).await.expect("ran");
        let rows = sorted(rows.into_iter().flatten().collect());
        assert_eq!(rows.len() as u64, ran.sent);
        // 4 × 15 at most; a busy machine makes it fewer.
        assert!((8..=64).contains(&rows.len()), "{}", rows.len());
        for row in &rows {
            let under_way =
                |other: &&Row| other.sent_ns <= row.sent_ns && other.done_ns > row.sent_ns;
            assert!(rows.iter().filter(under_way).count() <= 4);
        }
    });
}

#[test]
fn a_stop_sends_no_more_and_a_second_one_waits_for_nothing() {
    on_one_thread(async {
        let (address, _) = hello(Duration::from_secs(600)).await;
        let mut load = load(&address, Protocol::Http1);
        (load.patience, load.drain) = (Duration::from_secs(60), Duration::from_secs(60));
        let stop = Stop::default();
        let (out, rows) = channel();
        let asks = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            asks.ask();
            tokio::time::sleep(Duration::from_millis(50)).await;
            asks.ask();
        });
        let ran = open_loop(&load, shots(1000, 20), out, &stop).await.expect("ran");
        let rows = sorted(rows.into_iter().flatten().collect());
        assert_eq!((rows.len() as u64, ran.sent + ran.unsent), (ran.sent, 1000));
        assert!(ran.sent > 0 && ran.sent < 500, "{}", ran.sent);
        assert!(rows.iter().all(|row| row.outcome == Outcome::Unfinished));
        assert!(ran.whole_ns < 30_000 * MS);
    });
}

#[test]
fn a_drain_that_ends_tells_what_was_under_way() {
    on_one_thread(async {
        for protocol in [Protocol::Http1, Protocol::H2c] {
            let (address, _) = hello(Duration::from_secs(600)).await;
            let mut load = load(&address, protocol);
            (load.patience, load.drain) = (Duration::from_secs(60), Duration::from_millis(50));
            let rows = run(&load, shots(3, 1)).await;
            assert!(rows.iter().all(|row| row.outcome == Outcome::Unfinished), "{rows:?}");
        }
    });
}

#[test]
fn a_drain_that_lasts_is_told_once() {
    static TOLD: std::sync::Mutex<Vec<(u64, Duration)>> = std::sync::Mutex::new(Vec::new());
    on_one_thread(async {
        let (address, _) = hello(Duration::from_millis(1500)).await;
        let mut load = load(&address, Protocol::Http1);
        load.tells_drain =
            Some(|under_way, most| TOLD.lock().expect("whole").push((under_way, most)));
        let rows = run(&load, shots(3, 1)).await;
        assert!(rows.iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
        assert_eq!(*TOLD.lock().expect("whole"), [(3, load.drain)]);
        let (address, _) = hello(Duration::ZERO).await;
        load.targets[0].address = address;
        run(&load, shots(3, 1)).await;
        assert_eq!(TOLD.lock().expect("whole").len(), 1, "one that does not last is not");
    });
}

#[test]
fn no_more_connections_than_allowed_and_who_waits_is_late() {
    on_one_thread(async {
        let (address, connections) = hello(Duration::from_millis(50)).await;
        let mut load = load(&address, Protocol::Http1);
        load.most_connections = 2;
        let rows = run(&load, shots(8, 1)).await;
        assert!(rows.iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
        assert_eq!(connections.load(Ordering::Relaxed), 2);
        assert!(rows.iter().all(|row| row.latency_ns() < 150 * MS), "waiting is no latency");
        assert!(rows[7].late_ns() > 100 * MS, "{:?}", rows[7]);

        load.patience = Duration::from_millis(80);
        let rows = run(&load, shots(8, 1)).await;
        let late = rows.iter().filter(|row| row.outcome == Outcome::Timeout).count();
        assert!(late >= 2, "{rows:?}");
    });
}

#[test]
fn several_addresses_share_the_files_that_may_be_open() {
    on_one_thread(async {
        let (address, connections) = hello(Duration::from_millis(20)).await;
        let (other, others) = hello(Duration::from_millis(20)).await;
        let mut load = load(&address, Protocol::Http1);
        load.targets.push(Target { address: other, ..load.targets[0].clone() });
        load.most_in_all = 3;
        let shots: Vec<Shot> =
            (0..8).map(|n| Shot { at_ns: 0, target: n % 2, work: None, nth: 0 }).collect();
        let rows = run(&load, shots).await;
        assert!(rows.iter().all(|row| row.outcome == Outcome::Ok), "{rows:?}");
        assert_eq!([connections, others].map(|made| made.load(Ordering::Relaxed)), [1, 1]);
        assert_eq!(load.short_of.get(), Some(&1));
    });
}

#[test]
fn the_knee_of_a_server_of_one_at_a_time_is_found() {
    on_one_thread(async {
        // 10 ms each, one at a time: 100 a second at most, whatever the machine does.
        let turn = Arc::new(tokio::sync::Semaphore::new(1));
        let address = listen(move |_, mut stream| {
            let turn = Arc::clone(&turn);
            async move {
                while head(&mut stream).await {
                    let _mine = turn.acquire().await.expect("never closed");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    if stream.write_all(HELLO).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        let load = load(&address, Protocol::Http1);
        let plan = vhive_load::sweep::Plan {
            rates: (40.0, 640.0),
            arrivals: vhive_load::Arrivals::Fixed,
            time: Duration::from_millis(300),
            replies: 20,
            warm_up: 0,
            settle: Duration::ZERO,
            within: 4.0,
            precision: 0.5,
            seed: 1,
        };
        let mut told = 0;
        let dir = tempfile::tempdir().expect("made");
        let rows = vhive_load::steps::StepRows::begin(dir.path(), vec!["f".to_owned()]);
        let mut rows = Some(rows.expect("begun"));
        let stop = Stop::default();
        let done = vhive_load::sweep::sweep(&load, &plan, &stop, &mut rows, |_| told += 1).await;
        let done = done.expect("swept");
        assert!(rows.take().expect("given back").lost().is_empty());
        let text = std::fs::read_to_string(dir.path().join("rows.jsonl")).expect("rows");
        let rates: Vec<Option<f64>> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a row"))
            .map(|row| row["rate"].as_f64())
            .collect();
        let of = |rate: Option<f64>| rates.iter().filter(|own| **own == rate).count() as u64;
        assert!(of(None) > 1, "one client alone");
        for step in &done.steps {
            let sent = done.steps.iter().filter(|one| one.rate == step.rate).map(|one| one.sent);
            assert_eq!(of(Some(step.rate)), sent.sum::<u64>(), "{step:?}");
        }
        assert_eq!(done.steps.len(), told);
        assert!(done.unloaded_p99_us >= 10_000.0, "{done:?}");
        // Below it nothing is promised: the machine may be busy. Above it nothing can hold.
        assert!(done.knee.is_none_or(|knee| knee < 300.0), "{done:?}");
        let held =
            |step: &vhive_load::sweep::Step| step.verdict == vhive_load::sweep::Verdict::Held;
        assert!(done.steps.iter().all(|step| step.rate < 300.0 || !held(step)), "{done:?}");
    });
}

/// Answers after `delay`, but refuses one request: the first of which `refuse` says so, by those before and
/// those under way. Counts those refused.
async fn once_busy(delay: Duration, refuse: fn(u64, u64) -> bool) -> (String, Arc<AtomicU64>) {
    let counts = Arc::new([0, 0].map(AtomicU64::new));
    let refused = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&refused);
    let address = listen(move |_, mut stream| {
        let (counts, refused) = (Arc::clone(&counts), Arc::clone(&refused));
        async move {
            let [all, under_way] = &*counts;
            while head(&mut stream).await {
                let before = all.fetch_add(1, Ordering::SeqCst);
                let others = under_way.fetch_add(1, Ordering::SeqCst);
                let first = refused.load(Ordering::SeqCst) == 0;
                let reply = if first && refuse(before, others) {
                    refused.fetch_add(1, Ordering::SeqCst);
                    &b"HTTP/1.1 503 Cold\r\ncontent-length: 0\r\n\r\n"[..]
                } else {
                    tokio::time::sleep(delay).await;
                    HELLO
                };
                under_way.fetch_sub(1, Ordering::SeqCst);
                if stream.write_all(reply).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (address, counted)
}

#[test]
fn a_cold_start_is_neither_the_unloaded_time_nor_the_end_of_a_rate() {
    on_one_thread(async {
        let sweep = async |address: &str| {
            let mut load = load(address, Protocol::Http1);
            (load.patience, load.drain) = (Duration::from_secs(60), Duration::from_secs(60));
            let plan = vhive_load::sweep::Plan {
                rates: (200.0, 200.0),
                arrivals: vhive_load::Arrivals::Fixed,
                time: Duration::from_secs(1),
                replies: 60,
                warm_up: 1,
                settle: Duration::ZERO,
                within: 4.0,
                precision: 10.0,
                seed: 1,
            };
            let stop = Stop::default();
            let mut told = 0;
            let tell = |_: &vhive_load::sweep::Step| {
                told += 1;
                if told == 2 {
                    // A machine that is busy finds no knee for long.
                    stop.ask();
                }
            };
            let dir = tempfile::tempdir().expect("made");
            let rows = vhive_load::steps::StepRows::begin(dir.path(), vec!["f".to_owned()]);
            let mut rows = Some(rows.expect("begun"));
            let done = vhive_load::sweep::sweep(&load, &plan, &stop, &mut rows, tell).await;
            assert!(rows.take().expect("given back").lost().is_empty());
            let text = std::fs::read_to_string(dir.path().join("rows.jsonl")).expect("rows");
            (done.expect("swept"), text)
        };
        // What is refused stands for a cold start: it is told apart however slow the machine is.
        let delay = Duration::from_millis(20);
        let (address, refused) = once_busy(delay, |before, _| before == 0).await;
        let (done, rows) = sweep(&address).await;
        assert_eq!(refused.load(Ordering::SeqCst), 1);
        assert!(!rows.contains("\"outcome\":\"error\""), "the first is in no row: {rows}");
        assert!(done.unloaded_replies >= 60, "for longer than asked: {done:?}");
        // An instance more, for the first rate: it is tried once again before it counts as too fast.
        let (address, refused) = once_busy(delay, |_, others| others > 0).await;
        let (done, _) = sweep(&address).await;
        assert_eq!(refused.load(Ordering::SeqCst), 1);
        let tries: Vec<(f64, u64)> =
            done.steps.iter().map(|step| (step.rate, step.failed)).collect();
        assert_eq!(tries, [(200.0, 1), (200.0, 0)], "{done:?}");
    });
}
