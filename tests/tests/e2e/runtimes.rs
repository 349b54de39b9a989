//! The same function in every sandbox that this host offers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use vhive_tests::node::{TestNode, vhive};

use crate::microvm::{hello, invoke_cold, prepare, tag, traces};
use crate::scene::{Dir, apply, invoke};

/// The isolating runtimes that this host offers; says which it does not, and why.
pub(crate) fn offered(test: &str, dir: &Dir) -> Vec<String> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP {test}: root");
        return Vec::new();
    }
    prepare(dir);
    let doctor = vhive(dir.path(), &["-o", "json", "doctor"]).expect("runs");
    let answer: Value = serde_json::from_slice(&doctor.stdout).expect("doctor's JSON");
    let lines = answer["runtimes"].as_array().expect("a list");
    let mut offered = Vec::new();
    for line in lines.iter().filter(|line| line["name"] != "sim") {
        let name = line["name"].as_str().expect("a name");
        if line["answer"] == "yes" {
            offered.push(name.to_owned());
        } else {
            eprintln!("SKIP {test} on {name}: {}", line["found"]);
        }
    }
    offered
}

fn on(runtime: &str, name: &str, extra: &str) -> String {
    let yaml = hello(name, extra);
    yaml.replace("runtimeClassName: qemu", &format!("runtimeClassName: {runtime}"))
}

#[test]
fn e2e_runtimes_give_the_same_replies_and_leave_nothing() {
    let dir = Dir::new("runtimes");
    let offered = offered("e2e_runtimes_give_the_same_replies_and_leave_nothing", &dir);
    if offered.is_empty() {
        return;
    }
    let node = TestNode::start(dir.path(), "").expect("the node starts");
    let mut replies = Vec::new();
    for runtime in &offered {
        apply(&node, &dir, &on(runtime, runtime, ""));
        let cold = invoke(&node, runtime);
        assert_eq!((&cold["status"], &cold["record"]["start"]), (&200.into(), &"boot".into()));
        assert_eq!(cold["record"]["runtime"], runtime.as_str());
        let warm = invoke(&node, runtime);
        assert_eq!(warm["record"]["start"], "warm", "{runtime}");
        let posted = node.ok(&["invoke", runtime, "-d", "{\"name\":\"you\"}"]).expect("replied");

        let name = format!("{runtime}-grpc");
        let h2c = "          ports: [{ name: h2c, containerPort: 8080 }]\n";
        apply(&node, &dir, &on(runtime, &name, h2c));
        let greeting = node.ok(&["invoke", &name, "--grpc", "-d", "e2e"]).expect("greeted");
        assert_eq!(greeting.trim(), "Hello, e2e!", "{runtime}");
        let logs = node.ok(&["logs", runtime]).expect("logs");
        assert!(logs.contains("hello listening on"), "{runtime}: {logs}");
        replies.push((cold["body"].clone(), warm["body"].clone(), posted));
    }
    assert!(replies.iter().all(|reply| *reply == replies[0]), "{replies:?}");
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag(&dir)), [""; 0]);
}

