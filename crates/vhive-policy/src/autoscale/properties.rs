//! What holds for any load.

use std::time::Duration;

use proptest::prelude::*;
use vhive_api::Span;

use super::vectors::{pool, rules, secs};
use super::*;

fn load(stable: f64, panic: f64, ready: u32) -> Load {
    Load { now: secs(1000), stable, panic, ready, reachable: true }
}

/// Any rules that admission would accept.
fn any_rules() -> impl Strategy<Value = Rules> {
    let target = (0.01..500.0_f64, 1.0..2.0_f64, 0..4_u32);
    let rates = (1.01..1000.0_f64, 1.01..10.0_f64, 110.0..1000.0_f64);
    (target, rates).prop_map(|((target, factor, activation), (up, down, threshold))| Rules {
        target,
        total: target * factor,
        activation,
        max_up_rate: up,
        max_down_rate: down,
        panic_threshold_percent: threshold,
        ..rules()
    })
}

/// A revision's requests: each comes after a pause and takes a time, in milliseconds.
fn requests() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((0..20_000_u64, 1..30_000_u64), 1..12)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What a policy is told of requests that follow one another, each alone.
struct Replay {
    events: Vec<(Moment, bool)>,
    next: usize,
    at: Moment,
    in_flight: u32,
    busy_until: Option<Moment>,
}

impl Replay {
    /// The requests, from a moment on. One comes before the last is done or later.
    fn new(requests: &[(u64, u64)], begin: Moment) -> Self {
        let (mut events, mut at) = (Vec::new(), begin);
        for (pause, length) in requests {
            at += millis(*pause);
            events.push((at, true));
            events.push((at + millis(*length), false));
        }
        events.sort_by_key(|(at, comes)| (*at, !*comes));
        Self { events, next: 0, at: begin, in_flight: 0, busy_until: None }
    }

    fn coming(&self) -> Option<Moment> {
        self.events.get(self.next).map(|(at, _)| *at)
    }

    fn end(&self) -> Moment {
        self.events.last().map_or(self.at, |(at, _)| *at)
    }

    /// The sample from where it stands to `to`.
    fn sample(&mut self, to: Moment) -> Sample {
        let mut sample = Sample { from: self.at, to, peak: self.in_flight, ..Sample::default() };
        while let Some((at, comes)) = self.events.get(self.next).copied().filter(|e| e.0 <= to) {
            sample.area += f64::from(self.in_flight) * (at - self.at).as_secs_f64();
            self.at = at;
            self.next += 1;
            if comes {
                if let Some(idle) = self.busy_until.filter(|_| self.in_flight == 0) {
                    sample.gaps += 1;
                    sample.longest_gap = sample.longest_gap.max(at - idle);
                }
                self.in_flight += 1;
                sample.arrivals += 1;
            } else {
                self.in_flight -= 1;
                self.busy_until = Some(at);
            }
            sample.peak = sample.peak.max(self.in_flight);
        }
        sample.area += f64::from(self.in_flight) * (to - self.at).as_secs_f64();
        self.at = to;
        sample.in_flight = self.in_flight;
        let busy = if self.in_flight > 0 { Some(to) } else { self.busy_until };
        sample.busy_until = busy.unwrap_or(sample.from);
        sample
    }
}

/// Lets a policy follow the requests until it rests after the last one. `see` gets every moment, the
/// sample and what is wanted.
fn follow(policy: &mut dyn Policy, replay: &mut Replay, mut see: impl FnMut(&Sample, u32)) {
    let mut ready = 0;
    let mut again = None;
    for _ in 0..100_000 {
        // Asked at the moment named, and when a request comes to a revision that has none.
        let comes = replay.coming().filter(|_| replay.in_flight == 0);
        let Some(now) = [again, comes].into_iter().flatten().min() else { return };
        let sample = replay.sample(now);
        policy.observe(&sample);
        let decision = policy.decide(now, &pool(ready));
        ready = decision.want.unwrap_or(ready);
        see(&sample, ready);
        again = decision.again;
        assert!(again.is_none_or(|again| again > now), "{again:?} is not after {now:?}");
        assert!(again.is_some() || sample.in_flight == 0, "rests while there are requests");
    }
    panic!("{policy:?} never rests");
}

