//! A process that may open nothing more. A file of its own: the limit is the whole process's.

mod scene;

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scene::{PATIENCE, Scene, kinds, metric, only, reap, register, soon};
use vhive_api::{RevisionKey, Span, StartKind};
use vhive_node::{AcquireError, Lease, Node};

use StartKind::{Boot, Reap, Record};

/// Asks until a start has been tried.
async fn past_back_off(node: &Node, key: &RevisionKey) -> Result<Lease, AcquireError> {
    let began = Instant::now();
    loop {
        match soon(node.acquire(key)).await {
            Err(AcquireError::BackingOff { .. }) if began.elapsed() < PATIENCE => {
                tokio::task::yield_now().await;
            }
            tried => return tried,
        }
    }
}

#[tokio::test]
async fn a_snapshot_outlives_a_want_of_open_files() {
    let mut scene = Scene::new();
    scene.config.back_off_first = Span(Duration::from_millis(1));
    let node = scene.node().await;
    let key = register(&node, "one", reap);
    assert_eq!(kinds(&node, &key, 2).await, [Boot, Record]);
    let usual = getrlimit(Resource::Nofile);
    for _ in 0..4 {
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..usual }).expect("lowered");
        let refused = past_back_off(&node, &key).await;
        setrlimit(Resource::Nofile, usual).expect("raised");
        assert!(refused.is_err(), "not even a socket could be made");
    }
    assert_eq!(
        (only(&node).working_sets, metric(&node, "vhive_snapshots_retired_total")),
        (vec![1], 0)
    );
    let lease = past_back_off(&node, &key).await.expect("a slot");
    assert_eq!(lease.start().expect("cold").kind, Reap);
}
