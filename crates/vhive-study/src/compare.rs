//! Two results against each other: `vhive study compare A B`.
//!
//! Whatever both have measured of the same thing is compared: of studies a function, kind, input
//! and level; of `vhive load` an endpoint and how it was started, of its sweeps a rate that both have
//! tried; of simulations a policy. What differs in plan and host is listed, because it may be the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vhive_api::{Counter, Phase};

use crate::analysis::counters;
use crate::load::Load;
use crate::row::{LOADS, ROWS, ResultError, Row, STUDY, lines, lines_if_there, text};
use crate::run::RunFacts;
use crate::simulate::{SIMULATION, Simulation};
use crate::stats::{self, Difference};

/// Name of the file that `vhive load` leaves beside its rows.
pub const SUMMARY: &str = "summary.json";
/// Name of the file that `vhive load sweep` leaves beside its rows.
pub(crate) const SWEEP: &str = "sweep.json";

/// Why two results cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// One cannot be read.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// There is none.
    #[error("{} holds no result of a study, of a simulation or of `vhive load`", .0.display())]
    Nothing(PathBuf),
    /// They answer different questions.
    #[error("{} is of a {a}, {} of a {b}; only results of one kind can be compared", dir_a.display(), dir_b.display())]
    Kinds {
        /// The first.
        dir_a: PathBuf,
        /// Its kind.
        a: &'static str,
        /// The second.
        dir_b: PathBuf,
        /// Its kind.
        b: &'static str,
    },
}

/// What a figure is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct What {
    /// What was measured: a function and a kind, an endpoint, a policy.
    pub group: String,
    /// Which figure, with its unit.
    pub metric: &'static str,
}

/// A result as samples.
#[derive(Clone, Debug)]
struct Samples {
    kind: &'static str,
    facts: BTreeMap<String, String>,
    cut_short: Option<String>,
    /// In the order of their time, where it matters.
    values: BTreeMap<What, Vec<f64>>,
}

/// Kinds whose values are of one run each, and so depend on those shortly before.
const IN_TIME: [&str; 2] = ["load", "sweep"];

/// One side of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Side {
    /// Values.
    pub n: usize,
    /// Median.
    pub median: f64,
    /// What one in a hundred exceeds.
    pub p99: f64,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Of what.
    #[serde(flatten)]
    pub what: What,
    /// The first result.
    pub a: Side,
    /// The second.
    pub b: Side,
    /// Medians, second less first.
    #[serde(serialize_with = "difference")]
    pub median: Difference,
    /// Upper percents likewise.
    #[serde(serialize_with = "difference")]
    pub p99: Difference,
    /// The values themselves, for charts.
    #[serde(skip)]
    pub values: (Vec<f64>, Vec<f64>),
}

impl Line {
    /// Median of the second over that of the first.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        (self.a.median != 0.0).then(|| self.b.median / self.a.median)
    }
}

/// A fact that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// Its name, as in the file of facts.
    pub name: String,
    /// In the first result; none if it says nothing.
    pub a: Option<String>,
    /// In the second.
    pub b: Option<String>,
}

/// Two results against each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The first.
    pub a: PathBuf,
    /// The second.
    pub b: PathBuf,
    /// What both are of.
    pub kind: &'static str,
    /// Plan and host, where they differ.
    pub facts: Vec<Fact>,
    /// Of each that is not whole, how much of it there is.
    pub cut_short: [Option<String>; 2],
    /// Every comparison.
    pub lines: Vec<Line>,
    /// Groups that only the first has.
    pub only_a: Vec<String>,
    /// Groups that only the second has.
    pub only_b: Vec<String>,
    /// Of the resampling.
    pub seed: u64,
    /// Whether values of one run depend on those shortly before, and so are resampled in blocks.
    pub in_time: bool,
}

