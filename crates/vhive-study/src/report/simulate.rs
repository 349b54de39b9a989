//! The report of a simulation: what cold starts a policy saves, and what memory it takes for that.

use std::path::Path;

use vhive_load::Steps;

use crate::csv;
use crate::simulate::{Outcome, SimFacts, Simulation, TraceKind};

use super::palette::{GREY, dashes, series};
use super::svg::{Anchor, Chart, Scale, Svg, WIDTH, short};
use super::{Built, ReportError, html};

const HEADINGS: [&str; 12] = [
    "policy",
    "invocations",
    "cold %",
    "queued %",
    "refused",
    "added ms: mean",
    "p50",
    "p99",
    "p99.9",
    "memory GB·h",
    "idle %",
    "peak",
];

pub(super) fn build(dir: &Path, steps: &Steps) -> Result<Built, ReportError> {
    let simulation = Simulation::read(dir)?;
    let charts = charts(&simulation.outcomes);
    let mut warnings = warnings(&simulation);
    let page = page(&simulation, &charts, &warnings);
    let texts = [("report.html", page.as_str()), ("rows.csv", &rows_csv(&simulation.outcomes))];
    let files = super::write((dir, steps), &texts, &charts, &mut warnings)?;
    Ok(Built {
        report: dir.join("report.html"),
        files,
        headings: HEADINGS.map(str::to_owned).to_vec(),
        table: simulation.outcomes.iter().map(row).collect(),
        findings: findings(&simulation.outcomes),
        warnings,
    })
}

fn warnings(simulation: &Simulation) -> Vec<String> {
    let mut warnings = simulation.facts.warnings.clone();
    let (done, missing) = (simulation.outcomes.len(), simulation.missing());
    if missing > 0 {
        warnings.push(format!(
            "The simulation was cut short: {done} of {} policies are here. The same command with this \
             directory as --out goes on with the rest.",
            done + missing
        ));
    }
    warnings
}

fn percent(part: f64, whole: f64) -> String {
    if whole > 0.0 { short(100.0 * part / whole) } else { "–".to_owned() }
}

fn row(one: &Outcome) -> Vec<String> {
    let all = one.invocations as f64;
    let at = |part| one.added.at(part).map_or_else(|| "–".to_owned(), short);
    vec![
        one.label(),
        one.invocations.to_string(),
        percent(one.cold as f64, all),
        percent(one.queued as f64, all),
        one.refused.to_string(),
        short(one.added.mean_ms),
        at(0.5),
        at(0.99),
        at(0.999),
        short(one.memory_gb_s / 3600.0),
        percent(one.idle_gb_s, one.memory_gb_s),
        one.peak_instances.to_string(),
    ]
}

/// Whether another policy has no more cold starts and no more memory, and less of one.
fn is_beaten(one: &Outcome, all: &[Outcome]) -> bool {
    all.iter().any(|other| {
        let (cold, memory) =
            (other.cold_share <= one.cold_share, other.memory_gb_s <= one.memory_gb_s);
        let less = other.cold_share < one.cold_share || other.memory_gb_s < one.memory_gb_s;
        cold && memory && less
    })
}

fn findings(outcomes: &[Outcome]) -> Vec<String> {
    if outcomes.is_empty() {
        return Vec::new();
    }
    let best: Vec<String> =
        outcomes.iter().filter(|one| !is_beaten(one, outcomes)).map(Outcome::label).collect();
    let beaten: Vec<String> =
        outcomes.iter().filter(|one| is_beaten(one, outcomes)).map(Outcome::label).collect();
    if beaten.is_empty() {
        return vec![
            "No policy has both fewer cold starts and less memory than another.".to_owned(),
        ];
    }
    vec![format!(
        "No policy here has both fewer cold starts and less memory than {}. That cannot be said of {}.",
        best.join(", "),
        beaten.join(", ")
    )]
}

fn charts(outcomes: &[Outcome]) -> Vec<Chart> {
    [pareto(outcomes), added(outcomes), over_time(outcomes)].into_iter().flatten().collect()
}

