//! Promises about what is killed in the middle: the runtime's own commands, CRIU, gVisor's processes,
//! each at several moments of a start, a snapshot and a start from one.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use vhive_api::{MemoryMode, RuntimeName, SandboxId};
use vhive_sandbox::snapshot::Blame;
use vhive_sandbox::{Sandbox, SandboxSpec, Snapshot};

use crate::promises::HTTPD;
use crate::restored;
use crate::site::{Booted, Site, get, soon};

/// How often a process has been seen when it is killed: the more often, the later in its life.
const MOMENTS: [u32; 3] = [1, 3, 12];

/// How often it is tried again to meet what has not been met at any of them.
const TRIES: u32 = 30;

/// At every how manieth look all processes are looked at.
const EVERYTHING: u32 = 8;

/// How long nobody looks for it, between two looks.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000 };

/// A word of a command line, and the runtimes that run such a one.
type Word = (&'static str, &'static [RuntimeName]);

const GVISOR: &[RuntimeName] = &[RuntimeName::Runsc];
const RUNC: &[RuntimeName] = &[RuntimeName::Runc];
const BOTH: &[RuntimeName] = &[RuntimeName::Runc, RuntimeName::Runsc];
const CRUN: &[RuntimeName] = &[RuntimeName::Crun];
const PLAIN: &[RuntimeName] = &[RuntimeName::Runc, RuntimeName::Crun];
const ALL: &[RuntimeName] = &[RuntimeName::Runc, RuntimeName::Crun, RuntimeName::Runsc];

/// What a start, a snapshot and a start from one run: the runtime's commands, what they become, and
/// CRIU, which runc and the library in crun run as `criu swrk`.
const STARTING: [Word; 5] = [
    ("run", BOTH),
    ("create", CRUN),
    ("start", CRUN),
    ("runsc-sandbox", GVISOR),
    ("runsc-gofer", GVISOR),
];
const TAKING: [Word; 5] = [
    ("pause", RUNC),
    ("checkpoint", ALL),
    ("swrk", PLAIN),
    ("runsc-sandbox", GVISOR),
    ("runsc-gofer", GVISOR),
];
const RESTORING: [Word; 4] =
    [("restore", ALL), ("swrk", PLAIN), ("runsc-sandbox", GVISOR), ("runsc-gofer", GVISOR)];
const WAITING: [Word; 4] =
    [("create", GVISOR), ("restore", ALL), ("runsc-sandbox", GVISOR), ("runsc-gofer", GVISOR)];

/// A start in which something is killed fails and says why, or what it has started serves.
pub(crate) fn a_start_that_is_killed_is_told(site: &Site) {
    at_every_moment(site, &STARTING, |word, seen| {
        let spec = site.spec(HTTPD);
        let (booted, was) = meanwhile(&spec.id, word, seen, || site.try_boot(&spec));
        match booted {
            Ok(booted) => serves_or_has_ended(&booted),
            Err(error) => assert!(spec.journal.wait_end(soon()).is_some(), "{word}: {error:?}"),
        }
        was
    });
    let booted = site.boot(&site.spec(HTTPD));
    booted.listening();
    serves(&booted);
}

/// A snapshot in which something is killed is none, or whole; its original goes on, or its end is
/// told.
pub(crate) fn a_snapshot_that_is_killed_costs_itself(site: &Site) {
    at_every_moment(site, &TAKING, |word, seen| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (spec, mut booted) = original(site);
        let taken =
            meanwhile(&spec.id, word, seen, || restored::try_snapshot(&mut booted, dir.path()));
        match taken.0 {
            Ok(snapshot) => {
                serves(&restored::clone(site, &site.spec("never run"), &snapshot, MemoryMode::File))
            }
            Err(error) => {
                let left = fs::read_dir(dir.path()).expect("readable").count();
                assert_eq!(left, 0, "{word}: {error:?}");
                let told = || booted.journal.wait_end(soon()).is_some();
                assert!(!error.is_lost() || told(), "{word}: {error:?}");
            }
        }
        serves_or_has_ended(&booted);
        if taken.1 && booted.journal.ended().is_none() {
            // It is as good as before: also for the next snapshot.
            let again = tempfile::tempdir().expect("a temporary directory");
            let snapshot = restored::snapshot(&mut booted, again.path());
            snapshot.verify().expect("sound");
        }
        taken.1
    });
}

/// A start from a snapshot in which something is killed says why, and is not held against the
/// snapshot.
pub(crate) fn a_restore_that_is_killed_costs_itself(site: &Site) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (_, mut booted) = original(site);
    let snapshot = restored::snapshot(&mut booted, dir.path());
    drop(booted);
    let restores = site.runtime.restores().expect("it took one");
    let at_once = |spec: &SandboxSpec| {
        restores.restore(spec, &snapshot, restored::memory(MemoryMode::File), soon())
    };
    killed_restores(site, &RESTORING, at_once);
    let ahead =
        |spec: &SandboxSpec| match restores.prespawn(spec, &snapshot, MemoryMode::File, soon())? {
            Some(waiting) => waiting.restore(restored::memory(MemoryMode::File), soon()),
            None => at_once(spec),
        };
    killed_restores(site, &WAITING, ahead);
    snapshot.verify().expect("sound");
    serves(&whole(site, &snapshot));
}

