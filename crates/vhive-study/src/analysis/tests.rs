use std::path::Path;

use vhive_api::{Counter, FaultAt, FaultTimeline, Phase, RECORD_VERSION, RuntimeName, StartKind};

use super::*;
use crate::load::Load;
use crate::plan::Kind;
use crate::row::{Row, StudyName};

/// Rows of `hello` on `sim`: six kinds, three repetitions, one row served otherwise, and one kind
/// that could not be prepared.
pub(crate) fn fixture() -> StudyResult {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cold-start");
    StudyResult::read(&dir).expect("the fixture is a result")
}

/// The same as a node with a pager would have recorded them: a fault each 10 µs, every third of them
/// awaited where pages are prefetched. Later repetitions have more.
pub(crate) fn fixture_with_timelines() -> StudyResult {
    let mut result = fixture();
    for row in &mut result.rows {
        let faults = match row.kind {
            Kind::Lazy | Kind::Record => 300,
            Kind::Reap => 7,
            _ => continue,
        };
        let Some(record) = row.record.as_mut().filter(|record| record.memory.is_some()) else {
            continue;
        };
        let faults = faults + row.repetition;
        let at = |n: &u32| FaultAt(n * 10, n * 37 % 4096);
        let awaited = |n: &u32| row.kind == Kind::Reap && n.is_multiple_of(3);
        record.version = RECORD_VERSION;
        record.fault_timeline = Some(std::sync::Arc::new(FaultTimeline {
            attached_us: 1_000,
            every: 1,
            residual: (0..faults).filter(|n| !awaited(n)).map(|n| at(&n)).collect(),
            awaited: (0..faults).filter(awaited).map(|n| at(&n)).collect(),
        }));
        if let Some(memory) = &mut record.memory {
            memory.faults = Some(u64::from(faults));
        }
    }
    result
}

/// The same rows in two sandboxes, of which QEMU's takes twice as long, with throughputs and one
/// density.
pub(crate) fn fixture_of_runtimes() -> StudyResult {
    let mut result = fixture();
    result.facts.study = StudyName::Runtimes;
    result.facts.runtimes = vec![RuntimeName::Qemu, RuntimeName::Runc];
    result.facts.plan.kinds = vec![Kind::Boot, Kind::Warm, Kind::Snapshot];
    result.facts.plan.runtimes.cpu = vec!["hello".to_owned()];
    result.rows.retain(|row| result.facts.plan.kinds.contains(&row.kind));
    let mut slow = result.rows.clone();
    for row in &mut slow {
        row.runtime = Some(RuntimeName::Qemu);
        let phases = row.record.iter_mut().flat_map(|record| &mut record.phases);
        phases.for_each(|span| span.length_us *= 2);
    }
    result.rows.retain(|row| row.kind != Kind::Snapshot);
    result.rows.iter_mut().for_each(|row| row.runtime = Some(RuntimeName::Runc));
    result.rows.append(&mut slow);
    for (order, runtime) in (1_u32..).zip(result.facts.runtimes.repeat(3)) {
        result.loads.push(Load {
            function: "hello".to_owned(),
            runtime,
            repetition: order.div_ceil(2),
            order,
            connections: 8,
            seconds: 2.0,
            replies: 200 * u64::from(order),
            failures: 0,
            first_failure: None,
            median_us: Some(100.0),
            p99_us: Some(900.0),
            load: None,
            counters: Some([(Counter::CpuUs, 40_000)].into_iter().collect()),
        });
    }
    result.densities.push(crate::density::tests::density(9, 100));
    result
}

#[test]
fn sandboxes_are_compared_with_runc_by_what_functions_do() {
    let result = fixture_of_runtimes();
    let analysis = Analysis::of(&result);
    let found = &analysis.runtimes;
    assert_eq!(found.base, Some(RuntimeName::Runc));
    let of = |measure: &str, runtime| {
        let one = found.against.iter().find(|o| o.measure == measure && o.runtime == runtime);
        one.map(|one| (one.group, (one.ratio.ratio * 100.0).round() / 100.0))
    };
    assert_eq!(of("boot", RuntimeName::Qemu), Some((Group::Cpu, 2.0)));
    assert_eq!(of("warm", RuntimeName::Runc), Some((Group::Cpu, 1.0)));
    assert!(of("restored", RuntimeName::Qemu).is_some(), "against a boot");
    assert_eq!(of("restored", RuntimeName::Runc), None);
    let rates: Vec<f64> = found.throughputs.iter().map(|one| one.summary.median).collect();
    assert_eq!(rates, [300.0, 400.0], "by runtime, in the plan's order");
    let runc = |series: &&Series| series.key.runtime == Some(RuntimeName::Runc);
    let labels: Vec<&str> =
        analysis.series.iter().filter(runc).map(|series| series.label.as_str()).collect();
    assert_eq!(labels, ["runc boot", "runc warm"], "what it does not do is no gap");
}

