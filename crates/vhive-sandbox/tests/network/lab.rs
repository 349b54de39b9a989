//! A host of its own for each test: a network namespace with an uplink to an "internet", which is
//! another namespace. Nothing of the machine's own network is touched.
//!
//! ```text
//!   host (the test's thread)             outside
//!   wan0 203.0.113.2/24  ──────────────  203.0.113.1/24, 8.8.4.4, 169.254.169.254
//!   lan0 10.66.0.1/24    ──────────────  10.66.0.2/24
//!   default via 203.0.113.1
//! ```

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use vhive_sandbox::{Deadline, RunRoot, network};

/// A server on the internet.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(8, 8, 4, 4);
/// Where clouds have their metadata; this one answers.
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// A server in the network behind the host's other interface.
pub(crate) const LAN: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
/// The host's addresses.
pub(crate) const HOST_WAN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(crate) const HOST_LAN: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);

/// Why this machine cannot carry one, if it cannot.
pub(crate) fn lacks() -> Option<String> {
    if let Err(lacks) = network::check_host() {
        return Some(lacks.to_string());
    }
    let missing = Command::new("ip").arg("-V").output().is_err();
    missing.then(|| "program ip not found; run `apt-get install iproute2`".to_owned())
}

/// The test's host. The calling thread is in it from now on, and so are its children.
#[derive(Debug)]
pub(crate) struct Lab {
    outside: OwnedFd,
    directory: tempfile::TempDir,
}

impl Lab {
    /// `None`, and the reason on standard error, if this machine cannot carry it.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if let Some(lacks) = lacks() {
            eprintln!("SKIP {test}: {lacks}");
            return None;
        }
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let outside = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        });
        let outside = outside.join().unwrap();
        let lab = Self { outside, directory: tempfile::tempdir().unwrap() };
        for (here, address) in [("wan0", "203.0.113.2/24"), ("lan0", "10.66.0.1/24")] {
            // The pair is born outside, since a path names that namespace only over there.
            ip(&format!("link add {here} type veth peer name {here}p"));
            ip(&format!("address add {address} dev {here}"));
            ip(&format!("link set {here} up"));
        }
        lab.push_out(&["wan0p", "lan0p"]);
        ip("link set lo up");
        ip("route add default via 203.0.113.1");
        lab.outside(|| {
            ip("address add 203.0.113.1/24 dev wan0p");
            ip("address add 10.66.0.2/24 dev lan0p");
            for address in [OUTSIDE, METADATA] {
                ip(&format!("address add {address}/32 dev lo"));
            }
            for link in ["lo", "wan0p", "lan0p"] {
                ip(&format!("link set {link} up"));
            }
            // Nothing but the host's rules shall keep outsiders from slots.
            ip("route add 198.18.0.0/15 via 203.0.113.2");
        });
        ip("route add 169.254.169.254 via 203.0.113.1");
        Some(lab)
    }

    /// Moves interfaces of this host out.
    fn push_out(&self, links: &[&str]) {
        let (told, wait) = std::sync::mpsc::channel::<()>();
        let (tell, number) = std::sync::mpsc::channel();
        let outside = &self.outside;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                setns(outside, CloneFlags::CLONE_NEWNET).unwrap();
                tell.send(rustix::thread::gettid()).unwrap();
                // Until the links have been moved to where this thread is.
                let _ = wait.recv();
            });
            let thread = number.recv().unwrap();
            for link in links {
                ip(&format!("link set {link} netns {}", thread.as_raw_nonzero()));
            }
            drop(told);
        });
    }

    /// Does something on the internet; sockets made there stay there.
    pub(crate) fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.outside, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// The run directory of a node of this test.
    pub(crate) fn root(&self, node: &str) -> RunRoot {
        let base = self.directory.path();
        RunRoot::below(base, &base.join(node))
    }

    /// Where a node of this test keeps its state.
    pub(crate) fn state(&self, node: &str) -> PathBuf {
        self.directory.path().join(node)
    }
}

/// Runs `ip` in the calling thread's network namespace.
pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

/// Runs a program in the calling thread's network namespace.
pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A server that answers each line with `<peer's address> said <line>`, on a thread that ends with
/// the test.
pub(crate) fn serve(listener: TcpListener) -> SocketAddrV4 {
    let std::net::SocketAddr::V4(address) = listener.local_addr().unwrap() else {
        panic!("an IPv4 address")
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) {
    let Ok(peer) = stream.peer_addr() else { return };
    let Ok(reader) = stream.try_clone() else { return };
    for line in BufReader::new(reader).lines() {
        let Ok(line) = line else { return };
        if writeln!(stream, "{} said {line}", peer.ip()).is_err() {
            return;
        }
    }
}

/// Says a line to a guest and returns its answer.
pub(crate) fn ask(stream: &mut TcpStream, line: &str) -> std::io::Result<String> {
    // In one piece: guests answer whatever comes.
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

/// Connects to a guest.
pub(crate) fn connect(to: SocketAddrV4) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to.into(), Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// Long enough for anything that works.
pub(crate) fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}
