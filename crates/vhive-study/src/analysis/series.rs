//! Rows that belong together, and their figures.

use std::collections::BTreeMap;

use vhive_api::{Counter, Phase, RuntimeName};

use crate::function::Variant;
use crate::plan::Kind;
use crate::row::{Facts, Row, StudyName, StudyResult};
use crate::schedule::{inputs, levels};
use crate::stats::{Summary, median};

use super::counters;

/// What makes rows comparable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Name of the function.
    pub function: String,
    /// In which sandbox, where the study varies it.
    pub runtime: Option<RuntimeName>,
    /// How it started.
    pub kind: Kind,
    /// Name of the request.
    pub input: String,
    /// Invocations under way at the same time.
    pub level: u32,
}

impl Key {
    /// What has a service of its own.
    #[must_use]
    pub fn variant(&self) -> Variant<'_> {
        Variant { function: &self.function, kind: self.kind, runtime: self.runtime }
    }
}

/// A part of an invocation's time; the slices of one invocation add up to its total.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slice {
    /// A phase without children.
    Phase(Phase),
    /// Of the start, what none of its children explains.
    RestOfStart,
    /// Of the total, what none of its children explains.
    Rest,
}

impl Slice {
    /// Every slice in the order in which they happen.
    pub const ALL: [Self; 13] = [
        Self::Phase(Phase::Queue),
        Self::Phase(Phase::Image),
        Self::Phase(Phase::Turn),
        Self::Phase(Phase::NetworkSlot),
        Self::Phase(Phase::VmmSpawn),
        Self::Phase(Phase::KernelBoot),
        Self::Phase(Phase::Init),
        Self::Phase(Phase::Restore),
        Self::Phase(Phase::Resume),
        Self::Phase(Phase::FunctionReady),
        Self::RestOfStart,
        Self::Phase(Phase::Request),
        Self::Rest,
    ];

    /// For legends.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Phase(phase) => match phase {
                Phase::Queue => "queue",
                Phase::Image => "image",
                Phase::Turn => "turn",
                Phase::NetworkSlot => "network slot",
                Phase::VmmSpawn => "VMM spawn",
                Phase::KernelBoot => "kernel boot",
                Phase::Init => "init",
                Phase::Restore => "restore",
                Phase::Resume => "resume",
                Phase::FunctionReady => "function ready",
                Phase::Request => "request",
                Phase::Total => "total",
                Phase::Start => "start",
            },
            Self::RestOfStart => "rest of start",
            Self::Rest => "rest",
        }
    }

    /// Its length in one row, in microseconds; 0 where the phase did not happen.
    fn of(self, row: &Row) -> u64 {
        let length = |phase| row.phase(phase).unwrap_or(0);
        let children = |parent| {
            let children = Phase::ALL.into_iter().filter(move |p| p.parent() == Some(parent));
            children.map(length).sum::<u64>()
        };
        match self {
            Self::Phase(phase) => length(phase),
            Self::RestOfStart => length(Phase::Start).saturating_sub(children(Phase::Start)),
            Self::Rest => length(Phase::Total).saturating_sub(children(Phase::Total)),
        }
    }
}

/// A measure of a series.
#[derive(Clone, Debug)]
pub struct Measure {
    /// E.g. `total`.
    pub name: &'static str,
    /// E.g. `ms`, `MiB`, `pages`, `faults`; empty of a ratio.
    pub unit: &'static str,
    /// The values, in the order in which they were measured.
    pub values: Vec<f64>,
    /// Their summary.
    pub summary: Summary,
}

/// Rows that are in no statistic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Why.
    pub why: String,
    /// How many.
    pub rows: usize,
}

/// Rows that belong together.
#[derive(Clone, Debug)]
pub struct Series {
    /// What they have in common.
    pub key: Key,
    /// Kind, and input where it must be told.
    pub label: String,
    /// Rows in the statistics.
    pub counted: usize,
    /// Rows in none.
    pub left_out: Vec<LeftOut>,
    /// What was measured; a measure that no row has is absent.
    pub measures: Vec<Measure>,
    /// Median length of each slice in milliseconds, those that are not 0.
    pub slices: Vec<(Slice, f64)>,
    /// Guest memory as configured, in MiB.
    pub guest_mib: Option<f64>,
}

impl Series {
    /// The measure of this name.
    #[must_use]
    pub fn measure(&self, name: &str) -> Option<&Measure> {
        self.measures.iter().find(|measure| measure.name == name)
    }

    /// Its median.
    #[must_use]
    pub fn median(&self, name: &str) -> Option<f64> {
        self.measure(name).map(|measure| measure.summary.median)
    }

    /// For sentences: `hello boot`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} {}", self.key.function, self.label)
    }
}

pub(super) fn all(result: &StudyResult) -> Vec<Series> {
    let (facts, plan) = (&result.facts, &result.facts.plan);
    let varied = facts.varied();
    let mut keys = Vec::new();
    for function in &plan.functions {
        for runtime in varied.iter().copied() {
            for kind in &plan.kinds {
                for input in inputs(plan, *kind) {
                    for level in levels(facts.study, plan.most_parallel) {
                        let (function, input) = (function.clone(), input.clone());
                        keys.push(Key { function, runtime, kind: *kind, input, level });
                    }
                }
            }
        }
    }
    let mut groups: BTreeMap<Key, Vec<&Row>> = BTreeMap::new();
    for row in &result.rows {
        let (function, input) = (row.function.clone(), row.input.clone());
        let (runtime, kind, level) = (row.runtime, row.kind, row.level);
        let key = Key { function, runtime, kind, input, level };
        if !keys.contains(&key) {
            keys.push(key.clone());
        }
        groups.entry(key).or_default().push(row);
    }
    if facts.study == StudyName::Runtimes {
        // What a runtime does not do is no gap; the notes name it.
        keys.retain(|key| groups.contains_key(key));
    }
    let of = |key: Key| {
        let rows = groups.get(&key).cloned().unwrap_or_default();
        series(key, &rows, facts)
    };
    keys.into_iter().map(of).collect()
}

