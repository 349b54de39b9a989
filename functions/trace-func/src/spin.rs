//! Work by amount: how many turns a millisecond is, found once, and how far off that is later.

use std::time::{Duration, Instant};

use vhive_function::host::{thread_cpu_time, turn};

/// Rounds of the calibration; the fastest counts, because whatever disturbs only makes one longer.
const ROUNDS: usize = 5;
/// CPU time of a round, at least.
const ROUND: Duration = Duration::from_millis(2);
/// Turns of the first attempt at a round; it doubles until a round is long enough.
const FIRST: u64 = 20_000;

/// How fast this CPU was when it was asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace {
    /// Turns in a millisecond of CPU time.
    pub(crate) per_ms: f64,
}

/// Of a machine whose clocks all stand still.
const SLOWEST: Pace = Pace { per_ms: 1.0 };

impl Pace {
    /// Finds it: some ten milliseconds of work. By this thread's CPU time, unless that comes in ticks longer
    /// than the work, as gVisor's does (10 ms); then by the time that passes.
    pub(crate) fn find() -> Self {
        let begun = Instant::now();
        Self::by(thread_cpu_time).or_else(|| Self::by(|| begun.elapsed())).unwrap_or(SLOWEST)
    }

    /// None if the clock stands still during a round.
    fn by(clock: impl Fn() -> Duration) -> Option<Self> {
        let time_of = |turns| {
            let begun = clock();
            turn(turns);
            Some(clock().saturating_sub(begun)).filter(|took| !took.is_zero())
        };
        let mut turns = FIRST;
        let mut took = time_of(turns)?;
        while took < ROUND && turns < u64::MAX / 2 {
            turns *= 2;
            took = time_of(turns)?;
        }
        let fastest =
            (1..ROUNDS).try_fold(took, |least, _| time_of(turns).map(|t| t.min(least)))?;
        Some(Self { per_ms: turns as f64 / (fastest.as_secs_f64() * 1e3) })
    }

    /// Turns that take so long at this pace.
    pub(crate) fn turns(self, ms: u64) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates"
        )]
        let turns = (ms as f64 * self.per_ms) as u64;
        turns
    }

    /// Does the work of so many milliseconds at this pace; returns the CPU time that it took.
    pub(crate) fn spin(self, ms: u64) -> Duration {
        time_of(self.turns(ms))
    }
}

/// How much longer than it should the work took, in per cent; absent of no work.
pub(crate) fn drift_percent(ms: u64, took: Duration) -> Option<f64> {
    (ms > 0).then(|| (took.as_secs_f64() * 1e3 / ms as f64 - 1.0) * 100.0)
}

fn time_of(turns: u64) -> Duration {
    let begun = thread_cpu_time();
    turn(turns);
    thread_cpu_time().saturating_sub(begun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_that_of_the_time_asked_for() {
        let pace = Pace::find();
        assert!(pace.per_ms > 100.0, "{pace:?}");
        assert_eq!(pace.turns(0), 0);
        assert!(pace.turns(40).abs_diff(2 * pace.turns(20)) <= 1);
        // The fastest of five rounds is the pace, so nothing takes much less; more is the machine's affair.
        let took = pace.spin(20);
        assert!(took > Duration::from_millis(10), "{took:?} at {pace:?}");
    }

    #[test]
    fn a_clock_of_ticks_is_no_measure() {
        let begun = Instant::now();
        let ticks = || Duration::from_secs(begun.elapsed().as_secs());
        assert_eq!(Pace::by(ticks), None);
        // However it is found, it is a number.
        let passing = Pace::by(|| begun.elapsed()).expect("it does not stand still");
        assert!(passing.per_ms.is_finite() && passing.per_ms > 100.0, "{passing:?}");
    }

    #[test]
    fn drift_is_what_is_over_or_missing() {
        assert_eq!(drift_percent(0, Duration::from_millis(5)), None);
        assert_eq!(drift_percent(20, Duration::from_millis(20)), Some(0.0));
        assert_eq!(drift_percent(20, Duration::from_millis(30)), Some(50.0));
        assert_eq!(drift_percent(20, Duration::from_millis(15)), Some(-25.0));
    }
}
