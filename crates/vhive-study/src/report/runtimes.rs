//! Sandboxes against each other: charts, tables and sentences.

use vhive_api::RuntimeName;

use crate::analysis::{Against, Analysis, Group, Throughput};
use crate::density::Density;

use super::charts::{LEFT, RIGHT};
use super::figures::{cell, dash, interval, percent, times};
use super::palette::{BLUE, Fill, GREEN, GREY, LIGHT, ORANGE, PURPLE, Pattern, SKY, VERMILLION};
use super::svg::{Anchor, Area, Chart, Scale, Svg, short};

const ROW: f64 = 20.0;
const MIB: f64 = 1_048_576.0;

/// Fill and mark of a runtime.
fn look(runtime: RuntimeName) -> (Fill, usize) {
    match runtime {
        RuntimeName::Qemu => (Fill::plain(VERMILLION), 0),
        RuntimeName::Firecracker => (Fill::plain(ORANGE), 1),
        RuntimeName::Runsc => (Fill::with(PURPLE, Pattern::Dots), 2),
        RuntimeName::Runc => (Fill::hatched(BLUE), 3),
        RuntimeName::Crun => (Fill::with(SKY, Pattern::Level), 4),
        RuntimeName::Sim => (Fill::with(GREY, Pattern::Back), 5),
    }
}

/// Every chart for which there is something to show.
pub(super) fn charts(analysis: &Analysis) -> Vec<Chart> {
    [against(analysis), throughput(analysis), density(analysis)].into_iter().flatten().collect()
}

/// Ratios of all sandboxes to the base, by group of functions and measure.
fn against(analysis: &Analysis) -> Option<Chart> {
    let (all, base) = (&analysis.runtimes.against, analysis.runtimes.base?);
    let ends = |one: &Against| {
        let around = one.ratio.interval;
        around.map_or((one.ratio.ratio, one.ratio.ratio), |i| (i.low, i.high))
    };
    let high = all.iter().map(|one| ends(one).1).fold(1.0, f64::max);
    let low = all.iter().map(|one| ends(one).0).fold(1.0, f64::min);
    if all.iter().all(|one| one.runtime == base) {
        return None;
    }
    let mut svg = Svg::new("against");
    let mut x = 10.0;
    let mut seen: Vec<RuntimeName> = Vec::new();
    for one in all {
        if !seen.contains(&one.runtime) {
            seen.push(one.runtime);
        }
    }
    for runtime in &seen {
        let (fill, shape) = look(*runtime);
        svg.mark((x + 6.0, 14.0), shape, fill.colour);
        svg.text((x + 18.0, 18.5), Anchor::Start, runtime.as_str());
        x += 110.0;
    }
    let top = 34.0;
    let blocks = blocks(all);
    let height: f64 = blocks.iter().map(|(_, rows)| ROW + 6.0 + ROW * rows.len() as f64).sum();
    let scale = Scale::logarithmic((low, high), (LEFT, RIGHT));
    svg.axis(&scale, (top, top + height), &format!("times as much as {base}, logarithmic"));
    let one = scale.at(1.0);
    svg.line((one, top), (one, top + height), (0.8, 1.5));
    let mut y = top;
    for (group, measures) in blocks {
        let n = measures.iter().flat_map(|(_, all)| all).map(|one| one.ratio.n).max().unwrap_or(0);
        let heading = format!("{}  n={n} function(s)", group.label());
        svg.styled((10.0, y + 14.0), Anchor::Start, "font-weight=\"bold\"", &heading);
        y += ROW;
        for (measure, all) in measures {
            let middle = y + ROW / 2.0;
            svg.text((LEFT - 8.0, middle + 4.0), Anchor::End, measure);
            for one in &all {
                let (low, high) = ends(one);
                if high > low {
                    svg.line((scale.at(low), middle), (scale.at(high), middle), (0.6, 1.0));
                }
            }
            for one in all {
                let (fill, shape) = look(one.runtime);
                svg.mark((scale.at(one.ratio.ratio), middle), shape, fill.colour);
            }
            y += ROW;
        }
        y += 6.0;
    }
    let title = "Sandboxes against each other";
    let caption = format!(
        "Geometric means over the functions of ratios of medians, and their 95 % intervals, by what \
         the functions spend their time with. boot, restored and warm are whole invocations; \
         restored is compared with a boot of {base}; PSS is memory after a boot. Note the \
         logarithmic axis."
    );
    let svg = svg.finish(title, y + 40.0);
    Some(Chart { name: "against", title, caption, svg })
}

type Block<'a> = (Group, Vec<(&'static str, Vec<&'a Against>)>);

/// By group, then measure, in the order in which they come.
fn blocks(all: &[Against]) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    for one in all {
        if blocks.last().is_none_or(|(group, _)| *group != one.group) {
            blocks.push((one.group, Vec::new()));
        }
        let Some((_, measures)) = blocks.last_mut() else { continue };
        match measures.last_mut() {
            Some((measure, rows)) if *measure == one.measure => rows.push(one),
            _ => measures.push((one.measure, vec![one])),
        }
    }
    blocks
}

