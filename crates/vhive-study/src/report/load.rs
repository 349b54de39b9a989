//! The report of a run of `vhive load`, from its raw rows.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use vhive_load::Steps;
use vhive_load::summary::FAR_OFF;

use crate::compare::SUMMARY;
use crate::row::{ROWS, ResultError};
use crate::run::RunFacts;
use crate::stats::{median, upper_percent};

use super::injected::{self, Injected};
use super::palette::{BLUE, Fill, ORANGE, PURPLE, Pattern, dashes, series};
use super::svg::{Anchor, Chart, Scale, Svg, WIDTH, short};
use super::{Built, ReportError, html, outcomes};

/// Stretches that a run is cut into.
pub(super) const STRETCHES: usize = 120;
/// What is to be minded of a run that was killed.
pub(super) const CUT_SHORT: &str = "The run was cut short (or still goes on): what was under way or not \
     yet sent is not in its rows.";
const HEADINGS: [&str; 8] = ["start", "ok", "mean ms", "p50", "p90", "p99", "p99.9", "greatest"];
/// Parts of all at which distributions are drawn, and their names.
const PARTS: [(f64, &str); 7] = [
    (0.5, "50 %"),
    (0.75, "75 %"),
    (0.9, "90 %"),
    (0.95, "95 %"),
    (0.99, "99 %"),
    (0.999, "99.9 %"),
    (1.0, "all"),
];

/// What of a row is read.
#[derive(Debug, Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    endpoint: Cow<'a, str>,
    intended_us: f64,
    late_us: Option<f64>,
    connect_us: Option<f64>,
    latency_us: Option<f64>,
    total_us: f64,
    #[serde(borrow)]
    outcome: Cow<'a, str>,
    #[serde(borrow)]
    start: Option<Cow<'a, str>>,
    #[serde(default)]
    function_drift_percent: Option<f64>,
}

/// The same in memory, where there may be millions: each word is there once.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) endpoint: Arc<str>,
    pub(super) intended_us: f64,
    /// None of one that was never sent.
    late_us: Option<f64>,
    connect_us: Option<f64>,
    pub(super) latency_us: f64,
    total_us: f64,
    pub(super) outcome: Arc<str>,
    start: Option<Arc<str>>,
    drift_percent: Option<f64>,
}

/// Whether a directory holds a run of `vhive load`.
pub(super) fn is_one(dir: &Path) -> bool {
    dir.join(SUMMARY).exists() && dir.join(ROWS).exists()
}

/// Makes the report of a run.
pub(super) fn build(dir: &Path, steps: &Steps) -> Result<Built, ReportError> {
    let (rows, cut) = read(&dir.join(ROWS))?;
    let facts = RunFacts::read(&dir.join(SUMMARY))?;
    let injected = injected::read(dir)?;
    let run = Run::of(&rows, &injected);
    let charts = [
        run.over_time(),
        outcomes::chart(&rows, &injected, run.end_s),
        run.distribution(),
        run.lateness(),
    ];
    let charts: Vec<Chart> = charts.into_iter().flatten().collect();
    let mut warnings = run.warnings();
    if facts.is_cut_short() {
        warnings.push(CUT_SHORT.to_owned());
    }
    warnings.extend(busy(&facts));
    if cut {
        warnings.push("The last row was cut off and is left out.".to_owned());
    }
    let page = run.page((dir, &facts), &charts, &warnings);
    let files =
        super::write((dir, steps), &[("report.html", page.as_str())], &charts, &mut warnings)?;
    Ok(Built {
        report: dir.join("report.html"),
        files,
        headings: HEADINGS.map(str::to_owned).to_vec(),
        table: run.table(),
        findings: Vec::new(),
        warnings,
    })
}

pub(super) fn busy(facts: &RunFacts) -> Option<String> {
    let most = facts.load_before.into_iter().chain(facts.load_after).fold(0.0_f64, f64::max);
    let cores = facts.host.cores;
    (cores > 0 && most > cores as f64).then(|| {
        format!("The host was busy: its load average reached {most:.1} with {cores} CPU(s).")
    })
}

