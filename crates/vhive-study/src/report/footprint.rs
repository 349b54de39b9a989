//! The chart of memory on the host.

use crate::analysis::{Analysis, Series};

use super::charts::{LEFT, RIGHT, by_function, greatest, height_of, rows, spread_below};
use super::palette::{Fill, GREEN, SKY, VERMILLION};
use super::svg::{Anchor, Area, Chart, Scale, Svg, short};

const PSS: Fill = Fill::plain(GREEN);
const RSS: Fill = Fill::hatched(SKY);
/// Of the working set's mark.
const WORKING_SET: (usize, &str) = (3, VERMILLION);

/// Resident memory beside the working set and the guest's memory, per function and start kind.
pub(super) fn chart(analysis: &Analysis) -> Option<Chart> {
    let groups = by_function(analysis, |series| series.measure("RSS").is_some());
    let largest = |s: &Series| s.measure("RSS").map_or(0.0, |rss| rss.summary.max);
    let most = greatest(&groups, |s| largest(s).max(s.guest_mib.unwrap_or(0.0)));
    if most <= 0.0 {
        return None;
    }
    let mut svg = Svg::new("footprint");
    let fills = [(PSS, "PSS (or RSS alone)"), (RSS, "RSS beyond PSS")];
    let top = svg.legend(8.0, &fills);
    let (shape, colour) = WORKING_SET;
    svg.mark((340.0, 14.0), shape, colour);
    svg.text((352.0, 18.5), Anchor::Start, "working set: memory brought in up to the reply");
    svg.line((700.0, 7.0), (700.0, 21.0), (1.0, 2.0));
    svg.text((708.0, 18.5), Anchor::Start, "memory of the guest");
    let bottom = top + height_of(&groups);
    let scale = Scale::linear(most, (LEFT, RIGHT));
    svg.axis(&scale, (top, bottom), "MiB (medians)");
    rows(&mut svg, &groups, top, |svg, series, middle| {
        let Some(rss) = series.median("RSS") else { return };
        let pss = series.median("PSS").unwrap_or(rss).min(rss);
        for (from, to, fill, name) in [(0.0, pss, PSS, "PSS"), (pss, rss, RSS, "RSS beyond PSS")] {
            let (x, end) = (scale.at(from), scale.at(to));
            let area = Area { x, y: middle - 7.0, width: end - x, height: 14.0 };
            svg.bar(area, fill, "", &format!("{name}: {} MiB", short(to - from)));
        }
        if let Some(measure) = series.measure("RSS") {
            spread_below(svg, &scale, &measure.summary, middle);
        }
        if let Some(working_set) = series.median("working set") {
            svg.mark((scale.at(working_set), middle), shape, colour);
        }
        if let Some(guest) = series.guest_mib {
            svg.line((scale.at(guest), middle - 8.0), (scale.at(guest), middle + 8.0), (1.0, 2.0));
        }
        // Beyond the mark of the guest's memory, if that is just behind the bar.
        let label = format!("{} MiB  n={}", short(rss), series.counted);
        let past = scale
            .at(largest(series).max(series.guest_mib.filter(|g| g / most > 0.8).unwrap_or(0.0)));
        let at = if past > RIGHT - 1.0 { RIGHT } else { scale.at(largest(series)) };
        svg.text((at + 6.0, middle + 4.0), Anchor::Start, &label);
    });
    let title = "Memory of a sandbox on the host";
    let caption = "Median resident memory of the sandbox's processes right after the reply, the \
                   VMM's own included (emulating, also the code that it has translated): the \
                   proportional set size, and what is resident beyond it \
                   because others map the same pages; below it from least to greatest RSS, and the \
                   quartiles. The diamond is the guest memory that the \
                   pager brought in up to the reply, prefetched or by faults; of a boot, and where \
                   the host's kernel pages, nobody can count it.";
    let svg = svg.finish(title, bottom + 40.0);
    Some(Chart { name: "footprint", title, caption: caption.to_owned(), svg })
}
