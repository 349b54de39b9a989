//! How many VMMs a revision wants spawned ahead.

use std::time::{Duration, Instant};

/// Starts that follow each other within this time are one burst.
const BURST_GAP: Duration = Duration::from_secs(1);
/// How long a burst is remembered.
const MEMORY: Duration = Duration::from_mins(10);

/// The starts of one revision: as many VMMs as its largest burst of late are worth having.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    last: Instant,
    burst: usize,
    peak: usize,
    peak_at: Instant,
}

impl Demand {
    /// The first start.
    pub(super) const fn new(now: Instant) -> Self {
        Self { last: now, burst: 1, peak: 1, peak_at: now }
    }

    /// A further start.
    pub(super) fn add(&mut self, now: Instant) {
        let same = now.saturating_duration_since(self.last) < BURST_GAP;
        self.burst = if same { self.burst + 1 } else { 1 };
        self.last = now;
        if self.burst >= self.wanted(now) {
            (self.peak, self.peak_at) = (self.burst, now);
        }
    }

    /// How many are wanted, at least one.
    pub(super) fn wanted(&self, now: Instant) -> usize {
        if now.saturating_duration_since(self.peak_at) < MEMORY { self.peak } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_burst_of_late_is_wanted() {
        let begin = Instant::now();
        let at = |seconds: f64| begin + Duration::from_secs_f64(seconds);
        let mut demand = Demand::new(at(0.0));
        assert_eq!(demand.wanted(at(0.0)), 1);
        for seconds in [0.1, 0.2, 1.1] {
            demand.add(at(seconds));
        }
        assert_eq!(demand.wanted(at(2.0)), 4, "one burst");
        demand.add(at(100.0));
        demand.add(at(100.5));
        assert_eq!(demand.wanted(at(101.0)), 4, "a smaller one since");
        assert_eq!(demand.wanted(at(601.2)), 1, "long ago");
        demand.add(at(700.0));
        demand.add(at(700.5));
        assert_eq!(demand.wanted(at(701.0)), 2, "the new one counts");
    }
}
