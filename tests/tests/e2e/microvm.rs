//! The same in real microVMs: boot, reply, scale to zero, kill, and nothing left behind.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use vhive_tests::node::{TestNode, vhive};

use crate::scene::{Dir, apply, code, invoke, said};

/// A directory with guest kernel and hello's image, made once for all tests and kept.
fn prepared() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e");
    fs::create_dir_all(&dir).expect("made");
    let lock = File::create(dir.join("lock")).expect("made");
    lock.lock().expect("locked");
    if code(&vhive(&dir, &["kernel", "show"]).expect("runs")) != 0 {
        let done = vhive(&dir, &["kernel", "install"]).expect("runs");
        assert!(done.status.success(), "{}", said(&done));
    }
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions/hello");
    let done = vhive(&dir, &["image", "build", &recipe.to_string_lossy()]).expect("runs");
    assert!(done.status.success(), "{}", said(&done));
    dir.join("state")
}

/// A node with the prepared kernel and image, or the reason why not.
fn node(test: &str, dir: &Dir) -> Option<TestNode> {
    node_with(test, dir, "[serving.autoscale]\nstable_window = \"6s\"\n")
}

/// Likewise with a configuration.
pub(crate) fn node_with(test: &str, dir: &Dir, config: &str) -> Option<TestNode> {
    if let Some(lacks) = missing(dir) {
        eprintln!("SKIP {test}: {lacks}");
        return None;
    }
    Some(TestNode::start(dir.path(), config).expect("the node starts"))
}

/// Gives a directory guest kernel and image.
pub(crate) fn prepare(dir: &Dir) {
    let state = dir.path().join("state");
    fs::create_dir_all(&state).expect("made");
    let prepared = prepared();
    for part in ["kernels", "images"] {
        symlink(prepared.join(part), state.join(part)).expect("linked");
    }
}

/// What this host lacks for microVMs; else their kernel and image are there.
pub(crate) fn missing(dir: &Dir) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("root".to_owned());
    }
    prepare(dir);
    let doctor = vhive(dir.path(), &["-o", "json", "doctor"]).expect("runs");
    let answer: Value = serde_json::from_slice(&doctor.stdout).expect("doctor's JSON");
    let qemu = &answer["runtimes"][0];
    (qemu["answer"] != "yes").then(|| qemu["found"].to_string())
}

pub(crate) fn hello(name: &str, extra: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{ name: {name} }}\n\
         spec:\n  template:\n    metadata:\n      annotations:\n        \
         autoscaling.knative.dev/window: \"6s\"\n    spec:\n      runtimeClassName: qemu\n      \
         containers:\n        - image: dev.local/hello:latest\n          resources:\n            \
         limits: {{ memory: 128Mi }}\n{extra}"
    )
}

/// The tag in every name that the node of this directory makes on the host.
pub(crate) fn tag(dir: &Dir) -> String {
    let state = dir.path().join("state").canonicalize().expect("it is there");
    vhive_sandbox::RunRoot::of_state_dir(&state).tag().to_owned()
}

/// Processes whose control groups are of this node, or that live among its mounts, whatever they are
/// called: a `criu swrk` says nothing of itself.
fn strays(tag: &str) -> Vec<String> {
    let own = fs::read_link("/proc/self/ns/mnt").expect("readable");
    let all = fs::read_dir("/proc").expect("listed").flatten().map(|entry| entry.path());
    let is_one = |dir: &PathBuf| {
        let mentions = |file: &str| {
            let text = fs::read(dir.join(file)).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(tag)
        };
        let elsewhere = || fs::read_link(dir.join("ns/mnt")).is_ok_and(|its| its != own);
        mentions("cgroup") || (is_orphan(dir) && elsewhere() && mentions("mountinfo"))
    };
    let name = |dir: PathBuf| {
        let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        format!("process {}: {}", dir.display(), comm.trim())
    };
    all.filter(|dir| dir.join("mountinfo").exists()).filter(is_one).map(name).collect()
}

