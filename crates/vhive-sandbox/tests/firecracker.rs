//! The runtime `firecracker`, with a guest without an operating system: what `/dev/kvm` offers is
//! enough for that wherever it opens.
//!
//! `VHIVE_FIRECRACKER` names the program, with its jailer beside it; else both are looked up in
//! `PATH`.
#![expect(
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and tell why they skip"
)]
#![expect(dead_code, reason = "the conformance suite uses the rest")]

#[path = "conformance/site.rs"]
mod site;
#[path = "conformance/traces.rs"]
mod traces;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhive_api::guest::{Hooks, Process};
use vhive_api::{Bytes, Digest, MemoryMode, PrefetchPolicy, RevisionKey, SandboxId};
use vhive_sandbox::firecracker::{Firecracker, FirecrackerConfig};
use vhive_sandbox::network::{NetworkConfig, NetworkPool};
use vhive_sandbox::snapshot::Owner;
use vhive_sandbox::{
    Guest, Journal, Memory, Milestone, Restore as _, RunRoot, Runtime as _, Sandbox, SandboxSpec,
    Snapshot, SnapshotDraft,
};

use site::{get, soon};
use traces::Traces;

struct Lab {
    firecracker: Firecracker,
    kernel: PathBuf,
    root: RunRoot,
    before: Traces,
    pool: NetworkPool,
    dir: tempfile::TempDir,
}

fn config() -> FirecrackerConfig {
    let Some(binary) = std::env::var_os("VHIVE_FIRECRACKER").map(PathBuf::from) else {
        return FirecrackerConfig::default();
    };
    let jailer = binary.with_file_name("jailer");
    FirecrackerConfig { binary, jailer, ..FirecrackerConfig::default() }
}

impl Lab {
    fn open(test: &str, config: FirecrackerConfig) -> Option<Self> {
        let skip = |missing: &dyn std::fmt::Display| {
            eprintln!("SKIP {test}: {missing}");
            None
        };
        let firecracker = Firecracker::new(config);
        if let Err(lacks) = firecracker.check_bare() {
            return skip(&lacks);
        }
        let kernel = PathBuf::from(std::env::var_os("VHIVE_NANO").unwrap_or_default());
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = RunRoot::below(&dir.path().join("run"), dir.path());
        let network = NetworkConfig { ready: 1, max: 4, ..NetworkConfig::default() };
        let pool = match NetworkPool::open(&network, &root) {
            Ok(pool) => pool,
            Err(error) => return skip(&error),
        };
        let before = Traces::of(&root);
        Some(Self { firecracker, kernel, root, before, pool, dir })
    }

    fn spec(&self) -> SandboxSpec {
        SandboxSpec {
            guest: Guest::Bare { kernel: self.kernel.clone() },
            id: SandboxId::random(),
            rootfs: PathBuf::new(),
            process: Process::default(),
            hooks: Hooks::default(),
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
        let memory = Memory { mode, policy: PrefetchPolicy::default() };
        self.firecracker.restore(spec, from, memory, soon()).unwrap_or_else(|error| {
            panic!("{mode}: {error:?}; console:\n{}", spec.journal.tail(50).join("\n"))
        })
    }

    fn snapshot(&self, sandbox: &mut dyn Sandbox) -> Snapshot {
        let owner = Owner {
            revision: RevisionKey { namespace: "default".to_owned(), name: "nano".to_owned() },
            digest: Digest::of(b"revision"),
            image: Digest::of(b"image"),
        };
        let mut draft = SnapshotDraft::begin(self.dir.path(), owner).expect("begun");
        let checkpoint = sandbox.checkpoint().expect("it was booted");
        checkpoint.snapshot_into(&mut draft, soon()).expect("written");
        draft.publish(&self.dir.path().join("snapshot")).expect("published")
    }

    fn expect_no_traces(&self) {
        self.pool.close();
        assert_eq!(Traces::of(&self.root), self.before);
    }
}

#[test]
fn a_clone_reads_what_the_original_wrote_however_its_memory_arrives() {
    let name = "a_clone_reads_what_the_original_wrote_however_its_memory_arrives";
    let Some(lab) = Lab::open(name, config()) else { return };
    let spec = lab.spec();
    let mut original = lab.boot(&spec);
    let filled = get(original.endpoint(), "/fill?pages=300");
    eprintln!("{filled}");
    let sums = get(original.endpoint(), "/touch?pages=200&seed=7&write=0");
    let snapshot = lab.snapshot(&mut *original);
    assert_eq!(get(original.endpoint(), "/touch?pages=200&seed=7&write=0"), sums, "it goes on");
    let order = [MemoryMode::File, MemoryMode::Lazy, MemoryMode::Record, MemoryMode::Prefetch];
    for mode in order {
        let spec = lab.spec();
        let clone = lab.restore(&spec, &snapshot, mode);
        assert_eq!(get(clone.endpoint(), "/touch?pages=200&seed=7&write=0"), sums, "{mode}");
        let paging = clone.paging().expect("it is a clone");
        eprintln!("{mode}: {:?} {:?}", paging.figures(), spec.journal.milestones());
        paging.finish_recording().expect("written");
    }
    drop((original, spec));
    lab.expect_no_traces();
}
