//! What is simulated: one TOML file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vhive_api::{Bytes, MemoryMode, PrefetchPolicy, RuntimeName, SnapshotPolicy, Span};
use vhive_policy::autoscale::{Aggregation, Metric, PolicyKind, Rules};
use vhive_policy::placement::Placement;

use crate::plan::PlanError;

/// The commented default of `vhive study simulate`; a test proves that it equals
/// [`SimPlan::default`].
pub const SIMULATE: &str = include_str!("../../../../studies/simulate.toml");

/// The longest trace: thirty days.
const MOST_MINUTES: usize = 30 * 1440;
const MOST_FUNCTIONS: usize = 1_000_000;

/// A simulation's plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimPlan {
    /// Of everything that is drawn.
    pub seed: u64,
    /// Threads; 0 = as many as there are CPUs. The result does not depend on it.
    pub threads: usize,
    /// Which invocations come.
    pub trace: TracePlan,
    /// Files with measured starts: JSON lines of records, or of a study's rows.
    pub starts: Vec<PathBuf>,
    /// Of them, those in this runtime only; absent = each function in each runtime is one by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeName>,
    /// What holds for every function.
    pub function: FunctionPlan,
    /// On what they run.
    pub cluster: ClusterPlan,
    /// How often policies are looked at while there is anything to follow.
    pub tick: Span,
    /// How late a look is: the node's timer counts whole milliseconds. It matters, because a look
    /// that comes after the end of a second tells a little of that second as part of the next one.
    pub late: Span,
    /// The policies that are compared.
    pub policies: Vec<PolicyPlan>,
}

/// Which invocations come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracePlan {
    /// Where they come from.
    pub kind: TraceKind,
    /// Directory (`azure2019`) or file (`azure2021`, `rows`).
    pub path: Option<PathBuf>,
    /// Minutes that are simulated.
    pub minutes: usize,
    /// `day`, `steady`: functions.
    pub functions: usize,
    /// `day`: about so many invocations in a whole day; absent = what the shape has.
    pub invocations: Option<u64>,
    /// `steady`: invocations of each function in each minute.
    pub per_minute: u32,
    /// `steady`: how long each takes.
    pub runtime: Span,
    /// `steady`: memory of an instance.
    pub memory: Bytes,
    /// How moments within a minute are drawn: a name of the load generator's.
    pub distribution: String,
}

/// Where a trace comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceKind {
    /// Drawn such that it has the published shape of a day of Azure Functions in 2019.
    #[default]
    Day,
    /// A directory of Azure Functions 2019.
    Azure2019,
    /// A file of Azure Functions 2021.
    Azure2021,
    /// The same for each function and minute.
    Steady,
    /// What `vhive load` has sent: its `rows.jsonl`.
    Rows,
}

/// What holds for every function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FunctionPlan {
    /// Requests that an instance holds at a time; 0 = no limit.
    pub concurrency: u32,
    /// Whether snapshots are taken, and how instances start from them.
    pub snapshot: SnapshotPolicy,
    /// How pages are recorded and prefetched.
    pub prefetch: PrefetchPolicy,
    /// A start that prefetched and still faulted on more than this share of the pages, in per cent,
    /// lets the next one record again.
    pub rerecord_above_percent: u32,
    /// Memory of an instance.
    pub memory: Memory,
}

impl FunctionPlan {
    /// Whether a boot's first reply leaves a snapshot behind.
    #[must_use]
    pub fn takes_snapshots(&self) -> bool {
        self.snapshot != SnapshotPolicy::Off
    }

    /// Whether a start from a snapshot in this mode, of those that there `can` be, ends in a working set.
    #[must_use]
    pub fn records_in(&self, mode: MemoryMode, can: &[MemoryMode]) -> bool {
        vhive_policy::start::records(self.snapshot, self.prefetch, mode, can)
    }
}

/// How much memory an instance has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Memory {
    /// The median that the trace tells of its function.
    #[default]
    Trace,
    /// The median that was measured, where starts were.
    Measured,
    /// So much.
    Fixed(Bytes),
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trace => f.write_str("trace"),
            Self::Measured => f.write_str("measured"),
            Self::Fixed(bytes) => bytes.fmt(f),
        }
    }
}

impl From<Memory> for String {
    fn from(memory: Memory) -> Self {
        memory.to_string()
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "trace" => Ok(Self::Trace),
            "measured" => Ok(Self::Measured),
            size => size.parse().map(Self::Fixed).map_err(|error| {
                format!("must be `trace`, `measured` or a size such as 128MiB: {error}")
            }),
        }
    }
}

