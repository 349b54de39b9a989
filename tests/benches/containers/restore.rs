//! gVisor's restore against its cold start, through a node.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use vhive_api::{InvocationRecord, Phase, StartKind};
use vhive_tests::bench::{Bound, Row, median, spread};
use vhive_tests::manifest;
use vhive_tests::node::TestNode;

pub(crate) const ID: &str = "gvisor-restore";
pub(crate) const BOUND: Bound = Bound::AtLeast { must: 2.0, goal: 3.0 };

/// Imports an imaging library and decodes its pictures before it listens.
const FUNCTION: &str = "image_rotate";
const ROUNDS: usize = 9;

/// Interleaved; the page cache stays warm for both.
pub(crate) fn measure() -> Result<Row> {
    ensure!(rustix::process::geteuid().is_root(), "root is missing");
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/demo/state/images");
    ensure!(made.is_dir(), "no {}: `make demo` makes it", made.display());
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let state = dir.path().join("state");
    fs::create_dir(&state)?;
    symlink(made.canonicalize()?, state.join("images"))?;
    let node = TestNode::start(dir.path(), "")?;
    for (name, policy) in [("cold", "off"), ("restored", "vanilla")] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions");
        let path = path.join(FUNCTION).join("service.yaml");
        let mut service = manifest::variant(&path, name, &[("vhive.dev/snapshot-policy", policy)])?;
        service["spec"]["template"]["spec"]["runtimeClassName"] = json!("runsc");
        let file = dir.path().join("service.json");
        fs::write(&file, serde_json::to_vec(&service)?)?;
        node.ok(&["apply", "-f", &file.to_string_lossy()])?;
    }
    // Behind this boot the snapshot is taken.
    start(&node, "restored", StartKind::Boot)?;
    let (mut cold, mut restored) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let slow = start(&node, "cold", StartKind::Boot)?;
        let fast = start(&node, "restored", StartKind::Snapshot)?;
        if round > 0 {
            cold.push(slow);
            restored.push(fast);
        }
    }
    let note = format!(
        "{FUNCTION}, request to reply: restored {}, cold {}",
        spread(&restored, "ms"),
        spread(&cold, "ms")
    );
    // The bound is on how many times faster it is.
    let times = median(&cold) / median(&restored);
    let peer = format!("cold start {:.0} ms", median(&cold));
    let unit = "× faster";
    Ok(Row::new(ID, unit).value(BOUND, times).peer(peer).note(note))
}

/// The total of the next start, in milliseconds.
fn start(node: &TestNode, service: &str, kind: StartKind) -> Result<f64> {
    node.ok(&["evict", service])?;
    let reply: Value = node.json(&["invoke", service])?;
    ensure!(reply["status"] == 200, "{service}: {reply}");
    let record: InvocationRecord = serde_json::from_value(reply["record"].clone())?;
    ensure!(record.start == Some(kind), "{service}: {:?}, {:?}", record.start, record.fallback);
    let total = record.phases.iter().find(|span| span.phase == Phase::Total);
    Ok(total.context("a record without a total")?.length_us as f64 / 1e3)
}
