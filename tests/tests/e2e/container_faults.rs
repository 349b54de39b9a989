//! Nodes that are killed while a container of theirs is saved, by gVisor or by CRIU, or started from what
//! was saved: nothing is left, nothing half-made is used, and the next node's start works.

use std::path::{Path, PathBuf};
use std::thread;

use serde_json::Value;
use vhive_tests::node::{TestNode, vhive};

use crate::microvm::{invoke_cold, tag, traces};
use crate::runtimes::{offered, on};
use crate::scene::{Dir, apply, invoke};
use crate::snapshot_faults::{below, is_draft, named};
use crate::watch::{Watch, What};

/// Failures are tried again at once, and no container is there but those that are asked for.
const CONFIG: &str = "[node]\nback_off_first = \"1ms\"\n\
                      [node.snapshots]\nstandby = 0\n\
                      [serving.autoscale]\nstable_window = \"60s\"\n";

type Step = (&'static str, fn(&Path, What) -> bool);

fn in_image(path: &Path) -> bool {
    path.parent().is_some_and(|dir| named(dir, "image"))
}

/// The steps of taking a snapshot, by the file that each makes or writes.
const TAKING: &[Step] = &[
    ("a draft is begun", |path, what| what == What::Made && is_draft(path)),
    ("the first image is made", |path, what| what == What::Made && in_image(path)),
    ("an image is written", |path, what| what == What::Written && in_image(path)),
    ("the manifest is made", |path, what| what == What::Made && named(path, "manifest.json")),
    ("it is published", |path, what| {
        what == What::Made && (named(path, "runsc") || named(path, "runc"))
    }),
];

fn listed(node: &TestNode) -> usize {
    let all = node.json(&["snapshot", "ls"]).expect("listed");
    all.as_array().map_or(0, Vec::len)
}

/// Kills the node; the next one finds nothing half-made.
fn next_node(node: TestNode, dir: &Dir, step: &str) -> TestNode {
    node.kill().expect("killed");
    let snapshots = dir.path().join("state/snapshots");
    let whole = |path: &&PathBuf| named(path, "manifest.json") && !is_draft(path);
    let whole = below(&snapshots).iter().filter(whole).count();
    let node = TestNode::start(dir.path(), CONFIG).expect("the node starts again");
    let left = below(&snapshots);
    assert!(!left.iter().any(|path| is_draft(path)), "{step}: {left:?}");
    assert_eq!(listed(&node), whole, "{step}: {left:?}");
    node
}

#[test]
fn e2e_a_node_killed_at_any_step_of_a_containers_snapshot_or_start_is_followed_by_one_that_serves()
{
    let test = "e2e_a_node_killed_at_any_step_of_a_containers_snapshot_or_start_is_followed_by_one_that_serves";
    let dir = Dir::new("container-steps");
    let offered = offered(test, &dir);
    let mut node = TestNode::start(dir.path(), CONFIG).expect("the node starts");
    for runtime in ["runsc", "runc"].into_iter().filter(|name| offered.iter().any(|n| n == name)) {
        let annotation = "autoscaling.knative.dev/window";
        let with = format!("vhive.dev/snapshot-policy: vanilla\n        {annotation}");
        apply(&node, &dir, &on(runtime, runtime, "").replace(annotation, &with));
        assert_eq!(invoke(&node, runtime)["record"]["start"], "boot");
        let restored = invoke_cold(&node, runtime);
        if restored["start"] != "snapshot" {
            eprintln!("SKIP {test} on {runtime}: {}", restored["fallback"]);
            continue;
        }
        node = killed_at_each_step(node, &dir, runtime);
        node.ok(&["evict", runtime]).expect("evicted");
        node.ok(&["snapshot", "rm", runtime]).expect("removed");
    }
    let tag = tag(&dir);
    assert!(node.stop().expect("ends").success());
    assert_eq!(traces(&tag), [""; 0]);
}

fn killed_at_each_step(mut node: TestNode, dir: &Dir, runtime: &str) -> TestNode {
    let snapshots = dir.path().join("state/snapshots");
    for (step, happens) in TAKING {
        node.ok(&["evict", runtime]).expect("evicted");
        if listed(&node) > 0 {
            node.ok(&["snapshot", "rm", runtime]).expect("removed");
        }
        let mut watch = Watch::below(&snapshots);
        let reply = invoke(&node, runtime);
        let came = (&reply["status"], &reply["record"]["start"]);
        assert_eq!(came, (&200.into(), &"boot".into()), "before {step}: {reply}");
        watch.until(step, happens);
        node = next_node(node, dir, step);
    }
    assert_eq!(listed(&node), 1, "it needs its node no more");
    let loads = |path: &Path, what: What| what == What::Read && named(path, "vmstate");
    for step in ["the state is read", "the state is read again"] {
        let mut watch = Watch::below(&snapshots);
        let (place, name) = (dir.path().to_owned(), runtime.to_owned());
        // The node may die before it replies.
        let request = thread::spawn(move || vhive(&place, &["invoke", &name]));
        watch.until(step, loads);
        node = next_node(node, dir, step);
        drop(request.join().expect("no panic").expect("vhive runs"));
        assert_eq!(listed(&node), 1, "{step}");
    }
    // The first start after that may be before the snapshot has been read.
    let first = invoke(&node, runtime);
    assert_eq!(first["status"], 200, "{first}");
    let next = invoke_cold(&node, runtime);
    assert_eq!((&next["start"], &next["fallback"]), (&"snapshot".into(), &Value::Null), "{next}");
    node
}
