//! A sound snapshot outlives whatever the host lacks, and what cannot be read now is there later.

mod scene;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use scene::{
    PATIENCE, Scene, env, files, invoke, kinds, metric, only, reap, register, soon, wait_for,
};
use vhive_api::{Bytes, SnapshotPolicy, Span, StartKind};
use vhive_node::Node;
use vhive_sandbox::Deadline;
use vhive_sandbox::snapshot::{MANIFEST, MEMORY, page_digest};

use StartKind::{Boot, Reap, Record, Snapshot};

fn retired(node: &Node) -> u64 {
    metric(node, "vhive_snapshots_retired_total")
}

#[tokio::test]
async fn of_many_restores_that_fail_at_once_one_counts() {
    let mut scene = Scene::new();
    scene.config.snapshots.restore_deadline = Span(Duration::from_millis(500));
    scene.config.start_threads = 16;
    let node = scene.node().await;
    let key = register(&node, "many", |revision| {
        reap(revision);
        env(revision, "VHIVE_SIM_FAULT", "hang:restore");
    });
    assert_eq!(kinds(&node, &key, 1).await, [Boot]);
    let starts = (0..16).map(|_| {
        let (node, key) = (node.clone(), key.clone());
        tokio::spawn(async move { node.acquire(&key).await })
    });
    let mut held = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        let lease = soon(start).await.expect("no panic").expect("a slot");
        let start = lease.start().expect("cold").clone();
        assert_eq!((start.kind, start.fallback.is_some()), (Boot, true));
        held.push(lease);
    }
    drop(held);
    assert_eq!((node.snapshots().list().len(), retired(&node)), (1, 0));
    // One after the other, they do.
    soon(node.evict(&key)).await.expect("known");
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Boot]);
    assert_eq!(retired(&node), 1);
}

#[tokio::test]
async fn a_host_on_which_booting_takes_as_long_is_not_the_snapshots_fault() {
    let mut scene = Scene::new();
    scene.config.snapshots.restore_deadline = Span(Duration::from_millis(30));
    let node = scene.node().await;
    let key = register(&node, "slow", |revision| {
        reap(revision);
        env(revision, "VHIVE_SIM_SPAWN_MS", "60");
    });
    assert_eq!(kinds(&node, &key, 1).await, [Boot]);
    for _ in 0..11 {
        let (report, _) = invoke(&node, &key).await;
        assert_eq!((report.kind, report.fallback.is_some()), (Boot, true));
    }
    assert_eq!(retired(&node), 0);
    // But not for ever: what always costs the same again is not worth trying.
    invoke(&node, &key).await;
    assert_eq!(retired(&node), 1);
}

/// Guest memory that takes a while to read.
const LARGE: u64 = 256 << 20;

fn large(revision: &mut vhive_api::Revision) {
    reap(revision);
    revision.memory = Bytes(LARGE);
}

/// Leaves a snapshot of a guest with that much memory, none of it zero.
async fn leave_large(scene: &Scene) {
    let node = scene.node().await;
    let key = register(&node, "large", large);
    assert_eq!(kinds(&node, &key, 1).await, [Boot]);
    let dir = only(&node).path;
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    let memory = fs::File::options().read(true).write(true).open(dir.join(MEMORY)).expect("opened");
    let piece = vec![0x5A; 1 << 20];
    for at in (0..LARGE).step_by(piece.len()) {
        memory.write_all_at(&piece, at).expect("written");
    }
    let text = fs::read(dir.join(MANIFEST)).expect("read");
    let mut manifest: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let digest = page_digest(&memory).expect("read").to_string();
    manifest["files"][MEMORY]["digest"] = digest.into();
    fs::write(dir.join(MANIFEST), manifest.to_string()).expect("written");
}

#[tokio::test]
async fn no_start_waits_until_a_large_snapshot_has_been_read() {
    let mut scene = Scene::new();
    leave_large(&scene).await;
    scene.config.snapshots.restore_deadline = Span(Duration::from_millis(10));
    let node = scene.node().await;
    let key = register(&node, "large", large);
    let (report, _) = invoke(&node, &key).await;
    assert_eq!(report.kind, Boot);
    assert_eq!(report.fallback.as_deref(), Some("snapshot not yet verified"));
    assert_eq!(report.attempts, 1);
    // Somebody reads it all the same.
    wait_for(|| only(&node).verified, |verified| *verified).await;
    let (report, _) = invoke(&node, &key).await;
    assert_ne!(report.fallback.as_deref(), Some("snapshot not yet verified"));
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
}

