//! When memory is recorded, and when not; and what a start says that cannot be served so.

mod scene;

use scene::{Scene, invoke, kinds, only, reap, register};
use vhive_api::{MemoryMode, PrefetchPolicy, Revision, SnapshotPolicy, StartKind};

use StartKind::{Boot, Reap, Record, Snapshot};

fn mincore(revision: &mut Revision) {
    reap(revision);
    revision.prefetch = PrefetchPolicy::Mincore;
}

#[tokio::test]
async fn a_mode_that_is_not_offered_is_named_with_the_reason_and_the_fix() {
    let mut scene = Scene::new();
    scene.sim.snapshot.modes = vec![MemoryMode::File];
    let node = scene.node().await;
    let lazy = |r: &mut Revision| r.snapshot = SnapshotPolicy::Lazy;
    type Policy = fn(&mut Revision);
    let cases: [(&str, Policy, &str); 3] =
        [("reap", reap, "record"), ("lazy", lazy, "lazy"), ("mincore", mincore, "prefetch")];
    for (name, policy, mode) in cases {
        let key = register(&node, name, policy);
        assert_eq!(kinds(&node, &key, 1).await, [Boot]);
        for _ in 0..2 {
            let (report, _) = invoke(&node, &key).await;
            let wanted = format!(
                "memory mode {mode} is not offered here: sim.snapshot.modes has no {mode}; add it \
                 there"
            );
            assert_eq!((report.kind, report.fallback), (Snapshot, Some(wanted)), "{name}");
        }
    }
}

#[tokio::test]
async fn what_nothing_here_could_prefetch_is_not_recorded() {
    let mut scene = Scene::new();
    scene.sim.snapshot.modes = vec![MemoryMode::File];
    let node = scene.node().await;
    let key = register(&node, "mapped", mincore);
    assert_eq!(kinds(&node, &key, 4).await, [Boot, Snapshot, Snapshot, Snapshot]);
    assert!(only(&node).working_sets.is_empty(), "{:?}", only(&node));
}

#[tokio::test]
async fn who_is_served_by_windows_records_no_longer_than_to_its_reply() {
    let scene = Scene::new();
    let node = scene.node().await;
    let key = register(&node, "around", |r| {
        reap(r);
        r.prefetch = PrefetchPolicy::FaultAround;
    });
    assert_eq!(kinds(&node, &key, 3).await, [Boot, Reap, Reap]);
    assert!(only(&node).working_sets.is_empty(), "nobody needs one");
    let ended = "vhive_recordings_total{runtime=\"sim\",outcome=\"unused\"} 2";
    assert!(node.metrics().contains(ended), "{}", node.metrics());
}

#[tokio::test]
async fn what_has_missed_for_long_is_recorded_afresh() {
    let mut scene = Scene::new();
    scene.sim.snapshot.missed_pages = 40;
    let node = scene.node().await;
    let key = register(&node, "changed", reap);
    let first = [Boot, Record, Reap, Record, Reap, Record, Reap, Record];
    assert_eq!(kinds(&node, &key, 8).await, first);
    assert_eq!(kinds(&node, &key, 50).await, [Reap; 50]);
    assert!(only(&node).working_sets.is_empty(), "all have been given up");
    assert_eq!(kinds(&node, &key, 3).await, [Record, Reap, Record]);
    assert_eq!(only(&node).working_sets, [1, 2]);
}