fn throughput(analysis: &Analysis) -> Option<Chart> {
    let all = &analysis.runtimes.throughputs;
    let most = all.iter().map(|one| one.summary.max).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let mut svg = Svg::new("throughput");
    let top = 8.0;
    let begins = |at: usize| at == 0 || all[at - 1].group != all[at].group;
    let groups = (0..all.len()).filter(|at| begins(*at)).count();
    let bottom = top + (ROW + 6.0) * all.len() as f64 + ROW * groups as f64;
    let scale = Scale::linear(most, (LEFT, RIGHT));
    svg.axis(&scale, (top, bottom), "replies per second");
    let mut y = top;
    for (at, one) in all.iter().enumerate() {
        if begins(at) {
            let bold = "font-weight=\"bold\"";
            svg.styled((10.0, y + 14.0), Anchor::Start, bold, one.group.label());
            y += ROW;
        }
        let middle = y + (ROW + 6.0) / 2.0;
        y += ROW + 6.0;
        let (fill, shape) = look(one.runtime);
        let label = format!("{} {}", one.function, one.runtime);
        svg.text((LEFT - 8.0, middle + 4.0), Anchor::End, &label);
        let (x, end) = (scale.at(0.0), scale.at(one.summary.median));
        let area = Area { x, y: middle - 7.0, width: end - x, height: 14.0 };
        let tip = format!("{} per second", short(one.summary.median));
        svg.bar(area, fill, "", &tip);
        for (at, rate) in one.rates.iter().enumerate() {
            let offset = [0.0, 3.0, -3.0, 1.5, -1.5][at % 5];
            svg.mark((scale.at(*rate), middle + offset), shape, fill.colour);
        }
        let label = format!("{}/s  n={}", short(one.summary.median), one.summary.n);
        svg.text((scale.at(one.summary.max) + 8.0, middle + 4.0), Anchor::Start, &label);
    }
    let title = "Throughput of one instance";
    let connections = all.first().map_or(0, |one| one.connections);
    let caption = format!(
        "Replies per second of one instance, by what the functions spend their time with, with \
         {connections} requests under way at a time, each sent when the one before on its connection \
         was answered: the median as a bar, a mark per repetition. The gateway is in the path."
    );
    let svg = svg.finish(title, bottom + 40.0);
    Some(Chart { name: "throughput", title, caption, svg })
}

fn density(analysis: &Analysis) -> Option<Chart> {
    let all = &analysis.runtimes.densities;
    let limit = all.iter().map(|one| one.limit_bytes as f64 / MIB).fold(0.0, f64::max);
    if limit <= 0.0 {
        return None;
    }
    let fills = [
        (Fill::plain(GREEN), "instances’ own (PSS)"),
        (Fill::hatched(SKY), "kernel"),
        (Fill::with(ORANGE, Pattern::Dots), "pages of files"),
        (Fill::plain(LIGHT), "rest"),
    ];
    let mut svg = Svg::new("density");
    let top = svg.legend(8.0, &fills);
    let bottom = top + (ROW + 6.0) * all.len() as f64;
    let scale = Scale::linear(limit, (LEFT, RIGHT - 90.0));
    svg.axis(&scale, (top, bottom), "MiB");
    for (at, one) in all.iter().enumerate() {
        let middle = top + (ROW + 6.0) * (at as f64 + 0.5);
        let label = format!("{} {}", one.function, one.runtime);
        svg.text((LEFT - 8.0, middle + 4.0), Anchor::End, &label);
        let mut from = 0.0;
        for (part, (fill, name)) in parts(one).into_iter().zip(fills) {
            let (x, end) = (scale.at(from), scale.at(from + part));
            let area = Area { x, y: middle - 7.0, width: end - x, height: 14.0 };
            svg.bar(area, fill, "", &format!("{name}: {} MiB", short(part)));
            from += part;
        }
        let edge = scale.at(one.limit_bytes as f64 / MIB);
        svg.line((edge, middle - 9.0), (edge, middle + 9.0), (1.0, 2.0));
        let filled = one.filled().map_or_else(dash, percent);
        let label = format!("n={} instances, {filled} theirs", one.instances);
        svg.text((edge + 8.0, middle + 4.0), Anchor::Start, &label);
    }
    let title = "Idle instances in a given memory";
    let caption = "How many idle instances were ready at the same time before the first start failed \
                   or the first instance was killed, all sandboxes together in one control group \
                   with a memory limit (the line). Their own memory is the number times the mean \
                   proportional set size; the kernel’s objects (page tables, namespaces, sockets) \
                   and pages of files, which can be taken back, are as the control group says.";
    let svg = svg.finish(title, bottom + 40.0);
    Some(Chart { name: "density", title, caption: caption.to_owned(), svg })
}

