//! The command line of `vhive load`, with the original's names as aliases.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};
use vhive_load::LONGEST;
use vhive_load::inject::{Act, Failure, FailureError};
use vhive_load::output::Files;
use vhive_load::sweep::Plan;
use vhive_load::trace::convert::Start;
use vhive_load::trace::synth::{Mode, Synth};
use vhive_load::{Arrivals, GrpcCall, Load, Plain, Protocol, Target, endpoints, fingerprint, grpc};

use crate::output;

/// Names of the original's files.
const LATENCIES: &str = "lat.csv";
const DURATIONS: &str = "dur.csv";

/// A time span: `30s`, or a bare number of seconds as the original has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seconds(pub(crate) Duration);

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = match text.parse::<f64>() {
            Ok(seconds) => Duration::try_from_secs_f64(seconds)
                .map_err(|_| format!("{text} seconds are no time span"))?,
            Err(_) => match text.parse::<vhive_api::Span>() {
                Ok(span) => span.into(),
                Err(error) => return Err(error.to_string()),
            },
        };
        if span > LONGEST {
            return Err(format!("{text} is longer than ten years, the most that is waited for"));
        }
        Ok(Self(span))
    }
}

/// A number of something that each takes memory: a million at most.
fn count<T: TryFrom<u64> + Clone + Send + Sync + 'static>(
    least: u64,
) -> clap::builder::RangedU64ValueParser<T>
where
    <T as TryFrom<u64>>::Error: Send + Sync + 'static + std::error::Error + ToString,
{
    clap::builder::RangedU64ValueParser::new().range(least..=1_000_000)
}

/// A part of a whole.
fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    let fits = (0.0..=1.0).contains(&share);
    fits.then_some(share).ok_or_else(|| "a share is from 0 to 1; 5 % are 0.05".to_owned())
}

/// Where arrivals come from.
#[derive(Clone, Debug)]
pub(crate) enum Gaps {
    /// The rate.
    At(Arrivals),
    /// A file.
    File(PathBuf),
}

impl FromStr for Gaps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("file:") {
            Some(path) => Ok(Self::File(path.into())),
            None => text.parse().map(Self::At),
        }
    }
}

/// Whom requests go to, and over what.
#[derive(Debug, clap::Args)]
pub(crate) struct To {
    /// The functions, as the deployer writes them.
    #[arg(long, alias = "endpointsFile", default_value = "endpoints.json", value_name = "FILE")]
    pub(crate) endpoints: PathBuf,
    /// Connect here, whatever the endpoints' names lead to.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) gateway: Option<String>,
    /// Port of endpoints that have no address; 80 unless given.
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// What the functions speak: http1, h2c or grpc; else what the endpoints say, else gRPC.
    #[arg(long)]
    pub(crate) protocol: Option<Protocol>,
    /// Connections opened to each address before the run.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub(crate) connections: usize,
    /// Connections to one address at most; requests that find no room on one wait, and are late.
    #[arg(long, default_value_t = 4096, value_name = "N")]
    pub(crate) max_connections: usize,
    /// The most that a request may take; 30s unless given.
    #[arg(long, alias = "grpcTimeout", value_name = "SPAN")]
    pub(crate) timeout: Option<Seconds>,
    /// How long replies are waited for after the last send; twice the time-out unless given: by then each
    /// request has connected and been answered, or has timed out.
    #[arg(long, value_name = "SPAN")]
    pub(crate) drain: Option<Seconds>,
    /// How long before a send the sender stops sleeping and watches the clock; 0 saves CPU time
    /// and costs precision.
    #[arg(long, default_value = "150us", value_name = "SPAN")]
    pub(crate) spin: Seconds,
    /// Stay awake while replies are awaited: they are then timed to the microsecond, which costs a
    /// CPU.
    #[arg(long)]
    pub(crate) busy: bool,
    /// CPUs that the generator runs on, e.g. 1 or 2-3; any unless given.
    #[arg(long, value_name = "LIST")]
    pub(crate) cpus: Option<vhive_api::Cpus>,
    /// Ask the node's records, once a second, how each request's instance was started.
    #[arg(long)]
    pub(crate) records: bool,
    /// Also write the rows as `rows.parquet`, at the end of the run.
    #[arg(long)]
    pub(crate) parquet: bool,
}

