//! Traces made up: a ladder of rates, a sweep over functions, bursts, a day in the published shape;
//! written as Azure 2019's.
//!
//! # Source
//! invitro `tools/trace_synthesizer/synthesizer.py`, whose modes 0, 1 and 2 the first three are; the
//! fourth is ours ([`day`](super::day)).

use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;

use super::TraceError;
use super::day::Day;
use super::whole::{Whole, all_done};

/// Columns of a day.
const MINUTES: usize = 1440;
/// Minutes after which a sweep comes round.
const ROUND: usize = 10;

/// Percentiles that are written.
const RUNTIMES: [u32; 7] = [0, 1, 25, 50, 75, 99, 100];
const SIZES: [u32; 8] = [1, 5, 25, 50, 75, 95, 99, 100];

/// The shape of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every function climbs from one rate to another.
    Normal,
    /// Each function is invoked once every ten minutes, a tenth of them in each minute.
    Sweep,
    /// All functions are invoked once in every third minute, together.
    Burst,
    /// Few functions have most invocations, as in a day of Azure Functions.
    Day,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "0" | "normal" => Ok(Self::Normal),
            "1" | "sweep" => Ok(Self::Sweep),
            "2" | "burst" => Ok(Self::Burst),
            "day" => Ok(Self::Day),
            _ => Err("known are 0 `normal`, 1 `sweep`, 2 `burst` and `day`".to_owned()),
        }
    }
}

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synth {
    /// Functions.
    pub functions: usize,
    /// First rate per function, a second.
    pub beginning: u32,
    /// Last one.
    pub target: u32,
    /// From one to the next.
    pub step: u32,
    /// Minutes of each rate; of sweep and burst, of all.
    pub minutes: usize,
    /// Every invocation's, in milliseconds.
    pub runtime_ms: u32,
    /// Likewise, in mebibytes.
    pub memory_mib: u32,
    /// The shape.
    pub mode: Mode,
    /// Of a day: about so many invocations in all; none = what the shape has.
    pub invocations: Option<u64>,
    /// Of a day.
    pub seed: u64,
}

/// What is written of one function.
struct Made {
    trigger: &'static str,
    counts: Vec<u32>,
    /// Average and percentiles, in milliseconds.
    runtime: (u64, Vec<u64>),
    /// Likewise, in mebibytes.
    memory: (u64, Vec<u64>),
}

impl Synth {
    /// Invocations of a function in each minute of a day.
    ///
    /// # Errors
    /// When rates and times make no day.
    pub fn counts(&self, function: usize) -> Result<Vec<u32>, TraceError> {
        let absurd = |text: &str| Err(TraceError::Absurd(text.to_owned()));
        if self.functions == 0 || self.minutes == 0 {
            return absurd("at least one function and one minute are needed");
        }
        let mut counts: Vec<u32> = match self.mode {
            Mode::Normal => {
                if self.step == 0 || self.beginning > self.target {
                    return absurd(
                        "the rate climbs from the beginning to the target by steps above 0",
                    );
                }
                let step = usize::try_from(self.step).unwrap_or(usize::MAX);
                let rates = (self.beginning..=self.target).step_by(step);
                let most = MINUTES / self.minutes + 1;
                let minute = |rate: u32| std::iter::repeat_n(rate.saturating_mul(60), self.minutes);
                rates.take(most).flat_map(minute).collect()
            }
            Mode::Sweep => {
                let place = function * ROUND / self.functions;
                let rounds = self.minutes / ROUND * ROUND;
                (0..rounds).map(|minute| u32::from(minute % ROUND == place)).collect()
            }
            Mode::Burst => {
                (0..self.minutes / 3 * 3).map(|minute| u32::from(minute % 3 == 0)).collect()
            }
            Mode::Day => self.of_day(&self.day(), function).counts,
        };
        if counts.len() > MINUTES {
            return absurd("the trace is longer than a day");
        }
        counts.resize(MINUTES, 0);
        Ok(counts)
    }

    fn day(&self) -> Day {
        Day::new(self.functions, self.invocations, self.seed)
    }

