//! `vhive study simulate`: policies in virtual time; needs no node.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use vhive_api::{Bytes, RuntimeName};
use vhive_study::simulate::{
    Memory, PolicyPlan, SIMULATE, SimFacts, SimPlan, SimWriter, Starts, TraceKind, Workload,
    simulate_rest,
};

use super::default_out;
use crate::cli::Global;
use crate::cmd::report;
use crate::output;

/// Arguments of `vhive study simulate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Plan of the simulation; `--print-plan` shows the default one.
    #[arg(value_name = "FILE.toml")]
    plan: Option<PathBuf>,
    /// Trace, instead of the plan's: a directory (Azure 2019), a CSV file (Azure 2021, whatever its
    /// name) or the rows.jsonl of `vhive load`.
    #[arg(long, value_name = "PATH")]
    trace: Option<PathBuf>,
    /// Functions of a trace that is drawn, instead of the plan's.
    #[arg(long, value_name = "N")]
    functions: Option<usize>,
    /// Invocations in a day of a trace that is drawn, about.
    #[arg(long, value_name = "N")]
    invocations: Option<u64>,
    /// Minutes, instead of the plan's.
    #[arg(long, value_name = "N")]
    minutes: Option<usize>,
    /// Files with measured starts, instead of the plan's: JSON lines of records or of a study's rows.
    #[arg(long, value_delimiter = ',', value_name = "FILES")]
    starts: Option<Vec<PathBuf>>,
    /// Only the starts in this runtime; else each function in each runtime is one by itself.
    #[arg(long, value_name = "NAME")]
    runtime: Option<RuntimeName>,
    /// Policies, instead of the plan's: `kpa:60s,fixed:10m,histogram:10m`. How instances start may
    /// follow each: `fixed:10m/lazy,fixed:10m/reap-serial`.
    #[arg(long, value_delimiter = ',', value_name = "POLICIES")]
    policies: Option<Vec<PolicyPlan>>,
    /// Memory of an instance, instead of the plan's: `trace`, `measured` or a size.
    #[arg(long, value_name = "MEMORY")]
    memory: Option<Memory>,
    /// Nodes, instead of the plan's; 0 = one without a limit.
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Memory of each node, instead of the plan's.
    #[arg(long, value_name = "SIZE")]
    node_memory: Option<Bytes>,
    /// Starts of a node that are under way at a time, as its `start_threads` are, instead of the plan's;
    /// 0 = no start waits for another.
    #[arg(long, value_name = "N")]
    start_threads: Option<u32>,
    /// Placements, instead of the plan's: `first-fit`, `least-loaded`, `round-robin`,
    /// `consistent-hash`.
    #[arg(long, value_delimiter = ',', value_name = "PLACEMENTS")]
    placements: Option<Vec<vhive_study::simulate::Placement>>,
    /// Seed, instead of the plan's.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Threads, instead of the plan's; they do not change the result.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Where the result goes: a new directory, or that of the same simulation which was cut short.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the commented default plan and do nothing else.
    #[arg(long)]
    print_plan: bool,
}

/// Simulates, writes each policy's result as it is done, and makes the report.
///
/// # Errors
/// What cannot be read or written.
pub(super) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    if args.print_plan {
        output::line(SIMULATE.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let mut plan = SimPlan::load(args.plan.as_deref())?;
    let out = args.out.clone().unwrap_or_else(|| default_out("simulate"));
    override_plan(&mut plan, args);
    plan.validate()?;
    let starts = Starts::read_of(&plan.starts, plan.runtime).context(
        "no measured starts; name rows.jsonl of `vhive study cold-start` or records with --starts",
    )?;
    let workload = Workload::load(&plan)?;
    let facts = SimFacts::new(&plan, &workload, &starts, crate::REVISION);
    let mut begun = Instant::now();
    let (mut writer, done) = SimWriter::begin(&out, &facts)?;
    if !done.is_empty() {
        let shown = out.display();
        output::note(format!(
            "{} policies were done before; the rest follows in {shown}",
            done.len()
        ));
    }
    let told = simulate_rest(&plan, (&workload, &starts), done.len(), |outcome| {
        let seconds = begun.elapsed().as_secs_f64();
        let rate = outcome.invocations as f64 / seconds.max(1e-9) / 1e6;
        let written = writer.row(&outcome);
        output::note(format!(
            "{}: {} invocations in {seconds:.1} s, {rate:.2} million a second",
            outcome.label(),
            outcome.invocations
        ));
        begun = Instant::now();
        written
    });
    told.with_context(|| {
        format!("ended early; the same command with --out {} goes on", out.display())
    })?;
    report::build(global, &out)?;
    Ok(ExitCode::SUCCESS)
}

fn override_plan(plan: &mut SimPlan, args: Args) {
    if let Some(path) = args.trace {
        plan.trace.kind = kind(&path);
        plan.trace.path = Some(path);
    }
    let trace = &mut plan.trace;
    trace.functions = args.functions.unwrap_or(trace.functions);
    trace.invocations = args.invocations.or(trace.invocations);
    trace.minutes = args.minutes.unwrap_or(trace.minutes);
    plan.function.memory = args.memory.unwrap_or(plan.function.memory);
    plan.cluster.nodes = args.nodes.unwrap_or(plan.cluster.nodes);
    plan.cluster.memory = args.node_memory.unwrap_or(plan.cluster.memory);
    plan.cluster.start_threads = args.start_threads.unwrap_or(plan.cluster.start_threads);
    plan.seed = args.seed.unwrap_or(plan.seed);
    plan.threads = args.threads.unwrap_or(plan.threads);
    plan.runtime = args.runtime.or(plan.runtime);
    if let Some(starts) = args.starts {
        plan.starts = starts;
    }
    if let Some(policies) = args.policies {
        plan.policies = policies;
    }
    if let Some(placements) = args.placements {
        plan.cluster.placements = placements;
    }
}

/// What a trace is, by looking at it: rows are JSON, and the published traces are CSV.
fn kind(path: &Path) -> TraceKind {
    if path.is_dir() {
        return TraceKind::Azure2019;
    }
    let mut first = [0];
    // A pipe can be read only once.
    let begun = if path.is_file() {
        File::open(path).and_then(|mut file| file.read(&mut first)).unwrap_or_default()
    } else {
        0
    };
    let is_rows = match begun {
        1 => first == *b"{",
        // Empty, or not there: whoever reads it says so.
        _ => path.extension().is_some_and(|ending| ending == "jsonl"),
    };
    if is_rows { TraceKind::Rows } else { TraceKind::Azure2021 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_known_by_what_is_in_it() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text, wanted) in [
            ("published.txt", "app,func,end_timestamp,duration\n", TraceKind::Azure2021),
            ("trace.csv", "app,func,end_timestamp,duration\n", TraceKind::Azure2021),
            ("rows.jsonl", "{}\n", TraceKind::Rows),
            ("rows", "{}\n", TraceKind::Rows),
            ("empty.jsonl", "", TraceKind::Rows),
            ("empty.txt", "", TraceKind::Azure2021),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            assert_eq!(kind(&path), wanted, "{name}");
        }
        assert_eq!(kind(dir.path()), TraceKind::Azure2019);
    }
}
