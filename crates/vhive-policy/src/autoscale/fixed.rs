//! Fixed keep-alive: an instance is kept for a time after its last use.

use std::collections::VecDeque;
use std::time::Duration;

use super::decide::count;
use super::sample::next_multiple;
use super::{Bounds, Decision, Moment, Policy, Pool, Rules, Sample};

/// Keeps as many instances as were needed at a time in the last so many minutes.
///
/// Instances are needed for the requests in flight or waiting, [`Rules::total`] at a time each.
/// The n-th instance was last used when n were last needed.
#[derive(Debug)]
pub struct Fixed {
    keep: Duration,
    per_instance: f64,
    activation: u32,
    tick: Duration,
    bounds: Bounds,
    in_flight: u32,
    /// When it was asked last.
    asked: Moment,
    /// Whether it has been asked before. What is there at first counts as just used.
    begun: bool,
    /// Instances needed at a time, descending, and when so many were last needed, ascending.
    used: VecDeque<(u32, Moment)>,
}

impl Fixed {
    /// Keep-alive as the rules say.
    #[must_use]
    pub fn new(rules: &Rules, tick: Duration) -> Self {
        Self {
            keep: rules.keep_alive.0,
            per_instance: rules.total.max(0.01),
            activation: rules.activation,
            tick,
            bounds: Bounds::new(rules),
            in_flight: 0,
            asked: Moment::ZERO,
            begun: false,
            used: VecDeque::new(),
        }
    }

    fn needed(&self, requests: u32) -> u32 {
        match count((f64::from(requests) / self.per_instance).ceil()) {
            0 => 0,
            instances => instances.max(self.activation),
        }
    }

    fn use_until(&mut self, level: u32, last: Moment) {
        if level == 0 {
            return;
        }
        while self.used.back().is_some_and(|(lower, _)| *lower <= level) {
            self.used.pop_back();
        }
        self.used.push_back((level, last));
    }

    /// Instances needed now or within the last `keep`, and when that changes next.
    fn within(&self, keep: Duration, now: Moment) -> (u32, Option<Moment>) {
        let kept = self.used.iter().find(|(_, last)| *last + keep > now);
        let (level, until) = kept.map_or((0, None), |(level, last)| (*level, Some(*last + keep)));
        (level.max(self.needed(self.in_flight)), until)
    }

    /// The decision for a keep-alive of `keep`.
    pub(super) fn keep(&mut self, keep: Duration, now: Moment, pool: &Pool) -> Decision {
        if !self.begun && self.used.is_empty() {
            self.use_until(pool.ready + pool.starting, now);
        }
        self.begun = true;
        self.asked = now;
        let (level, until) = self.within(keep, now);
        self.settle(level, until, (now, pool))
    }

    /// Until when `keep` decides the same, if the requests in flight stay as they are: until so many
    /// instances were last needed too long ago, if the requests need fewer.
    pub(super) fn kept(&self, keep: Duration) -> Option<Moment> {
        if self.in_flight == 0 {
            return None;
        }
        let needed = self.needed(self.in_flight);
        let kept = self.used.iter().find(|(_, last)| *last + keep > self.asked);
        let more = kept.filter(|(level, _)| *level > needed);
        Some(more.map_or(Moment::MAX, |(_, last)| *last + keep))
    }

    /// The decision to have `want` instances until a moment.
    pub(super) fn settle(
        &mut self,
        want: u32,
        until: Option<Moment>,
        (now, pool): (Moment, &Pool),
    ) -> Decision {
        self.bounds.see(pool);
        let next = (self.in_flight > 0).then(|| next_multiple(now, self.tick));
        let again = next.or(until);
        Decision { want: Some(self.bounds.apply(want, pool)), again, figures: None }
    }
}

impl Policy for Fixed {
    fn observe(&mut self, sample: &Sample) {
        self.in_flight = sample.in_flight;
        let level = self.needed(sample.peak.max(sample.in_flight));
        let last = if sample.in_flight > 0 { sample.to } else { sample.busy_until };
        self.use_until(level, last);
    }

    fn decide(&mut self, now: Moment, pool: &Pool) -> Decision {
        while self.used.front().is_some_and(|(_, last)| *last + self.keep <= now) {
            self.used.pop_front();
        }
        self.keep(self.keep, now, pool)
    }

    fn steady(&self) -> Option<Moment> {
        self.kept(self.keep)
    }

    fn forget(&mut self) {
        self.used.clear();
        self.begun = true;
    }
}
