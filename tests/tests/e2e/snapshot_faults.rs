//! Real microVMs whose VMM, node or disk fails at a certain step of a snapshot or of a start from one: the
//! request is answered all the same, nothing half-made is used, and the record says which way it took.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use vhive_tests::node::{TestNode, vhive};

use crate::microvm::{hello, invoke_cold, missing, node_with, replay, tag, traces};
use crate::scene::{Dir, apply, fill, invoke, mount, said};
use crate::watch::{Watch, What};

/// Failures are tried again at once, and no VMM is there but those that are asked for.
const CONFIG: &str = "[node]\nback_off_first = \"1ms\"\n\
                      [node.snapshots]\nstandby = 0\n\
                      [serving.autoscale]\nstable_window = \"60s\"\n";

fn reap() -> String {
    let policy = "vhive.dev/snapshot-policy: reap\n        autoscaling.knative.dev/window";
    hello("hello", "").replace("autoscaling.knative.dev/window", policy)
}

fn snapshots(dir: &Dir) -> PathBuf {
    dir.path().join("state/snapshots")
}

/// Files and directories below a directory.
pub(crate) fn below(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        all.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(below(&entry.path()));
        }
    }
    all
}

/// A directory that is moved to its place when what is in it is whole.
pub(crate) fn is_draft(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().contains("draft-"))
}

pub(crate) fn named(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|found| found == name)
}

fn listed(node: &TestNode) -> usize {
    let all = node.json(&["snapshot", "ls"]).expect("listed");
    all.as_array().map_or(0, Vec::len)
}

/// A VMM of this node's, whatever becomes of its process number.
struct Vmm(OwnedFd);

impl Vmm {
    /// All of the node with this tag.
    fn all(tag: &str) -> Vec<Self> {
        let sandboxes = Path::new("/run/vhive").join(tag).join("sandboxes");
        let sandboxes = fs::read_dir(sandboxes).into_iter().flatten().flatten();
        let names: Vec<String> = sandboxes
            .map(|entry| format!("vhive-{}", entry.file_name().to_string_lossy()))
            .collect();
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc").expect("listed").flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            let number = entry.file_name().to_string_lossy().parse().ok();
            let (Some(pid), true) = (
                number.and_then(Pid::from_raw),
                names.iter().any(|name| command.contains(name.as_str())),
            ) else {
                continue;
            };
            all.extend(pidfd_open(pid, PidfdFlags::empty()).map(Self));
        }
        all
    }

    /// Kills it and waits until it has ended, though perhaps nobody has noticed.
    fn kill(&self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
        self.ended();
    }

    fn ended(&self) {
        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
        let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
        assert_eq!(poll(&mut ready, Some(&patience)), Ok(1), "the VMM lives on");
    }
}

/// Stops the node's process while `act` runs, so that the step at which it acts is not over by then.
fn frozen<T>(node: Pid, act: impl FnOnce() -> T) -> T {
    kill_process(node, Signal::STOP).expect("stopped");
    let done = act();
    kill_process(node, Signal::CONT).expect("continued");
    done
}

/// Waits until no instance is there; one that was killed may have been replaced meanwhile.
fn nothing_runs(node: &TestNode) {
    let idle = node.wait_for("hello", Duration::from_secs(30), |now| {
        node.ok(&["evict", "hello"]).expect("evicted");
        now["instances"] == serde_json::json!([]) && now["starting"] == 0
    });
    idle.expect("nothing runs");
}

