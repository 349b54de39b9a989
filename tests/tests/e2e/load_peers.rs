//! `vhive load` beside a tool that others have written: the same rate at the same server gives the
//! same picture.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use vhive_tests::node::vhive;

use crate::load::at;
use crate::scene::{Dir, said};

/// How long the server takes for each request: long beside what either tool adds.
const TAKES: Duration = Duration::from_millis(20);
/// Connections, requests a second on each, which idles then half of the time, and seconds.
const WORKERS: u32 = 8;
const EACH: u32 = 25;
const SECONDS: u32 = 4;
/// How far the quantiles may be apart in one of the attempts, in milliseconds: what else the machine does
/// makes them differ, and no error of a tool makes them agree.
const APART: [(&str, f64); 3] = [("p50", 1.5), ("p90", 3.0), ("p99", 6.0)];
const ATTEMPTS: u32 = 4;

/// `hey`, where it is installed or `xtask test` has brought it.
fn hey() -> Option<PathBuf> {
    let brought = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/hey/usr/bin/hey");
    [PathBuf::from("/usr/bin/hey"), brought].into_iter().find(|path| path.exists())
}

/// A server that takes [`TAKES`] for each request and counts them, until the test's process ends.
pub(crate) fn server() -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let counted = Arc::clone(&counted);
            std::thread::spawn(move || serve(stream, &counted));
        }
    });
    (address, count)
}

fn serve(mut stream: TcpStream, counted: &AtomicU64) {
    let (_hold, wait) = std::sync::mpsc::channel::<()>();
    let (mut buffer, mut have) = ([0; 4096], 0);
    stream.set_nodelay(true).expect("set");
    while let Ok(n @ 1..) = stream.read(&mut buffer[have..]) {
        have += n;
        if !buffer[..have].ends_with(b"\r\n\r\n") {
            continue;
        }
        have = 0;
        counted.fetch_add(1, Ordering::Relaxed);
        let _ = wait.recv_timeout(TAKES);
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
            return;
        }
    }
}

/// What a tool saw.
#[derive(Debug)]
struct Seen {
    requests: u64,
    /// p50, p90, p99 in milliseconds.
    ms: [f64; 3],
}

impl Seen {
    /// What is too far from another tool's: the number of requests, or a quantile.
    fn differs(&self, other: &Self) -> Option<&'static str> {
        let apart = |nth: usize| (self.ms[nth] - other.ms[nth]).abs();
        // They begin after a first tick and stop at a last one: one or two fewer of each worker.
        if self.requests.abs_diff(other.requests) > 2 * u64::from(WORKERS) {
            return Some("the number of requests");
        }
        (0..).zip(APART).find(|(nth, (_, most))| apart(*nth) > *most).map(|(_, (name, _))| name)
    }
}

