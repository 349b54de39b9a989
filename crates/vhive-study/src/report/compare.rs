//! The page of a comparison: distributions side by side, differences, and what else differs.

use std::path::Path;

use vhive_load::Steps;

use crate::compare::{Comparison, Line};
use crate::csv;
use crate::stats::{Difference, Summary};

use super::palette::{BLUE, Fill, ORANGE};
use super::svg::{Anchor, Chart, Scale, Svg, WIDTH, short};
use super::{Built, ReportError, html};

/// Groups in one chart at most: those that differ most.
const MOST: usize = 40;
/// Points of a sample that are drawn.
const POINTS: usize = 200;
const COLOURS: [&str; 2] = [BLUE, ORANGE];

const HEADINGS: [&str; 11] = [
    "what",
    "figure",
    "n A",
    "n B",
    "median A",
    "median B",
    "B − A",
    "95 % of it",
    "p99 A",
    "p99 B",
    "B − A, 95 %",
];

/// Writes the page, its charts and a table into a directory.
///
/// # Errors
/// When a file cannot be written.
pub fn build(comparison: &Comparison, dir: &Path) -> Result<Built, ReportError> {
    std::fs::create_dir_all(dir)
        .map_err(|source| ReportError::Write { path: dir.to_owned(), source })?;
    let charts: Vec<Chart> = chart(comparison).into_iter().collect();
    let mut warnings = warnings(comparison);
    let page = page(comparison, &charts, &warnings);
    let json = serde_json::to_string_pretty(comparison).unwrap_or_default();
    let texts = [
        ("compare.html", page.as_str()),
        ("compare.csv", &table_csv(comparison)),
        ("compare.json", &json),
    ];
    let files = super::write((dir, &Steps::default()), &texts, &charts, &mut warnings)?;
    Ok(Built {
        report: dir.join("compare.html"),
        files,
        headings: headings(),
        table: table(comparison),
        findings: findings(comparison),
        warnings,
    })
}

/// Headings of the short table.
#[must_use]
pub fn headings() -> Vec<String> {
    HEADINGS.map(str::to_owned).to_vec()
}

/// The short table.
#[must_use]
pub fn table(comparison: &Comparison) -> Vec<Vec<String>> {
    comparison.lines.iter().map(row).collect()
}

fn interval(difference: &Difference) -> String {
    let Some(interval) = difference.interval else { return "–".to_owned() };
    let sign = if difference.is_clear() { "" } else { " (0 is in it)" };
    format!("{} … {}{sign}", short(interval.low), short(interval.high))
}

fn row(line: &Line) -> Vec<String> {
    let ratio = line.ratio().map(|ratio| format!(" (×{})", short(ratio))).unwrap_or_default();
    vec![
        line.what.group.clone(),
        line.what.metric.to_owned(),
        line.a.n.to_string(),
        line.b.n.to_string(),
        short(line.a.median),
        short(line.b.median),
        format!("{}{ratio}", short(line.median.by)),
        interval(&line.median),
        short(line.a.p99),
        short(line.b.p99),
        interval(&line.p99),
    ]
}

/// Sentences about what is clear.
#[must_use]
pub fn findings(comparison: &Comparison) -> Vec<String> {
    let main = main_metric(comparison);
    let of: Vec<&Line> =
        comparison.lines.iter().filter(|line| Some(line.what.metric) == main).collect();
    let clear = |less: bool| {
        of.iter().filter(move |line| line.median.is_clear() && (line.median.by < 0.0) == less)
    };
    let mut findings = Vec::new();
    if let Some(main) = main {
        findings.push(format!(
            "{main}: of {} groups, B is clearly less in {}, clearly more in {}; in the others the 95 % \
             interval of the difference of medians holds 0, or there are too few values.",
            of.len(),
            clear(true).count(),
            clear(false).count()
        ));
    }
    let by_ratio = |line: &&&Line| {
        let ratio = line.ratio().filter(|ratio| *ratio > 0.0).unwrap_or(1.0);
        let size = ratio.ln().abs() * 1e6;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates"
        )]
        let size = size as u64;
        size
    };
    if let Some(line) = of.iter().filter(|line| line.median.is_clear()).max_by_key(by_ratio) {
        findings.push(format!(
            "Most: {}, {} → {} ({}).",
            line.what.group,
            short(line.a.median),
            short(line.b.median),
            interval(&line.median)
        ));
    }
    findings
}

