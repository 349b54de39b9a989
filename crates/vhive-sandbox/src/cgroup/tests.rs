use std::io::Read as _;
use std::process::{Command, Stdio};

use super::*;

/// A run root of this test's own, or why there can be none here.
fn root(base: &Path) -> Option<RunRoot> {
    let root = RunRoot::below(base, base);
    match Cgroup::create(&root, &SandboxId::random(), &Limits::default()) {
        Ok(_) => Some(root),
        Err(error) => {
            eprintln!("SKIP cgroup: {error}");
            None
        }
    }
}

#[test]
fn limits_are_set_and_dropping_kills_and_removes() {
    let base = tempfile::tempdir().expect("a temporary directory");
    let Some(root) = root(base.path()) else { return };
    let limits = Limits { memory: Some(Bytes::mib(64)), tasks: Some(20), cpu_millis: Some(1500) };
    let group = Cgroup::create(&root, &SandboxId::random(), &limits).expect("made");
    let dirs: Vec<PathBuf> = group.dirs().map(Path::to_owned).collect();
    let read = |file: &str| {
        let texts = dirs.iter().filter_map(|dir| fs::read_to_string(dir.join(file)).ok());
        texts.map(|text| text.trim().to_owned()).collect::<Vec<_>>()
    };
    if controllers().expect("readable").contains(&Controller::Pids) {
        assert_eq!(read("pids.max"), ["20"]);
    }
    if controllers().expect("readable").contains(&Controller::Memory) {
        let bytes = (64_u64 << 20).to_string();
        assert!(read("memory.max").contains(&bytes) || read("memory.limit_in_bytes") == [bytes]);
    }

    // The shell starts its own child only once it has been moved.
    let mut child = Command::new("sh")
        .args(["-c", "read go; sleep 1000 & sleep 1000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawned");
    group.add(Pid::from_child(&child)).expect("added");
    drop(child.stdin.take());
    drop(group);
    // Both processes held the pipe; it ends when the last has gone.
    let mut rest = Vec::new();
    child.stdout.take().expect("piped").read_to_end(&mut rest).expect("read");
    assert!(!child.wait().expect("reaped").success());
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
    assert!(dirs.iter().all(|dir| !dir.parent().unwrap().exists()), "{dirs:?}");
}

#[test]
fn a_sweep_removes_what_a_killed_node_left_and_nothing_else() {
    let base = tempfile::tempdir().expect("a temporary directory");
    let Some(mine) = root(&base.path().join("mine")) else { return };
    let other = RunRoot::below(base.path(), &base.path().join("other"));
    let id = SandboxId::random();
    let left = Cgroup::create(&mine, &id, &Limits::default()).expect("made");
    let kept = Cgroup::create(&other, &SandboxId::random(), &Limits::default()).expect("made");
    let mut child = Command::new("sleep").arg("1000").spawn().expect("spawned");
    left.add(Pid::from_child(&child)).expect("added");

    assert_eq!(sweep(&mine).expect("swept"), [id.as_str()]);
    assert!(!child.wait().expect("reaped").success());
    assert!(left.dirs().all(|dir| !dir.exists()));
    assert!(kept.dirs().all(Path::exists));
    assert_eq!(sweep(&mine).expect("swept again"), [""; 0]);
}
