//! The runtime `firecracker`, with a guest without an operating system: what `/dev/kvm` offers is
//! enough for that wherever it opens.
//! What it has in common with other runtimes is in `nano.rs`.
#![expect(
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and tell why they skip"
)]
#![expect(dead_code, reason = "the conformance suite uses the rest")]

#[path = "firecracker/incremental.rs"]
mod incremental;
#[path = "conformance/site.rs"]
mod site;
#[path = "firecracker/speaker.rs"]
mod speaker;
#[path = "conformance/traces.rs"]
mod traces;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use vhive_api::guest::{FromGuest, Hooks, Process, Stream, VERSION};
use vhive_api::{Bytes, Digest, MemoryMode, PrefetchPolicy, RevisionKey, SandboxId};
use vhive_sandbox::firecracker::{Firecracker, FirecrackerConfig};
use vhive_sandbox::network::{NetworkConfig, NetworkPool};
use vhive_sandbox::snapshot::{Blame, Owner, VM_STATE};
use vhive_sandbox::{
    BootError, Deadline, Guest, Journal, Memory, Milestone, Restore as _, RestoreError, RunRoot,
    Runtime as _, Sandbox, SandboxSpec, Snapshot, SnapshotDraft, Uses,
};

use site::{firecracker_config as config, get, soon};
use traces::Traces;

/// One test at a time: each looks at the children of the whole process.
static TURN: Mutex<()> = Mutex::new(());

