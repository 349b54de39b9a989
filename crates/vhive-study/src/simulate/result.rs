//! Rows and facts of a simulation, and their files.
//!
//! ```text
//!   DIR/simulation.json  plan, host, measured starts, warnings
//!       rows.jsonl       one line per policy and placement
//!       rows.csv         the same, flat; made by the report
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vhive_api::{PrefetchPolicy, SnapshotPolicy, StartKind};
use vhive_load::{files_of_trace, fingerprint};
use vhive_policy::placement::Placement;

use super::plan::SimPlan;
use super::starts::Measured;
use super::tally::Tally;
use super::{Starts, TraceKind, Workload};
use crate::host::Host;
use crate::row::{ROWS, ResultError};

/// Name of the file with the facts.
pub const SIMULATION: &str = "simulation.json";

/// Parts of all invocations at which the added latency is told.
const QUANTILES: [f64; 9] = [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0];

/// What one policy came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The policy.
    pub policy: String,
    /// The placement, on nodes.
    pub placement: Option<Placement>,
    /// Nodes; 0 = one without a limit.
    pub nodes: usize,
    /// Requests that came. Each is one of the next four.
    pub invocations: u64,
    /// Served at once by an instance that was there.
    pub warm: u64,
    /// Waited for an instance that was busy.
    pub queued: u64,
    /// Waited for an instance that was started.
    pub cold: u64,
    /// Found no room.
    pub refused: u64,
    /// Cold ones by how the instance started, those that never were left out.
    pub cold_by_start: Vec<(StartKind, u64)>,
    /// Instances started by how, also those that no request waited for.
    pub starts: Vec<(StartKind, u64)>,
    /// Share of `cold` in `invocations`.
    pub cold_share: f64,
    /// What invocations took longer than on an instance that waits for them.
    pub added: Latency,
    /// Time in which instances were there, from the beginning of their start.
    pub instance_s: f64,
    /// Of these, while they held a request.
    pub busy_s: f64,
    /// Of these, while they were ready and held none.
    pub idle_s: f64,
    /// Memory of instances times the time in which they were there, in gigabytes (10⁹) times
    /// seconds.
    pub memory_gb_s: f64,
    /// Of these, while they were ready and held no request.
    pub idle_gb_s: f64,
    /// Most instances in one second.
    pub peak_instances: u64,
    /// Most memory in one second, in gigabytes.
    pub peak_gb: f64,
    /// Idle instances that made room for others.
    pub evicted: u64,
    /// Time that starts waited for their turn, all together; absent where none did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub turn_wait_s: f64,
    /// How often a policy was asked.
    pub decisions: u64,
    /// Minute by minute.
    pub minutes: Vec<Minute>,
    /// Instances on the average of each second; absent where more than an hour is simulated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seconds: Vec<f64>,
}

fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

/// Added latency in milliseconds, over all invocations that were served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Invocations.
    pub n: u64,
    /// Mean.
    pub mean_ms: f64,
    /// Parts of all invocations, and what they do not exceed; up to 1/128 too large.
    pub quantiles: Vec<(f64, f64)>,
}

impl Latency {
    /// What this part of all does not exceed.
    #[must_use]
    pub fn at(&self, part: f64) -> Option<f64> {
        self.quantiles.iter().find(|(at, _)| (at - part).abs() < 1e-9).map(|(_, ms)| *ms)
    }
}

/// One minute.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Minute {
    /// Requests that came.
    pub invocations: u64,
    /// Cold starts that ended.
    pub cold: u64,
    /// Most instances in one of its seconds.
    pub instances: u64,
}

impl Outcome {
    pub(super) fn of(
        tally: &Tally,
        policy: String,
        placement: Option<Placement>,
        nodes: usize,
    ) -> Self {
        let kinds = |counts: &[u64; 6]| {
            let all = StartKind::ALL.into_iter().zip(counts.iter().copied());
            all.filter(|(_, count)| *count > 0).collect::<Vec<_>>()
        };
        let seconds = |ns: u128| ns as f64 / 1e9;
        let gb_s = |byte_ns: u128| byte_ns as f64 / 1e18;
        let cold: u64 = tally.cold.iter().sum();
        let served = tally.added.n();
        let quantile = |part: f64| (part, tally.added.quantile(part) as f64 / 1e3);
        let all: Vec<(u64, u64)> = tally.seconds().collect();
        let minutes = tally.steps.iter().zip(all.chunks(super::tally::STEP));
        Self {
            policy,
            placement,
            nodes,
            invocations: tally.invocations,
            warm: tally.warm,
            queued: tally.queued,
            cold,
            refused: tally.refused,
            cold_by_start: kinds(&tally.cold),
            starts: kinds(&tally.starts),
            cold_share: if tally.invocations > 0 {
                cold as f64 / tally.invocations as f64
            } else {
                0.0
            },
            added: Latency {
                n: served,
                mean_ms: if served > 0 { tally.added_ns as f64 / served as f64 / 1e6 } else { 0.0 },
                quantiles: QUANTILES.map(quantile).to_vec(),
            },
            instance_s: seconds(tally.lived_ns),
            busy_s: seconds(tally.worked_ns),
            idle_s: seconds(tally.idled_ns),
            memory_gb_s: gb_s(tally.memory),
            idle_gb_s: gb_s(tally.idle_memory),
            peak_instances: all.iter().map(|(instances, _)| *instances).max().unwrap_or(0),
            peak_gb: all.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0) as f64 / 1e9,
            evicted: tally.evicted,
            turn_wait_s: seconds(tally.turn_ns),
            decisions: tally.looks,
            minutes: minutes
                .map(|((invocations, cold), seconds)| Minute {
                    invocations: *invocations,
                    cold: *cold,
                    instances: seconds.iter().map(|(instances, _)| *instances).max().unwrap_or(0),
                })
                .collect(),
            seconds: tally.averages(),
        }
    }

    /// Its name in tables.
    #[must_use]
    pub fn label(&self) -> String {
        label(&self.policy, self.placement)
    }
}