/// The rows, and whether the last one has no end.
fn read(path: &Path) -> Result<(Vec<Sent>, bool), ResultError> {
    let failed = |source| ResultError::Read { path: path.to_owned(), source };
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let (mut rows, mut line, mut number) = (Vec::new(), String::new(), 0);
    let mut words = BTreeSet::new();
    let mut word = |text: &str| -> Arc<str> {
        let known = words.get(text).cloned();
        known.unwrap_or_else(|| {
            let new: Arc<str> = text.into();
            words.insert(Arc::clone(&new));
            new
        })
    };
    loop {
        line.clear();
        number += 1;
        if file.read_line(&mut line).map_err(failed)? == 0 {
            return Ok((rows, false));
        }
        if !line.ends_with('\n') {
            return Ok((rows, true));
        }
        let content = |source| ResultError::Content { path: path.to_owned(), line: number, source };
        let row: Line<'_> = serde_json::from_str(&line).map_err(content)?;
        let Line { intended_us, late_us, connect_us, total_us, .. } = row;
        let latency_us = row.latency_us.unwrap_or_default();
        let drift_percent = row.function_drift_percent;
        let endpoint = word(&row.endpoint);
        let (outcome, start) = (word(&row.outcome), row.start.as_deref().map(&mut word));
        rows.push(Sent {
            endpoint,
            intended_us,
            late_us,
            connect_us,
            latency_us,
            total_us,
            outcome,
            start,
            drift_percent,
        });
    }
}

/// Latencies of one kind of start, in milliseconds.
struct Kind<'a> {
    name: &'a str,
    latency: Vec<f64>,
}

struct Run<'a> {
    rows: &'a [Sent],
    injected: &'a [Injected],
    /// Until the last request was to be sent, or something was broken on purpose, in seconds.
    end_s: f64,
    kinds: Vec<Kind<'a>>,
    failures: BTreeMap<&'a str, usize>,
}

impl<'a> Run<'a> {
    fn of(rows: &'a [Sent], injected: &'a [Injected]) -> Self {
        let sent = rows.iter().map(|row| row.intended_us / 1e6);
        let end_s = sent.chain(injected.iter().filter_map(Injected::at)).fold(0.0, f64::max);
        let mut kinds: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut failures: BTreeMap<&str, usize> = BTreeMap::new();
        for row in rows {
            if &*row.outcome == "ok" {
                let kind = row.start.as_deref().unwrap_or("unknown");
                kinds.entry(kind).or_default().push(row.latency_us / 1e3);
            } else {
                *failures.entry(&row.outcome).or_default() += 1;
            }
        }
        let kinds = kinds.into_iter().map(|(name, latency)| Kind { name, latency });
        Self { rows, injected, end_s, kinds: kinds.collect(), failures }
    }