struct Lab {
    firecracker: Firecracker,
    kernel: PathBuf,
    root: RunRoot,
    before: Traces,
    pool: NetworkPool,
    dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    fn open(test: &str, config: FirecrackerConfig) -> Option<Self> {
        let skip = |missing: &dyn std::fmt::Display| {
            eprintln!("SKIP {test}: {missing}");
            None
        };
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let firecracker = Firecracker::new(config);
        if let Err(lacks) = firecracker.check_bare() {
            return skip(&lacks);
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let kernel = vhive_sandbox::nano::write_to(dir.path()).expect("written");
        let root = RunRoot::below(&dir.path().join("run"), dir.path());
        let network = NetworkConfig { ready: 1, max: 4, ..NetworkConfig::default() };
        let pool = match NetworkPool::open(&network, &root) {
            Ok(pool) => pool,
            Err(error) => return skip(&error),
        };
        let before = Traces::of(&root);
        Some(Self { firecracker, kernel, root, before, pool, dir, _turn: turn })
    }

    fn spec(&self) -> SandboxSpec {
        SandboxSpec {
            guest: Guest::Bare { kernel: self.kernel.clone() },
            id: SandboxId::random(),
            rootfs: PathBuf::new(),
            process: Process::default(),
            hooks: Hooks::default(),
            uses: Uses::default(),
            port: 8080,
            cpu_millis: 1000,
            memory: Bytes::mib(128),
            network: Some(Arc::new(self.pool.take(soon()).expect("a network slot"))),
            run_root: self.root.clone(),
            journal: Journal::new(),
        }
    }

    fn boot(&self, spec: &SandboxSpec) -> Box<dyn Sandbox> {
        self.firecracker.boot(spec, soon()).unwrap_or_else(|error| {
            panic!("{error:?}; console:\n{}", spec.journal.tail(50).join("\n"))
        })
    }

    fn restore(&self, spec: &SandboxSpec, from: &Snapshot, mode: MemoryMode) -> Box<dyn Sandbox> {
        let memory = Memory::new(mode, PrefetchPolicy::default());
        self.firecracker.restore(spec, from, memory, soon()).unwrap_or_else(|error| {
            panic!("{mode}: {error:?}; console:\n{}", spec.journal.tail(50).join("\n"))
        })
    }

    fn snapshot(&self, sandbox: &mut dyn Sandbox) -> Snapshot {
        let mut draft = SnapshotDraft::begin(self.dir.path(), owner()).expect("begun");
        let checkpoint = sandbox.checkpoint().expect("it was booted");
        checkpoint.snapshot_into(&mut draft, soon()).expect("written");
        draft.publish(&self.dir.path().join("snapshot")).expect("published")
    }

    fn expect_no_traces(&self) {
        self.pool.close();
        assert_eq!(Traces::of(&self.root).since(&self.before), Traces::default());
    }
}

fn owner() -> Owner {
    Owner {
        revision: RevisionKey { namespace: "default".to_owned(), name: "nano".to_owned() },
        digest: Digest::of(b"revision"),
        image: Digest::of(b"image"),
    }
}

/// What the guest has to read, and what it answers.
const TOUCH: &str = "/touch?pages=200&seed=7&write=0";

/// A snapshot of a guest that has written pages, and what it reads in them.
fn filled(lab: &Lab) -> (Snapshot, String) {
    let spec = lab.spec();
    let mut original = lab.boot(&spec);
    get(original.endpoint(), "/fill?pages=300");
    let sums = get(original.endpoint(), TOUCH);
    let snapshot = lab.snapshot(&mut *original);
    assert_eq!(get(original.endpoint(), TOUCH), sums, "the original goes on");
    (snapshot, sums)
}

fn every_mode(name: &str, config: FirecrackerConfig) {
    let Some(lab) = Lab::open(name, config) else { return };
    let (snapshot, sums) = filled(&lab);
    snapshot.verify().expect("whole");
    // In this order: what is recorded is prefetched then.
    let modes = lab.firecracker.memory_modes().to_vec();
    assert!(modes.starts_with(&[MemoryMode::File]));
    let mut prefetched = None;
    for mode in modes {
        let spec = lab.spec();
        let clone = lab.restore(&spec, &snapshot, mode);
        assert_eq!(get(clone.endpoint(), TOUCH), sums, "{mode}");
        assert!(spec.journal.reached(Milestone::Resumed).is_some());
        let paging = clone.paging().expect("it is a clone");
        let figures = paging.figures();
        assert_eq!((figures.mode, paging.shortfall()), (mode, None));
        if mode == MemoryMode::Prefetch {
            prefetched = Some(figures);
        } else if mode != MemoryMode::File {
            assert!(figures.fault_pages >= 200, "{figures:?}");
        }
        paging.finish_recording().expect("written");
    }
    if let Some(figures) = prefetched {
        assert!(figures.prefetched_pages >= 200, "{figures:?}");
        assert!(figures.faults.is_some_and(|faults| faults < 20), "{figures:?}");
    } else {
        eprintln!("SKIP {name}: /dev/userfaultfd");
    }
    lab.expect_no_traces();
}

#[test]
fn a_clone_reads_what_the_original_wrote_however_its_memory_arrives() {
    every_mode("a_clone_reads_what_the_original_wrote_however_its_memory_arrives", config());
}

#[test]
fn it_works_without_the_jailer_and_with_more_devices() {
    let name = "it_works_without_the_jailer_and_with_more_devices";
    every_mode(name, FirecrackerConfig { use_jailer: false, balloon: true, ..config() });
}

#[test]
fn clones_differ_from_each_other_once_they_run() {
    let name = "clones_differ_from_each_other_once_they_run";
    let Some(lab) = Lab::open(name, config()) else { return };
    let (snapshot, sums) = filled(&lab);
    let (one, other) = (lab.spec(), lab.spec());
    let one = lab.restore(&one, &snapshot, MemoryMode::File);
    let other = lab.restore(&other, &snapshot, MemoryMode::File);
    let written = "/touch?pages=200&seed=7&write=1";
    get(one.endpoint(), written);
    assert_ne!(get(one.endpoint(), TOUCH), sums);
    assert_eq!(get(other.endpoint(), TOUCH), sums);
    drop((one, other));
    snapshot.verify().expect("nobody writes into a snapshot");
    lab.expect_no_traces();
}

#[test]
fn it_isolates_each_firecracker() {
    let Some(lab) = Lab::open("it_isolates_each_firecracker", config()) else { return };
    let spec = lab.spec();
    let sandbox = lab.boot(&spec);
    assert!(Traces::of(&lab.root).is_more_than(&lab.before));
    let pid = sandbox.processes()[0].as_raw_nonzero();
    let of = |what: &str| fs::read_link(format!("/proc/{pid}/{what}")).expect("readable");
    let own = |what: &str| fs::read_link(format!("/proc/self/{what}")).expect("readable");
    assert_ne!(of("ns/net"), own("ns/net"));
    assert_ne!(of("ns/mnt"), own("ns/mnt"));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("readable");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("no {name}")).split_whitespace().nth(1).expect("a value")
    };
    let uid: u32 = field("Uid:").parse().expect("a number");
    assert!(uid >= FirecrackerConfig::default().first_uid, "{uid}");
    // The jailer, which needs them to make the root directory, keeps them in the bounding set: a limit
    // on what programs bring, and with NoNewPrivs none brings any.
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1", "2"));
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).expect("a line");
    assert!(groups.split_whitespace().all(|group| group == uid.to_string()), "{groups}");
    let root = fs::read_dir(format!("/proc/{pid}/root")).expect("readable");
    let names: Vec<_> = root.map(|entry| entry.expect("readable").file_name()).collect();
    assert!(names.iter().all(|name| name != "etc" && name != "home"), "{names:?}");
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("readable");
    assert!(cgroup.contains(spec.id.as_str()), "{cgroup}");
    drop((sandbox, spec));
    lab.expect_no_traces();
}

