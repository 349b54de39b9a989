//! From samples to rows.

use std::collections::BTreeMap;

use vhive_tests::bench::{Bound, Row, geometric_mean, median, quantile};

use crate::ground::{Ground, Sample};
use crate::measure::{Samples, Series};

const FAULTS_SAME: Bound = Bound::AtMost { must: 3.0, goal: 1.0 };
const FAULTS_OTHER: Bound = Bound::AtMost { must: 10.0, goal: FAULTS_GOAL };
/// Of merged recordings, in per cent.
const FAULTS_GOAL: f64 = 5.0;
/// The worst function with the other input, in per cent.
const FAULTS_WORST: f64 = 25.0;
const RECORD_COST: Bound = Bound::AtMost { must: 28.0, goal: 10.0 };
const MEMORY: Bound = Bound::AtLeast { must: 5.0, goal: 20.0 };
const WHOLE: Bound = Bound::AtLeast { must: 1.2, goal: 2.0 };
const BOOT: Bound = Bound::AtLeast { must: 10.0, goal: 25.0 };
/// Less than this is not told from nothing: the kernel accounts vanilla's waits in ticks of 10 ms,
/// and a ratio to microseconds would say nothing.
const LEAST_WAIT_MS: f64 = 1.0;

/// The rows that are made of every function's samples.
pub(crate) const ROWS: [(&str, &str, Bound); 6] = [
    ("faults-same", "%", FAULTS_SAME),
    ("faults-other", "%", FAULTS_OTHER),
    ("record-cost", "%", RECORD_COST),
    ("reap-memory-speedup", "x", MEMORY),
    ("reap-speedup", "x", WHOLE),
    ("snapshot-vs-boot", "x", BOOT),
];

/// The samples of all functions, and under which conditions they were taken.
pub(crate) struct Measured<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) functions: BTreeMap<&'a str, Samples>,
    pub(crate) repetitions: u32,
}

