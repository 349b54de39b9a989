//! REAP by hand: the four ways in which a function is started, driven through the command line of a node
//! that runs: boot (the snapshot is taken behind its reply), record, reap, and warm. Prints their phases
//! side by side in milliseconds, and what came of the guest's memory how.
//!
//! `vhive node &`, once `vhive image build functions/hello`, then
//! `cargo run --package vhive --example reap_by_hand`, with the node's `VHIVE_STATE_DIR`. The `vhive` beside
//! this example is used, else the one on the path.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use vhive_api::{InvocationRecord, Phase};

/// The policy is all that differs from a service without snapshots.
const SERVICE: &str = r"
apiVersion: serving.knative.dev/v1
kind: Service
metadata: { name: reap-by-hand }
spec:
  template:
    metadata: { annotations: { vhive.dev/snapshot-policy: reap } }
    spec:
      runtimeClassName: qemu
      containers:
        - image: dev.local/hello:latest
          resources: { limits: { memory: 128Mi } }
";

/// Runs `vhive` with `input`; an error has its words.
fn vhive(args: &[&str], input: &str) -> anyhow::Result<Vec<u8>> {
    let beside = std::env::current_exe()?.ancestors().nth(2).map(|dir| dir.join("vhive"));
    let program = beside.filter(|path| path.is_file()).unwrap_or_else(|| "vhive".into());
    let mut command = Command::new(&program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
    child.stdin.take().context("piped")?.write_all(input.as_bytes())?;
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("vhive {}: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(done.stdout)
}

fn invoke() -> anyhow::Result<InvocationRecord> {
    let reply = vhive(&["--output", "json", "invoke", "reap-by-hand"], "")?;
    let mut reply: serde_json::Value = serde_json::from_slice(&reply)?;
    Ok(serde_json::from_value(reply["record"].take())?)
}

/// What the next request waits for when nothing runs. Evicting waits for what is done behind a reply:
/// the snapshot of the first one, the working set of the second.
fn invoke_cold() -> anyhow::Result<InvocationRecord> {
    vhive(&["evict", "reap-by-hand"], "")?;
    invoke()
}

fn milliseconds(record: &InvocationRecord, phase: Phase) -> String {
    let span = record.phases.iter().find(|span| span.phase == phase);
    span.map_or(String::new(), |span| format!("{:.1}", f64::from(micros(span.length_us)) / 1e3))
}

fn micros(length: u64) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn main() -> anyhow::Result<()> {
    vhive(&["apply", "-f", "-"], SERVICE)?;
    let records = [invoke_cold()?, invoke_cold()?, invoke_cold()?, invoke()?];
    vhive(&["delete", "reap-by-hand"], "")?;
    let row = |name: &str, cell: &dyn Fn(&InvocationRecord) -> String| {
        let cells = records.each_ref().map(|record| format!("{:>10}", cell(record)));
        println!("{name:<16}{}", cells.concat());
    };
    row("start", &|record| record.start.map_or("?", |start| start.as_str()).to_owned());
    for phase in Phase::ALL {
        row(phase.as_str(), &|record| milliseconds(record, phase));
    }
    let memory = |count: fn(&vhive_api::MemoryFigures) -> u64| {
        move |record: &InvocationRecord| {
            record.memory.as_ref().map_or(String::new(), |memory| count(memory).to_string())
        }
    };
    row("faults", &memory(|memory| memory.faults.unwrap_or(0)));
    row("pages prefetched", &memory(|memory| memory.prefetched_pages));
    for reason in records.iter().filter_map(|record| record.fallback.as_ref()) {
        println!("not as wanted: {reason}");
    }
    Ok(())
}