/// The Firecracker of a sandbox, wherever in its start it is.
fn kill(id: &SandboxId) {
    let all = fs::read_dir("/proc").expect("readable").filter_map(Result::ok);
    for entry in all {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&words);
        let is_it = text.split('\0').any(|word| word == id.as_str());
        let pid = entry.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| is_it) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// A specification whose Firecracker is killed as soon as it has reached a milestone.
fn doomed(lab: &Lab, at: Milestone) -> SandboxSpec {
    let spec = lab.spec();
    let (id, journal) = (spec.id.clone(), Arc::downgrade(&spec.journal));
    let done = AtomicBool::new(false);
    spec.journal.watch(move || {
        let reached = journal.upgrade().is_some_and(|journal| journal.reached(at).is_some());
        if reached && !done.swap(true, Ordering::SeqCst) {
            kill(&id);
        }
    });
    spec
}

#[test]
fn one_that_is_killed_at_any_step_is_told_and_leaves_nothing() {
    let name = "one_that_is_killed_at_any_step_is_told_and_leaves_nothing";
    let Some(lab) = Lab::open(name, config()) else { return };
    let (snapshot, sums) = filled(&lab);
    for at in [Milestone::Spawned, Milestone::Started] {
        let spec = doomed(&lab, at);
        let error = lab.firecracker.boot(&spec, soon()).expect_err("it was killed");
        let end = spec.journal.ended().expect("told").to_string();
        assert!(end.contains("Firecracker was killed by signal 9"), "{at:?}: {error:?}, {end}");
    }
    for mode in lab.firecracker.memory_modes() {
        let (spec, memory) =
            (doomed(&lab, Milestone::Spawned), Memory::new(*mode, PrefetchPolicy::default()));
        let error = lab.firecracker.restore(&spec, &snapshot, memory, soon());
        let error = error.expect_err("it was killed");
        assert_ne!(error.blame(), Blame::Snapshot, "{mode}: {error:?}");
    }
    let spec = doomed(&lab, Milestone::Listening);
    let sandbox = lab.boot(&spec);
    let end = spec.journal.wait_end(soon()).expect("told").to_string();
    assert_eq!(end, "Firecracker was killed by signal 9");
    drop((sandbox, spec));
    // While its state is being saved.
    let spec = lab.spec();
    let mut sandbox = lab.boot(&spec);
    let id = spec.id.clone();
    kill(&id);
    let mut draft = SnapshotDraft::begin(lab.dir.path(), owner()).expect("begun");
    let checkpoint = sandbox.checkpoint().expect("it was booted");
    let error = checkpoint.snapshot_into(&mut draft, soon()).expect_err("it was killed");
    assert!(error.is_lost(), "{error:?}");
    drop((sandbox, spec, draft));
    // None of that has hurt the snapshot.
    let spec = lab.spec();
    let clone = lab.restore(&spec, &snapshot, MemoryMode::File);
    assert_eq!(get(clone.endpoint(), TOUCH), sums);
    drop((clone, spec));
    lab.expect_no_traces();
}

