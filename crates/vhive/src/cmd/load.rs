//! `vhive load`: sends requests at a rate, in a closed loop, or as a trace says.

mod args;
mod convert;
mod deploy;
mod experiments;
mod fail;
mod plan;
mod starts;
mod trace;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use vhive_load::arrivals::{at_rate, from_file};
use vhive_load::inject::Failure;
use vhive_load::output::{Also, Files, Rows, Writer, write_json};
use vhive_load::parquet;
use vhive_load::steps::StepRows;
use vhive_load::summary::Summary;
use vhive_load::sweep::{self, round_robin};
use vhive_load::{Load, Outcome, Ran, RunError, Stop, closed_loop, open_loop};
use vhive_study::run::RunFacts;

pub(crate) use self::args::DeployArgs;
use self::args::{
    ClosedArgs, ConvertArgs, Gaps, MultiArgs, RpsArgs, SampleArgs, SweepArgs, SynthArgs, To,
    TraceArgs,
};
use self::fail::Failures;
pub(crate) use self::plan::with_plan;
use self::starts::Starts;
use crate::cli::{Format, Global};
use crate::config::Config;
use crate::output;

/// Names of the files of a run, and of a sweep.
const ROWS: &str = "rows.jsonl";
const SUMMARY: &str = "summary.json";
const SWEEP: &str = "sweep.json";
/// A file of rows that is longer, in bytes, has no report of itself: its rows would have to be in memory.
const MOST_REPORTED: u64 = 512 << 20;

/// The ways of sending.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Sends at a rate, whatever comes back: open loop.
    Rps(RpsArgs),
    /// Keeps so many requests under way: closed loop.
    Closed(ClosedArgs),
    /// Looks for the highest rate whose p99 stays near the unloaded one.
    Sweep(SweepArgs),
    /// Replays a trace of Azure Functions, or a rate with a share of cold starts.
    Trace(TraceArgs),
    /// Runs many experiments one after the other: studies that vary traces and keys.
    #[command(alias = "multi")]
    Experiments(MultiArgs),
    /// Makes Huawei's and IBM's traces into what `trace` reads.
    Convert(ConvertArgs),
    /// Makes up a trace: a ladder of rates, a sweep over functions, bursts.
    Synth(SynthArgs),
    /// Chooses the functions of a trace that stand for all of them.
    Sample(SampleArgs),
    /// Deploys the services that a file of functions lists, and writes their endpoints.
    Deploy(DeployArgs),
}

/// Runs it. Exit code 1 when no request succeeded, or rows could not be written.
///
/// # Errors
/// What kept it from sending at all.
pub(crate) async fn run(
    global: &Global,
    config: &Config,
    command: Command,
) -> anyhow::Result<ExitCode> {
    match command {
        // A signal ends it like any command; only sending has something to finish.
        Command::Deploy(args) => deploy::run(global, config, args).await,
        Command::Convert(args) => convert::run(&args),
        Command::Synth(args) => trace::synth(&args),
        Command::Sample(args) => trace::sample(&args),
        Command::Rps(args) => rps(global, config, args, &stop_on_signals()?).await,
        Command::Closed(args) => closed(global, config, args, &stop_on_signals()?).await,
        Command::Sweep(args) => sweep_rates(global, args, &stop_on_signals()?).await,
        Command::Trace(args) => trace::run(global, config, args, &stop_on_signals()?).await,
        Command::Experiments(args) => {
            experiments::run(global, config, args, &stop_on_signals()?).await
        }
    }
}

async fn rps(
    global: &Global,
    config: &Config,
    args: RpsArgs,
    stop: &Stop,
) -> anyhow::Result<ExitCode> {
    let arrivals = match &args.arrivals {
        Gaps::File(path) => from_file(path)?,
        Gaps::At(kind) => at_rate(*kind, args.rps, args.time.0, args.common.seed)?,
    };
    let load = unless(stop, args.common.load()).await?;
    let shots = round_robin(&arrivals, load.targets.len());
    let files = args.common.files(&load);
    let mut run = Run::begin(config, &args.common.to, files, None)?;
    run.fail((global, config), args.fail.failures()?, &load);
    let ran = open_loop(&load, shots, run.rows.clone(), stop).await;
    run.end(global, ran)
}

/// Waits for what is needed to begin; who stops it waits no longer.
async fn unless<T>(
    stop: &Stop,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        () = stop.asked() => Err(RunError::Stopped.into()),
    }
}

