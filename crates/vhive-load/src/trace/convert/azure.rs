//! Azure Functions 2019 as it is published: three files a day, of which one tells memory by application.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::path::Path;

use super::{Converted, DAY_S, Window};
use crate::output::field;
use crate::trace::TraceError;
use crate::trace::azure2019::{MEMORY_COLUMNS, RUNTIME_COLUMNS};
use crate::trace::table::{Line, Table};
use crate::trace::whole::{Whole, all_done};

/// The last day of which memory is published.
const LAST_DAY: u64 = 12;
const MINUTES_OF_DAY: u64 = 1440;

/// What of a day is left out, and why; functions where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Not invoked in the window.
    pub idle: u64,
    /// Invoked, but not in the file of durations.
    pub no_runtimes: u64,
    /// Invoked, but of an application that is not in the file of memory.
    pub no_memory: u64,
    /// Invoked, with runtimes of 0 ms on average: none was recorded.
    pub no_time: u64,
    /// Invoked, with figures that cannot be: negative ones, or percentiles that fall.
    pub unusable: u64,
    /// The first place of such figures: file, line and column.
    pub first_unusable: Option<String>,
    /// In the file of durations, but not in that of invocations.
    pub not_invoked: u64,
    /// Lines of a function or application that an earlier line tells of.
    pub repeated: u64,
}

impl LeftOut {
    /// That for people, of which there may be nothing to tell.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let why = self.first_unusable.as_deref().unwrap_or_default();
        let all = [
            (self.idle, "functions left out: not invoked in the window"),
            (self.no_runtimes, "functions left out: not in the file of durations"),
            (self.no_memory, "functions left out: their application is not in the file of memory"),
            (self.no_time, "functions left out: their runtime is 0 ms on average"),
            (self.unusable, "functions left out: their figures cannot be; the first such line: "),
            (self.not_invoked, "functions left out: not in the file of invocations"),
            (self.repeated, "lines left out: the same function or application as before"),
        ];
        let told = all.iter().filter(|(count, _)| *count > 0);
        let end = |text: &str| if text.ends_with(' ') { why } else { "" };
        told.map(|(count, text)| format!("{count} {text}{}", end(text))).collect()
    }
}

/// Converts a part of one day of the published files in `from` into the directory `to`, which is made.
/// The first day of the window is that of the files `d01`. Whatever is not known of a function leaves
/// it out. An application's memory is shared equally among those of its functions that stay, as the
/// original does; unlike there, functions and applications of other owners are not taken for the same.
///
/// # Errors
/// By file, line and column; when the window is not within a day, or nothing is left of it; when files
/// cannot be written.
///
/// # Source
/// `Azure/AzurePublicDataset`, `AzureFunctionsDataset2019.md`; invitro `sampler/preprocess.py`.
pub fn azure_day(
    from: &Path,
    window: Window,
    to: &Path,
) -> Result<(Converted, LeftOut), TraceError> {
    let (day, first) = (window.start_s / DAY_S + 1, window.start_s % DAY_S / 60);
    if first + window.minutes > MINUTES_OF_DAY {
        let text = format!(
            "{} minutes from minute {first} on are more than the day has: the files are of one day",
            window.minutes
        );
        return Err(TraceError::Absurd(text));
    }
    let file = |name: &str| from.join(format!("{name}.anon.d{day:02}.csv"));
    let memory = file("app_memory_percentiles");
    if day > LAST_DAY && !memory.exists() {
        let problem = format!("not there: memory is published of days 1 to {LAST_DAY}");
        return Err(TraceError::File { path: memory, problem });
    }
    let mut known = Known::default();
    known.read_memory(&memory)?;
    known.read_runtimes(&file("function_durations_percentiles"))?;
    let failed = |source| TraceError::Write { path: to.to_owned(), source };
    std::fs::create_dir_all(to).map_err(failed)?;
    let begin = |name: &str| Whole::begin(&to.join(name)).map_err(failed);
    let mut out = begin("invocations.csv")?;
    let counted = file("invocations_per_function_md");
    let part = (first, window.minutes);
    let (kept, invocations) = known.write_counts(&counted, part, (to, &mut out))?;
    if kept.is_empty() {
        let problem = format!("no function is left; {}", known.left_out.notes().join("; "));
        return Err(TraceError::File { path: counted, problem });
    }
    let (mut durations, mut memory) = (begin("durations.csv")?, begin("memory.csv")?);
    known.write_runtimes(&kept, &mut durations).map_err(failed)?;
    known.write_memory(&kept, &mut memory).map_err(failed)?;
    all_done([durations, memory], out).map_err(failed)?;
    let converted = Converted { functions: kept.len(), invocations, left_out: 0, moved: 0 };
    Ok((converted, known.left_out))
}

