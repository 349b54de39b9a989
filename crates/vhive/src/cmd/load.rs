//! `vhive load`: sends requests at a rate, in a closed loop, or as a trace says.

mod args;
mod convert;
mod deploy;
mod experiments;
mod fail;
mod open_files;
mod plan;
mod starts;
mod sweep_file;
mod trace;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use vhive_load::arrivals::{at_rate, from_file};
use vhive_load::inject::Failure;
use vhive_load::output::{Also, Files, OutputError, Rows, Writer, write_json};
use vhive_load::parquet;
use vhive_load::steps::StepRows;
use vhive_load::summary::Summary;
use vhive_load::sweep::{self, FEW, round_robin};
use vhive_load::{Load, Outcome, Ran, RunError, Steps, Stop, closed_loop, open_loop};
use vhive_study::run::RunFacts;

pub(crate) use self::args::DeployArgs;
use self::args::{
    ClosedArgs, ConvertArgs, Gaps, MultiArgs, RpsArgs, SampleArgs, SweepArgs, SynthArgs, To,
    TraceArgs,
};
use self::fail::Failures;
use self::open_files::{make_room, tell_room};
pub(crate) use self::plan::with_plan;
use self::starts::Starts;
use crate::cli::{Format, Global};
use crate::config::Config;
use crate::output;
use crate::stops::Stops;

/// Names of the files of a run, and of a sweep.
const ROWS: &str = "rows.jsonl";
const SUMMARY: &str = "summary.json";
const SWEEP: &str = "sweep.json";
const REPORT: &str = "report.html";
/// What is of a run as a whole: of an earlier one, it would be taken for this one's.
const AT_THE_END: [&str; 6] =
    [SUMMARY, SWEEP, REPORT, "rows.parquet", "rows.parquet.part", fail::FILE];
