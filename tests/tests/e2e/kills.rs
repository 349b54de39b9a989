//! Sandboxes of every runtime killed at random moments: while they boot, are snapshotted, restored, wait
//! as standbys, or serve; all their processes at once, or one of them.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use vhive_tests::node::TestNode;

use crate::microvm::{tag, traces};
use crate::runtimes::{groups, offered, on};
use crate::scene::{Dir, apply, invoke};

/// How many times something is killed, somewhere between a sandbox' first process and its last.
const KILLS: u32 = 200;

/// How many of them hit each runtime that is offered.
const OF_EACH: u32 = 20;

/// How long that is gone on with: a slow host, whose machines boot for seconds, has fewer kills.
const LONGEST: Duration = Duration::from_secs(60);

/// How many invocations there are at a time.
const LANES: u64 = 2;

/// Programs that sandboxes are made of; each says the node's tag on its command line.
const PROGRAMS: [&str; 7] =
    ["qemu", "firecracker", "jailer", "runsc", "runc", "crun", ".vhive-init"];

/// One that says nothing of it, and is the child of one of those.
const CRIU: &str = "criu";

/// What has been killed so far.
struct Killed {
    all: AtomicU32,
    begin: Instant,
    /// By runtime, of those whose sandboxes were told apart.
    of: BTreeMap<String, AtomicU32>,
}

impl Killed {
    /// The runtime that has been hit least, and how often.
    fn least(&self) -> (&str, u32) {
        let counts = self.of.iter().map(|(name, count)| (&**name, count.load(Ordering::Relaxed)));
        counts.min_by_key(|(_, count)| *count).expect("some runtime is offered")
    }

    fn goes_on(&self) -> bool {
        let enough = self.all.load(Ordering::Relaxed) >= KILLS && self.least().1 >= OF_EACH;
        !enough && self.begin.elapsed() < LONGEST
    }

    fn count(&self, runtime: Option<&str>) {
        self.all.fetch_add(1, Ordering::Relaxed);
        if let Some(count) = runtime.and_then(|name| self.of.get(name)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A service whose sandboxes are killed.
struct Victim {
    runtime: String,
    service: String,
    /// It takes seconds to boot.
    machine: bool,
}

#[test]
fn e2e_sandboxes_killed_at_any_moment_leave_nothing() {
    let dir = Dir::new("kills");
    let offered = offered("e2e_sandboxes_killed_at_any_moment_leave_nothing", &dir);
    if offered.is_empty() {
        return;
    }
    let config = "[node]\nback_off_first = \"1ms\"\nback_off_most = \"1ms\"\n";
    let node = TestNode::start(dir.path(), config).expect("the node starts");
    let mut victims = Vec::new();
    for runtime in &offered {
        let machine = ["qemu", "firecracker"].contains(&runtime.as_str());
        apply(&node, &dir, &on(runtime, runtime, ""));
        victims.push(Victim { runtime: runtime.clone(), service: runtime.clone(), machine });
        // Where nothing is restored this is one more that boots.
        let annotation = "autoscaling.knative.dev/window";
        let with = format!("vhive.dev/snapshot-policy: vanilla\n        {annotation}");
        let service = format!("{runtime}-restored");
        apply(&node, &dir, &on(runtime, &service, "").replace(annotation, &with));
        victims.push(Victim { runtime: runtime.clone(), service, machine });
    }
    for Victim { service, .. } in &victims {
        assert_eq!(invoke(&node, service)["status"], 200, "{service}");
    }
    let tag = tag(&dir);
    let given = std::env::var("VHIVE_SEED").ok().filter(|text| !text.is_empty());
    let given = given.map(|text| text.parse::<u64>().expect("VHIVE_SEED is a number"));
    let seed = given.unwrap_or_else(|| u64::from(std::process::id())) | 1;
    eprintln!("seed {seed}: VHIVE_SEED={seed} begins with the same choices");
    let of = offered.iter().map(|name| (name.clone(), AtomicU32::new(0))).collect();
    let killed = Killed { all: AtomicU32::new(0), begin: Instant::now(), of };
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let (node, victims, tag, killed) = (&node, &victims, &tag, &killed);
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_mul(2 * lane + 3));
                while killed.goes_on() {
                    start_and_kill(node, &mut random, victims, tag, killed);
                }
            });
        }
    });
    eprintln!(
        "killed in {:?}: {} times, {:?}",
        killed.begin.elapsed(),
        killed.all.load(Ordering::Relaxed),
        killed.of
    );
    let (least, count) = killed.least();
    assert!(count > 0, "of {least} none; of all {:?}", killed.of);
    for Victim { service, .. } in &victims {
        // This one may still share the fate of a start that the last kill hit.
        let first = invoke(&node, service);
        assert!(matches!(first["status"].as_u64(), Some(200 | 502 | 503)), "{service}: {first}");
        // What was killed in part may serve, badly, until it is let go.
        node.ok(&["evict", service]).expect("evicted");
        let reply = invoke(&node, service);
        assert_eq!(reply["status"], 200, "{service}: {reply}\n{}", node.log());
    }
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