/// What a reader should mind.
#[must_use]
pub fn warnings(comparison: &Comparison) -> Vec<String> {
    let mut warnings = Vec::new();
    if comparison.lines.is_empty() {
        warnings.push("The two results have nothing in common.".to_owned());
    }
    for (name, cut) in ["A", "B"].iter().zip(&comparison.cut_short) {
        if let Some(done) = cut {
            warnings.push(format!("{name} was cut short (or still goes on): {done} are there."));
        }
    }
    for (name, only) in [("A", &comparison.only_a), ("B", &comparison.only_b)] {
        if !only.is_empty() {
            warnings.push(format!("Only {name} has: {}.", only.join(", ")));
        }
    }
    let facts: Vec<&str> = comparison
        .facts
        .iter()
        .map(|fact| fact.name.as_str())
        .filter(|name| *name != "load_before" && *name != "plan.seed")
        .collect();
    if !facts.is_empty() {
        warnings.push(format!(
            "A and B differ in {}, which may be the reason for a difference.",
            facts.join(", ")
        ));
    }
    let few = comparison
        .lines
        .iter()
        .any(|line| comparison.kind != "simulation" && (line.a.n.min(line.b.n) < 100));
    if few {
        warnings.push(
            "Where n is below 100, p99 is about the greatest value and says little.".to_owned(),
        );
    }
    warnings
}

/// The figure that charts and findings are about.
fn main_metric(comparison: &Comparison) -> Option<&'static str> {
    let mains = ["total ms", "latency ms", "from intended ms", "cold %"];
    mains.into_iter().find(|main| comparison.lines.iter().any(|line| line.what.metric == *main))
}

fn chart(comparison: &Comparison) -> Option<Chart> {
    let main = main_metric(comparison)?;
    let mut lines: Vec<&Line> =
        comparison.lines.iter().filter(|line| line.what.metric == main).collect();
    let all = lines.len();
    if all > MOST {
        let size = |line: &Line| line.ratio().filter(|r| *r > 0.0).map_or(0.0, |r| r.ln().abs());
        lines.sort_by(|a, b| size(b).total_cmp(&size(a)));
        lines.truncate(MOST);
    }
    let values = || lines.iter().flat_map(|line| line.values.0.iter().chain(&line.values.1));
    let high = values().copied().fold(0.0, f64::max);
    let low = values().copied().filter(|value| *value > 0.0).fold(high, f64::min);
    if high <= 0.0 {
        return None;
    }
    let (left, right, row) = (330.0, WIDTH - 30.0, 46.0);
    let mut svg = Svg::new("compare");
    let legend = [(Fill::plain(COLOURS[0]), "A (above)"), (Fill::plain(COLOURS[1]), "B (below)")];
    let top = svg.legend(8.0, &legend);
    let bottom = top + row * lines.len() as f64;
    let scale = Scale::logarithmic((low, high), (left, right));
    svg.axis(&scale, (top, bottom), &format!("{main}, logarithmic"));
    for (nth, line) in lines.iter().enumerate() {
        let y = top + row * nth as f64;
        svg.text((left - 10.0, y + 19.0), Anchor::End, &line.what.group);
        let clear = if line.median.is_clear() { "" } else { "?" };
        let n = format!("n = {}, {} {clear}", line.a.n, line.b.n);
        svg.styled((left - 10.0, y + 33.0), Anchor::End, "font-size=\"10\"", &n);
        for (side, values) in [&line.values.0, &line.values.1].into_iter().enumerate() {
            let middle = y + 12.0 + 20.0 * side as f64;
            let Some(summary) = Summary::of(values, comparison.seed) else { continue };
            let at = |value: f64| scale.at(value);
            svg.line((at(summary.min), middle), (at(summary.max), middle), (0.6, 1.0));
            let step = values.len().div_ceil(POINTS).max(1);
            let points: Vec<(f64, f64)> =
                values.iter().step_by(step).map(|value| (at(*value), middle)).collect();
            svg.marks(&points, side, (COLOURS[side], true));
            let quartiles = (at(summary.q1), at(summary.median), at(summary.q3));
            svg.quartiles(middle, quartiles, COLOURS[side]);
        }
    }
    let cut = if all > MOST {
        format!(" The {MOST} of {all} groups that differ most.")
    } else {
        String::new()
    };
    let caption = format!(
        "Each value (at most {POINTS} of a sample), first to third quartile, median, least and \
         greatest. A question mark: the interval of the difference of medians holds 0, or there are \
         too few values.{cut}"
    );
    let title = "Distributions";
    Some(Chart { name: "compare", title, caption, svg: svg.finish(title, bottom + 40.0) })
}

