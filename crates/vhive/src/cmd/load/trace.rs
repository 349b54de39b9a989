//! `vhive load trace`: sends what a trace says, when it says it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::json;
use vhive_load::LONGEST;
use vhive_load::inject::{Failure, FailureConfig};
use vhive_load::output::Files;
use vhive_load::trace::files::{Durations, read_iat, write_iat};
use vhive_load::trace::{Config as Experiment, Plan, azure2019, dag, sample};
use vhive_load::{Flow, Flows, Load, Stop, Target, open_flows, open_loop};

use super::args::{SampleArgs, SynthArgs, To, TraceArgs};
use super::{Run, make_room, tell_room};
use crate::cli::{Format, Global};
use crate::config::Config;
use crate::output;

/// Replays the trace of a configuration.
///
/// # Errors
/// When configuration, trace or endpoints cannot be used.
pub(crate) async fn run(
    global: &Global,
    config: &Config,
    args: TraceArgs,
    stop: &Stop,
) -> anyhow::Result<ExitCode> {
    let mut experiment = Experiment::read(&args.experiment)?;
    experiment.seed = args.seed.unwrap_or(experiment.seed);
    experiment.strict = args.strict;
    let mut failures = args.fail.failures()?;
    if let Some(path) = &args.failure_config {
        failures.extend(FailureConfig::read(path)?.failures()?);
    }
    if experiment.dag_mode && (args.iat_generation || args.generated) {
        bail!("DAGMode: the arrivals of workflows are neither written nor read");
    }
    if args.iat_generation || args.dry_run {
        let Planned { plan, flows, .. } = of_args(&args, &experiment)?;
        if args.dry_run {
            show(global, &plan, &flows)?;
            return Ok(ExitCode::SUCCESS);
        }
        let dir = &args.iat_dir;
        let written = write_iat(&plan, dir)
            .with_context(|| format!("cannot write the arrivals in {}", dir.display()))?;
        output::line(format!("{written} files iat<i>.json in {}", dir.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let replay = Replay { global, config, to: &args.to, experiment: &experiment, failures };
    replay.send(of_args(&args, &experiment)?, stop).await
}

/// The plan of a command line: the trace's arrivals, or those of earlier files.
fn of_args(args: &TraceArgs, experiment: &Experiment) -> anyhow::Result<Planned> {
    let mut planned = planned(experiment)?;
    planned.tell();
    if args.generated {
        let behind = read_iat(&mut planned.plan, &args.iat_dir)?;
        if behind > 0 {
            let dir = args.iat_dir.display();
            output::note(format!("{behind} arrivals in {dir} are after the end, and left out"));
        }
    }
    Ok(planned)
}

/// What a configuration's trace comes to.
pub(super) struct Planned {
    plan: Plan,
    flows: Vec<Flow>,
    /// What follows the plan's shots, if anything does.
    follows: Option<Flows>,
}

impl Planned {
    /// Tells what of the trace is not as it is written there.
    pub(super) fn tell(&self) {
        self.plan.notes.iter().for_each(output::note);
    }

    /// Instances that each function keeps busy in the first minute; what follows in a workflow, as
    /// often as it begins. None where the trace does not count invocations.
    pub(super) fn busy(&self) -> Vec<Option<f64>> {
        let mut entries: Vec<usize> = (0..self.plan.functions.len()).collect();
        let index = |target: u32| usize::try_from(target).unwrap_or(usize::MAX);
        for flow in &self.flows {
            for step in flow.steps() {
                if let Some(entry) = entries.get_mut(index(step.target)) {
                    *entry = index(flow.entry());
                }
            }
        }
        let busy =
            |(function, entry)| Some(self.plan.rate(entry)? * self.plan.runtime_s(function)?);
        entries.into_iter().enumerate().map(busy).collect()
    }
}

/// Plans it. Of workflows, the plan has what begins them.
///
/// # Errors
/// Of the trace, by file, line and column.
pub(super) fn planned(experiment: &Experiment) -> anyhow::Result<Planned> {
    let mut plan = experiment.plan()?;
    let flows = experiment.flows(plan.functions.len())?;
    let follows = match flows.as_slice() {
        [] => None,
        flows => Some(dag::set(&mut plan, flows)?),
    };
    Ok(Planned { plan, flows, follows })
}

/// One experiment and whom it is sent to.
pub(super) struct Replay<'a> {
    pub(super) global: &'a Global,
    pub(super) config: &'a Config,
    pub(super) to: &'a To,
    pub(super) experiment: &'a Experiment,
    pub(super) failures: Vec<Failure>,
}

impl Replay<'_> {
    /// Plans and sends it.
    ///
    /// # Errors
    /// When trace or endpoints cannot be used, no request succeeded, or rows could not be written.
    pub(super) async fn run(&self, stop: &Stop) -> anyhow::Result<ExitCode> {
        let planned = planned(self.experiment)?;
        planned.tell();
        self.send(planned, stop).await
    }

    async fn send(&self, planned: Planned, stop: &Stop) -> anyhow::Result<ExitCode> {
        let Planned { plan, flows, follows } = planned;
        let experiment = self.experiment;
        for text in experiment.without_effect() {
            output::note(format!("without effect: {text}"));
        }
        if plan.total() == 0 {
            bail!("the trace has no invocation in the time that is sent");
        }
        let mut load = load(self.to, experiment, &plan)?;
        if self.to.drain.is_none() {
            // The last workflow's steps come after one another, one of them twice.
            let steps = flows.iter().map(|flow| flow.depth_and_width().0.saturating_add(1));
            let steps = steps.max().unwrap_or(1);
            load.drain = load.drain.saturating_mul(steps).min(LONGEST);
        }
        let dir = rows_dir(experiment);
        for made in [&experiment.output_dir(), &dir] {
            std::fs::create_dir_all(made)
                .with_context(|| format!("cannot make {}", made.display()))?;
        }
        let path = experiment.output("duration");
        let from = experiment.execution_from_ns()?;
        let durations = Durations::begin(&path, &plan, from, load.clock.clone())
            .with_context(|| format!("cannot write {}", path.display()))?
            .of_flows(&flows);
        let targets = plan.functions.iter().map(|function| function.name.clone()).collect();
        let files = Files { dir, latencies: "lat.csv".to_owned(), durations: None, targets };
        let mut run =
            Run::begin((self.global, self.config), self.to, files, Some(Box::new(durations)))?;
        run.fail((self.global, self.config), self.failures.clone(), &load);
        let ran = match follows {
            None => open_loop(&load, plan.shots(), run.rows.clone(), stop).await,
            Some(follows) => open_flows(&load, plan.shots(), follows, run.rows.clone(), stop).await,
        };
        tell_room(&load);
        output::note(format!("the original's columns in {}", path.display()));
        run.end(self.global, ran, stop).await
    }
}

/// Makes up a trace.
///
/// # Errors
/// When the numbers make none, or it cannot be written.
pub(super) fn synth(args: &SynthArgs) -> anyhow::Result<ExitCode> {
    args.synth().write(&args.out)?;
    output::line(format!("trace of {} functions in {}", args.functions, args.out.display()));
    Ok(ExitCode::SUCCESS)
}

/// Chooses one sample per size.
///
/// # Errors
/// When the trace cannot be read, has too few functions, or a sample cannot be written.
pub(super) fn sample(args: &SampleArgs) -> anyhow::Result<ExitCode> {
    if args.res.is_some() {
        output::note("without effect: -res: each distance is divided by its figure's mean");
    }
    let functions = azure2019::read(&args.trace, args.minutes)?;
    let original = match &args.orig {
        Some(dir) => azure2019::read(dir, args.minutes)?,
        None => functions.clone(),
    };
    let max = args.max.unwrap_or(args.min);
    for size in (args.min..=max).step_by(args.step.max(1)) {
        let chosen = sample::choose((&functions, &original), size, args.trials, args.seed)?;
        let dir = args.out.join(size.to_string());
        sample::write(&args.trace, &dir, &chosen)?;
        let (distance, all) = (chosen.distance, functions.len());
        output::line(format!(
            "{size} of {all} functions, distance {distance:.4}, in {}",
            dir.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// One target per function: the endpoints in turn.
fn load(to: &To, experiment: &Experiment, plan: &Plan) -> anyhow::Result<Load> {
    let mut load = to.load(Some(experiment.endpoint_port))?;
    let functions = plan.functions.len();
    if load.targets.len() < functions {
        let endpoints = load.targets.len();
        output::note(format!("{functions} functions share {endpoints} endpoints, in turn"));
    }
    let asked = to.protocol.or(experiment.protocol()?);
    let target = |index: usize| {
        let target = load.targets[index % load.targets.len()].clone();
        let protocol = asked.unwrap_or(target.protocol);
        Target { protocol, ..target }
    };
    load.targets = (0..functions).map(target).collect();
    to.wait(&mut load, Some(experiment.patience()));
    load.reads_replies = true;
    make_room(&mut load);
    Ok(load)
}

pub(super) fn rows_dir(experiment: &Experiment) -> PathBuf {
    experiment.output("rows").with_extension("")
}

fn show(global: &Global, plan: &Plan, flows: &[Flow]) -> anyhow::Result<()> {
    let functions = 0..plan.functions.len();
    if global.output == Format::Json {
        let all: Vec<_> = functions
            .map(|index| {
                json!({
                    "name": plan.functions[index].name,
                    "counts": plan.counts(index),
                    "initial_scale": plan.initial_scale(index),
                })
            })
            .collect();
        let shape = |flow: &Flow| {
            let (depth, width) = flow.depth_and_width();
            let steps: Vec<u32> = flow.steps().iter().map(|step| step.target).collect();
            json!({ "depth": depth, "width": width, "functions": steps })
        };
        let flows: Vec<_> = flows.iter().map(shape).collect();
        return output::json(
            &json!({ "functions": all, "invocations": plan.total(), "workflows": flows }),
        );
    }
    let mut per_unit = vec![0_u64; plan.units];
    for index in functions {
        for (sum, count) in per_unit.iter_mut().zip(plan.counts(index)) {
            *sum += count;
        }
    }
    output::line(format!("functions    {}", plan.functions.len()));
    output::line(format!("invocations  {}", plan.total()));
    if !flows.is_empty() {
        let steps: usize = flows.iter().map(|flow| flow.steps().len()).sum();
        output::line(format!("workflows    {} of {steps} functions", flows.len()));
    }
    output::line(format!("columns      {} of {:?} each", plan.units, plan.unit.length()));
    for (column, count) in per_unit.iter().enumerate() {
        output::line(format!("  {column:<10} {count}"));
    }
    Ok(())
}
