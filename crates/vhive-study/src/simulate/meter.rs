//! What a policy is told of a function's requests: as the node's throttle counts it.

use std::time::Duration;

use vhive_policy::autoscale::Sample;

use super::cell::Ns;

/// Integrates the number of requests over time, and counts them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    in_flight: u32,
    area: Ns,
    changed: Ns,
    sampled: Ns,
    arrivals: u32,
    peak: u32,
    idle_since: Option<Ns>,
    gaps: u32,
    longest_gap: Ns,
}

impl Meter {
    /// Requests in flight or waiting.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    fn advance(&mut self, now: Ns) {
        let since = now - self.changed;
        self.area = self.area.saturating_add(since.saturating_mul(self.in_flight.into()));
        self.changed = now;
    }

    fn begin(&mut self, now: Ns) {
        (self.area, self.sampled) = (0, now);
        (self.arrivals, self.peak) = (0, self.in_flight);
        (self.gaps, self.longest_gap) = (0, 0);
    }

    /// A request comes. If nobody has looked since the last one, a sample begins with it.
    pub(super) fn enter(&mut self, now: Ns, watched: bool) {
        self.advance(now);
        if self.in_flight == 0 {
            if !watched {
                self.begin(now);
            }
            if let Some(idle) = self.idle_since {
                self.gaps = self.gaps.saturating_add(1);
                self.longest_gap = self.longest_gap.max(now - idle);
            }
        }
        self.in_flight += 1;
        self.arrivals = self.arrivals.saturating_add(1);
        self.peak = self.peak.max(self.in_flight);
    }

    /// A request is done.
    pub(super) fn leave(&mut self, now: Ns) {
        self.advance(now);
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.in_flight == 0 {
            self.idle_since = Some(now);
        }
    }

    /// What was seen since the last call.
    pub(super) fn sample(&mut self, now: Ns) -> Sample {
        self.advance(now);
        let busy_until = if self.in_flight > 0 { Some(now) } else { self.idle_since };
        let sample = Sample {
            from: Duration::from_nanos(self.sampled),
            to: Duration::from_nanos(now),
            area: self.area as f64 / 1e9,
            arrivals: self.arrivals,
            peak: self.peak,
            in_flight: self.in_flight,
            busy_until: Duration::from_nanos(busy_until.unwrap_or(self.sampled)),
            gaps: self.gaps,
            longest_gap: Duration::from_nanos(self.longest_gap),
        };
        self.begin(now);
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Ns = 1_000_000_000;

    /// The cases of the throttle's own test.
    #[test]
    fn samples_are_those_of_the_throttle() {
        let mut meter = Meter::default();
        meter.enter(0, true);
        meter.enter(2 * SECOND, true);
        meter.leave(3 * SECOND);
        let sample = meter.sample(4 * SECOND);
        assert_eq!((sample.area, sample.arrivals, sample.peak, sample.in_flight), (5.0, 2, 2, 1));
        assert_eq!((sample.gaps, sample.busy_until), (0, Duration::from_secs(4)));
        meter.leave(5 * SECOND);
        let sample = meter.sample(6 * SECOND);
        assert_eq!((sample.area, sample.arrivals, sample.peak), (1.0, 0, 1));
        assert_eq!(sample.busy_until, Duration::from_secs(5));
        meter.enter(65 * SECOND, false);
        meter.leave(66 * SECOND);
        meter.enter(68 * SECOND, true);
        let sample = meter.sample(70 * SECOND);
        assert_eq!(sample.from, Duration::from_secs(65));
        assert_eq!((sample.area, sample.arrivals, sample.gaps), (3.0, 2, 2));
        assert_eq!(sample.longest_gap, Duration::from_secs(60));
    }
}