fn page(comparison: &Comparison, charts: &[Chart], warnings: &[String]) -> String {
    let (a, b) = (comparison.a.display().to_string(), comparison.b.display().to_string());
    let below = format!(
        "<p class=\"dim\">A: {}<br/>B: {}</p>\n",
        super::svg::escape(&a),
        super::svg::escape(&b)
    );
    let mut page = html::begin("Two results", &below);
    page.push_str(&html::list("Findings", "findings", &findings(comparison)));
    page.push_str(&html::list("Warnings", "warnings", warnings));
    page.push_str(&html::drawn(charts));
    page.push_str("<h2 id=\"numbers\">All numbers</h2>\n");
    page.push_str(&html::table(&HEADINGS, &table(comparison), 2));
    if !comparison.facts.is_empty() {
        let none = || "–".to_owned();
        let rows: Vec<Vec<String>> = comparison
            .facts
            .iter()
            .map(|fact| {
                let (a, b) = (fact.a.clone(), fact.b.clone());
                vec![fact.name.clone(), a.unwrap_or_else(none), b.unwrap_or_else(none)]
            })
            .collect();
        page.push_str("<h2 id=\"facts\">What differs besides</h2>\n");
        page.push_str(&html::table(&["fact", "A", "B"], &rows, 3));
    }
    page.push_str(&format!(
        "<h2 id=\"method\">Method</h2>\n<p>Rows that are in no statistic of their own report are left \
         out here too. Quantiles are interpolated (type 7). Intervals are 95 % percentile bootstrap \
         intervals of B − A, both samples resampled 2000 times, seed {}; of samples above 500 values \
         the resampled quantile is drawn from its distribution. {}Intervals of many lines are not \
         adjusted for their number: of twenty lines without a difference, one looks clear.</p>\n",
        comparison.seed,
        blocks(comparison)
    ));
    page.push_str(html::END);
    page
}

/// What is said of blocks, where values were drawn together.
fn blocks(comparison: &Comparison) -> String {
    if !comparison.in_time {
        return String::new();
    }
    let all = comparison.lines.iter().flat_map(|line| [line.median.block, line.p99.block]);
    let most = all.flatten().max().unwrap_or(1);
    format!(
        "Requests of one run are slow together, so they are resampled in blocks of consecutive ones, as \
         long as they are seen to depend on each other (moving blocks; the longest here has {most} \
         requests, <code>block</code> in compare.json). What is different between whole runs is in no interval of \
         two of them: repeat the runs. "
    )
}

fn table_csv(comparison: &Comparison) -> String {
    let headings = [
        "what",
        "figure",
        "n_a",
        "n_b",
        "median_a",
        "median_b",
        "median_difference",
        "median_low",
        "median_high",
        "p99_a",
        "p99_b",
        "p99_difference",
        "p99_low",
        "p99_high",
    ];
    let mut text = csv::line(headings.map(str::to_owned));
    for line in &comparison.lines {
        let ends = |difference: &Difference| {
            let ends = difference.interval.map(|i| (csv::number(i.low), csv::number(i.high)));
            ends.unwrap_or_default()
        };
        let (median, p99) = (ends(&line.median), ends(&line.p99));
        text.push_str(&csv::line([
            line.what.group.clone(),
            line.what.metric.to_owned(),
            line.a.n.to_string(),
            line.b.n.to_string(),
            csv::number(line.a.median),
            csv::number(line.b.median),
            csv::number(line.median.by),
            median.0,
            median.1,
            csv::number(line.a.p99),
            csv::number(line.b.p99),
            csv::number(line.p99.by),
            p99.0,
            p99.1,
        ]));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_result_against_itself_has_a_page_that_finds_nothing() {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cold-start");
        let comparison = Comparison::of(&from, &from, 1).expect("compared");
        let dir = tempfile::tempdir().expect("made");
        let built = build(&comparison, &dir.path().join("new")).expect("built");
        assert!(built.findings[0].contains("clearly less in 0, clearly more in 0"));
        assert!(built.table.iter().all(|row| row.len() == HEADINGS.len()));
        let page = fs::read_to_string(&built.report).expect("a page");
        let xml = page.strip_prefix("<!DOCTYPE html>\n").expect("is HTML 5");
        roxmltree::Document::parse(xml).expect("well-formed");
        let svg = fs::read_to_string(dir.path().join("new/compare.svg")).expect("drawn");
        crate::report::tests::assert_needs_no_colour("compare", &svg);
        let csv = fs::read_to_string(dir.path().join("new/compare.csv")).expect("a table");
        assert_eq!(csv.lines().count(), comparison.lines.len() + 1);
    }
}