impl To {
    /// What a result depends on: the options, and what the endpoints' file says now.
    pub(crate) fn given(&self) -> Value {
        let endpoints = fingerprint(&self.endpoints).ok().flatten();
        // Whatever options there are: one that is forgotten here would let old results pass for new ones.
        json!({ "endpoints": endpoints, "options": format!("{self:?}") })
    }

    /// One target per endpoint, in their order, and defaults. `port` is what goes before 80.
    pub(crate) fn load(&self, port: Option<u16>) -> anyhow::Result<Load> {
        let port = self.port.or(port).unwrap_or(80);
        let endpoints = endpoints::read(&self.endpoints)?;
        let target = |endpoint: &vhive_load::Endpoint| {
            let own = || endpoint.address.clone();
            let named = || format!("{}:{}", endpoint.hostname, port);
            Target {
                hostname: endpoint.hostname.clone(),
                address: self.gateway.clone().or_else(own).unwrap_or_else(named),
                protocol: self.protocol.or(endpoint.protocol).unwrap_or(Protocol::Grpc),
            }
        };
        let mut load = Load::to(endpoints.iter().map(target).collect());
        self.wait(&mut load, None);
        load.tells_drain = Some(tell_drain);
        load.connections = self.connections;
        load.most_connections = self.max_connections;
        load.spin = self.spin.0;
        load.busy = self.busy;
        Ok(load)
    }
}

impl To {
    /// Sets how long a request may take, `patience` unless it was asked for, and how long replies are waited
    /// for: the longest are not to be cut off, which would make the rest look fast.
    pub(crate) fn wait(&self, load: &mut Load, patience: Option<Duration>) {
        let asked = self.timeout.map(|timeout| timeout.0);
        load.patience = asked.or(patience).unwrap_or(load.patience);
        load.drain = self.drain.map_or(load.patience.saturating_mul(2), |drain| drain.0);
    }
}

fn tell_drain(under_way: u64, most: Duration) {
    output::note(format!(
        "{under_way} replies are awaited, {most:?} at most (`--drain`); a second Ctrl-C ends that"
    ));
}

/// What all ways of sending the same request share.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(crate) to: To,
    /// A file of these options by their long names, e.g. `rps = 50` and `time = "30s"`; those on the
    /// command line go before. (It is read before the command line is.)
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) plan: Option<PathBuf>,
    /// HTTP method; POST with a body, else GET.
    #[arg(long, short = 'X')]
    pub(crate) method: Option<Method>,
    /// Path and query.
    #[arg(long, default_value = "/")]
    pub(crate) path: String,
    /// Body; `@FILE` reads a file. Of a gRPC greeting, the name.
    #[arg(long, short)]
    pub(crate) data: Option<String>,
    /// Call this gRPC method instead of the greeting: `package.Service/Method`; the body is JSON, of a
    /// stream of messages a list. What its messages are, the first endpoint's server is asked
    /// (reflection), unless there is a descriptor set.
    #[arg(long, value_name = "METHOD")]
    pub(crate) grpc_method: Option<String>,
    /// A file of `protoc --include_imports --descriptor_set_out` that has that method.
    #[arg(long, requires = "grpc_method", value_name = "FILE")]
    pub(crate) descriptor_set: Option<PathBuf>,
    /// Extra header, `Name: value`.
    #[arg(long, short = 'H', value_name = "HEADER")]
    pub(crate) header: Vec<String>,
    /// Of random arrivals.
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// Where the files of the run go; those of an earlier one are overwritten.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Name of the file of latencies, behind `rps<X>_`.
    #[arg(long, default_value = LATENCIES, value_name = "NAME")]
    pub(crate) latf: String,
    /// Write what functions say they took.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) profile: bool,
    /// Name of the file of those durations.
    #[arg(long, default_value = DURATIONS, value_name = "NAME")]
    pub(crate) durf: String,
    /// The original's: tracing is not offered, so only `false`.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) trace: bool,
    /// The original's, of tracing.
    #[arg(long, hide = true)]
    pub(crate) zipkin: Option<String>,
    /// The original's: more logs; see `--log`.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) dbg: bool,
}

