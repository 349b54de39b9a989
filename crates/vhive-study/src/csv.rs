//! Rows as CSV: the original's columns where ours mean the same, then everything of ours.
//!
//! # Source
//! vHive `metrics/metrics.go`, `memory/manager/manager.go`; RFC 4180.

use std::fmt::Write as _;

use vhive_api::{Counter, FaultAt, Phase, StartKind};

use crate::analysis::Analysis;
use crate::density::Density;
use crate::load::Load;
use crate::row::Row;
use crate::stats::Summary;

/// The original's columns, all in microseconds but the first.
const ORIGINAL: [&str; 9] = [
    "FuncName",
    "GetImage",
    "FcCreateVM",
    "TaskStart",
    "LoadVMM",
    "ConnectFuncClient",
    "AddInstance",
    "FuncInvocation",
    "InstallWS",
];

const OURS: [&str; 16] = [
    "Total",
    "study",
    "kind",
    "input",
    "recorded",
    "repetition",
    "order",
    "attempt",
    "level",
    "cache",
    "load",
    "counted",
    "left_out",
    "start",
    "prefetch",
    "status",
];

const MEMORY: [&str; 11] = [
    "faults",
    "fault_pages",
    "zero_pages",
    "prefetched_pages",
    "prefetched_bytes",
    "wait_us",
    "prefetch_us",
    "attached_us",
    "timeline_every",
    "timeline_residual",
    "timeline_awaited",
];

const REST: [&str; 9] = [
    "client_us",
    "rss_bytes",
    "pss_bytes",
    "guest_bytes",
    "guest_clock_error_us",
    "fallback",
    "outcome",
    "id",
    "runtime",
];

/// All rows with a heading.
#[must_use]
pub fn rows(rows: &[Row]) -> String {
    let phases = Phase::ALL.map(|phase| format!("{}_us", phase.as_str()));
    let mut headings: Vec<&str> = ORIGINAL.to_vec();
    headings.extend(OURS);
    headings.extend(phases.iter().map(String::as_str));
    headings.extend(MEMORY);
    headings.extend(REST);
    headings.extend(Counter::ALL.map(Counter::as_str));
    let mut text = line(headings.iter().map(|heading| (*heading).to_owned()));
    for row in rows {
        text.push_str(&line(cells(row)));
    }
    text
}

fn cells(row: &Row) -> impl Iterator<Item = String> {
    let of = |phase| row.phase(phase);
    let record = row.record.as_ref();
    let start = record.and_then(|record| record.start);
    let booted = start == Some(StartKind::Boot);
    let restored = start.is_some_and(|s| !matches!(s, StartKind::Boot | StartKind::Warm));
    let sum = |parts: &[Phase]| {
        let known: Vec<u64> = parts.iter().filter_map(|phase| of(*phase)).collect();
        (!known.is_empty()).then(|| known.iter().sum::<u64>())
    };
    let memory = record.and_then(|record| record.memory);
    let timeline = record.and_then(|record| record.fault_timeline.as_ref());
    let original = [
        Some(row.function.clone()),
        show(of(Phase::Image)),
        show(sum(&[Phase::VmmSpawn, Phase::KernelBoot]).filter(|_| booted)),
        show(of(Phase::Init)),
        show(sum(&[Phase::VmmSpawn, Phase::Restore]).filter(|_| restored)),
        show(of(Phase::FunctionReady).filter(|_| restored)),
        show(of(Phase::Start)),
        show(of(Phase::Request)),
        show(memory.map(|m| m.prefetch_us).filter(|us| *us > 0)),
    ];
    let left_out = row.left_out();
    let ours = [
        show(of(Phase::Total)),
        Some(row.study.as_str().to_owned()),
        Some(row.kind.to_string()),
        Some(row.input.clone()),
        row.recorded.clone(),
        show(Some(row.repetition)),
        show(Some(row.order)),
        show(Some(row.attempt)),
        show(Some(row.level)),
        Some(row.cache.clone()),
        show(row.load),
        Some(left_out.is_none().to_string()),
        left_out,
        start.map(|start| start.as_str().to_owned()),
        memory.and_then(|m| m.prefetch).map(|p| p.to_string()),
        show(record.map(|record| record.status)),
    ];
    let phases = Phase::ALL.map(|phase| show(of(phase)));
    let memory = [
        show(memory.and_then(|m| m.faults)),
        show(memory.map(|m| m.fault_pages)),
        show(memory.map(|m| m.zero_pages)),
        show(memory.map(|m| m.prefetched_pages)),
        show(memory.map(|m| m.prefetched_bytes)),
        show(memory.map(|m| m.wait_us)),
        show(memory.map(|m| m.prefetch_us)),
        show(timeline.map(|t| t.attached_us)),
        show(timeline.map(|t| t.every)),
        show(timeline.map(|t| t.residual.len())),
        show(timeline.map(|t| t.awaited.len())),
    ];
    let outcome = record.and_then(|record| serde_json::to_value(&record.outcome).ok());
    let rest = [
        show(row.client_us),
        show(row.rss_bytes),
        show(row.pss_bytes),
        show(row.guest_bytes),
        show(record.and_then(|record| record.guest_clock_error_us)),
        record.and_then(|record| record.fallback.clone()),
        outcome.and_then(|outcome| outcome.as_str().map(str::to_owned)),
        record.map(|record| record.id.as_str().to_owned()),
        row.runtime.or(record.map(|record| record.runtime)).map(|name| name.to_string()),
    ];
    let counters = row.counters.as_ref();
    let counters = Counter::ALL.map(|one| show(counters.and_then(|all| all.get(one))));
    let all = original.into_iter().chain(ours).chain(phases).chain(memory).chain(rest);
    all.chain(counters).map(Option::unwrap_or_default).collect::<Vec<_>>().into_iter()
}

