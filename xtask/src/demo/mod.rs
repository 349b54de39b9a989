//! `make demo`: from nothing to boot, snapshot, REAP and warm starts of real microVMs side by side,
//! driven through the `vhive` binary as a user would drive it.
//!
//! The state directory (kernel, images) is kept under `target/demo`, so that a second run takes
//! what is there, snapshots excepted: each run takes its own; the node and everything it made on the host end with the demo.

mod functions;
mod node;
mod report;
mod runtimes;
mod starts;
mod step;
mod study;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use vhive_api::StartKind;

use self::node::Node;
pub(crate) use self::node::{vhive, vhive_binary};
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
            starts::deploy(&node, function, "vanilla")?;
        }
        starts::forget_snapshots(&node, &functions)
    })?;

    let mut rows = Vec::new();
    for function in &functions {
        rows.extend(starts::run(&mut steps, &node, function)?);
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
    let elsewhere = runtimes::run(&mut steps, &node, &functions)?;
    let found = steps.run("study: hello and pyaes", study::run)?;
    steps.run(&format!("{name}: scales to zero when idle"), |step| {
        node.wait_for_zero(&first.service, TO_ZERO, step)
    })?;
    steps.run(&format!("{name}: comes back from zero by REAP"), |_| {
        starts::invoke(&node, first, StartKind::Reap)
    })?;
    let records = state_dir().join("records");
    steps.run("stop the node", |_| node.stop())?;

    println!("\n{}\n\n{}", report::phases(&rows), report::memory(&rows));
    println!("\n{}", report::side_by_side(&rows));
    if !elsewhere.is_empty() {
        println!("\n{}", runtimes::table(&elsewhere));
    }
    println!("\nthe study of hello and pyaes, {} times each:\n{found}", study::REPETITIONS);
    report::what_next(begun.elapsed(), &records);
    Ok(())
}
