//! The simulated runtime over real sockets: what it answers, and how it fails.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vhive_api::guest::Process;
use vhive_api::{Bytes, Digest, MemoryMode, PrefetchPolicy, RevisionKey, SandboxId};
use vhive_sandbox::sim::{Fault, Sim, SimConfig};
use vhive_sandbox::snapshot::Owner;
use vhive_sandbox::{
    Deadline, End, Guest, Journal, Memory, Milestone, RestoreError, RunRoot, Runtime as _, Sandbox,
    SandboxSpec, Snapshot, SnapshotDraft, Uses,
};

const PATIENCE: Duration = Duration::from_secs(10);

struct Up {
    sandbox: Box<dyn Sandbox>,
    journal: Arc<Journal>,
    dir: TempDir,
}

fn spec(dir: &TempDir, env: &[&str]) -> SandboxSpec {
    let env = env.iter().map(|entry| (*entry).to_owned()).collect();
    SandboxSpec {
        guest: Guest::default(),
        id: SandboxId::random(),
        rootfs: dir.path().join("none"),
        process: Process { args: vec!["sim".to_owned()], env, ..Process::default() },
        hooks: vhive_api::guest::Hooks::default(),
        uses: Uses::default(),
        port: 8080,
        cpu_millis: 1000,
        memory: Bytes::mib(1),
        network: None,
        run_root: RunRoot::below(dir.path(), dir.path()),
        journal: Journal::new(),
    }
}

fn up(sim: &Sim, env: &[&str]) -> Up {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let spec = spec(&dir, env);
    let sandbox = sim.boot(&spec, Deadline::after(PATIENCE)).expect("it boots");
    Up { sandbox, journal: spec.journal, dir }
}

/// A snapshot of a sandbox that has just been booted.
fn snapshot(up: &mut Up) -> Snapshot {
    let owner = Owner {
        revision: RevisionKey::new("default", "one"),
        digest: Digest::of(b"one"),
        image: Digest::of(b"image"),
    };
    let dir = up.dir.path().join("snapshots");
    let mut draft = SnapshotDraft::begin(&dir, owner).expect("begun");
    let checkpoint = up.sandbox.checkpoint().expect("it can be snapshotted");
    checkpoint.snapshot_into(&mut draft, Deadline::after(PATIENCE)).expect("taken");
    draft.publish(&dir.join("one")).expect("published")
}

#[test]
fn a_clone_answers_in_every_mode_and_its_figures_follow_the_configuration() {
    let mut config = SimConfig::default();
    config.snapshot.restore_prefetch = Duration::from_millis(5).into();
    config.snapshot.missed_pages = 3;
    let sim = Sim::new(config);
    let mut original = up(&sim, &[]);
    let from = snapshot(&mut original);
    from.verify().expect("sound");
    let restorer = sim.restores().expect("it restores");
    let policy = PrefetchPolicy::ReapSerial;
    let clone = |mode| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let spec = spec(&dir, &[]);
        let memory = Memory::new(mode, policy);
        let sandbox = restorer.restore(&spec, &from, memory, Deadline::after(PATIENCE));
        sandbox.map(|sandbox| Up { sandbox, journal: spec.journal, dir })
    };
    let early = clone(MemoryMode::Prefetch);
    assert!(matches!(early, Err(RestoreError::Pager(_))), "there is no working set yet");
    let told = [
        (MemoryMode::File, None, 0),
        (MemoryMode::Lazy, Some(64), 0),
        (MemoryMode::Record, Some(64), 0),
        (MemoryMode::Prefetch, Some(3), 64),
    ];
    for (mode, faults, prefetched) in told {
        let up = clone(mode).expect("restored");
        let mut stream = up.connect();
        stream.write_all(GET).expect("sent");
        assert!(replies(&mut stream, 1).contains(up.sandbox.id().as_str()));
        let reached: Vec<_> = up.journal.milestones().into_iter().map(|(m, _)| m).collect();
        let wanted =
            [Milestone::Spawned, Milestone::Restored, Milestone::Resumed, Milestone::Listening];
        assert_eq!(reached, wanted, "{mode}");
        let paging = up.sandbox.paging().expect("restored");
        let figures = paging.figures();
        assert_eq!((figures.faults, figures.prefetched_pages), (faults, prefetched), "{mode}");
        let recorded = (mode == MemoryMode::Record).then_some(1);
        assert_eq!(paging.finish_recording().expect("written"), recorded, "{mode}");
        assert_eq!(paging.finish_recording().expect("done"), None, "{mode}");
    }
    let up = clone(MemoryMode::Record).expect("restored");
    let paging = up.sandbox.paging().expect("restored");
    assert_eq!((paging.discard_recording(), paging.discard_recording()), (true, false));
    assert_eq!(paging.finish_recording().expect("done"), None, "it was discarded");
    assert!(original.sandbox.paging().is_none());
}

