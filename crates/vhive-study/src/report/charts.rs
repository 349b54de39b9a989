//! The charts. Each states its n, and shows more than a mean.

use std::collections::BTreeMap;

use vhive_api::Phase;

use crate::analysis::{Analysis, PageStats, Series, Slice};
use crate::plan::Kind;
use crate::row::{Facts, StudyName};
use crate::stats::Summary;

use super::palette::{
    BLUE, Fill, GREEN, GREY, LIGHT, ORANGE, PURPLE, Pattern, SKY, VERMILLION, YELLOW, dashes,
};
use super::svg::{Anchor, Area, Chart, Scale, Svg, WIDTH, short, text_width};

/// Where bars begin: labels are to the left.
pub(super) const LEFT: f64 = 190.0;
/// Where bars end at the latest: figures are to the right.
pub(super) const RIGHT: f64 = WIDTH - 120.0;
const ROW: f64 = 20.0;

/// Every chart for which there is something to show.
pub(super) fn all(analysis: &Analysis, facts: &Facts) -> Vec<Chart> {
    let single = facts.study != StudyName::Parallel;
    let charts = [
        if single { None } else { levels(analysis) },
        pages(analysis),
        phases(analysis, "phases", "Where the time goes", |_| true),
        without_boots(analysis),
        distribution(analysis),
        working_sets(analysis),
        faults(analysis),
        super::timelines::chart(analysis),
        super::footprint::chart(analysis),
    ];
    let of_sandboxes = super::runtimes::charts(analysis).into_iter();
    let of_counters = super::counters::charts(analysis);
    of_sandboxes.chain(charts.into_iter().flatten()).chain(of_counters).collect()
}

fn fill(slice: Slice) -> Fill {
    match slice {
        Slice::Phase(phase) => match phase {
            Phase::Image => Fill::plain(YELLOW),
            Phase::NetworkSlot => Fill::hatched(YELLOW),
            Phase::VmmSpawn => Fill::plain(ORANGE),
            Phase::KernelBoot => Fill::with(VERMILLION, Pattern::Back),
            Phase::Init => Fill::with(PURPLE, Pattern::Dots),
            Phase::Restore => Fill::with(SKY, Pattern::Level),
            Phase::Resume => Fill::hatched(SKY),
            Phase::FunctionReady => Fill::with(GREEN, Pattern::Dots),
            Phase::Request => Fill::plain(BLUE),
            Phase::Turn => Fill::with(LIGHT, Pattern::Back),
            Phase::Queue | Phase::Total | Phase::Start => Fill::with(GREY, Pattern::Cross),
        },
        Slice::RestOfStart => Fill::with(LIGHT, Pattern::Dots),
        Slice::Rest => Fill::with(LIGHT, Pattern::Level),
    }
}

/// How every slice is filled.
#[cfg(test)]
pub(super) fn fills() -> Vec<Fill> {
    Slice::ALL.into_iter().map(fill).collect()
}

/// A kind's mark; no two have the same.
pub(super) fn shape(kind: Kind) -> usize {
    Kind::ALL.iter().position(|k| *k == kind).unwrap_or(0)
}

pub(super) fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Boot => VERMILLION,
        Kind::Warm => GREEN,
        Kind::Snapshot => ORANGE,
        Kind::Lazy => PURPLE,
        Kind::Record => YELLOW,
        Kind::Reap => BLUE,
        Kind::ReapSerial => SKY,
        Kind::FaultAround => GREY,
        Kind::Mincore => LIGHT,
    }
}

pub(super) fn by_function(
    analysis: &Analysis,
    wanted: impl Fn(&Series) -> bool,
) -> Vec<(&str, Vec<&Series>)> {
    let mut groups: Vec<(&str, Vec<&Series>)> = Vec::new();
    for series in analysis.series.iter().filter(|series| wanted(series)) {
        match groups.last_mut() {
            Some((function, all)) if *function == series.key.function => all.push(series),
            _ => groups.push((&series.key.function, vec![series])),
        }
    }
    groups
}