#[test]
fn e2e_gvisor_is_restored_and_says_why_not_as_asked() {
    let test = "e2e_gvisor_is_restored_and_says_why_not_as_asked";
    let dir = Dir::new("gvisor");
    if !offered(test, &dir).iter().any(|name| name == "runsc") {
        return;
    }
    let node = TestNode::start(dir.path(), "").expect("the node starts");
    let annotation = "autoscaling.knative.dev/window";
    for policy in ["vanilla", "reap"] {
        let with = format!("vhive.dev/snapshot-policy: {policy}\n        {annotation}");
        // The alias is as good as the name.
        apply(&node, &dir, &on("gvisor", policy, "").replace(annotation, &with));
        assert_eq!(invoke(&node, policy)["record"]["start"], "boot");
        let restored = invoke_cold(&node, policy);
        assert_eq!(restored["start"], "snapshot", "{restored}");
        assert_eq!(restored["memory"]["mode"], "file", "{restored}");
        let why = restored["fallback"].as_str().unwrap_or_default();
        assert_eq!(why.contains("not offered"), policy == "reap", "{restored}");
    }
    // A container of runc's cannot be restored at all: that is a boot, with the reason.
    let with = format!("vhive.dev/snapshot-policy: vanilla\n        {annotation}");
    apply(&node, &dir, &on("runc", "plain", "").replace(annotation, &with));
    let plain = invoke_cold(&node, "plain");
    assert_eq!(plain["start"], "boot", "{plain}");
    assert!(plain["fallback"].as_str().is_some_and(|why| why.contains("runc")), "{plain}");
    let tag = tag(&dir);
    node.kill().expect("killed");
    let next = TestNode::start(dir.path(), "").expect("the node starts again");
    assert_eq!(invoke_cold(&next, "vanilla")["start"], "snapshot");
    assert!(next.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

/// How many sandboxes are killed, somewhere between their first process and their reply.
const KILLS: u32 = 200;

/// How many invocations there are at a time.
const LANES: u64 = 2;

#[test]
fn e2e_sandboxes_killed_at_any_moment_leave_nothing() {
    let dir = Dir::new("kills");
    let offered = offered("e2e_sandboxes_killed_at_any_moment_leave_nothing", &dir);
    if offered.is_empty() {
        return;
    }
    let config = "[node]\nback_off_first = \"1ms\"\nback_off_most = \"1ms\"\n";
    let node = TestNode::start(dir.path(), config).expect("the node starts");
    for runtime in &offered {
        apply(&node, &dir, &on(runtime, runtime, ""));
        assert_eq!(invoke(&node, runtime)["status"], 200, "{runtime}");
    }
    let tag = tag(&dir);
    let seed = u64::from(std::process::id()) | 1;
    eprintln!("seed {seed}");
    let killed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let (node, offered, tag, killed) = (&node, &offered, &tag, &killed);
            scope.spawn(move || {
                let mut random = Random(seed.wrapping_mul(2 * lane + 3));
                while killed.load(Ordering::Relaxed) < KILLS {
                    let kills = start_and_kill(node, &mut random, offered, tag);
                    killed.fetch_add(kills, Ordering::Relaxed);
                }
            });
        }
    });
    for runtime in &offered {
        // This one may still share the fate of a start that the last kill hit.
        let first = invoke(&node, runtime);
        assert!(matches!(first["status"].as_u64(), Some(200 | 502 | 503)), "{runtime}: {first}");
        let reply = invoke(&node, runtime);
        assert_eq!(reply["status"], 200, "{runtime}: {reply}\n{}", node.log());
    }
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

/// Invokes a function that does not run, and kills a sandbox a moment later; says how many it was.
fn start_and_kill(node: &TestNode, random: &mut Random, offered: &[String], tag: &str) -> u32 {
    // A microVM takes seconds to boot: it has fewer turns, and most of its moments are there.
    let machine = offered.len() == 1 || random.below(8) == 0;
    let fits = offered.iter().filter(|name| (*name == "qemu") == machine);
    let fits: Vec<&String> =
        if machine { offered.iter().take(1).collect() } else { fits.collect() };
    let runtime = random.one_of(&fits);
    let moment = Duration::from_millis(random.below(if machine { 2500 } else { 400 }));
    let (_hold, tick) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let reply = scope.spawn(|| invoke(node, runtime));
        // Nothing is waited for: any moment will do.
        let _ = tick.recv_timeout(moment);
        let kills = kill_all(tag);
        let reply = reply.join().expect("answered");
        let status = reply["status"].as_u64();
        assert!(matches!(status, Some(200 | 502 | 503)), "{runtime}: {reply}");
        kills
    })
}

/// Kills every process of one sandbox of the node, if there is one; says how many sandboxes.
fn kill_all(tag: &str) -> u32 {
    let Some(dir) = groups(tag).into_iter().next() else { return 0 };
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let pids = text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?));
    let kills = pids.filter(|pid| {
        pidfd_open(*pid, PidfdFlags::empty())
            .and_then(|pidfd| pidfd_send_signal(pidfd, Signal::KILL))
            .is_ok()
    });
    u32::from(kills.count() > 0)
}

/// The control groups of the node's sandboxes, in the hierarchy that limits tasks.
fn groups(tag: &str) -> Vec<PathBuf> {
    let places = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
    let parents = places.map(|place| Path::new(place).join(format!("vhive-{tag}")));
    let lists = parents.iter().find_map(|parent| fs::read_dir(parent).ok());
    let entries = lists.into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Xorshift: any moments will do, and the seed is printed.
struct Random(u64);

impl Random {
    fn one_of<'a>(&mut self, all: &[&'a String]) -> &'a String {
        all[usize::try_from(self.below(all.len() as u64)).expect("below a length")]
    }

    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}
