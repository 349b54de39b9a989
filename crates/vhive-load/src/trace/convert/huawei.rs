//! Huawei 2023: one file per day and metric, one column per function, one line per minute or second.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Converted, Window};
use crate::trace::draw::{MEMORY_QUANTILES, RUNTIME_QUANTILES};
use crate::trace::table::{Line, Table};
use crate::trace::whole::{Whole, all_done};
use crate::trace::{MOST_UNITS, TraceError, Unit};

/// What is converted.
#[derive(Clone, Debug, PartialEq)]
pub struct Huawei {
    /// Holds `requests_minute/day_000.csv` and so on.
    pub dir: PathBuf,
    /// Which of the two resolutions of requests and runtimes.
    pub unit: Unit,
    /// Which part.
    pub window: Window,
    /// Runtime in milliseconds and memory in mebibytes, where the trace tells neither (the public
    /// one).
    pub fixed: Option<(u32, u32)>,
}

/// Values of a metric by function, with the unit of the window that each belongs to.
type Metric = BTreeMap<String, Vec<(usize, f64)>>;

/// Converts into the directory `to`, which is made. Functions without requests, runtimes or memory in
/// the window are left out. Memory is that of an instance, if `instances_minute` is there, and else
/// that of all instances together, as the original's converter takes it.
///
/// # Errors
/// By file, line and column; when nothing is left; when files cannot be written.
pub fn huawei_tables(huawei: &Huawei, to: &Path) -> Result<Converted, TraceError> {
    let units = units(huawei.unit, huawei.window);
    if units > MOST_UNITS {
        let text = format!("{units} columns: {MOST_UNITS} at most");
        return Err(TraceError::Absurd(text));
    }
    let (requests, delay) = match huawei.unit {
        Unit::Minute => ("requests_minute", "function_delay_minute"),
        Unit::Second => ("requests_second", "function_delay_second"),
    };
    let counted = read(huawei, requests, huawei.unit, count)?;
    let mut functions: BTreeMap<String, Function> = BTreeMap::new();
    for (name, values) in counted {
        let mut counts = vec![0; units];
        values.iter().for_each(|(at, value)| counts[*at] = whole(*value));
        functions.insert(name, Function { counts, runtimes: Vec::new(), memory: Vec::new() });
    }
    if let Some((runtime_ms, memory_mib)) = huawei.fixed {
        for function in functions.values_mut() {
            function.runtimes = vec![f64::from(runtime_ms)];
            function.memory = vec![f64::from(memory_mib)];
        }
    } else {
        let delays = read(huawei, delay, huawei.unit, amount)?;
        let mut memory = read(huawei, "memory_limit_minute", Unit::Minute, amount)?;
        if huawei.dir.join("instances_minute").is_dir() {
            let instances = read(huawei, "instances_minute", Unit::Minute, amount)?;
            memory.iter_mut().for_each(|(name, values)| share(values, instances.get(name)));
        }
        for (name, function) in &mut functions {
            let values =
                |of: &Metric| of.get(name).into_iter().flatten().map(|(_, v)| *v).collect();
            (function.runtimes, function.memory) = (values(&delays), values(&memory));
        }
    }
    let all = functions.len();
    functions.retain(|_, function| function.is_known());
    if functions.is_empty() {
        let problem = format!(
            "no function has requests, runtimes and memory in the window; {all} have requests"
        );
        return Err(TraceError::File { path: huawei.dir.clone(), problem });
    }
    let failed = |source| TraceError::Write { path: to.to_owned(), source };
    std::fs::create_dir_all(to).map_err(failed)?;
    write(to, &functions, units).map_err(failed)?;
    let invocations = functions.values().flat_map(|f| &f.counts).map(|n| u64::from(*n)).sum();
    let left_out = all - functions.len();
    Ok(Converted { functions: functions.len(), invocations, left_out, moved: 0 })
}

struct Function {
    counts: Vec<u32>,
    runtimes: Vec<f64>,
    memory: Vec<f64>,
}

impl Function {
    fn is_known(&self) -> bool {
        !self.runtimes.is_empty() && !self.memory.is_empty()
    }
}

fn units(unit: Unit, window: Window) -> usize {
    usize::try_from(window.minutes * 60 / unit.length().as_secs()).unwrap_or(usize::MAX)
}

/// Each value by what there were instances in the same minute; without any, it is not known.
fn share(values: &mut Vec<(usize, f64)>, instances: Option<&Vec<(usize, f64)>>) {
    let instances: BTreeMap<usize, f64> = instances.into_iter().flatten().copied().collect();
    let one = |(at, value): &(usize, f64)| {
        let count = instances.get(at).filter(|count| **count > 0.0)?;
        Some((*at, value / count))
    };
    *values = values.iter().filter_map(one).collect();
}

/// A number.
fn amount(line: &Line<'_>, column: usize) -> Result<f64, TraceError> {
    line.amount(column)
}