proptest! {
    #[test]
    fn decisions_keep_to_the_rates(
        rules in any_rules(), stable in 0.0..5000.0_f64, burst in 0.0..5000.0_f64, ready in 0..200_u32,
    ) {
        let want = decide(&rules, &load(stable, burst, ready), Panic::default()).want;
        let there = f64::from(ready.max(1));
        let most = (rules.max_up_rate * there).ceil().max(f64::from(rules.activation));
        prop_assert!(f64::from(want) <= most);
        prop_assert!(f64::from(want) >= (there / rules.max_down_rate).floor());
    }

    #[test]
    fn more_load_never_wants_fewer(
        rules in any_rules(), low in 0.0..5000.0_f64, more in 0.0..5000.0_f64, ready in 0..200_u32,
    ) {
        let one = decide(&rules, &load(low, low, ready), Panic::default()).want;
        let two = decide(&rules, &load(low + more, low + more, ready), Panic::default()).want;
        prop_assert!(one <= two);
    }

    #[test]
    fn demand_never_wants_zero(
        rules in any_rules(), stable in 0.000_001..1000.0_f64, ready in 0..50_u32,
    ) {
        prop_assert!(decide(&rules, &load(stable, 0.0, ready), Panic::default()).want >= 1);
    }

    #[test]
    fn panic_never_wants_fewer(
        rules in any_rules(), loads in prop::collection::vec((0.0..500.0_f64, 0.0..500.0_f64), 1..60),
    ) {
        let (mut panic, mut before) = (Panic::default(), 0);
        for (second, (stable, burst)) in (0_u64..).zip(loads) {
            let load = Load { now: secs(second), ..load(stable, burst, before) };
            let decided = decide(&rules, &load, panic);
            if decided.panic.since.is_some() && panic.since.is_some() {
                prop_assert!(decided.want >= before);
            }
            (panic, before) = (decided.panic, decided.want);
        }
    }

    #[test]
    fn a_linear_average_lies_between_its_reports(
        values in prop::collection::vec(0.0..500.0_f64, 1..90), length in 1..70_usize,
    ) {
        let mut window = Window::new(length, Aggregation::Linear);
        for (bucket, value) in (5_u64..).zip(&values) {
            window.record(bucket, *value);
        }
        let recent = &values[values.len().saturating_sub(length)..];
        let low = recent.iter().copied().fold(f64::INFINITY, f64::min);
        let high = recent.iter().copied().fold(0.0, f64::max);
        let average = window.average(4 + values.len() as u64).expect("there are reports");
        prop_assert!(average >= low - 1e-6 && average <= high + 1e-6);
    }

    #[test]
    fn a_weighted_average_exceeds_no_report_and_the_newest_weighs_most(
        values in prop::collection::vec(0.0..500.0_f64, 1..90), length in 1..70_usize,
    ) {
        let mut window = Window::new(length, Aggregation::WeightedExponential);
        for (bucket, value) in (5_u64..).zip(&values) {
            window.record(bucket, *value);
        }
        let last = 4 + values.len() as u64;
        let average = window.average(last).expect("there are reports");
        let recent = &values[values.len().saturating_sub(length)..];
        prop_assert!(average <= recent.iter().copied().fold(0.0, f64::max) + 1e-9);
        prop_assert!(average >= values[values.len() - 1] * 0.2 - 1e-9);
    }

    #[test]
    fn a_window_is_a_map_of_its_last_seconds(
        steps in prop::collection::vec((0..9_u64, 0..100_u32), 1..50), length in 1..8_u64,
    ) {
        let mut window = Window::new(usize::try_from(length).unwrap(), Aggregation::Linear);
        let (mut model, mut first, mut last) = (Vec::new(), None, 0_u64);
        for (pause, value) in steps {
            let bucket = if first.is_some() { last + pause } else { 50 + pause };
            if first.is_none() || bucket >= last + length {
                first = Some(bucket);
            }
            last = bucket;
            window.record(bucket, f64::from(value));
            model.push((bucket, f64::from(value)));
            let within = |at: u64| at + length > last && at >= first.unwrap_or(0);
            let sum: f64 = model.iter().filter(|(at, _)| within(*at)).map(|(_, v)| v).sum();
            let count = (last - first.unwrap_or(0) + 1).min(length);
            let average = window.average(last).expect("there are reports");
            prop_assert!((average - sum / count as f64).abs() < 1e-6);
        }
    }

    #[test]
    fn a_window_forgets_what_has_left_it(
        steps in prop::collection::vec(
            (0..9_u64, prop_oneof![0.0..1e-4_f64, 0.0..10.0_f64, 1e6..1e8_f64], 0..12_u64), 1..60,
        ),
        length in 1..8_u64, missing in 0..8_u64,
    ) {
        let mut window = Window::new(usize::try_from(length).unwrap(), Aggregation::Linear);
        let (mut model, mut first, mut last) = (Vec::new(), 50, 50);
        for (pause, value, silence) in steps {
            let bucket = last + pause;
            if model.is_empty() || bucket >= last + length {
                first = bucket;
            }
            last = bucket;
            window.record(bucket, value);
            model.push((bucket, value));
            if silence > 0 {
                window.silence(last + 1, last + silence);
                last += silence;
            }
            let missing = missing.min(length);
            let valid = length - missing;
            let within = |at: u64| at + valid > last && at >= first;
            let sum: f64 = model.iter().filter(|(at, _)| within(*at)).map(|(_, v)| v).sum();
            let count = (last - first + 1).min(valid).max(1);
            let average = window.average(last + missing).expect("there are reports");
            let want = sum / count as f64;
            prop_assert!((average - want).abs() <= 6e-7 + want * 1e-15, "{average} and {want}");
            if let Some(until) = window.positive_until() {
                let later = until.saturating_sub(1).max(last);
                let mut quiet = window.clone();
                quiet.silence(last + 1, later);
                prop_assert!(quiet.average(later).is_some_and(|average| average > 0.0) || later >= until);
            }
        }
    }

    #[test]
    fn what_is_held_is_the_greatest_of_its_stretches(
        steps in prop::collection::vec((0..4_u64, 0..50_u32), 1..60), length in 1..9_u64,
    ) {
        let (mut held, mut all, mut stretch) = (Held::new(length), Vec::new(), 0);
        for (pause, value) in steps {
            stretch += pause;
            all.push((stretch, value));
            let want = all.iter().filter(|(at, _)| at + length > stretch).map(|(_, v)| *v).max();
            prop_assert_eq!(Some(held.record(stretch, value)), want);
        }
    }

    #[test]
    fn reports_lose_nothing_however_samples_are_cut(
        requests in requests(), cuts in prop::collection::vec(1..3000_u64, 1..200),
    ) {
        let mut replay = Replay::new(&requests, secs(3));
        let mut reports = Reports::new(secs(1), Metric::Rps, secs(3));
        let (mut at, mut arrivals, mut reported) = (secs(3), 0_u32, 0.0);
        for cut in cuts {
            at += millis(cut);
            let sample = replay.sample(at);
            arrivals += sample.arrivals;
            reports.take(&sample, 1000, |_, value| reported += value);
        }
        prop_assert!((reported + reports.so_far() - f64::from(arrivals)).abs() < 1e-6);
    }

    #[test]
    fn kpa_goes_to_zero_after_window_and_hold_and_not_before(
        requests in requests(), window in 6..90_u64, grace in 0..40_u64, retention in 0..40_u64,
        begin in 0..5000_u64,
    ) {
        let (grace, retention) = (Span(secs(grace)), Span(secs(retention)));
        let rules = Rules { window: Span(secs(window)), grace, retention, ..rules() };
        let mut replay = Replay::new(&requests, millis(begin));
        let mut kpa = Kpa::new(&rules, secs(1), millis(begin));
        let (mut busy_until, mut gone) = (None, None);
        let due = secs(window) + rules.hold();
        let mut early = None;
        follow(&mut kpa, &mut replay, |sample, want| {
            if sample.in_flight > 0 || sample.arrivals > 0 {
                (busy_until, gone) = (Some(sample.busy_until), None);
            }
            if want > 0 {
                return;
            }
            if sample.in_flight > 0 || busy_until.is_some_and(|busy| sample.to < busy + due) {
                early = Some(*sample);
            }
            gone = gone.or(Some(sample.to));
        });
        prop_assert_eq!(early, None, "zero too early");
        let gone = gone.expect("gone in the end");
        let end = replay.end();
        // The window ends with a whole second.
        prop_assert!(gone >= end + due && gone < end + due + secs(1), "{:?} after {:?}", gone, end);
    }

    #[test]
    fn fixed_keeps_for_exactly_its_keep_alive(
        requests in requests(), keep in 1..900_u64, begin in 0..5000_u64,
    ) {
        let rules =
            Rules { policy: PolicyKind::Fixed, keep_alive: Span(secs(keep)), ..rules() };
        let mut replay = Replay::new(&requests, millis(begin));
        let mut fixed = policy(&rules, secs(1), millis(begin));
        let (mut early, mut gone) = (None, None);
        follow(fixed.as_mut(), &mut replay, |sample, want| {
            let kept = sample.in_flight > 0 || sample.to < sample.busy_until + secs(keep);
            if want == 0 && kept {
                early = Some(*sample);
            }
            gone = if want == 0 { gone.or(Some(sample.to)) } else { None };
        });
        prop_assert_eq!(early, None, "gone too early");
        prop_assert_eq!(gone, Some(replay.end() + secs(keep)));
    }

    #[test]
    fn no_policy_leaves_a_request_without_an_instance(
        requests in requests(), kind in 0..3_usize, min in 0..3_u32, more in 0..3_u32,
        keep in 1..900_u64,
    ) {
        let kind = [PolicyKind::Kpa, PolicyKind::Fixed, PolicyKind::Histogram][kind];
        let max = if more == 0 { 0 } else { min + more };
        let rules =
            Rules { policy: kind, min, max, keep_alive: Span(secs(keep)), total: 1.0, ..rules() };
        let mut replay = Replay::new(&requests, secs(1));
        let mut policy = policy(&rules, secs(1), secs(1));
        let mut wrong = None;
        follow(policy.as_mut(), &mut replay, |sample, want| {
            let bounded = want >= min && (max == 0 || want <= max);
            if !bounded || (want == 0 && sample.in_flight > 0) {
                wrong = Some((*sample, want));
            }
        });
        prop_assert_eq!(wrong, None);
    }

    #[test]
    fn windows_of_a_histogram_hold_what_it_has_seen(
        idle in prop::collection::vec(0..14_400_u64, 1..300),
    ) {
        let mut times = IdleTimes::default();
        for seconds in &idle {
            times.add(secs(*seconds), 1);
        }
        let mut counts = [0_u32; 240];
        for seconds in &idle {
            counts[usize::try_from(seconds / 60).unwrap()] += 1;
        }
        let mean = idle.len() as f64 / 240.0;
        let squares = counts.iter().map(|n| (f64::from(*n) - mean).powi(2)).sum::<f64>();
        prop_assert!((times.variation() - (squares / 240.0).sqrt() / mean).abs() < 1e-6);
        if let Some(windows) = times.windows() {
            prop_assert!(windows.begin < windows.end);
            let inside = |s: &&u64| secs(**s) >= windows.begin && secs(**s) < windows.end;
            let inside = idle.iter().filter(inside).count() as f64;
            prop_assert!(inside >= 0.94 * idle.len() as f64, "{inside} of {}", idle.len());
        }
    }
}
