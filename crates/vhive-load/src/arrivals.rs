//! When requests are to be sent: computed ahead, from a rate or from a file.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::clock::nanos;
use crate::rng::Rng;

/// The most arrivals of one schedule: 16 GB of them would not fit anywhere.
const MOST: f64 = 1e9;

/// How the gaps between requests are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrivals {
    /// All the same; the first request at once.
    #[default]
    Fixed,
    /// Exponential: a Poisson process.
    Poisson,
}

impl FromStr for Arrivals {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fixed" => Ok(Self::Fixed),
            "poisson" => Ok(Self::Poisson),
            _ => Err("known are `fixed`, `poisson` and `file:PATH`".to_owned()),
        }
    }
}

/// Why there is no schedule.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The rate is no rate.
    #[error("the rate must be above 0 and at most 10 million a second, not {0}")]
    Rate(f64),
    /// Nothing would be sent, or more than can be held.
    #[error("{rate} requests a second for {seconds} s are {requests:.0} requests: send 1 to 10⁹")]
    Size {
        /// Requests per second.
        rate: f64,
        /// Seconds.
        seconds: f64,
        /// Their product.
        requests: f64,
    },
    /// The file of arrivals cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of it is not understood.
    #[error("{path}:{line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counts from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// Arrivals at a mean rate within `time`, in nanoseconds from the beginning, in order.
///
/// # Errors
/// When rate or time make no sense.
pub fn at_rate(
    kind: Arrivals,
    rate: f64,
    time: Duration,
    seed: u64,
) -> Result<Vec<u64>, ScheduleError> {
    if !(rate > 0.0 && rate <= 1e7) {
        return Err(ScheduleError::Rate(rate));
    }
    let seconds = time.as_secs_f64();
    let requests = rate * seconds;
    if !(requests > 0.0 && requests <= MOST) {
        return Err(ScheduleError::Size { rate, seconds, requests });
    }
    let end = nanos(time);
    let gap = 1e9 / rate;
    let mut rng = Rng::new(seed);
    let mut at = match kind {
        Arrivals::Fixed => 0.0,
        Arrivals::Poisson => gap * rng.exponential(),
    };
    let mut count = 0_u64;
    let next = || {
        let this = whole_nanos(at);
        count += 1;
        at = match kind {
            // From the count: a sum of gaps would drift.
            Arrivals::Fixed => gap * count as f64,
            Arrivals::Poisson => at + gap * rng.exponential(),
        };
        (this < end).then_some(this)
    };
    Ok(std::iter::from_fn(next).collect())
}

/// Reads one arrival per line: seconds from the beginning, in order. Empty lines and those that
/// begin with `#` are skipped.
///
/// # Errors
/// When the file cannot be read, or by file and line.
pub fn from_file(path: &Path) -> Result<Vec<u64>, ScheduleError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ScheduleError::Read { path: path.to_owned(), source })?;
    let bad = |line, problem: String| ScheduleError::Line { path: path.to_owned(), line, problem };
    let mut all: Vec<u64> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let (number, line) = (index + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let seconds: f64 =
            line.parse().map_err(|_| bad(number, format!("{line:?} is no number of seconds")))?;
        if !(0.0..=1e9).contains(&seconds) {
            return Err(bad(number, format!("{seconds} s is not between 0 and 10⁹ s")));
        }
        let at = whole_nanos(seconds * 1e9);
        if all.last().is_some_and(|last| *last > at) {
            return Err(bad(number, format!("{seconds} s is before the line above")));
        }
        all.push(at);
    }
    if all.is_empty() {
        return Err(bad(0, "no arrival".to_owned()));
    }
    Ok(all)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
pub(crate) fn whole_nanos(ns: f64) -> u64 {
    ns.round() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn fixed_arrivals_begin_at_once_and_do_not_drift() {
        let all = at_rate(Arrivals::Fixed, 3.0, SECOND * 1000, 0).unwrap();
        assert_eq!(all.len(), 3000);
        assert_eq!(all[..3], [0, 333_333_333, 666_666_667]);
        assert_eq!(all[2997], 999_000_000_000);
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread() {
        let all = at_rate(Arrivals::Poisson, 1000.0, SECOND * 100, 7).unwrap();
        assert!((99_000..101_000).contains(&all.len()), "{}", all.len());
        let gaps: Vec<f64> = all.windows(2).map(|two| (two[1] - two[0]) as f64 / 1e6).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let squares = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>();
        let deviation = (squares / gaps.len() as f64).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.03, "{mean} {deviation}");
    }

    #[test]
    fn absurd_rates_and_times_are_refused() {
        for (rate, time) in [(0.0, SECOND), (-1.0, SECOND), (f64::NAN, SECOND), (1e9, SECOND)] {
            assert!(matches!(at_rate(Arrivals::Fixed, rate, time, 0), Err(ScheduleError::Rate(_))));
        }
        for (rate, time) in [(1.0, Duration::ZERO), (1e7, SECOND * 1000)] {
            let refused = at_rate(Arrivals::Fixed, rate, time, 0);
            assert!(matches!(refused, Err(ScheduleError::Size { .. })));
        }
    }

    #[test]
    fn a_file_is_read_and_its_mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arrivals");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            from_file(&path)
        };
        assert_eq!(read("# s\n0\n\n0.5\n1e1\n").unwrap(), [0, 500_000_000, 10_000_000_000]);
        for (text, line) in [("0\nx", 2), ("1\n0.5", 2), ("-1", 1), ("inf", 1), ("# none", 0)] {
            let error = read(text).unwrap_err();
            assert!(matches!(error, ScheduleError::Line { line: at, .. } if at == line), "{error}");
        }
    }

    proptest! {
        #[test]
        fn arrivals_are_in_order_and_a_seed_reproduces(
            rate in 0.5_f64..5000.0, millis in 2000_u64..4000, seed: u64,
        ) {
            let time = Duration::from_millis(millis);
            for kind in [Arrivals::Fixed, Arrivals::Poisson] {
                let all = at_rate(kind, rate, time, seed).unwrap();
                prop_assert!(all.windows(2).all(|two| two[0] <= two[1]));
                prop_assert!(all.last().is_none_or(|last| *last < nanos(time)));
                prop_assert_eq!(&all, &at_rate(kind, rate, time, seed).unwrap());
            }
        }
    }
}