#[test]
fn a_tap_that_is_in_use_is_not_blamed_on_the_snapshot() {
    let name = "a_tap_that_is_in_use_is_not_blamed_on_the_snapshot";
    let Some(lab) = Lab::open(name, config()) else { return };
    let (snapshot, sums) = filled(&lab);
    let spec = lab.spec();
    let tap = spec.network.as_ref().map(|slot| slot.open_tap().expect("opened"));
    let memory = Memory::new(MemoryMode::File, PrefetchPolicy::default());
    let error = lab.firecracker.restore(&spec, &snapshot, memory, soon()).expect_err("in use");
    assert_ne!(error.blame(), Blame::Snapshot, "{error:?}");
    drop((tap, spec));
    let spec = lab.spec();
    let clone = lab.restore(&spec, &snapshot, MemoryMode::File);
    assert_eq!(get(clone.endpoint(), TOUCH), sums);
    drop((clone, spec));
    lab.expect_no_traces();
}

#[test]
fn a_damaged_state_and_a_bad_kernel_are_told_in_firecrackers_words() {
    let name = "a_damaged_state_and_a_bad_kernel_are_told_in_firecrackers_words";
    let Some(lab) = Lab::open(name, config()) else { return };
    let (snapshot, _) = filled(&lab);
    let state = snapshot.dir().join(VM_STATE);
    let mut bytes = fs::read(&state).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&state, bytes).expect("written");
    for mode in lab.firecracker.memory_modes() {
        let (spec, memory) = (lab.spec(), Memory::new(*mode, PrefetchPolicy::default()));
        let error = lab.firecracker.restore(&spec, &snapshot, memory, soon());
        let error = error.expect_err("it is damaged");
        assert_eq!(error.blame(), Blame::Snapshot, "{mode}: {error:?}");
    }
    let kernel = lab.dir.path().join("no-kernel");
    fs::write(&kernel, "this is no ELF file").expect("written");
    let spec = SandboxSpec { guest: Guest::Bare { kernel }, ..lab.spec() };
    let error = lab.firecracker.boot(&spec, soon()).expect_err("no kernel");
    let text = format!("{error}");
    assert!(text.contains("refused InstanceStart"), "{text}");
    let kernel = lab.dir.path().join("missing");
    let spec = SandboxSpec { guest: Guest::Bare { kernel }, ..lab.spec() };
    let error = lab.firecracker.boot(&spec, soon()).expect_err("no kernel");
    assert!(error.to_string().starts_with("cannot read the bare guest "), "{error}");
    drop(spec);
    lab.expect_no_traces();
}

#[test]
fn one_that_waits_becomes_a_clone_or_goes_without_a_trace() {
    let name = "one_that_waits_becomes_a_clone_or_goes_without_a_trace";
    let config = FirecrackerConfig { metrics: true, ..config() };
    let Some(lab) = Lab::open(name, config) else { return };
    let (snapshot, sums) = filled(&lab);
    let wait = |mode| {
        let (spec, firecracker) = (lab.spec(), &lab.firecracker);
        firecracker.spawn_waiting(&spec, &snapshot, mode, soon()).expect("it waits")
    };
    for mode in lab.firecracker.memory_modes() {
        let memory = Memory::new(*mode, PrefetchPolicy::default());
        let mut clone = wait(*mode).load(memory, soon()).expect("loaded");
        assert_eq!(get(clone.endpoint(), TOUCH), sums, "{mode}");
        let metrics = clone.metrics(soon()).expect("measured");
        assert!(!metrics.load.is_zero() && metrics.create.is_zero(), "{metrics:?}");
    }
    drop(wait(MemoryMode::File));
    let lazy = Memory::new(MemoryMode::Lazy, PrefetchPolicy::default());
    let error = wait(MemoryMode::File).load(lazy, soon()).expect_err("it has its memory already");
    assert!(matches!(error, RestoreError::Mode { .. }), "{error:?}");
    lab.expect_no_traces();
}