fn pareto(outcomes: &[Outcome]) -> Option<Chart> {
    let most = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).fold(0.0, f64::max);
    let memory = most(|one| one.memory_gb_s / 3600.0);
    let cold = most(|one| 100.0 * one.cold_share);
    if memory <= 0.0 {
        return None;
    }
    let (top, bottom, left, right) = (24.0, 400.0, 70.0, WIDTH - 240.0);
    let mut svg = Svg::new("pareto");
    let across = Scale::linear(memory * 1.05, (left, right));
    let down = Scale::linear(cold * 1.05, (bottom, top));
    svg.rules(&down, (left, right));
    svg.axis(&across, (top, bottom), "memory time, GB·h");
    let italic = "font-style=\"italic\"";
    svg.styled((left - 60.0, top - 10.0), Anchor::Start, italic, "cold starts, % of invocations");
    let at = |one: &Outcome| (across.at(one.memory_gb_s / 3600.0), down.at(100.0 * one.cold_share));
    let mut edge: Vec<(f64, f64)> =
        outcomes.iter().filter(|one| !is_beaten(one, outcomes)).map(at).collect();
    edge.sort_by(|a, b| a.0.total_cmp(&b.0));
    svg.path(&edge, GREY, "4 4");
    for (nth, one) in outcomes.iter().enumerate() {
        svg.mark(at(one), nth, series(nth));
    }
    let named: Vec<_> = outcomes.iter().map(|one| (at(one), one.label())).collect();
    let end = svg.names(right, &named).max(bottom + 56.0);
    let n = outcomes.iter().map(|one| one.invocations).max().unwrap_or(0);
    let caption = format!(
        "Each mark is a policy over the same {n} invocations; left and low is better. The dashed \
         line joins those that no other one beats in both. Memory counts from the beginning of an \
         instance's start to its end, whether it works or idles."
    );
    let title = "Cold starts against memory";
    Some(Chart { name: "pareto", title, caption, svg: svg.finish(title, end) })
}

/// Quantiles of the added latency, a row per policy.
fn added(outcomes: &[Outcome]) -> Option<Chart> {
    let all = || outcomes.iter().flat_map(|one| one.added.quantiles.iter().map(|(_, ms)| *ms));
    let high = all().fold(0.0, f64::max);
    let low = all().filter(|ms| *ms > 0.0).fold(high, f64::min);
    if high <= 0.0 {
        return None;
    }
    let (left, right, row) = (230.0, WIDTH - 30.0, 24.0);
    let mut svg = Svg::new("added");
    let parts = [(0.9, "p90"), (0.95, "p95"), (0.99, "p99"), (0.999, "p99.9"), (1.0, "greatest")];
    let legend: Vec<(usize, &str, &str)> =
        parts.iter().enumerate().map(|(nth, (_, name))| (nth, series(nth), *name)).collect();
    let top = svg.key(8.0, &legend);
    let bottom = top + row * outcomes.len() as f64;
    let scale = Scale::logarithmic((low, high), (left, right));
    let n = outcomes.iter().map(|one| one.invocations).max().unwrap_or(0);
    let unit = format!("added latency in milliseconds, logarithmic; n={n} invocations each");
    svg.axis(&scale, (top, bottom), &unit);
    for (nth, one) in outcomes.iter().enumerate() {
        let y = top + row * (nth as f64 + 0.5);
        svg.text((left - 10.0, y + 4.0), Anchor::End, &one.label());
        let known = |part: f64| one.added.at(part).filter(|ms| *ms > 0.0).map(|ms| scale.at(ms));
        if let (Some(from), Some(to)) =
            (parts.iter().find_map(|(part, _)| known(*part)), known(1.0))
        {
            svg.line((from, y), (to, y), (0.4, 1.0));
        }
        for (shape, (part, _)) in parts.iter().enumerate() {
            if let Some(x) = known(*part) {
                svg.mark((x, y), shape, series(shape));
            }
        }
    }
    let caption = "What invocations take longer than on an instance that waits for them: waiting \
                   for a start or a slot, and what the first request of an instance takes longer. \
                   Quantiles of all that were served; one that is zero is not drawn.";
    let title = "Added latency";
    let svg = svg.finish(title, bottom + 40.0);
    Some(Chart { name: "added", title, caption: caption.to_owned(), svg })
}

/// Instances over time.
fn over_time(outcomes: &[Outcome]) -> Option<Chart> {
    let minutes = outcomes.iter().map(|one| one.minutes.len()).max()?;
    let most = outcomes.iter().map(|one| one.peak_instances).max()?;
    if minutes < 2 || most == 0 {
        return None;
    }
    let (top, bottom, left, right) = (24.0, 360.0, 70.0, WIDTH - 240.0);
    let mut svg = Svg::new("instances");
    let across = Scale::linear(minutes as f64, (left, right));
    let down = Scale::linear(most as f64 * 1.05, (bottom, top));
    svg.rules(&down, (left, right));
    let n = outcomes.iter().map(|one| one.invocations).max().unwrap_or(0);
    svg.axis(&across, (top, bottom), &format!("minute; n={n} invocations each"));
    let italic = "font-style=\"italic\"";
    svg.styled((left - 60.0, top - 10.0), Anchor::Start, italic, "instances");
    let mut named = Vec::new();
    for (nth, one) in outcomes.iter().enumerate() {
        let points: Vec<(f64, f64)> = one
            .minutes
            .iter()
            .enumerate()
            .map(|(minute, of)| (across.at(minute as f64 + 0.5), down.at(of.instances as f64)))
            .collect();
        svg.path(&points, series(nth), dashes(nth));
        let Some(end) = points.last().copied() else { continue };
        svg.mark(end, nth, series(nth));
        named.push((end, one.label()));
    }
    let end = svg.names(right, &named).max(bottom + 56.0);
    let caption = "Most instances in a second of each minute, those that start included.";
    let title = "Instances over time";
    Some(Chart {
        name: "instances",
        title,
        caption: caption.to_owned(),
        svg: svg.finish(title, end),
    })
}

