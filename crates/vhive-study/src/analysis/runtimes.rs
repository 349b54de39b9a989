//! Sandboxes against each other, by what the functions spend their time with.

use vhive_api::RuntimeName;

use crate::density::Density;
use crate::load::Load;
use crate::plan::{Kind, Plan};
use crate::row::StudyResult;
use crate::stats::{self, Ratio, Summary};

use super::series::Series;

/// What a group of functions has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Their time is that of system calls.
    SystemCalls,
    /// Their time is that of the processor.
    Cpu,
    /// The others.
    Other,
}

impl Group {
    /// Every group.
    pub const ALL: [Self; 3] = [Self::SystemCalls, Self::Cpu, Self::Other];

    /// For headings.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::SystemCalls => "system calls",
            Self::Cpu => "CPU",
            Self::Other => "other",
        }
    }

    fn of(plan: &Plan, function: &str) -> Self {
        let named = |names: &[String]| names.iter().any(|name| name == function);
        if named(&plan.runtimes.system_calls) {
            Self::SystemCalls
        } else if named(&plan.runtimes.cpu) {
            Self::Cpu
        } else {
            Self::Other
        }
    }
}

/// What is compared: label, kind of start, measure of its series.
const MEASURES: [(&str, Kind, &str); 4] = [
    ("boot", Kind::Boot, "total"),
    ("restored", Kind::Snapshot, "total"),
    ("warm", Kind::Warm, "total"),
    ("PSS", Kind::Boot, "PSS"),
];

/// One sandbox against the one that all are compared with.
#[derive(Clone, Debug)]
pub struct Against {
    /// Of which functions.
    pub group: Group,
    /// `boot`, `restored`, `warm` or `PSS`.
    pub measure: &'static str,
    /// The sandbox.
    pub runtime: RuntimeName,
    /// How many times as much as the base: geometric mean over the functions.
    pub ratio: Ratio,
}

/// Throughputs of one function in one sandbox.
#[derive(Clone, Debug)]
pub struct Throughput {
    /// Name of the function.
    pub function: String,
    /// What its time is spent with.
    pub group: Group,
    /// The sandbox.
    pub runtime: RuntimeName,
    /// Requests under way at a time.
    pub connections: u32,
    /// Replies per second; one value per repetition, those with failures too.
    pub rates: Vec<f64>,
    /// Their summary.
    pub summary: Summary,
    /// Median over the repetitions of the median time of a reply, in milliseconds.
    pub median_ms: Option<f64>,
    /// Likewise of the 99th percentile.
    pub p99_ms: Option<f64>,
    /// CPU time of the instance's processes per reply, likewise, in microseconds.
    pub cpu_us_each: Option<f64>,
    /// Requests without the expected reply.
    pub failures: u64,
}

/// Everything about sandboxes.
#[derive(Clone, Debug, Default)]
pub struct Runtimes {
    /// With which sandbox the others are compared: runc, which adds least, or else the first.
    pub base: Option<RuntimeName>,
    /// In the order of groups, measures and runtimes.
    pub against: Vec<Against>,
    /// By group, then function, then runtime.
    pub throughputs: Vec<Throughput>,
    /// As measured.
    pub densities: Vec<Density>,
}

pub(super) fn all(result: &StudyResult, series: &[Series]) -> Runtimes {
    let (facts, plan) = (&result.facts, &result.facts.plan);
    let runc = facts.runtimes.iter().find(|name| **name == RuntimeName::Runc);
    let base = runc.or(facts.runtimes.first()).copied();
    let mut against = Vec::new();
    for group in Group::ALL {
        for (measure, kind, name) in MEASURES {
            for runtime in facts.runtimes.iter().copied() {
                // What only some restore is compared with a boot of the base.
                let other = if kind == Kind::Snapshot { Kind::Boot } else { kind };
                let found = base.and_then(|base| {
                    ratio(series, plan, group, name, ((kind, runtime), (other, base)))
                });
                against.extend(found.map(|ratio| Against { group, measure, runtime, ratio }));
            }
        }
    }
    Runtimes {
        base,
        against,
        throughputs: throughputs(result),
        densities: result.densities.clone(),
    }
}

fn ratio(
    series: &[Series],
    plan: &Plan,
    group: Group,
    measure: &str,
    (one, base): ((Kind, RuntimeName), (Kind, RuntimeName)),
) -> Option<Ratio> {
    let input = plan.inputs.measure.first()?;
    let values = |function: &str, (kind, runtime): (Kind, RuntimeName)| {
        let found = series.iter().find(|s| {
            let key = &s.key;
            (key.function.as_str(), key.kind, key.runtime) == (function, kind, Some(runtime))
                && key.input == *input
        });
        let values = found.and_then(|s| s.measure(measure)).map(|m| m.values.as_slice());
        values.filter(|values| stats::median(values).is_some_and(|median| median > 0.0))
    };
    let functions = plan
        .functions
        .iter()
        .filter(|name| Group::of(plan, name) == group && !plan.not_in_means.contains(name));
    let pairs: Vec<(&[f64], &[f64])> =
        functions.filter_map(|name| Some((values(name, one)?, values(name, base)?))).collect();
    if pairs.is_empty() {
        return None;
    }
    stats::ratio(&pairs, plan.seed)
}

fn throughputs(result: &StudyResult) -> Vec<Throughput> {
    let (plan, mut found) = (&result.facts.plan, Vec::new());
    let mut keys: Vec<(&str, RuntimeName, u32)> = Vec::new();
    for load in &result.loads {
        let key = (load.function.as_str(), load.runtime, load.connections);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let place = |name: &RuntimeName| result.facts.runtimes.iter().position(|one| one == name);
    keys.sort_by_key(|(function, runtime, connections)| {
        let group = Group::of(plan, function);
        let group = Group::ALL.iter().position(|one| *one == group);
        let function = plan.runtimes.load.iter().position(|name| name == function);
        (group, function, place(runtime), *connections)
    });
    for (function, runtime, connections) in keys {
        let ours: Vec<&Load> = result
            .loads
            .iter()
            .filter(|l| {
                (l.function.as_str(), l.runtime, l.connections) == (function, runtime, connections)
            })
            .collect();
        let rates: Vec<f64> = ours.iter().map(|load| load.rate()).collect();
        let Some(summary) = Summary::of(&rates, plan.seed) else { continue };
        let middle = |get: fn(&Load) -> Option<f64>| {
            let values: Vec<f64> = ours.iter().filter_map(|load| get(load)).collect();
            stats::median(&values)
        };
        found.push(Throughput {
            function: function.to_owned(),
            group: Group::of(plan, function),
            runtime,
            connections,
            median_ms: middle(|load| load.median_us).map(|us| us / 1e3),
            p99_ms: middle(|load| load.p99_us).map(|us| us / 1e3),
            cpu_us_each: middle(Load::cpu_us_each),
            failures: ours.iter().map(|load| load.failures).sum(),
            rates,
            summary,
        });
    }
    found
}
