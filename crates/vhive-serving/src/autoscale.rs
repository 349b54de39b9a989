//! How many instances a revision should have: a pure function of what was seen.
//!
//! ```text
//!   Throttle ──samples──► History ──averages──► decide ──► want
//!                                                 ▲
//!                        rules, ready, now ───────┘
//! ```
//!
//! # Source
//! Knative Serving, `pkg/autoscaler/scaling/autoscaler.go` and `docs/scaling/SYSTEM.md`: stable and
//! panic window, scale-up and scale-down rates, scale to zero after retention. What is not there
//! yet: activation scale, target burst capacity, request-rate metric.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use vhive_api::Span;

/// Everything that a revision and the node's configuration say about scaling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Requests in flight per instance to aim at, utilisation already applied; at least 0.01.
    pub target: f64,
    /// Fewest instances.
    pub min: u32,
    /// Most instances; 0 = no limit.
    pub max: u32,
    /// Instances to start when the revision is made; 0 = wait for the first request.
    pub initial: u32,
    /// Stable window.
    pub window: Span,
    /// Panic window in per cent of the stable one, 1 to 100.
    pub panic_window_percent: f64,
    /// Load of the ready instances, in per cent of their target, from which on it panics.
    pub panic_threshold_percent: f64,
    /// How long the last instance outlives the last request beyond the stable window.
    pub retention: Span,
    /// How long a decision to have fewer instances is held back.
    pub scale_down_delay: Span,
    /// Most instances wanted per ready one in one decision.
    pub max_up_rate: f64,
    /// Most ready instances per wanted one in one decision.
    pub max_down_rate: f64,
}

impl Rules {
    /// The window over which a burst is noticed; at least a hundredth of the stable one.
    #[must_use]
    pub fn panic_window(&self) -> Duration {
        self.window.0.mul_f64((self.panic_window_percent / 100.0).clamp(0.01, 1.0))
    }
}

/// Average concurrency over one stretch of time that ended at `at`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// End of the stretch.
    pub at: Instant,
    /// Its length.
    pub over: Duration,
    /// Time-weighted average of the requests in flight or queued.
    pub concurrency: f64,
}

/// The samples of the last stable window, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    samples: VecDeque<Sample>,
}

impl History {
    /// Adds the newest sample and forgets those that lie before the window.
    pub fn add(&mut self, sample: Sample, window: Duration) {
        self.samples.push_back(sample);
        while self.samples.front().is_some_and(|s| s.at + window <= sample.at) {
            self.samples.pop_front();
        }
    }

    /// Average over the last `window`, or over the time since the first sample if that is shorter.
    /// None without samples. Rounded to six digits, so that an idle window is exactly zero.
    #[must_use]
    pub fn average(&self, window: Duration, now: Instant) -> Option<f64> {
        let first = self.samples.front()?;
        let (mut area, mut covered) = (0.0, Duration::ZERO);
        for sample in &self.samples {
            let age = now.saturating_duration_since(sample.at);
            let inside = sample.over.min(window.saturating_sub(age));
            area += sample.concurrency * inside.as_secs_f64();
            covered += inside;
        }
        let seen = now.saturating_duration_since(first.at) + first.over;
        let span = seen.min(window).max(covered).as_secs_f64();
        if span <= 0.0 {
            return None;
        }
        Some((area / span * 1e6).round() / 1e6)
    }

    /// Whether nothing was in flight or queued in the last `window`.
    #[must_use]
    pub fn idle(&self, window: Duration, now: Instant) -> bool {
        self.samples.iter().all(|sample| sample.concurrency <= 0.0 || sample.at + window <= now)
    }
}

/// What one decision is made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Average over the stable window.
    pub stable: f64,
    /// Average over the panic window.
    pub panic: f64,
    /// Instances that serve.
    pub ready: u32,
    /// Time since the last request ended; zero while there is one.
    pub idle: Duration,
}

/// Whether the scaler panics: it then never wants fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Panic {
    since: Option<Instant>,
    most: u32,
}