    fn of_day(&self, day: &Day, function: usize) -> Made {
        let one = day.function(function);
        let (runtime, memory) = (&one.stats.runtime, &one.stats.memory);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "up to a minute"
        )]
        let average = one.stats.mean_runtime_ms as u64;
        Made {
            trigger: if one.is_timed() { "timer" } else { "http" },
            counts: one.counts((self.seed, function), MINUTES),
            runtime: (average, runtime.values().to_vec()),
            memory: (memory.median(), memory.values().to_vec()),
        }
    }

    /// The same runtime and memory whatever happens.
    fn of_shape(&self, function: usize) -> Made {
        let (runtime, memory) = (self.runtime_ms.into(), self.memory_mib.into());
        Made {
            trigger: "http",
            counts: self.counts(function).unwrap_or_default(),
            runtime: (runtime, vec![runtime; RUNTIMES.len()]),
            memory: (memory, vec![memory; SIZES.len()]),
        }
    }

    /// Writes the three files into `dir`, which is made.
    ///
    /// # Errors
    /// When numbers make no trace or files cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), TraceError> {
        self.counts(0)?;
        let failed = |source| TraceError::Write { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        self.write_files(dir).map_err(failed)
    }

    fn write_files(&self, dir: &Path) -> io::Result<()> {
        let file = |name: &str| Whole::begin(&dir.join(name));
        let mut invocations = file("invocations.csv")?;
        write!(invocations, "HashOwner,HashApp,HashFunction,Trigger")?;
        for minute in 1..=MINUTES {
            write!(invocations, ",{minute}")?;
        }
        writeln!(invocations)?;
        let (mut durations, mut memory) = (file("durations.csv")?, file("memory.csv")?);
        write!(durations, "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum")?;
        put_all(&mut durations, RUNTIMES.map(|p| format!("percentile_Average_{p}")))?;
        write!(memory, "HashOwner,HashApp,HashFunction,SampleCount,AverageAllocatedMb")?;
        put_all(&mut memory, SIZES.map(|p| format!("AverageAllocatedMb_pct{p}")))?;
        let day = (self.mode == Mode::Day).then(|| self.day());
        for function in 0..self.functions {
            let made = match &day {
                Some(day) => self.of_day(day, function),
                None => self.of_shape(function),
            };
            let key = format!("owner{function},app{function},function{function}");
            write!(invocations, "{key},{}", made.trigger)?;
            put_all(&mut invocations, made.counts)?;
            let (average, all) = made.runtime;
            let least = all.first().copied().unwrap_or(average);
            let most = all.last().copied().unwrap_or(average);
            write!(durations, "{key},{average},1,{least},{most}")?;
            put_all(&mut durations, all)?;
            write!(memory, "{key},1,{}", made.memory.0)?;
            put_all(&mut memory, made.memory.1)?;
        }
        all_done([durations, memory], invocations)
    }
}

/// The fields that end a line.
fn put_all<T: ToString>(out: &mut impl Write, all: impl IntoIterator<Item = T>) -> io::Result<()> {
    for one in all {
        write!(out, ",{}", one.to_string())?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Source, azure2019};

    const LADDER: Synth = Synth {
        functions: 20,
        beginning: 1,
        target: 5,
        step: 2,
        minutes: 2,
        runtime_ms: 100,
        memory_mib: 64,
        mode: Mode::Normal,
        invocations: None,
        seed: 1,
    };

    #[test]
    fn a_ladder_climbs_and_ends_in_silence() {
        let counts = LADDER.counts(3).unwrap();
        assert_eq!((counts.len(), &counts[..7]), (1440, &[60, 60, 180, 180, 300, 300, 0][..]));
    }

    #[test]
    fn a_sweep_spreads_and_a_burst_gathers() {
        let sweep = Synth { mode: Mode::Sweep, minutes: 20, ..LADDER };
        let per_minute: Vec<u32> =
            (0..20).map(|minute| (0..20).map(|f| sweep.counts(f).unwrap()[minute]).sum()).collect();
        assert_eq!(per_minute, [2; 20]);
        let burst = Synth { mode: Mode::Burst, minutes: 7, ..LADDER };
        assert_eq!(burst.counts(9).unwrap()[..7], [1, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn what_is_written_is_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        LADDER.write(dir.path()).unwrap();
        let functions = azure2019::read(dir.path(), 6).unwrap();
        assert_eq!(functions.len(), 20);
        let Source::Counts { counts, stats } = &functions[19].source else { panic!("counts") };
        assert_eq!(counts[..], [60, 60, 180, 180, 300, 300]);
        assert_eq!((stats.runtime.median(), stats.memory.median()), (100, 64));
    }

    #[test]
    fn a_day_has_its_total_and_few_functions_have_most_of_it() {
        let day = Synth { mode: Mode::Day, functions: 400, invocations: Some(3_000_000), ..LADDER };
        let dir = tempfile::tempdir().unwrap();
        day.write(dir.path()).unwrap();
        let mut sums = Vec::new();
        azure2019::each(dir.path(), 1440, |function| {
            let Source::Counts { counts, .. } = &function.source else { panic!("counts") };
            assert_eq!(*counts, day.counts(sums.len()).unwrap());
            sums.push(counts.iter().map(|count| u64::from(*count)).sum::<u64>());
        })
        .unwrap();
        let total: u64 = sums.iter().sum();
        assert!((total as f64 / 3e6 - 1.0).abs() < 0.05, "{total}");
        sums.sort_unstable_by(|a, b| b.cmp(a));
        let most: u64 = sums[..20].iter().sum();
        assert!(most as f64 > 0.75 * total as f64, "{most} of {total}");
    }

    #[test]
    fn absurd_numbers_are_refused() {
        for bad in [
            Synth { step: 0, ..LADDER },
            Synth { beginning: 9, ..LADDER },
            Synth { minutes: 0, ..LADDER },
            Synth { minutes: 2000, mode: Mode::Burst, ..LADDER },
        ] {
            assert!(bad.counts(0).is_err(), "{bad:?}");
        }
    }
}
