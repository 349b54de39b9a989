//! The same function in every sandbox that this host offers.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vhive_tests::node::{TestNode, configure, vhive};

use crate::microvm::{hello, invoke_cold, prepare, tag, traces};
use crate::scene::{Dir, apply, invoke};

/// The isolating runtimes that this host offers; says which it does not, and why.
pub(crate) fn offered(test: &str, dir: &Dir) -> Vec<String> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP {test}: root");
        return Vec::new();
    }
    prepare(dir);
    // The doctor is asked about the programs that the node will run.
    configure(dir.path(), "").expect("written");
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

pub(crate) fn on(runtime: &str, name: &str, extra: &str) -> String {
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
    // A clone speaks gRPC as its original does.
    let with = format!("vhive.dev/snapshot-policy: vanilla\n        {annotation}");
    let h2c = "          ports: [{ name: h2c, containerPort: 8080 }]\n";
    apply(&node, &dir, &on("runsc", "greeter", h2c).replace(annotation, &with));
    for start in ["boot", "snapshot", "warm"] {
        let greeting = node.ok(&["invoke", "greeter", "--grpc", "-d", start]).expect("greeted");
        assert_eq!(greeting.trim(), format!("Hello, {start}!"));
        let last =
            node.json(&["get", "records", "-s", "greeter", "--limit", "1"]).expect("a record");
        assert_eq!(last[0]["start"], start, "{last}");
        if start == "boot" {
            node.ok(&["evict", "greeter"]).expect("evicted");
        }
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

#[test]
fn e2e_sandboxes_are_kept_to_cpus_and_what_they_use_is_counted() {
    let test = "e2e_sandboxes_are_kept_to_cpus_and_what_they_use_is_counted";
    let dir = Dir::new("pinned");
    let offered = offered(test, &dir);
    let online = fs::read_to_string("/sys/devices/system/cpu/online").expect("a list");
    let last = online.trim().parse::<vhive_api::Cpus>().expect("a list").iter().last();
    let (false, Some(cpu)) = (offered.is_empty(), last) else { return };
    let refused = vhive(dir.path(), &["node", "--cpus", "0,8191"]).expect("runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    if said.contains("cpuset is not mounted") {
        eprintln!("SKIP {test}: the controller cpuset");
        return;
    }
    assert!(!refused.status.success() && said.contains("CPU 8191 "), "{said}");

    let node = TestNode::start(dir.path(), &format!("[node]\ncpus = \"{cpu}\"\n"));
    let node = node.expect("the node starts");
    let tag = tag(&dir);
    for runtime in &offered {
        apply(&node, &dir, &on(runtime, runtime, ""));
        assert_eq!(invoke(&node, runtime)["status"], 200, "{runtime}");
        let mut seen = 0;
        for group in groups(&tag) {
            for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
                // One may end meanwhile.
                let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
                    continue;
                };
                let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
                assert_eq!(list.map(str::trim), Some(cpu.to_string().as_str()), "{runtime} {pid}");
                seen += 1;
            }
        }
        assert!(seen > 0, "{runtime} has processes");

        let used = |node: &TestNode| {
            let described = node.json(&["describe", runtime]).expect("described");
            described["instances"][0]["counters"].clone()
        };
        let cold = used(&node);
        let count = |counters: &Value, name: &str| counters[name].as_u64();
        assert!(count(&cold, "cpu_us").is_some_and(|us| us > 1000), "{runtime}: {cold}");
        assert!(count(&cold, "minor_faults").is_some_and(|n| n > 10), "{runtime}: {cold}");
        assert_eq!(cold.get("cycles"), None, "nobody has asked for perf events: {cold}");
        assert_eq!(invoke(&node, runtime)["record"]["start"], "warm", "{runtime}");
        let warm = used(&node);
        assert!(count(&warm, "cpu_us") > count(&cold, "cpu_us"), "{runtime}: {cold} {warm}");
    }
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

/// The control groups of the node's sandboxes, in the hierarchy that limits tasks.
pub(crate) fn groups(tag: &str) -> Vec<PathBuf> {
    let places = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
    let parents = places.map(|place| Path::new(place).join(format!("vhive-{tag}")));
    let lists = parents.iter().find_map(|parent| fs::read_dir(parent).ok());
    let entries = lists.into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}
