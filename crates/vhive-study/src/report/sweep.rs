//! The report of `vhive load sweep`: latency over the rate, and the knee.

use std::path::Path;

use serde::Deserialize;
use vhive_load::Steps;
use vhive_load::sweep::FEW;

use crate::compare::SWEEP;
use crate::csv;
use crate::row::{ROWS, ResultError, lines_if_there, text};
use crate::run::RunFacts;
use crate::stats::upper_percent;

use super::palette::{BLUE, GREY, VERMILLION};
use super::svg::{Anchor, Chart, Scale, Svg, WIDTH, short};
use super::{Built, ReportError, html, load};

const HELD: &str = BLUE;
const FAILED: &str = VERMILLION;
const HEADINGS: [&str; 7] =
    ["rate/s", "sent", "failed", "p50 ms", "p99 ms", "late p99 ms", "verdict"];

#[derive(Debug, Deserialize)]
struct Sweep {
    /// Of one that was cut short, that of its rows.
    unloaded_p99_us: Option<f64>,
    /// Of so many replies; earlier versions do not tell.
    #[serde(default)]
    unloaded_replies: Option<u64>,
    within: f64,
    knee: Option<f64>,
    steps: Vec<Step>,
    stopped: bool,
    #[serde(flatten)]
    facts: RunFacts,
}

#[derive(Debug, Deserialize)]
struct Step {
    rate: f64,
    sent: u64,
    failed: u64,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    late_p99_us: Option<f64>,
    verdict: String,
}

/// Whether a directory holds a sweep.
pub(super) fn is_one(dir: &Path) -> bool {
    dir.join(SWEEP).exists()
}

/// Makes the report of a sweep.
pub(super) fn build(dir: &Path, steps: &Steps) -> Result<Built, ReportError> {
    let path = dir.join(SWEEP);
    let content = |source| ResultError::Content { path: path.clone(), line: 1, source };
    let mut sweep: Sweep = serde_json::from_str(&text(&path)?).map_err(content)?;
    if sweep.unloaded_p99_us.is_none() {
        sweep.unloaded_p99_us = alone(&dir.join(ROWS))?;
    }
    sweep.steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    let charts: Vec<Chart> = sweep.chart().into_iter().collect();
    let mut warnings = sweep.warnings();
    let page = sweep.page(&charts, &warnings);
    let texts = [("report.html", page.as_str()), ("sweep.csv", &sweep.csv())];
    let files = super::write((dir, steps), &texts, &charts, &mut warnings)?;
    Ok(Built {
        report: dir.join("report.html"),
        files,
        headings: HEADINGS.map(str::to_owned).to_vec(),
        table: sweep.steps.iter().map(Step::cells).collect(),
        findings: sweep.findings(),
        warnings,
    })
}

/// What of a row of one client alone is needed.
#[derive(Debug, Deserialize)]
struct Alone {
    rate: Option<f64>,
    outcome: String,
    /// None of what was never sent.
    latency_us: Option<f64>,
}

/// The p99 of one client alone, in microseconds, as the rows say.
fn alone(rows: &Path) -> Result<Option<f64>, ResultError> {
    let (rows, _) = lines_if_there::<Alone>(rows)?;
    let alone = rows.iter().filter(|row| row.rate.is_none() && row.outcome == "ok");
    let latency: Vec<f64> = alone.filter_map(|row| row.latency_us).collect();
    Ok(upper_percent(&latency, 1.0))
}

impl Step {
    fn cells(&self) -> Vec<String> {
        let ms = |us: Option<f64>| super::figures::cell(us.map(|us| us / 1e3));
        vec![
            short(self.rate),
            self.sent.to_string(),
            self.failed.to_string(),
            ms(self.p50_us),
            ms(self.p99_us),
            ms(self.late_p99_us),
            self.verdict.clone(),
        ]
    }

    fn held(&self) -> bool {
        self.verdict == "held"
    }
}

impl Sweep {
    fn limit_ms(&self) -> Option<f64> {
        Some(self.unloaded_p99_us? * self.within / 1e3)
    }

    fn findings(&self) -> Vec<String> {
        let limit = format!(
            "p99 within {}× that of one client alone, {} ms",
            short(self.within),
            super::figures::cell(self.unloaded_p99_us.map(|us| us / 1e3))
        );
        vec![match self.knee {
            Some(held) if self.facts.is_cut_short() => {
                let held = short(held);
                format!("The highest rate that was seen to hold is {held} a second ({limit}).")
            }
            Some(knee) => format!("The knee is at {} requests a second ({limit}).", short(knee)),
            None => format!("No rate that was tried held ({limit})."),
        }]
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.facts.is_cut_short() {
            warnings.push(load::CUT_SHORT.to_owned());
        } else if self.stopped {
            warnings.push("It was stopped before the knee was known.".to_owned());
        }
        let late = self.steps.iter().filter(|step| step.verdict == "generator-late").count();
        let lacked = self.steps.iter().filter(|step| step.verdict == "generator-failed").count();
        if lacked > 0 {
            warnings.push(format!(
                "At {lacked} of {} tries the generator had no file or port left for a connection: they say \
                 nothing of the function.",
                self.steps.len()
            ));
        }
        if late > 0 {
            warnings.push(format!(
                "At {late} of {} tries the generator itself was late: they say nothing of the function.",
                self.steps.len()
            ));
        }
        if let Some(few) = self.unloaded_replies.filter(|replies| *replies < FEW) {
            warnings.push(format!("The unloaded p99 is of {few} replies only."));
        }
        let few = self.steps.iter().filter(|step| step.sent < FEW).count();
        if few > 0 {
            warnings.push(format!("The p99 of {few} tries is of fewer than {FEW} requests."));
        }
        warnings.extend(load::busy(&self.facts));
        warnings
    }

