//! What a reader should mind before believing a figure.

use std::collections::BTreeMap;

use serde_json::Value;
use vhive_api::RuntimeName;

use crate::plan::{Cache, Kind};
use crate::row::StudyResult;
use crate::stats::Summary;

use super::series::Series;

/// Below so many values a median's interval says little.
const FEW: usize = 5;
/// A standard deviation above this part of the mean is noise.
const NOISY: f64 = 0.3;

pub(super) fn all(result: &StudyResult, series: &[Series]) -> Vec<String> {
    let mut all = Vec::new();
    let facts = &result.facts;
    if facts.ended.is_none() {
        all.push("The study was cut short: there are fewer rows than planned.".to_owned());
    }
    if result.cut {
        all.push("The last row was cut off and is left out.".to_owned());
    }
    all.extend(facts.notes.iter().cloned());
    all.extend(runtime(result));
    all.extend(served_otherwise(series));
    all.extend(fallbacks(result));
    all.extend(loads(result));
    all.extend(densities(result));
    all.extend(cache(result));
    all.extend(load(result));
    all.extend(noise(series));
    all.extend(few(series));
    all
}

fn runtime(result: &StudyResult) -> Option<String> {
    let mut records = result.rows.iter().filter_map(|row| row.record.as_ref());
    if records.any(|record| record.runtime == RuntimeName::Sim) {
        return Some(
            "The runtime was `sim`, which isolates nothing: times of starts are configured, not \
             measured."
                .to_owned(),
        );
    }
    let accelerator = find(&result.facts.node, "accelerator").and_then(Value::as_str);
    accelerator.filter(|name| *name == "tcg").map(|_| {
        "The guests' CPU was emulated (TCG): what runs in the guest takes 10 to 30 times as long \
         as under KVM; compare times of memory and of the VMM, not of guests."
            .to_owned()
    })
}

/// The first value of this name anywhere in a document.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Object(map) => map.get(name).or_else(|| map.values().find_map(|v| find(v, name))),
        Value::Array(all) => all.iter().find_map(|v| find(v, name)),
        _ => None,
    }
}

fn served_otherwise(series: &[Series]) -> Option<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for one in series {
        for left in &one.left_out {
            *counts.entry(format!("{}: {}", one.name(), left.why)).or_default() += left.rows;
        }
    }
    let rows: usize = counts.values().sum();
    let parts = counts.into_iter().map(|(what, n)| format!("{what} ({n})"));
    let parts = some(parts.collect());
    (rows > 0).then(|| format!("{rows} invocation(s) are in no statistic: {parts}."))
}

fn fallbacks(result: &StudyResult) -> Option<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for row in &result.rows {
        if let Some(fallback) = row.record.as_ref().and_then(|record| record.fallback.as_ref()) {
            *counts.entry(format!("{} {}: {fallback}", row.function, row.kind)).or_default() += 1;
        }
    }
    let rows: usize = counts.values().sum();
    let parts = counts.into_iter().map(|(what, n)| format!("{what} ({n})"));
    let parts = some(parts.collect());
    (rows > 0).then(|| format!("{rows} start(s) went another way than their policy: {parts}."))
}

fn loads(result: &StudyResult) -> Option<String> {
    let bad = result.loads.iter().filter(|load| load.failures > 0);
    let parts = bad.map(|load| {
        let why = load.first_failure.as_deref().unwrap_or("no reason known");
        format!("{} {} {} ({why})", load.function, load.runtime, load.failures)
    });
    let parts: Vec<String> = parts.collect();
    let some = some(parts.clone());
    (!parts.is_empty()).then(|| format!("Requests failed while throughput was measured: {some}."))
}

fn densities(result: &StudyResult) -> Vec<String> {
    let bad = result.densities.iter().filter(|density| !density.is_full());
    bad.map(|density| {
        let (runtime, why) = (density.runtime, &density.why);
        format!("It was not the memory that ended filling it with {runtime}: {why}.")
    })
    .collect()
}

fn cache(result: &StudyResult) -> Option<String> {
    let cold = result.rows.iter().filter(|row| row.kind != Kind::Warm);
    let kept = cold.clone().filter(|row| row.cache == Cache::Keep.as_str()).count();
    let all = cold.count();
    (kept > 0).then(|| {
        format!(
            "The page cache was not dropped before {kept} of {all} cold start(s): files may have \
             come from memory."
        )
    })
}

fn load(result: &StudyResult) -> Option<String> {
    let facts = &result.facts;
    let cores = facts.host.cores.max(1);
    let loads = result.rows.iter().filter_map(|row| row.load);
    let most = loads.chain(facts.load_before).chain(facts.load_after).fold(0.0_f64, f64::max);
    (most > cores as f64).then(|| {
        format!("The host was busy: its load average reached {most:.1} with {cores} CPU(s).")
    })
}

fn noise(series: &[Series]) -> Vec<String> {
    let with_total = || series.iter().filter_map(|s| Some((s, s.measure("total")?)));
    let noisy: Vec<String> = with_total()
        .filter(|(_, total)| total.summary.n > 1 && total.summary.variation > NOISY)
        .map(|(s, total)| format!("{} {:.0} %", s.name(), total.summary.variation * 100.0))
        .collect();
    let outliers: Vec<String> = with_total()
        .filter(|(_, total)| total.summary.outliers > 0)
        .map(|(s, total)| format!("{} {} of {}", s.name(), total.summary.outliers, total.summary.n))
        .collect();
    let slow: Vec<String> = with_total()
        .filter(|(_, total)| first_is_slow(&total.values))
        .map(|(s, _)| s.name())
        .collect();
    let mut all = Vec::new();
    if !noisy.is_empty() {
        let list = some(noisy);
        all.push(format!("Totals vary by more than 30 % (deviation ÷ mean): {list}."));
    }
    if !outliers.is_empty() {
        let list = some(outliers);
        all.push(format!("Totals beyond 1.5 interquartile ranges: {list}."));
    }
    if !slow.is_empty() {
        let list = some(slow);
        all.push(format!("The first measurement was far slower than the others: {list}."));
    }
    all
}

/// Whether the first value lies above all that the others let expect.
fn first_is_slow(values: &[f64]) -> bool {
    let Some((first, rest)) = values.split_first() else { return false };
    let Some(rest) = Summary::of(rest, 0).filter(|rest| rest.n >= 4) else { return false };
    *first > rest.median * 1.2 && *first > rest.q3 + 3.0 * (rest.q3 - rest.q1)
}

fn few(series: &[Series]) -> Vec<String> {
    let none: Vec<String> = series.iter().filter(|s| s.counted == 0).map(Series::name).collect();
    let few: Vec<String> = series
        .iter()
        .filter(|s| (1..FEW).contains(&s.counted))
        .map(|s| format!("{} n={}", s.name(), s.counted))
        .collect();
    let mut all = Vec::new();
    if !none.is_empty() {
        all.push(format!("Nothing was measured of: {}.", some(none)));
    }
    if !few.is_empty() {
        all.push(format!("Too few values for a useful interval: {}.", some(few)));
    }
    all
}

/// A list of at most eight.
fn some(mut parts: Vec<String>) -> String {
    let more = parts.len().saturating_sub(8);
    parts.truncate(8);
    let tail = if more > 0 { format!("; and {more} more") } else { String::new() };
    parts.join("; ") + &tail
}