/// Whether a process has been left to whoever inherits: children of another node may see a mount of
/// this one's if they were started while it was there.
fn is_orphan(dir: &Path) -> bool {
    let parent_of = |dir: &Path| {
        let status = fs::read_to_string(dir.join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        line.trim().parse::<u32>().ok()
    };
    let mut heirs = vec![1];
    let mut next = parent_of(Path::new("/proc/self"));
    while let Some(parent) = next.filter(|parent| *parent > 1) {
        heirs.push(parent);
        next = parent_of(&Path::new("/proc").join(parent.to_string()));
    }
    parent_of(dir).is_some_and(|parent| heirs.contains(&parent))
}

/// Those of them that stay: what is just ending is given its time.
fn lasting_strays(tag: &str) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let (_hold, tick) = mpsc::channel::<()>();
    loop {
        let found = strays(tag);
        if found.is_empty() || Instant::now() > deadline {
            return found;
        }
        let _ = tick.recv_timeout(Duration::from_millis(50));
    }
}

/// Everything on the host that carries a node's tag: processes, namespaces, links, control groups,
/// firewall tables, run directories.
pub(crate) fn traces(tag: &str) -> Vec<String> {
    let mut found = lasting_strays(tag);
    for process in fs::read_dir("/proc").expect("listed").flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let program = |name: &&str| command.contains(*name);
        let programs = ["qemu", "firecracker", "jailer", "runsc", "runc", "crun"];
        if command.contains(tag) && programs.iter().any(program) {
            found.push(format!("process {:?}: {command}", process.file_name()));
        }
    }
    for (program, args) in
        [("ip", &["netns", "list"][..]), ("ip", &["-o", "link"]), ("nft", &["list", "tables"])]
    {
        let done = Command::new(program).args(args).output().expect("iproute2 and nftables");
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        found.extend(text.lines().filter(|line| line.contains(tag)).map(str::to_owned));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    found.extend(mounts.lines().filter(|line| line.contains(tag)).map(str::to_owned));
    let mut dirs = vec![PathBuf::from("/sys/fs/cgroup"), PathBuf::from("/run/netns")];
    let controllers = fs::read_dir("/sys/fs/cgroup").expect("listed").flatten();
    dirs.extend(controllers.map(|entry| entry.path()).filter(|path| path.is_dir()));
    dirs.push(PathBuf::from("/run/vhive").join(tag).join("sandboxes"));
    for dir in dirs {
        let whole = dir.starts_with("/run/vhive");
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if whole || entry.file_name().to_string_lossy().contains(tag) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}

#[test]
fn e2e_microvm_boots_replies_goes_to_zero_and_comes_back() {
    let dir = Dir::new("microvm");
    let Some(node) = node("e2e_microvm_boots_replies_goes_to_zero_and_comes_back", &dir) else {
        return;
    };
    apply(&node, &dir, &hello("hello", ""));
    let cold = invoke(&node, "hello");
    assert_eq!(
        (&cold["status"], &cold["record"]["start"]),
        (&200.into(), &"boot".into()),
        "{cold}"
    );
    assert_eq!(cold["record"]["runtime"], "qemu");
    assert!(cold["record"]["guest_clock_error_us"].is_u64(), "{cold}");
    let names: Vec<&str> = cold["record"]["phases"]
        .as_array()
        .expect("phases")
        .iter()
        .filter_map(|span| span["phase"].as_str())
        .collect();
    let expected = [
        "total",
        "queue",
        "start",
        "image",
        "turn",
        "network_slot",
        "vmm_spawn",
        "kernel_boot",
        "init",
        "function_ready",
        "request",
    ];
    assert_eq!(names, expected);
    assert_eq!(invoke(&node, "hello")["record"]["start"], "warm");

    let grpc = hello("grpc", "          ports: [{ name: h2c, containerPort: 8080 }]\n");
    apply(&node, &dir, &grpc);
    let greeting = node.ok(&["invoke", "grpc", "--grpc", "-d", "e2e"]).expect("greeted");
    assert_eq!(greeting.trim(), "Hello, e2e!");
    let logs = node.ok(&["logs", "hello"]).expect("logs");
    assert!(logs.contains("hello listening on"), "{logs}");

    node.wait_for("hello", Duration::from_secs(60), |now| {
        now["instances"] == serde_json::json!([])
    })
    .expect("idle for a window, it goes to zero");
    assert_eq!(invoke(&node, "hello")["record"]["start"], "boot");
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag(&dir)), [""; 0]);
}

