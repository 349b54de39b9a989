//! What the sandboxes' processes used of the host: charts and a table.

use vhive_api::Counter;

use crate::analysis::{Analysis, Series, counters};

use super::charts::{LEFT, RIGHT, by_function, greatest, height_of, rows, spread_below};
use super::figures::cell;
use super::palette::{BLUE, Fill, GREEN, GREY, ORANGE, PURPLE, Pattern, SKY};
use super::svg::{Anchor, Area, Chart, Scale, Svg, short};

const USER: Fill = Fill::plain(BLUE);
const SYSTEM: Fill = Fill::hatched(ORANGE);
const UNDIVIDED: Fill = Fill::with(GREY, Pattern::Dots);

const LEVEL_1: [(Counter, Fill); 4] = [
    (Counter::Retiring, Fill::plain(GREEN)),
    (Counter::BadSpeculation, Fill::hatched(PURPLE)),
    (Counter::FrontendBound, Fill::plain(ORANGE)),
    (Counter::BackendBound, Fill::with(SKY, Pattern::Dots)),
];

/// What the figures are of; goes under charts and tables.
const SCOPE: &str = "Of a warm invocation it is what the sandbox's processes used from just before it to \
                     just after its reply; of a cold one, everything since the sandbox was started.";

/// Every chart for which there is something to show.
pub(super) fn charts(analysis: &Analysis) -> Vec<Chart> {
    [cpu_time(analysis), topdown(analysis)].into_iter().flatten().collect()
}

fn cpu_time(analysis: &Analysis) -> Option<Chart> {
    let (cpu, user, system) = (of(Counter::CpuUs), of(Counter::UserUs), of(Counter::SystemUs));
    let groups = by_function(analysis, |series| series.measure(cpu).is_some());
    let most = greatest(&groups, |s| s.measure(cpu).map_or(0.0, |m| m.summary.max));
    if most <= 0.0 {
        return None;
    }
    let mut svg = Svg::new("cpu-time");
    let fills = [(USER, "user"), (SYSTEM, "system"), (UNDIVIDED, "not divided")];
    let divided = |s: &Series| s.median(user).zip(s.median(system)).filter(|(u, s)| u + s > 0.0);
    let used = |at: usize| {
        groups.iter().flat_map(|(_, all)| all).any(|s| divided(s).is_none() == (at == 2))
    };
    let legend: Vec<(Fill, &str)> = (0..3).filter(|at| used(*at)).map(|at| fills[at]).collect();
    let top = svg.legend(8.0, &legend);
    let bottom = top + height_of(&groups);
    let scale = Scale::linear(most, (LEFT, RIGHT));
    svg.axis(&scale, (top, bottom), "milliseconds of CPU time");
    rows(&mut svg, &groups, top, |svg, series, middle| {
        let Some(all) = series.measure(cpu).map(|measure| &measure.summary) else { return };
        let whole = all.median;
        let parts = match divided(series) {
            Some((u, s)) => {
                let user = whole * u / (u + s);
                vec![(user, USER, "user"), (whole - user, SYSTEM, "system")]
            }
            None => vec![(whole, UNDIVIDED, "CPU time")],
        };
        let mut from = 0.0;
        for (part, fill, name) in parts {
            let (x, end) = (scale.at(from), scale.at(from + part));
            let area = Area { x, y: middle - 7.0, width: end - x, height: 14.0 };
            svg.bar(area, fill, "", &format!("{name}: {} ms", short(part)));
            from += part;
        }
        spread_below(svg, &scale, all, middle);
        let label = format!("{} ms  n={}", short(whole), all.n);
        svg.text((scale.at(all.max) + 6.0, middle + 4.0), Anchor::Start, &label);
    });
    let title = "CPU time of a sandbox's processes";
    let caption = format!(
        "Median CPU time, the VMM's own included, divided as the medians of its two parts are to each \
         other, which the kernel only samples. Below each bar: least to greatest, and the quartiles. \
         {SCOPE}"
    );
    Some(Chart { name: "cpu-time", title, caption, svg: svg.finish(title, bottom + 40.0) })
}

fn topdown(analysis: &Analysis) -> Option<Chart> {
    let groups = by_function(analysis, |series| {
        LEVEL_1.iter().all(|(counter, _)| series.measure(of(*counter)).is_some())
    });
    if groups.is_empty() {
        return None;
    }
    let mut svg = Svg::new("topdown");
    let legend = LEVEL_1.map(|(counter, fill)| (fill, of(counter)));
    let top = svg.legend(8.0, &legend);
    let bottom = top + height_of(&groups);
    let sum = |s: &Series| -> f64 { LEVEL_1.iter().filter_map(|(c, _)| s.median(of(*c))).sum() };
    let scale = Scale::linear(greatest(&groups, sum).max(100.0), (LEFT, RIGHT));
    svg.axis(&scale, (top, bottom), "per cent of the pipeline's slots (medians)");
    rows(&mut svg, &groups, top, |svg, series, middle| {
        let mut from = 0.0;
        for (counter, fill) in LEVEL_1 {
            let Some(share) = series.median(of(counter)) else { continue };
            let (x, end) = (scale.at(from), scale.at(from + share));
            let area = Area { x, y: middle - 7.0, width: end - x, height: 14.0 };
            svg.bar(area, fill, &short(share), &format!("{}: {} %", of(counter), short(share)));
            if let Some(measure) = series.measure(of(counter)) {
                let s = &measure.summary;
                // Around the end of its own part.
                let (low, high) = (scale.at(from + s.q1), scale.at(from + s.q3));
                svg.line((low, middle + 9.0), (high, middle + 9.0), (0.7, 2.0));
            }
            from += share;
        }
        let n = series.measure(of(Counter::Slots)).map_or(0, |slots| slots.summary.n);
        svg.text((scale.at(from) + 6.0, middle + 4.0), Anchor::Start, &format!("n={n}"));
    });
    let title = "TopDown, level 1";
    let caption = format!(
        "Where the processor's slots for operations went, as medians of shares; the lines below go \
         from first to third quartile of each share. Level 2, where there is one, is in the table. {SCOPE}"
    );
    Some(Chart { name: "topdown", title, caption, svg: svg.finish(title, bottom + 40.0) })
}