/// Arguments of `vhive load rps`.
#[derive(Debug, clap::Args)]
pub(crate) struct RpsArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Requests per second, to all endpoints together.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) rps: f64,
    /// How long is sent; a bare number counts seconds.
    #[arg(long, default_value = "5s", value_name = "SPAN")]
    pub(crate) time: Seconds,
    /// `fixed` gaps, `poisson`, or `file:PATH` with seconds from the beginning, one a line.
    #[arg(long, default_value = "fixed", value_name = "KIND")]
    pub(crate) arrivals: Gaps,
    #[command(flatten)]
    pub(crate) fail: Fail,
}

/// What is broken on purpose while a run goes on.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Fail {
    /// Run a shell command so long after the run's beginning; may be given several times.
    #[arg(long, value_name = "SPAN:COMMAND")]
    pub(crate) fail: Vec<String>,
    /// Stop a service's idle instances then, through the node's API.
    #[arg(long, value_name = "SPAN:SERVICE")]
    pub(crate) fail_instances: Vec<String>,
}

impl Fail {
    /// The failures asked for.
    pub(crate) fn failures(&self) -> anyhow::Result<Vec<Failure>> {
        let read = |text: &String, act: fn(String) -> Act| {
            let wrong = || FailureError::Line(text.clone());
            let (at, what) = text.split_once(':').ok_or_else(wrong)?;
            let at: Seconds = at.parse().map_err(|_| wrong())?;
            if what.trim().is_empty() {
                return Err(wrong());
            }
            Ok(Failure { at: at.0, act: act(what.to_owned()) })
        };
        let commands = self.fail.iter().map(|text| read(text, Act::Command));
        let instances = self.fail_instances.iter().map(|text| read(text, Act::Instances));
        let all: Result<Vec<_>, FailureError> = commands.chain(instances).collect();
        Ok(all?)
    }
}

/// Arguments of `vhive load closed`.
#[derive(Debug, clap::Args)]
pub(crate) struct ClosedArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Requests under way at a time.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count::<usize>(1))]
    pub(crate) clients: usize,
    /// How long is sent; a bare number counts seconds.
    #[arg(long, default_value = "5s", value_name = "SPAN")]
    pub(crate) time: Seconds,
    #[command(flatten)]
    pub(crate) fail: Fail,
}

/// Arguments of `vhive load sweep`.
#[derive(Debug, clap::Args)]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// First rate; it doubles until it does not hold.
    #[arg(long, default_value_t = 10.0, value_name = "RPS")]
    pub(crate) from: f64,
    /// Highest rate that is tried.
    #[arg(long, default_value_t = 100_000.0, value_name = "RPS")]
    pub(crate) most: f64,
    /// The p99 may be so many times that of one client alone.
    #[arg(long, default_value_t = 3.0, value_name = "FACTOR")]
    pub(crate) within: f64,
    /// How exactly the knee is wanted, as a share of it.
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    pub(crate) precision: f64,
    /// How long each rate is sent, at least.
    #[arg(long, default_value = "5s", value_name = "SPAN")]
    pub(crate) time: Seconds,
    /// Replies of one client alone, and twice as many requests at each rate, for which it is sent up to
    /// twenty times longer.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = count::<u64>(1))]
    pub(crate) replies: u64,
    /// Requests to each endpoint before anything is measured; the first is a cold start.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count::<u64>(0))]
    pub(crate) warm_up: u64,
    /// What is waited for after these.
    #[arg(long, default_value = "1s", value_name = "SPAN")]
    pub(crate) settle: Seconds,
    /// `fixed` or `poisson`.
    #[arg(long, default_value = "poisson", value_name = "KIND")]
    pub(crate) arrivals: Arrivals,
}

/// Arguments of `vhive load trace`.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "options of a command line")]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    pub(crate) to: To,
    /// The experiment, in the original loader's keys; its `-config` is understood too.
    #[arg(long, value_name = "FILE.json")]
    pub(crate) experiment: PathBuf,
    /// Seed, instead of the configuration's.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Refuse a trace of exact times in which an invocation begins before the trace, or two of a function in
    /// the same microsecond, as the original does; else these are left out or moved, and counted.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Show what would be sent, and send nothing.
    #[arg(long, alias = "dryRun", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) dry_run: bool,
    /// Write every function's arrivals to `iat<i>.json`, and send nothing.
    #[arg(long, alias = "iatGeneration", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) iat_generation: bool,
    /// Take the arrivals from `iat<i>.json`.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) generated: bool,
    /// Where those files are.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub(crate) iat_dir: PathBuf,
    #[command(flatten)]
    pub(crate) fail: Fail,
    /// A failure, in the original's keys.
    #[arg(long, alias = "failureConfig", value_name = "FILE.json")]
    pub(crate) failure_config: Option<PathBuf>,
    /// The original's: see `--log`.
    #[arg(long, hide = true)]
    pub(crate) verbosity: Option<String>,
}

