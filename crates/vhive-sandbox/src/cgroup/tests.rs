use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use vhive_api::Cpus;

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
fn a_group_in_which_processes_keep_appearing_is_removed() {
    let base = tempfile::tempdir().expect("a temporary directory");
    let Some(root) = root(base.path()) else { return };
    let limits = Limits { tasks: Some(600), ..Limits::default() };
    let group = Cgroup::create(&root, &SandboxId::random(), &limits).expect("made");
    let dirs: Vec<PathBuf> = group.dirs().map(Path::to_owned).collect();
    let Some(pids) = dirs.iter().find(|dir| dir.join("pids.max").exists()) else {
        eprintln!("SKIP cgroup: no pids controller");
        return;
    };
    let mut child = Command::new("sh")
        .args(["-c", "read go; bomb() { bomb | bomb & }; bomb; sleep 1000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("spawned");
    group.add(Pid::from_child(&child)).expect("added");
    drop(child.stdin.take());
    let many = || fs::read_to_string(pids.join("pids.current")).is_ok_and(|n| n.trim().len() == 3);
    assert!(std::iter::repeat_with(many).take(1_000_000).any(|many| many), "no hundred at a time");
    drop(group);
    assert!(!child.wait().expect("reaped").success());
    assert!(dirs.iter().all(|dir| !dir.exists()), "{dirs:?}");
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

/// A shell in a new group that does something when it is told to, and then waits for its end.
fn in_group(group: &Cgroup, script: &str) -> std::process::Child {
    let child = Command::new("sh")
        .args(["-c", &format!("read go; {script}; echo done; read end")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawned");
    group.add(Pid::from_child(&child)).expect("added");
    child
}

fn go(child: &mut std::process::Child) {
    use std::io::{BufRead as _, BufReader, Write as _};
    child.stdin.as_mut().expect("piped").write_all(b"go\n").expect("written");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("read");
    assert_eq!(line, "done\n");
}

#[test]
fn a_nodes_sandboxes_run_on_its_processors_only() {
    let base = tempfile::tempdir().expect("a temporary directory");
    let Some(root) = root(base.path()) else { return };
    let online = fs::read_to_string("/sys/devices/system/cpu/online").expect("a list");
    let last = online.trim().parse::<Cpus>().expect("the kernel's list").iter().last();
    let cpus = Cpus::of(last).expect("a host has a processor");
    if let Err(error) = check_cpus(&cpus) {
        eprintln!("SKIP cgroup: {error}");
        return;
    }
    let root = root.on(cpus.clone());
    for everywhere in [false, true] {
        let make = if everywhere { Cgroup::create_everywhere } else { Cgroup::create };
        let group = make(&root, &SandboxId::random(), &Limits::default()).expect("made");
        let mut child = in_group(&group, "sleep 1000 & true");
        go(&mut child);
        let members = group.members().expect("a group");
        let pids = fs::read_to_string(members.join("cgroup.procs")).expect("its processes");
        assert_eq!(pids.lines().count(), 2, "the shell and its child");
        for pid in pids.lines() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
            let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            assert_eq!(allowed.map(str::trim), Some(cpus.to_string().as_str()));
        }
        let dirs: Vec<PathBuf> = group.dirs().map(Path::to_owned).collect();
        drop(group);
        child.wait().expect("reaped");
        assert!(dirs.iter().all(|dir| !dir.parent().expect("the node's").exists()), "{dirs:?}");
    }
}

#[test]
fn a_group_counts_what_its_processes_have_used_also_ended_ones() {
    let base = tempfile::tempdir().expect("a temporary directory");
    let Some(root) = root(base.path()) else { return };
    let id = SandboxId::random();
    let group = Cgroup::create_everywhere(&root, &id, &Limits::default()).expect("made");
    let Some(before) = cpu_time(&root, &id) else {
        eprintln!("SKIP cgroup: none counts CPU time");
        return;
    };
    // The inner shell does the work and has ended before it is asked for.
    let work = "sh -c 'i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done'";
    let mut child = in_group(&group, work);
    go(&mut child);
    let after = cpu_time(&root, &id).expect("as before");
    assert!(after.total_us > before.total_us + 1000, "{before:?} {after:?}");
    if let Some((user, system)) = after.parts_us {
        assert!(user + system <= after.total_us + 1, "{after:?}");
    }
    drop(group);
    child.wait().expect("reaped");
    assert_eq!(cpu_time(&root, &id), None);
}

#[test]
fn a_machine_in_parts_of_a_processor_has_its_limit_only_while_it_serves() {
    let base = tempfile::tempdir().expect("a temporary directory");
    let Some(root) = root(base.path()) else { return };
    if !controllers().expect("readable").contains(&Controller::Cpu) {
        eprintln!("SKIP cgroup: no controller cpu");
        return;
    }
    for (cpu_millis, at_work, serving) in [(500, 2000, 500), (1500, 3000, 1500), (2000, 3000, 3000)]
    {
        let limits =
            Limits { cpu_millis: Some(MachineShare::at_work(cpu_millis)), ..Limits::default() };
        let group = Cgroup::create(&root, &SandboxId::random(), &limits).expect("made");
        let dirs: Vec<PathBuf> = group.dirs().map(Path::to_owned).collect();
        let now = || {
            let read =
                |file: &str| dirs.iter().find_map(|dir| fs::read_to_string(dir.join(file)).ok());
            let text = read("cpu.cfs_quota_us").or_else(|| read("cpu.max")).expect("a quota");
            let quota: u64 = text.split_whitespace().next()?.parse().ok()?;
            u32::try_from(quota / 100).ok()
        };
        let share = MachineShare::new(Arc::new(group), cpu_millis);
        assert_eq!(now(), Some(at_work), "{cpu_millis}: it boots");
        share.serve().expect("set");
        assert_eq!(now(), Some(serving), "{cpu_millis}: it serves");
        let whole = share.lift();
        assert_eq!(now(), Some(at_work), "{cpu_millis}: it is saved");
        drop(whole);
        assert_eq!(now(), Some(serving), "{cpu_millis}: it serves again");
    }
}

#[test]
fn a_group_is_open_whatever_the_nodes_mask_is() {
    let base = tempfile::tempdir().expect("a temporary directory");
    let Some(root) = root(base.path()) else { return };
    let made = std::thread::spawn(move || {
        // The mask is this thread's own then.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).expect("root may");
        rustix::process::umask(rustix::fs::Mode::from(0o077));
        let group = Cgroup::create_everywhere(&root, &SandboxId::random(), &Limits::default());
        let group = group.expect("made");
        let mode = |dir: &Path| fs::metadata(dir).expect("there").permissions().mode() & 0o777;
        group.dirs().flat_map(|dir| [mode(dir), mode(dir.parent().expect("one"))]).collect()
    });
    let modes: Vec<u32> = made.join().expect("no panic");
    assert!(!modes.is_empty() && modes.iter().all(|mode| *mode == 0o755), "{modes:?}");
}

#[test]
fn version_two_is_shown_beside_version_one_where_it_has_limits() {
    let hierarchy = |version, names: &[&'static str], controllers: &[Controller]| Hierarchy {
        mount: PathBuf::new(),
        version,
        names: names.to_vec(),
        controllers: controllers.to_vec(),
        has_processors: false,
    };
    let names = |all: &[Hierarchy]| -> Vec<String> {
        shown(all.iter().map(|h| (h, ()))).into_iter().map(|(name, ())| name).collect()
    };
    let one = hierarchy(Version::V1, &["cpu", "cpuacct"], &[Controller::Cpu]);
    let two = hierarchy(Version::V2, &[], &[Controller::Memory]);
    let idle = hierarchy(Version::V2, &[], &[]);
    let joint = ["cpu,cpuacct", "cpu", "cpuacct"];
    assert_eq!(names(&[one.clone(), idle]), joint);
    assert_eq!(names(&[one, two.clone()]), [&joint[..], &["unified"]].concat());
    assert_eq!(names(&[two]), [""; 0], "the runtime mounts it");
}