    fn ok(&self) -> impl Iterator<Item = &'a Sent> {
        self.rows.iter().filter(|row| &*row.outcome == "ok")
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.rows.is_empty() {
            warnings.push("Nothing was sent.".to_owned());
        }
        for (outcome, count) in &self.failures {
            warnings.push(format!(
                "{count} of {} requests ended as “{outcome}”; they are in no latency here.",
                self.rows.len()
            ));
        }
        let late = self.rows.iter().filter(|row| row.late_us > Some(1000.0)).count();
        if late * 100 > self.rows.len() {
            warnings.push(format!(
                "{late} of {} requests left more than 1 ms late: the generator could not keep up.",
                self.rows.len()
            ));
        }
        let drifts: Vec<f64> =
            self.rows.iter().filter_map(|row| Some(row.drift_percent?.abs())).collect();
        if let Some(off) = median(&drifts).filter(|off| *off > FAR_OFF) {
            warnings.push(format!(
                "The functions' work took {off:.1} % more or less CPU time than asked for, at the median: it is \
                 another load."
            ));
        }
        let opened = self.rows.iter().filter(|row| row.connect_us.is_some()).count();
        if opened * 100 > self.rows.len() {
            warnings.push(format!(
                "{opened} requests had to open a connection, which is in their lateness."
            ));
        }
        warnings
    }

    fn table(&self) -> Vec<Vec<String>> {
        let row = |name: &str, values: &[f64]| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let at = |percent| upper_percent(values, percent).map_or_else(String::new, short);
            vec![
                name.to_owned(),
                values.len().to_string(),
                short(mean),
                at(50.0),
                at(10.0),
                at(1.0),
                at(0.1),
                at(0.0),
            ]
        };
        let mut rows: Vec<Vec<String>> =
            self.kinds.iter().map(|kind| row(kind.name, &kind.latency)).collect();
        if self.kinds.len() > 1 {
            let all: Vec<f64> = self.ok().map(|row| row.latency_us / 1e3).collect();
            rows.push(row("all", &all));
        }
        if self.kinds.iter().any(|kind| !kind.latency.is_empty()) {
            let total: Vec<f64> = self.ok().map(|row| row.total_us / 1e3).collect();
            rows.push(row("all, from intended", &total));
        }
        rows
    }

    /// Latency over time: each stretch's median and p99, and single cold starts.
    fn over_time(&self) -> Option<Chart> {
        let end = self.end_s;
        let values = || self.ok().map(|row| row.latency_us / 1e3).filter(|ms| *ms > 0.0);
        let (low, high) = values().fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
        if high <= 0.0 || end <= 0.0 {
            return None;
        }
        let (left, right) = (70.0, WIDTH - 30.0);
        let mut svg = Svg::new("over-time");
        let legend = [
            (Fill::plain(BLUE), "median (unbroken)"),
            (Fill::plain(ORANGE), "p99 (dashes)"),
            (Fill::with(PURPLE, Pattern::Dots), "a cold start (diamond)"),
        ];
        let top = svg.legend(8.0, &legend) + 14.0;
        let bottom = top + 320.0;
        let across = Scale::linear(end, (left, right));
        let down = Scale::logarithmic((low, high), (bottom, top));
        svg.rules(&down, (left, right));
        svg.axis(&across, (top, bottom), "seconds, as intended");
        let italic = "font-style=\"italic\"";
        svg.styled((left - 60.0, top - 8.0), Anchor::Start, italic, "latency, ms (log)");
        let mut stretches: Vec<Vec<f64>> = vec![Vec::new(); STRETCHES];
        let mut cold = Vec::new();
        for row in self.ok() {
            let ms = row.latency_us / 1e3;
            stretches[stretch(row, end)].push(ms);
            if row.start.as_deref().is_some_and(|start| start != "warm") {
                cold.push((across.at(row.intended_us / 1e6), down.at(ms)));
            }
        }
        let line = |of: fn(&[f64]) -> Option<f64>| -> Vec<(f64, f64)> {
            let middle = |at: usize| (at as f64 + 0.5) / STRETCHES as f64 * end;
            let points = stretches.iter().enumerate();
            points
                .filter_map(|(at, all)| Some((across.at(middle(at)), down.at(of(all)?))))
                .collect()
        };
        let step = cold.len().div_ceil(2000).max(1);
        let shown: Vec<(f64, f64)> = cold.iter().copied().step_by(step).collect();
        svg.marks(&shown, 3, (PURPLE, true));
        svg.path(&line(|all| upper_percent(all, 1.0)), ORANGE, "6 3");
        svg.path(&line(median), BLUE, "");
        injected::mark(&mut svg, self.injected, &across, (top, bottom));
        let caption = format!(
            "Successful requests by when they were to be sent, in {STRETCHES} stretches; n = {}. Cold starts are \
             known only with --records; {} of them are marked.",
            self.ok().count(),
            shown.len()
        );
        let title = "Latency over time";
        Some(Chart { name: "over-time", title, caption, svg: svg.finish(title, bottom + 40.0) })
    }

    fn distribution(&self) -> Option<Chart> {
        let mut lines: Vec<(String, Vec<f64>)> = self
            .kinds
            .iter()
            .map(|kind| (format!("{} n={}", kind.name, kind.latency.len()), kind.latency.clone()))
            .collect();
        let total: Vec<f64> = self.ok().map(|row| row.total_us / 1e3).collect();
        lines.push((format!("all, from intended n={}", total.len()), total));
        let title = "How long requests took";
        let caption = "What so many of the successful requests did not exceed, by how their \
                       instance was started. “From intended” is what a user felt, with the \
                       generator's own lateness.";
        quantiles("latency", (title, caption), &lines, "latency, ms (log)")
    }

    fn lateness(&self) -> Option<Chart> {
        let late: Vec<f64> = self.rows.iter().filter_map(|row| Some(row.late_us? / 1e3)).collect();
        let lines = [(format!("late n={}", late.len()), late)];
        let title = "How late requests left";
        let caption = "From the intended to the actual send, set-up of connections included: the \
                       generator's error, which is in no latency.";
        quantiles("lateness", (title, caption), &lines, "lateness, ms (log)")
    }

    fn page(
        &self,
        (dir, facts): (&Path, &RunFacts),
        charts: &[Chart],
        warnings: &[String],
    ) -> String {
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned());
        let below = format!(
            "<p class=\"dim\">{}; {} requests, {} successes</p>\n",
            super::svg::escape(&name.unwrap_or_default()),
            self.rows.len(),
            self.ok().count()
        );
        let mut page = html::begin("Load", &below);
        page.push_str(&html::list("Warnings", "warnings", warnings));
        page.push_str(&html::drawn(charts));
        page.push_str("<h2 id=\"numbers\">All numbers</h2>\n");
        page.push_str(&html::table(&HEADINGS, &self.table(), 1));
        page.push_str(&outcomes::by_endpoint(self.rows));
        page.push_str(&injected::section(self.injected, facts.is_cut_short()));
        page.push_str(
            "<h2 id=\"method\">Method</h2>\n<p>Open loop, unless the run was closed: each request \
             was sent at its time, whatever came of those before. Latency is from the actual send to the reply's \
             last byte. Quantiles are exact, from every row.</p>\n",
        );
        page.push_str(&told(facts));
        page.push_str(html::END);
        page
    }
}