/// A sweep's warm-up may take so long, and is told when it takes longer than that.
const MOST_WARM_UP: Duration = Duration::from_secs(3600);
const TOLD_WARM_UP: Duration = Duration::from_secs(2);
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
        // A signal ends it like any command; only sending and deploying have something to finish.
        Command::Deploy(args) => deploy::run(global, config, args).await,
        Command::Convert(args) => convert::run(&args),
        Command::Synth(args) => trace::synth(&args),
        Command::Sample(args) => trace::sample(&args),
        Command::Rps(args) => rps(global, config, args, &stop_on_signals(STOPPING)?).await,
        Command::Closed(args) => closed(global, config, args, &stop_on_signals(STOPPING)?).await,
        Command::Sweep(args) => sweep_rates(global, args, &stop_on_signals(STOPPING)?).await,
        Command::Trace(args) => trace::run(global, config, args, &stop_on_signals(STOPPING)?).await,
        Command::Experiments(args) => {
            experiments::run(global, config, args, &stop_on_signals(STOPPING)?).await
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
    let mut load = unless(stop, args.common.load()).await?;
    make_room(&mut load);
    let shots = round_robin(&arrivals, load.targets.len());
    let files = args.common.files(&load);
    let mut run = Run::begin((global, config), &args.common.to, files, None)?;
    run.fail((global, config), args.fail.failures()?, &load);
    let ran = open_loop(&load, shots, run.rows.clone(), stop).await;
    tell_room(&load);
    run.end(global, ran, stop).await
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
    make_room(&mut load);
    let files = args.common.files(&load);
    let mut run = Run::begin((global, config), &args.common.to, files, None)?;
    run.fail((global, config), args.fail.failures()?, &load);
    let ran = closed_loop(&load, args.clients, args.time.0, run.rows.clone(), stop).await;
    tell_room(&load);
    run.end(global, ran, stop).await
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

fn begin_facts(global: &Global, to: &To) -> anyhow::Result<RunFacts> {
    let command = global.words.iter().skip(1).cloned();
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
        (global, config): (&Global, &Config),
        to: &To,
        files: Files,
        also: Option<Box<dyn Also>>,
    ) -> anyhow::Result<Self> {
        let dir = files.dir.clone();
        let facts = begin_facts(global, to)?;
        forget(&dir);
        let starts = to.records.then(|| Starts::begin(config.api_socket())).transpose()?;
        let (writer, rows) = Writer::begin(files, also)?;
        // Of a run that is killed, the rows are whole: with these facts they are a result.
        write_json(&dir.join(SUMMARY), &facts)?;
        Ok(Self { dir, writer, rows, starts, failures: None, parquet: to.parquet, facts })
    }

    /// Breaks something on purpose while it goes on.
    fn fail(&mut self, of: (&Global, &Config), failures: Vec<Failure>, load: &Load) {
        self.failures = Failures::begin(of, failures, load, &self.dir);
    }

    /// Finishes the files, also of a run that could not begin. What cannot be written costs that file,
    /// and is told; the figures are shown either way.
    async fn end(
        self,
        global: &Global,
        ran: Result<Ran, RunError>,
        stop: &Stop,
    ) -> anyhow::Result<ExitCode> {
        drop(self.rows);
        let injected = self.failures.map(Failures::end);
        let rows = self.writer.end();
        let ran = match ran {
            Ok(ran) => ran,
            Err(error) => {
                rows.drop_latencies();
                // Facts of nothing: its absence is told by the error.
                let _ = std::fs::remove_file(self.dir.join(SUMMARY));
                // Why it has not begun comes last.
                if let Some(Err(why)) = injected {
                    output::note(format!("{why:#}"));
                }
                if let Err(why) = complete(rows.lost) {
                    output::note(format!("{why:#}"));
                }
                return Err(error.into());
            }
        };
        let mut summary = rows.tally.summary(&ran);
        let starts = self.starts.map(|starts| {
            let known = starts.end()?;
            summary.records_missed = known.missed;
            let (starts, unknown) = rows.add_starts(&known.starts)?;
            summary.starts = starts.into_iter().collect();
            summary.starts_unknown = unknown;
            anyhow::Ok(())
        });
        summary.rows_lost = rows.lost.iter().map(|(count, _)| *count).max().unwrap_or(0);
        let told = Told { figures: &summary, facts: self.facts.end() };
        show(global, &summary)?;
        let written = write_json(&self.dir.join(SUMMARY), &told);
        let latencies = rows.name_latencies();
        let tables = tables(&self.dir, self.parquet, written.is_ok(), stop).await;
        end(rows)?;
        written?;
        tables?;
        output::note(format!("rows in {}, {}", self.dir.display(), latencies?.display()));
        starts.transpose()?;
        let worked = injected.transpose()?;
        Ok(if worked == Some(false) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Makes what is made of a run's rows: the Parquet file, where it is asked for, and the report.
async fn tables(dir: &Path, parquet: bool, is_reported: bool, stop: &Stop) -> anyhow::Result<()> {
    let rows = dir.join(ROWS);
    let of = rows.clone();
    let written = match parquet {
        true => Some(aside(stop, move |steps| parquet::write(&of, steps)).await),
        false => None,
    };
    if let Some(None) = written {
        if rows.with_extension("parquet").exists() {
            bail!("stopped without a report");
        }
        let _ = std::fs::remove_file(parquet::draft(&rows));
        bail!("stopped before the Parquet file was whole, and without a report");
    }
    if is_reported {
        report(dir, stop).await;
    }
    written.flatten().transpose()?;
    Ok(())
}

/// Does long work on a thread of its own; `None` when it is stopped before its end, which is that of the
/// program. From then on it takes no more steps: what it does to files is done, or never will be.
async fn aside<T: Send + 'static>(
    stop: &Stop,
    work: impl FnOnce(&Steps) -> T + Send + 'static,
) -> Option<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let steps = Steps::default();
    let its = steps.clone();
    std::thread::spawn(move || drop(tell.send(work(&its))));
    tokio::select! {
        done = told => Some(done.expect("it tells, unless it panics")),
        () = stop.asked_again() => {
            steps.end();
            None
        }
    }
}

/// Makes the report, whatever came of the run. That there is none costs nothing else.
async fn report(dir: &Path, stop: &Stop) {
    let (of, shown) = (dir.to_owned(), dir.display());
    match std::fs::metadata(dir.join(ROWS)) {
        Ok(rows) if rows.len() > MOST_REPORTED => {
            output::note(format!(
                "no report yet, of so many rows: `vhive report {shown}` makes it"
            ));
        }
        _ => match aside(stop, move |steps| vhive_study::report::build_in(&of, steps)).await {
            Some(Ok(built)) => output::note(format!("report: {}", built.report.display())),
            Some(Err(error)) => {
                output::print_error(&anyhow::Error::new(error).context("no report"));
            }
            // One of an earlier run was removed when this one began.
            None if dir.join(REPORT).exists() => output::note(format!("report: {shown}/{REPORT}")),
            None => {
                output::note(format!("stopped; no report yet: `vhive report {shown}` makes it"));
            }
        },
    }
}

/// Removes what an earlier run has left in the directory, lest it be taken for this one's.
fn forget(dir: &Path) {
    let mut removed = Vec::new();
    for name in AT_THE_END {
        match std::fs::remove_file(dir.join(name)) {
            Ok(()) => removed.push(name),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = dir.join(name);
                output::note(format!("cannot remove {}: {error}", path.display()));
            }
        }
    }
    if !removed.is_empty() {
        let (removed, dir) = (removed.join(", "), dir.display());
        output::note(format!("removed, of an earlier run in {dir}: {removed}"));
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
    complete(rows.lost)?;
    if good == 0 {
        bail!("no request succeeded: {}", rows.tally.first_error().unwrap_or("see the rows"));
    }
    Ok(())
}

/// Whether every row was written.
fn complete(lost: Vec<(u64, OutputError)>) -> anyhow::Result<()> {
    let mut lost = lost.into_iter();
    let Some((count, why)) = lost.next() else { return Ok(()) };
    for (count, why) in lost {
        let why = anyhow::Error::from(why).context(format!("{count} rows were not written"));
        output::note(format!("{why:#}"));
    }
    Err(why).with_context(|| format!("{count} rows were not written"))
}

async fn sweep_rates(global: &Global, args: SweepArgs, stop: &Stop) -> anyhow::Result<ExitCode> {
    args.check()?;
    let mut load: Load = unless(stop, args.common.load()).await?;
    make_room(&mut load);
    // Each of its steps has a drain.
    load.tells_drain = None;
    let plan = args.plan();
    let warms_up = plan.warm_up_time(load.targets.len());
    if warms_up > MOST_WARM_UP {
        bail!(
            "--warm-up: that many requests to each of {} endpoints take {warms_up:?}; {MOST_WARM_UP:?} at most",
            load.targets.len()
        );
    }
    if warms_up > TOLD_WARM_UP {
        output::note(format!("warming up for {warms_up:?} (`--warm-up`)"));
    }
    let dir = args.common.out.clone();
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let facts = begin_facts(global, &args.common.to)?;
    forget(&dir);
    let targets = load.targets.iter().map(|target| target.hostname.clone()).collect();
    let mut rows = Some(StepRows::begin(&dir, targets)?);
    let table = global.output == Format::Table;
    if table {
        output::line("RATE/S     SENT      FAILED  P50 US      P99 US      LATE P99 US  VERDICT");
    }
    let mut so_far = sweep_file::SoFar::begin(&dir.join(SWEEP), plan.within, facts.clone())?;
    let done = sweep::sweep(&load, &plan, stop, &mut rows, |step| {
        so_far.add(step);
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
    .await;
    tell_room(&load);
    let done = done.inspect_err(|_| so_far.failed())?;
    let written = write_json(&dir.join(SWEEP), &Told { figures: &done, facts: facts.end() });
    match global.output {
        Format::Json => output::json(&done)?,
        Format::Table => {
            let unloaded =
                format!("unloaded p99 {:.1} us, within {}x", done.unloaded_p99_us, done.within);
            match done.knee {
                Some(knee) => output::line(format!("knee       {knee:.1}/s ({unloaded})")),
                None => output::line(format!("knee       none ({unloaded})")),
            }
            for why in &done.instead {
                output::line(format!("warning    {why}"));
            }
            if done.unloaded_replies < FEW {
                let few = done.unloaded_replies;
                output::line(format!("warning    the unloaded p99 is of {few} replies only"));
            }
            let few = done.steps.iter().filter(|step| step.sent < FEW).count();
            if few > 0 {
                output::line(format!(
                    "warning    the p99 of {few} tries is of fewer than {FEW} requests"
                ));
            }
            if done.stopped {
                output::line("warning    stopped before the knee was known");
            }
        }
    }
    let tables = tables(&dir, args.common.to.parquet, written.is_ok(), stop).await;
    output::note(format!("rows in {}", dir.display()));
    complete(rows.map(StepRows::lost).unwrap_or_default())?;
    written?;
    tables?;
    Ok(if done.knee.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is told of a signal while requests are sent.
const STOPPING: &str = "stopping: replies under way are waited for until the next signal";

/// The first signal ends the sending, the second the waiting for replies; files are finished
/// either way.
fn stop_on_signals(told: &'static str) -> anyhow::Result<Stop> {
    let stop = Stop::default();
    let (mut stops, asked) = (Stops::heard()?, stop.clone());
    tokio::spawn(async move {
        loop {
            stops.came().await;
            output::note(told);
            asked.ask();
        }
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_run_wrote_at_its_end_is_gone_when_the_next_begins() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in AT_THE_END.iter().chain(&[ROWS, "notes.txt"]) {
            std::fs::write(dir.path().join(name), "old").expect("written");
        }
        forget(dir.path());
        let left = std::fs::read_dir(dir.path()).expect("read").flatten();
        let mut left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, ["notes.txt", ROWS]);
    }

    #[test]
    fn long_work_is_left_when_it_is_stopped_once_more() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let stop = Stop::default();
            stop.ask();
            assert_eq!(aside(&stop, |_| 7).await, Some(7), "the first stop ended the sending");
            // Work that ends when this test does.
            let (_hold, ended) = std::sync::mpsc::channel::<()>();
            let work = aside(&stop, move |_| ended.recv().is_ok());
            let asks = async { stop.ask() };
            let (done, ()) = tokio::join!(work, asks);
            assert_eq!(done, None);
        });
    }

    #[test]
    fn work_that_was_left_does_nothing_more_to_files() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let dir = tempfile::tempdir().expect("a directory");
        let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let path = dir.path().join("late");
        let of = path.clone();
        let done = runtime.block_on(async {
            let stop = Stop::default();
            let work = aside(&stop, move |steps| {
                let _ = goes_on.recv();
                let taken = steps.take(|| std::fs::write(&of, "late"));
                tell.send(taken.is_some()).expect("somebody waits for it");
            });
            let (done, ()) = tokio::join!(work, async { stop.ask() });
            done
        });
        assert_eq!(done, None);
        go_on.send(()).expect("it waits");
        let patience = Duration::from_secs(30);
        assert_eq!(told.recv_timeout(patience), Ok(false), "its step was not taken");
        assert!(!path.exists());
    }

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