impl TryFrom<String> for Memory {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// On what the functions run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterPlan {
    /// Nodes; 0 = one without a limit, on which functions do not touch each other.
    pub nodes: usize,
    /// Memory of each for instances.
    pub memory: Bytes,
    /// Starts of a node that are under way at a time, the others wait; 0 = none waits.
    pub start_threads: u32,
    /// A function that has been started and is not ready after so long lets the next start begin.
    pub start_turn: Span,
    /// Placements that are compared.
    pub placements: Vec<Placement>,
}

/// A policy with its parameters. What is absent is the node's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyPlan {
    /// Shown in rows; absent = made of the policy and its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which.
    pub kind: PolicyKind,
    /// `fixed`, `histogram`: how long an unused instance is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<Span>,
    /// `kpa`: the stable window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// `kpa`: which part of the concurrency to aim at, in per cent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_percent: Option<f64>,
    /// `kpa`: the panic window in per cent of the stable one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panic_window_percent: Option<f64>,
    /// `kpa`: load at which it panics, in per cent of the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panic_threshold_percent: Option<f64>,
    /// `kpa`: how long the last instance stays beyond the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
    /// `kpa`: how long a decision to have fewer instances is held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_down_delay: Option<Span>,
    /// Fewest instances of each function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Most instances of each function; 0 = no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Whether snapshots are taken, and how instances start from them, instead of the function's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotPolicy>,
    /// How pages are recorded and prefetched, instead of the function's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<PrefetchPolicy>,
}

/// Load per instance that Knative aims at where an instance has no limit.
const UNLIMITED: f64 = 100.0;

impl PolicyPlan {
    /// A policy with its defaults.
    #[must_use]
    pub fn of(kind: PolicyKind) -> Self {
        Self { kind, ..Self::default() }
    }

    /// The rules for functions of this concurrency.
    #[must_use]
    pub fn rules(&self, concurrency: u32) -> Rules {
        let span = |chosen: Option<Span>, seconds: u64| {
            chosen.unwrap_or(Span(Duration::from_secs(seconds)))
        };
        let total = if concurrency == 0 { UNLIMITED } else { f64::from(concurrency) };
        let part = self.target_percent.unwrap_or(70.0) / 100.0;
        Rules {
            target: (total * part).max(0.01),
            total,
            metric: Metric::Concurrency,
            aggregation: Aggregation::Linear,
            min: self.min.unwrap_or(0),
            max: self.max.unwrap_or(0),
            initial: 0,
            activation: 0,
            burst_capacity: 211.0,
            window: span(self.window, 60),
            panic_window_percent: self.panic_window_percent.unwrap_or(10.0),
            panic_threshold_percent: self.panic_threshold_percent.unwrap_or(200.0),
            scale_to_zero: true,
            grace: Span(Duration::ZERO),
            retention: span(self.retention, 0),
            scale_down_delay: span(self.scale_down_delay, 0),
            max_up_rate: 1000.0,
            max_down_rate: 2.0,
            policy: self.kind,
            keep_alive: span(self.keep_alive, 600),
        }
    }

    /// What holds for every function under it.
    #[must_use]
    pub fn function(&self, of_all: &FunctionPlan) -> FunctionPlan {
        FunctionPlan {
            snapshot: self.snapshot.unwrap_or(of_all.snapshot),
            prefetch: self.prefetch.unwrap_or(of_all.prefetch),
            ..of_all.clone()
        }
    }

    /// Its name in rows.
    #[must_use]
    pub fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            let rules = self.rules(1);
            let mut label = match self.kind {
                PolicyKind::Kpa => format!("kpa {}", rules.window),
                PolicyKind::Fixed => format!("fixed {}", rules.keep_alive),
                PolicyKind::Histogram => format!("histogram {}", rules.keep_alive),
            };
            let words =
                [self.snapshot.map(|s| s.to_string()), self.prefetch.map(|p| p.to_string())];
            for word in words.into_iter().flatten() {
                label.push(' ');
                label.push_str(&word);
            }
            label
        })
    }
}