/// In which stretch of a run that is so long, in seconds, a request was to be sent.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
pub(super) fn stretch(row: &Sent, end_s: f64) -> usize {
    let share = row.intended_us / 1e6 / end_s * STRETCHES as f64;
    (share as usize).min(STRETCHES - 1)
}

/// Host and command, where the summary has them.
pub(super) fn told(facts: &RunFacts) -> String {
    let Some(vhive) = &facts.vhive else { return String::new() };
    let load =
        |value: Option<f64>| value.map_or_else(|| "unknown".to_owned(), |l| format!("{l:.2}"));
    let time =
        |at: Option<jiff::Timestamp>| at.map_or_else(|| "unknown".to_owned(), |at| html::time(&at));
    let mut rows = html::host_rows(&facts.host);
    rows.extend([
        (
            "load average before, after",
            format!("{}, {}", load(facts.load_before), load(facts.load_after)),
        ),
        ("began, ended", format!("{}, {}", time(facts.began), time(facts.ended))),
        ("vhive", vhive.clone()),
        ("command", facts.command.join(" ")),
    ]);
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    format!("<h2 id=\"host\">Host</h2>\n{}", html::table(&["fact", "value"], &rows, 2))
}

/// Quantiles of several samples, a line each.
fn quantiles(
    name: &'static str,
    (title, caption): (&'static str, &str),
    lines: &[(String, Vec<f64>)],
    unit: &str,
) -> Option<Chart> {
    let values = || lines.iter().flat_map(|(_, all)| all).copied().filter(|v| *v > 0.0);
    let (low, high) = values().fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
    if high <= 0.0 {
        return None;
    }
    let (top, bottom, left, right) = (28.0, 340.0, 70.0, WIDTH - 250.0);
    let mut svg = Svg::new(name);
    let down = Scale::logarithmic((low.max(high / 1e6), high), (bottom, top));
    svg.rules(&down, (left, right));
    let x = |at: usize| left + (at as f64 + 0.5) / PARTS.len() as f64 * (right - left);
    for (at, (_, label)) in PARTS.iter().enumerate() {
        svg.line((x(at), top), (x(at), bottom), (0.1, 1.0));
        svg.text((x(at), bottom + 16.0), Anchor::Middle, label);
    }
    svg.styled((left - 60.0, top - 10.0), Anchor::Start, "font-style=\"italic\"", unit);
    let mut named = Vec::new();
    for (nth, (label, all)) in lines.iter().enumerate() {
        let colour = series(nth);
        let points: Vec<(f64, f64)> = PARTS
            .iter()
            .enumerate()
            .filter_map(|(at, (part, _))| {
                Some((x(at), down.at(upper_percent(all, 100.0 * (1.0 - part))?)))
            })
            .collect();
        svg.path(&points, colour, dashes(nth));
        for point in &points {
            svg.mark(*point, nth, colour);
        }
        if let Some(end) = points.last() {
            named.push((*end, label.clone()));
        }
    }
    let end = svg.names(right, &named).max(bottom + 40.0);
    Some(Chart { name, title, caption: caption.to_owned(), svg: svg.finish(title, end) })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_run_has_a_report_from_its_rows() {
        let dir = tempfile::tempdir().expect("made");
        let row = |n: u32| {
            let (start, outcome) = match n {
                0 => ("\"boot\"", "ok"),
                7 => ("null", "timeout"),
                _ => ("\"warm\"", "ok"),
            };
            let latency = if n == 0 { 300_000 } else { 1000 + n };
            format!(
                "{{\"number\":{n},\"intended_us\":{},\"late_us\":3.5,\"connect_us\":null,\
                 \"latency_us\":{latency},\"total_us\":{latency},\"outcome\":\"{outcome}\",\
                 \"start\":{start}}}\n",
                n * 10_000
            )
        };
        let rows: String = (0..300).map(row).collect();
        fs::write(dir.path().join(ROWS), format!("{rows}{{\"cut")).expect("written");
        fs::write(dir.path().join(SUMMARY), "{}").expect("written");
        let steps = Steps::default();
        steps.end();
        let stopped = super::super::build_in(dir.path(), &steps);
        assert!(matches!(stopped, Err(ReportError::Stopped)));
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 2, "nothing was written");
        let built = super::super::build(dir.path()).expect("built");
        let n: Vec<(&str, &str)> =
            built.table.iter().map(|row| (row[0].as_str(), row[1].as_str())).collect();
        assert_eq!(
            n,
            [("boot", "1"), ("warm", "298"), ("all", "299"), ("all, from intended", "299")]
        );
        assert!(built.table.iter().all(|row| row.len() == HEADINGS.len()));
        assert!(built.warnings.iter().any(|warning| warning.contains("timeout")));
        assert!(built.warnings.iter().any(|warning| warning.contains("cut off")));
        let page = fs::read_to_string(&built.report).expect("a page");
        let xml = page.strip_prefix("<!DOCTYPE html>\n").expect("is HTML 5");
        roxmltree::Document::parse(xml).expect("well-formed");
        for chart in ["over-time", "outcomes", "latency", "lateness"] {
            let svg = fs::read_to_string(dir.path().join(format!("{chart}.svg"))).expect("drawn");
            crate::report::tests::assert_needs_no_colour(chart, &svg);
            assert!(page.contains(&format!("id=\"{chart}\"")), "{chart}");
        }
    }
    #[test]
    fn a_run_that_was_killed_has_a_report_and_a_comparison_of_its_rows() {
        let dir = tempfile::tempdir().expect("made");
        let row = |n: u32| {
            format!(
                "{{\"number\":{n},\"endpoint\":\"a\",\"intended_us\":{n},\"late_us\":1.0,\
                 \"connect_us\":null,\"latency_us\":5.0,\"total_us\":6.0,\"outcome\":\"ok\",\
                 \"start\":null}}\n"
            )
        };
        let rows: String = (0..40).map(row).collect();
        fs::write(dir.path().join(ROWS), format!("{rows}{{\"cut")).expect("written");
        let facts = RunFacts::begin(Vec::new(), None, None).expect("no CPUs are asked for");
        let begun = serde_json::to_string(&facts).expect("serialises");
        fs::write(dir.path().join(SUMMARY), &begun).expect("written");
        let is_told = |built: &Built| built.warnings.iter().any(|text| text == CUT_SHORT);
        let built = super::super::build(dir.path()).expect("built");
        assert!(is_told(&built) && built.table[0][1] == "40", "{built:?}");
        let whole = tempfile::tempdir().expect("made");
        fs::write(whole.path().join(ROWS), &rows).expect("written");
        let ended = serde_json::to_string(&facts.end()).expect("serialises");
        fs::write(whole.path().join(SUMMARY), ended).expect("written");
        assert!(!is_told(&super::super::build(whole.path()).expect("built")));
        let found = crate::compare::Comparison::of(dir.path(), whole.path(), 1).expect("compared");
        assert!(found.lines.iter().all(|line| line.a.n == 40 && !line.median.is_clear()));
        assert_eq!(found.cut_short, [Some("40 rows".to_owned()), None]);
        let both = crate::compare::Comparison::of(dir.path(), dir.path(), 1).expect("compared");
        let told = crate::report::compare::warnings(&both);
        let is_told = |name: &str| told.iter().any(|text| text.starts_with(name));
        assert!(is_told("A was cut short") && is_told("B was cut short"), "{told:?}");
    }

    #[test]
    fn failures_are_seen_when_they_came_and_where() {
        let dir = tempfile::tempdir().expect("made");
        let row = |n: u32| {
            let failed = (100..140).contains(&n) && n.is_multiple_of(2);
            let endpoint = if n.is_multiple_of(2) { "<b>.test" } else { "a.test" };
            let outcome = if failed { "error" } else { "ok" };
            format!(
                "{{\"number\":{n},\"endpoint\":\"{endpoint}\",\"intended_us\":{}.0,\
                 \"late_us\":1.0,\"connect_us\":null,\"latency_us\":5000.0,\"total_us\":5001.0,\
                 \"outcome\":\"{outcome}\",\"start\":null}}\n",
                n * 100_000
            )
        };
        fs::write(dir.path().join(ROWS), (0..300).map(row).collect::<String>()).expect("written");
        fs::write(dir.path().join(SUMMARY), "{}").expect("written");
        let failures = "[{\"at_s\":10.0,\"what\":\"kill <it>\",\"begun_us\":10000100,\
                        \"done_us\":10000900,\"error\":null,\"said\":\"\"},\
                        {\"at_s\":99.0,\"what\":\"late\",\"begun_us\":null,\"done_us\":null,\
                        \"error\":null,\"said\":\"\"}]";
        fs::write(dir.path().join("failures.json"), failures).expect("written");
        let built = super::super::build(dir.path()).expect("built");
        let page = fs::read_to_string(&built.report).expect("a page");
        let xml = page.strip_prefix("<!DOCTYPE html>\n").expect("is HTML 5");
        roxmltree::Document::parse(xml).expect("well-formed");
        for needed in ["id=\"endpoints\"", "&lt;b&gt;.test", "id=\"injected\"", "kill &lt;it&gt;"] {
            assert!(page.contains(needed), "{needed}");
        }
        assert!(page.contains("the run ended before"));
        for chart in ["over-time", "outcomes"] {
            let svg = fs::read_to_string(dir.path().join(format!("{chart}.svg"))).expect("drawn");
            crate::report::tests::assert_needs_no_colour(chart, &svg);
            assert_eq!(svg.matches("class=\"injected\"").count(), 1, "{chart}: what was begun");
        }
        let svg = fs::read_to_string(dir.path().join("outcomes.svg")).expect("drawn");
        // 20 failures from 10 s to 13.8 s, in stretches of a quarter of a second.
        let bars = svg.matches(" error, ").count();
        assert!((10..=20).contains(&bars), "{bars} stretches with failures");
        assert!(!svg.contains("timeout"), "what has not happened is not in the legend");
        let begun = RunFacts::begin(Vec::new(), None, None).expect("no CPUs are asked for");
        let begun = serde_json::to_string(&begun).expect("serialises");
        fs::write(dir.path().join(SUMMARY), begun).expect("written");
        let built = super::super::build(dir.path()).expect("built");
        let page = fs::read_to_string(&built.report).expect("a page");
        assert!(page.contains("not known") && !page.contains("the run ended before"));
        fs::write(dir.path().join("failures.json"), "[").expect("written");
        assert!(super::super::build(dir.path()).is_err(), "half a file is named");
    }
}