/// A number of requests.
fn count(line: &Line<'_>, column: usize) -> Result<f64, TraceError> {
    let value = line.amount(column)?;
    if value.fract() == 0.0 && value <= f64::from(u32::MAX) {
        Ok(value)
    } else {
        Err(line.wrong(column, &format!("{value} is no number of requests")))
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`count` has looked")]
fn whole(value: f64) -> u32 {
    value as u32
}

/// The values of a metric within the window; empty fields and `NaN` are none.
fn read(
    huawei: &Huawei,
    metric: &str,
    unit: Unit,
    value: impl Fn(&Line<'_>, usize) -> Result<f64, TraceError>,
) -> Result<Metric, TraceError> {
    let (window, step) = (huawei.window, unit.length().as_secs());
    let mut all = Metric::new();
    let mut seen = vec![false; units(unit, window)];
    for day in window.start_s / 86_400..=(window.end_s() - 1) / 86_400 {
        let table = Table::open(&day_file(&huawei.dir.join(metric), day))?;
        let time = table.column("time")?;
        let functions: Vec<(usize, String)> = table
            .headings()
            .iter()
            .enumerate()
            .filter(|(_, heading)| !matches!(heading.as_str(), "time" | "day" | ""))
            .map(|(column, heading)| (column, heading.clone()))
            .collect();
        functions.iter().try_for_each(|(column, _)| table.once(*column))?;
        table.each(|line| {
            let at: u64 = line.parse(time, "number of seconds")?;
            if !(window.start_s..window.end_s()).contains(&at) {
                return Ok(());
            }
            let since = at - window.start_s;
            if !since.is_multiple_of(step) {
                return Err(
                    line.wrong(time, &format!("{at} is between two lines of {step} s each"))
                );
            }
            let index = usize::try_from(since / step).unwrap_or(usize::MAX);
            if std::mem::replace(&mut seen[index], true) {
                return Err(line.wrong(time, &format!("{at} is there twice")));
            }
            for (column, name) in &functions {
                let text = line.text(*column);
                if text.is_empty() || text.eq_ignore_ascii_case("nan") {
                    continue;
                }
                let value = value(line, *column)?;
                all.entry(name.clone()).or_default().push((index, value));
            }
            Ok(())
        })?;
    }
    Ok(all)
}

/// The private trace counts days with three digits, the public one with two.
fn day_file(dir: &Path, day: u64) -> PathBuf {
    let [three, two] = [format!("day_{day:03}.csv"), format!("day_{day:02}.csv")];
    let short = dir.join(two);
    if short.exists() { short } else { dir.join(three) }
}

/// As pandas interpolates; `sorted` is not empty.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 ..= last")]
    let below = at.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

fn write(dir: &Path, functions: &BTreeMap<String, Function>, units: usize) -> io::Result<()> {
    let file = |name: &str| Whole::begin(&dir.join(name));
    let percent = |q: f64| (q * 100.0).round();
    let mut invocations = file("invocations.csv")?;
    write!(invocations, "HashOwner,HashApp,HashFunction,Trigger")?;
    for unit in 1..=units {
        write!(invocations, ",{unit}")?;
    }
    writeln!(invocations)?;
    let (mut durations, mut memory) = (file("durations.csv")?, file("memory.csv")?);
    write!(durations, "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum")?;
    for q in RUNTIME_QUANTILES {
        write!(durations, ",percentile_Average_{}", percent(*q))?;
    }
    write!(memory, "HashOwner,HashApp,HashFunction,SampleCount,AverageAllocatedMb")?;
    for q in MEMORY_QUANTILES {
        write!(memory, ",AverageAllocatedMb_pct{}", percent(*q))?;
    }
    writeln!(durations)?;
    writeln!(memory)?;
    for (name, function) in functions {
        write!(invocations, "0,{name},{name},http")?;
        for count in &function.counts {
            write!(invocations, ",{count}")?;
        }
        writeln!(invocations)?;
        let sorted = |values: &[f64]| {
            let mut values = values.to_vec();
            values.sort_by(f64::total_cmp);
            values
        };
        let (runtimes, memories) = (sorted(&function.runtimes), sorted(&function.memory));
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (least, most) = (runtimes[0], runtimes[runtimes.len() - 1]);
        let (average, samples) = (mean(&runtimes), runtimes.len());
        write!(durations, "0,{name},{name},{average},{samples},{least},{most}")?;
        write!(memory, "0,{name},{name},{},{}", memories.len(), mean(&memories))?;
        for q in RUNTIME_QUANTILES {
            write!(durations, ",{}", quantile(&runtimes, *q))?;
        }
        for q in MEMORY_QUANTILES {
            write!(memory, ",{}", quantile(&memories, *q))?;
        }
        writeln!(durations)?;
        writeln!(memory)?;
    }
    all_done([durations, memory], invocations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Source;
    use crate::trace::azure2019;
    use crate::trace::convert::Start;

    fn put(dir: &Path, metric: &str, day: &str, text: &str) {
        let dir = dir.join(metric);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(day), text).unwrap();
    }

    /// Two days' border: the last two minutes of day 0, the first of day 1.
    fn private(dir: &Path) {
        put(
            dir,
            "requests_minute",
            "day_000.csv",
            "day,time,0,1,2,3\n0,86220,9,9,9,9\n0,86280,10,,NaN,5583\n0,86340,20,,10,3552\n",
        );
        put(
            dir,
            "requests_minute",
            "day_001.csv",
            "day,time,0,1,2,3\n1,86400,30.0,,,4254\n1,86460,1,1,1,1\n",
        );
        put(
            dir,
            "function_delay_minute",
            "day_000.csv",
            "day,time,0,1,2,3\n0,86280,10,1,,\n0,86340,20,1,7.5,\n",
        );
        put(dir, "function_delay_minute", "day_001.csv", "day,time,0,1,2,3\n1,86400,30,1,,\n");
        put(
            dir,
            "memory_limit_minute",
            "day_000.csv",
            "day,time,0,1,2,3\n0,86280,400,1,,9\n0,86340,800,1,512,9\n",
        );
        put(dir, "memory_limit_minute", "day_001.csv", "day,time,0,1,2,3\n1,86400,400,1,,9\n");
    }

    fn huawei(dir: &Path, start: &str, minutes: u64) -> Huawei {
        let start: Start = start.parse().unwrap();
        let window = Window::new(start, minutes).unwrap();
        Huawei { dir: dir.to_owned(), unit: Unit::Minute, window, fixed: None }
    }

    #[test]
    fn a_window_over_two_days_becomes_a_trace() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        private(from.path());
        let done = huawei_tables(&huawei(from.path(), "0:23:58", 3), to.path()).unwrap();
        // 1 has no requests, 3 no runtimes.
        let wanted = Converted { functions: 2, invocations: 70, left_out: 1, moved: 0 };
        assert_eq!(done, wanted);
        let functions = azure2019::read(to.path(), 3).unwrap();
        let Source::Counts { counts, stats } = &functions[0].source else { panic!("counts") };
        assert_eq!((&counts[..], stats.mean_runtime_ms), (&[10, 20, 30][..], 20.0));
        assert_eq!((stats.runtime.median(), stats.memory.median()), (20, 400));
        let Source::Counts { counts, .. } = &functions[1].source else { panic!("counts") };
        assert_eq!(counts[..], [0, 10, 0]);

        put(
            from.path(),
            "instances_minute",
            "day_000.csv",
            "day,time,0,1,2,3\n0,86280,1,1,,\n0,86340,4,1,2,\n",
        );
        put(from.path(), "instances_minute", "day_001.csv", "day,time,0,1,2,3\n1,86400,0,1,,\n");
        huawei_tables(&huawei(from.path(), "0:23:58", 3), to.path()).unwrap();
        let text = std::fs::read_to_string(to.path().join("memory.csv")).unwrap();
        // 400 / 1 and 800 / 4; no instance, no value.
        assert!(text.lines().nth(1).unwrap().starts_with("0,0,0,2,300,202,"), "{text}");
        assert!(text.lines().nth(2).unwrap().starts_with("0,2,2,1,256,256,"), "{text}");
    }

    #[test]
    fn the_public_trace_needs_runtime_and_memory_from_outside() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        put(from.path(), "requests_minute", "day_00.csv", "day,time,0\n0,0,3\n0,60,4\n");
        let mut public = huawei(from.path(), "0:00:00", 2);
        assert!(matches!(huawei_tables(&public, to.path()), Err(TraceError::Read { .. })));
        public.fixed = Some((100, 128));
        assert_eq!(huawei_tables(&public, to.path()).unwrap().invocations, 7);
        let functions = azure2019::read(to.path(), 2).unwrap();
        let Source::Counts { stats, .. } = &functions[0].source else { panic!("counts") };
        assert_eq!((stats.runtime.median(), stats.memory.median()), (100, 128));
    }

    #[test]
    fn mistakes_have_a_line_and_a_column() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = || huawei_tables(&huawei(from.path(), "0:23:58", 2), to.path());
        for (metric, text, said) in [
            (
                "requests_minute",
                "day,time,0\n0,86280,x\n",
                "day_000.csv:2: column 3 (\"0\"): \"x\"",
            ),
            ("requests_minute", "day,time,0\n0,86280,1.5\n", "1.5 is no number of requests"),
            ("requests_minute", "day,time,0\n0,86280,-1\n", "day_000.csv:2: column 3"),
            ("requests_minute", "day,time,0\n0,86281,1\n", "day_000.csv:2: column 2"),
            ("requests_minute", "day,time,0\n0,86280,1\n0,86280,1\n", "86280 is there twice"),
            ("requests_minute", "day,minute,0\n", "no column \"time\""),
            ("requests_minute", "day,time,a,b,A\n0,86280,1,2,3\n", "csv:1: column 5 (\"a\")"),
            ("requests_minute", "day,time,0\n0,86280\n", "day_000.csv:2"),
            ("function_delay_minute", "day,time,0\n0,86280,-3\n", "function_delay_minute"),
            ("memory_limit_minute", "day,time,0\n", "no function has"),
        ] {
            private(from.path());
            put(from.path(), metric, "day_000.csv", text);
            let error = run().unwrap_err().to_string();
            assert!(error.contains(said), "{error} for {said}");
        }
    }
}
