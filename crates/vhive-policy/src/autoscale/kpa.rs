//! Knative's autoscaler as a policy: averages, the decision, what delays it and what bounds it.

use std::time::Duration;

use super::decide::exceeds;
use super::sample::{moment, next_multiple};
use super::{
    Bounds, Decision, Figures, Held, Load, Moment, Panic, Policy, Pool, Reports, Rules, Sample,
    ToZero, Window, decide, excess_burst_capacity,
};

/// Knative's autoscaler for one revision.
///
/// A request after a silence wants an instance (or the activation scale) at once, before its second
/// is over and any average knows of it. Knative's activator reports it as one in flight for a whole
/// second instead, however short it is; with a target below one, as of `containerConcurrency: 1`,
/// that wants two instances, and panics. Until the first whole second after it is over, nothing of
/// what the pool has started for waiting requests is taken away.
#[derive(Debug)]
pub struct Kpa {
    rules: Rules,
    tick: Duration,
    reports: Reports,
    stable: Window,
    panic_window: Window,
    panic: Panic,
    held: Option<Held>,
    bounds: Bounds,
    to_zero: ToZero,
    busy_until: Moment,
    in_flight: u32,
    /// When demand began that the averages did not know of.
    woken: Option<u64>,
    /// Most requests at a time since then.
    peak: u32,
    /// Reports that could still have an effect.
    most: u64,
    /// Whether what was decided last stays until an average is zero or the panic over, if nothing
    /// but time passes.
    calm: bool,
}

impl Kpa {
    /// An autoscaler that begins at a moment before which there were no requests.
    #[must_use]
    pub fn new(rules: &Rules, tick: Duration, now: Moment) -> Self {
        let bucket = rules.bucket();
        let buckets = |window: Duration| {
            usize::try_from(window.as_nanos().div_ceil(bucket.as_nanos())).unwrap_or(1)
        };
        let stable = buckets(rules.window.0).min(3600);
        let panic = buckets(rules.panic_window()).min(stable);
        let delay = rules.scale_down_delay.0.as_nanos();
        let stretches = delay.div_ceil(tick.as_nanos().max(1));
        let held = u64::try_from(stretches).ok().filter(|stretches| *stretches > 0).map(Held::new);
        Self {
            rules: rules.clone(),
            tick,
            reports: Reports::new(bucket, rules.metric, now),
            stable: Window::new(stable, rules.aggregation),
            panic_window: Window::new(panic, rules.aggregation),
            panic: Panic::default(),
            held,
            bounds: Bounds::new(rules),
            to_zero: ToZero::default(),
            busy_until: now,
            in_flight: 0,
            woken: None,
            peak: 0,
            most: stable as u64 + 1,
            calm: false,
        }
    }

    /// What was before is not known, and so many instances were found: it panics if that is more
    /// than one. As Knative's does when it restarts.
    pub fn resume(&mut self, ready: u32, now: Moment) {
        self.calm = false;
        self.panic = Panic::beginning(ready, now);
    }
}

impl Policy for Kpa {
    fn observe(&mut self, sample: &Sample) {
        let Self { reports, stable, panic_window, .. } = self;
        reports.take(sample, self.most, |(from, to), value| {
            if value == 0.0 {
                stable.silence(from, to);
                panic_window.silence(from, to);
            } else {
                stable.record(to, value);
                panic_window.record(to, value);
            }
        });
        self.in_flight = sample.in_flight;
        self.peak = self.peak.max(sample.peak).max(sample.in_flight);
        self.busy_until = self.busy_until.max(sample.busy_until);
    }

    fn decide(&mut self, now: Moment, pool: &Pool) -> Decision {
        let bucket = self.reports.number(now);
        self.bounds.see(pool);
        self.calm = false;
        let next = next_multiple(now, self.tick);
        let demand = self.in_flight > 0 || self.reports.so_far() > 0.0;
        let average = self.stable.average(bucket);
        let Some(stable) = average.or(demand.then_some(0.0)) else {
            return Decision { want: None, again: Some(next), figures: None };
        };
        let panic_average = self.panic_window.average(bucket).unwrap_or(0.0);
        let Pool { ready, reachable, .. } = *pool;
        let load = Load { now, stable, panic: panic_average, ready, reachable };
        let decided = decide(&self.rules, &load, self.panic);
        self.panic = decided.panic;
        let mut want = decided.want;
        if demand && stable <= 0.0 {
            self.woken = Some(bucket);
            want = want.max(self.rules.activation).max(1);
        }
        // The first whole second after that is the next one, and its report comes with its end.
        let fresh = self.woken.is_some_and(|woken| bucket < woken + 2);
        if fresh {
            want = want.max(self.peak.min(pool.ready + pool.starting));
        } else {
            self.peak = self.in_flight;
        }
        if let Some(held) = self.held.as_mut().filter(|_| reachable) {
            let stretch = now.as_nanos() / self.tick.as_nanos().max(1);
            want = held.record(u64::try_from(stretch).unwrap_or(u64::MAX), want);
        }
        let bounded = self.bounds.apply(want, pool);
        let (want, due) = self.to_zero.apply(
            &self.rules,
            &self.bounds,
            bounded,
            (now, pool, if self.in_flight > 0 { now } else { self.busy_until }),
        );
        // Averages fall from here on: at most one instance for the load, at least one for any.
        self.calm = !demand
            && !fresh
            && want > 0
            && stable > 0.0
            && stable <= self.rules.target
            && !exceeds(&self.rules, &load)
            && self.held.is_none();
        let quiet = stable <= 0.0 && !demand;
        let settled = quiet && want <= self.bounds.min();
        let again = match due {
            _ if settled => None,
            // Nothing but time is missing for the last instance to go.
            Some(due) if quiet => Some(due),
            _ => Some(next),
        };
        let figures = Figures {
            metric: self.rules.metric,
            stable,
            panic: panic_average,
            target: self.rules.target,
            panicking: decided.panic.since.is_some(),
            excess: excess_burst_capacity(&self.rules, &load),
        };
        Decision { want: Some(want), again, figures: Some(figures) }
    }

    fn steady(&self) -> Option<Moment> {
        let positive = self.stable.positive_until().filter(|_| self.calm)?;
        let positive = moment(positive, self.rules.bucket());
        let panics = self.panic.since.map(|since| since + self.rules.window.0);
        Some(panics.map_or(positive, |panics| positive.min(panics)))
    }

    fn forget(&mut self) {
        self.calm = false;
        self.reports.forget();
        self.stable.clear();
        self.panic_window.clear();
        self.panic = Panic::default();
        (self.woken, self.peak) = (None, 0);
        self.held = self.held.as_ref().map(Held::emptied);
        // From here on it is known that there was nothing, where at first nothing is known.
        self.stable.record(self.reports.open(), 0.0);
    }
}
