//! The five ways in which one function starts, one after another.

use anyhow::{Context as _, bail};
use serde_json::Value;
use vhive_api::{InvocationRecord, StartKind};
use vhive_tests::{cache, manifest};

use super::functions::Function;
use super::node::Node;
use super::report::Row;
use super::state_dir;
use super::step::Steps;

/// Puts a function's service on the node: its own manifest with a snapshot policy.
pub(crate) fn deploy(node: &Node, function: &Function, policy: &str) -> anyhow::Result<()> {
    deploy_changed(node, function, policy, |_| ())
}

/// Likewise with a change to the manifest.
pub(crate) fn deploy_changed(
    node: &Node,
    function: &Function,
    policy: &str,
    change: impl FnOnce(&mut Value),
) -> anyhow::Result<()> {
    let dir = state_dir().with_file_name("manifests");
    std::fs::create_dir_all(&dir)?;
    // Each start is to be the one that its step names: on a busy host a boot takes longer than the window in
    // which load may double, and then the autoscaler would start a second instance, which answers the next request.
    let annotations =
        [("vhive.dev/snapshot-policy", policy), ("autoscaling.knative.dev/max-scale", "1")];
    let service = &function.service;
    let mut manifest = manifest::variant(&function.service_yaml(), service, &annotations)?;
    change(&mut manifest);
    let path = dir.join(format!("{service}.json"));
    std::fs::write(&path, serde_json::to_vec_pretty(&manifest)?)?;
    // What an earlier run has left would make this the second revision, with another name.
    if node.vhive(&["describe", service]).is_ok() {
        // The next one, under another policy, starts from the same snapshot.
        node.vhive(&["delete", "--keep-snapshots", service])?;
    }
    node.vhive(&["apply", "-f", &path.to_string_lossy()]).map(drop)
}

/// Removes the snapshots that an earlier run has left: the first start shall be by boot.
pub(crate) fn forget_snapshots(node: &Node, functions: &[Function]) -> anyhow::Result<()> {
    let all: Vec<Value> = serde_json::from_str(&node.vhive(&["-o", "json", "snapshot", "ls"])?)?;
    let ours = |revision: &str| {
        let service = revision.rsplit_once('-').map_or(revision, |(service, _)| service);
        functions.iter().any(|f| f.service == service)
    };
    for snapshot in &all {
        let revision = snapshot["revision"]["name"].as_str().unwrap_or_default();
        if ours(revision) {
            let digest = snapshot["digest"].as_str().unwrap_or_default();
            node.vhive(&["snapshot", "rm", digest.trim_start_matches("sha256:")])?;
        }
    }
    Ok(())
}

/// Starts the function in every way. The policy is no part of what a snapshot holds: REAP starts
/// from the very snapshot that was taken behind the first reply.
pub(crate) fn run(steps: &mut Steps, node: &Node, function: &Function) -> anyhow::Result<Vec<Row>> {
    let name = &function.name;
    let mut rows = Vec::new();
    rows.push(steps.run(&format!("{name}: boot"), |_| invoke(node, function, StartKind::Boot))?);
    rows.push(
        steps.run(&format!("{name}: snapshot"), |_| cold(node, function, StartKind::Snapshot))?,
    );
    rows.push(steps.run(&format!("{name}: REAP records"), |_| {
        node.vhive(&["evict", &function.service])?;
        deploy(node, function, "reap")?;
        cold(node, function, StartKind::Record)
    })?);
    rows.push(
        steps
            .run(&format!("{name}: REAP prefetches"), |_| cold(node, function, StartKind::Reap))?,
    );
    // Last, because behind a boot the instance is withheld for its snapshot.
    rows.push(steps.run(&format!("{name}: warm"), |_| invoke(node, function, StartKind::Warm))?);
    Ok(rows)
}

/// Makes the next invocation a cold start that finds no page of a snapshot in memory.
pub(crate) fn cold(node: &Node, function: &Function, expected: StartKind) -> anyhow::Result<Row> {
    // Returns when what is done behind the last reply is done: a snapshot taken, pages recorded.
    node.vhive(&["evict", &function.service])?;
    let snapshots = state_dir().join("snapshots");
    cache::drop_files(&snapshots).with_context(|| format!("{}", snapshots.display()))?;
    invoke(node, function, expected)
}

/// Sends the function's first request, checks the reply and the way it was started.
pub(crate) fn invoke(node: &Node, function: &Function, expected: StartKind) -> anyhow::Result<Row> {
    let (request, service) = (&function.request, &function.service);
    let mut args = vec!["-o", "json", "invoke", service, "-X", &request.method];
    args.extend(["--path", &request.path]);
    let data;
    if let Some(body) = &request.body {
        data = format!("@{}", function.file(body));
        args.extend(["-H", "content-type: application/json", "-d", &data]);
    }
    let text = node.vhive(&args)?;
    let reply: Value = serde_json::from_str(&text)?;
    if reply["status"] != 200 {
        bail!("status {}: {}", reply["status"], reply["body"]);
    }
    function.check(reply["body"].as_str().unwrap_or_default())?;
    let record: Option<InvocationRecord> = serde_json::from_value(reply["record"].clone())?;
    let record = record.context("the node wrote no record of the invocation")?;
    if record.start != Some(expected) {
        let how = record.start.map_or("nothing", StartKind::as_str);
        let why = record.fallback.as_deref().unwrap_or("the record gives no reason");
        bail!(
            "expected a {} start, was served by {how}: {why}\nconsole:\n{}",
            expected.as_str(),
            node.console(service)
        );
    }
    let memory = node.memory(service)?;
    Ok(Row { function: function.name.clone(), start: expected, record, memory })
}
