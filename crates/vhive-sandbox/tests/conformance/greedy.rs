//! Functions that take whatever they can get.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::promises::HTTPD;
use crate::site::Site;

/// Processes, files of every kind, memory that is a file: each without end.
const WAYS: [&str; 3] = [
    "bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done",
    "while :; do i=$((i + 1)); : > /tmp/$i; done",
    "dd if=/dev/zero of=/dev/shm/x bs=1M; dd if=/dev/zero of=/tmp/x bs=1M; sleep 60",
];

/// How long each may go on.
const TIME: Duration = Duration::from_secs(2);

/// How long a neighbour may take for a reply meanwhile, on a busy machine.
const REPLY: Duration = Duration::from_secs(5);

/// How long the node may take to end it: thousands of processes are in each other's way.
const END: Duration = Duration::from_secs(60);

/// Asks once, and waits no longer than it may take. What is asked for is not there: a file would be
/// sent by `sendfile`, for which gVisor keeps up to a MiB of the neighbour's memory each time, for a
/// minute; of so many in a row that one would end, with nobody's help.
fn answers(endpoint: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&endpoint, REPLY)?;
    stream.set_read_timeout(Some(REPLY))?;
    write!(stream, "GET /nothing HTTP/1.0\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    assert!(reply.starts_with("HTTP/1.1 404 "), "{reply:?}");
    Ok(())
}

/// A function that takes all it can get does not keep its neighbours from answering, nor its node
/// from ending it.
pub(crate) fn a_greedy_function_hurts_itself_only(site: &Site) {
    let neighbour = site.boot(&site.spec(HTTPD));
    neighbour.listening();
    for way in WAYS {
        let greedy = site.boot(&site.spec(way));
        let begin = Instant::now();
        let mut replies = 0;
        while begin.elapsed() < TIME {
            if let Err(error) = answers(neighbour.endpoint()) {
                let end = neighbour.journal.ended();
                panic!("{error} after {replies} replies during {way}; its end: {end:?}");
            }
            replies += 1;
        }
        assert!(replies > 0);
        let end = Instant::now();
        drop(greedy);
        assert!(end.elapsed() < END, "{:?} to end {way}", end.elapsed());
    }
}

/// When the host runs out of memory, its kernel ends a sandbox and not the node.
pub(crate) fn a_sandbox_goes_before_its_node(site: &Site) {
    let read = |pid: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("readable");
        text.trim().parse::<i32>().expect("a number")
    };
    let booted = site.boot(&site.spec(HTTPD));
    booted.listening();
    let pid = booted.sandbox.processes()[0].as_raw_nonzero().to_string();
    let (its, own) = (read(&pid), read("self"));
    assert!(its > own || own == 1000, "{its} beside the node's {own}");
}