    fn chart(&self) -> Option<Chart> {
        let known =
            || self.steps.iter().filter_map(|step| Some((step, step.p50_us?, step.p99_us?)));
        let ms = || known().flat_map(|(_, p50, p99)| [p50 / 1e3, p99 / 1e3]).chain(self.limit_ms());
        let low = ms().filter(|ms| *ms > 0.0).fold(f64::MAX, f64::min);
        let high = ms().fold(0.0, f64::max);
        let rates = || known().map(|(step, ..)| step.rate);
        let (least, most) = (rates().fold(f64::MAX, f64::min), rates().fold(0.0, f64::max));
        if known().next().is_none() || least <= 0.0 || high <= 0.0 {
            return None;
        }
        let (left, right) = (70.0, WIDTH - 130.0);
        let mut svg = Svg::new("sweep");
        let key = [(0, HELD, "p99, held"), (3, FAILED, "p99, did not hold"), (1, HELD, "p50")];
        let top = svg.key(8.0, &key) + 16.0;
        let bottom = top + 340.0;
        let across = Scale::logarithmic((least, most), (left, right));
        let down = Scale::logarithmic((low, high), (bottom, top));
        svg.rules(&down, (left, right));
        svg.axis(&across, (top, bottom), "requests a second, logarithmic");
        let italic = "font-style=\"italic\"";
        svg.styled((left - 60.0, top - 8.0), Anchor::Start, italic, "latency, ms (log)");
        if let Some(limit) = self.limit_ms().map(|ms| down.at(ms)) {
            svg.path(&[(left, limit), (right, limit)], GREY, "6 4");
            svg.text((right + 6.0, limit + 4.0), Anchor::Start, "the limit");
        }
        let line = |of: fn((f64, f64)) -> f64| -> Vec<(f64, f64)> {
            known()
                .map(|(step, p50, p99)| (across.at(step.rate), down.at(of((p50, p99)) / 1e3)))
                .collect()
        };
        svg.path(&line(|(_, p99)| p99), HELD, "");
        svg.path(&line(|(p50, _)| p50), HELD, "2 3");
        for (step, p50, p99) in known() {
            let x = across.at(step.rate);
            svg.line((x, down.at(p50 / 1e3)), (x, down.at(p99 / 1e3)), (0.4, 1.0));
            svg.mark((x, down.at(p50 / 1e3)), 1, HELD);
            let (shape, colour) = if step.held() { (0, HELD) } else { (3, FAILED) };
            svg.mark((x, down.at(p99 / 1e3)), shape, colour);
        }
        let sent = known().map(|(step, ..)| step.sent);
        let (fewest, many) = (sent.clone().min().unwrap_or(0), sent.max().unwrap_or(0));
        let n = format!("n={fewest}–{many} each");
        svg.text((right + 6.0, bottom), Anchor::Start, &n);
        let caption = "A pair of marks per try of a rate, from the median to the 99th percentile of \
                       the successes, counted from the intended send. The dashed line is what the \
                       99th percentile may be. Both axes are logarithmic; every figure is in the table.";
        let title = "Latency over the rate";
        let svg = svg.finish(title, bottom + 40.0);
        Some(Chart { name: "sweep", title, caption: caption.to_owned(), svg })
    }

    fn page(&self, charts: &[Chart], warnings: &[String]) -> String {
        let below = format!("<p class=\"dim\">{} tries</p>\n", self.steps.len());
        let mut page = html::begin("Search for the knee", &below);
        page.push_str(&html::list("Findings", "findings", &self.findings()));
        page.push_str(&html::list("Warnings", "warnings", warnings));
        page.push_str(&html::drawn(charts));
        let rows: Vec<Vec<String>> = self.steps.iter().map(Step::cells).collect();
        page.push_str("<h2 id=\"numbers\">All tries</h2>\n");
        page.push_str(&html::table(&HEADINGS, &rows, 0));
        page.push_str(
            "<h2 id=\"method\">Method</h2>\n<p>Each endpoint is warmed up, then one client alone is \
             measured. Open loop: each rate is sent for a fixed time, or longer for want of requests. Rates double \
             until one does not hold, then the interval is halved. One that fails more than 0.1 % of its requests, \
             or whose p99 is above the limit, is tried once more, and does not hold if it fails again.</p>\n",
        );
        page.push_str(&load::told(&self.facts));
        page.push_str(html::END);
        page
    }