/// How the next request is served when nothing runs.
pub(crate) fn invoke_cold(node: &TestNode, name: &str) -> Value {
    // It waits for a snapshot or a recording that is under way.
    node.ok(&["evict", name]).expect("evicted");
    let reply = invoke(node, name);
    assert_eq!(reply["status"], 200, "{reply}");
    reply["record"].clone()
}

#[test]
fn e2e_microvm_is_snapshotted_recorded_and_replayed_also_by_the_next_node() {
    let test = "e2e_microvm_is_snapshotted_recorded_and_replayed_also_by_the_next_node";
    let dir = Dir::new("microvm-reap");
    let Some(first) = node(test, &dir) else { return };
    let policy = "vhive.dev/snapshot-policy: reap\n        autoscaling.knative.dev/window";
    let yaml = hello("hello", "").replace("autoscaling.knative.dev/window", policy);
    apply(&first, &dir, &yaml);
    assert_eq!(invoke(&first, "hello")["record"]["start"], "boot");
    let recorded = invoke_cold(&first, "hello");
    if recorded["start"] == "snapshot" && recorded["fallback"].is_string() {
        eprintln!("SKIP {test}: {}", recorded["fallback"]);
        return;
    }
    assert_eq!(recorded["start"], "record", "{recorded}");
    let faults = recorded["memory"]["faults"].as_u64().expect("the pager counts");
    assert!(faults > 100, "{recorded}");
    let replayed = invoke_cold(&first, "hello");
    replay(&replayed, faults);
    // By now a VMM has been spawned ahead: it leaves no phase of its own, and nothing behind.
    replay(&invoke_cold(&first, "hello"), faults);
    let tag = tag(&dir);
    first.kill().expect("killed");
    assert_ne!(traces(&tag), [""; 0], "the VMM spawned ahead is seen, else this test is blind");

    let next = TestNode::start(dir.path(), "").expect("the node starts again");
    replay(&invoke_cold(&next, "hello"), faults);
    let snapshots = next.json(&["snapshot", "ls"]).expect("listed");
    assert!(snapshots.to_string().contains("hello-00001"), "{snapshots}");
    let shown = example(&dir, "reap_by_hand");
    for word in ["boot", "record", "reap", "warm", "kernel_boot", "pages prefetched"] {
        assert!(shown.contains(word), "no {word} in\n{shown}");
    }
    // A working set that is none is replaced by the start that finds it.
    let snapshots = dir.path().join("state/snapshots");
    damage_working_sets(&snapshots, 0);
    let recorded = invoke_cold(&next, "hello");
    assert_eq!(recorded["start"], "record", "{recorded}");
    assert!(recorded["fallback"].as_str().is_some_and(|why| why.contains("working set")));
    replay(&invoke_cold(&next, "hello"), faults);
    // Where only pages are bad, that start has to do without them, and the next one records.
    damage_working_sets(&snapshots, 64 << 10);
    let lame = invoke_cold(&next, "hello");
    assert!(lame["fallback"].as_str().is_some_and(|why| why.contains("checksum")), "{lame}");
    let without = lame["memory"]["prefetched_pages"] == 0;
    assert_eq!(lame["start"], if without { "lazy" } else { "reap" }, "{lame}");
    assert_eq!(invoke_cold(&next, "hello")["start"], "record");
    replay(&invoke_cold(&next, "hello"), faults);
    // The VMM that waits for the next start ends with the snapshot, whether there is a next start or not.
    let socket = PathBuf::from(format!("/run/vhive/{tag}/api.sock"));
    let has_standbys = || {
        let told = vhive_tests::node::ask(&socket, "GET", "/metrics", "").expect("answered");
        let count = told.lines().find_map(|line| line.strip_prefix("vhive_standbys "));
        count.expect("it is told") != "0"
    };
    let patience = Duration::from_secs(20);
    next.wait_for("hello", patience, |_| has_standbys()).expect("one is spawned behind the reply");
    next.ok(&["snapshot", "rm", "hello"]).expect("removed");
    next.wait_for("hello", patience, |_| !has_standbys()).expect("nothing waits for what is gone");
    assert!(next.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

/// What an example prints that is run on the node of this directory.
fn example(dir: &Dir, name: &str) -> String {
    let beside = vhive_tests::node::binary().expect("built");
    let program = beside.with_file_name("examples").join(name);
    let mut command = Command::new(&program);
    command.env("VHIVE_STATE_DIR", dir.path().join("state"));
    let config = dir.path().join("vhive.toml");
    let done = command.env("VHIVE_CONFIG", config).output();
    let done = done.expect("built by `cargo build --package vhive --examples`");
    assert!(done.status.success(), "{}", said(&done));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Overwrites 64 bytes of every working set below a directory; there is at least one.
fn damage_working_sets(snapshots: &Path, at: usize) {
    // What is being removed meanwhile, of a service that has just been deleted, is not damaged.
    let list = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let files = list(snapshots).into_iter().flat_map(|revision| list(&revision.join("qemu")));
    let sets: Vec<PathBuf> =
        files.filter(|path| path.to_string_lossy().contains("working-set.")).collect();
    assert!(!sets.is_empty());
    for set in sets {
        let mut bytes = fs::read(&set).expect("read");
        bytes[at..at + 64].fill(0xff);
        fs::write(&set, bytes).expect("written");
    }
}

/// The working set came by itself, and less was faulted than when it was recorded: on a busy host the
/// guest may be ahead of the prefetching, and pages of the set are then faulted as well.
pub(crate) fn replay(record: &Value, recorded: u64) {
    assert_eq!((&record["start"], &record["fallback"]), (&"reap".into(), &Value::Null), "{record}");
    let memory = &record["memory"];
    let came = memory["prefetched_pages"].as_u64().expect("counted")
        + memory["faults"].as_u64().expect("counted");
    assert!(came >= recorded / 2, "{record}");
    assert!(memory["prefetched_pages"].as_u64().is_some_and(|came| came > 0), "{record}");
    assert!(memory["faults"].as_u64().is_some_and(|left| left < recorded), "{record}");
}

#[test]
fn e2e_microvm_faults_carry_the_guests_words() {
    let dir = Dir::new("microvm-faults");
    let Some(node) = node("e2e_microvm_faults_carry_the_guests_words", &dir) else {
        return;
    };
    let missing = hello("missing", "          command: [\"/no/such/program\"]\n");
    apply(&node, &dir, &missing);
    let reply = invoke(&node, "missing");
    assert_eq!(reply["status"], 502, "{reply}");
    assert!(reply["body"].as_str().is_some_and(|b| b.contains("/no/such/program")), "{reply}");
    let described = node.json(&["describe", "missing"]).expect("described");
    assert!(described["last_failure"]["error"].as_str().is_some(), "{described}");

    // The port variable is injected, so a function that ignores it is one that is told otherwise.
    let bad = hello("bad-port", "          env: [{ name: HOST, value: not-an-address }]\n");
    apply(&node, &dir, &bad);
    let reply = invoke(&node, "bad-port");
    assert_eq!(reply["status"], 502, "{reply}");
    assert!(reply["body"].as_str().is_some_and(|b| b.contains("code")), "{reply}");
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag(&dir)), [""; 0]);
}

#[test]
fn e2e_microvm_nothing_is_left_of_a_node_killed_during_boot() {
    let dir = Dir::new("microvm-kill");
    let Some(node) = node("e2e_microvm_nothing_is_left_of_a_node_killed_during_boot", &dir) else {
        return;
    };
    apply(&node, &dir, &hello("hello", ""));
    let host = "Host: hello.default.example.com\r\nConnection: close\r\n";
    let gateway = node.gateway.clone();
    let request = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(gateway).expect("connected");
        stream.write_all(format!("GET / HTTP/1.1\r\n{host}\r\n").as_bytes()).expect("sent");
        let mut reply = String::new();
        // The node dies meanwhile: whatever comes is no reply.
        let _ = stream.read_to_string(&mut reply);
        reply
    });
    node.wait_for("hello", Duration::from_secs(30), |now| now["starting"] == 1)
        .expect("a start is under way");
    let tag = tag(&dir);
    node.kill().expect("killed");
    assert_eq!(request.join().expect("no panic"), "");
    assert_ne!(traces(&tag), [""; 0], "a killed node leaves something, else this test is blind");
    let swept = vhive(dir.path(), &["node", "--sweep"]).expect("runs");
    assert!(swept.status.success(), "{}", said(&swept));
    assert_eq!(traces(&tag), [""; 0]);
}

