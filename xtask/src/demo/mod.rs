//! `make demo`: from nothing to replies out of real microVMs, driven through the `vhive` binary as
//! a user would drive it.
//!
//! The state directory (kernel, images) is kept under `target/demo`, so that a second run takes
//! what is there; the node and everything it made on the host end with the demo.

mod functions;
mod node;
mod report;
mod step;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use vhive_api::{InvocationRecord, StartKind};

use self::functions::Function;
use self::node::Node;
pub(crate) use self::node::{vhive, vhive_binary};
use self::report::Row;
use self::step::Steps;
use crate::shell;

/// How long a function may take from its last request until it has no instance.
const TO_ZERO: Duration = Duration::from_secs(60);

/// Where the demo's node keeps its state.
pub(crate) fn state_dir() -> PathBuf {
    shell::root().join("target/demo/state")
}

pub(crate) fn run() -> anyhow::Result<()> {
    let begun = Instant::now();
    let interrupt = step::catch_signals()?;
    let mut steps = Steps::new(interrupt);
    println!("vHive demo: OCI images in microVMs, without KVM, Kubernetes or a registry\n");
    std::fs::create_dir_all(state_dir())?;

    steps.run("guest kernel", functions::install_kernel)?;
    let functions = functions::all()?;
    for function in &functions {
        let label = format!("image {}", function.name);
        steps.run(&label, |step| function.build_image(step))?;
    }
    let node = steps.run("node", |_| Node::start())?;
    steps.run("deploy", |step| {
        for function in &functions {
            step.say(&function.name);
            node.vhive(&["apply", "-f", &function.service_yaml()])?;
        }
        Ok(())
    })?;

    let mut rows = Vec::new();
    for function in &functions {
        let cold = steps.run(&format!("{}: cold by boot", function.name), |_| {
            invoke(&node, function, StartKind::Boot)
        })?;
        rows.push(cold);
        let warm = steps.run(&format!("{}: warm", function.name), |_| {
            invoke(&node, function, StartKind::Warm)
        })?;
        rows.push(warm);
    }
    let first = functions.iter().find(|f| f.name == "hello").context("there is no hello")?;
    let name = &first.name;
    steps.run(&format!("{name}: greeting by gRPC"), |_| {
        node.vhive(&["apply", "-f", &first.file("service-grpc.yaml")])?;
        let reply = node.vhive(&["invoke", "hello-grpc", "--grpc", "-d", "vHive"])?;
        if !reply.contains("vHive") {
            bail!("the greeting does not name vHive: {reply:?}");
        }
        Ok(())
    })?;
    steps.run(&format!("{name}: scales to zero when idle"), |step| {
        node.wait_for_zero(name, TO_ZERO, step)
    })?;
    let again = steps
        .run(&format!("{name}: comes back from zero"), |_| invoke(&node, first, StartKind::Boot))?;
    rows.push(again);
    let records = state_dir().join("records");
    steps.run("stop the node", |_| node.stop())?;

    println!("\n{}", report::table(&rows));
    report::what_next(begun.elapsed(), &records);
    Ok(())
}

/// Sends the function's first request, checks the reply and the way it was started.
fn invoke(node: &Node, function: &Function, expected: StartKind) -> anyhow::Result<Row> {
    let request = &function.request;
    let mut args = vec!["-o", "json", "invoke", &function.service, "-X", &request.method];
    args.extend(["--path", &request.path]);
    let data;
    if let Some(body) = &request.body {
        data = format!("@{}", function.file(body));
        args.extend(["-H", "content-type: application/json", "-d", &data]);
    }
    let text = node.vhive(&args)?;
    let reply: serde_json::Value = serde_json::from_str(&text)?;
    if reply["status"] != 200 {
        bail!("status {}: {}", reply["status"], reply["body"]);
    }
    function.check(reply["body"].as_str().unwrap_or_default())?;
    let record: Option<InvocationRecord> = serde_json::from_value(reply["record"].clone())?;
    let record = record.context("the node wrote no record of the invocation")?;
    if record.start != Some(expected) {
        bail!("expected a {} start, the record says {:?}", expected.as_str(), record.start);
    }
    let memory = node.memory(&function.service)?;
    Ok(Row { record, memory })
}