const fn of(counter: Counter) -> &'static str {
    counters::name_of(counter).0
}

/// What was counted, in the order of the table: name and unit.
fn counted(analysis: &Analysis) -> Vec<(&'static str, &'static str)> {
    let all = Counter::ALL.into_iter().map(counters::name_of);
    let rests = counters::RESTS.map(|(name, ..)| (name, "% of slots"));
    let has = |name: &str| analysis.series.iter().any(|series| series.measure(name).is_some());
    all.chain(rests).chain([counters::PER_CYCLE]).filter(|(name, _)| has(name)).collect()
}

/// Headings and rows of the table; none if nothing was counted.
pub(super) fn table(analysis: &Analysis) -> Option<(Vec<String>, Vec<Vec<String>>)> {
    let columns = counted(analysis);
    if columns.is_empty() {
        return None;
    }
    let mut headings = vec!["function".to_owned(), "start".to_owned(), "n".to_owned()];
    headings.extend(columns.iter().map(|(name, unit)| format!("{name} {unit}").trim().to_owned()));
    let rows = analysis.series.iter().filter_map(|series| {
        let n =
            columns.iter().filter_map(|(name, _)| Some(series.measure(name)?.summary.n)).max()?;
        let mut cells = vec![series.key.function.clone(), series.label.clone(), n.to_string()];
        cells.extend(columns.iter().map(|(name, _)| cell(series.median(name))));
        Some(cells)
    });
    Some((headings, rows.collect()))
}

/// What stands above the table.
pub(super) const NOTE: &str = "Medians of what the sandbox's processes, the VMM among them, used of the \
     host. Of a warm invocation, from just before it to just after its reply; of a cold one, since the \
     sandbox was started, and perf events not at all. What this host does not count has no column or \
     a dash.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::tests::fixture;
    use crate::report::texts;

    /// The fixture with counters, as a host with a PMU would have counted them.
    fn counted_result(counts: &[(Counter, u64)]) -> crate::row::StudyResult {
        let mut result = fixture();
        for row in &mut result.rows {
            let times = u64::from(row.repetition);
            row.counters = Some(counts.iter().map(|(c, n)| (*c, n * times)).collect());
        }
        result
    }

    #[test]
    fn what_was_counted_has_columns_and_what_was_not_has_none() {
        let result = counted_result(&[(Counter::CpuUs, 1500), (Counter::MajorFaults, 0)]);
        let analysis = Analysis::of(&result);
        let (headings, rows) = table(&analysis).expect("counted");
        assert_eq!(headings, ["function", "start", "n", "CPU ms", "major faults faults"]);
        assert!(rows.iter().all(|row| row.len() == headings.len() && row[4] == "0"), "{rows:?}");
        let made = texts(&result, &analysis);
        assert!(made.charts.iter().any(|chart| chart.name == "cpu-time"));
        assert!(made.charts.iter().all(|chart| chart.name != "topdown"));
        assert!(made.html.contains("What the sandboxes used of the host"));
        let heading = made.rows_csv.lines().next().expect("a heading").to_owned();
        assert!(heading.contains(",cpu_us,") && heading.contains(",memory_bound"), "{heading}");
        let line = made.rows_csv.lines().nth(1).expect("a row");
        assert!(line.contains(",1500,"), "{line}");
    }

    #[test]
    fn topdown_is_drawn_where_all_of_level_1_is_there() {
        let counts = [
            (Counter::Slots, 1000),
            (Counter::Retiring, 400),
            (Counter::BadSpeculation, 100),
            (Counter::FrontendBound, 300),
            (Counter::BackendBound, 200),
            (Counter::Cycles, 250),
            (Counter::Instructions, 500),
        ];
        let analysis = Analysis::of(&counted_result(&counts));
        let chart = topdown(&analysis).expect("drawn");
        roxmltree::Document::parse(&chart.svg).expect("well-formed");
        assert!(chart.svg.contains("retiring: 40 %") && chart.svg.contains("n="));
        let series = analysis.series.iter().find(|s| s.counted > 0).expect("measured");
        assert_eq!(series.median("instructions per cycle"), Some(2.0));
        let less = Analysis::of(&counted_result(&counts[..3]));
        assert!(topdown(&less).is_none());
        let second = [&counts[..], &[(Counter::FetchLatency, 220)]].concat();
        let (headings, rows) = table(&Analysis::of(&counted_result(&second))).expect("counted");
        let at = headings.iter().position(|name| name == "fetch bandwidth % of slots");
        assert!(
            at.is_some_and(|at| rows.iter().all(|row| row[at] == "8")),
            "{headings:?} {rows:?}"
        );
        assert!(headings.iter().all(|name| !name.starts_with("core bound")), "{headings:?}");
    }

    #[test]
    fn nothing_counted_is_nothing_shown() {
        let result = fixture();
        let analysis = Analysis::of(&result);
        assert!(table(&analysis).is_none() && charts(&analysis).is_empty());
        assert!(!texts(&result, &analysis).html.contains("What the sandboxes used of the host"));
    }
}
