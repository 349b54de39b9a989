//! The figures of a report as rows of text, for the page and for the terminal.

use crate::analysis::{Analysis, Comparison, FaultsLeft, PageStats, Series};
use crate::plan::Kind;
use crate::stats::{Interval, Summary};

use super::svg::short;

/// Headings of [`whole`].
pub(super) const WHOLE: [&str; 14] = [
    "function",
    "start",
    "n",
    "left out",
    "total ms",
    "95 % interval",
    "min – max",
    "start ms",
    "request ms",
    "memory wait ms",
    "faults",
    "prefetched pages",
    "RSS MiB",
    "PSS MiB",
];

/// A series with all its figures.
pub(super) fn whole(series: &Series) -> Vec<String> {
    let median = |name: &str| cell(series.median(name));
    let left: usize = series.left_out.iter().map(|left| left.rows).sum();
    let total = series.measure("total").map(|total| total.summary);
    vec![
        series.key.function.clone(),
        series.label.clone(),
        series.counted.to_string(),
        left.to_string(),
        median("total"),
        total.and_then(|t| t.interval).map_or_else(dash, |i| interval(&i)),
        total.map_or_else(dash, |t| format!("{} – {}", short(t.min), short(t.max))),
        median("start"),
        median("request"),
        median("memory wait"),
        median("faults"),
        median("prefetched pages"),
        median("RSS"),
        median("PSS"),
    ]
}

/// Headings of [`brief`].
pub(super) const BRIEF: [&str; 9] =
    ["FUNCTION", "START", "N", "TOTAL MS", "95 %", "START MS", "REQUEST MS", "FAULTS", "RSS MIB"];

/// A series in the terminal.
pub(super) fn brief(series: &Series) -> Vec<String> {
    let mut cells = whole(series);
    for at in [13, 11, 9, 6, 3] {
        cells.remove(at);
    }
    cells
}

/// Headings of [`comparison`].
pub(super) const COMPARISON: [&str; 7] = [
    "faster",
    "slower",
    "input",
    "measure",
    "times as fast, or small",
    "95 % interval",
    "functions",
];

/// A comparison.
pub(super) fn comparison(one: &Comparison) -> Vec<String> {
    let fast = one.runtime.map_or_else(|| one.fast.to_string(), |on| format!("{on} {}", one.fast));
    vec![
        fast,
        one.slow.to_string(),
        one.input.clone(),
        one.measure.to_owned(),
        times(one.ratio.ratio),
        one.ratio.interval.map_or_else(dash, |i| interval(&i)),
        one.ratio.n.to_string(),
    ]
}

/// Headings of [`faults_left`].
pub(super) const FAULTS_LEFT: [&str; 5] = ["kind", "input", "mean", "worst", "functions"];

/// Faults left.
pub(super) fn faults_left(one: &FaultsLeft) -> Vec<String> {
    let input = if one.same_input { "the recorded one" } else { one.input.as_str() };
    vec![
        one.kind.to_string(),
        input.to_owned(),
        percent(one.mean),
        format!("{} ({})", percent(one.worst.1), one.worst.0),
        one.n.to_string(),
    ]
}

/// Headings of [`footprint`].
pub(super) const FOOTPRINT: [&str; 8] = [
    "function",
    "start",
    "n",
    "RSS MiB",
    "PSS MiB",
    "working set MiB",
    "guest MiB",
    "RSS, of that after a boot",
];

/// Memory of a series on the host, if it was measured.
pub(super) fn footprint(series: &Series, analysis: &Analysis) -> Option<Vec<String>> {
    let rss = series.median("RSS")?;
    let booted = analysis.series.iter().find(|other| {
        other.key.kind == Kind::Boot
            && (&other.key.function, other.key.level) == (&series.key.function, series.key.level)
            && other.key.runtime == series.key.runtime
    });
    let booted = booted.and_then(|boot| boot.median("RSS")).filter(|booted| *booted > 0.0);
    Some(vec![
        series.key.function.clone(),
        series.label.clone(),
        series.measure("RSS").map_or(0, |rss| rss.summary.n).to_string(),
        short(rss),
        cell(series.median("PSS")),
        cell(series.median("working set")),
        cell(series.guest_mib),
        booted.map_or_else(dash, |booted| percent(rss / booted)),
    ])
}