impl Comparison {
    /// Compares the results in two directories.
    ///
    /// # Errors
    /// When one is none, or they are of different kinds.
    pub fn of(a: &Path, b: &Path, seed: u64) -> Result<Self, CompareError> {
        let (first, second) = (Samples::read(a)?, Samples::read(b)?);
        if first.kind != second.kind {
            return Err(CompareError::Kinds {
                dir_a: a.to_owned(),
                a: first.kind,
                dir_b: b.to_owned(),
                b: second.kind,
            });
        }
        let in_time = IN_TIME.contains(&first.kind);
        let differ = if in_time { stats::difference_in_time } else { stats::difference };
        let mut lines = Vec::new();
        for (what, values) in &first.values {
            let Some(others) = second.values.get(what) else { continue };
            let found = (
                side(values),
                side(others),
                differ(values, others, 0.5, seed),
                differ(values, others, 0.99, seed),
            );
            if let (Some(a), Some(b), Some(median), Some(p99)) = found {
                let values = (values.clone(), others.clone());
                lines.push(Line { what: what.clone(), a, b, median, p99, values });
            }
        }
        let groups = |samples: &Samples| -> BTreeSet<String> {
            samples.values.keys().map(|what| what.group.clone()).collect()
        };
        let (in_a, in_b) = (groups(&first), groups(&second));
        Ok(Self {
            a: a.to_owned(),
            b: b.to_owned(),
            kind: first.kind,
            facts: differing(&first.facts, &second.facts),
            cut_short: [first.cut_short, second.cut_short],
            lines,
            only_a: in_a.difference(&in_b).cloned().collect(),
            only_b: in_b.difference(&in_a).cloned().collect(),
            seed,
            in_time,
        })
    }
}

fn difference<S: serde::Serializer>(one: &Difference, to: S) -> Result<S::Ok, S::Error> {
    let interval = one.interval.map(|interval| [interval.low, interval.high]);
    serde_json::json!({"by": one.by, "interval": interval, "clear": one.is_clear(), "block": one.block})
        .serialize(to)
}

fn side(values: &[f64]) -> Option<Side> {
    let n = values.iter().filter(|value| value.is_finite()).count();
    Some(Side { n, median: stats::median(values)?, p99: stats::upper_percent(values, 1.0)? })
}

fn differing(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> Vec<Fact> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let fact = |name: &&String| Fact {
        name: (*name).clone(),
        a: a.get(*name).cloned(),
        b: b.get(*name).cloned(),
    };
    names.iter().map(fact).filter(|fact| fact.a != fact.b).collect()
}

impl Samples {
    fn read(dir: &Path) -> Result<Self, CompareError> {
        if dir.join(STUDY).exists() {
            Self::study(dir)
        } else if dir.join(SIMULATION).exists() {
            Self::simulation(dir)
        } else if dir.join(SUMMARY).exists() && dir.join(ROWS).exists() {
            Self::load(dir)
        } else if dir.join(SWEEP).exists() {
            Self::sweep(dir)
        } else {
            Err(CompareError::Nothing(dir.to_owned()))
        }
    }