/// Says how many instances there should be, and whether it panics from now on.
#[must_use]
pub fn decide(rules: &Rules, seen: &Seen, panic: Panic, now: Instant) -> (u32, Panic) {
    let ready = f64::from(seen.ready.max(1));
    let most = (rules.max_up_rate * ready).ceil();
    let least = (ready / rules.max_down_rate).floor();
    let wanted = |average: f64| (average / rules.target).ceil();
    let (for_stable, for_panic) = (wanted(seen.stable), wanted(seen.panic));
    let mut want = count(for_stable.max(least).min(most));

    let over = for_panic / ready * 100.0 >= rules.panic_threshold_percent;
    let panic = match panic.since {
        _ if over => Panic { since: Some(now), ..panic },
        Some(since) if since + rules.window.0 >= now => panic,
        _ => Panic::default(),
    };
    let panic = if panic.since.is_some() {
        let most = panic.most.max(want).max(count(for_panic.max(least).min(most)));
        want = most;
        Panic { most, ..panic }
    } else {
        panic
    };

    // The rates above never let the last instance go by themselves: it goes when it has been idle.
    let gone = for_stable <= 0.0 && seen.idle >= rules.window.0 + rules.retention.0;
    if gone {
        want = 0;
    } else if seen.ready > 0 || for_stable > 0.0 {
        want = want.max(1);
    }
    let want = want.max(rules.min);
    (if rules.max > 0 { want.min(rules.max) } else { want }, panic)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to u32")]
fn count(instances: f64) -> u32 {
    instances.clamp(0.0, f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules() -> Rules {
        Rules {
            target: 70.0,
            min: 0,
            max: 0,
            initial: 0,
            window: Span(Duration::from_secs(60)),
            panic_window_percent: 10.0,
            panic_threshold_percent: 200.0,
            retention: Span(Duration::ZERO),
            scale_down_delay: Span(Duration::ZERO),
            max_up_rate: 1000.0,
            max_down_rate: 2.0,
        }
    }

    fn seen(stable: f64, panic: f64, ready: u32) -> Seen {
        Seen { stable, panic, ready, idle: Duration::ZERO }
    }

    #[test]
    fn the_table_of_steady_states() {
        let now = Instant::now();
        for (stable, ready, want) in
            [(0.0, 1, 1), (1.0, 1, 1), (70.0, 1, 1), (71.0, 1, 2), (350.0, 5, 5), (1.0, 8, 4)]
        {
            let got = decide(&rules(), &seen(stable, stable, ready), Panic::default(), now).0;
            assert_eq!(got, want, "{stable} on {ready}");
        }
    }

    #[test]
    fn the_last_instance_goes_after_window_and_retention() {
        let now = Instant::now();
        let rules = Rules { retention: Span(Duration::from_secs(30)), ..rules() };
        for (idle, want) in [(0, 1), (60, 1), (89, 1), (90, 0), (900, 0)] {
            let seen = Seen { idle: Duration::from_secs(idle), ..seen(0.0, 0.0, 1) };
            assert_eq!(decide(&rules, &seen, Panic::default(), now).0, want, "idle {idle} s");
        }
    }

    #[test]
    fn a_burst_panics_and_is_held_for_a_window() {
        let start = Instant::now();
        let (want, panic) = decide(&rules(), &seen(20.0, 210.0, 1), Panic::default(), start);
        assert_eq!(want, 3);
        let later = start + Duration::from_secs(30);
        let (want, panic) = decide(&rules(), &seen(20.0, 0.0, 3), panic, later);
        assert_eq!(want, 3, "never fewer while panicking");
        let after = start + Duration::from_secs(61);
        assert_eq!(decide(&rules(), &seen(20.0, 0.0, 3), panic, after).0, 1);
    }

    #[test]
    fn averages_cover_what_was_seen() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let window = Duration::from_secs(10);
        let mut history = History::default();
        assert_eq!(history.average(window, start), None);
        history.add(Sample { at: start + second, over: second, concurrency: 5.0 }, window);
        assert_eq!(history.average(window, start + second), Some(5.0));
        for n in 2..=10 {
            let at = start + second * n;
            history.add(Sample { at, over: second, concurrency: 0.0 }, window);
        }
        assert_eq!(history.average(window, start + second * 10), Some(0.5));
        assert!(!history.idle(window, start + second * 10));
        assert!(history.idle(second * 5, start + second * 10));
        let at = start + second * 11;
        history.add(Sample { at, over: second, concurrency: 0.0 }, window);
        assert_eq!(history.average(window, at), Some(0.0));
    }

    proptest! {
        #[test]
        fn bounded_and_monotone(
            low in 0.0..5000.0_f64,
            more in 0.0..5000.0_f64,
            ready in 0..200_u32,
            min in 0..20_u32,
            max in 0..50_u32,
        ) {
            prop_assume!(max == 0 || min <= max);
            let rules = Rules { min, max, ..rules() };
            let now = Instant::now();
            let one = decide(&rules, &seen(low, low, ready), Panic::default(), now).0;
            let two = decide(&rules, &seen(low + more, low + more, ready), Panic::default(), now).0;
            prop_assert!(one <= two);
            prop_assert!(one >= min && (max == 0 || two <= max));
            let rate = rules.max_up_rate * f64::from(ready.max(1));
            prop_assert!(f64::from(two) <= rate.max(f64::from(min)));
        }

        #[test]
        fn demand_never_wants_zero(average in 0.000_001..1000.0_f64, ready in 0..50_u32) {
            let now = Instant::now();
            prop_assert!(decide(&rules(), &seen(average, 0.0, ready), Panic::default(), now).0 >= 1);
        }

        #[test]
        fn an_average_lies_between_its_samples(loads in prop::collection::vec(0.0..500.0_f64, 1..80)) {
            let start = Instant::now();
            let second = Duration::from_secs(1);
            let window = Duration::from_secs(60);
            let mut history = History::default();
            let mut now = start;
            for load in &loads {
                now += second;
                history.add(Sample { at: now, over: second, concurrency: *load }, window);
            }
            let recent = &loads[loads.len().saturating_sub(60)..];
            let low = recent.iter().copied().fold(f64::INFINITY, f64::min);
            let high = recent.iter().copied().fold(0.0, f64::max);
            let average = history.average(window, now).expect("there are samples");
            prop_assert!(average >= low - 1e-6 && average <= high + 1e-6);
        }
    }
}