impl Measured<'_> {
    pub(crate) fn emit(&self) {
        let mut rows = ROWS.map(|(id, unit, _)| Row::new(id, unit));
        let figures = [
            Self::faults_same,
            Self::faults_other,
            Self::record_cost,
            Self::memory_speedup,
            Self::speedup,
            Self::against_boot,
        ];
        for (row, figure) in rows.iter_mut().zip(figures) {
            figure(self, row.clone()).emit();
        }
    }

    /// A figure of every function.
    fn each(&self, figure: impl Fn(&Samples) -> f64) -> Vec<(&str, f64)> {
        self.functions.iter().map(|(name, samples)| (*name, figure(samples))).collect()
    }

    fn faults_same(&self, row: Row) -> Row {
        let each = self.each(|s| left(s, Series::Record, Series::ReapSame));
        row.value(FAULTS_SAME, mean(&each))
            .peer(format!("recorded faults: {}", list(&self.recorded(), "")))
            .note(format!("{}; the recorded input; {}", list(&each, "%"), self.conditions()))
    }

    fn faults_other(&self, row: Row) -> Row {
        let each = self.each(|s| left(s, Series::Record, Series::Reap));
        let worst = each.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let worst = worst.map_or_else(String::new, |(name, share)| {
            let holds = if *share <= FAULTS_WORST { "holds" } else { "does NOT hold" };
            format!("worst: {name} {share:.1} %, <= {FAULTS_WORST} % {holds}")
        });
        let mut row = row.value(FAULTS_OTHER, mean(&each));
        if each.iter().any(|(_, share)| *share > FAULTS_WORST) {
            row.ok = Some(false);
        }
        row.peer(format!("recorded faults: {}", list(&self.recorded(), ""))).note(format!(
            "{worst}; {}; one recording, the other input; {}; {}",
            list(&each, "%"),
            self.faults_merged(),
            self.conditions()
        ))
    }

    /// The same, recorded with two inputs: what the goal is of.
    fn faults_merged(&self) -> String {
        let each = self.each(|s| left(s, Series::FirstOfTwo, Series::ReapMerged));
        let (mean, goal) = (mean(&each), FAULTS_GOAL);
        let holds = if mean <= goal { "holds" } else { "does NOT hold" };
        format!(
            "two recordings merged, of the recorded and of a third input, in per cent of the first one's \
             faults, one start of each function: mean {mean:.2} %, goal <= {goal} % {holds}: {}",
            list(&each, "%")
        )
    }

    fn recorded(&self) -> Vec<(&str, f64)> {
        self.each(|s| middle(s, Series::Record, Sample::faults))
    }

    fn record_cost(&self, row: Row) -> Row {
        let each = self.each(|s| total(s, Series::Record) / total(s, Series::VanillaSame));
        let vanilla = self.each(|s| total(s, Series::VanillaSame));
        row.value(RECORD_COST, (geometric(&each) - 1.0) * 100.0)
            .peer(format!("vanilla, ms: {}", list(&vanilla, "")))
            .note(format!(
                "geometric mean of record / vanilla: {}; whole invocation; {}; {}",
                list(&each, "x"),
                self.spreads(&[Series::Record, Series::VanillaSame]),
                self.conditions()
            ))
    }

    /// The kernel times no fault, so a paged guest's wait is what its virtual CPU's thread waited for
    /// the disk, without the faults' work itself. REAP's holds everything from a fault's arrival to
    /// its page, so the ratio errs against REAP.
    fn memory_speedup(&self, row: Row) -> Row {
        let waited = |s: &Samples| middle(s, Series::Reap, Sample::waited);
        let disk = |series| move |s: &Samples| middle(s, series, |sample| sample.account.disk_ms);
        let ratio = |s: &Samples, series| disk(series)(s) / waited(s).max(LEAST_WAIT_MS);
        let each = self.each(|s| ratio(s, Series::Vanilla));
        if !self.ground.delays {
            return row.unmeasured(MEMORY, "the kernel's delay accounting cannot be switched on");
        }
        let host = self.each(|s| {
            let reap = middle(s, Series::ReapHost, Sample::waited).max(LEAST_WAIT_MS);
            disk(Series::VanillaHost)(s) / reap
        });
        let difference = self.each(|s| total(s, Series::Vanilla) - total(s, Series::VanillaCached));
        let unknown = self.functions.values().filter_map(|s| s.get(&Series::Vanilla)).flatten();
        let unknown = unknown.filter(|sample| sample.account.disk_ms.is_nan()).count();
        let lazy =
            self.each(|s| middle(s, Series::Lazy, Sample::waited) / waited(s).max(LEAST_WAIT_MS));
        let pages = self.each(|s| middle(s, Series::Vanilla, |x| x.account.major_faults));
        let is_known = |(_, ratio): &&(&str, f64)| ratio.is_finite();
        let known: Vec<(&str, f64)> = each.iter().filter(is_known).copied().collect();
        let missing = each.len() - known.len();
        if known.is_empty() {
            return row.unmeasured(MEMORY, "no sample's account can be right");
        }
        row.value(MEMORY, geometric(&known))
            .peer(format!(
                "vanilla, ms its virtual CPU waited for the disk (delay accounting, ticks of \
                 10 ms): {}; major faults: {}; read, MiB: {}",
                list(&self.each(disk(Series::Vanilla)), ""),
                list(&pages, ""),
                list(&self.each(|s| middle(s, Series::Vanilla, |x| x.account.read_mib)), "")
            ))
            .note(format!(
                "{}; REAP waited, ms: {} (less than {LEAST_WAIT_MS} counts as that); with the \
                 host's readahead {:.2}x; {unknown} samples left out, whose account was longer than \
                 the start, and {missing} functions that had no other; other measures of the slow side: whole start cold less cached, ms: {}; \
                 one by one by our pager (lazy) {:.2}x; other input; {}",
                list(&each, "x"),
                list(&self.each(waited), ""),
                geometric(&host),
                list(&difference, ""),
                geometric(&lazy),
                self.conditions()
            ))
    }

    fn speedup(&self, row: Row) -> Row {
        let ratio = |a, b| move |s: &Samples| total(s, a) / total(s, b);
        let each = self.each(ratio(Series::Vanilla, Series::Reap));
        let host = self.each(ratio(Series::VanillaHost, Series::ReapHost));
        let cpu = |series| {
            self.each(move |s| {
                middle(s, series, |sample| sample.account.cpu_ms / sample.total()) * 100.0
            })
        };
        row.value(WHOLE, geometric(&each))
            .peer(format!("vanilla, ms: {}", list(&self.each(|s| total(s, Series::Vanilla)), "")))
            .note(format!(
                "{}; REAP, ms: {}; with the host's readahead {:.2}x ({}); QEMU's processor time of \
                 the whole: REAP {}, vanilla {}; other input; {}; {}",
                list(&each, "x"),
                list(&self.each(|s| total(s, Series::Reap)), ""),
                geometric(&host),
                list(&host, "x"),
                list(&cpu(Series::Reap), "%"),
                list(&cpu(Series::Vanilla), "%"),
                self.spreads(&[Series::Vanilla, Series::Reap]),
                self.conditions()
            ))
    }

    /// Of the starts, which end when the function is ready. The request after it takes what the emulated CPU makes of
    /// it, whichever way the start came: the whole invocations are in the note.
    fn against_boot(&self, row: Row) -> Row {
        let ready = |s: &Samples, series| middle(s, series, Sample::ready);
        let start = |b| move |s: &Samples| ready(s, Series::Boot) / ready(s, b);
        let whole = |b| move |s: &Samples| total(s, Series::Boot) / total(s, b);
        let each = self.each(start(Series::ReapHost));
        let wholes = self.each(whole(Series::ReapHost));
        let boots = self.each(|s| ready(s, Series::Boot));
        row.value(BOOT, geometric(&each))
            .peer(format!("boot, from request to ready, ms: {}", list(&boots, "")))
            .note(format!(
                "the snapshot start is REAP's, from request to ready: {}; vanilla's {:.2}x; whole \
                 invocations: REAP's {:.2}x ({}), vanilla's {:.2}x; with the host's readahead, the \
                 snapshots' files not in the page cache, kernel and image in it; {}; {}",
                list(&each, "x"),
                geometric(&self.each(start(Series::VanillaHost))),
                geometric(&wholes),
                list(&wholes, "x"),
                geometric(&self.each(whole(Series::VanillaHost))),
                self.spreads(&[Series::Boot, Series::ReapHost]),
                self.conditions()
            ))
    }

    /// Least and greatest of each function's samples, as a share of their median: the worst of the
    /// functions.
    fn spreads(&self, series: &[Series]) -> String {
        let of = |one: &Series| {
            let widest = self.functions.values().map(|samples| {
                let all = all(samples, *one, Sample::total);
                (quantile(&all, 1.0) - quantile(&all, 0.0)) / median(&all) * 100.0
            });
            format!("{one:?} {:.0} %", widest.fold(f64::NAN, f64::max))
        };
        let words: Vec<String> = series.iter().map(of).collect();
        format!("widest spread (most - least) / median: {}", words.join(", "))
    }

    fn conditions(&self) -> String {
        format!(
            "medians of n = {} per function, in turns; page cache cold; readahead off, the host's: {} KiB; \
             emulated CPU unless QEMU has KVM; load {}",
            self.repetitions,
            self.ground.readahead.before(),
            load()
        )
    }
}