/// A line per fault of every row that has any: in the order of time, awaited ones apart.
#[must_use]
pub fn faults(rows: &[Row]) -> Option<String> {
    let headings = ["order", "function", "kind", "input", "repetition", "us", "page", "awaited"];
    let mut text = line(headings.map(str::to_owned));
    let empty = text.len();
    for row in rows {
        let timeline = row.record.as_ref().and_then(|record| record.fault_timeline.as_ref());
        let Some(timeline) = timeline else { continue };
        for (faults, awaited) in [(&timeline.residual, false), (&timeline.awaited, true)] {
            text.extend(faults.iter().map(|FaultAt(us, page)| {
                line([
                    row.order.to_string(),
                    row.function.clone(),
                    row.kind.to_string(),
                    row.input.clone(),
                    row.repetition.to_string(),
                    us.to_string(),
                    page.to_string(),
                    awaited.to_string(),
                ])
            }));
        }
    }
    (text.len() > empty).then_some(text)
}

fn show(value: Option<impl ToString>) -> Option<String> {
    value.map(|value| value.to_string())
}

/// Every figure of the report: one line per series and measure.
#[must_use]
pub fn summary(analysis: &Analysis) -> String {
    let headings = [
        "function",
        "kind",
        "input",
        "level",
        "measure",
        "unit",
        "n",
        "min",
        "q1",
        "median",
        "q3",
        "max",
        "mean",
        "ci95_low",
        "ci95_high",
        "runtime",
    ];
    let mut text = line(headings.iter().map(|heading| (*heading).to_owned()));
    for series in &analysis.series {
        for measure in &series.measures {
            let s = &measure.summary;
            let interval = |get: fn(&crate::stats::Interval) -> f64| {
                s.interval.as_ref().map(|i| number(get(i))).unwrap_or_default()
            };
            text.push_str(&line([
                series.key.function.clone(),
                series.key.kind.to_string(),
                series.key.input.clone(),
                series.key.level.to_string(),
                measure.name.to_owned(),
                measure.unit.to_owned(),
                s.n.to_string(),
                number(s.min),
                number(s.q1),
                number(s.median),
                number(s.q3),
                number(s.max),
                number(s.mean),
                interval(|i| i.low),
                interval(|i| i.high),
                series.key.runtime.map(|name| name.to_string()).unwrap_or_default(),
            ]));
        }
    }
    text
}