fn page(simulation: &Simulation, charts: &[Chart], warnings: &[String]) -> String {
    let Simulation { facts, outcomes } = simulation;
    let nodes = match facts.plan.cluster.nodes {
        0 => "one node without a limit".to_owned(),
        nodes => format!("{nodes} nodes of {}", facts.plan.cluster.memory),
    };
    let below = format!(
        "<p class=\"dim\">{} functions, {} minutes; {nodes}; seed {}; vhive {}</p>\n",
        facts.functions, facts.plan.trace.minutes, facts.plan.seed, facts.vhive
    );
    let mut page = html::begin("Policies in virtual time", &below);
    page.push_str(&html::list("Findings", "findings", &findings(outcomes)));
    page.push_str(&html::list("Warnings", "warnings", warnings));
    page.push_str(&html::drawn(charts));
    let rows: Vec<Vec<String>> = outcomes.iter().map(row).collect();
    page.push_str("<h2 id=\"numbers\">All policies</h2>\n");
    page.push_str(&html::table(&HEADINGS, &rows, 1));
    page.push_str(&starts(facts, outcomes));
    page.push_str(&method(facts));
    page.push_str(html::END);
    page
}

fn starts(facts: &SimFacts, outcomes: &[Outcome]) -> String {
    let measured: Vec<Vec<String>> = facts
        .measured
        .iter()
        .map(|one| {
            vec![
                one.function.clone(),
                one.start.as_str().to_owned(),
                one.n.to_string(),
                short(one.ready_ms),
                short(one.extra_ms),
            ]
        })
        .collect();
    let kinds: Vec<Vec<String>> = outcomes
        .iter()
        .flat_map(|one| {
            one.starts.iter().map(|(kind, count)| {
                let waited = one.cold_by_start.iter().find(|(other, _)| other == kind);
                let waited = waited.map_or(0, |(_, count)| *count);
                let (kind, count) = (kind.as_str().to_owned(), count.to_string());
                vec![one.label(), kind, count, waited.to_string()]
            })
        })
        .collect();
    format!(
        "<h2 id=\"starts\">Starts</h2>\n<p class=\"dim\">Measured ones, from which each simulated \
         start is drawn. A simulated function is taken to be one of these functions, the same \
         for its whole time. Medians in milliseconds; extra is what the first request takes longer than a \
         warm one.</p>\n{}<p class=\"dim\">Simulated ones, and requests that waited for them.</p>\n{}",
        html::table(&["function", "start", "n", "ready", "extra"], &measured, 2),
        html::table(&["policy", "start", "instances", "requests"], &kinds, 2)
    )
}

fn method(facts: &SimFacts) -> String {
    let plan = &facts.plan;
    let trace = match plan.trace.kind {
        TraceKind::Day => "drawn in the published shape of a day of Azure Functions (2019)",
        TraceKind::Azure2019 => "Azure Functions 2019",
        TraceKind::Azure2021 => "Azure Functions 2021",
        TraceKind::Steady => "the same for each function and minute",
        TraceKind::Rows => "requests that were sent to a real node",
    };
    let (function, memory) = (&plan.function, plan.function.memory);
    let paragraphs = [
        format!("Trace: {trace}. Moments within a minute: {}.", plan.trace.distribution),
        format!(
            "Functions: {} request(s) per instance at a time (0 = no limit); snapshots {:?}, \
             prefetching {:?}; memory of an instance: {memory}.",
            function.concurrency, function.snapshot, function.prefetch
        ),
        "Policies, the choice of a start and placements are the code that the node runs. Queue, pool \
         and scaler follow the node's rules: the least loaded instance serves, requests wait \
         first come first served, and a policy is asked when the node would ask it. A snapshot \
         is there from the first reply of a booted instance on, on the node where that was."
            .to_owned(),
        "Not simulated: that starts slow each other down, the time that a snapshot takes, failures, \
         time-outs, and the network between nodes."
            .to_owned(),
    ];
    let text: String =
        paragraphs.iter().map(|text| format!("<p>{}</p>\n", super::svg::escape(text))).collect();
    let rows = html::host_rows(&facts.host).into_iter();
    let rows: Vec<Vec<String>> = rows.map(|(name, value)| vec![name.to_owned(), value]).collect();
    let host = html::table(&["fact", "value"], &rows, 2);
    let plan = toml::to_string_pretty(plan).unwrap_or_default();
    let plan: Vec<String> = plan.lines().map(super::svg::escape).collect();
    format!(
        "<h2 id=\"method\">Method</h2>\n{text}<details><summary>The plan</summary>\n<pre>{}</pre>\n\
         </details>\n<h2 id=\"host\">Host that simulated</h2>\n<p class=\"dim\">It has no influence on \
         the figures.</p>\n{host}",
        plan.join("\n")
    )
}

