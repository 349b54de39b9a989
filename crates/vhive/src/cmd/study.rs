//! `vhive study`: measures on a running node, or simulates.

mod compare;
mod simulate;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use vhive_api::{Bytes, RuntimeName};
use vhive_study::plan::{COLD_START, Cache, Counters, PAGES, PARALLEL, RUNTIMES};
use vhive_study::{
    Deadline, Door, Kind, Plan, Session, StudyError, StudyName, Target, cold_start, parallel,
    runtimes,
};

use super::report;
use crate::cli::Global;
use crate::config::Config;
use crate::exit::Exit;
use crate::output;
use crate::stops::Stops;

/// How long the node may take to answer the first question.
const CONNECT: Duration = Duration::from_secs(10);

/// The studies.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Study {
    /// Compares cold starts by boot, snapshot and REAP, phase by phase.
    ColdStart(Args),
    /// Starts 1, 2, 4 … instances at once.
    Parallel(ParallelArgs),
    /// Counts the pages of working sets, and those that another input shares.
    Pages(Args),
    /// Compares the host's sandboxes on the same functions: starts, requests, memory, throughput.
    Runtimes(RuntimesArgs),
    /// Replays a trace in virtual time through policies, on one node or many; needs no node.
    Simulate(simulate::Args),
    /// Compares two results: of studies, of `vhive load`, or of simulations.
    Compare(compare::Args),
}

/// Arguments of `vhive study cold-start`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Plan of the study; `--print-plan` shows the default one.
    #[arg(value_name = "FILE.toml")]
    plan: Option<PathBuf>,
    /// Functions, instead of the plan's.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    functions: Option<Vec<String>>,
    /// Start kinds, instead of the plan's.
    #[arg(long, value_delimiter = ',', value_name = "KINDS")]
    kinds: Option<Vec<Kind>>,
    /// Repetitions, instead of the plan's.
    #[arg(long, value_name = "N")]
    repetitions: Option<u32>,
    /// Where the functions are, instead of the plan's place.
    #[arg(long, value_name = "DIR")]
    functions_dir: Option<PathBuf>,
    /// Runtime, instead of the manifests'.
    #[arg(long, value_name = "NAME")]
    runtime: Option<RuntimeName>,
    /// What is counted of the sandboxes' processes, instead of the plan's: off, basic (CPU time,
    /// page faults, I/O), all (also perf events: switches, cycles, cache misses, TopDown).
    #[arg(long, value_name = "WHAT")]
    counters: Option<Counters>,
    /// CPUs that the study itself runs on, e.g. 0; the sandboxes' are `vhive node --cpus`.
    #[arg(long, value_name = "LIST")]
    cpus: Option<vhive_api::Cpus>,
    /// Leave the page cache as it is.
    #[arg(long)]
    keep_cache: bool,
    /// Readahead of the node's disk for the time of the study, in KiB.
    #[arg(long, value_name = "KIB")]
    readahead: Option<u32>,
    /// Where the result goes; a new directory.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Ask the node at this port of its API instead of its unix socket.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "token")]
    api: Option<String>,
    /// File with the API's token.
    #[arg(long, value_name = "FILE", requires = "api")]
    token: Option<PathBuf>,
    /// Print the commented default plan and do nothing else.
    #[arg(long)]
    print_plan: bool,
}

/// Arguments of `vhive study parallel`.
#[derive(Debug, clap::Args)]
pub(crate) struct ParallelArgs {
    #[command(flatten)]
    common: Args,
    /// Most concurrent starts, instead of the plan's.
    #[arg(long, value_name = "N")]
    max: Option<u32>,
}

/// Arguments of `vhive study runtimes`.
#[derive(Debug, clap::Args)]
pub(crate) struct RuntimesArgs {
    #[command(flatten)]
    common: Args,
    /// Runtimes, instead of the plan's, or of all that work on the node.
    #[arg(long, value_delimiter = ',', value_name = "NAMES", conflicts_with = "runtime")]
    runtimes: Option<Vec<RuntimeName>>,
    /// Fill so much memory with idle instances; takes minutes, and root on the node's host.
    #[arg(long, value_name = "SIZE")]
    density: Option<Bytes>,
}

