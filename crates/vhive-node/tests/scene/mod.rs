//! What the node's tests share: a node in a temporary directory, and revisions for it.
#![expect(dead_code, reason = "each test file uses a part")]

use std::fmt;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vhive_api::{
    Bytes, Digest, MemoryFigures, Revision, RevisionKey, RuntimeName, SnapshotPolicy, StartKind,
};
use vhive_image::ImageStore;
use vhive_node::{Config, Node, Runtimes, SnapshotInfo, StartReport};
use vhive_sandbox::sim::{Sim, SimConfig};
use vhive_sandbox::{BootError, Deadline, HostLacks, Runtime, Sandbox, SandboxSpec};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A directory for one node, gone with its value.
pub(crate) struct Scene {
    dir: TempDir,
    pub(crate) config: Config,
    pub(crate) sim: SimConfig,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = Config::below(dir.path());
        Self { dir, config, sim: SimConfig { run_dir: true, ..SimConfig::default() } }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn images(&self) -> ImageStore {
        ImageStore::open(self.dir.path().join("images")).expect("an image store")
    }

    pub(crate) async fn node(&self) -> Node {
        self.node_with(Runtimes::new().with(Sim::new(self.sim.clone()))).await
    }

    pub(crate) async fn node_with(&self, runtimes: Runtimes) -> Node {
        let node = Node::open(self.config.clone(), runtimes, self.images(), None).await;
        node.expect("the node opens")
    }
}

/// A revision for `sim`: one request at a time, next to no memory.
pub(crate) fn revision(name: &str) -> Revision {
    let image = format!("dev.local/{name}:latest");
    let digest = Digest::of(name.as_bytes());
    let revision =
        Revision::new(RevisionKey::new("default", name), &image, digest, RuntimeName::Sim);
    Revision {
        service: "test".to_owned(),
        memory: Bytes::mib(1),
        container_concurrency: 1,
        timeout: Duration::from_secs(60),
        ..revision
    }
}

/// Registers a revision after changing it, and returns its key.
pub(crate) fn register(node: &Node, name: &str, change: impl FnOnce(&mut Revision)) -> RevisionKey {
    let mut revision = revision(name);
    change(&mut revision);
    let key = revision.key.clone();
    node.register(Arc::new(revision));
    key
}

pub(crate) fn env(revision: &mut Revision, name: &str, value: &str) {
    revision.env.push((name.to_owned(), value.to_owned()));
}

/// Fails the test if the future takes too long.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends within the test's patience")
}

/// Looks until `good`, and fails with what it saw last.
pub(crate) async fn wait_for<T: fmt::Debug>(look: impl Fn() -> T, good: impl Fn(&T) -> bool) -> T {
    let began = Instant::now();
    loop {
        let seen = look();
        if good(&seen) {
            return seen;
        }
        assert!(began.elapsed() < PATIENCE, "still {seen:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// `sim`, counting boots and the most of them at a time; under another name if one is given.
#[derive(Debug)]
pub(crate) struct Counting {
    sim: Sim,
    name: RuntimeName,
    counts: Arc<BootCounts>,
}

#[derive(Debug, Default)]
pub(crate) struct BootCounts {
    pub(crate) all: AtomicUsize,
    now: AtomicUsize,
    pub(crate) most: AtomicUsize,
}

impl Counting {
    pub(crate) fn new(sim: &SimConfig, name: RuntimeName) -> (Self, Arc<BootCounts>) {
        let counts = Arc::new(BootCounts::default());
        (Self { sim: Sim::new(sim.clone()), name, counts: Arc::clone(&counts) }, counts)
    }
}

impl Runtime for Counting {
    fn name(&self) -> RuntimeName {
        self.name
    }

    fn check_host(&self) -> Result<(), HostLacks> {
        Ok(())
    }

    fn boot(&self, spec: &SandboxSpec, deadline: Deadline) -> Result<Box<dyn Sandbox>, BootError> {
        self.counts.all.fetch_add(1, Ordering::SeqCst);
        let now = self.counts.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.counts.most.fetch_max(now, Ordering::SeqCst);
        let booted = self.sim.boot(spec, deadline);
        self.counts.now.fetch_sub(1, Ordering::SeqCst);
        booted
    }
}

/// Directories of sandboxes that exist below the scene.
pub(crate) fn sandbox_dirs(node: &Node) -> usize {
    fs::read_dir(node.run_root().sandboxes()).map_or(0, Iterator::count)
}

/// The value of a metric without labels.
pub(crate) fn metric(node: &Node, name: &str) -> u64 {
    let text = node.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    assert!(line.is_some(), "no {name} in\n{text}");
    line.and_then(|value| value.parse().ok()).expect("a number")
}

/// One request from a cold start to its reply; afterwards nothing of the instance is left.
pub(crate) async fn invoke(node: &Node, key: &RevisionKey) -> (StartReport, Option<MemoryFigures>) {
    let lease = soon(node.acquire(key)).await.expect("a slot");
    let told = (lease.start().expect("a cold start").clone(), lease.memory());
    lease.replied();
    soon(node.evict(key)).await.expect("known");
    told
}

/// How so many requests' instances were started.
pub(crate) async fn kinds(node: &Node, key: &RevisionKey, count: usize) -> Vec<StartKind> {
    let mut kinds = Vec::new();
    for _ in 0..count {
        kinds.push(invoke(node, key).await.0.kind);
    }
    kinds
}

/// A snapshot, a recording, then prefetching.
pub(crate) fn reap(revision: &mut Revision) {
    revision.snapshot = SnapshotPolicy::Reap;
}

/// The one snapshot that there is.
pub(crate) fn only(node: &Node) -> SnapshotInfo {
    let mut all = node.snapshots().list();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

/// Everything below the store, by path.
pub(crate) fn files(scene: &Scene) -> Vec<PathBuf> {
    fn walk(dir: &Path, into: &mut Vec<PathBuf>) {
        // What is being renamed may have gone since it was listed.
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            into.push(entry.path());
            if entry.path().is_dir() {
                walk(&entry.path(), into);
            }
        }
    }
    let (mut all, store) = (Vec::new(), scene.config.state_dir.join("snapshots"));
    assert!(store.is_dir(), "no store");
    walk(&store, &mut all);
    all
}