#[test]
fn a_function_is_refused_by_name_where_linux_does_not_boot() {
    let name = "a_function_is_refused_by_name_where_linux_does_not_boot";
    let Some(lab) = Lab::open(name, config()) else { return };
    // Without kernels it offers none on any host.
    let lacks = lab.firecracker.check_host().expect_err("no Linux guests");
    let spec = SandboxSpec { guest: Guest::Linux, ..lab.spec() };
    let error = lab.firecracker.boot(&spec, soon()).expect_err("no Linux guests");
    assert!(matches!(error, BootError::Host { lacks: its, .. } if its == lacks));
    let kernels = match site::kernels() {
        Ok(kernels) => kernels,
        Err(missing) => {
            eprintln!("SKIP {name}: {missing}");
            return;
        }
    };
    // Asked anew, and it leaves nothing; then remembered.
    let cache = tempfile::tempdir().expect("a temporary directory");
    let firecracker = || Firecracker::new(config()).with_kernels(kernels.clone(), cache.path());
    let begun = Instant::now();
    let Err(lacks) = firecracker().check_host() else {
        eprintln!("SKIP {name}: a KVM that does not boot Linux");
        return;
    };
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert!(lacks.what.starts_with("KVM here does not boot a Linux guest: "), "{lacks}");
    assert!(cache.path().join("firecracker.json").exists());
    let begun = Instant::now();
    assert_eq!(firecracker().check_host(), Err(lacks.clone()));
    // No snapshot of a function is judged by it, and those of other guests are as they were.
    assert_eq!(firecracker().platform(&Guest::Linux), Err(lacks.clone()));
    let bare = Guest::Bare { kernel: PathBuf::new() };
    assert_eq!(firecracker().platform(&bare).map(|platform| platform.kernel), Ok(None));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let error = firecracker().boot(&spec, soon()).expect_err("refused");
    assert!(matches!(error, BootError::Host { lacks: its, .. } if its == lacks));
    // What functions cannot do with is named before anything is tried.
    for (config, word) in [
        (FirecrackerConfig { use_jailer: false, ..config() }, "need its jailer"),
        (FirecrackerConfig { pci: true, ..config() }, "no driver for PCI"),
    ] {
        let firecracker = Firecracker::new(config).with_kernels(kernels.clone(), cache.path());
        let lacks = firecracker.check_host().expect_err("not so");
        assert!(lacks.what.contains(word), "{lacks}");
    }
    drop(spec);
    lab.expect_no_traces();
}

/// Everything that a function needs of Firecracker, with a guest in Linux' place that this host's KVM
/// boots.
#[test]
fn the_contract_is_kept_over_the_serial_port_also_by_clones() {
    let name = "the_contract_is_kept_over_the_serial_port_also_by_clones";
    let Some(mut lab) = Lab::open(name, config()) else { return };
    // More than the pipe holds.
    let line =
        |n: u32| FromGuest::Output { at_ns: 4, stream: Stream::Stdout, line: format!("{n:0>200}") };
    let mut started = vec![
        FromGuest::Mounted { at_ns: 2, handshake_ns: 1 },
        FromGuest::Started { at_ns: 3, pid: 2 },
    ];
    started.extend((0..LINES).map(line));
    started.push(FromGuest::Listening { at_ns: 5 });
    let groups = [
        vec![FromGuest::Hello { version: VERSION, at_ns: 1 }],
        started,
        vec![FromGuest::Prepared { at_ns: 6 }],
        vec![FromGuest::Resumed { at_ns: 7 }],
        vec![FromGuest::Exited { at_ns: 8, code: 3, out_of_memory: false }],
    ];
    let kernels = speaker::store(&lab.dir.path().join("kernels"), &groups);
    let cache = lab.dir.path().join("host");
    lab.firecracker = Firecracker::new(config()).with_kernels(kernels, cache);
    lab.firecracker.check_host().expect("a guest says hello");
    let rootfs = lab.dir.path().join("rootfs");
    fs::write(&rootfs, [0; 4096]).expect("written");
    let linux = || SandboxSpec { guest: Guest::Linux, rootfs: rootfs.clone(), ..lab.spec() };
    let stopped = |mut sandbox: Box<dyn Sandbox>, spec: &SandboxSpec| {
        sandbox.stop(soon());
        assert_eq!(spec.journal.ended(), Some(vhive_sandbox::End::Exited(3)));
    };

    let spec = linux();
    let mut sandbox = lab.boot(&spec);
    spec.journal.wait(Milestone::Listening, soon()).expect("all of it arrives");
    let lines = spec.journal.lines_from(0);
    let last = lines.last().expect("lines").text.clone();
    assert_eq!(last, format!("{:0>200}", LINES - 1));
    expect_no_byte_dropped(sandbox.processes()[0]);
    let snapshot = lab.snapshot(&mut *sandbox);
    let platform = lab.firecracker.platform(&Guest::Linux).expect("it is fit");
    assert_eq!(snapshot.manifest().platform, platform);
    stopped(sandbox, &spec);
    drop(spec);
    for mode in lab.firecracker.memory_modes() {
        let spec = linux();
        let clone = lab.restore(&spec, &snapshot, *mode);
        assert!(spec.journal.wait(Milestone::Resumed, soon()).is_ok(), "{mode}");
        expect_no_byte_dropped(clone.processes()[0]);
        stopped(clone, &spec);
    }
    lab.expect_no_traces();
}

