//! Charts of faults over time.

use crate::analysis::{Analysis, StartFaults};

use super::charts::{colour, shape};
use super::svg::{Anchor, Chart, Scale, Svg, WIDTH, short};

/// How many faults so far, and the names of the lines to the right of it.
const COUNT: (f64, f64) = (62.0, 360.0);
const NAMES: f64 = 376.0;
/// Which page.
const PAGES: (f64, f64) = (690.0, WIDTH - 10.0);
/// Of a name with its figures.
const LINE: f64 = 30.0;
/// Below this many pixels apart, points of one line are one.
const APART: f64 = 2.0;

/// A panel per function: faults so far, and their pages, over time.
pub(super) fn chart(analysis: &Analysis) -> Option<Chart> {
    let mut groups: Vec<(&str, Vec<&StartFaults>)> = Vec::new();
    for one in analysis.timelines.iter().filter(|one| one.key.level == 1) {
        match groups.last_mut() {
            Some((function, all)) if *function == one.key.function => all.push(one),
            _ => groups.push((&one.key.function, vec![one])),
        }
    }
    if groups.is_empty() {
        return None;
    }
    let mut svg = Svg::new("fault-timeline");
    let mut y = 8.0;
    for (function, all) in &groups {
        svg.styled((10.0, y + 12.0), Anchor::Start, "font-weight=\"bold\"", function);
        y = panel(&mut svg, all, y + 34.0);
    }
    let title = "Faults over time";
    let caption = "Left, how many faults the guest has waited for since its memory was attached; a \
                   line ends when the reply was complete. Right, which page of the snapshot's memory \
                   each fault was of. Of each kind, the start whose total is the median. Dashed: a \
                   kind that prefetches, with the recorded input. An open mark is an awaited page: \
                   prefetching was about to bring it.";
    let svg = svg.finish(title, y);
    Some(Chart { name: "fault-timeline", title, caption: caption.to_owned(), svg })
}

/// Draws one function's starts from `top` down; returns the y below.
fn panel(svg: &mut Svg, all: &[&StartFaults], top: f64) -> f64 {
    let most = |of: &dyn Fn(&StartFaults) -> f64| all.iter().map(|s| of(s)).fold(0.0, f64::max);
    let height = (LINE * all.len() as f64).max(150.0);
    let bottom = top + height;
    let end = most(&|s| s.reply_ms);
    let faults = Scale::linear(most(&|s| s.faults as f64), (bottom, top));
    let page = |s: &StartFaults| s.points.iter().map(|at| f64::from(at.page)).fold(0.0, f64::max);
    let pages = Scale::linear(most(&page), (bottom, top));
    for (scale, place, what) in [(&faults, COUNT, "faults so far"), (&pages, PAGES, "page")] {
        svg.axis(&Scale::linear(end, place), (top, bottom), "milliseconds");
        svg.rules(scale, place);
        svg.styled((place.0, top - 8.0), Anchor::Start, "font-style=\"italic\"", what);
    }
    let time = Scale::linear(end, COUNT);
    for (at, one) in all.iter().enumerate() {
        count(svg, one, (&time, &faults));
        let y = top + LINE * at as f64 + 12.0;
        sample(svg, one, (NAMES, y - 4.0));
        svg.text((NAMES + 34.0, y), Anchor::Start, &format!("{}  n={}", one.label, one.n));
        svg.styled((NAMES + 34.0, y + 13.0), Anchor::Start, "font-size=\"10\"", &figures(one));
    }
    let time = Scale::linear(end, PAGES);
    // Those with the most faults first, so that they do not hide the others.
    let mut order: Vec<&StartFaults> = all.to_vec();
    order.sort_by_key(|one| std::cmp::Reverse(one.faults));
    for one in order {
        for awaited in [false, true] {
            let wanted = one.points.iter().filter(|point| point.awaited == awaited);
            let at = wanted.map(|p| (time.at(p.ms), pages.at(f64::from(p.page))));
            svg.marks(&apart(at), shape(one.key.kind), (colour(one.key.kind), awaited));
        }
    }
    bottom + 44.0
}

fn figures(one: &StartFaults) -> String {
    let awaited = one.points.iter().filter(|point| point.awaited).count();
    let part = if one.every > 1 {
        format!(" (1 of {} shown)", one.every)
    } else if awaited > 0 {
        format!(", {awaited} awaited")
    } else {
        String::new()
    };
    format!("{} faults{part}; {} ms", one.faults, short(one.reply_ms))
}

/// The line of one start: how many faults up to each moment.
fn count(svg: &mut Svg, one: &StartFaults, (time, faults): (&Scale, &Scale)) {
    let mut points = vec![(time.at(0.0), faults.at(0.0))];
    for (number, point) in one.points.iter().enumerate() {
        let so_far = (number as f64).mul_add(f64::from(one.every), 1.0);
        let at = (time.at(point.ms), faults.at(so_far.min(one.faults as f64)));
        match points.last_mut() {
            Some(last) if at.0 - last.0 < 1.0 && number > 0 => *last = at,
            _ => points.push(at),
        }
    }
    points.push((time.at(one.reply_ms), faults.at(one.faults as f64)));
    svg.outlined(&points, colour(one.key.kind), dashes(one));
    let mut marked: Vec<(f64, f64)> = points.last().copied().into_iter().collect();
    for point in points.iter().skip(1) {
        if marked.iter().all(|(x, y)| (x - point.0).hypot(y - point.1) > 45.0) {
            marked.push(*point);
        }
    }
    for at in marked {
        svg.mark(at, shape(one.key.kind), colour(one.key.kind));
    }
}

/// What a start's line looks like.
fn sample(svg: &mut Svg, one: &StartFaults, (x, y): (f64, f64)) {
    svg.outlined(&[(x, y), (x + 28.0, y)], colour(one.key.kind), dashes(one));
    svg.mark((x + 14.0, y), shape(one.key.kind), colour(one.key.kind));
}

fn dashes(one: &StartFaults) -> &'static str {
    if one.key.kind.prefetches() && one.label.ends_with("(same input)") { "6 3" } else { "" }
}

/// Points of which none hides another.
fn apart(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let cell = |(x, y): (f64, f64)| [x, y].map(|at| (at / APART).round().to_bits());
    let mut taken = std::collections::BTreeSet::new();
    points.filter(|point| taken.insert(cell(*point))).collect()
}

/// What the method's text says of it.
pub(super) fn method(analysis: &Analysis) -> &'static str {
    if analysis.timelines.is_empty() {
        return "There are no timelines of faults: no start's memory was served by the pager, or \
                the node's version does not record them.";
    }
    "A fault's time is that at which its message reached the pager, in microseconds since the \
     memory was attached. Of starts with more than 4096 faults, an even sample was recorded."
}