/// Runs a study and makes its report.
///
/// # Errors
/// What ended it early; what was measured until then is in its directory.
pub(crate) async fn run(
    global: &Global,
    config: &Config,
    study: Study,
) -> anyhow::Result<ExitCode> {
    let (name, args, own, default) = match study {
        Study::ColdStart(args) => (StudyName::ColdStart, args, Own::default(), COLD_START),
        Study::Parallel(ParallelArgs { common, max }) => {
            (StudyName::Parallel, common, Own { max, ..Own::default() }, PARALLEL)
        }
        Study::Pages(args) => (StudyName::Pages, args, Own::default(), PAGES),
        Study::Runtimes(RuntimesArgs { common, runtimes, density }) => {
            let runtimes = runtimes.or_else(|| common.runtime.map(|one| vec![one]));
            let own = Own { runtimes, density, ..Own::default() };
            (StudyName::Runtimes, common, own, RUNTIMES)
        }
        Study::Simulate(args) => return simulate::run(global, args),
        Study::Compare(args) => return compare::run(global, &args),
    };
    if args.print_plan {
        output::line(default.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let mut plan = Plan::load(args.plan.as_deref(), default)?;
    override_plan(&mut plan, &args);
    own.override_plan(&mut plan);
    plan.validate()?;
    let out = args.out.clone().unwrap_or_else(|| default_out(name.as_str()));

    let target = connect(global, config, &args).await?;
    let tell = Box::new(|line: &str| output::note(line));
    let mut session = Session::begin(name, target, plan, (&out, crate::REVISION), tell)?;
    let done = measure(&mut session, name).await;
    let cleaned = session.clean().await;
    drop(session);
    let built = report::build(global, &out);
    done.with_context(|| format!("the study ended early; its rows are in {}", out.display()))?;
    cleaned?;
    built?;
    Ok(ExitCode::SUCCESS)
}

/// What one study alone takes.
#[derive(Debug, Default)]
struct Own {
    max: Option<u32>,
    runtimes: Option<Vec<RuntimeName>>,
    density: Option<Bytes>,
}

impl Own {
    fn override_plan(self, plan: &mut Plan) {
        plan.most_parallel = self.max.unwrap_or(plan.most_parallel);
        plan.runtimes.density = self.density.or(plan.runtimes.density);
        if let Some(names) = self.runtimes {
            plan.runtimes.names = names;
        }
    }
}

/// Measures until done or interrupted.
async fn measure(session: &mut Session, name: StudyName) -> anyhow::Result<()> {
    let mut stops = Stops::heard()?;
    let work = async {
        match name {
            StudyName::ColdStart | StudyName::Pages => cold_start::run(session).await,
            StudyName::Parallel => parallel::run(session).await,
            StudyName::Runtimes => runtimes::run(session).await,
        }
    };
    tokio::select! {
        done = work => Ok::<(), StudyError>(done?)?,
        why = stops.came() => anyhow::bail!("{why}"),
    }
    Ok(())
}

async fn connect(global: &Global, config: &Config, args: &Args) -> anyhow::Result<Target> {
    let door = match (&args.api, &args.token) {
        (Some(address), Some(file)) => {
            let read = std::fs::read_to_string(file);
            let token = read.with_context(|| format!("cannot read {}", file.display()))?;
            Door::Port { address: address.clone(), token }
        }
        _ => Door::Socket(config.api_socket()),
    };
    let connected = Target::connect(door, global.namespace(), Deadline::after(CONNECT)).await;
    connected.map_err(|error| match error {
        vhive_study::http::ApiError::NoNode { at, .. } => Exit::NoNode(at).into(),
        other => other.into(),
    })
}

fn override_plan(plan: &mut Plan, args: &Args) {
    if let Some(functions) = &args.functions {
        plan.functions.clone_from(functions);
    }
    if let Some(kinds) = &args.kinds {
        plan.kinds.clone_from(kinds);
    }
    if let Some(dir) = &args.functions_dir {
        plan.functions_dir.clone_from(dir);
    }
    plan.repetitions = args.repetitions.unwrap_or(plan.repetitions);
    plan.runtime = args.runtime.or(plan.runtime);
    plan.counters = args.counters.unwrap_or(plan.counters);
    plan.cpus = args.cpus.clone().or_else(|| plan.cpus.take());
    plan.readahead_kib = args.readahead.or(plan.readahead_kib);
    if args.keep_cache {
        plan.cache = Cache::Keep;
    }
}

/// `results/cold-start-20260131T120000`, in the working directory.
fn default_out(name: &str) -> PathBuf {
    let at = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S");
    Path::new("results").join(format!("{name}-{at}"))
}
