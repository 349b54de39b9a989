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
/// Requests a second, and seconds.
const RATE: u32 = 20;
const SECONDS: u32 = 4;

/// `hey`, where it is installed or `xtask test` has brought it.
fn hey() -> Option<PathBuf> {
    let brought = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/hey/usr/bin/hey");
    [PathBuf::from("/usr/bin/hey"), brought].into_iter().find(|path| path.exists())
}

/// A server that takes [`TAKES`] for each request and counts them, until the test's process ends.
fn server() -> (String, Arc<AtomicU64>) {
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

#[test]
fn e2e_load_sees_what_an_independent_tool_sees() {
    let test = "e2e_load_sees_what_an_independent_tool_sees";
    let Some(hey) = hey() else {
        return eprintln!("SKIP {test}: hey (Debian package hey)");
    };
    let (address, count) = server();
    // One worker at a rate that leaves it idle between requests: hey's rate is then a fixed one.
    let (rate, seconds) = (RATE.to_string(), SECONDS.to_string());
    let run = Command::new("timeout")
        .args(["60", &hey.to_string_lossy(), "-z", &format!("{seconds}s"), "-c", "1", "-q", &rate])
        .arg(format!("http://{address}/"))
        .stdin(Stdio::null())
        .output()
        .expect("runs");
    let report = String::from_utf8_lossy(&run.stdout).into_owned();
    let theirs_ms = percentile(&report, "50%") * 1e3;
    let theirs = count.swap(0, Ordering::Relaxed);

    let dir = Dir::new("load-peers");
    let endpoints = at(&dir, "endpoints.json");
    let endpoint = format!(r#"[{{"hostname":"f","address":"{address}","protocol":"http1"}}]"#);
    fs::write(&endpoints, endpoint).expect("written");
    let args = ["-o", "json", "load", "rps", "--endpoints", &endpoints, "--rps", &rate];
    let out = at(&dir, "out");
    let done = vhive(dir.path(), &[&args[..], &["--time", &seconds, "--out", &out]].concat());
    let done = done.expect("runs");
    let summary: Value = serde_json::from_slice(&done.stdout).expect("a summary");
    let ours_ms = summary["latency"]["p50_us"].as_f64().expect("a median") / 1e3;
    let ours = count.load(Ordering::Relaxed);

    println!("hey: {theirs} requests, p50 {theirs_ms} ms; ours: {ours} requests, p50 {ours_ms} ms");
    assert_eq!(ours, u64::from(RATE * SECONDS), "{}", said(&done));
    // hey begins after its first tick and stops at its last: one or two fewer.
    assert!(theirs.abs_diff(ours) <= 3, "{theirs} and {ours}: {report}");
    // Neither can see less than the server takes; what is above it is this machine's noise.
    let takes_ms = TAKES.as_secs_f64() * 1e3;
    assert!(ours_ms >= takes_ms && theirs_ms >= takes_ms - 0.1, "{ours_ms} {theirs_ms}: {report}");
    assert!((ours_ms - theirs_ms).abs() < takes_ms / 2.0, "{ours_ms} {theirs_ms}: {report}");
}

/// A line like `  50%% in 0.0203 secs` of hey's report.
fn percentile(report: &str, which: &str) -> f64 {
    let line = report.lines().find(|line| line.trim().starts_with(which) && line.contains("in"));
    let seconds = line.and_then(|line| line.split("in ").nth(1)?.split(' ').next()?.parse().ok());
    assert!(seconds.is_some(), "no {which} in {report}");
    seconds.expect("just checked")
}
