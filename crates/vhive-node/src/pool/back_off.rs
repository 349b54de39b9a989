//! How long to wait after failures: doubling, bounded, counted once per burst.

use std::time::{Duration, Instant};

/// A gate that each failure closes for longer, until a success opens it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackOff {
    first: Duration,
    most: Duration,
    failures: u32,
    /// Grows with every counted failure; what began in an earlier era does not count again.
    era: u64,
    until: Option<Instant>,
}

impl BackOff {
    /// Closed for `first` after one failure, twice that after the next, never longer than `most`.
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0, era: 0, until: None }
    }

    /// The present era: to be kept with what may fail.
    pub(crate) fn era(&self) -> u64 {
        self.era
    }

    /// Failures in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Something that began in `era` failed.
    pub(crate) fn fail(&mut self, era: u64, now: Instant) {
        if era != self.era {
            return;
        }
        self.era += 1;
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        let wait = self.first.saturating_mul(factor).min(self.most);
        self.until = now.checked_add(wait);
    }

    /// Something succeeded.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
        self.until = None;
    }

    /// When the gate opens, if it is closed.
    pub(crate) fn closed_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_a_bound_and_counts_a_burst_once() {
        let now = Instant::now();
        let mut gate = BackOff::new(Duration::from_secs(1), Duration::from_secs(60));
        for secs in [1, 2, 4, 8, 16, 32, 60, 60] {
            let era = gate.era();
            for _ in 0..200 {
                gate.fail(era, now);
            }
            assert_eq!(gate.closed_until(now), Some(now + Duration::from_secs(secs)));
        }
        assert_eq!(gate.closed_until(now + Duration::from_secs(60)), None);
        gate.reset();
        assert_eq!((gate.closed_until(now), gate.failures()), (None, 0));
    }
}
