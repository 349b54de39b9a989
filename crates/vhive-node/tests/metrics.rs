//! What the node measures is what the page says.

mod scene;

use std::collections::BTreeSet;
use std::path::Path;

use scene::{Scene, env, register, soon};

#[tokio::test]
async fn the_registry_equals_the_table_of_the_page() {
    let mut scene = Scene::new();
    scene.sim.snapshot.missed_pages = 40;
    let node = scene.node().await;
    let good = register(&node, "good", |_| ());
    let bad = register(&node, "bad", |r| env(r, "VHIVE_SIM_FAULT", "fail:boot"));
    drop(soon(node.acquire(&good)).await.expect("a slot"));
    assert!(soon(node.acquire(&bad)).await.is_err());

    // Counters with labels are there once they have counted: one of each kind.
    let saved = register(&node, "saved", |r| r.snapshot = vhive_api::SnapshotPolicy::Reap);
    for _ in 0..3 {
        soon(node.acquire(&saved)).await.expect("a slot").replied();
        soon(node.evict(&saved)).await.expect("known");
    }
    let refused = register(&node, "refused", |r| {
        r.snapshot = vhive_api::SnapshotPolicy::Reap;
        env(r, "VHIVE_SIM_FAULT", "refuse-state");
    });
    for _ in 0..2 {
        soon(node.acquire(&refused)).await.expect("a slot").replied();
        soon(node.evict(&refused)).await.expect("known");
    }

    let text = node.metrics();
    let told: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.into() })
        .collect();
    let page =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/design/records-and-metrics.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let section = page.split("\n## Metrics of the node").nth(1).expect("the section");
    let section = section.split("\n## ").next().expect("its text");
    let listed: BTreeSet<String> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .collect();
    assert_eq!(told, listed);

    let one = |line: &str| assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
    one("vhive_starts_total{runtime=\"sim\",kind=\"boot\",outcome=\"ready\"} 4");
    one("vhive_starts_total{runtime=\"sim\",kind=\"boot\",outcome=\"failed\"} 1");
    one("vhive_start_phase_seconds_count{runtime=\"sim\",phase=\"start\"} 6");
    one("vhive_start_phase_seconds_count{runtime=\"sim\",phase=\"kernel_boot\"} 4");
    one("vhive_instances{namespace=\"default\",revision=\"good\",state=\"ready\"} 1");
    one("vhive_instances{namespace=\"default\",revision=\"bad\",state=\"ready\"} 0");
    one("vhive_starts_total{runtime=\"sim\",kind=\"reap\",outcome=\"ready\"} 1");
    one("vhive_start_phase_seconds_count{runtime=\"sim\",phase=\"restore\"} 2");
    one("vhive_restore_fallback_total{runtime=\"sim\"} 1");
    one("vhive_prefetch_missed_total{runtime=\"sim\"} 1");
    one("vhive_node_instances 1");
}