/// Headings of [`pages`].
pub(super) const PAGES: [&str; 10] = [
    "function",
    "recorded",
    "zero",
    "runs",
    "mean run",
    "other input needs",
    "same",
    "unique",
    "left with the recorded input",
    "compared by",
];

/// Page statistics of a function.
pub(super) fn pages(one: &PageStats) -> Vec<String> {
    let median = |summary: &Option<Summary>| cell(summary.map(|summary| summary.median));
    vec![
        one.function.clone(),
        one.recorded.to_string(),
        one.zero.to_string(),
        one.runs.to_string(),
        short(one.mean_run),
        median(&one.needed),
        cell(one.same),
        median(&one.unique),
        median(&one.unique_same),
        one.by.as_str().to_owned(),
    ]
}

/// The comparisons as sentences.
pub(super) fn findings(analysis: &Analysis) -> Vec<String> {
    let ratio = |one: &Comparison| {
        let what = if one.measure == "total" { "the whole invocation" } else { one.measure };
        let sure = one.ratio.interval.map(|i| format!(" (95 %: {})", interval(&i)));
        let on = one.runtime.map(|name| format!("{name}: ")).unwrap_or_default();
        format!(
            "{on}{} against {}, {what}, input {}: {}{} over {} function(s)",
            one.fast,
            one.slow,
            one.input,
            times(one.ratio.ratio),
            sure.unwrap_or_default(),
            one.ratio.n
        )
    };
    let left = |one: &FaultsLeft| {
        let input = if one.same_input { "the recorded" } else { "another" };
        let mean = percent(one.mean);
        let (worst, share) = (&one.worst.0, percent(one.worst.1));
        format!(
            "{}, {input} input: {mean} of the recorded faults left (worst: {worst}, {share})",
            one.kind
        )
    };
    let mut all = super::runtimes::findings(analysis);
    all.extend(analysis.comparisons.iter().map(ratio));
    all.extend(analysis.faults_left.iter().map(left));
    all.extend(levels(analysis));
    all.extend(analysis.pages.iter().map(|one| {
        let other = one.same.zip(one.unique).map(|(same, unique)| {
            let unique = short(unique.median);
            format!("; another input needs {} of them and {unique} others", short(same))
        });
        format!(
            "{}: {} pages recorded, {} of them zero, in runs of {} on average{}",
            one.function,
            one.recorded,
            one.zero,
            short(one.mean_run),
            other.unwrap_or_default()
        )
    }));
    all
}

/// Of concurrent starts: each line's highest level against one.
fn levels(analysis: &Analysis) -> Vec<String> {
    let mut all = Vec::new();
    for one in analysis.series.iter().filter(|series| series.key.level > 1) {
        let mut key = one.key.clone();
        key.level = 1;
        let alone = analysis.find(&key).and_then(|series| series.measure("total"));
        if let (Some(alone), Some(many)) = (alone, one.measure("total")) {
            let (alone, many) = (&alone.summary, &many.summary);
            all.push(format!(
                "{} at once: mean {} ms ({}), median {} ms ({}), greatest {} ms ({}), against one alone",
                one.name(),
                short(many.mean),
                times(many.mean / alone.mean),
                short(many.median),
                times(many.median / alone.median),
                short(many.max),
                times(many.max / alone.max),
            ));
        }
    }
    all
}

/// A figure, or a dash.
pub(super) fn cell(value: Option<f64>) -> String {
    value.map_or_else(dash, short)
}

pub(super) fn dash() -> String {
    "–".to_owned()
}

pub(super) fn interval(interval: &Interval) -> String {
    format!("{} – {}", short(interval.low), short(interval.high))
}

pub(super) fn times(ratio: f64) -> String {
    format!("{}×", short(ratio))
}

pub(super) fn percent(share: f64) -> String {
    format!("{} %", short(share * 100.0))
}
