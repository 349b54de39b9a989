//! The same functions in the other sandboxes that this host offers, for comparison.

use anyhow::Context as _;
use serde_json::{Value, json};
use vhive_api::{Phase, StartKind};

use super::functions::Function;
use super::node::Node;
use super::report::Row;
use super::starts;
use super::step::Steps;

/// What a function took in one runtime, in milliseconds.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    function: String,
    runtime: String,
    boot: f64,
    /// None where the runtime restores nothing.
    snapshot: Option<f64>,
    warm: f64,
}

/// The containers' runtimes that this host offers.
pub(crate) fn offered(node: &Node) -> anyhow::Result<Vec<String>> {
    let doctor: Value = serde_json::from_str(&node.vhive(&["-o", "json", "doctor"])?)?;
    let lines = doctor["runtimes"].as_array().context("doctor lists no runtimes")?;
    let containers = ["runsc", "runc", "crun"];
    let names = lines.iter().filter(|line| line["answer"] == "yes");
    let names = names.filter_map(|line| line["name"].as_str());
    Ok(names.filter(|name| containers.contains(name)).map(str::to_owned).collect())
}

/// Starts every function in every one of them; the replies are checked like all others.
pub(crate) fn run(
    steps: &mut Steps,
    node: &Node,
    functions: &[Function],
) -> anyhow::Result<Vec<Elsewhere>> {
    let mut all = Vec::new();
    for runtime in offered(node)? {
        let label = format!("{runtime}: the same functions");
        steps.run(&label, |step| {
            for function in functions {
                step.say(&function.name);
                all.push(measure(node, function, &runtime)?);
            }
            Ok(())
        })?;
    }
    Ok(all)
}

fn measure(node: &Node, function: &Function, runtime: &str) -> anyhow::Result<Elsewhere> {
    let restores = runtime == "runsc";
    let there = function.called(&format!("{}-{runtime}", function.service));
    let change = |manifest: &mut Value| {
        manifest["spec"]["template"]["spec"]["runtimeClassName"] = json!(runtime);
    };
    starts::deploy_changed(node, &there, if restores { "vanilla" } else { "off" }, change)?;
    let snapshots = [there];
    starts::forget_snapshots(node, &snapshots)?;
    let [there] = snapshots;
    let boot = millis(&starts::invoke(node, &there, StartKind::Boot)?);
    let snapshot = if restores {
        Some(millis(&starts::cold(node, &there, StartKind::Snapshot)?))
    } else {
        None
    };
    let warm = millis(&starts::invoke(node, &there, StartKind::Warm)?);
    node.vhive(&["delete", &there.service])?;
    let (function, runtime) = (function.name.clone(), runtime.to_owned());
    Ok(Elsewhere { function, runtime, boot, snapshot, warm })
}

fn millis(row: &Row) -> f64 {
    let total = row.record.phases.iter().find(|span| span.phase == Phase::Total);
    total.map_or(f64::NAN, |span| span.length_us as f64 / 1e3)
}

/// One row per function and runtime.
pub(crate) fn table(all: &[Elsewhere]) -> String {
    let mut text = format!(
        "{:<13} {:<8} {:>8} {:>9} {:>7}",
        "function", "runtime", "boot", "snapshot", "warm"
    );
    for Elsewhere { function, runtime, boot, snapshot, warm } in all {
        let snapshot = snapshot.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        text.push_str(&format!(
            "\n{function:<13} {runtime:<8} {boot:>8.1} {snapshot:>9} {warm:>7.1}"
        ));
    }
    text.push_str(
        "\n(milliseconds from request to reply, one invocation each, every reply the same as from a \
         microVM;\n boot: the container is made and the function started in it; containers run on the \
         host's own processor,\n the microVMs above on an emulated one unless the doctor says kvm.)",
    );
    text
}