/// Rows grouped by function, from `top` down: draws headings and labels and calls `draw` with each
/// series and the middle of its row. Returns the y below.
pub(super) fn rows(
    svg: &mut Svg,
    groups: &[(&str, Vec<&Series>)],
    top: f64,
    mut draw: impl FnMut(&mut Svg, &Series, f64),
) -> f64 {
    let mut y = top;
    for (function, all) in groups {
        svg.styled((10.0, y + 14.0), Anchor::Start, "font-weight=\"bold\"", function);
        y += ROW;
        for series in all {
            let middle = y + ROW / 2.0;
            svg.text((LEFT - 8.0, middle + 4.0), Anchor::End, &series.label);
            draw(svg, series, middle);
            y += ROW;
        }
        y += 6.0;
    }
    y
}

/// Under a bar of a row: least to greatest, and over it first to third quartile.
pub(super) fn spread_below(svg: &mut Svg, scale: &Scale, s: &Summary, middle: f64) {
    let y = middle + 9.0;
    svg.line((scale.at(s.min), y), (scale.at(s.max), y), (0.7, 1.0));
    svg.line((scale.at(s.q1), y), (scale.at(s.q3), y), (0.9, 3.0));
}

pub(super) fn height_of(groups: &[(&str, Vec<&Series>)]) -> f64 {
    groups.iter().map(|(_, all)| ROW + ROW * all.len() as f64 + 6.0).sum()
}

pub(super) fn greatest(groups: &[(&str, Vec<&Series>)], of: impl Fn(&Series) -> f64) -> f64 {
    groups.iter().flat_map(|(_, all)| all).map(|s| of(s)).fold(0.0, f64::max)
}

fn phases(
    analysis: &Analysis,
    name: &'static str,
    title: &'static str,
    wanted: impl Fn(&Series) -> bool,
) -> Option<Chart> {
    let groups = by_function(analysis, wanted);
    let length = |s: &Series| s.slices.iter().map(|(_, length)| length).sum::<f64>();
    let longest = |s: &Series| s.measure("total").map_or(0.0, |total| total.summary.max);
    let most = greatest(&groups, |s| length(s).max(longest(s)));
    if most <= 0.0 {
        return None;
    }
    let mut svg = Svg::new(name);
    let used = |slice: &Slice| {
        groups.iter().flat_map(|(_, all)| all).any(|s| s.slices.iter().any(|(at, _)| at == slice))
    };
    let legend: Vec<(Fill, &str)> =
        Slice::ALL.into_iter().filter(used).map(|slice| (fill(slice), slice.label())).collect();
    let top = svg.legend(8.0, &legend);
    let bottom = top + height_of(&groups);
    let scale = Scale::linear(most, (LEFT, RIGHT));
    svg.axis(&scale, (top, bottom), "milliseconds (medians)");
    rows(&mut svg, &groups, top, |svg, series, middle| {
        let mut from = 0.0;
        for (slice, length) in &series.slices {
            let (x, end) = (scale.at(from), scale.at(from + length));
            let area = Area { x, y: middle - 7.0, width: end - x, height: 14.0 };
            let tip = format!("{}: {} ms", slice.label(), short(*length));
            svg.bar(area, fill(*slice), slice.label(), &tip);
            from += length;
        }
        if let Some(total) = series.measure("total") {
            spread_below(svg, &scale, &total.summary, middle);
        }
        let label =
            figure(series, series.median("total").map(|total| format!("{} ms", short(total))));
        let end = scale.at(from.max(longest(series)));
        svg.text((end + 6.0, middle + 4.0), Anchor::Start, &label);
    });
    let caption = "Median length of each phase, stacked in the order in which they happen; the \
                   figure at the end is the median of totals, which need not be the sum of \
                   medians, with its n. The line below a bar goes from the least to the greatest \
                   total, its thick part from first to third quartile.";
    Some(Chart { name, title, caption: caption.to_owned(), svg: svg.finish(title, bottom + 40.0) })
}

fn figure(series: &Series, text: Option<String>) -> String {
    text.map_or_else(|| "nothing measured".to_owned(), |t| format!("{t}  n={}", series.counted))
}

/// The same without boots, if these dwarf the others.
fn without_boots(analysis: &Analysis) -> Option<Chart> {
    let most = |boot: bool| {
        let series = analysis.series.iter().filter(|s| (s.key.kind == Kind::Boot) == boot);
        series.filter_map(|s| s.median("total")).fold(0.0_f64, f64::max)
    };
    if most(true) < 2.0 * most(false) {
        return None;
    }
    let title = "Where the time goes, boots left out";
    phases(analysis, "phases-without-boot", title, |series| series.key.kind != Kind::Boot)
}

