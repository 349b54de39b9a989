//! How the requests of a run ended: when, and at which endpoint.

use std::collections::BTreeMap;

use crate::stats::{median, upper_percent};

use super::html;
use super::injected::{self, Injected};
use super::load::{STRETCHES, Sent, stretch};
use super::palette::{Fill, GREY, LIGHT, ORANGE, Pattern, VERMILLION};
use super::svg::{Anchor, Area, Chart, Scale, Svg, WIDTH, short};

/// From the axis up. What failed is at the bottom, where a little of it is seen.
const KINDS: [(&str, Fill); 4] = [
    ("error", Fill::hatched(VERMILLION)),
    ("timeout", Fill::with(ORANGE, Pattern::Dots)),
    ("unfinished", Fill::with(GREY, Pattern::Back)),
    ("ok", Fill::plain(LIGHT)),
];
/// The least height of what there is, in pixels: one failure in ten thousand is to be seen.
const LEAST: f64 = 1.5;
const HEADINGS: [&str; 6] = ["endpoint", "requests", "failed", "failed %", "p50 ms", "p99 ms"];
/// The most endpoints in the table.
const MOST: usize = 20;

/// Outcomes over time, stacked.
pub(super) fn chart(rows: &[Sent], injected: &[Injected], end_s: f64) -> Option<Chart> {
    if rows.is_empty() || end_s <= 0.0 {
        return None;
    }
    let mut counts = vec![[0_u64; KINDS.len()]; STRETCHES];
    for row in rows {
        let kind = KINDS.iter().position(|(name, _)| *name == &*row.outcome)?;
        counts[stretch(row, end_s)][kind] += 1;
    }
    let sum = |kind: usize| counts.iter().map(|of| of[kind]).sum::<u64>();
    let most = counts.iter().map(|of| of.iter().sum::<u64>()).max().unwrap_or(0);
    let (left, right) = (70.0, WIDTH - 30.0);
    let mut svg = Svg::new("outcomes");
    let told = KINDS.iter().enumerate().filter(|(kind, _)| sum(*kind) > 0);
    let told: Vec<(Fill, String)> =
        told.map(|(kind, (name, fill))| (*fill, format!("{name} n={}", sum(kind)))).collect();
    let legend: Vec<(Fill, &str)> =
        told.iter().map(|(fill, name)| (*fill, name.as_str())).collect();
    let top = svg.legend(8.0, &legend) + 14.0;
    let bottom = top + 200.0;
    let across = Scale::linear(end_s, (left, right));
    let down = Scale::linear(most as f64 * 1.05, (bottom, top));
    svg.rules(&down, (left, right));
    svg.axis(&across, (top, bottom), "seconds, as intended");
    let italic = "font-style=\"italic\"";
    svg.styled((left - 60.0, top - 8.0), Anchor::Start, italic, "requests in a stretch");
    let width = (right - left) / STRETCHES as f64;
    for (nth, of) in counts.iter().enumerate() {
        let x = left + nth as f64 * width;
        let at = nth as f64 / STRETCHES as f64 * end_s;
        let mut y = bottom;
        for ((name, fill), count) in KINDS.iter().zip(of).filter(|(_, count)| **count > 0) {
            let height = (bottom - down.at(*count as f64)).max(LEAST);
            y -= height;
            let tip = format!("from {} s: {name}, {count}", short(at));
            svg.bar(Area { x, y, width, height }, *fill, "", &tip);
        }
    }
    injected::mark(&mut svg, injected, &across, (top, bottom));
    let caption = format!(
        "All requests by when they were to be sent and how they ended, in {STRETCHES} stretches; n = {}. \
         However few have failed in a stretch, their bar is {LEAST} pixels high at least.",
        rows.len()
    );
    let title = "Outcomes over time";
    Some(Chart { name: "outcomes", title, caption, svg: svg.finish(title, bottom + 40.0) })
}

/// One endpoint.
struct One<'a> {
    name: &'a str,
    failed: usize,
    /// Of successes, in milliseconds.
    latency: Vec<f64>,
}

impl One<'_> {
    fn requests(&self) -> usize {
        self.failed + self.latency.len()
    }

    fn share(&self) -> f64 {
        self.failed as f64 / self.requests().max(1) as f64
    }

    fn cells(&self) -> Vec<String> {
        let ms = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), short);
        vec![
            self.name.to_owned(),
            self.requests().to_string(),
            self.failed.to_string(),
            short(100.0 * self.share()),
            ms(median(&self.latency)),
            ms(upper_percent(&self.latency, 1.0)),
        ]
    }
}

/// A table of the endpoints, those with most failures first.
pub(super) fn by_endpoint(rows: &[Sent]) -> String {
    let mut all: BTreeMap<&str, One<'_>> = BTreeMap::new();
    for row in rows {
        let new = || One { name: &row.endpoint, failed: 0, latency: Vec::new() };
        let one = all.entry(&row.endpoint).or_insert_with(new);
        if &*row.outcome == "ok" {
            one.latency.push(row.latency_us / 1e3);
        } else {
            one.failed += 1;
        }
    }
    let all = all.into_values().map(|one| (upper_percent(&one.latency, 1.0).unwrap_or(0.0), one));
    let mut all: Vec<(f64, One<'_>)> = all.collect();
    all.sort_by(|(slow_a, a), (slow_b, b)| {
        b.share().total_cmp(&a.share()).then(slow_b.total_cmp(slow_a))
    });
    let shown: Vec<Vec<String>> = all.iter().take(MOST).map(|(_, one)| one.cells()).collect();
    let which = if all.len() > MOST {
        format!("{MOST} of {} endpoints", all.len())
    } else {
        "All endpoints".to_owned()
    };
    format!(
        "<h2 id=\"endpoints\">By endpoint</h2>\n<p class=\"dim\">{which}: first those of which most has \
         failed, then the slowest. Latencies are of successes.</p>\n{}",
        html::table(&HEADINGS, &shown, 1)
    )
}