/// Owner and application.
type AppKey = (String, String);
/// An application, and a function of it.
type FunctionKey = (AppKey, String);

/// What the file of durations tells of a function.
#[derive(Debug)]
enum Runtimes {
    /// From `Average` on, as it is written.
    Told(Vec<String>),
    /// 0 ms on average.
    Zero,
    Unusable,
}

/// What the file of memory tells of an application, and how many of its functions stay.
#[derive(Debug)]
struct App {
    samples: String,
    /// Average and percentiles in MB; none where they cannot be.
    memory: Option<Vec<f64>>,
    functions: u32,
}

#[derive(Debug, Default)]
struct Known {
    apps: HashMap<AppKey, App>,
    runtimes: HashMap<FunctionKey, Runtimes>,
    left_out: LeftOut,
}

/// Columns that name a function's application.
struct Names([usize; 2]);

impl Names {
    fn of(table: &Table) -> Result<Self, TraceError> {
        Ok(Self([table.column("HashOwner")?, table.column("HashApp")?]))
    }

    fn app(&self, line: &Line<'_>) -> AppKey {
        let [owner, app] = self.0.map(|column| line.text(column).to_owned());
        (owner, app)
    }
}

impl Known {
    fn read_memory(&mut self, path: &Path) -> Result<(), TraceError> {
        let table = Table::open(path)?;
        let names = Names::of(&table)?;
        let samples = table.column("SampleCount")?;
        let columns = columns(&table, "AverageAllocatedMb", &MEMORY_COLUMNS)?;
        table.each(|line| {
            let key = names.app(line);
            if self.apps.contains_key(&key) {
                self.left_out.repeated += 1;
                return Ok(());
            }
            let memory = self.figures(line, &columns)?;
            let samples = line.text(samples).to_owned();
            self.apps.insert(key, App { samples, memory, functions: 0 });
            Ok(())
        })
    }

    fn read_runtimes(&mut self, path: &Path) -> Result<(), TraceError> {
        let table = Table::open(path)?;
        let (names, function) = (Names::of(&table)?, table.column("HashFunction")?);
        let checked = columns(&table, "Average", &RUNTIME_COLUMNS)?;
        let [average, rest @ ..] = checked.as_slice() else { return Ok(()) };
        // The least and the most are not always recorded, and nothing is drawn from them.
        let more = ["Count", "Minimum", "Maximum"].map(|name| table.column(name));
        let more: Vec<usize> = more.into_iter().collect::<Result<_, _>>()?;
        let written: Vec<usize> = [*average].iter().chain(&more).chain(rest).copied().collect();
        table.each(|line| {
            let key = (names.app(line), line.text(function).to_owned());
            if self.runtimes.contains_key(&key) {
                self.left_out.repeated += 1;
                return Ok(());
            }
            let runtimes = match self.figures(line, &checked)?.as_deref() {
                None => Runtimes::Unusable,
                Some([0.0, ..]) => Runtimes::Zero,
                Some(_) => {
                    let fields = written.iter().map(|column| field(line.text(*column)));
                    Runtimes::Told(fields.collect())
                }
            };
            self.runtimes.insert(key, runtimes);
            Ok(())
        })
    }

    /// The average and the percentiles of a line; `None` where they are numbers that cannot be.
    fn figures(
        &mut self,
        line: &Line<'_>,
        columns: &[usize],
    ) -> Result<Option<Vec<f64>>, TraceError> {
        let values: Result<Vec<f64>, _> =
            columns.iter().map(|column| line.parse(*column, "number")).collect();
        let values = values?;
        let negative = values.iter().position(|value| !(value.is_finite() && *value >= 0.0));
        let falls = || values[1..].windows(2).position(|two| two[0] > two[1]).map(|at| at + 2);
        let wrong = match negative {
            Some(at) => Some((at, "is not a number from 0 on")),
            None => falls().map(|at| (at, "is less than the percentile before")),
        };
        let Some((at, why)) = wrong else { return Ok(Some(values)) };
        let place = line.wrong(columns[at], &format!("{} {why}", values[at])).to_string();
        self.left_out.first_unusable.get_or_insert(place);
        Ok(None)
    }