fn rows_csv(outcomes: &[Outcome]) -> String {
    let headings = [
        "policy",
        "placement",
        "nodes",
        "invocations",
        "warm",
        "queued",
        "cold",
        "refused",
        "cold_share",
        "added_mean_ms",
        "added_p50_ms",
        "added_p90_ms",
        "added_p99_ms",
        "added_p999_ms",
        "added_max_ms",
        "instance_s",
        "busy_s",
        "idle_s",
        "memory_gb_s",
        "idle_gb_s",
        "peak_instances",
        "peak_gb",
        "evicted",
        "decisions",
        "turn_wait_s",
    ];
    let mut text = csv::line(headings.map(str::to_owned));
    for one in outcomes {
        let at = |part| one.added.at(part).map(csv::number).unwrap_or_default();
        text.push_str(&csv::line([
            one.policy.clone(),
            one.placement.map(|placement| placement.to_string()).unwrap_or_default(),
            one.nodes.to_string(),
            one.invocations.to_string(),
            one.warm.to_string(),
            one.queued.to_string(),
            one.cold.to_string(),
            one.refused.to_string(),
            format!("{:.6}", one.cold_share),
            csv::number(one.added.mean_ms),
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            at(1.0),
            csv::number(one.instance_s),
            csv::number(one.busy_s),
            csv::number(one.idle_s),
            csv::number(one.memory_gb_s),
            csv::number(one.idle_gb_s),
            one.peak_instances.to_string(),
            csv::number(one.peak_gb),
            one.evicted.to_string(),
            one.decisions.to_string(),
            csv::number(one.turn_wait_s),
        ]));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::simulate::{SimPlan, SimWriter, Starts, TracePlan, Workload, simulate};

    #[test]
    fn a_simulation_has_a_report_that_is_made_again_from_its_rows() {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cold-start/rows.jsonl");
        let plan = SimPlan {
            trace: TracePlan { functions: 50, minutes: 20, ..TracePlan::default() },
            starts: vec![from],
            ..SimPlan::default()
        };
        let starts = Starts::read(&plan.starts).expect("measured");
        let workload = Workload::load(&plan).expect("a day");
        let facts = SimFacts::new(&plan, &workload, &starts, None);
        let outcomes = simulate(&plan, (&workload, &starts), |_| ());
        let dir = tempfile::tempdir().expect("made");
        let (mut writer, done) = SimWriter::begin(dir.path(), &facts).expect("a new one");
        assert!(done.is_empty());
        let cut = super::super::build(dir.path()).expect("built without a row");
        assert!(cut.table.is_empty() && cut.warnings.iter().any(|w| w.contains("0 of 6")));
        outcomes.iter().for_each(|one| writer.row(one).expect("written"));
        let built = super::super::build(dir.path()).expect("built");
        assert_eq!(built.table.len(), outcomes.len());
        assert!(!built.warnings.iter().any(|warning| warning.contains("cut short")));
        assert!(built.table.iter().all(|row| row.len() == HEADINGS.len()));
        let first = fs::read_to_string(&built.report).expect("a page");
        let xml = first.strip_prefix("<!DOCTYPE html>\n").expect("is HTML 5");
        roxmltree::Document::parse(xml).expect("well-formed");
        for needed in ["id=\"pareto\"", "histogram 10m", "kpa 1m", "Not simulated"] {
            assert!(first.contains(needed), "{needed}");
        }
        for chart in ["pareto", "added", "instances"] {
            let svg = fs::read_to_string(dir.path().join(format!("{chart}.svg"))).expect("drawn");
            crate::report::tests::assert_needs_no_colour(chart, &svg);
        }
        let csv = fs::read_to_string(dir.path().join("rows.csv")).expect("a table");
        assert_eq!(csv.lines().count(), outcomes.len() + 1);
        super::super::build(dir.path()).expect("built again");
        assert_eq!(fs::read_to_string(&built.report).expect("a page"), first);
    }
}