/// Page statistics: the original's columns, then ours.
#[must_use]
pub fn pages(analysis: &Analysis) -> String {
    let headings = [
        "FuncName",
        "RecPages",
        "RecRegions",
        "RepPages",
        "StdDev",
        "Reused",
        "Unique",
        "StdDev",
        "zero_pages",
        "mean_run_pages",
        "unique_same_input",
        "compared_by",
    ];
    let mut text = line(headings.iter().map(|heading| (*heading).to_owned()));
    let deviation = |s: &Summary| number(s.variation * s.mean.abs());
    for one in &analysis.pages {
        let median = |summary: &Option<Summary>| {
            summary.map(|summary| number(summary.median)).unwrap_or_default()
        };
        let spread =
            |summary: &Option<Summary>| summary.as_ref().map(deviation).unwrap_or_default();
        text.push_str(&line([
            one.function.clone(),
            one.recorded.to_string(),
            one.runs.to_string(),
            median(&one.needed),
            spread(&one.needed),
            one.same.map(number).unwrap_or_default(),
            median(&one.unique),
            spread(&one.unique),
            one.zero.to_string(),
            number(one.mean_run),
            median(&one.unique_same),
            one.by.as_str().to_owned(),
        ]));
    }
    text
}

/// Every throughput.
#[must_use]
pub fn loads(all: &[Load]) -> String {
    let headings = [
        "order",
        "function",
        "runtime",
        "repetition",
        "connections",
        "seconds",
        "replies",
        "failures",
        "replies_per_second",
        "median_us",
        "p99_us",
        "load",
        "first_failure",
    ];
    let counters = Counter::ALL.map(|counter| counter.as_str().to_owned());
    let mut text = line(headings.map(str::to_owned).into_iter().chain(counters));
    for one in all {
        let counted = one.counters.as_ref();
        let counters = Counter::ALL
            .map(|counter| show(counted.and_then(|all| all.get(counter))).unwrap_or_default());
        let cells = [
            one.order.to_string(),
            one.function.clone(),
            one.runtime.to_string(),
            one.repetition.to_string(),
            one.connections.to_string(),
            number(one.seconds),
            one.replies.to_string(),
            one.failures.to_string(),
            number(one.rate()),
            one.median_us.map(number).unwrap_or_default(),
            one.p99_us.map(number).unwrap_or_default(),
            one.load.map(number).unwrap_or_default(),
            one.first_failure.clone().unwrap_or_default(),
        ];
        text.push_str(&line(cells.into_iter().chain(counters)));
    }
    text
}

/// Every density.
#[must_use]
pub fn densities(all: &[Density]) -> String {
    let headings = [
        "function",
        "runtime",
        "restored",
        "limit_bytes",
        "instances",
        "pss_bytes",
        "rss_bytes",
        "filled",
        "charged_bytes",
        "kernel_bytes",
        "file_bytes",
        "seconds",
        "full",
        "load",
        "why",
    ];
    let mut text = line(headings.map(str::to_owned));
    let count = |value: Option<u64>| show(value).unwrap_or_default();
    for one in all {
        text.push_str(&line([
            one.function.clone(),
            one.runtime.to_string(),
            one.restored.to_string(),
            one.limit_bytes.to_string(),
            one.instances.to_string(),
            count(one.pss_bytes),
            count(one.rss_bytes),
            one.filled().map(number).unwrap_or_default(),
            count(one.charged_bytes),
            count(one.kernel_bytes),
            count(one.file_bytes),
            number(one.seconds),
            one.is_full().to_string(),
            one.load.map(number).unwrap_or_default(),
            one.why.clone(),
        ]));
    }
    text
}

pub(crate) fn number(value: f64) -> String {
    let mut text = format!("{value:.3}");
    while text.contains('.') && text.ends_with(['0', '.']) {
        let dot = text.ends_with('.');
        text.pop();
        if dot {
            break;
        }
    }
    text
}

pub(crate) fn line(cells: impl IntoIterator<Item = String>) -> String {
    let mut text = String::new();
    for (at, cell) in cells.into_iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        if cell.contains([',', '"', '\n', '\r']) {
            // Writing to a string cannot fail.
            let _ = write!(text, "\"{}\"", cell.replace('"', "\"\""));
        } else {
            text.push_str(&cell);
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        let cells = ["a", "b,c", "d\"e", "f\ng"].map(str::to_owned);
        assert_eq!(line(cells), "a,\"b,c\",\"d\"\"e\",\"f\ng\"\n");
    }

    #[test]
    fn numbers_lose_only_what_says_nothing() {
        assert_eq!([10.0, 0.25, 100.5, 0.0].map(number), ["10", "0.25", "100.5", "0"]);
    }
}
