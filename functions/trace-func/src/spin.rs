//! Work by amount: how many turns a millisecond is, found before the function listens and corrected by whatever
//! turns out faster, and how far off that is.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vhive_function::host::{thread_cpu_time, turn};

/// Rounds of the calibration; the fastest counts, because whatever disturbs only makes one longer.
const ROUNDS: usize = 5;
/// CPU time of a round, at least, and of a slice of the work.
const ROUND: Duration = Duration::from_millis(2);
/// Turns of the first attempt at a round; it doubles until a round is long enough.
const FIRST: u64 = 20_000;
/// Turns in a millisecond of a machine whose clocks all stand still.
const SLOWEST: f64 = 1.0;

/// How fast this CPU is: as fast as it has ever been seen.
///
/// A calibration of ten milliseconds may fall into a time when others use the core, all of it. What is slow
/// then is not the CPU, so every later slice of work that is faster corrects it. Nothing makes it slower.
pub(crate) struct Pace {
    /// Turns in a millisecond of CPU time, the bits of an `f64`; those of positive numbers are in their order.
    per_ms: AtomicU64,
    clock: Clock,
}

/// CPU time of the calling thread, or what must do instead.
type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

impl Pace {
    /// Finds it: some ten milliseconds of work. By this thread's CPU time, unless that comes in ticks longer
    /// than the work, as gVisor's does (10 ms); then by the time that passes.
    pub(crate) fn find() -> Self {
        let begun = Instant::now();
        let passing = move || begun.elapsed();
        let by_cpu_time = Self::by(Box::new(thread_cpu_time));
        by_cpu_time.or_else(|| Self::by(Box::new(passing))).unwrap_or_else(|| Self {
            per_ms: AtomicU64::new(SLOWEST.to_bits()),
            clock: Box::new(passing),
        })
    }

    /// None if the clock stands still during a round.
    fn by(clock: Clock) -> Option<Self> {
        let mut turns = FIRST;
        let mut took = time_of(turns, &clock)?;
        while took < ROUND && turns < u64::MAX / 2 {
            turns *= 2;
            took = time_of(turns, &clock)?;
        }
        let fastest =
            (1..ROUNDS).try_fold(took, |least, _| time_of(turns, &clock).map(|t| t.min(least)))?;
        Some(Self { per_ms: AtomicU64::new(rate(turns, fastest).to_bits()), clock })
    }

    /// Turns in a millisecond of CPU time, as far as is known.
    pub(crate) fn per_ms(&self) -> f64 {
        f64::from_bits(self.per_ms.load(Ordering::Relaxed))
    }

    /// Does the work of so many milliseconds at this pace; returns the CPU time that it took.
    ///
    /// It is done in slices. From a slice that was faster than the pace on, the work is that of the new pace,
    /// of this slice too.
    pub(crate) fn spin(&self, ms: u64) -> Duration {
        let begun = thread_cpu_time();
        let slice_ms = ROUND.as_secs_f64() * 1e3;
        let mut left_ms = ms as f64;
        while left_ms > 0.0 {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "`as` saturates"
            )]
            let turns = ((left_ms.min(slice_ms) * self.per_ms()) as u64).max(1);
            let took = time_of(turns, &self.clock);
            // A shorter one is measured too badly.
            if left_ms >= slice_ms
                && let Some(took) = took
            {
                self.per_ms.fetch_max(rate(turns, took).to_bits(), Ordering::Relaxed);
            }
            left_ms -= turns as f64 / self.per_ms();
        }
        thread_cpu_time().saturating_sub(begun)
    }
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace").field("per_ms", &self.per_ms()).finish_non_exhaustive()
    }
}

/// Turns in a millisecond.
fn rate(turns: u64, took: Duration) -> f64 {
    turns as f64 / (took.as_secs_f64() * 1e3)
}

/// None if the clock stood still.
fn time_of(turns: u64, clock: &Clock) -> Option<Duration> {
    let begun = clock();
    turn(turns);
    Some(clock().saturating_sub(begun)).filter(|took| !took.is_zero())
}

/// How much longer than it should the work took, in per cent; absent of no work.
pub(crate) fn drift_percent(ms: u64, took: Duration) -> Option<f64> {
    (ms > 0).then(|| (took.as_secs_f64() * 1e3 / ms as f64 - 1.0) * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_that_of_the_time_asked_for() {
        let pace = Pace::find();
        assert!(pace.per_ms() > 100.0, "{pace:?}");
        // Nothing is faster than the fastest that was seen; more is the machine's affair.
        let took = pace.spin(20);
        assert!(took >= Duration::from_millis(19), "{took:?} at {pace:?}");
        assert_eq!(pace.spin(0).as_millis(), 0);
    }

    #[test]
    fn a_calibration_that_was_disturbed_is_corrected_by_the_work() {
        let found = Pace::find();
        let slow = || Pace {
            per_ms: AtomicU64::new((found.per_ms() / 4.0).to_bits()),
            clock: Box::new(thread_cpu_time),
        };
        // Whatever shares the core may disturb the work too; not all of many.
        let corrected = (0..20).any(|_| {
            let pace = slow();
            let took = pace.spin(40);
            took >= Duration::from_millis(35) && pace.per_ms() > found.per_ms() / 3.0
        });
        assert!(corrected, "{found:?}");
    }

    #[test]
    fn nothing_makes_the_pace_slower() {
        let found = Pace::find();
        let quick_per_ms = found.per_ms() * 8.0;
        let quick = Pace { per_ms: AtomicU64::new(quick_per_ms.to_bits()), ..found };
        quick.spin(8);
        assert!(quick.per_ms() >= quick_per_ms, "{quick:?}");
    }

    #[test]
    fn a_clock_of_ticks_is_no_measure() {
        let begun = Instant::now();
        let ticks = move || Duration::from_secs(begun.elapsed().as_secs());
        assert!(Pace::by(Box::new(ticks)).is_none());
        // However it is found, it is a number.
        let passing = Pace::by(Box::new(move || begun.elapsed())).expect("it does not stand still");
        assert!(passing.per_ms().is_finite() && passing.per_ms() > 100.0, "{passing:?}");
        // A clock that stands still later teaches nothing.
        let still = Pace { clock: Box::new(|| Duration::ZERO), ..passing };
        let before = still.per_ms();
        still.spin(4);
        assert!(still.per_ms() <= before, "{still:?}");
    }

    #[test]
    fn drift_is_what_is_over_or_missing() {
        assert_eq!(drift_percent(0, Duration::from_millis(5)), None);
        assert_eq!(drift_percent(20, Duration::from_millis(20)), Some(0.0));
        assert_eq!(drift_percent(20, Duration::from_millis(30)), Some(50.0));
        assert_eq!(drift_percent(20, Duration::from_millis(15)), Some(-25.0));
    }
}
