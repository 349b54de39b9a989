//! Sandboxes of every runtime killed at random moments: while they boot, are snapshotted, restored, wait
//! as standbys, or serve; all their processes at once, or one of them.

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use vhive_tests::node::TestNode;

use crate::microvm::{tag, traces};
use crate::runtimes::{groups, offered, on};
use crate::scene::{Dir, apply, invoke};

/// How many times something is killed, somewhere between a sandbox' first process and its last.
const KILLS: u32 = 200;

/// How many invocations there are at a time.
const LANES: u64 = 2;

/// Programs that sandboxes are made of; each says the node's tag on its command line.
const PROGRAMS: [&str; 7] =
    ["qemu", "firecracker", "jailer", "runsc", "runc", "crun", ".vhive-init"];

/// A service whose sandboxes are killed.
struct Victim {
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
        victims.push(Victim { service: runtime.clone(), machine });
        // Where nothing is restored this is one more that boots.
        let annotation = "autoscaling.knative.dev/window";
        let with = format!("vhive.dev/snapshot-policy: vanilla\n        {annotation}");
        let service = format!("{runtime}-restored");
        apply(&node, &dir, &on(runtime, &service, "").replace(annotation, &with));
        victims.push(Victim { service, machine });
    }
    for Victim { service, .. } in &victims {
        assert_eq!(invoke(&node, service)["status"], 200, "{service}");
    }
    let tag = tag(&dir);
    let seed = u64::from(std::process::id()) | 1;
    eprintln!("seed {seed}");
    let killed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let (node, victims, tag, killed) = (&node, &victims, &tag, &killed);
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_mul(2 * lane + 3));
                while killed.load(Ordering::Relaxed) < KILLS {
                    let kills = start_and_kill(node, &mut random, victims, tag);
                    killed.fetch_add(kills, Ordering::Relaxed);
                }
            });
        }
    });
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

/// Invokes a function, and kills something of a sandbox a moment later; says how much it was.
fn start_and_kill(node: &TestNode, random: &mut Random, victims: &[Victim], tag: &str) -> u32 {
    // A microVM has fewer turns, and most of its moments are in its boot.
    let only = victims.iter().all(|one| one.machine);
    let machine = only || random.below(8) == 0;
    let fits: Vec<&Victim> = victims.iter().filter(|one| one.machine == machine).collect();
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
        let kills = if random.below(2) == 0 {
            kill_group(random, tag)
        } else {
            let all: Vec<Pid> = processes(tag).into_iter().collect();
            u32::from(!all.is_empty() && kill(*random.one_of(&all)))
        };
        let reply = reply.join().expect("answered");
        let status = reply["status"].as_u64();
        assert!(matches!(status, Some(200 | 502 | 503)), "{}: {reply}", victim.service);
        kills
    })
}

/// Kills every process of one sandbox of the node, if there is one; says how many sandboxes.
fn kill_group(random: &mut Random, tag: &str) -> u32 {
    let all = groups(tag);
    if all.is_empty() {
        return 0;
    }
    let text = fs::read_to_string(random.one_of(&all).join("cgroup.procs")).unwrap_or_default();
    u32::from(pids(&text).filter(|pid| kill(*pid)).count() > 0)
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
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        let program = command.split('\0').next().unwrap_or_default();
        let program = program.rsplit('/').next().unwrap_or_default();
        if command.contains(tag) && PROGRAMS.iter().any(|name| program.starts_with(name)) {
            all.insert(pid);
        }
    }
    all
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