fn series(result: &StudyResult, kind: Kind) -> Series {
    let all = Analysis::of(result).series;
    all.into_iter().find(|series| series.key.kind == kind).expect("planned")
}

/// The fixture's boots with totals and requests of one's own, in microseconds.
fn boots(lengths: &[(u64, u64)]) -> StudyResult {
    let mut result = fixture();
    let boot: Row = result.rows.iter().find(|r| r.kind == Kind::Boot).expect("has one").clone();
    result.rows = lengths
        .iter()
        .map(|(total, request)| {
            let mut row = boot.clone();
            let record = row.record.as_mut().expect("has one");
            record.phases.retain(|span| matches!(span.phase, Phase::Total | Phase::Request));
            for span in &mut record.phases {
                span.length_us = if span.phase == Phase::Total { *total } else { *request };
            }
            row
        })
        .collect();
    result
}

#[test]
fn every_planned_series_is_there_and_rows_served_otherwise_are_in_none() {
    let result = fixture();
    let analysis = Analysis::of(&result);
    for kind in &result.facts.plan.kinds {
        assert!(analysis.series.iter().any(|series| series.key.kind == *kind), "{kind}");
    }
    let counted: usize = analysis.series.iter().map(|series| series.counted).sum();
    let left: usize = analysis.series.iter().flat_map(|s| &s.left_out).map(|left| left.rows).sum();
    assert_eq!((counted, left), (result.rows.len() - 1, 1));
    let reap = series(&result, Kind::Reap);
    assert_eq!(reap.left_out[0].why, "served by snapshot instead");
    assert_eq!(series(&result, Kind::Mincore).counted, 0);
}

#[test]
fn slices_add_up_to_the_total() {
    let result = boots(&[(10_000, 4_000)]);
    let boot = series(&result, Kind::Boot);
    assert_eq!(boot.slices, [(Slice::Phase(Phase::Request), 4.0), (Slice::Rest, 6.0)]);
    assert_eq!(boot.median("total"), Some(10.0));
    for series in Analysis::of(&fixture()).series.iter().filter(|s| s.counted > 0) {
        let sum: f64 = series.slices.iter().map(|(_, length)| length).sum();
        let total = series.median("total").expect("counted");
        assert!((sum / total - 1.0).abs() < 0.5, "{}: {sum} of {total}", series.name());
    }
}

#[test]
fn a_series_is_shown_by_the_faults_of_its_median_start() {
    let mut result = fixture_with_timelines();
    let lazy = |result: &StudyResult| {
        let mut all = Analysis::of(result).timelines.into_iter();
        all.find(|one| one.key.kind == Kind::Lazy).expect("recorded")
    };
    let rows = result.rows.iter().filter(|row| row.kind == Kind::Lazy);
    let mut totals: Vec<(u64, u32)> =
        rows.map(|row| (row.total_us().expect("measured"), row.repetition)).collect();
    totals.sort_unstable();
    let (total, repetition) = totals[1];
    let one = lazy(&result);
    assert_eq!((one.n, one.every, one.points.len() as u64), (3, 1, one.faults));
    assert_eq!(one.faults, 300 + u64::from(repetition));
    assert!((one.reply_ms - (total as f64 - 1e3) / 1e3).abs() < 1e-9);
    let reap = Analysis::of(&result).timelines;
    let reap = reap.iter().find(|one| one.key.kind == Kind::Reap).expect("recorded");
    assert!(reap.points.is_sorted_by(|a, b| a.ms <= b.ms), "both lists in one order");
    assert!(reap.points.iter().any(|p| p.awaited) && reap.points.iter().any(|p| !p.awaited));

    // Whatever a file says, nothing breaks.
    for row in &mut result.rows {
        let record = row.record.as_mut();
        if let Some(timeline) = record.and_then(|record| record.fault_timeline.as_mut()) {
            let timeline = std::sync::Arc::make_mut(timeline);
            (timeline.every, timeline.attached_us) = (0, i64::MAX);
            timeline.residual.push(FaultAt(u32::MAX, u32::MAX));
        }
    }
    let one = lazy(&result);
    assert_eq!(one.every, 1);
    assert!(one.reply_ms >= one.points.last().expect("has some").ms);
    assert!(Analysis::of(&fixture()).timelines.is_empty(), "rows of version 2 have none");
}