fn killed_restores(
    site: &Site,
    words: &[Word],
    restore: impl Fn(&SandboxSpec) -> Result<Box<dyn Sandbox>, vhive_sandbox::RestoreError>,
) {
    at_every_moment(site, words, |word, seen| {
        let spec = site.spec("never run");
        let (restored, was) = meanwhile(&spec.id, word, seen, || restore(&spec));
        match restored {
            Ok(sandbox) => {
                serves_or_has_ended(&Booted { sandbox, journal: spec.journal.clone() });
            }
            Err(error) => {
                assert!(was, "{word}: {error:?}");
                assert_ne!(error.blame(), Blame::Snapshot, "{word}, seen {seen}: {error:?}");
                assert!(spec.journal.wait_end(soon()).is_some(), "{word}: {error:?}");
            }
        }
        was
    });
}

fn whole(site: &Site, from: &Snapshot) -> Booted {
    restored::clone(site, &site.spec("never run"), from, MemoryMode::File)
}

fn original(site: &Site) -> (SandboxSpec, Booted) {
    let mut spec = site.spec(HTTPD);
    spec.uses.snapshots = true;
    let booted = site.boot(&spec);
    booted.listening();
    (spec, booted)
}

/// Has each of what the site's runtime runs killed at every moment, and at least once: `kill` is told
/// whom and when, and says whether it was.
fn at_every_moment(site: &Site, words: &[Word], kill: impl Fn(&'static str, u32) -> bool) {
    let runtime = site.runtime.name();
    for (word, _) in words.iter().filter(|(_, by)| by.contains(&runtime)) {
        // Not lazily: every moment counts.
        let killed = MOMENTS.map(|seen| kill(word, seen)).contains(&true);
        let met = killed || (0..TRIES).any(|_| kill(word, MOMENTS[0]));
        assert!(met, "no {word} was found to be killed");
    }
}

/// Does something while whoever has `word` on its command line is killed once it has been seen so
/// often; says whether somebody was.
fn meanwhile<T>(id: &SandboxId, word: &str, seen: u32, act: impl FnOnce() -> T) -> (T, bool) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut met = 0;
            for look in 0.. {
                if done.load(Ordering::SeqCst) {
                    break;
                }
                let found = find(id, word, look);
                met += u32::from(found.is_some());
                if let Some(pid) = found.filter(|_| met >= seen)
                    && let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
                    // Still the same one, which the descriptor now stands for, and not too late.
                    && is_it(id, word, pid)
                    && !done.load(Ordering::SeqCst)
                {
                    return pidfd_send_signal(pidfd, Signal::KILL).is_ok();
                }
                let _ = poll(&mut [], Some(&PAUSE));
            }
            false
        });
        let result = act();
        done.store(true, Ordering::SeqCst);
        (result, killer.join().expect("no panic"))
    })
}

/// The process with a word on its command line that belongs to a sandbox. The runtime's commands are
/// children of this process and some live for a few milliseconds only: they and what they have started
/// are looked at each time, which takes microseconds; all processes of the host only now and then, for
/// what has lost its parent.
fn find(id: &SandboxId, word: &str, look: u32) -> Option<Pid> {
    let own = rustix::process::getpid();
    let started = children(own).into_iter().flat_map(|child| {
        let grandchildren = children(child);
        std::iter::once(child).chain(grandchildren)
    });
    let hit = started.into_iter().find(|pid| is_it(id, word, *pid));
    if hit.is_some() || !look.is_multiple_of(EVERYTHING) {
        return hit;
    }
    let entries = fs::read_dir("/proc").expect("readable");
    let number = |name: std::ffi::OsString| name.to_str()?.parse::<i32>().ok();
    let numbers = entries.filter_map(|entry| number(entry.ok()?.file_name()));
    let mut others = numbers.filter_map(Pid::from_raw).filter(|pid| *pid != own);
    others.find(|pid| is_it(id, word, *pid))
}

/// The children of a process, whichever of its threads has started them.
///
/// # Source
/// proc_tid_children(5)
fn children(of: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", of.as_raw_nonzero())) else {
        return Vec::new();
    };
    let lists = threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .collect::<String>();
    lists.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// Whether it has the word, and it, or its parent, names the sandbox.
fn is_it(id: &SandboxId, word: &str, pid: Pid) -> bool {
    let words =
        |pid: Pid| fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let names = |words: &[u8]| String::from_utf8_lossy(words).contains(id.as_str());
    let own = words(pid);
    let has_it = own.split(|byte| *byte == 0).any(|part| part == word.as_bytes());
    has_it && (names(&own) || parent(pid).is_some_and(|parent| names(&words(parent))))
}

/// # Source
/// proc_pid_status(5)
fn parent(pid: Pid) -> Option<Pid> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Pid::from_raw(line.trim().parse().ok()?)
}

fn serves(booted: &Booted) {
    assert_eq!(get(booted.endpoint(), "/index.html"), "hello from inside\n");
}

/// What was hit serves, or the journal learns that it does not.
fn serves_or_has_ended(booted: &Booted) {
    let asked = |endpoint: SocketAddr| -> std::io::Result<String> {
        let patience = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&endpoint, patience)?;
        stream.set_read_timeout(Some(patience))?;
        write!(stream, "GET /index.html HTTP/1.0\r\n\r\n")?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    };
    if booted.journal.ended().is_some() {
        // Nobody is there to refuse a connection: to ask would only be to wait.
        return;
    }
    let listens = booted.journal.wait(vhive_sandbox::Milestone::Listening, soon()).is_ok();
    let reply = if listens { asked(booted.endpoint()) } else { Ok(String::new()) };
    if !reply.as_ref().is_ok_and(|reply| reply.ends_with("hello from inside\n")) {
        let end = booted.journal.wait_end(soon());
        assert!(end.is_some(), "it neither serves nor has ended: {reply:?}");
    }
}