fn series(key: Key, rows: &[&Row], facts: &Facts) -> Series {
    let (study, plan) = (facts.study, &facts.plan);
    let alone = inputs(plan, key.kind).len() < 2;
    let counted: Vec<&Row> = rows.iter().copied().filter(|r| r.left_out().is_none()).collect();
    let mut left_out: Vec<LeftOut> = Vec::new();
    for why in rows.iter().filter_map(|row| row.left_out()) {
        match left_out.iter_mut().find(|left| left.why == why) {
            Some(left) => left.rows += 1,
            None => left_out.push(LeftOut { why, rows: 1 }),
        }
    }
    let label = if alone {
        key.kind.to_string()
    } else if !key.kind.prefetches() {
        format!("{} ({})", key.kind, key.input)
    } else if key.input == plan.inputs.prepare {
        format!("{} (same input)", key.kind)
    } else if plan.inputs.measure.len() > 1 {
        format!("{} ({})", key.kind, key.input)
    } else {
        format!("{} (other input)", key.kind)
    };
    let label = match (study, key.runtime) {
        (StudyName::Parallel, _) => format!("{label} ×{}", key.level),
        (_, Some(runtime)) => format!("{runtime} {label}"),
        (_, None) => label,
    };
    let measure = |name, unit, scale: f64, get: &dyn Fn(&Row) -> Option<u64>| {
        let values: Vec<f64> =
            counted.iter().filter_map(|row| get(row)).map(|value| value as f64 / scale).collect();
        let summary = Summary::of(&values, plan.seed)?;
        Some(Measure { name, unit, values, summary })
    };
    let memory = |row: &Row| row.record.as_ref().and_then(|record| record.memory);
    let mib = f64::from(1 << 20);
    let measures = [
        measure("total", "ms", 1e3, &Row::total_us),
        measure("start", "ms", 1e3, &|row| row.phase(Phase::Start)),
        measure("request", "ms", 1e3, &|row| row.phase(Phase::Request)),
        measure("client", "ms", 1e3, &|row| row.client_us),
        measure("memory wait", "ms", 1e3, &|row| memory(row).map(|m| m.wait_us)),
        measure("prefetch", "ms", 1e3, &|row| {
            memory(row).map(|m| m.prefetch_us).filter(|us| *us > 0)
        }),
        measure("faults", "faults", 1.0, &|row| memory(row)?.faults),
        measure("fault pages", "pages", 1.0, &|row| {
            memory(row).filter(|m| m.faults.is_some()).map(|m| m.fault_pages)
        }),
        measure("prefetched pages", "pages", 1.0, &|row| {
            memory(row).filter(|m| m.prefetch.is_some()).map(|m| m.prefetched_pages)
        }),
        measure("zero pages", "pages", 1.0, &|row| {
            memory(row).filter(|m| m.faults.is_some()).map(|m| m.zero_pages)
        }),
        measure("prefetched", "MiB", mib, &|row| {
            memory(row).filter(|m| m.prefetch.is_some()).map(|m| m.prefetched_bytes)
        }),
        measure("working set", "MiB", mib, &|row| {
            let served = memory(row).filter(|m| m.faults.is_some())?;
            Some((served.prefetched_pages + served.fault_pages).saturating_mul(4096))
        }),
        measure("RSS", "MiB", mib, &|row| row.rss_bytes),
        measure("PSS", "MiB", mib, &|row| row.pss_bytes),
    ];
    let counted_by_host = |name, unit, get: &dyn Fn(&Row) -> Option<f64>| {
        let values: Vec<f64> = counted.iter().filter_map(|row| get(row)).collect();
        let summary = Summary::of(&values, plan.seed)?;
        Some(Measure { name, unit, values, summary })
    };
    let host = Counter::ALL.map(|counter| {
        let (name, unit) = counters::name_of(counter);
        counted_by_host(name, unit, &|row| counters::value(row, counter))
    });
    let rests = counters::RESTS.map(|(name, whole, part)| {
        counted_by_host(name, "% of slots", &|row| counters::rest(row, whole, part))
    });
    let (name, unit) = counters::PER_CYCLE;
    let per_cycle = counted_by_host(name, unit, &counters::per_cycle);
    let slice = |slice: Slice| {
        let lengths: Vec<f64> = counted.iter().map(|row| slice.of(row) as f64 / 1e3).collect();
        median(&lengths).filter(|length| *length > 0.0).map(|length| (slice, length))
    };
    let guest = rows.iter().find_map(|row| row.guest_bytes);
    Series {
        label,
        counted: counted.len(),
        left_out,
        measures: measures
            .into_iter()
            .chain(host)
            .chain(rests)
            .chain([per_cycle])
            .flatten()
            .collect(),
        slices: Slice::ALL.into_iter().filter_map(slice).collect(),
        guest_mib: guest.map(|bytes| bytes as f64 / mib),
        key,
    }
}