    fn study(dir: &Path) -> Result<Self, CompareError> {
        let facts = facts(
            &dir.join(STUDY),
            &["study", "vhive", "plan", "host", "readahead_set", "load_before"],
        )?;
        let (rows, _) = lines::<Row>(&dir.join(ROWS))?;
        let mut values: BTreeMap<What, Vec<f64>> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.left_out().is_none()) {
            let mut group = format!("{} {}", row.function, row.kind);
            if let Some(runtime) = row.runtime {
                group = format!("{group} {runtime}");
            }
            group = format!("{group} “{}”", row.input);
            if row.level > 1 {
                group = format!("{group} ×{}", row.level);
            }
            let ms = |us: Option<u64>| us.map(|us| us as f64 / 1e3);
            let mib = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
            let memory = row.record.as_ref().and_then(|record| record.memory);
            let figures = [
                ("total ms", ms(row.total_us())),
                ("start ms", ms(row.phase(Phase::Start))),
                ("request ms", ms(row.phase(Phase::Request))),
                ("client ms", ms(row.client_us)),
                ("faults", memory.and_then(|memory| memory.faults).map(|faults| faults as f64)),
                ("PSS MiB", mib(row.pss_bytes)),
                ("RSS MiB", mib(row.rss_bytes)),
                ("CPU ms", counters::value(row, Counter::CpuUs)),
                ("minor faults", counters::value(row, Counter::MinorFaults)),
                ("major faults", counters::value(row, Counter::MajorFaults)),
                ("read MiB", counters::value(row, Counter::ReadBytes)),
                ("million instructions", counters::value(row, Counter::Instructions)),
                ("million cycles", counters::value(row, Counter::Cycles)),
            ];
            for (metric, figure) in figures {
                if let Some(figure) = figure {
                    values.entry(What { group: group.clone(), metric }).or_default().push(figure);
                }
            }
        }
        let (loads, _) = lines_if_there::<Load>(&dir.join(LOADS))?;
        for load in loads {
            let Load { function, runtime, connections, .. } = &load;
            let group = format!("{function} {runtime} throughput ×{connections}");
            values
                .entry(What { group: group.clone(), metric: "replies/s" })
                .or_default()
                .push(load.rate());
            if let Some(each) = load.cpu_us_each() {
                let what = What { group, metric: "CPU µs each" };
                values.entry(what).or_default().push(each);
            }
        }
        Ok(Self { kind: "study", facts, cut_short: None, values })
    }

    fn simulation(dir: &Path) -> Result<Self, CompareError> {
        let facts = facts(&dir.join(SIMULATION), &["vhive", "plan", "functions", "measured"])?;
        let simulation = Simulation::read(dir)?;
        let done = || format!("{} policies", simulation.outcomes.len());
        let cut_short = (simulation.missing() > 0).then(done);
        let mut values = BTreeMap::new();
        for one in &simulation.outcomes {
            for (metric, figure) in [
                ("cold %", 100.0 * one.cold_share),
                ("added mean ms", one.added.mean_ms),
                ("added p99 ms", one.added.at(0.99).unwrap_or(f64::NAN)),
                ("memory GB·h", one.memory_gb_s / 3600.0),
                ("peak instances", one.peak_instances as f64),
            ] {
                values.insert(What { group: one.label(), metric }, vec![figure]);
            }
        }
        Ok(Self { kind: "simulation", facts, cut_short, values })
    }

    fn load(dir: &Path) -> Result<Self, CompareError> {
        let path = dir.join(SUMMARY);
        let chosen = ["vhive", "host", "planned", "sending_seconds", "outcomes", "load_before"];
        let facts = facts(&path, &chosen)?;
        let rows = sent(dir)?;
        let cut = RunFacts::read(&path)?.is_cut_short();
        let cut_short = cut.then(|| format!("{} rows", rows.len()));
        let mut values: BTreeMap<What, Vec<f64>> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.outcome == "ok") {
            let group = match &row.start {
                Some(start) => format!("{} {start}", row.endpoint),
                None => row.endpoint.clone(),
            };
            for (metric, us) in [
                ("latency ms", row.latency_us),
                ("from intended ms", Some(row.total_us)),
                ("late ms", row.late_us),
            ] {
                let what = What { group: group.clone(), metric };
                values.entry(what).or_default().extend(us.map(|us| us / 1e3));
            }
        }
        Ok(Self { kind: "load", facts, cut_short, values })
    }

    fn sweep(dir: &Path) -> Result<Self, CompareError> {
        let path = dir.join(SWEEP);
        let facts = facts(&path, &["vhive", "host", "within", "load_before"])?;
        let content = |source| ResultError::Content { path: path.clone(), line: 1, source };
        let found: Knee = serde_json::from_str(&text(&path)?).map_err(content)?;
        let rows = sent(dir)?;
        let cut = RunFacts::read(&path)?.is_cut_short();
        let cut_short = cut.then(|| format!("{} rows", rows.len()));
        let mut values: BTreeMap<What, Vec<f64>> = BTreeMap::new();
        let group = "sweep".to_owned();
        if let Some(us) = found.unloaded_p99_us {
            let what = What { group: group.clone(), metric: "unloaded p99 ms" };
            values.insert(what, vec![us / 1e3]);
        }
        // What had held when it was killed is no knee.
        if let Some(knee) = found.knee.filter(|_| !cut) {
            values.insert(What { group, metric: "knee/s" }, vec![knee]);
        }
        // Of a rate that was tried twice, the second counts: what spoiled the first is why it was.
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        for (rate, nth) in rows.iter().filter_map(|row| Some((row.rate?, row.r#try))) {
            let last = last.entry(rate.to_bits()).or_default();
            *last = nth.max(*last);
        }
        let counts = |row: &&Sent| {
            let last = row.rate.and_then(|rate| last.get(&rate.to_bits()));
            row.outcome == "ok" && last.is_none_or(|last| row.r#try == *last)
        };
        for row in rows.iter().filter(counts) {
            let group = match row.rate {
                Some(rate) => format!("{} at {rate}/s", row.endpoint),
                None => format!("{} alone", row.endpoint),
            };
            for (metric, us) in [("from intended ms", Some(row.total_us)), ("late ms", row.late_us)]
            {
                let what = What { group: group.clone(), metric };
                values.entry(what).or_default().extend(us.map(|us| us / 1e3));
            }
        }
        Ok(Self { kind: "sweep", facts, cut_short, values })
    }
}

/// What of a row of `vhive load` is compared.
#[derive(Debug, Deserialize)]
struct Sent {
    /// Of a sweep's; none of the client alone.
    #[serde(default)]
    rate: Option<f64>,
    /// Which try of a rate.
    #[serde(default)]
    r#try: u64,
    #[serde(default)]
    intended_us: f64,
    endpoint: String,
    outcome: String,
    start: Option<String>,
    late_us: Option<f64>,
    latency_us: Option<f64>,
    total_us: f64,
}

/// The rows of a run in the order in which they were due, that of each try by itself; they are written as
/// they end.
fn sent(dir: &Path) -> Result<Vec<Sent>, ResultError> {
    let (mut rows, _) = lines::<Sent>(&dir.join(ROWS))?;
    rows.sort_by(|a, b| a.r#try.cmp(&b.r#try).then(a.intended_us.total_cmp(&b.intended_us)));
    Ok(rows)
}

/// What of a sweep's result is compared.
#[derive(Debug, Deserialize)]
struct Knee {
    knee: Option<f64>,
    unloaded_p99_us: Option<f64>,
}

/// The chosen facts of a file, flat.
fn facts(path: &Path, chosen: &[&str]) -> Result<BTreeMap<String, String>, ResultError> {
    let content = |source| ResultError::Content { path: path.to_owned(), line: 1, source };
    let all: Value = serde_json::from_str(&text(path)?).map_err(content)?;
    let mut flat = BTreeMap::new();
    for name in chosen {
        if let Some(value) = all.get(name) {
            flatten(name, value, &mut flat);
        }
    }
    let node = all.get("node");
    for name in ["version", "runtimes", "start_threads", "cpus", "accelerators", "default_runtime"]
    {
        if let Some(value) = node.and_then(|node| node.get(name)) {
            flatten(&format!("node.{name}"), value, &mut flat);
        }
    }
    Ok(flat)
}

fn flatten(name: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Null => {}
        Value::Object(all) => {
            for (key, value) in all {
                flatten(&format!("{name}.{key}"), value, into);
            }
        }
        Value::String(text) => _ = into.insert(name.to_owned(), text.clone()),
        other => _ = into.insert(name.to_owned(), other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn sample() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cold-start")
    }

    /// The sample, with every total 50 ms longer and another CPU.
    fn slower(dir: &Path) {
        let rows = fs::read_to_string(sample().join(ROWS)).expect("rows");
        let slower: String = rows
            .lines()
            .map(|line| {
                let mut row: Value = serde_json::from_str(line).expect("a row");
                let phases = row["record"]["phases"].as_array_mut().expect("phases");
                for phase in phases.iter_mut().filter(|phase| phase["phase"] == "total") {
                    let length = phase["length_us"].as_u64().expect("a length");
                    phase["length_us"] = (length + 50_000).into();
                }
                format!("{row}\n")
            })
            .collect();
        fs::write(dir.join(ROWS), slower).expect("written");
        let facts = fs::read_to_string(sample().join(STUDY)).expect("facts");
        let mut facts: Value = serde_json::from_str(&facts).expect("JSON");
        facts["host"]["cpu"] = "another".into();
        fs::write(dir.join(STUDY), facts.to_string()).expect("written");
    }

    #[test]
    fn what_differs_is_found_and_what_does_not_is_not() {
        let dir = tempfile::tempdir().expect("made");
        slower(dir.path());
        let found = Comparison::of(&sample(), dir.path(), 1).expect("compared");
        assert_eq!(found, Comparison::of(&sample(), dir.path(), 1).expect("again"));
        assert_eq!(found.facts.len(), 1);
        assert_eq!(
            (found.facts[0].name.as_str(), &found.facts[0].b),
            ("host.cpu", &Some("another".to_owned()))
        );
        let of = |metric| found.lines.iter().filter(move |line| line.what.metric == metric);
        assert!(of("total ms").count() >= 6);
        for line in of("total ms") {
            assert!((line.median.by - 50.0).abs() < 1e-6, "{line:?}");
            assert_eq!(line.a.n, line.b.n);
        }
        assert!(of("request ms").all(|line| line.median.by == 0.0 && !line.median.is_clear()));
        assert!(found.only_a.is_empty() && found.only_b.is_empty());
        let json = serde_json::to_value(&found).expect("serialises");
        assert!(json["lines"][0]["median"]["by"].is_number());
    }

    #[test]
    fn runs_of_load_are_compared_by_endpoint_and_start() {
        let dirs = [tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made")];
        for (dir, latency) in dirs.iter().zip([1000.0, 3000.0]) {
            let row = |n: u32, start: &str, outcome: &str| {
                let us = latency + f64::from(n);
                format!(
                    "{{\"number\":{n},\"endpoint\":\"a\",\"outcome\":\"{outcome}\",\
                     \"start\":\"{start}\",\"late_us\":1.0,\"latency_us\":{us},\"total_us\":{us}}}\n"
                )
            };
            let rows: String = (0..40)
                .map(|n| row(n, if n == 0 { "boot" } else { "warm" }, "ok"))
                .chain([row(99, "warm", "timeout")])
                .collect();
            fs::write(dir.path().join(ROWS), rows).expect("written");
            fs::write(dir.path().join(SUMMARY), "{\"planned\":41}").expect("written");
        }
        let found = Comparison::of(dirs[0].path(), dirs[1].path(), 1).expect("compared");
        let warm = found.lines.iter().find(|line| line.what.group == "a warm").expect("warm");
        assert_eq!((warm.a.n, warm.what.metric), (39, "from intended ms"));
        assert!(warm.median.is_clear() && (warm.median.by - 2.0).abs() < 1e-9);
        let cold = found.lines.iter().find(|line| line.what.group == "a boot").expect("cold");
        assert!(!cold.median.is_clear(), "one value says nothing of chance");
        let error = Comparison::of(dirs[0].path(), &sample(), 1).expect_err("kinds").to_string();
        assert!(error.contains("load") && error.contains("study"), "{error}");
        let empty = tempfile::tempdir().expect("made");
        assert!(matches!(
            Comparison::of(empty.path(), &sample(), 1),
            Err(CompareError::Nothing(_))
        ));
    }

    #[test]
    fn what_comes_in_bunches_is_no_difference() {
        // 20 requests a second for a minute, all slow in some seconds and fast in the others. The rows are
        // written as replies come, not in the order in which they were due.
        let run = |slow: usize, seed: u64| {
            let dir = tempfile::tempdir().expect("made");
            let mut random = stats::Random::new(seed);
            let mut seconds: Vec<usize> = (0..60).collect();
            seconds.sort_by_cached_key(|_| random.bits());
            let row = |n: usize| {
                let us =
                    if seconds[..slow].contains(&(n / 20)) { 90_000 } else { 5000 } + n * 7 % 20;
                serde_json::json!({
                    "number": n, "endpoint": "a", "outcome": "ok", "start": null,
                    "intended_us": n * 50_000, "late_us": 1.0, "latency_us": us, "total_us": us,
                })
            };
            // 7 and 1200 have no divisor in common: each row once.
            let rows: String = (0..1200).map(|n| format!("{}\n", row(n * 7 % 1200))).collect();
            fs::write(dir.path().join(ROWS), rows).expect("written");
            fs::write(dir.path().join(SUMMARY), "{\"planned\":1200}").expect("written");
            dir
        };
        let (a, b) = (run(28, 1), run(32, 2));
        let found = Comparison::of(a.path(), b.path(), 1).expect("compared");
        let line = found.lines.iter().find(|line| line.what.metric == "latency ms").expect("both");
        let (one, other) = &line.values;
        let by_values = stats::difference(one, other, 0.5, 1).expect("values");
        assert!(by_values.is_clear() && by_values.by > 80.0, "one by one: {by_values:?}");
        assert!(line.median.by == by_values.by && !line.median.is_clear(), "{:?}", line.median);
        assert!(line.median.block.iter().all(|block| *block >= 10), "{:?}", line.median);
        let json = serde_json::to_value(&found).expect("serialises");
        assert!(json["lines"][1]["median"]["block"][1].as_u64() >= Some(1), "{json}");
    }

    #[test]
    fn sweeps_are_compared_by_the_rates_that_both_have_tried() {
        let dirs = [tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made")];
        for (dir, (knee, other)) in dirs.iter().zip([(20.0, 15.0), (40.0, 40.0)]) {
            let row = |(rate, nth): (Option<f64>, u32), n: u32| {
                // The first try of 20/s is spoiled.
                let knee = if (rate, nth) == (Some(20.0), 0) { 9e9 } else { knee };
                serde_json::json!({
                    "rate": rate, "try": nth, "number": n, "endpoint": "a", "outcome": "ok", "start": null,
                    "late_us": 1.0, "latency_us": knee, "total_us": knee * 1e3 + f64::from(n),
                })
            };
            let rates = [(None, 0), (None, 1), (Some(20.0), 0), (Some(20.0), 1), (Some(other), 2)];
            let rows = rates.iter().flat_map(|rate| (0..30).map(|n| row(*rate, n)));
            let rows: String = rows.map(|row| format!("{row}\n")).collect();
            fs::write(dir.path().join(ROWS), rows).expect("written");
            let found = format!("{{\"knee\":{knee},\"unloaded_p99_us\":900.0,\"within\":3.0}}");
            fs::write(dir.path().join(SWEEP), found).expect("written");
        }
        let found = Comparison::of(dirs[0].path(), dirs[1].path(), 1).expect("compared");
        let of = |group: &str, metric: &str| {
            found.lines.iter().find(|line| line.what.group == group && line.what.metric == metric)
        };
        assert_eq!(of("sweep", "knee/s").expect("both have one").median.by, 20.0);
        let at = of("a at 20/s", "from intended ms").expect("both have tried it");
        assert!(at.a.n == 30 && at.median.is_clear() && (at.median.by - 20.0).abs() < 1e-9);
        assert!(of("a alone", "late ms").is_some());
        assert_eq!(
            (&found.only_a[..], &found.only_b[..]),
            (&["a at 15/s".to_owned()][..], &["a at 40/s".to_owned()][..])
        );
    }
}