type Step = (&'static str, fn(&Path, What) -> bool);

/// The steps of taking a snapshot, by the file that each makes or writes.
const TAKING: &[Step] = &[
    ("a draft is begun", |path, what| {
        what == What::Made && path.file_name().is_some_and(|name| is_draft(Path::new(name)))
    }),
    ("the files are made", |path, what| what == What::Made && named(path, "vmstate")),
    ("the devices are saved", |path, what| what == What::Written && named(path, "vmstate")),
    ("the memory is copied", |path, what| what == What::Written && named(path, "memory")),
    ("the manifest is made", |path, what| what == What::Made && named(path, "manifest.json")),
    ("it is published", |path, what| what == What::Made && named(path, "qemu")),
];

#[test]
fn e2e_microvm_a_vmm_killed_at_any_step_of_its_snapshot_costs_no_reply() {
    let test = "e2e_microvm_a_vmm_killed_at_any_step_of_its_snapshot_costs_no_reply";
    let dir = Dir::new("vmm-snapshot");
    let Some(node) = node_with(test, &dir, CONFIG) else { return };
    let (tag, snapshots) = (tag(&dir), snapshots(&dir));
    apply(&node, &dir, &reap());
    for (step, happens) in TAKING {
        let mut watch = Watch::below(&snapshots);
        let reply = invoke(&node, "hello");
        let came = (&reply["status"], &reply["record"]["start"]);
        assert_eq!(came, (&200.into(), &"boot".into()), "before {step}: {reply}");
        let vmms = Vmm::all(&tag);
        assert_eq!(vmms.len(), 1, "{step}");
        watch.until(step, happens);
        // Twice: it takes a moment until all threads have stopped, and the files may move meanwhile.
        let has_state = || {
            let mut states = below(&snapshots).into_iter().filter(|path| named(path, "vmstate"));
            states.any(|path| fs::metadata(path).is_ok_and(|state| state.len() > 0))
        };
        let saved = frozen(node.pid(), || {
            let had = has_state();
            vmms[0].kill();
            had | has_state()
        });
        nothing_runs(&node);
        let left = below(&snapshots);
        assert!(!left.iter().any(|path| is_draft(path)), "{step}: {left:?}");
        let count = listed(&node);
        assert!(saved || count == 0, "{step}: there was no state to keep");
        assert_eq!(count == 0, left.is_empty(), "{step}: {left:?}");
        if *step == "it is published" {
            assert_eq!(count, 1, "it needs its VMM no more");
        } else if count > 0 {
            node.ok(&["snapshot", "rm", "hello"]).expect("removed");
        }
    }
    // Of a VMM that was killed since, and as good as any.
    assert_eq!(invoke_cold(&node, "hello")["start"], "record");
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

#[test]
fn e2e_microvm_a_vmm_killed_at_any_step_of_a_start_costs_no_reply() {
    let test = "e2e_microvm_a_vmm_killed_at_any_step_of_a_start_costs_no_reply";
    let dir = Dir::new("vmm-start");
    let Some(node) = node_with(test, &dir, CONFIG) else { return };
    let (tag, snapshots) = (tag(&dir), snapshots(&dir));
    apply(&node, &dir, &reap());
    assert_eq!(invoke(&node, "hello")["record"]["start"], "boot");
    node.ok(&["evict", "hello"]).expect("evicted");
    let images = dir.path().join("state/images").canonicalize().expect("there");
    let read =
        |name: &'static str| move |path: &Path, what: What| what == What::Read && named(path, name);
    let spawned = |_: &Path, what: What| what == What::Read && !Vmm::all(&tag).is_empty();
    let loads = read("vmstate");
    let faults = read("memory");
    // How the start before this one has left it, what is waited for, and below which directory.
    type Case<'a> = (&'a str, &'a dyn Fn(&Path, What) -> bool, &'a Path);
    let cases: [Case<'_>; 3] = [
        ("a page is asked for while it is recorded", &faults, &snapshots),
        ("the VMM reads its disk", &spawned, &images),
        ("the VMM reads its state", &loads, &snapshots),
    ];
    for (step, happens, place) in cases {
        let mut watch = Watch::below(place);
        let reply = thread::scope(|scope| {
            let request = scope.spawn(|| invoke(&node, "hello"));
            watch.until(step, happens);
            frozen(node.pid(), || Vmm::all(&tag).iter().for_each(Vmm::kill));
            request.join().expect("no panic")
        });
        let record = &reply["record"];
        assert_eq!((&reply["status"], &record["start"]), (&200.into(), &"boot".into()), "{step}");
        assert!(record["fallback"].is_string(), "{step}: {record}");
        assert_eq!(listed(&node), 1, "{step}: the snapshot is not to blame");
        let next = invoke_cold(&node, "hello");
        assert!(["record", "reap"].map(Value::from).contains(&next["start"]), "{step}: {next}");
        node.ok(&["evict", "hello"]).expect("evicted");
    }
    // With the request in its hands, half of it: that one is told, the next is served.
    let gateway = node.gateway.clone();
    let request = thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(gateway).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        let head = "POST / HTTP/1.1\r\nHost: hello.default.example.com\r\nContent-Length: 9\r\n\
                    Connection: close\r\n\r\nhalf";
        stream.write_all(head.as_bytes()).expect("sent");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("a reply");
        reply
    });
    node.wait_for("hello", Duration::from_secs(30), |now| now["instances"][0]["leases"] == 1)
        .expect("it is there");
    Vmm::all(&tag).iter().for_each(Vmm::kill);
    let told = request.join().expect("no panic");
    assert!(told.starts_with("HTTP/1.1 502"), "{told}");
    nothing_runs(&node);
    let next = invoke_cold(&node, "hello");
    assert_eq!((&next["start"], &next["fallback"]), (&"reap".into(), &Value::Null), "{next}");
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