impl Up {
    fn connect(&self) -> TcpStream {
        self.journal.wait(Milestone::Listening, Deadline::after(PATIENCE)).expect("it listens");
        let stream = TcpStream::connect(self.sandbox.endpoint()).expect("it accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream
    }
}

/// Reads `count` whole replies off one connection.
fn replies(stream: &mut TcpStream, count: usize) -> String {
    let mut text = String::new();
    let mut chunk = [0; 4096];
    while text.matches("}\n").count() < count {
        let n = stream.read(&mut chunk).expect("a reply");
        assert!(n > 0, "the connection ended after {text}");
        text.push_str(std::str::from_utf8(&chunk[..n]).expect("text"));
    }
    text
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: sim\r\n\r\n";

#[test]
fn requests_on_one_connection_are_answered_in_turn() {
    let sim = Sim::new(SimConfig::default());
    let up = up(&sim, &[]);
    let mut stream = up.connect();
    for _ in 0..3 {
        stream.write_all(GET).expect("sent");
        let reply = replies(&mut stream, 1);
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        assert!(reply.contains(up.sandbox.id().as_str()), "{reply}");
    }
    // Several at once, bodies included.
    let post = b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
    stream.write_all(&[GET, post, GET].concat()).expect("sent");
    assert_eq!(replies(&mut stream, 3).matches("HTTP/1.1 200 OK").count(), 3);
    // A body larger than what is read ahead.
    stream.write_all(b"POST / HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n").expect("sent");
    stream.write_all(&vec![b'x'; 3_000_000]).expect("sent");
    replies(&mut stream, 1);
    stream
        .write_all(b"POST / HTTP/1.1\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
        .expect("sent");
    let mut head = [0; 25];
    stream.read_exact(&mut head).expect("leave to go on");
    assert_eq!(&head, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"xGET / HTTP/1.1\r\nConnection: close\r\n\r\n").expect("sent");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("it ends");
    assert_eq!(rest.matches("HTTP/1.1 200 OK").count(), 2, "{rest}");
}

#[test]
fn stated_times_pass_and_many_sandboxes_keep_apart() {
    let sim = Sim::new(SimConfig::default());
    let slow = up(&sim, &["VHIVE_SIM_LISTEN_MS=30", "VHIVE_SIM_REPLY_MS=40"]);
    let others: Vec<Up> = (0..100).map(|_| up(&sim, &[])).collect();
    let started = slow.journal.reached(Milestone::Started).expect("started");
    let mut stream = slow.connect();
    let listening = slow.journal.reached(Milestone::Listening).expect("listening");
    assert!(listening.duration_since(started) >= Duration::from_millis(30));
    let asked = Instant::now();
    stream.write_all(GET).expect("sent");
    for other in &others {
        let mut stream = other.connect();
        stream.write_all(GET).expect("sent");
        assert!(replies(&mut stream, 1).contains(other.sandbox.id().as_str()));
    }
    assert!(replies(&mut stream, 1).contains("\"reply_ms\":40"));
    assert!(asked.elapsed() >= Duration::from_millis(40));
}

#[test]
fn the_end_closes_listener_and_connections_and_is_told() {
    let sim = Sim::new(SimConfig::default());
    for stop in [true, false] {
        let mut up = up(&sim, &[]);
        let mut stream = up.connect();
        let endpoint = up.sandbox.endpoint();
        if stop {
            up.sandbox.stop(Deadline::after(PATIENCE));
        }
        drop(up.sandbox);
        assert!(TcpStream::connect(endpoint).is_err());
        assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
        let vanished = End::Vanished("the sandbox was killed".to_owned());
        let wanted = if stop { End::Exited(0) } else { vanished };
        assert_eq!(up.journal.ended(), Some(wanted));
    }
}

#[test]
fn faults_happen_as_told() {
    let sim = Sim::new(SimConfig { fault: Some(Fault::ExitAfter(2)), ..SimConfig::default() });
    let leaves = up(&sim, &[]);
    let mut stream = leaves.connect();
    stream.write_all(&[GET, GET].concat()).expect("sent");
    replies(&mut stream, 2);
    assert_eq!(leaves.journal.wait_end(Deadline::after(PATIENCE)), Some(End::Exited(0)));

    let crashes = up(&sim, &["VHIVE_SIM_FAULT=crash-at:1"]);
    let mut stream = crashes.connect();
    stream.write_all(GET).expect("sent");
    let mut half = Vec::new();
    let ended = stream.read_to_end(&mut half);
    let half = String::from_utf8_lossy(&half);
    assert!(ended.is_err() || (half.starts_with("HTTP/1.1 200") && !half.ends_with("}\n")));
    let end = crashes.journal.wait_end(Deadline::after(PATIENCE));
    assert!(matches!(end, Some(End::Vanished(_))), "{end:?}");

    let mute = up(&sim, &["VHIVE_SIM_FAULT=mute"]);
    let mut stream = mute.connect();
    stream.write_all(GET).expect("sent");
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a time");
    assert!(stream.read(&mut [0; 1]).is_err(), "an answer from a mute one");

    let deaf = up(&sim, &["VHIVE_SIM_FAULT=never-listen"]);
    assert!(TcpStream::connect(deaf.sandbox.endpoint()).is_err());
    assert_eq!(deaf.journal.reached(Milestone::Listening), None);
}