/// Invokes a function, and kills something of a sandbox a moment later.
fn start_and_kill(
    node: &TestNode,
    random: &mut Random,
    victims: &[Victim],
    tag: &str,
    killed: &Killed,
) {
    // A microVM has fewer turns, and most of its moments are in its boot.
    let only = victims.iter().all(|one| one.machine);
    let machine = only || random.below(8) == 0;
    // Which of them is hit is chance, so of those who have been spared one is hit for sure.
    let (least, count) = killed.least();
    let spared = (random.below(4) == 0 || count == 0).then_some(least);
    let fits = |one: &&Victim| spared.map_or(one.machine == machine, |name| one.runtime == name);
    let fits: Vec<&Victim> = victims.iter().filter(fits).collect();
    let victim = if fits.is_empty() { &victims[0] } else { *random.one_of(&fits) };
    let moment = Duration::from_millis(random.below(if victim.machine { 2500 } else { 600 }));
    // Else it would most often be found serving, and never be restored.
    let again = random.below(2) == 0;
    let (_hold, tick) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let reply = scope.spawn(|| {
            if again {
                node.ok(&["evict", &victim.service]).expect("evicted");
            }
            invoke(node, &victim.service)
        });
        // Nothing is waited for: any moment will do.
        let _ = tick.recv_timeout(moment);
        if random.below(2) == 0 {
            kill_group(random, tag, spared, killed);
        } else {
            kill_one(random, tag, spared, killed);
        }
        let reply = reply.join().expect("answered");
        let status = reply["status"].as_u64();
        assert!(matches!(status, Some(200 | 502 | 503)), "{}: {reply}", victim.service);
    });
}

/// Kills every process of one sandbox of the node, of this runtime if one is named, if there is one.
fn kill_group(random: &mut Random, tag: &str, only: Option<&str>, killed: &Killed) {
    let of = |group: PathBuf| {
        let runtime = recorded(tag, &group.file_name().unwrap_or_default().to_string_lossy());
        (group, runtime)
    };
    let all: Vec<_> =
        groups(tag).into_iter().map(of).filter(|(_, of)| is_one(of.as_deref(), only)).collect();
    if all.is_empty() {
        return;
    }
    let (group, runtime) = random.one_of(&all);
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    if pids(&text).filter(|pid| kill(*pid)).count() > 0 {
        killed.count(runtime.as_deref());
    }
}

/// Kills one process likewise.
fn kill_one(random: &mut Random, tag: &str, only: Option<&str>, killed: &Killed) {
    let of = |pid| (pid, runtime_of(pid, tag));
    let all: Vec<_> =
        processes(tag).into_iter().map(of).filter(|(_, of)| is_one(of.as_deref(), only)).collect();
    if all.is_empty() {
        return;
    }
    let (pid, runtime) = random.one_of(&all);
    if kill(*pid) {
        killed.count(runtime.as_deref());
    }
}

fn is_one(runtime: Option<&str>, only: Option<&str>) -> bool {
    only.is_none() || runtime == only
}

/// The runtime of a sandbox of the node's, as its directory says.
fn recorded(tag: &str, id: &str) -> Option<String> {
    let file = Path::new("/run/vhive").join(tag).join("sandboxes").join(id).join("sandbox.json");
    let record: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    Some(record["runtime"].as_str()?.to_owned())
}

/// The runtime of the sandbox that a process belongs to, by its control groups or its command line.
fn runtime_of(pid: Pid, tag: &str) -> Option<String> {
    let process = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let mut text = fs::read(process.join("cgroup")).unwrap_or_default();
    text.extend(fs::read(process.join("cmdline")).unwrap_or_default());
    let text = String::from_utf8_lossy(&text);
    let sandboxes = fs::read_dir(Path::new("/run/vhive").join(tag).join("sandboxes")).ok()?;
    let ids = sandboxes.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let id = ids.into_iter().find(|id| text.contains(&**id))?;
    recorded(tag, &id)
}

/// Every process of any sandbox of the node, also the runtimes' own commands, which are in no group.
fn processes(tag: &str) -> HashSet<Pid> {
    let mut all = HashSet::new();
    for group in groups(tag) {
        all.extend(pids(&fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default()));
    }
    for entry in fs::read_dir("/proc").expect("listed").flatten() {
        let Some(pid) =
            entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?))
        else {
            continue;
        };
        let (command, program) = command(pid);
        let parent = || {
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
            Some(self::command(Pid::from_raw(line.trim().parse().ok()?)?).0)
        };
        let of_ours =
            PROGRAMS.iter().any(|name| program.starts_with(name)) && command.contains(tag);
        if of_ours || (program == CRIU && parent().is_some_and(|parent| parent.contains(tag))) {
            all.insert(pid);
        }
    }
    all
}

/// A process' command line, and its program's name.
fn command(pid: Pid) -> (String, String) {
    let file = Path::new("/proc").join(pid.as_raw_nonzero().to_string()).join("cmdline");
    let command = String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned();
    let program = command.split('\0').next().unwrap_or_default();
    let program = program.rsplit('/').next().unwrap_or_default().to_owned();
    (command, program)
}

fn pids(text: &str) -> impl Iterator<Item = Pid> {
    text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?))
}

fn kill(pid: Pid) -> bool {
    pidfd_open(pid, PidfdFlags::empty())
        .and_then(|pidfd| pidfd_send_signal(pidfd, Signal::KILL))
        .is_ok()
}

/// Xorshift: any moments will do, and the seed is printed.
struct Random(u64);

impl Random {
    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.below(all.len() as u64)).expect("below a length")]
    }

    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}