/// Gives a directory the image of a function in Python, or says what this host lacks for it.
fn prepare_python(name: &str, dir: &Dir) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join("mmdebstrap").is_file()) {
        return Err("mmdebstrap (Debian package mmdebstrap)".to_owned());
    }
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions").join(name);
    let done = vhive(dir.path(), &["image", "build", &recipe.to_string_lossy()]).expect("runs");
    assert!(done.status.success(), "{}", said(&done));
    Ok(())
}

#[test]
fn e2e_microvm_clones_draw_the_same_from_a_languages_generator_unless_the_hook_renews_it() {
    let test =
        "e2e_microvm_clones_draw_the_same_from_a_languages_generator_unless_the_hook_renews_it";
    let dir = Dir::new("microvm-random");
    let Some(node) = node(test, &dir) else { return };
    if let Err(lacks) = prepare_python("pyaes", &dir) {
        eprintln!("SKIP {test}: {lacks}");
        return;
    }
    let yaml = |name: &str, hook: &str| {
        let annotations = format!(
            "vhive.dev/snapshot-policy: vanilla\n        {hook}autoscaling.knative.dev/window"
        );
        hello(name, "")
            .replace("autoscaling.knative.dev/window", &annotations)
            .replace("dev.local/hello:latest", "dev.local/pyaes:latest")
    };
    let draw = |name: &str| {
        node.ok(&["evict", name]).expect("evicted");
        let reply = node.json(&["invoke", name, "--path", "/vhive/random"]);
        let reply = reply.expect("invoked");
        assert_eq!(reply["status"], 200, "{reply}");
        (reply["record"]["start"].clone(), reply["body"].to_string())
    };
    for (name, hook, same) in [
        ("frozen", "", true),
        ("renewed", "vhive.dev/after-restore: /vhive/after-restore\n        ", false),
    ] {
        apply(&node, &dir, &yaml(name, hook));
        // The first one seeds the generator, and the snapshot follows its reply.
        assert_eq!(draw(name).0, "boot");
        let clones = [draw(name), draw(name)];
        let fallback = clones.iter().any(|(start, _)| start != "snapshot");
        assert!(!fallback, "{name}: {clones:?}");
        assert_eq!(clones[0].1 == clones[1].1, same, "{name}: {clones:?}");
    }
    assert!(node.stop().expect("ends").success());
}