#[test]
fn memory_on_the_host_is_compared_with_that_of_a_boot() {
    let analysis = Analysis::of(&fixture());
    let found = analysis.comparisons.iter().find(|c| (c.fast, c.measure) == (Kind::Reap, "RSS"));
    let medians = |kind| {
        let same = |s: &&Series| s.key.kind == kind && s.key.input == "replay";
        analysis.series.iter().find(same).and_then(|s| s.median("RSS")).expect("measured")
    };
    let by_hand = medians(Kind::Boot) / medians(Kind::Reap);
    assert!((found.expect("both measured").ratio.ratio - by_hand).abs() < 1e-9);
    let lazy = series(&fixture(), Kind::Lazy);
    let pages = lazy.median("fault pages").expect("the pager counted");
    assert_eq!(lazy.median("working set"), Some(pages / 256.0), "in MiB");
    assert_eq!(series(&fixture(), Kind::Snapshot).median("working set"), None, "nobody counted");
}

#[test]
fn kinds_are_compared_at_the_same_input() {
    let analysis = Analysis::of(&fixture());
    let find = |fast, slow, measure| {
        analysis.comparisons.iter().find(|c| (c.fast, c.slow, c.measure) == (fast, slow, measure))
    };
    let boot = find(Kind::Snapshot, Kind::Boot, "total").expect("both measured");
    assert_eq!(boot.input, "replay");
    let medians = |kind| {
        let found = analysis.series.iter().find(|s| s.key.kind == kind && s.key.input == "replay");
        found.and_then(|s| s.median("total")).expect("measured")
    };
    let by_hand = medians(Kind::Boot) / medians(Kind::Snapshot);
    assert!((boot.ratio.ratio - by_hand).abs() < 1e-9);
    assert!(find(Kind::Reap, Kind::ReapSerial, "total").is_none(), "not measured");
    let left = &analysis.faults_left;
    assert_eq!(left.len(), 2, "the recorded input and the other");
    assert!(left.iter().any(|l| l.same_input) && left.iter().any(|l| !l.same_input));
}

fn warned(result: &StudyResult, part: &str) -> bool {
    Analysis::of(result).warnings.iter().any(|warning| warning.contains(part))
}

#[test]
fn what_a_reader_should_mind_is_said() {
    let result = fixture();
    for part in [
        "`sim`",
        "1 invocation(s) are in no statistic: hello reap (other input): served by snapshot",
        "1 start(s) went another way than their policy",
        "hello mincore is not measured",
        "Nothing was measured of: hello mincore",
        "Too few values",
    ] {
        assert!(warned(&result, part), "{part}: {:?}", Analysis::of(&result).warnings);
    }
    for part in ["page cache", "cut short", "busy"] {
        assert!(!warned(&result, part), "{part}");
    }

    let mut emulated = result.clone();
    for row in &mut emulated.rows {
        if let Some(record) = &mut row.record {
            record.runtime = RuntimeName::Qemu;
        }
    }
    assert!(!warned(&emulated, "emulated"), "the node did not say so");
    emulated.facts.node["accelerators"] =
        serde_json::json!({"qemu": {"accelerator": "tcg", "reason": "this host has no /dev/kvm"}});
    assert!(warned(&emulated, "emulated (TCG)"));

    let mut bad = result;
    bad.facts.ended = None;
    bad.rows[0].cache = "keep".to_owned();
    bad.rows[0].load = Some(7.5);
    for part in ["page cache was not dropped before 1 of", "cut short", "load average reached 7.5"]
    {
        assert!(warned(&bad, part), "{part}");
    }
}

#[test]
fn noise_outliers_and_a_slow_first_run_are_named() {
    let calm = boots(&[(100, 1), (101, 1), (99, 1), (100, 1), (100, 1), (101, 1)]);
    for part in ["vary", "interquartile", "first measurement"] {
        assert!(!warned(&calm, part), "{part}");
    }
    let first = boots(&[(500, 1), (101, 1), (99, 1), (100, 1), (100, 1), (101, 1)]);
    for part in ["vary by more than 30 %", "hello boot 1 of 6", "first measurement was far slower"]
    {
        assert!(warned(&first, part), "{part}: {:?}", Analysis::of(&first).warnings);
    }
    let last = boots(&[(100, 1), (101, 1), (99, 1), (100, 1), (100, 1), (500, 1)]);
    assert!(!warned(&last, "first measurement"));
}

#[test]
fn a_row_counts_only_if_it_was_served_as_asked_for() {
    let mut row = fixture().rows[0].clone();
    assert_eq!((row.kind, row.left_out()), (Kind::Boot, None));
    row.record.as_mut().expect("has one").start = Some(StartKind::Warm);
    assert_eq!(row.left_out().as_deref(), Some("served by warm instead"));
    row.record.as_mut().expect("has one").start = Some(StartKind::Boot);
    let phases = &mut row.record.as_mut().expect("has one").phases;
    let start = phases.iter_mut().find(|span| span.phase == Phase::Start).expect("cold");
    start.begin_us = -5;
    assert!(row.left_out().is_some_and(|why| why.contains("joined")));
    row.record = None;
    assert!(row.left_out().is_some_and(|why| why.contains("no record")));
}
