//! Traces made up: a ladder of rates, a sweep over functions, bursts; written as Azure 2019's.
//!
//! # Source
//! invitro `tools/trace_synthesizer/synthesizer.py`, whose modes 0, 1 and 2 these are.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::str::FromStr;

use super::TraceError;

/// Columns of a day.
const MINUTES: usize = 1440;
/// Minutes after which a sweep comes round.
const ROUND: usize = 10;

/// The shape of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every function climbs from one rate to another.
    Normal,
    /// Each function is invoked once every ten minutes, a tenth of them in each minute.
    Sweep,
    /// All functions are invoked once in every third minute, together.
    Burst,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "0" | "normal" => Ok(Self::Normal),
            "1" | "sweep" => Ok(Self::Sweep),
            "2" | "burst" => Ok(Self::Burst),
            _ => Err("known are 0 `normal`, 1 `sweep` and 2 `burst`".to_owned()),
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
        };
        if counts.len() > MINUTES {
            return absurd("the trace is longer than a day");
        }
        counts.resize(MINUTES, 0);
        Ok(counts)
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
        let file = |name: &str| File::create(dir.join(name)).map(BufWriter::new);
        let mut invocations = file("invocations.csv")?;
        write!(invocations, "HashOwner,HashApp,HashFunction,Trigger")?;
        for minute in 1..=MINUTES {
            write!(invocations, ",{minute}")?;
        }
        writeln!(invocations)?;
        let (mut durations, mut memory) = (file("durations.csv")?, file("memory.csv")?);
        write!(durations, "HashOwner,HashApp,HashFunction,Average,Count,Minimum,Maximum")?;
        let runtimes = [0, 1, 25, 50, 75, 99, 100];
        put_all(&mut durations, runtimes.map(|p| format!("percentile_Average_{p}")))?;
        write!(memory, "HashOwner,HashApp,HashFunction,SampleCount,AverageAllocatedMb")?;
        let sizes = [1, 5, 25, 50, 75, 95, 99, 100];
        put_all(&mut memory, sizes.map(|p| format!("AverageAllocatedMb_pct{p}")))?;
        for function in 0..self.functions {
            let key = format!("owner{function},app{function},function{function}");
            write!(invocations, "{key},http")?;
            put_all(&mut invocations, self.counts(function).unwrap_or_default())?;
            let runtime = self.runtime_ms;
            write!(durations, "{key},{runtime},1,{runtime},{runtime}")?;
            put_all(&mut durations, runtimes.map(|_| runtime))?;
            write!(memory, "{key},1,{}", self.memory_mib)?;
            put_all(&mut memory, sizes.map(|_| self.memory_mib))?;
        }
        invocations.flush()?;
        durations.flush()?;
        memory.flush()
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
