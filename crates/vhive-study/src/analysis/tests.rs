use std::path::Path;

use vhive_api::{Phase, StartKind};

use super::*;
use crate::plan::Kind;
use crate::row::Row;

/// Rows of `hello` on `sim`: six kinds, three repetitions, one row served otherwise, and one kind
/// that could not be prepared.
pub(crate) fn fixture() -> StudyResult {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cold-start");
    StudyResult::read(&dir).expect("the fixture is a result")
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