/// Written `kpa`, `kpa:60s`, `fixed:10m`, `histogram:10m`: the time is the window of `kpa`, the
/// keep-alive of the others. How instances start may follow: `fixed:10m/lazy`, `kpa/mincore`.
impl FromStr for PolicyPlan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, how) =
            text.split_once('/').map_or((text, None), |(text, how)| (text, Some(how)));
        let (kind, time) = text.split_once(':').map_or((text, None), |(kind, t)| (kind, Some(t)));
        let mut policy = Self::of(kind.parse().map_err(|why| format!("{kind:?} {why}"))?);
        let time = time.map(str::parse::<Span>).transpose().map_err(|error| error.to_string())?;
        match policy.kind {
            PolicyKind::Kpa => policy.window = time,
            PolicyKind::Fixed | PolicyKind::Histogram => policy.keep_alive = time,
        }
        if let Some(how) = how {
            let prefetch: Result<PrefetchPolicy, _> = how.parse();
            policy.prefetch = prefetch.ok();
            policy.snapshot = Some(match policy.prefetch {
                Some(_) => SnapshotPolicy::Reap,
                None => how.parse().map_err(|_| {
                    let known = SnapshotPolicy::ALL.map(SnapshotPolicy::as_str).join(", ");
                    let more = PrefetchPolicy::ALL.map(PrefetchPolicy::as_str).join(", ");
                    format!("no start policy {how:?}; known: {known}, {more}")
                })?,
            });
        }
        Ok(policy)
    }
}

impl Default for SimPlan {
    fn default() -> Self {
        let seconds = |seconds| Some(Span(Duration::from_secs(seconds)));
        let fixed = |keep_alive| PolicyPlan {
            keep_alive: seconds(keep_alive),
            ..PolicyPlan::of(PolicyKind::Fixed)
        };
        let kpa =
            |window| PolicyPlan { window: seconds(window), ..PolicyPlan::of(PolicyKind::Kpa) };
        let histogram =
            PolicyPlan { keep_alive: seconds(600), ..PolicyPlan::of(PolicyKind::Histogram) };
        Self {
            seed: 1,
            threads: 0,
            trace: TracePlan::default(),
            starts: vec![PathBuf::from("studies/simulate-starts.jsonl")],
            runtime: None,
            function: FunctionPlan::default(),
            cluster: ClusterPlan::default(),
            tick: Span(Duration::from_secs(1)),
            late: Span(Duration::from_millis(1)),
            policies: vec![kpa(60), kpa(600), fixed(60), fixed(600), fixed(3600), histogram],
        }
    }
}

impl Default for TracePlan {
    fn default() -> Self {
        Self {
            kind: TraceKind::Day,
            path: None,
            minutes: 1440,
            functions: 1000,
            invocations: None,
            per_minute: 60,
            runtime: Span(Duration::from_millis(100)),
            memory: Bytes::mib(128),
            distribution: "exponential_shift".to_owned(),
        }
    }
}

impl Default for FunctionPlan {
    fn default() -> Self {
        Self {
            concurrency: 1,
            snapshot: SnapshotPolicy::Reap,
            prefetch: PrefetchPolicy::ReapPipelined,
            rerecord_above_percent: 25,
            memory: Memory::Trace,
        }
    }
}

impl Default for ClusterPlan {
    fn default() -> Self {
        Self {
            nodes: 0,
            memory: Bytes::mib(64 << 10),
            start_threads: 0,
            start_turn: Span(Duration::from_secs(10)),
            placements: vec![Placement::FirstFit],
        }
    }
}

