//! Whether a snapshot fits what there is now: looked at by whoever counts on it, and not once for all.

mod scene;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use scene::{PATIENCE, Scene, kinds, only, reap, register, soon, wait_for};
use vhive_api::{Revision, RuntimeName, StartKind};
use vhive_node::{Node, Runtimes};
use vhive_sandbox::sim::Sim;
use vhive_sandbox::{BootError, Deadline, HostLacks, Restore, Runtime, Sandbox, SandboxSpec};

use StartKind::{Boot, Reap, Record};

/// `sim` of one version or another, as a program that is replaced and put back.
#[derive(Debug)]
struct Replaced {
    sims: [Sim; 2],
    newer: Arc<AtomicBool>,
}

impl Replaced {
    fn sim(&self) -> &Sim {
        &self.sims[usize::from(self.newer.load(Ordering::SeqCst))]
    }
}

impl Runtime for Replaced {
    fn name(&self) -> RuntimeName {
        RuntimeName::Sim
    }

    fn check_host(&self) -> Result<(), HostLacks> {
        Ok(())
    }

    fn boot(&self, spec: &SandboxSpec, deadline: Deadline) -> Result<Box<dyn Sandbox>, BootError> {
        self.sim().boot(spec, deadline)
    }

    fn restores(&self) -> Option<&dyn Restore> {
        self.sim().restores()
    }
}

/// A node whose `sim` is of version 1, and of version 2 while the flag is set.
async fn replaceable(scene: &Scene) -> (Node, Arc<AtomicBool>) {
    let newer = Arc::new(AtomicBool::new(false));
    let mut second = scene.sim.clone();
    second.snapshot.version = "2".to_owned();
    let sims = [Sim::new(scene.sim.clone()), Sim::new(second)];
    let runtime = Replaced { sims, newer: Arc::clone(&newer) };
    (scene.node_with(Runtimes::new().with(runtime)).await, newer)
}

#[tokio::test]
async fn a_runtime_that_is_replaced_and_put_back_finds_its_snapshot_again() {
    let scene = Scene::new();
    let (node, newer) = replaceable(&scene).await;
    let key = register(&node, "one", reap);
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
    let taken = only(&node).taken;
    newer.store(true, Ordering::SeqCst);
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    let report = lease.start().expect("cold").clone();
    assert_eq!(report.kind, Boot);
    assert!(report.fallback.is_some_and(|why| why.contains("platform.version is 1, wanted 2")));
    assert!(only(&node).stale.is_some());
    // Put back before the instance has replied: what is there is of use, and nothing takes its place.
    newer.store(false, Ordering::SeqCst);
    drop(lease);
    soon(node.evict(&key)).await.expect("known");
    assert_eq!(kinds(&node, &key, 2).await, [Reap, Reap]);
    let info = only(&node);
    assert_eq!((info.stale, info.taken), (None, taken));
}

#[tokio::test]
async fn a_snapshot_that_fits_no_more_is_noticed_before_a_start_asks() {
    let mut scene = Scene::new();
    let ready = |r: &mut Revision| {
        reap(r);
        r.snapshot_at = vhive_api::SnapshotAt::Ready;
    };
    let node = scene.node().await;
    for name in ["asked", "late"] {
        let key = register(&node, name, reap);
        assert_eq!(kinds(&node, &key, 1).await, [Boot]);
    }
    let early = register(&node, "early", ready);
    wait_for(|| node.snapshots().list().len(), |count| *count == 3).await;
    let archive = {
        let id = node.snapshots().list().into_iter().find(|one| one.revision.name == "late");
        let id = id.expect("listed").id();
        let mut archive = Vec::new();
        node.snapshots().export(&id, &mut archive).expect("written");
        archive
    };
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    drop(node);

    scene.sim.snapshot.version = "2".to_owned();
    let node = scene.node().await;
    let of = |node: &Node, name: &str| {
        let mut all = node.snapshots().list().into_iter();
        all.find(|one| one.revision.name == name)
    };
    // Who is registered is told of at once.
    let late = register(&node, "late", reap);
    wait_for(|| of(&node, "late").expect("listed").stale, Option::is_some).await;
    // Who asks for one gets one that fits.
    let asked = register(&node, "asked", reap);
    let (made, new) = soon(node.create_snapshot(&asked)).await.expect("made");
    assert!(new && made.version == "2" && made.stale.is_none(), "{made:?}");
    assert_eq!(kinds(&node, &asked, 1).await, [Record]);
    // Who wants one ahead of the first request has it then.
    register(&node, "early", ready);
    let version = || of(&node, "early").map(|one| one.version);
    wait_for(version, |version| version.as_deref() == Some("2")).await;
    assert_eq!(kinds(&node, &early, 1).await, [Record]);
    // So is who takes in one that was taken elsewhere, whether its revision is known here or not.
    let stale = || of(&node, "late").and_then(|one| one.stale);
    assert!(stale().is_some(), "others came, and it may fit again");
    for is_known in [true, false] {
        if !is_known {
            soon(node.forget(&late)).await;
        }
        let info = node.import_snapshot(&archive[..]).expect("taken in");
        let field = info.stale.as_ref().map(|stale| stale.field.as_str());
        assert_eq!(field, Some("platform.version"), "known: {is_known}");
        assert_eq!(node.snapshots().collect().removed, 0, "it was put there for somebody");
        assert!(node.snapshots().remove(&info.id()).expect("removed"));
    }
}

#[tokio::test]
async fn one_that_is_damaged_is_not_given_to_who_asks_for_one_ahead() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "one", reap);
    assert_eq!(kinds(&node, &key, 1).await, [Boot]);
    let memory = only(&node).path.join("memory");
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    drop(node);
    let mut bytes = fs::read(&memory).expect("read");
    bytes[100] ^= 1;
    fs::write(&memory, bytes).expect("written");
    let node = scene.node().await;
    let key = register(&node, "one", reap);
    let (made, new) = soon(node.create_snapshot(&key)).await.expect("made");
    assert!(new && made.verified, "{made:?}");
    assert_eq!(kinds(&node, &key, 1).await, [Record]);
}