    /// Writes the invocations of the functions that stay, and returns those and how many invocations
    /// they have. `window` is its first minute, and how many.
    fn write_counts(
        &mut self,
        path: &Path,
        window: (u64, u64),
        (to, out): (&Path, &mut Whole),
    ) -> Result<(Vec<FunctionKey>, u64), TraceError> {
        let table = Table::open(path)?;
        let (names, function) = (Names::of(&table)?, table.column("HashFunction")?);
        let trigger = table.column("Trigger")?;
        let minutes = (window.0 + 1..=window.0 + window.1).map(|minute| minute.to_string());
        let minutes: Vec<usize> =
            minutes.map(|name| table.column(&name)).collect::<Result<_, _>>()?;
        let failed = |source| TraceError::Write { path: to.to_owned(), source };
        let mut head = "HashOwner,HashApp,HashFunction,Trigger".to_owned();
        (1..=minutes.len()).for_each(|minute| head.push_str(&format!(",{minute}")));
        writeln!(out, "{head}").map_err(failed)?;
        let (mut seen, mut kept, mut invocations) = (HashSet::new(), Vec::new(), 0);
        table.each(|line| {
            let key = (names.app(line), line.text(function).to_owned());
            if !seen.insert(key.clone()) {
                self.left_out.repeated += 1;
                return Ok(());
            }
            let counts: Result<Vec<u32>, _> =
                minutes.iter().map(|column| line.parse(*column, "count")).collect();
            let counts = counts?;
            let all: u64 = counts.iter().copied().map(u64::from).sum();
            if !self.stays(&key, all) {
                return Ok(());
            }
            let ((owner, app), hash) = &key;
            let mut text = [owner.as_str(), app, hash, line.text(trigger)].map(field).join(",");
            counts.iter().for_each(|count| text.push_str(&format!(",{count}")));
            writeln!(out, "{text}").map_err(failed)?;
            kept.push(key);
            invocations += all;
            Ok(())
        })?;
        let missing = self.runtimes.keys().filter(|key| !seen.contains(*key)).count();
        self.left_out.not_invoked = missing as u64;
        Ok((kept, invocations))
    }

    /// Whether a function of so many invocations stays; counts it either way.
    fn stays(&mut self, key: &FunctionKey, invocations: u64) -> bool {
        let left_out = &mut self.left_out;
        let app = self.apps.get_mut(&key.0);
        let counted = match (self.runtimes.get(key), app) {
            _ if invocations == 0 => &mut left_out.idle,
            (None, _) => &mut left_out.no_runtimes,
            (Some(Runtimes::Zero), _) => &mut left_out.no_time,
            (_, None) => &mut left_out.no_memory,
            (Some(Runtimes::Unusable), _) | (_, Some(App { memory: None, .. })) => {
                &mut left_out.unusable
            }
            (Some(Runtimes::Told(_)), Some(app)) => {
                app.functions += 1;
                return true;
            }
        };
        *counted += 1;
        false
    }

    fn write_runtimes(&self, kept: &[FunctionKey], out: &mut Whole) -> io::Result<()> {
        write!(out, "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum")?;
        writeln!(out, ",{}", RUNTIME_COLUMNS.join(","))?;
        for key in kept {
            if let Some(Runtimes::Told(fields)) = self.runtimes.get(key) {
                writeln!(out, "{},{}", named(key), fields.join(","))?;
            }
        }
        Ok(())
    }

    fn write_memory(&self, kept: &[FunctionKey], out: &mut Whole) -> io::Result<()> {
        write!(out, "HashOwner,HashApp,HashFunction,SampleCount,AverageAllocatedMb")?;
        writeln!(out, ",{}", MEMORY_COLUMNS.join(","))?;
        for key in kept {
            if let Some(App { samples, memory: Some(all), functions }) = self.apps.get(&key.0) {
                write!(out, "{},{}", named(key), field(samples))?;
                for value in all {
                    write!(out, ",{}", value / f64::from(*functions))?;
                }
                writeln!(out)?;
            }
        }
        Ok(())
    }
}

/// The columns of an average and its percentiles.
fn columns(table: &Table, average: &str, names: &[&str]) -> Result<Vec<usize>, TraceError> {
    [average].iter().chain(names).map(|name| table.column(name)).collect()
}

fn named(((owner, app), function): &FunctionKey) -> String {
    [owner, app, function].map(|text| field(text)).join(",")
}

#[cfg(test)]
mod tests;