const LINES: u32 = 500;

/// Firecracker waits for room in what it writes to, instead of dropping bytes.
fn expect_no_byte_dropped(pid: Pid) {
    let info = fs::read_to_string(format!("/proc/{}/fdinfo/1", pid.as_raw_nonzero()));
    let info = info.expect("readable");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
    let flags = u32::from_str_radix(flags.trim(), 8).expect("a number");
    assert_eq!(flags & 0o4000, 0, "O_NONBLOCK: {info}");
}

#[test]
fn fifty_leave_nothing() {
    let Some(lab) = Lab::open("fifty_leave_nothing", config()) else { return };
    let (snapshot, _) = filled(&lab);
    let descriptors = || fs::read_dir("/proc/self/fd").expect("readable").count();
    let mut before = 0;
    for round in 0..50 {
        let modes = lab.firecracker.memory_modes();
        let mode = modes[round % modes.len()];
        let spec = lab.spec();
        let clone = lab.restore(&spec, &snapshot, mode);
        assert_eq!(get(clone.endpoint(), "/"), "hello from nano\n");
        drop((clone, spec));
        if round == 4 {
            // By now everything is there that is made once.
            before = descriptors();
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    assert!(!mounts.contains("/jail"), "{mounts}");
    assert!(descriptors() <= before + 4, "{} and {before} before", descriptors());
    lab.expect_no_traces();
}

#[test]
fn what_does_not_answer_is_given_up_in_time() {
    let name = "what_does_not_answer_is_given_up_in_time";
    let Some(lab) = Lab::open(name, config()) else { return };
    let kernel = lab.dir.path().join("idle.elf");
    // It waits for an interrupt that never comes: `cli; hlt; jmp` back.
    fs::write(&kernel, speaker::elf(b"\xfa\xf4\xeb\xfd")).expect("written");
    let spec = SandboxSpec { guest: Guest::Bare { kernel }, ..lab.spec() };
    let begun = Instant::now();
    let error = lab.firecracker.boot(&spec, Deadline::after(Duration::from_secs(2)));
    let error = error.expect_err("it does nothing");
    assert!(begun.elapsed() < Duration::from_secs(20), "{error:?}");
    assert!(matches!(error, BootError::Guest { wanted: Milestone::Listening, .. }), "{error:?}");
    assert!(spec.journal.ended().expect("told").to_string().starts_with("boot failed"));
    drop(spec);
    lab.expect_no_traces();
}

/// A program that says that it is Firecracker, and does something else when it is to be one.
fn impostor(dir: &Path, does: &str) -> FirecrackerConfig {
    let binary = dir.join("firecracker");
    let script = format!(
        "#!/bin/sh\ncase $1 in\n--version) echo Firecracker v1.16.1;;\n\
         --snapshot-version) echo v10.0.0;;\n*) {does};;\nesac\n"
    );
    fs::write(&binary, script).expect("written");
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("set");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("set");
    FirecrackerConfig { binary, use_jailer: false, ..FirecrackerConfig::default() }
}

#[test]
fn an_impostor_is_told_from_a_firecracker() {
    let name = "an_impostor_is_told_from_a_firecracker";
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dies = impostor(dir.path(), "echo its last words >&2; exit 3");
    let Some(lab) = Lab::open(name, dies) else { return };
    let spec = lab.spec();
    let error = lab.firecracker.boot(&spec, soon()).expect_err("it dies");
    assert!(error.to_string().contains("exited with code 3: its last words"), "{error}");
    drop(spec);
    lab.expect_no_traces();
    drop(lab);
    let silent = impostor(dir.path(), "exec sleep 1000");
    let Some(lab) = Lab::open(name, silent) else { return };
    let spec = lab.spec();
    let brief = Deadline::after(Duration::from_millis(300));
    let error = lab.firecracker.boot(&spec, brief).expect_err("it does not answer");
    assert!(error.to_string().contains("its API does not answer"), "{error}");
    drop(spec);
    lab.expect_no_traces();
}