#[test]
fn e2e_microvm_a_vmm_spawned_ahead_and_killed_is_not_waited_for() {
    let test = "e2e_microvm_a_vmm_spawned_ahead_and_killed_is_not_waited_for";
    let dir = Dir::new("vmm-ahead");
    let Some(node) = node_with(test, &dir, "") else { return };
    let tag = tag(&dir);
    apply(&node, &dir, &reap());
    assert_eq!(invoke(&node, "hello")["record"]["start"], "boot");
    for start in ["record", "reap"] {
        // What is done behind the reply ends with a VMM for the next start.
        node.ok(&["evict", "hello"]).expect("evicted");
        let ahead = Vmm::all(&tag);
        assert_eq!(ahead.len(), 1, "before {start}");
        ahead.iter().for_each(Vmm::kill);
        let reply = invoke(&node, "hello");
        let record = &reply["record"];
        // The node may not have noticed yet; then a boot follows, and the record says so.
        let fell_back = record["start"] == "boot" && record["fallback"].is_string();
        assert_eq!(reply["status"], 200, "{reply}");
        assert!(record["start"] == start || fell_back, "{reply}");
    }
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

#[test]
fn e2e_microvm_a_node_killed_at_any_step_of_a_snapshot_or_a_start_is_followed_by_one_that_serves() {
    let test = "e2e_microvm_a_node_killed_at_any_step_of_a_snapshot_or_a_start_is_followed_by_one_that_serves";
    let dir = Dir::new("node-steps");
    let Some(mut node) = node_with(test, &dir, CONFIG) else { return };
    let (tag, snapshots) = (tag(&dir), snapshots(&dir));
    apply(&node, &dir, &reap());
    for (step, happens) in TAKING {
        let mut watch = Watch::below(&snapshots);
        let reply = invoke(&node, "hello");
        let came = (&reply["status"], &reply["record"]["start"]);
        assert_eq!(came, (&200.into(), &"boot".into()), "before {step}: {reply}");
        watch.until(step, happens);
        node = next_node(node, &dir, step);
        if *step != "it is published" && listed(&node) > 0 {
            // Killed a little late; it is whole, or it would not be listed.
            node.ok(&["snapshot", "rm", "hello"]).expect("removed");
        }
    }
    assert_eq!(listed(&node), 1);
    let starting: [Step; 3] = [
        ("a page is asked for", |path, what| what == What::Read && named(path, "memory")),
        ("a working set is written", |path, what| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            what == What::Made && name.starts_with("working-set.")
        }),
        ("the VMM reads its state", |path, what| what == What::Read && named(path, "vmstate")),
    ];
    for (step, happens) in starting {
        let mut watch = Watch::below(&snapshots);
        let place = dir.path().to_owned();
        // The node may die before it replies.
        let request = thread::spawn(move || vhive(&place, &["invoke", "hello"]));
        watch.until(step, happens);
        node = next_node(node, &dir, step);
        drop(request.join().expect("no panic").expect("vhive runs"));
        assert_eq!(listed(&node), 1, "{step}");
    }
    let record = invoke_cold(&node, "hello");
    assert!(["record", "reap"].map(Value::from).contains(&record["start"]), "{record}");
    let next = invoke_cold(&node, "hello");
    assert_eq!((&next["start"], &next["fallback"]), (&"reap".into(), &Value::Null), "{next}");
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

/// Kills the node; its VMMs end with it, and the next one finds nothing half-made.
fn next_node(node: TestNode, dir: &Dir, step: &str) -> TestNode {
    let vmms = Vmm::all(&tag(dir));
    node.kill().expect("killed");
    vmms.iter().for_each(Vmm::ended);
    let snapshots = snapshots(dir);
    let whole =
        below(&snapshots).iter().filter(|path| path.ends_with("qemu/manifest.json")).count();
    let node = TestNode::start(dir.path(), CONFIG).expect("the node starts again");
    let left = below(&snapshots);
    assert!(!left.iter().any(|path| is_draft(path)), "{step}: {left:?}");
    assert_eq!(listed(&node), whole, "{step}: {left:?}");
    node
}

#[test]
fn e2e_microvm_a_disk_that_is_full_costs_the_snapshot_and_no_reply() {
    let test = "e2e_microvm_a_disk_that_is_full_costs_the_snapshot_and_no_reply";
    let dir = Dir::new("disk");
    if let Some(lacks) = missing(&dir) {
        eprintln!("SKIP {test}: {lacks}");
        return;
    }
    let disk = snapshots(&dir);
    fs::create_dir_all(&disk).expect("made");
    let _mounted = match mount(&disk, "256m") {
        Ok(mounted) => mounted,
        Err(lacks) => {
            eprintln!("SKIP {test}: {lacks}");
            return;
        }
    };
    let node = TestNode::start(dir.path(), CONFIG).expect("the node starts");
    apply(&node, &dir, &reap());
    let filler = fill(&disk, 4 << 20);
    let first = invoke(&node, "hello");
    assert_eq!((&first["status"], &first["record"]["start"]), (&200.into(), &"boot".into()));
    // The instance goes on after the attempt.
    let second = invoke(&node, "hello");
    assert_eq!((&second["status"], &second["record"]["start"]), (&200.into(), &"warm".into()));
    node.ok(&["evict", "hello"]).expect("evicted");
    assert_eq!(below(&disk), std::slice::from_ref(&filler));
    assert!(node.log().contains("snapshot not taken"), "{}", node.log());
    assert!(node.log().contains("no room"), "nothing is written that has no room: {}", node.log());

    fs::remove_file(&filler).expect("removed");
    assert_eq!(invoke(&node, "hello")["record"]["start"], "boot");
    node.ok(&["evict", "hello"]).expect("evicted");
    assert_eq!(listed(&node), 1);
    let filler = fill(&disk, 64 << 10);
    for _ in 0..2 {
        // What was recorded cannot be kept, and is recorded again.
        assert_eq!(invoke_cold(&node, "hello")["start"], "record");
    }
    node.ok(&["evict", "hello"]).expect("evicted");
    let left = below(&disk);
    let of_sets = left.iter().filter(|path| path.to_string_lossy().contains("working-set"));
    assert_eq!(of_sets.count(), 0, "{left:?}");
    fs::remove_file(&filler).expect("removed");
    let recorded = invoke_cold(&node, "hello");
    assert_eq!(recorded["start"], "record");
    replay(&invoke_cold(&node, "hello"), recorded["memory"]["faults"].as_u64().unwrap_or(0));
    assert!(node.stop().expect("ends").success());
}

#[test]
fn e2e_microvm_a_snapshot_is_taken_once_and_may_be_removed_under_its_clones() {
    let test = "e2e_microvm_a_snapshot_is_taken_once_and_may_be_removed_under_its_clones";
    let dir = Dir::new("snapshot-twice");
    let Some(node) = node_with(test, &dir, CONFIG) else { return };
    let tag = tag(&dir);
    apply(&node, &dir, &reap());
    let made: Vec<_> = thread::scope(|scope| {
        let create = || node.vhive(&["snapshot", "create", "hello"]).expect("vhive runs");
        let both = [scope.spawn(create), scope.spawn(create)];
        both.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    assert!(made.iter().any(|done| done.status.success()), "{made:?}");
    for refused in made.iter().filter(|done| !done.status.success()) {
        assert!(said(refused).contains("being taken already"), "{}", said(refused));
    }
    node.ok(&["evict", "hello"]).expect("evicted");
    assert_eq!(listed(&node), 1);
    let files = below(&snapshots(&dir));
    assert!(!files.iter().any(|path| is_draft(path)), "{files:?}");

    assert_eq!(invoke_cold(&node, "hello")["start"], "record");
    let replayed = invoke_cold(&node, "hello");
    assert_eq!(replayed["start"], "reap", "{replayed}");
    node.ok(&["snapshot", "rm", "hello"]).expect("removed");
    assert_eq!(listed(&node), 0);
    // The clone needs pages that it has not touched yet.
    let warm = invoke(&node, "hello");
    assert_eq!((&warm["status"], &warm["record"]["start"]), (&200.into(), &"warm".into()));
    assert_eq!(invoke_cold(&node, "hello")["start"], "boot");
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}