fn distribution(analysis: &Analysis) -> Option<Chart> {
    let groups = by_function(analysis, |_| true);
    let totals = || analysis.series.iter().filter_map(|s| s.measure("total"));
    let values = || totals().flat_map(|total| &total.values).copied().filter(|v| *v > 0.0);
    let (low, high) = values().fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
    if high <= 0.0 {
        return None;
    }
    let mut svg = Svg::new("distribution");
    let top = 8.0;
    let bottom = top + height_of(&groups);
    let scale = Scale::logarithmic((low, high), (LEFT, RIGHT));
    svg.axis(&scale, (top, bottom), "total in milliseconds, logarithmic");
    rows(&mut svg, &groups, top, |svg, series, middle| {
        let Some(total) = series.measure("total") else {
            svg.text((LEFT + 6.0, middle + 4.0), Anchor::Start, "nothing measured");
            return;
        };
        let (kind, s) = (series.key.kind, &total.summary);
        let shape = shape(kind);
        svg.line((scale.at(s.min), middle), (scale.at(s.max), middle), (0.6, 1.0));
        let quartiles = (scale.at(s.q1), scale.at(s.median), scale.at(s.q3));
        svg.quartiles(middle, quartiles, colour(kind));
        for (at, value) in total.values.iter().enumerate() {
            // Spread over the row by their order, so that equal values do not hide each other.
            let offset = [0.0, 3.0, -3.0, 1.5, -1.5][at % 5];
            svg.mark((scale.at(*value), middle + offset), shape, colour(kind));
        }
        let label = figure(series, Some(format!("{} ms", short(s.median))));
        svg.text((RIGHT + 6.0, middle + 4.0), Anchor::Start, &label);
    });
    let caption = "Every measured total, in milliseconds: a mark per invocation, a box from first \
                   to third quartile, a bar at the median, a line from least to greatest. Note the \
                   logarithmic axis.";
    let title = "Distribution of totals";
    let svg = svg.finish(title, bottom + 40.0);
    Some(Chart { name: "distribution", title, caption: caption.to_owned(), svg })
}

