//! The policy simulator: `sim-invocations` (how many invocations one CPU simulates in a second),
//! `sim-1k-nodes` and `sim-1k-nodes-rss` (the same on a thousand nodes, and the memory for it) and
//! `sim-vs-live` (how far a simulation is from a recorded run of a node).
//!
//! The first is a whole day of functions in the published shape, one thread, each policy by itself;
//! the row's figure is that of the slowest policy. The others run the product's binary, the last with `sim`.
#![expect(clippy::print_stdout, reason = "it tells how it measured")]

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use vhive_study::simulate::{SimPlan, Starts, TracePlan, Workload, simulate};
use vhive_tests::bench::{Bound, Row};
use vhive_tests::live;
use vhive_tests::node::{TestNode, vhive};

const INVOCATIONS: Bound = Bound::AtLeast { must: 1_000_000.0, goal: 5_000_000.0 };
/// What simulates 10⁸ invocations within an hour.
const ON_NODES: Bound = Bound::AtLeast { must: 27_778.0, goal: 277_778.0 };
const ON_NODES_RSS: Bound = Bound::AtMost { must: 500.0, goal: 100.0 };
const LIVE: Bound = Bound::AtMost { must: 10.0, goal: 3.0 };
/// Functions of the day, and about how many invocations they have together.
const FUNCTIONS: usize = 2000;
const DAY: u64 = 10_000_000;
/// The same on nodes, and how many of those.
const NODES: (&str, &str, &str) = ("40000", "10000000", "1000");
/// Policies of the live runs.
const POLICIES: [live::Policy; 3] = [
    live::Policy { kind: "kpa", keep: "6s", snapshot: "off" },
    live::Policy { kind: "fixed", keep: "1s", snapshot: "off" },
    live::Policy { kind: "fixed", keep: "1s", snapshot: "reap" },
];

fn main() -> anyhow::Result<()> {
    let wanted = std::env::var("VHIVE_BENCH").unwrap_or_default();
    let is_wanted =
        |id: &str| wanted.is_empty() || id.contains(&wanted) || "simulate".contains(&wanted);
    // First, while no other child has ended: the kernel's maximum is of all.
    if is_wanted("sim-1k-nodes-rss") {
        on_nodes()?;
    }
    if is_wanted("sim-invocations") {
        invocations()?;
    }
    if is_wanted("sim-vs-live") {
        against_live()?;
    }
    Ok(())
}

fn root() -> anyhow::Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")
}

fn on_nodes() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (functions, invocations, nodes) = NODES;
    let out = dir.path().join("out");
    let starts = root()?.join("studies/simulate-starts.jsonl");
    let (to, starts) = (out.to_string_lossy(), starts.to_string_lossy());
    let args = ["study", "simulate", "--functions", functions, "--invocations", invocations];
    let more = ["--nodes", nodes, "--policies", "fixed:10m", "--placements", "first-fit"];
    let files = ["--starts", &starts, "--out", &to];
    let begun = Instant::now();
    let done = vhive(dir.path(), &[&args[..], &more, &files].concat())?;
    let took = begun.elapsed().as_secs_f64();
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let most_kib = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    let rows = std::fs::read_to_string(out.join("rows.jsonl"))?;
    let row: serde_json::Value = serde_json::from_str(rows.lines().next().context("a row")?)?;
    let number = |name: &str| row[name].as_u64().with_context(|| format!("no {name}"));
    let count = number("invocations")?;
    let conditions = format!(
        "a day of {functions} functions on {nodes} nodes under fixed 10m, first fit: {count} invocations, \
         {} cold, at most {} instances at a time; one thread, {took:.1} s with drawing them and the report",
        number("cold")?,
        number("peak_instances")?
    );
    Row::new("sim-1k-nodes", "1/s")
        .value(ON_NODES, count as f64 / took)
        .note(format!("{conditions}; must = 10⁸ in an hour"))
        .emit();
    Row::new("sim-1k-nodes-rss", "MB")
        .value(ON_NODES_RSS, most_kib as f64 * 1024.0 / 1e6)
        .note(conditions)
        .emit();
    Ok(())
}

fn invocations() -> anyhow::Result<()> {
    let plan = SimPlan {
        trace: TracePlan { functions: FUNCTIONS, invocations: Some(DAY), ..TracePlan::default() },
        threads: 1,
        starts: vec![root()?.join("studies/simulate-starts.jsonl")],
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
    let (mut worst, mut notes) = (0.0_f64, Vec::new());
    for turns in [live::Turns::Plenty, live::Turns::Default] {
        let dir = dir.path().join(format!("{turns:?}"));
        let node = TestNode::start(&dir, &live::config(&dir, turns))?;
        for policy in POLICIES {
            let replayed = live::replay(&node, &dir, policy)?;
            let (live, simulated) = (&replayed.live, &replayed.simulated);
            ensure!(live.invocations == simulated.invocations, "{replayed:?}");
            println!("{policy:?}, {turns:?} turns: {replayed:?}");
            notes.push(format!(
                "{} {}, snapshots {}, turns of starts {}: {} cold live and {} simulated of {}, {:.1} and {:.1} \
                 instance-seconds, instances of a second {:.1} % off, starts waited {:.1} and {:.1} s",
                policy.kind,
                policy.keep,
                policy.snapshot,
                turns.word(),
                live.cold,
                simulated.cold,
                live.invocations,
                live.instance_s,
                simulated.instance_s,
                replayed.off_over_time(),
                live.turn_wait_s,
                simulated.turn_wait_s
            ));
            worst = worst.max(replayed.worse());
        }
        node.stop()?;
    }
    row.value(LIVE, worst).note(notes.join("; ")).emit();
    Ok(())
}