impl SimPlan {
    /// Reads a plan, or takes the default one.
    ///
    /// # Errors
    /// When the file cannot be read or is no plan.
    pub fn load(path: Option<&Path>) -> Result<Self, PlanError> {
        crate::plan::read(path, SIMULATE)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The first key that makes no sense.
    pub fn validate(&self) -> Result<(), PlanError> {
        let bad = |key, why: &str| Err(PlanError::Value { key, why: why.to_owned() });
        let trace = &self.trace;
        if !(1..=MOST_MINUTES).contains(&trace.minutes) {
            return bad("trace.minutes", "must be from 1 to 43200");
        }
        if !(1..=MOST_FUNCTIONS).contains(&trace.functions) {
            return bad("trace.functions", "must be from 1 to 1000000");
        }
        let needs =
            matches!(trace.kind, TraceKind::Azure2019 | TraceKind::Azure2021 | TraceKind::Rows);
        if needs && trace.path.is_none() {
            return bad("trace.path", "is needed for this kind of trace");
        }
        if let Err(why) = trace.distribution.parse::<vhive_load::trace::Distribution>() {
            return bad("trace.distribution", &why);
        }
        if self.threads > 1024 {
            return bad("threads", "must be at most 1024");
        }
        if self.starts.is_empty() {
            return bad("starts", "name a file with measured starts");
        }
        if !(Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&self.tick.0) {
            return bad("tick", "must be from 10ms to 1h");
        }
        if self.late.0 > Duration::from_secs(1) {
            return bad("late", "must be at most 1s");
        }
        if self.cluster.nodes > 100_000 {
            return bad("cluster.nodes", "must be at most 100000");
        }
        if self.cluster.start_threads > 1024 {
            return bad("cluster.start_threads", "must be at most 1024");
        }
        if self.cluster.start_turn.0 > Duration::from_secs(3600) {
            return bad("cluster.start_turn", "must be at most 1h");
        }
        if self.cluster.nodes > 0 && self.cluster.placements.is_empty() {
            return bad("cluster.placements", "name at least one");
        }
        if self.policies.is_empty() {
            return bad("policies", "name at least one");
        }
        let mut names: Vec<String> = self.policies.iter().map(PolicyPlan::label).collect();
        names.sort_unstable();
        if let Some(two) = names.windows(2).find(|two| two[0] == two[1]) {
            return bad("policies", &format!("two are called {:?}; give one a `name`", two[0]));
        }
        self.policies.iter().try_for_each(PolicyPlan::validate)
    }
}

impl PolicyPlan {
    fn validate(&self) -> Result<(), PlanError> {
        let day = Duration::from_secs(24 * 3600);
        let spans = [
            ("policies.keep_alive", self.keep_alive, day),
            ("policies.window", self.window, Duration::from_secs(3600)),
            ("policies.retention", self.retention, day),
            ("policies.scale_down_delay", self.scale_down_delay, Duration::from_secs(3600)),
        ];
        for (key, span, most) in spans {
            let least = match key {
                "policies.window" | "policies.keep_alive" => Duration::from_millis(10),
                _ => Duration::ZERO,
            };
            if span.is_some_and(|span| !(least..=most).contains(&span.0)) {
                let why = format!("must be at most {}", Span(most));
                return Err(PlanError::Value { key, why });
            }
        }
        let percents = [
            ("policies.target_percent", self.target_percent, 1.0..=100.0),
            ("policies.panic_window_percent", self.panic_window_percent, 1.0..=100.0),
            ("policies.panic_threshold_percent", self.panic_threshold_percent, 110.0..=1000.0),
        ];
        for (key, percent, range) in percents {
            if percent.is_some_and(|percent| !range.contains(&percent)) {
                let why = format!("must be from {} to {}", range.start(), range.end());
                return Err(PlanError::Value { key, why });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_default_is_the_default() {
        let documented = SimPlan::load(None).expect("the default is TOML");
        assert_eq!(documented, SimPlan::default());
        documented.validate().expect("makes sense");
        let written = toml::to_string(&documented).expect("serialises");
        assert_eq!(crate::plan::read::<SimPlan>(None, &written).expect("read"), documented);
        for line in written.lines().filter(|line| line.contains(" = ")) {
            let key = line.split(" = ").next().unwrap_or(line);
            assert!(SIMULATE.contains(key), "{key} is not documented");
        }
    }

    #[test]
    fn policies_are_written_short() {
        let label = |text: &str| text.parse::<PolicyPlan>().map(|policy| policy.label());
        for (text, wanted) in [
            ("kpa", "kpa 1m"),
            ("kpa:90s", "kpa 90s"),
            ("fixed:5m", "fixed 5m"),
            ("histogram", "histogram 10m"),
            ("fixed:5m/lazy", "fixed 5m lazy"),
            ("kpa/mincore", "kpa 1m reap mincore"),
        ] {
            assert_eq!(label(text), Ok(wanted.to_owned()));
        }
        assert!(label("lru").is_err() && label("fixed:x").is_err());
        assert!(label("kpa/eager").is_err_and(|why| why.contains("fault-around")));
    }

    #[test]
    fn bad_plans_are_refused_by_key() {
        for (text, key) in [
            ("[trace]\nminutes = 0", "trace.minutes"),
            ("[trace]\nfunctions = 0", "trace.functions"),
            ("[trace]\nkind = \"azure2019\"", "trace.path"),
            ("[trace]\ndistribution = \"normal\"", "trace.distribution"),
            ("starts = []", "starts"),
            ("tick = \"1ms\"", "tick"),
            ("late = \"2s\"", "late"),
            ("policies = []", "policies"),
            ("[cluster]\nnodes = 3\nplacements = []", "cluster.placements"),
            ("[cluster]\nstart_threads = 1025", "cluster.start_threads"),
            ("[cluster]\nstart_turn = \"2h\"", "cluster.start_turn"),
            ("[[policies]]\nkind = \"kpa\"\nwindow = \"2h\"", "policies.window"),
            ("[[policies]]\ntarget_percent = nan", "policies.target_percent"),
        ] {
            let plan = crate::plan::read::<SimPlan>(None, text).expect("TOML");
            let error = plan.validate().expect_err(text).to_string();
            assert!(error.starts_with(key), "{error}");
        }
        assert!(crate::plan::read::<SimPlan>(None, "seeds = 1").is_err(), "an unknown key");
        assert!(crate::plan::read::<SimPlan>(None, "[function]\nmemory = \"much\"").is_err());
    }
}