/// Bars of two parts after each other, in one unit.
struct Bars<'a> {
    name: &'static str,
    title: &'static str,
    caption: &'a str,
    axis: &'a str,
    parts: [(Fill, &'a str); 2],
    /// The measure whose spread is drawn below the bar.
    spread: &'a str,
}

fn bars(
    analysis: &Analysis,
    look: &Bars<'_>,
    of: impl Fn(&Series) -> Option<[f64; 2]>,
    label: impl Fn(&Series, [f64; 2]) -> String,
) -> Option<Chart> {
    let groups = by_function(analysis, |series| of(series).is_some());
    let longest = |s: &Series| s.measure(look.spread).map_or(0.0, |measure| measure.summary.max);
    let sum = |s: &Series| of(s).map_or(0.0, |parts| parts.iter().sum());
    let most = greatest(&groups, |s| longest(s).max(sum(s)));
    if most <= 0.0 {
        return None;
    }
    let mut svg = Svg::new(look.name);
    let used = |at: usize| greatest(&groups, |s| of(s).map_or(0.0, |parts| parts[at])) > 0.0;
    let legend: Vec<(Fill, &str)> =
        (0..2).filter(|at| used(*at)).map(|at| look.parts[at]).collect();
    let top = if legend.is_empty() { 8.0 } else { svg.legend(8.0, &legend) };
    let bottom = top + height_of(&groups);
    let labels = groups.iter().flat_map(|(_, all)| all).filter_map(|s| Some(label(s, of(s)?)));
    let widest = labels.map(|text| text_width(&text, 12.0)).fold(0.0, f64::max);
    let scale = Scale::linear(most, (LEFT, (WIDTH - widest - 10.0).max(LEFT + 200.0)));
    svg.axis(&scale, (top, bottom), look.axis);
    rows(&mut svg, &groups, top, |svg, series, middle| {
        let Some(parts) = of(series) else { return };
        let mut from = 0.0;
        for (part, (fill, name)) in parts.into_iter().zip(look.parts) {
            if part > 0.0 {
                let (x, end) = (scale.at(from), scale.at(from + part));
                let area = Area { x, y: middle - 7.0, width: end - x, height: 14.0 };
                svg.bar(area, fill, "", &format!("{name}: {}", short(part)));
            }
            from += part;
        }
        if let Some(measure) = series.measure(look.spread) {
            spread_below(svg, &scale, &measure.summary, middle);
        }
        let (text, end) = (label(series, parts), scale.at(from.max(longest(series))));
        svg.text((end + 6.0, middle + 4.0), Anchor::Start, &text);
    });
    let svg = svg.finish(look.title, bottom + 40.0);
    let caption = format!(
        "{} The line below a bar goes from least to greatest, its thick part from first to third \
         quartile.",
        look.caption
    );
    Some(Chart { name: look.name, title: look.title, caption, svg })
}

/// Bytes of a page of guest memory.
const PAGE_MIB: f64 = 4096.0 / 1_048_576.0;

fn working_sets(analysis: &Analysis) -> Option<Chart> {
    let look = Bars {
        name: "working-sets",
        title: "Guest memory that was brought in",
        caption: "Median memory prefetched, and brought by single faults, up to the reply, in MiB \
                  of 4 KiB pages; known zero pages are counted with neither unless a fault brought \
                  them. Where the host's kernel pages, nobody can count.",
        axis: "MiB",
        parts: [(Fill::plain(BLUE), "prefetched"), (Fill::hatched(ORANGE), "by faults")],
        spread: "working set",
    };
    let of = |s: &Series| {
        let faulted = s.median("fault pages");
        let prefetched = s.median("prefetched pages");
        let known = faulted.is_some() || prefetched.is_some();
        known.then(|| [prefetched.unwrap_or(0.0) * PAGE_MIB, faulted.unwrap_or(0.0) * PAGE_MIB])
    };
    bars(analysis, &look, of, |series, parts| {
        let whole = short(parts.iter().sum());
        let of = series.guest_mib.map(|guest| format!(" of {} MiB", short(guest)));
        format!("{whole}{}  n={}", of.unwrap_or_else(|| " MiB".to_owned()), series.counted)
    })
}

fn faults(analysis: &Analysis) -> Option<Chart> {
    let look = Bars {
        name: "memory-wait",
        title: "Time waited for memory",
        caption: "Median time in which the guest waited for memory that the pager brought, and the \
                  faults behind it.",
        axis: "milliseconds",
        parts: [(Fill::plain(PURPLE), "waited for memory"), (Fill::hatched(GREY), "")],
        spread: "memory wait",
    };
    let of = |s: &Series| s.measure("faults").and(s.median("memory wait")).map(|wait| [wait, 0.0]);
    bars(analysis, &look, of, |series, [wait, _]| {
        let faults = series.median("faults").unwrap_or(0.0);
        format!("{} ms, {} faults  n={}", short(wait), short(faults), series.counted)
    })
}

/// Pages that the other input shares with the recorded one.
fn pages(analysis: &Analysis) -> Option<Chart> {
    let known: Vec<(&PageStats, [f64; 2])> = analysis
        .pages
        .iter()
        .filter_map(|one| Some((one, [one.same?, one.unique?.median])))
        .collect();
    let most = known.iter().map(|(_, parts)| parts.iter().sum()).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let fills = [
        (Fill::plain(BLUE), "same: recorded before"),
        (Fill::hatched(ORANGE), "unique: not recorded"),
    ];
    let mut svg = Svg::new("pages");
    let top = svg.legend(8.0, &fills);
    let bottom = top + ROW * known.len() as f64 + 6.0;
    let scale = Scale::linear(most, (LEFT, RIGHT - 40.0));
    svg.axis(&scale, (top, bottom), "pages of 4 KiB (medians)");
    for (at, (one, parts)) in known.iter().enumerate() {
        let middle = top + ROW * (at as f64 + 0.5);
        svg.text((LEFT - 8.0, middle + 4.0), Anchor::End, &one.function);
        let mut from = 0.0;
        for (part, (fill, name)) in parts.iter().zip(fills) {
            let (x, end) = (scale.at(from), scale.at(from + part));
            let area = Area { x, y: middle - 7.0, width: end - x, height: 14.0 };
            svg.bar(area, fill, "", &format!("{name}: {}", short(*part)));
            from += part;
        }
        let n = one.unique.map_or(0, |unique| unique.n);
        let share = if from > 0.0 { parts[0] / from * 100.0 } else { 0.0 };
        let label = format!("{} % same  n={n}", short(share));
        svg.text((scale.at(from) + 6.0, middle + 4.0), Anchor::Start, &label);
    }
    let title = "Pages that another input needs";
    let caption = "Of the pages that a start with another input than the recorded one touches: those \
                   that were in the working set, and those that were not.";
    let svg = svg.finish(title, bottom + 40.0);
    Some(Chart { name: "pages", title, caption: caption.to_owned(), svg })
}

/// Totals over the number of concurrent starts.
fn levels(analysis: &Analysis) -> Option<Chart> {
    let mut lines: BTreeMap<(&str, Kind, &str), Vec<&Series>> = BTreeMap::new();
    for series in analysis.series.iter().filter(|s| s.measure("total").is_some()) {
        let key = &series.key;
        lines.entry((&key.function, key.kind, &key.input)).or_default().push(series);
    }
    let totals = || lines.values().flatten().filter_map(|s| s.measure("total"));
    let high = totals().map(|t| t.summary.max).fold(0.0, f64::max);
    let low = totals().map(|t| t.summary.min).fold(f64::MAX, f64::min);
    let most = lines.values().flatten().map(|s| s.key.level).max()?;
    let (top, bottom, left, right) = (20.0, 400.0, 70.0, WIDTH - 230.0);
    let mut svg = Svg::new("levels");
    let down = Scale::logarithmic((low, high), (bottom, top));
    svg.rules(&down, (left, right));
    let doublings = f64::from(most).log2().max(1.0);
    let x = |level: u32| left + 20.0 + f64::from(level).log2() / doublings * (right - left - 40.0);
    let mut all: Vec<u32> = lines.values().flatten().map(|s| s.key.level).collect();
    all.sort_unstable();
    all.dedup();
    for level in all {
        svg.line((x(level), top), (x(level), bottom), (0.1, 1.0));
        svg.text((x(level), bottom + 16.0), Anchor::Middle, &level.to_string());
    }
    let below = ((left + right) / 2.0, bottom + 36.0);
    svg.text(below, Anchor::Middle, "concurrent cold starts");
    svg.styled((left - 60.0, top - 6.0), Anchor::Start, "font-style=\"italic\"", "total, ms (log)");
    let mut ends: Vec<f64> = Vec::new();
    let count = lines.len() as f64;
    for (at, ((function, _, _), all)) in lines.iter().enumerate() {
        // Side by side, so that spreads do not hide each other.
        let x = |level: u32| x(level) + (at as f64 - (count - 1.0) / 2.0) * 8.0;
        let Some(kind) = all.first().map(|s| s.key.kind) else { continue };
        let shape = shape(kind);
        let points: Vec<(f64, f64)> = all
            .iter()
            .filter_map(|s| Some((x(s.key.level), down.at(s.median("total")?))))
            .collect();
        svg.path(&points, colour(kind), dashes(at));
        for series in all {
            let Some(total) = series.measure("total") else { continue };
            let (x, s) = (x(series.key.level), &total.summary);
            svg.line((x, down.at(s.q1)), (x, down.at(s.q3)), (0.7, 3.0));
            svg.line((x, down.at(s.min)), (x, down.at(s.max)), (0.6, 1.0));
            svg.mark((x, down.at(s.median)), shape, colour(kind));
        }
        if let (Some((x, y)), Some(series)) = (points.last(), all.last()) {
            // Names at the ends of the lines, moved apart where lines end together.
            let mut y = *y;
            while ends.iter().any(|other| (other - y).abs() < 14.0) {
                y += 14.0;
            }
            ends.push(y);
            let label = series.label.split(" ×").next().unwrap_or(&series.label);
            let counts = all.iter().map(|s| s.counted);
            let (least, most) = (counts.clone().min().unwrap_or(0), counts.max().unwrap_or(0));
            let n = if least == most { format!("n={most}") } else { format!("n={least}–{most}") };
            svg.text((x + 10.0, y + 4.0), Anchor::Start, &format!("{function} {label}  {n}"));
        }
    }
    let caption = "Median total per number of concurrent starts (mark), quartiles (thick), least \
                   and greatest (thin); all repetitions together, n of each number. Both axes are \
                   logarithmic.";
    let title = "Concurrent cold starts";
    let svg = svg.finish(title, bottom + 50.0);
    Some(Chart { name: "levels", title, caption: caption.to_owned(), svg })
}