#[tokio::test]
async fn a_manifest_that_this_version_does_not_know_is_left_alone() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "one", reap);
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
    let dir = only(&node).path;
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    let before = files(&scene);
    let good = fs::read(dir.join(MANIFEST)).expect("read");
    let mut manifest: serde_json::Value = serde_json::from_slice(&good).expect("JSON");
    manifest["surprise"] = 1.into();
    fs::write(dir.join(MANIFEST), manifest.to_string()).expect("written");
    let node = scene.node().await;
    assert_eq!((node.snapshots().list().len(), retired(&node)), (0, 0));
    let key = register(&node, "one", reap);
    assert_eq!(kinds(&node, &key, 1).await, [Boot], "it serves without");
    assert_eq!(files(&scene), before, "nothing is put in its place");
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
    // The version that knows it finds it as it was.
    fs::write(dir.join(MANIFEST), good).expect("written");
    let node = scene.node().await;
    register(&node, "one", reap);
    wait_for(|| only(&node).verified, |verified| *verified).await;
    assert_eq!(kinds(&node, &key, 1).await, [Reap]);
}

#[tokio::test]
async fn an_instance_that_lives_on_is_snapshotted_again_when_its_snapshot_is_gone() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "one", |revision| revision.snapshot = SnapshotPolicy::Vanilla);
    let reply = || async { soon(node.acquire(&key)).await.expect("a slot").replied() };
    reply().await;
    let first = wait_for(|| node.snapshots().list(), |all| all.len() == 1).await.remove(0);
    reply().await;
    assert!(node.snapshots().remove(&first.id()).expect("removed"));
    reply().await;
    let second = wait_for(|| node.snapshots().list(), |all| all.len() == 1).await.remove(0);
    assert_ne!(second.taken, first.taken);
    assert_eq!(node.counts(&key).expect("known").ready, 1, "of the same instance");
    soon(node.evict(&key)).await.expect("known");
    assert_eq!(kinds(&node, &key, 1).await, [Snapshot]);
}

#[tokio::test]
async fn a_snapshot_that_could_not_be_taken_is_tried_again_of_the_same_instance() {
    let mut scene = Scene::new();
    scene.config.back_off_first = Span(Duration::from_millis(1));
    scene.config.back_off_most = Span(Duration::from_millis(1));
    let node = scene.node().await;
    let key = register(&node, "one", |revision| revision.snapshot = SnapshotPolicy::Vanilla);
    // Where its directory would be.
    let place = scene.config.state_dir.join("snapshots");
    fs::remove_dir(&place).expect("removed");
    fs::write(&place, "in the way").expect("written");
    let reply = || async { soon(node.acquire(&key)).await.expect("a slot").replied() };
    reply().await;
    let failed = || node.metrics().contains("outcome=\"failed\"} ");
    wait_for(failed, |failed| *failed).await;
    assert!(node.snapshots().list().is_empty());
    fs::remove_file(&place).expect("removed");
    let began = Instant::now();
    while node.snapshots().list().is_empty() {
        assert!(began.elapsed() < PATIENCE, "it is not tried again");
        reply().await;
    }
    assert_eq!(node.counts(&key).expect("known").ready, 1, "of the same instance");
}

#[tokio::test]
async fn others_start_while_one_waits_for_the_reader_of_its_snapshot() {
    let mut scene = Scene::new();
    leave_large(&scene).await;
    // One start at a time; and the one that waits may do so for long.
    scene.config.start_threads = 1;
    scene.config.snapshots.restore_deadline = Span(PATIENCE);
    scene.config.start_deadline = Span(4 * PATIENCE);
    let node = scene.node().await;
    let key = register(&node, "large", large);
    let waits = tokio::spawn({
        let (node, key) = (node.clone(), key.clone());
        async move { node.acquire(&key).await }
    });
    wait_for(|| node.status(&key).map_or(0, |status| status.starting), |starting| *starting == 1)
        .await;
    let other = register(&node, "other", |_| ());
    let (report, _) = invoke(&node, &other).await;
    assert_eq!(report.kind, Boot);
    let lease = soon(waits).await.expect("no panic").expect("a slot");
    let large = lease.start().expect("cold").clone();
    assert_eq!((large.kind, large.fallback), (Record, None), "it has waited for good");
    let (turn, whole) = (report.waited, large.length);
    assert!(turn < whole / 4, "it has waited {turn:?} for a turn, of the {whole:?} of the other");
    drop(lease);
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
}

#[tokio::test]
async fn a_clone_that_never_replies_well_keeps_no_snapshot_in_its_place() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "one", reap);
    assert_eq!(kinds(&node, &key, 1).await, [Boot]);
    let info = only(&node);
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    assert_eq!(lease.start().expect("cold").kind, Record);
    // So it is given back behind a reply of 500 and more.
    drop(lease);
    wait_for(|| only(&node).held, |held| !*held).await;
    assert!(node.snapshots().remove(&info.id()).expect("removed"));
    wait_for(|| info.path.exists(), |exists| !*exists).await;
    // It lives on, and its recording is nobody's any more, whatever it replies now.
    let lease = soon(node.acquire(&key)).await.expect("a slot");
    assert!(lease.start().is_none(), "warm");
    lease.replied();
    soon(node.evict(&key)).await.expect("known");
    assert!(files(&scene).is_empty(), "{:?}", files(&scene));
    let discarded = "vhive_recordings_total{runtime=\"sim\",outcome=\"discarded\"}";
    assert_eq!(metric(&node, discarded), 1);
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
    soon(node.shutdown(Deadline::after(PATIENCE))).await.expect("clean");
}