/// Arguments of `vhive load experiments`.
#[derive(Debug, clap::Args)]
pub(crate) struct MultiArgs {
    #[command(flatten)]
    pub(crate) to: To,
    /// Studies and what they vary, in the keys of the original's multi-loader.
    #[arg(long, alias = "multiLoaderConfig", value_name = "FILE.json")]
    pub(crate) studies: PathBuf,
    /// Go on with the next study when an experiment fails, instead of trying it once more.
    #[arg(long, alias = "failFast", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) fail_fast: bool,
    /// Run again what an earlier run has finished.
    #[arg(long)]
    pub(crate) again: bool,
    /// Run again what an earlier run has finished with more failed requests than this share (0 to 1).
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub(crate) retry_above: Option<f64>,
    /// Show the experiments, and run none.
    #[arg(long, alias = "dryRun", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) dry_run: bool,
    /// The original's: see `--log`.
    #[arg(long, hide = true)]
    pub(crate) verbosity: Option<String>,
}

/// Whose trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Whose {
    /// Azure Functions 2019 as published: three files a day, memory by application.
    #[value(alias = "preprocess")]
    Azure2019,
    /// Huawei 2023: tables of requests per minute or second.
    #[value(alias = "preprocessHuawei2023")]
    Huawei2023,
    /// Huawei 2025: tables of single requests.
    Huawei2025,
    /// IBM 2026: lists of invocations, as CSV.
    #[value(alias = "preprocessIBM2026")]
    Ibm2026,
}

/// Arguments of `vhive load convert`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConvertArgs {
    /// Whose trace it is.
    #[arg(value_enum)]
    pub(crate) from: Whose,
    /// Azure 2019: the directory of the published files; Huawei 2023: that of `requests_minute`; of
    /// the others, files.
    #[arg(long, short, alias = "from", value_name = "PATH", required = true, num_args = 1..)]
    pub(crate) trace: Vec<PathBuf>,
    /// Azure 2019: the day, as the files count; `--start` is then in it. Memory is known of 1 to 12.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=14))]
    pub(crate) day: Option<u32>,
    /// Where in the trace to begin: `DD:HH:MM`, the first day being 00, or a number of minutes.
    #[arg(long, short, default_value = "00:00:00", value_name = "DD:HH:MM")]
    pub(crate) start: Start,
    /// Minutes; of Azure 2019 the rest of the day unless given.
    #[arg(long, alias = "dur", value_name = "MINUTES")]
    pub(crate) duration: Option<u64>,
    /// Huawei 2023: read the tables per second; the trace's columns are then seconds.
    #[arg(long)]
    pub(crate) seconds: bool,
    /// Huawei 2023, public: every invocation's runtime, which the trace does not tell.
    #[arg(long, requires = "memory", value_name = "MS")]
    pub(crate) runtime: Option<u32>,
    /// Huawei 2023, public: likewise memory.
    #[arg(long, requires = "runtime", value_name = "MIB")]
    pub(crate) memory: Option<u32>,
    /// The directory (Azure 2019, Huawei 2023) or `.csv` file (the others) to write.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
}