    fn csv(&self) -> String {
        let headings = ["rate", "sent", "failed", "p50_us", "p99_us", "late_p99_us", "verdict"];
        let mut text = csv::line(headings.map(str::to_owned));
        for step in &self.steps {
            let us = |us: Option<f64>| us.map(csv::number).unwrap_or_default();
            text.push_str(&csv::line([
                csv::number(step.rate),
                step.sent.to_string(),
                step.failed.to_string(),
                us(step.p50_us),
                us(step.p99_us),
                us(step.late_p99_us),
                step.verdict.clone(),
            ]));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_sweep_has_a_report_from_its_file() {
        let dir = tempfile::tempdir().expect("made");
        let step = |rate: u32, p99: u32, verdict: &str| {
            format!(
                "{{\"rate\":{rate}.0,\"sent\":{rate},\"failed\":0,\"p50_us\":900.0,\"p99_us\":{p99}.0,\
                 \"late_p99_us\":null,\"verdict\":\"{verdict}\"}}"
            )
        };
        let steps = [step(10, 1000, "held"), step(20, 9000, "too-slow"), step(15, 2000, "held")];
        let text = format!(
            "{{\"unloaded_p99_us\":1000.0,\"within\":3.0,\"knee\":15.0,\"stopped\":false,\"steps\":[{}]}}",
            steps.join(",")
        );
        fs::write(dir.path().join(SWEEP), text).expect("written");
        let built = super::super::build(dir.path()).expect("built");
        assert!(built.findings[0].contains("15 requests a second"), "{:?}", built.findings);
        assert!(built.warnings[0].contains("3 tries is of fewer than 100"), "{:?}", built.warnings);
        let rates: Vec<&str> = built.table.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(rates, ["10", "15", "20"], "in the order of rates");
        assert!(built.table.iter().all(|row| row.len() == HEADINGS.len() && row[5] == "–"));
        let page = fs::read_to_string(&built.report).expect("a page");
        let xml = page.strip_prefix("<!DOCTYPE html>\n").expect("is HTML 5");
        roxmltree::Document::parse(xml).expect("well-formed");
        assert!(
            page.contains("id=\"sweep\"") && page.contains("n=10–20") && page.contains("too-slow")
        );
        let svg = fs::read_to_string(dir.path().join("sweep.svg")).expect("drawn");
        crate::report::tests::assert_needs_no_colour("sweep", &svg);
        assert!(dir.path().join("sweep.svg").exists() && dir.path().join("sweep.csv").exists());
        fs::write(dir.path().join(SWEEP), "{}").expect("written");
        assert!(super::super::build(dir.path()).is_err());
    }

    #[test]
    fn a_sweep_that_was_killed_has_a_report_of_the_rates_that_it_has_tried() {
        let dir = tempfile::tempdir().expect("made");
        let facts = RunFacts::begin(Vec::new(), None, None).expect("no CPUs are asked for");
        let mut begun = serde_json::to_value(&facts).expect("serialises");
        begun["within"] = 3.0.into();
        begun["stopped"] = true.into();
        begun["steps"] = serde_json::json!([]);
        fs::write(dir.path().join(SWEEP), begun.to_string()).expect("written");
        let built = super::super::build(dir.path()).expect("built, of nothing");
        assert!(built.table.is_empty() && built.findings[0].contains("No rate"), "{built:?}");
        let row = |rate: Option<f64>, us: u32| {
            let row = serde_json::json!({
                "rate": rate, "number": us, "endpoint": "a", "outcome": "ok", "start": null,
                "late_us": 1.0, "latency_us": us, "total_us": us,
            });
            format!("{row}\n")
        };
        let alone = (0..100).map(|_| row(None, 2000));
        let mut rows: String = alone.chain((0..30).map(|_| row(Some(10.0), 2500))).collect();
        let unsent = serde_json::json!({
            "rate": 20.0, "number": 1, "endpoint": "a", "outcome": "error", "start": null,
            "late_us": null, "latency_us": null, "total_us": 9.0,
        });
        rows.push_str(&format!("{unsent}\n"));
        fs::write(dir.path().join(ROWS), rows).expect("written");
        begun["knee"] = 10.0.into();
        begun["steps"] = serde_json::json!([{
            "rate": 10.0, "sent": 30, "failed": 0, "p50_us": 2500.0, "p99_us": 2500.0,
            "late_p99_us": 1.0, "verdict": "held",
        }]);
        fs::write(dir.path().join(SWEEP), begun.to_string()).expect("written");
        let built = super::super::build(dir.path()).expect("built");
        assert!(built.findings[0].contains("seen to hold is 10 a second"), "{:?}", built.findings);
        assert!(built.findings[0].contains(", 2 ms"), "{:?}", built.findings);
        assert!(built.warnings.iter().any(|warning| warning == load::CUT_SHORT));
        let found = crate::compare::Comparison::of(dir.path(), dir.path(), 1).expect("compared");
        assert!(!found.lines.is_empty());
        assert!(found.lines.iter().all(|line| line.what.metric != "knee/s"));
    }
}