pub(super) fn label(policy: &str, placement: Option<Placement>) -> String {
    match placement {
        None => policy.to_owned(),
        Some(placement) => format!("{policy}, {placement}"),
    }
}

/// The facts beside the rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimFacts {
    /// Version of this schema: 1.
    pub version: u32,
    /// Version of the program.
    pub vhive: String,
    /// What was asked for.
    pub plan: SimPlan,
    /// Functions of the trace.
    pub functions: usize,
    /// Starts that were drawn from.
    pub measured: Vec<Measured>,
    /// The files that were read, and what tells whether they are still the same.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<PathBuf, String>,
    /// The host that simulated; it has no influence on the figures.
    pub host: Host,
    /// What a reader should mind.
    pub warnings: Vec<String>,
}

impl SimFacts {
    /// Facts of a simulation that is about to begin, by a program of this revision.
    #[must_use]
    pub fn new(
        plan: &SimPlan,
        workload: &Workload,
        starts: &Starts,
        revision: Option<&str>,
    ) -> Self {
        let mut warnings = starts.warnings().to_vec();
        warnings.extend(workload.notes.iter().cloned());
        warnings.extend(warn(plan));
        warnings.extend(stand_ins(plan, starts));
        Self {
            version: 1,
            vhive: env!("CARGO_PKG_VERSION").to_owned(),
            plan: plan.clone(),
            functions: workload.functions.len(),
            measured: starts.measured(),
            inputs: inputs(plan),
            host: Host::look(revision),
            warnings,
        }
    }
}

/// What can be read once only, or no more, tells nothing.
fn inputs(plan: &SimPlan) -> BTreeMap<PathBuf, String> {
    let trace = plan.trace.path.iter().flat_map(|path| files_of_trace(path));
    let of = |path: PathBuf| Some((path.clone(), fingerprint(&path).ok()??));
    trace.chain(plan.starts.iter().cloned()).filter_map(of).collect()
}

fn warn(plan: &SimPlan) -> Vec<String> {
    let mut warnings = Vec::new();
    if plan.trace.kind == TraceKind::Day {
        warnings.push(
            "The trace is drawn in the shape of published percentiles; it is not the published \
             trace, and functions in it are independent of each other."
                .to_owned(),
        );
    }
    if plan.starts.iter().any(|path| path.ends_with("simulate-starts.jsonl")) {
        warnings.push(
            "Start times are those of the example file: an emulated CPU on a busy virtual machine. \
             Give records of your own host with --starts."
                .to_owned(),
        );
    }
    warnings
}

/// Ways to prefetch that are simulated but not measured.
fn stand_ins(plan: &SimPlan, starts: &Starts) -> Vec<String> {
    let functions = plan.policies.iter().map(|policy| policy.function(&plan.function));
    let reap = functions.filter(|function| function.snapshot == SnapshotPolicy::Reap);
    let mut policies: Vec<PrefetchPolicy> = reap.map(|function| function.prefetch).collect();
    policies.sort_unstable_by_key(|policy| policy.as_str());
    policies.dedup();
    let warning = |policy: PrefetchPolicy| {
        let without = starts.without(policy);
        let names = without.join(", ");
        (!without.is_empty()).then(|| {
            format!(
                "No start by {policy} was measured of {names}: starts that prefetched otherwise \
                 stand for it."
            )
        })
    };
    policies.into_iter().filter_map(warning).collect()
}

/// A simulation as read from its directory.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// The facts.
    pub facts: SimFacts,
    /// The rows.
    pub outcomes: Vec<Outcome>,
}

impl Simulation {
    /// How many policies are missing: a simulation that was cut short, or still goes on, has not all of
    /// its plan's.
    #[must_use]
    pub fn missing(&self) -> usize {
        super::labels(&self.facts.plan).len().saturating_sub(self.outcomes.len())
    }

    /// Reads one.
    ///
    /// # Errors
    /// The first file or line that cannot be used. A last line without its end is left out, as its policy
    /// is in a simulation that ended before.
    pub fn read(dir: &Path) -> Result<Self, ResultError> {
        let path = dir.join(SIMULATION);
        let json = crate::row::text(&path)?;
        let content = |source| ResultError::Content { path, line: 1, source };
        let facts = serde_json::from_str(&json).map_err(content)?;
        let (outcomes, _) = crate::row::lines_if_there(&dir.join(ROWS))?;
        Ok(Self { facts, outcomes })
    }
}
