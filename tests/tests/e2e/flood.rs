//! Ten thousand connections at once: as many as the gateway lets in.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};

use crate::scene::{Dir, apply, invoke, node, service, skip};

const CONNECTIONS: usize = 10_000;

/// Descriptors for what is not a connection of the flood.
const OTHERS: u64 = 500;

/// How long the node may take to close what its clients have closed.
const PATIENCE: Duration = Duration::from_secs(30);

fn descriptors(pid: Pid) -> usize {
    let dir = format!("/proc/{}/fd", pid.as_raw_nonzero());
    std::fs::read_dir(dir).expect("the node runs").count()
}

/// Lets this process, and what it starts, have so many descriptors; says why not.
fn raise_limit(wanted: u64) -> Result<(), String> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if maximum.is_some_and(|most| most < wanted) {
        return Err(format!("{wanted} file descriptors; the hard limit is {maximum:?}"));
    }
    let raised = Rlimit { current: maximum.or(Some(wanted)), maximum };
    setrlimit(Resource::Nofile, raised).map_err(|error| format!("a higher limit: {error}"))
}

#[test]
fn e2e_a_flood_of_connections_is_outlived_and_others_are_answered_meanwhile() {
    let test = "e2e_a_flood_of_connections_is_outlived_and_others_are_answered_meanwhile";
    if skip(test) {
        return;
    }
    if let Err(lacks) = raise_limit(CONNECTIONS as u64 + OTHERS) {
        eprintln!("SKIP {test}: {lacks}");
        return;
    }
    let dir = Dir::new("flood");
    let node = node(&dir, "");
    apply(&node, &dir, &service("hello", &[], ""));
    let answered = || assert_eq!(invoke(&node, "hello")["status"], 200, "{}", node.log());
    answered();
    let before = descriptors(node.pid());
    let mut flood = Vec::with_capacity(CONNECTIONS);
    for n in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(&node.gateway).expect("the port is open");
        // Every second one begins a request and never ends it.
        if n % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: he").expect("taken");
        }
        flood.push(stream);
        if n % 1000 == 999 {
            answered();
        }
    }
    // The gateway is as full as it gets: new clients are answered nevertheless.
    for _ in 0..10 {
        answered();
    }
    let during = descriptors(node.pid());
    assert!(during > CONNECTIONS / 2, "the flood is there: {during}");
    drop(flood);
    let begun = Instant::now();
    let (_hold, ticks) = std::sync::mpsc::channel::<()>();
    loop {
        let now = descriptors(node.pid());
        if now <= before {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{before} before, {during} during, {now} after");
        // Nobody sends: this is a pause.
        let _ = ticks.recv_timeout(Duration::from_millis(50));
    }
    answered();
    assert!(node.stop().expect("it ends").success());
}