/// The one-minute load average.
pub(crate) fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// Faults left after prefetching, in per cent of those recorded.
fn left(samples: &Samples, recorded: Series, left: Series) -> f64 {
    let of = |series: Series| samples.get(&series).into_iter().flatten().map(Sample::faults);
    median(&shares(of(recorded), of(left)))
}

/// What is left of each recording in its own repetition: a lost sample costs its pair, and no other.
fn shares(recorded: impl Iterator<Item = f64>, left: impl Iterator<Item = f64>) -> Vec<f64> {
    let pairs = recorded.zip(left).filter(|(r, l)| r.is_finite() && l.is_finite() && *r > 0.0);
    pairs.map(|(recorded, left)| left / recorded * 100.0).collect()
}

fn all(samples: &Samples, series: Series, of: impl Fn(&Sample) -> f64) -> Vec<f64> {
    samples.get(&series).into_iter().flatten().map(of).filter(|x| x.is_finite()).collect()
}

fn middle(samples: &Samples, series: Series, of: impl Fn(&Sample) -> f64) -> f64 {
    median(&all(samples, series, of))
}

fn total(samples: &Samples, series: Series) -> f64 {
    middle(samples, series, Sample::total)
}

fn mean(each: &[(&str, f64)]) -> f64 {
    each.iter().map(|(_, x)| x).sum::<f64>() / each.len() as f64
}

fn geometric(each: &[(&str, f64)]) -> f64 {
    geometric_mean(&each.iter().map(|(_, x)| *x).collect::<Vec<_>>())
}

fn list(each: &[(&str, f64)], unit: &str) -> String {
    let digits = |x: f64| if x.abs() >= 100.0 { 0 } else { 2 };
    let words = each.iter().map(|(name, x)| format!("{name} {x:.*}{unit}", digits(*x)));
    words.collect::<Vec<_>>().join(", ")
}
