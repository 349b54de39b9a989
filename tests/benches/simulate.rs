//! The policy simulator: `sim-invocations` (how many invocations one CPU simulates in a second) and
//! `sim-vs-live` (how far a simulation is from a recorded run of a node).
//!
//! The first is a whole day of functions in the published shape, one thread, each policy by itself;
//! the row's figure is that of the slowest policy. The second runs the product's binary with `sim`.
#![expect(clippy::print_stdout, reason = "it tells how it measured")]

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use vhive_study::simulate::{SimPlan, Starts, TracePlan, Workload, simulate};
use vhive_tests::bench::{Bound, Row};
use vhive_tests::live;
use vhive_tests::node::TestNode;

const INVOCATIONS: Bound = Bound::AtLeast { must: 1_000_000.0, goal: 5_000_000.0 };
const LIVE: Bound = Bound::AtMost { must: 10.0, goal: 3.0 };
/// Functions of the day, and about how many invocations they have together.
const FUNCTIONS: usize = 2000;
const DAY: u64 = 10_000_000;
/// Policies of the live runs, and how long they keep instances.
const POLICIES: [(&str, &str); 2] = [("kpa", "6s"), ("fixed", "1s")];

fn main() -> anyhow::Result<()> {
    let wanted = std::env::var("VHIVE_BENCH").unwrap_or_default();
    let is_wanted =
        |id: &str| wanted.is_empty() || id.contains(&wanted) || "simulate".contains(&wanted);
    if is_wanted("sim-invocations") {
        invocations()?;
    }
    if is_wanted("sim-vs-live") {
        against_live()?;
    }
    Ok(())
}

fn invocations() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let plan = SimPlan {
        trace: TracePlan { functions: FUNCTIONS, invocations: Some(DAY), ..TracePlan::default() },
        threads: 1,
        starts: vec![root.join("studies/simulate-starts.jsonl")],
        ..SimPlan::default()
    };
    let starts = Starts::read(&plan.starts)?;
    let workload = Workload::load(&plan)?;
    let mut figures = Vec::new();
    let mut begun = Instant::now();
    simulate(&plan, (&workload, &starts), |outcome| {
        let rate = outcome.invocations as f64 / begun.elapsed().as_secs_f64();
        println!("{}: {} at {rate:.0} a second", outcome.label(), outcome.invocations);
        figures.push((rate, outcome.label(), outcome.invocations));
        begun = Instant::now();
    });
    let slowest = figures.iter().min_by(|a, b| a.0.total_cmp(&b.0)).context("a policy")?;
    let all: Vec<String> =
        figures.iter().map(|(rate, label, _)| format!("{label} {:.2}", rate / 1e6)).collect();
    Row::new("sim-invocations", "1/s")
        .value(INVOCATIONS, slowest.0)
        .note(format!(
            "the slowest policy, {}; {FUNCTIONS} functions, {} invocations of a day, one thread; \
             millions a second: {}",
            slowest.1,
            slowest.2,
            all.join(", ")
        ))
        .emit();
    Ok(())
}

fn against_live() -> anyhow::Result<()> {
    let row = Row::new("sim-vs-live", "%");
    if !rustix::process::geteuid().is_root() {
        row.unmeasured(LIVE, "needs root").emit();
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let node = TestNode::start(dir.path(), &live::config(dir.path()))?;
    let (mut worst, mut notes) = (0.0_f64, Vec::new());
    for policy in POLICIES {
        let replayed = live::replay(&node, dir.path(), policy)?;
        let (live, simulated) = (replayed.live, replayed.simulated);
        ensure!(live.invocations == simulated.invocations, "{replayed:?}");
        println!("{policy:?}: {replayed:?}");
        notes.push(format!(
            "{} {}: {} cold live and {} simulated of {}, {:.1} and {:.1} instance-seconds",
            policy.0,
            policy.1,
            live.cold,
            simulated.cold,
            live.invocations,
            live.instance_s,
            simulated.instance_s
        ));
        worst = worst.max(replayed.worse());
    }
    node.stop()?;
    row.value(LIVE, worst).note(notes.join("; ")).emit();
    Ok(())
}