async fn closed(
    global: &Global,
    config: &Config,
    args: ClosedArgs,
    stop: &Stop,
) -> anyhow::Result<ExitCode> {
    let mut load = unless(stop, args.common.load()).await?;
    load.connections = load.connections.max(args.clients);
    let files = args.common.files(&load);
    let mut run = Run::begin(config, &args.common.to, files, None)?;
    run.fail((global, config), args.fail.failures()?, &load);
    let ran = closed_loop(&load, args.clients, args.time.0, run.rows.clone(), stop).await;
    run.end(global, ran)
}

/// A run's files, and what looks at the node's records beside it.
struct Run {
    dir: PathBuf,
    writer: Writer,
    rows: std::sync::mpsc::Sender<Vec<vhive_load::Row>>,
    starts: Option<Starts>,
    failures: Option<Failures>,
    parquet: bool,
    facts: RunFacts,
}

/// A run's figures and what stands beside them.
#[derive(serde::Serialize)]
struct Told<'a, T> {
    #[serde(flatten)]
    figures: &'a T,
    #[serde(flatten)]
    facts: RunFacts,
}

fn begin_facts(to: &To) -> anyhow::Result<RunFacts> {
    // With what the plan's file says.
    let command = crate::cli::arguments(std::env::args_os())?.into_iter().skip(1);
    let command = command.map(|word| word.to_string_lossy().into_owned());
    Ok(RunFacts::begin(masked(command), to.cpus.as_ref(), crate::REVISION)?)
}

/// A command line without what may be secret in it: values of headers, bodies.
fn masked(words: impl Iterator<Item = String>) -> Vec<String> {
    const HIDDEN: &str = "…";
    let mut hide: Option<bool> = None;
    let mask = |value: &str, is_header: bool| match value.split_once(':') {
        Some((name, _)) if is_header => format!("{name}: {HIDDEN}"),
        _ if value.starts_with('@') => value.to_owned(),
        _ => HIDDEN.to_owned(),
    };
    let each = words.map(|word| {
        if let Some(is_header) = hide.take() {
            return mask(&word, is_header);
        }
        for (option, is_header) in
            [("--header", true), ("--data", false), ("-H", true), ("-d", false)]
        {
            match word.strip_prefix(option) {
                Some("") => hide = Some(is_header),
                Some(value) if option.len() == 2 || value.starts_with('=') => {
                    let value = mask(value.trim_start_matches('='), is_header);
                    let between = if option.len() == 2 { "" } else { "=" };
                    return format!("{option}{between}{value}");
                }
                _ => {}
            }
        }
        word
    });
    each.collect()
}

impl Run {
    fn begin(
        config: &Config,
        to: &To,
        files: Files,
        also: Option<Box<dyn Also>>,
    ) -> anyhow::Result<Self> {
        let dir = files.dir.clone();
        let facts = begin_facts(to)?;
        forget(&dir.join(SWEEP));
        let starts = to.records.then(|| Starts::begin(config.api_socket())).transpose()?;
        let (writer, rows) = Writer::begin(files, also)?;
        Ok(Self { dir, writer, rows, starts, failures: None, parquet: to.parquet, facts })
    }

    /// Breaks something on purpose while it goes on.
    fn fail(&mut self, of: (&Global, &Config), failures: Vec<Failure>, load: &Load) {
        self.failures = Failures::begin(of, failures, load, &self.dir);
    }

