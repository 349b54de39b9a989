//! `firecracker-load`: how long a clone of the nano guest takes to run in a Firecracker that waits
//! for it, beside the time that this Firecracker itself reports for the load.
//!
//! Memory is mapped from the page cache and no page of it is waited for, so what is compared is
//! our way to the VMM and back. `VHIVE_FIRECRACKER` names the program, with its jailer beside it;
//! else both are looked up in `PATH`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use vhive_api::guest::{Hooks, Process};
use vhive_api::{Bytes, Digest, MemoryMode, PrefetchPolicy, RevisionKey, SandboxId};
use vhive_sandbox::firecracker::{Firecracker, FirecrackerConfig};
use vhive_sandbox::network::{self, NetworkConfig, NetworkPool};
use vhive_sandbox::snapshot::Owner;
use vhive_sandbox::{
    Deadline, Guest, Journal, Memory, RunRoot, Runtime as _, SandboxSpec, Snapshot, SnapshotDraft,
    Uses,
};
use vhive_tests::bench::{Bound, Row, median, spread};

const ID: &str = "firecracker-load";
const BOUND: Bound = Bound::AtMost { must: 2.0, goal: 1.3 };
const ROUNDS: usize = 40;
/// The first starts find nothing in the caches.
const WARM_UP: usize = 3;

fn main() -> Result<()> {
    let lacks = |reason: String| {
        Row::new(ID, "us").unmeasured(BOUND, reason).emit();
        Ok(())
    };
    let firecracker = Firecracker::new(config());
    if let Err(missing) = firecracker.check_bare().and_then(|()| network::check_host()) {
        return lacks(missing.to_string());
    }
    let dir = tempfile::tempdir()?;
    let root = RunRoot::below(&dir.path().join("run"), dir.path());
    let network = NetworkConfig { ready: 2, max: 6, ..NetworkConfig::default() };
    let site = Site {
        kernel: vhive_sandbox::nano::write_to(dir.path())?,
        pool: NetworkPool::open(&network, &root)?,
        root,
        firecracker,
    };
    let snapshot = site.snapshot(dir.path())?;
    let [mut ours, mut theirs, mut lazy] = [const { Vec::new() }; 3];
    for round in 0..WARM_UP + ROUNDS {
        let (took, load) = site.load(&snapshot, MemoryMode::File)?;
        let (took_lazy, _) = site.load(&snapshot, MemoryMode::Lazy)?;
        if round >= WARM_UP {
            ours.push(took);
            theirs.push(load);
            lazy.push(took_lazy);
        }
    }
    let note = format!(
        "ours {}; Firecracker's {}; ours with the pager {}",
        spread(&ours, "us"),
        spread(&theirs, "us"),
        spread(&lazy, "us"),
    );
    Row::new(ID, "us")
        .ratio(BOUND, median(&ours), median(&theirs))
        .peer(format!("Firecracker's own load_snapshot, {:.0} us", median(&theirs)))
        .note(note)
        .emit();
    Ok(())
}

fn config() -> FirecrackerConfig {
    let config = FirecrackerConfig { metrics: true, ..FirecrackerConfig::default() };
    let Some(binary) = vhive_tests::node::named_firecracker() else { return config };
    let jailer = binary.with_file_name("jailer");
    FirecrackerConfig { binary, jailer, ..config }
}

struct Site {
    firecracker: Firecracker,
    kernel: PathBuf,
    pool: NetworkPool,
    root: RunRoot,
}

impl Site {
    fn spec(&self) -> Result<SandboxSpec> {
        Ok(SandboxSpec {
            guest: Guest::Bare { kernel: self.kernel.clone() },
            id: SandboxId::random(),
            rootfs: PathBuf::new(),
            process: Process::default(),
            hooks: Hooks::default(),
            uses: Uses { snapshots: true, ..Uses::default() },
            port: 8080,
            cpu_millis: 1000,
            memory: Bytes::mib(128),
            network: Some(Arc::new(self.pool.take(within())?)),
            run_root: self.root.clone(),
            journal: Journal::new(),
        })
    }

    fn snapshot(&self, dir: &Path) -> Result<Snapshot> {
        let spec = self.spec()?;
        let mut sandbox = self.firecracker.boot(&spec, within())?;
        let owner = Owner {
            revision: RevisionKey { namespace: "default".to_owned(), name: "nano".to_owned() },
            digest: Digest::of(b"revision"),
            image: Digest::of(b"image"),
        };
        let mut draft = SnapshotDraft::begin(dir, owner)?;
        let checkpoint = sandbox.checkpoint().context("a booted guest can be snapshotted")?;
        checkpoint.snapshot_into(&mut draft, within())?;
        Ok(draft.publish(&dir.join("snapshot"))?)
    }

    /// Our time and Firecracker's, in microseconds.
    fn load(&self, from: &Snapshot, mode: MemoryMode) -> Result<(f64, f64)> {
        let waiting = self.firecracker.spawn_waiting(&self.spec()?, from, mode, within())?;
        let memory = Memory { mode, policy: PrefetchPolicy::default(), from_page_cache: false };
        let asked = Instant::now();
        let mut clone = waiting.load(memory, within())?;
        let took = asked.elapsed();
        let metrics = clone.metrics(within())?;
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        Ok((micros(took), micros(metrics.load)))
    }
}

fn within() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}