/// Own, kernel, files and rest, in MiB; together what was charged, or their own if that is more.
fn parts(one: &Density) -> [f64; 4] {
    let mib = |bytes: u64| bytes as f64 / MIB;
    let own = one.instances as f64 * one.pss_bytes.map_or(0.0, mib);
    let mut left = (one.charged_bytes.map_or(0.0, mib) - own).max(0.0);
    let mut part = |bytes: Option<u64>| {
        let part = bytes.map_or(0.0, mib).min(left);
        left -= part;
        part
    };
    let (kernel, files) = (part(one.kernel_bytes), part(one.file_bytes));
    [own, kernel, files, left]
}

/// Headings of [`against_rows`].
pub(super) const AGAINST: [&str; 6] =
    ["functions", "measure", "sandbox", "times the base", "95 % interval", "n"];

/// Every comparison of sandboxes.
pub(super) fn against_rows(analysis: &Analysis) -> Vec<Vec<String>> {
    let base = analysis.runtimes.base;
    let others = analysis
        .runtimes
        .against
        .iter()
        .filter(|one| Some(one.runtime) != base || one.measure == "restored");
    let row = |one: &Against| {
        vec![
            one.group.label().to_owned(),
            one.measure.to_owned(),
            one.runtime.to_string(),
            times(one.ratio.ratio),
            one.ratio.interval.map_or_else(dash, |i| interval(&i)),
            one.ratio.n.to_string(),
        ]
    };
    others.map(row).collect()
}

/// Headings of [`throughput_rows`].
pub(super) const THROUGHPUT: [&str; 10] = [
    "function",
    "sandbox",
    "connections",
    "n",
    "replies/s",
    "95 % interval",
    "median ms",
    "99 % ms",
    "CPU µs each",
    "failed",
];

/// Every throughput.
pub(super) fn throughput_rows(analysis: &Analysis) -> Vec<Vec<String>> {
    let row = |one: &Throughput| {
        vec![
            one.function.clone(),
            one.runtime.to_string(),
            one.connections.to_string(),
            one.summary.n.to_string(),
            short(one.summary.median),
            one.summary.interval.map_or_else(dash, |i| interval(&i)),
            cell(one.median_ms),
            cell(one.p99_ms),
            cell(one.cpu_us_each),
            one.failures.to_string(),
        ]
    };
    analysis.runtimes.throughputs.iter().map(row).collect()
}

/// Headings of [`density_rows`].
pub(super) const DENSITY: [&str; 11] = [
    "function",
    "sandbox",
    "from",
    "memory MiB",
    "instances",
    "PSS MiB each",
    "theirs",
    "kernel MiB",
    "files MiB",
    "seconds",
    "ended by",
];

/// Every density.
pub(super) fn density_rows(analysis: &Analysis) -> Vec<Vec<String>> {
    let mib = |bytes: Option<u64>| cell(bytes.map(|bytes| bytes as f64 / MIB));
    let row = |one: &Density| {
        vec![
            one.function.clone(),
            one.runtime.to_string(),
            if one.restored { "snapshot" } else { "boot" }.to_owned(),
            mib(Some(one.limit_bytes)),
            one.instances.to_string(),
            mib(one.pss_bytes),
            one.filled().map_or_else(dash, percent),
            mib(one.kernel_bytes),
            mib(one.file_bytes),
            short(one.seconds),
            one.why.chars().take(80).collect(),
        ]
    };
    analysis.runtimes.densities.iter().map(row).collect()
}

/// The comparisons as sentences.
pub(super) fn findings(analysis: &Analysis) -> Vec<String> {
    let mut all = Vec::new();
    let Some(base) = analysis.runtimes.base else { return all };
    for one in &analysis.runtimes.against {
        if one.runtime == base {
            continue;
        }
        let (what, of) = match one.measure {
            "restored" => ("restored", format!("a boot of {base}")),
            "PSS" => ("memory (PSS) after a boot", base.to_string()),
            measure => (measure, base.to_string()),
        };
        let sure = one.ratio.interval.map(|i| format!(" (95 %: {})", interval(&i)));
        all.push(format!(
            "{}, functions of {}: {what} {} of {of}{} over {} function(s)",
            one.runtime,
            match one.group {
                Group::SystemCalls => "system calls",
                Group::Cpu => "the CPU",
                Group::Other => "another kind",
            },
            times(one.ratio.ratio),
            sure.unwrap_or_default(),
            one.ratio.n
        ));
    }
    all.extend(analysis.runtimes.throughputs.iter().map(|one| {
        format!(
            "{}: {} answers {} requests per second, {} at a time",
            one.runtime,
            one.function,
            short(one.summary.median),
            one.connections
        )
    }));
    all.extend(analysis.runtimes.densities.iter().map(|one| {
        let filled = one.filled().map_or_else(dash, percent);
        let mib = short(one.limit_bytes as f64 / MIB);
        format!(
            "{}: {} idle instances of {} in {mib} MiB, {filled} of it theirs",
            one.runtime, one.instances, one.function
        )
    }));
    all
}