    /// Finishes the files, also of a run that could not begin. What cannot be written costs that file,
    /// and is told; the figures are shown either way.
    fn end(self, global: &Global, ran: Result<Ran, RunError>) -> anyhow::Result<ExitCode> {
        drop(self.rows);
        let injected = self.failures.map(Failures::end);
        let rows = self.writer.end();
        let mut summary = rows.tally.summary(&ran?);
        let starts = self.starts.map(|starts| {
            let (starts, unknown) = rows.add_starts(&starts.end()?)?;
            summary.starts = starts.into_iter().collect();
            summary.starts_unknown = unknown;
            anyhow::Ok(())
        });
        summary.rows_lost = rows.lost.iter().map(|(count, _)| *count).max().unwrap_or(0);
        let told = Told { figures: &summary, facts: self.facts.end() };
        show(global, &summary)?;
        let written = write_json(&self.dir.join(SUMMARY), &told);
        let latencies = rows.name_latencies();
        let parquet = self.parquet.then(|| parquet::write(&self.dir.join(ROWS)).map(drop));
        if written.is_ok() {
            report(&self.dir);
        }
        end(rows)?;
        written?;
        parquet.transpose()?;
        output::note(format!("rows in {}, {}", self.dir.display(), latencies?.display()));
        starts.transpose()?;
        let worked = injected.transpose()?;
        Ok(if worked == Some(false) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Makes the report, whatever came of the run. That there is none costs nothing else.
fn report(dir: &Path) {
    match std::fs::metadata(dir.join(ROWS)) {
        Ok(rows) if rows.len() > MOST_REPORTED => {
            let dir = dir.display();
            output::note(format!("no report yet, of so many rows: `vhive report {dir}` makes it"));
        }
        _ => match vhive_study::report::build(dir) {
            Ok(built) => output::note(format!("report: {}", built.report.display())),
            Err(error) => output::print_error(&anyhow::Error::new(error).context("no report")),
        },
    }
}

/// Removes what an earlier run of another kind has left in the directory, lest it be taken for this one's.
fn forget(path: &Path) {
    match std::fs::remove_file(path) {
        Ok(()) => output::note(format!("removed {}, of an earlier run", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => output::note(format!("cannot remove {}: {error}", path.display())),
    }
}

fn show(global: &Global, summary: &Summary) -> anyhow::Result<()> {
    match global.output {
        Format::Json => output::json(summary),
        Format::Table => {
            output::line(summary.text().trim_end());
            Ok(())
        }
    }
}

fn end(rows: Rows) -> anyhow::Result<()> {
    let good = rows.tally.count(Outcome::Ok);
    let mut lost = rows.lost.into_iter();
    if let Some((count, why)) = lost.next() {
        for (count, why) in lost {
            let why = anyhow::Error::from(why).context(format!("{count} rows were not written"));
            output::note(format!("{why:#}"));
        }
        return Err(why).with_context(|| format!("{count} rows were not written"));
    }
    if good == 0 {
        anyhow::bail!(
            "no request succeeded: {}",
            rows.tally.first_error().unwrap_or("see the rows")
        );
    }
    Ok(())
}

async fn sweep_rates(global: &Global, args: SweepArgs, stop: &Stop) -> anyhow::Result<ExitCode> {
    let load: Load = unless(stop, args.common.load()).await?;
    let dir = args.common.out.clone();
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let plan = args.plan();
    let facts = begin_facts(&args.common.to)?;
    forget(&dir.join(SUMMARY));
    let targets = load.targets.iter().map(|target| target.hostname.clone()).collect();
    let mut rows = Some(StepRows::begin(&dir, targets)?);
    let table = global.output == Format::Table;
    if table {
        output::line("RATE/S     SENT      FAILED  P50 US      P99 US      LATE P99 US  VERDICT");
    }
    let done = sweep::sweep(&load, &plan, stop, &mut rows, |step| {
        let us = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), |us| format!("{us:.1}"));
        if table {
            output::line(format!(
                "{:<10.1} {:<9} {:<7} {:<11} {:<11} {:<12} {}",
                step.rate,
                step.sent,
                step.failed,
                us(step.p50_us),
                us(step.p99_us),
                us(step.late_p99_us),
                serde_json::to_value(step.verdict).unwrap_or_default().as_str().unwrap_or_default(),
            ));
        }
    })
    .await?;
    write_json(&dir.join(SWEEP), &Told { figures: &done, facts: facts.end() })?;
    match global.output {
        Format::Json => output::json(&done)?,
        Format::Table => {
            let unloaded =
                format!("unloaded p99 {:.1} us, within {}x", done.unloaded_p99_us, done.within);
            match done.knee {
                Some(knee) => output::line(format!("knee       {knee:.1}/s ({unloaded})")),
                None => output::line(format!("knee       none ({unloaded})")),
            }
            if done.stopped {
                output::line("warning    stopped before the knee was known");
            }
        }
    }
    if args.common.to.parquet {
        parquet::write(&dir.join(ROWS))?;
    }
    report(&dir);
    output::note(format!("rows in {}", dir.display()));
    if let Some((count, why)) = rows.and_then(StepRows::lost) {
        return Err(why).with_context(|| format!("{count} rows were not written"));
    }
    Ok(if done.knee.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The first signal ends the sending, the second the waiting for replies; files are finished
/// either way.
fn stop_on_signals() -> anyhow::Result<Stop> {
    let stop = Stop::default();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signals, stop) = (signal(kind)?, stop.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                output::note("stopping: replies under way are waited for until the next signal");
                stop.ask();
            }
        });
    }
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_keeps_no_secret() {
        let words = "load rps --rps 5 -H Authorization:secret --header=Cookie:secret -dsecret --data @file \
                     --data secret -HX-Key:secret";
        let told = masked(words.split_whitespace().map(str::to_owned)).join(" ");
        assert!(!told.contains("secret"), "{told}");
        for kept in ["--rps 5", "Authorization: …", "--header=Cookie: …", "@file", "-HX-Key: …"]
        {
            assert!(told.contains(kept), "no {kept} in {told}");
        }
    }
}
