//! Histogram keep-alive: when an instance is there is learnt from how long the revision is idle.
//!
//! ```text
//!   last request done     begin                        end
//!   ──────┬─────────────────┬──────────────────────────┬─────────► time
//!         │  pre-warming    │  one instance is there   │
//!         │  window: none   │                          │
//! ```
//!
//! # Source
//! Shahrad et al., "Serverless in the Wild", USENIX ATC 2020, section 4.2: a histogram of idle times
//! in bins of a minute up to four hours; the pre-warming window ends at the 5th percentile, rounded
//! down, less a margin of 10 %; the instance is kept until the 99th, rounded up, and the margin. A
//! histogram whose bin counts vary too little (coefficient of variation below 2) says nothing, and
//! a fixed keep-alive takes its place.
//!
//! Three things differ. The fixed keep-alive is the revision's instead of the whole range. Where most
//! idle times are longer than the range, the paper forecasts with ARIMA; here the fixed keep-alive
//! goes on. And the paper knows no concurrency: here several instances that are needed at a time
//! are kept while there is no pre-warming window, and one is brought back after one.

use std::time::Duration;

use super::{Decision, Fixed, Moment, Policy, Pool, Rules, Sample};

/// Bins of a minute: four hours.
const BINS: usize = 240;
const MINUTE: Duration = Duration::from_secs(60);
const HEAD: f64 = 0.05;
const TAIL: f64 = 0.99;
const MARGIN: f64 = 0.10;
/// Coefficient of variation of the bin counts from which on they mean something.
const TELLING: f64 = 2.0;

/// When an instance is there after the last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// From when on; zero: it stays.
    pub begin: Duration,
    /// Until when.
    pub end: Duration,
}

/// How often a revision was idle for how many minutes.
#[derive(Clone, Debug)]
pub struct IdleTimes {
    bins: Box<[u32]>,
    /// Their sum, and that of their squares.
    sum: u64,
    squares: u64,
    /// Idle times beyond the range.
    beyond: u64,
}

impl Default for IdleTimes {
    fn default() -> Self {
        Self { bins: vec![0; BINS].into_boxed_slice(), sum: 0, squares: 0, beyond: 0 }
    }
}

impl IdleTimes {
    /// Adds an idle time, so many times.
    pub fn add(&mut self, idle: Duration, times: u32) {
        let bin = usize::try_from(idle.as_secs() / MINUTE.as_secs()).unwrap_or(usize::MAX);
        let Some(count) = self.bins.get_mut(bin) else {
            self.beyond = self.beyond.saturating_add(times.into());
            return;
        };
        let before = u64::from(*count);
        *count = count.saturating_add(times);
        let after = u64::from(*count);
        self.sum += after - before;
        self.squares = self
            .squares
            .saturating_sub(before * before)
            .saturating_add(after.saturating_mul(after));
    }

    /// Standard deviation of the bin counts over their mean; zero without any.
    #[must_use]
    pub fn variation(&self) -> f64 {
        if self.sum == 0 {
            return 0.0;
        }
        let bins = BINS as f64;
        let mean = self.sum as f64 / bins;
        let variance = (self.squares as f64 / bins - mean * mean).max(0.0);
        variance.sqrt() / mean
    }

    /// What the idle times say; none if they do not.
    #[must_use]
    pub fn windows(&self) -> Option<Windows> {
        if self.sum == 0 || self.beyond > self.sum || self.variation() < TELLING {
            return None;
        }
        let (head, tail) = (self.percentile(HEAD), self.percentile(TAIL));
        let begin = (MINUTE * head).mul_f64(1.0 - MARGIN);
        let end = (MINUTE * (tail + 1)).mul_f64(1.0 + MARGIN);
        Some(Windows { begin, end })
    }

    /// The bin in which the part of all idle times up to it reaches `part`.
    fn percentile(&self, part: f64) -> u32 {
        let enough = part * self.sum as f64;
        let mut so_far = 0_u64;
        for (bin, count) in (0_u32..).zip(&self.bins) {
            so_far += u64::from(*count);
            if so_far as f64 >= enough {
                return bin;
            }
        }
        u32::try_from(BINS - 1).unwrap_or(u32::MAX)
    }
}

/// Histogram keep-alive of one revision.
#[derive(Debug)]
pub struct Histogram {
    idle: IdleTimes,
    /// In place of a histogram that says nothing, and while there are requests.
    fixed: Fixed,
    keep: Duration,
    in_flight: u32,
    busy_until: Option<Moment>,
    /// What `idle` says, until it changes.
    windows: Option<Windows>,
}

impl Histogram {
    /// One that has not learnt anything yet.
    #[must_use]
    pub fn new(rules: &Rules, tick: Duration) -> Self {
        Self {
            idle: IdleTimes::default(),
            fixed: Fixed::new(rules, tick),
            keep: rules.keep_alive.0,
            in_flight: 0,
            busy_until: None,
            windows: None,
        }
    }

    /// What has been learnt.
    #[must_use]
    pub fn idle_times(&self) -> &IdleTimes {
        &self.idle
    }
}

impl Policy for Histogram {
    fn observe(&mut self, sample: &Sample) {
        self.fixed.observe(sample);
        self.in_flight = sample.in_flight;
        if let Some(shorter) = sample.gaps.checked_sub(1) {
            self.idle.add(sample.longest_gap, 1);
            self.idle.add(Duration::ZERO, shorter);
            self.windows = self.idle.windows();
        }
        if sample.peak > 0 || sample.in_flight > 0 {
            self.busy_until = Some(sample.busy_until);
        }
    }

    fn decide(&mut self, now: Moment, pool: &Pool) -> Decision {
        let (Some(windows), Some(busy_until), 0) = (self.windows, self.busy_until, self.in_flight)
        else {
            return self.fixed.keep(self.keep, now, pool);
        };
        if windows.begin.is_zero() {
            return self.fixed.keep(windows.end, now, pool);
        }
        let (begin, end) = (busy_until + windows.begin, busy_until + windows.end);
        let (want, until) = if now < begin {
            (0, Some(begin))
        } else if now < end {
            (1, Some(end))
        } else {
            (0, None)
        };
        self.fixed.settle(want, until, (now, pool))
    }

    fn steady(&self) -> Option<Moment> {
        self.fixed.kept(self.keep)
    }

    /// The idle times stay: they say when requests come, not how many.
    fn forget(&mut self) {
        self.fixed.forget();
        self.busy_until = None;
    }

    fn learns(&self) -> bool {
        true
    }
}