/// Arguments of `vhive load synth`.
#[derive(Debug, clap::Args)]
pub(crate) struct SynthArgs {
    /// Functions of the trace.
    #[arg(long, short, default_value_t = 1, value_name = "N")]
    pub(crate) functions: usize,
    /// First rate of each function, a second.
    #[arg(long, short, default_value_t = 1, value_name = "RPS")]
    pub(crate) beginning: u32,
    /// Last rate.
    #[arg(long, short, default_value_t = 1, value_name = "RPS")]
    pub(crate) target: u32,
    /// From one rate to the next.
    #[arg(long, short, default_value_t = 1, value_name = "RPS")]
    pub(crate) step: u32,
    /// Minutes of each rate; of a sweep or burst, in all.
    #[arg(long, alias = "dur", default_value_t = 1, value_name = "MINUTES")]
    pub(crate) duration: usize,
    /// Runtime of every invocation, in milliseconds.
    #[arg(long, short, default_value_t = 1000, value_name = "MS")]
    pub(crate) execution: u32,
    /// Memory of every invocation, in mebibytes.
    #[arg(long, alias = "mem", default_value_t = 120, value_name = "MIB")]
    pub(crate) memory: u32,
    /// 0 `normal`, 1 `sweep`, 2 `burst`; `day`: rates, runtimes and memory in the published shape of
    /// a day of Azure Functions, few functions having most invocations.
    #[arg(long, short, default_value = "normal")]
    pub(crate) mode: Mode,
    /// Of a day: about so many invocations in all; what the shape has unless given.
    #[arg(long, value_name = "N")]
    pub(crate) invocations: Option<u64>,
    /// Of a day: the same seed draws the same one.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) seed: u64,
    /// Where the three files go.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

impl SynthArgs {
    pub(crate) const fn synth(&self) -> Synth {
        Synth {
            functions: self.functions,
            beginning: self.beginning,
            target: self.target,
            step: self.step,
            minutes: self.duration,
            runtime_ms: self.execution,
            memory_mib: self.memory,
            mode: self.mode,
            invocations: self.invocations,
            seed: self.seed,
        }
    }
}

/// Arguments of `vhive load sample`.
#[derive(Debug, clap::Args)]
pub(crate) struct SampleArgs {
    /// Directory of a trace of Azure Functions 2019.
    #[arg(long, short, alias = "source_trace", value_name = "DIR")]
    pub(crate) trace: PathBuf,
    /// The trace that samples shall be like; the same one unless given.
    #[arg(long, alias = "original_trace", value_name = "DIR")]
    pub(crate) orig: Option<PathBuf>,
    /// Minutes of it that count.
    #[arg(long, default_value_t = 60, value_name = "N")]
    pub(crate) minutes: usize,
    /// Functions of the smallest sample.
    #[arg(long, alias = "min-size", value_name = "N")]
    pub(crate) min: usize,
    /// Functions of the largest; that of the smallest unless given.
    #[arg(long, alias = "max-size", value_name = "N")]
    pub(crate) max: Option<usize>,
    /// From one size to the next.
    #[arg(long, aliases = ["st", "step-size"], default_value_t = 1000, value_name = "N")]
    pub(crate) step: usize,
    /// Random candidates per size.
    #[arg(long, aliases = ["tr", "trial-num"], default_value_t = 16, value_name = "N")]
    pub(crate) trials: u32,
    /// The original's, without effect: each distance is divided by its figure's mean instead.
    #[arg(long, alias = "res-norm", hide = true)]
    pub(crate) res: Option<f64>,
    /// Of the candidates.
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// Each sample goes into a directory in here, named by its size.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

/// Arguments of `vhive load deploy`.
#[derive(Debug, clap::Args)]
pub(crate) struct DeployArgs {
    /// Which functions, and how many of each.
    #[arg(
        long,
        alias = "jsonFile",
        default_value = "./tools/deployer/functions.json",
        value_name = "FILE"
    )]
    pub(crate) json: PathBuf,
    /// Directory of the manifests that it names.
    #[arg(
        long,
        alias = "funcPath",
        default_value = "./configs/knative_workloads",
        value_name = "DIR"
    )]
    pub(crate) path: PathBuf,
    /// Where the endpoints that are ready are written.
    #[arg(long, alias = "endpointsFile", default_value = "endpoints.json", value_name = "FILE")]
    pub(crate) endpoints: PathBuf,
    /// Services deployed at a time.
    #[arg(long, alias = "conc", default_value_t = 5, value_name = "N")]
    pub(crate) concurrency: usize,
    /// Domain of the host names, instead of the one that the platform tells.
    #[arg(long, alias = "gatewayURL", value_name = "DOMAIN")]
    pub(crate) gateway_url: Option<String>,
    /// How long a service may take to be ready.
    #[arg(long, default_value = "10m", value_name = "SPAN")]
    pub(crate) timeout: Seconds,
    /// Deploy to the cluster of this file instead of the node; nothing is taken from $KUBECONFIG.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// A context of that file, instead of its current one.
    #[arg(long, requires = "kubeconfig", value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Begin with as many instances as this experiment's first minute keeps busy (`load trace`).
    #[arg(long, value_name = "FILE.json", conflicts_with = "delete")]
    pub(crate) experiment: Option<PathBuf>,
    /// Delete what this command has deployed from the same file, and nothing else.
    #[arg(long)]
    pub(crate) delete: bool,
}