/// Ours, at all workers' rate.
fn ours(dir: &Dir, address: &str, protocol: &str) -> Seen {
    let endpoints = at(dir, "endpoints.json");
    let endpoint = format!(r#"[{{"hostname":"f","address":"{address}","protocol":"{protocol}"}}]"#);
    fs::write(&endpoints, endpoint).expect("written");
    let (rate, seconds) = ((WORKERS * EACH).to_string(), SECONDS.to_string());
    let args = ["-o", "json", "load", "rps", "--endpoints", &endpoints, "--rps", &rate];
    let out = at(dir, "out");
    let done = vhive(dir.path(), &[&args[..], &["--time", &seconds, "--out", &out]].concat());
    let done = done.expect("runs");
    assert!(done.status.success(), "{}", said(&done));
    let summary: Value = serde_json::from_slice(&done.stdout).expect("a summary");
    let us = |name: &str| summary["latency"][name].as_f64().expect("a quantile");
    Seen {
        requests: summary["outcomes"]["ok"].as_u64().expect("a number"),
        ms: ["p50_us", "p90_us", "p99_us"].map(|name| us(name) / 1e3),
    }
}

/// Runs both until they agree, or too often.
fn compare(theirs: impl Fn() -> Seen, ours: impl Fn() -> Seen) {
    let takes_ms = TAKES.as_secs_f64() * 1e3;
    for attempt in 1..=ATTEMPTS {
        let (theirs, ours) = (theirs(), ours());
        eprintln!("theirs {theirs:?}, ours {ours:?}");
        assert_eq!(ours.requests, u64::from(WORKERS * EACH * SECONDS), "as many as planned");
        // Neither can see less than the server takes.
        assert!(ours.ms[0] >= takes_ms && theirs.ms[0] >= takes_ms - 0.1, "{theirs:?} {ours:?}");
        match ours.differs(&theirs) {
            None => return,
            Some(what) => {
                assert!(attempt < ATTEMPTS, "{what} always differs: {theirs:?} {ours:?}");
            }
        }
    }
}

#[test]
fn e2e_load_sees_what_an_independent_tool_sees() {
    let test = "e2e_load_sees_what_an_independent_tool_sees";
    let Some(hey) = hey() else {
        return eprintln!("SKIP {test}: hey (Debian package hey)");
    };
    let (address, count) = server();
    let dir = Dir::new("load-peers");
    let theirs = || {
        count.store(0, Ordering::Relaxed);
        let (workers, each) = (WORKERS.to_string(), EACH.to_string());
        let run = Command::new("timeout")
            .args(["60", &hey.to_string_lossy(), "-z", &format!("{SECONDS}s"), "-c", &workers])
            .args(["-q", &each])
            .arg(format!("http://{address}/"))
            .stdin(Stdio::null())
            .output()
            .expect("runs");
        let report = String::from_utf8_lossy(&run.stdout).into_owned();
        let ms = ["50%", "90%", "99%"].map(|which| percentile(&report, which) * 1e3);
        Seen { requests: count.swap(0, Ordering::Relaxed), ms }
    };
    compare(theirs, || {
        count.store(0, Ordering::Relaxed);
        let seen = ours(&dir, &address, "http1");
        assert_eq!(count.load(Ordering::Relaxed), seen.requests, "the server's own count");
        seen
    });
}

/// `h2load` with the libraries that came with it, where it runs.
fn h2load() -> Option<Command> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/h2load/usr");
    let brought = place.join("bin/h2load");
    let all = [PathBuf::from("/usr/bin/h2load"), brought];
    all.into_iter().find_map(|path| {
        let libraries = place.join("lib/x86_64-linux-gnu");
        let command = || {
            let mut command = Command::new("timeout");
            command.arg("60").arg(&path).env("LD_LIBRARY_PATH", &libraries).stdin(Stdio::null());
            command
        };
        let runs = command().arg("--version").output().is_ok_and(|done| done.status.success());
        runs.then(command)
    })
}

/// The same over HTTP/2 without TLS.
fn server_h2c() -> String {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
            tell.send(listener.local_addr().expect("bound").to_string()).expect("awaited");
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).expect("set");
                let reply = |_| async {
                    tokio::time::sleep(TAKES).await;
                    let body = http_body_util::Full::new(bytes::Bytes::from_static(b"ok"));
                    Ok::<_, std::convert::Infallible>(http::Response::new(body))
                };
                let serve =
                    hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                        .serve_connection(
                            hyper_util::rt::TokioIo::new(stream),
                            hyper::service::service_fn(reply),
                        );
                tokio::spawn(serve);
            }
        });
    });
    told.recv().expect("it serves")
}

#[test]
fn e2e_load_sees_over_http2_what_h2load_sees() {
    let test = "e2e_load_sees_over_http2_what_h2load_sees";
    if h2load().is_none() {
        return eprintln!("SKIP {test}: h2load (Debian package nghttp2-client)");
    }
    let address = server_h2c();
    let dir = Dir::new("load-h2load");
    let theirs = || {
        let log = at(&dir, "h2load.log");
        // One that is there is added to.
        drop(fs::remove_file(&log));
        let (workers, each) = (WORKERS.to_string(), EACH.to_string());
        let all = (WORKERS * EACH * SECONDS).to_string();
        let mut command = h2load().expect("found before");
        command.args(["-n", &all, "-c", &workers, "-m", "1", "--rps", &each]);
        command.arg(format!("--log-file={log}")).arg(format!("http://{address}/"));
        let done = command.output().expect("runs");
        assert!(done.status.success(), "{}", said(&done));
        // Start, status, and what it took, in microseconds.
        let mut ms: Vec<f64> = fs::read_to_string(&log)
            .expect("a log")
            .lines()
            .filter_map(|line| line.split('\t').nth(2)?.parse::<f64>().ok())
            .map(|us| us / 1e3)
            .collect();
        assert!(!ms.is_empty(), "{}", said(&done));
        ms.sort_by(f64::total_cmp);
        let quantiles = [0.5, 0.9, 0.99].map(|q| vhive_tests::bench::quantile(&ms, q));
        Seen { requests: ms.len() as u64, ms: quantiles }
    };
    compare(theirs, || ours(&dir, &address, "h2c"));
}

/// A line like `  50%% in 0.0203 secs` of hey's report.
fn percentile(report: &str, which: &str) -> f64 {
    let line = report.lines().find(|line| line.trim().starts_with(which) && line.contains("in"));
    let seconds = line.and_then(|line| line.split("in ").nth(1)?.split(' ').next()?.parse().ok());
    assert!(seconds.is_some(), "no {which} in {report}");
    seconds.expect("just checked")
}