impl SweepArgs {
    /// Refuses what a sweep would take and do nothing with.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let common = &self.common;
        for (given, name, what) in [
            (
                common.to.records,
                "--records",
                "run `vhive load rps` at one rate to tell starts apart",
            ),
            (common.profile, "--profile", "it keeps no functions' durations"),
            (common.latf != LATENCIES, "--latf", "its latencies are in rows.csv"),
            (common.durf != DURATIONS, "--durf", "it keeps no functions' durations"),
        ] {
            if given {
                bail!("{name} is without effect in a sweep: {what}");
            }
        }
        Ok(())
    }

    pub(crate) fn plan(&self) -> Plan {
        Plan {
            rates: (self.from, self.most),
            arrivals: self.arrivals,
            time: self.time.0,
            replies: self.replies,
            warm_up: self.warm_up,
            settle: self.settle.0,
            within: self.within,
            precision: self.precision,
            seed: self.common.seed,
        }
    }
}

impl Common {
    /// What is sent to whom.
    pub(crate) async fn load(&self) -> anyhow::Result<Load> {
        self.spans()?;
        let mut load = self.to.load(None)?;
        load.plain = self.plain()?;
        load.reads_replies = self.profile;
        if let Some(name) = &self.grpc_method {
            load.plain.call = Some(self.call(name, &load).await?);
            load.targets.iter_mut().for_each(|target| target.protocol = Protocol::Grpc);
        }
        Ok(load)
    }

    /// Spans are refused; where they would go, without them, has no effect in the original either.
    fn spans(&self) -> anyhow::Result<()> {
        if self.trace {
            bail!("--trace: spans are not offered; `--records` tells where the time went");
        }
        if self.zipkin.is_some() {
            output::note("without effect: --zipkin: there are no spans without --trace");
        }
        Ok(())
    }

    async fn call(&self, name: &str, load: &Load) -> anyhow::Result<GrpcCall> {
        let method = match (&self.descriptor_set, load.targets.first()) {
            (Some(path), _) => {
                let set = std::fs::read(path);
                let set = set.with_context(|| format!("cannot read {}", path.display()))?;
                grpc::from_set(&set, name)?
            }
            (None, Some(Target { address, hostname, .. })) => {
                grpc::by_reflection(address, hostname, name, load.patience).await?
            }
            (None, None) => bail!("there is no endpoint to ask for {name}"),
        };
        Ok(grpc::call(&method, &load.plain.body)?)
    }

    fn plain(&self) -> anyhow::Result<Plain> {
        let body = match self.data.as_deref() {
            None => Vec::new(),
            Some(data) => match data.strip_prefix('@') {
                None => data.as_bytes().to_vec(),
                Some(path) => std::fs::read(path).with_context(|| format!("cannot read {path}"))?,
            },
        };
        let header = |text: &String| {
            let (name, value) = text.split_once(':').context("a header is `Name: value`")?;
            let name: HeaderName = name.trim().parse().context("bad header name")?;
            let value: HeaderValue = value.trim().parse().context("bad header value")?;
            anyhow::Ok((name, value))
        };
        let headers: anyhow::Result<Vec<_>> = self.header.iter().map(header).collect();
        let path: http::uri::PathAndQuery =
            self.path.parse().with_context(|| format!("{:?} is not a path", self.path))?;
        let default = if self.data.is_some() { Method::POST } else { Method::GET };
        let method = self.method.clone().unwrap_or(default);
        let path = path.as_str().to_owned();
        Ok(Plain { method, path, headers: headers?, body: body.into(), call: None })
    }

    pub(crate) fn files(&self, load: &Load) -> Files {
        Files {
            dir: self.out.clone(),
            latencies: self.latf.clone(),
            durations: self.profile.then(|| self.durf.clone()),
            targets: load.targets.iter().map(|target| target.hostname.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
