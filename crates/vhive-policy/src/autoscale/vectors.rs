//! What Knative's documented algorithm gives, worked out by hand.

use std::time::Duration;

use vhive_api::Span;

use super::*;

/// Knative's defaults, with a target of 10 of at most 10, so that the figures stay small.
pub(super) fn rules() -> Rules {
    Rules {
        target: 10.0,
        total: 10.0,
        metric: Metric::Concurrency,
        aggregation: Aggregation::Linear,
        min: 0,
        max: 0,
        initial: 1,
        activation: 0,
        burst_capacity: 211.0,
        window: Span(secs(60)),
        panic_window_percent: 10.0,
        panic_threshold_percent: 200.0,
        scale_to_zero: true,
        grace: Span(secs(30)),
        retention: Span(secs(0)),
        scale_down_delay: Span(secs(0)),
        max_up_rate: 1000.0,
        max_down_rate: 2.0,
        policy: PolicyKind::Kpa,
        keep_alive: Span(secs(600)),
    }
}

pub(super) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(super) fn pool(ready: u32) -> Pool {
    Pool { ready, starting: 0, reachable: true }
}

fn load(stable: f64, panic: f64, ready: u32) -> Load {
    Load { now: secs(1000), stable, panic, ready, reachable: true }
}

/// Averages and ready instances → instances wanted, whether it panics, excess burst capacity.
struct Vector {
    what: &'static str,
    change: fn(&mut Rules),
    seen: (f64, f64, u32),
    want: u32,
    panics: bool,
    excess: f64,
}

const fn same(_: &mut Rules) {}

#[rustfmt::skip]
const VECTORS: &[Vector] = &[
    // ⌈0/10⌉ = 0, down to ⌊1/2⌋ = 0. 1·10 − 211 − 0 = −201.
    Vector { what: "idle, one instance", change: same, seen: (0.0, 0.0, 1), want: 0, panics: false, excess: -201.0 },
    // ⌈0.000001/10⌉ = 1.
    Vector { what: "any demand wants one", change: same, seen: (0.000_001, 0.0, 0), want: 1, panics: false, excess: -211.0 },
    // ⌈10/10⌉ = 1; 1/1 < 2. 10 − 211 − 10 = −211.
    Vector { what: "exactly the target", change: same, seen: (10.0, 10.0, 1), want: 1, panics: false, excess: -211.0 },
    // ⌈10.1/10⌉ = 2, but panic ⌈10/10⌉/1 = 1 < 2.
    Vector { what: "a little more", change: same, seen: (10.1, 10.0, 1), want: 2, panics: false, excess: -211.0 },
    // ⌈30/10⌉ = 3; panic ⌈30/10⌉/2 = 1.5 < 2. 20 − 211 − 30 = −221.
    Vector { what: "half as much again", change: same, seen: (30.0, 30.0, 2), want: 3, panics: false, excess: -221.0 },
    // Panic ⌈31/10⌉ = 4, 4/2 = 2 ≥ 2; max(⌈20/10⌉ = 2, 4) = 4.
    Vector { what: "twice the ready ones panics", change: same, seen: (20.0, 31.0, 2), want: 4, panics: true, excess: -222.0 },
    // Panic 15/1 ≥ 2, but stable ⌈200/10⌉ = 20 > 15.
    Vector { what: "the stable average may be the larger one", change: same, seen: (200.0, 150.0, 1), want: 20, panics: true, excess: -351.0 },
    // Without instances, ratios are of one: ⌈11/10⌉/1 = 2 ≥ 2. 0 − 211 − 11 = −222.
    Vector { what: "none ready counts as one", change: same, seen: (1.0, 11.0, 0), want: 2, panics: true, excess: -222.0 },
    // 8 ready, ⌈10/10⌉ = 1, not below ⌊8/2⌋ = 4. 80 − 211 − 10 = −141.
    Vector { what: "at most to half in one tick", change: same, seen: (10.0, 10.0, 8), want: 4, panics: false, excess: -141.0 },
    // ⌊7/2⌋ = 3.
    Vector { what: "half is rounded down", change: same, seen: (10.0, 10.0, 7), want: 3, panics: false, excess: -151.0 },
    // ⌊9/1.5⌋ = 6.
    Vector { what: "another down rate", change: |r| r.max_down_rate = 1.5, seen: (10.0, 10.0, 9), want: 6, panics: false, excess: -131.0 },
    // ⌈1.1·2⌉ = 3 although ⌈100/10⌉ = 10; panic likewise clamped to 3, and 10/2 ≥ 2 panics.
    Vector { what: "at most times the up rate, rounded up", change: |r| r.max_up_rate = 1.1, seen: (100.0, 100.0, 2), want: 3, panics: true, excess: -291.0 },
    // ⌈10·1⌉ = 10 < ⌈150/10⌉ = 15.
    Vector { what: "the up rate bounds from zero, too", change: |r| r.max_up_rate = 10.0, seen: (150.0, 150.0, 0), want: 10, panics: true, excess: -361.0 },
    // Threshold 3: 4/2 = 2 < 3, so no panic, and stable ⌈20/10⌉ = 2.
    Vector { what: "another threshold", change: |r| r.panic_threshold_percent = 300.0, seen: (20.0, 31.0, 2), want: 2, panics: false, excess: -222.0 },
    // Stable 1 becomes 5; panic ⌈1/10⌉ = 1 becomes 5, too, but 1/1 < 2 does not panic.
    Vector { what: "activation scale", change: |r| r.activation = 5, seen: (1.0, 1.0, 1), want: 5, panics: false, excess: -202.0 },
    // Without demand it has no effect.
    Vector { what: "activation scale, idle", change: |r| r.activation = 5, seen: (0.0, 0.0, 1), want: 0, panics: false, excess: -201.0 },
    // ⌈61/10⌉ = 7 > 5; 7/4 < 2.
    Vector { what: "more than the activation scale", change: |r| r.activation = 5, seen: (61.0, 61.0, 4), want: 7, panics: false, excess: -232.0 },
    // Activation does not count for the threshold, and goes over the up rate of ⌈1.5·1⌉ = 2.
    Vector { what: "activation scale over the up rate", change: |r| { r.activation = 5; r.max_up_rate = 1.5; }, seen: (1.0, 1.0, 1), want: 5, panics: false, excess: -202.0 },
    // 10·3 − 10 − 12.5 = 7.5 → 7.
    Vector { what: "room for a burst is rounded down", change: |r| r.burst_capacity = 10.0, seen: (12.5, 12.5, 3), want: 2, panics: false, excess: 7.0 },
    Vector { what: "no room asked for", change: |r| r.burst_capacity = 0.0, seen: (12.5, 12.5, 3), want: 2, panics: false, excess: 0.0 },
    Vector { what: "never room enough", change: |r| r.burst_capacity = -1.0, seen: (12.5, 12.5, 3), want: 2, panics: false, excess: -1.0 },
    // Total 10, utilisation 70 %: ⌈14.1/7⌉ = 3, ⌈7/7⌉ = 1. Excess goes by the total: 20 − 5 − 7 = 8.
    Vector { what: "room goes by the total, scale by the target", change: |r| { r.target = 7.0; r.burst_capacity = 5.0; }, seen: (14.1, 7.0, 2), want: 3, panics: false, excess: 8.0 },
];

#[test]
fn decisions_are_knatives() {
    for vector in VECTORS {
        let mut rules = rules();
        (vector.change)(&mut rules);
        let (stable, panic, ready) = vector.seen;
        let load = load(stable, panic, ready);
        let decided = decide(&rules, &load, Panic::default());
        assert_eq!(decided.want, vector.want, "{}", vector.what);
        assert_eq!(decided.panic.since.is_some(), vector.panics, "{}", vector.what);
        let excess = excess_burst_capacity(&rules, &load);
        assert!((excess - vector.excess).abs() < 1e-9, "{}: {excess}", vector.what);
    }
}

#[test]
fn what_nobody_can_reach_may_go_at_once() {
    // 8 ready, nothing to do: not held to ⌊8/2⌋ = 4.
    let load = Load { reachable: false, ..load(0.0, 0.0, 8) };
    assert_eq!(decide(&rules(), &load, Panic::default()).want, 0);
}

#[test]
fn panic_is_entered_extended_and_left() {
    let rules = rules();
    let mut panic = Panic::default();
    // At, stable, panic, ready → want, panics since.
    #[rustfmt::skip]
    let steps = [
        (100, 10.0, 10.0, 1, 1, None),
        (102, 20.0, 40.0, 1, 4, Some(102)), // ⌈40/10⌉/1 = 4 ≥ 2
        (104, 25.0, 60.0, 2, 6, Some(104)), // 6/2 ≥ 2: longer
        (106, 25.0, 60.0, 4, 6, Some(104)), // 6/4 < 2: not longer
        (110, 10.0, 10.0, 6, 6, Some(104)), // never fewer: max(1, ⌊6/2⌋ = 3, 6)
        (120, 80.0, 10.0, 6, 8, Some(104)), // more, by the stable average
        (164, 10.0, 10.0, 8, 8, Some(104)), // 104 + 60 < 164 does not hold yet
        (165, 10.0, 10.0, 8, 4, None),      // now it does: ⌊8/2⌋
        (166, 10.0, 10.0, 4, 2, None),
        (168, 10.0, 10.0, 2, 1, None),
        (170, 10.0, 21.0, 1, 3, Some(170)), // anew: what it once wanted is forgotten
    ];
    for (at, stable, burst, ready, want, since) in steps {
        let load = Load { now: secs(at), ..load(stable, burst, ready) };
        let decided = decide(&rules, &load, panic);
        panic = decided.panic;
        assert_eq!(decided.want, want, "at {at}");
        assert_eq!(panic.since, since.map(secs), "at {at}");
    }
}

#[test]
fn a_scaler_that_finds_several_instances_panics_until_it_knows_more() {
    assert_eq!(Panic::beginning(1, secs(5)), Panic { since: None, most: 1 });
    let found = Panic::beginning(7, secs(5));
    let later = |at| Load { now: secs(at), ..load(10.0, 10.0, 7) };
    assert_eq!(decide(&rules(), &later(65), found).want, 7);
    assert_eq!(decide(&rules(), &later(66), found).want, 3); // ⌊7/2⌋
}

fn filled(length: usize, aggregation: Aggregation, values: &[(u64, f64)]) -> Window {
    let mut window = Window::new(length, aggregation);
    for (bucket, value) in values {
        window.record(*bucket, *value);
    }
    window
}

#[test]
fn linear_averages() {
    let linear = |values: &[(u64, f64)]| filled(5, Aggregation::Linear, values);
    assert_eq!(linear(&[]).average(3), None);
    // A young window divides by what it has: (4 + 8)/2.
    assert_eq!(linear(&[(10, 4.0), (11, 8.0)]).average(11), Some(6.0));
    // A gap counts as zero: (4 + 0 + 8)/3.
    assert_eq!(linear(&[(10, 4.0), (12, 8.0)]).average(12), Some(4.0));
    // Reports of one second add up: (4 + 1 + 8)/2 = 6.5.
    assert_eq!(linear(&[(10, 4.0), (10, 1.0), (11, 8.0)]).average(11), Some(6.5));
    // What is missing at the end shortens the window: at 13, seconds 9 to 11 remain, (4 + 8)/2 = 6.
    assert_eq!(linear(&[(10, 4.0), (11, 8.0)]).average(13), Some(6.0));
    // At 15 only 11 remains: 8/1. At 16 there is nothing, at 17 not even that.
    assert_eq!(linear(&[(10, 4.0), (11, 8.0)]).average(15), Some(8.0));
    assert_eq!(linear(&[(10, 4.0), (11, 8.0)]).average(16), Some(0.0));
    assert_eq!(linear(&[(10, 4.0), (11, 8.0)]).average(17), None);
    // Seven seconds in a window of five: (3 + 4 + 5 + 6 + 7)/5.
    let seven: Vec<_> = (1..=7).map(|n| (n, n as f64)).collect();
    assert_eq!(linear(&seven).average(7), Some(5.0));
    // After a whole window without a report it begins anew: 9/1, not 9/5.
    assert_eq!(linear(&[(10, 4.0), (15, 9.0)]).average(15), Some(9.0));
    assert_eq!(linear(&[(10, 4.0), (14, 9.0)]).average(14), Some(2.6)); // 13/5
    // A late report counts where it belongs, (4 + 2 + 8)/3 = 4.666667; a very late one not at all.
    assert_eq!(linear(&[(10, 4.0), (12, 8.0), (11, 2.0)]).average(12), Some(4.666_667));
    assert_eq!(linear(&[(10, 4.0), (5, 100.0)]).average(10), Some(4.0));
    // Six digits: 0.0000004 is nothing.
    assert_eq!(linear(&[(10, 0.000_000_4)]).average(10), Some(0.0));
}

#[test]
fn weighted_averages() {
    let weighted =
        |length, values: &[(u64, f64)]| filled(length, Aggregation::WeightedExponential, values);
    let near = |got: Option<f64>, want: f64| {
        let got = got.expect("there are reports");
        assert!((got - want).abs() < 1e-6, "{got} instead of {want}");
    };
    // Four buckets: 1 − 0.0001^(1/4) = 0.9. 5·0.9 + 5·0.09 + 10·0.009 + 10·0.0009 = 5.049.
    let falling = [(1, 10.0), (2, 10.0), (3, 5.0), (4, 5.0)];
    near(weighted(4, &falling).average(4), 5.049);
    // One second later the newest counts as a zero and the oldest is out:
    // 0·0.9 + 5·0.09 + 5·0.009 + 10·0.0009 = 0.504.
    near(weighted(4, &falling).average(5), 0.504);
    // Sixty buckets: 1 − 0.0001^(1/60) = 0.1423 < 0.2, so 0.2. 10·0.2 + 20·0.16 = 5.2.
    near(weighted(60, &[(1, 20.0), (2, 10.0)]).average(2), 5.2);
    near(weighted(60, &[(1, 20.0), (2, 10.0)]).average(62), 0.0);
    assert_eq!(weighted(60, &[(1, 20.0), (2, 10.0)]).average(63), None);
}

#[test]
fn fewer_are_held_back_by_the_delay() {
    // Three stretches: the greatest of this and the two before.
    let mut held = Held::new(3);
    #[rustfmt::skip]
    let steps = [(10, 5, 5), (11, 3, 5), (12, 4, 5), (13, 1, 4), (14, 1, 4), (15, 1, 1),
                 (16, 2, 2), (16, 1, 2), (16, 7, 7), (30, 1, 1)];
    for (stretch, value, greatest) in steps {
        assert_eq!(held.record(stretch, value), greatest, "{value} at {stretch}");
    }
}

/// One sample that ends at `to` seconds.
fn sample(from: f64, to: f64, requests: u32) -> Sample {
    let (from, to) = (Duration::from_secs_f64(from), Duration::from_secs_f64(to));
    let busy_until = if requests > 0 { to } else { from };
    Sample {
        from,
        to,
        area: f64::from(requests) * (to - from).as_secs_f64(),
        arrivals: requests,
        peak: requests,
        in_flight: requests,
        busy_until,
        ..Sample::default()
    }
}

/// The reports of several buckets, one by one.
fn each((from, to): (u64, u64), value: f64) -> impl Iterator<Item = (u64, f64)> {
    (from..=to).map(move |at| (at, value))
}

#[test]
fn reports_are_of_whole_seconds_whenever_samples_end() {
    let mut reports = Reports::new(secs(1), Metric::Concurrency, secs(0));
    let mut got = Vec::new();
    // 10 in flight from 0.5 to 1.0, then 4 from 1.0 to 1.5, none to 3.0, 2 to 3.25.
    for (from, to, requests) in [
        (0.0, 0.5, 0),
        (0.5, 0.75, 10),
        (0.75, 1.25, 10),
        (1.25, 1.5, 4),
        (1.5, 3.0, 0),
        (3.0, 3.25, 2),
    ] {
        reports.take(&sample(from, to, requests), 61, |of, value| got.extend(each(of, value)));
    }
    // Second 0: 10·0.5 = 5. Second 1: 10·0.25 + 4·0.25 = 3.5. Second 2: none. Second 3: not over.
    assert_eq!(got, [(1, 5.0), (2, 3.5), (3, 0.0)]);
    assert!((reports.so_far() - 0.5).abs() < 1e-9);
}

#[test]
fn what_was_over_before_a_look_is_not_of_the_second_in_which_it_comes() {
    let (millis, mut got) = (Duration::from_millis, Vec::new());
    let mut reports = Reports::new(secs(1), Metric::Concurrency, secs(0));
    // Two requests to 1.2, one on to 2.0; looks come a millisecond late. Second 0: 2. Second 1:
    // 2·0.2 + 0.8 = 1.2, and not a thousandth of it in second 2.
    for (from, to, area, in_flight, busy_until) in
        [(0, 1000, 2.0, 2, 1000), (1000, 2001, 1.2, 0, 2000), (2001, 3001, 0.0, 0, 2000)]
    {
        let (from, to, busy_until) = (millis(from), millis(to), millis(busy_until));
        let sample = Sample { from, to, area, in_flight, busy_until, ..Sample::default() };
        reports.take(&sample, 61, |of, value| got.extend(each(of, value)));
    }
    assert_eq!(got, [(1, 2.0), (2, 1.2), (3, 0.0)]);
    // One that came and went in no time counts where it was, however late the look: in second 3.
    let mut reports = Reports::new(secs(1), Metric::Rps, secs(3));
    let at = millis(3990);
    let sample =
        Sample { from: at, to: millis(4001), arrivals: 1, busy_until: at, ..Sample::default() };
    got.clear();
    reports.take(&sample, 61, |of, value| got.extend(each(of, value)));
    assert_eq!((got.as_slice(), reports.so_far()), ([(4, 1.0)].as_slice(), 0.0));
}

#[test]
fn a_look_a_moment_late_keeps_nothing_longer() {
    let late = |late: u64| {
        let mut kpa = Kpa::new(&rules(), secs(1), secs(7));
        let mut from = secs(7);
        let mut zero = None;
        // One request from 7 to 8, and no more.
        for second in 8..100 {
            let to = secs(second) + Duration::from_millis(late);
            let area = if second == 8 { 1.0 } else { 0.0 };
            let arrivals = u32::from(second == 8);
            kpa.observe(&Sample {
                from,
                to,
                area,
                arrivals,
                busy_until: secs(8),
                ..Sample::default()
            });
            from = to;
            let decision = kpa.decide(to, &pool(1));
            if decision.want == Some(0) && zero.is_none() {
                zero = Some(second);
            }
        }
        zero
    };
    assert!(late(0).is_some());
    assert_eq!(late(1), late(0));
}

#[test]
fn a_long_silence_makes_no_more_reports_than_count() {
    let mut reports = Reports::new(secs(1), Metric::Concurrency, secs(0));
    let mut got = Vec::new();
    reports.take(&sample(0.0, 100_000.0, 0), 3, |of, value| got.extend(each(of, value)));
    assert_eq!(got, [(99_998, 0.0), (99_999, 0.0), (100_000, 0.0)]);
    // Nobody looked for a while; the request came at 200 000.
    got.clear();
    reports.take(&sample(200_000.0, 200_001.0, 1), 3, |of, value| got.extend(each(of, value)));
    assert_eq!(got, [(199_998, 0.0), (199_999, 0.0), (200_000, 0.0), (200_001, 1.0)]);
}

#[test]
fn requests_per_second_are_counted() {
    let mut reports = Reports::new(secs(1), Metric::Rps, secs(0));
    let mut got = Vec::new();
    for (to, arrivals) in [(0.5, 30), (1.0, 20), (1.5, 7), (2.0, 0)] {
        let sample = Sample { arrivals, ..sample(to - 0.5, to, 0) };
        reports.take(&sample, 61, |of, value| got.extend(each(of, value)));
    }
    assert_eq!(got, [(1, 50.0), (2, 7.0)]);
}

#[test]
fn the_first_request_is_decided_upon_at_once_and_counted_for_what_it_is() {
    let rules = Rules { target: 0.7, ..rules() };
    let mut kpa = Kpa::new(&rules, secs(1), secs(7));
    // The request came at 7.30; 20 ms later it is looked at.
    kpa.observe(&sample(7.30, 7.32, 1));
    let decision = kpa.decide(Duration::from_millis(7320), &pool(0));
    assert_eq!((decision.want, decision.again), (Some(1), Some(secs(8))));
    // It was in flight for 0.7 s of its second, and for all of the next: 0.7, (0.7 + 1)/2.
    for (from, to, average, want) in [(7.32, 8.0, 0.7, 1), (8.0, 9.0, 0.85, 2)] {
        kpa.observe(&sample(from, to, 1));
        let decision = kpa.decide(Duration::from_secs_f64(to), &pool(1));
        let figures = decision.figures.expect("averages");
        assert!((figures.stable - average).abs() < 1e-9, "{figures:?}");
        assert_eq!(decision.want, Some(want));
    }
    let mut kpa = Kpa::new(&Rules { activation: 3, ..rules }, secs(1), secs(7));
    kpa.observe(&sample(7.30, 7.32, 1));
    assert_eq!(kpa.decide(Duration::from_millis(7320), &pool(0)).want, Some(3));
}

#[test]
fn what_the_pool_has_started_stays_until_a_whole_second_was_seen() {
    let mut kpa = Kpa::new(&rules(), secs(1), secs(7));
    // Six requests for a fifth of a second; the pool has started six instances for them.
    kpa.observe(&sample(7.80, 7.82, 6));
    assert_eq!(kpa.decide(Duration::from_millis(7820), &pool(2)).want, Some(2));
    let pool = Pool { starting: 1, ..pool(5) };
    for (from, to, requests, want) in [(7.82, 8.0, 6, 6), (8.0, 9.0, 0, 3)] {
        kpa.observe(&sample(from, to, requests));
        // Second 7: 6·0.2 = 1.2, ⌈1.2/10⌉ = 1. Once second 8 is over, ⌊5/2⌋ = 2, or ⌊6/2⌋ = 3.
        let ready = if to > 8.5 { vectors::pool(6) } else { pool };
        assert_eq!(kpa.decide(Duration::from_secs_f64(to), &ready).want, Some(want), "at {to}");
    }
}

#[test]
fn a_scaler_that_resumes_keeps_what_it_finds() {
    for (resumes, want) in [(true, 6), (false, 3)] {
        let mut kpa = Kpa::new(&rules(), secs(1), secs(100));
        if resumes {
            kpa.resume(6, secs(100));
        }
        kpa.observe(&sample(100.0, 101.0, 10));
        assert_eq!(kpa.decide(secs(101), &pool(6)).want, Some(want), "⌊6/2⌋ = 3");
    }
}

#[test]
fn what_is_forgotten_wants_nothing() {
    for kind in [PolicyKind::Kpa, PolicyKind::Fixed, PolicyKind::Histogram] {
        let rules = Rules { policy: kind, scale_down_delay: Span(secs(30)), ..rules() };
        let mut policy = busy(&rules, 90);
        policy.forget();
        policy.observe(&sample(200.0, 200.0, 0));
        let gone = Pool { ready: 0, starting: 0, reachable: true };
        assert_eq!(policy.decide(secs(200), &gone).want, Some(0), "{kind}");
    }
}

/// Follows a policy that is asked when it wants to be, without further requests, and returns when
/// the number of instances changed to what.
fn followed(policy: &mut dyn Policy, mut now: Moment, mut ready: u32) -> Vec<(Moment, u32)> {
    let (busy_until, mut changes) = (now, Vec::new());
    for _ in 0..1000 {
        let decision = policy.decide(now, &pool(ready));
        if let Some(want) = decision.want.filter(|want| *want != ready) {
            changes.push((now, want));
            ready = want;
        }
        let Some(again) = decision.again else { return changes };
        assert!(again > now, "{again:?} is not after {now:?}");
        policy.observe(&Sample { busy_until, ..sample(now.as_secs_f64(), again.as_secs_f64(), 0) });
        now = again;
    }
    panic!("{policy:?} never rests");
}

/// A policy that has seen `requests` in flight from 100 s to 200 s, one sample a second.
fn busy(rules: &Rules, requests: u32) -> Box<dyn Policy> {
    let mut policy = policy(rules, secs(1), secs(100));
    for at in 100..200_u32 {
        policy.observe(&sample(at.into(), f64::from(at) + 1.0, requests));
        let now = secs(u64::from(at) + 1);
        policy.decide(now, &pool(requests.div_ceil(10)));
    }
    let done = Sample { busy_until: secs(200), ..sample(200.0, 200.0, 0) };
    policy.observe(&done);
    policy
}

#[test]
fn from_five_to_zero() {
    let rules = rules();
    // 50 in flight up to 200. The panic average is of less than two per instance: no panic.
    let mut kpa = busy(&rules, 50);
    // ⌈50·(60−k)/60/10⌉ after k seconds: 4 when 50·(60−k) ≤ 2400, k = 12; 3 at 24; 2 at 36; 1 at
    // 48; 0 at 60, which is held at 1 for the grace of 30 s.
    let want = [(212, 4), (224, 3), (236, 2), (248, 1), (290, 0)];
    let want: Vec<_> = want.iter().map(|(at, n)| (secs(*at), *n)).collect();
    assert_eq!(followed(kpa.as_mut(), secs(200), 5), want);
}

#[test]
fn a_scale_down_delay_holds_every_step_back() {
    // The greatest of this and the 29 decisions before counts. 5 is decided until 211, 4 until 223, 3
    // until 235: so 4 at 241, 3 at 253, 2 at 265. With 4 ready until 253, ⌊4/2⌋ = 2 is decided
    // that long: 1 at 283. With 2 ready until 283, ⌊2/2⌋ = 1 is: none at 313, and gone 30 s later.
    let rules = Rules { scale_down_delay: Span(secs(30)), ..rules() };
    let mut kpa = busy(&rules, 50);
    let want = [(241, 4), (253, 3), (265, 2), (283, 1), (343, 0)];
    let want: Vec<_> = want.iter().map(|(at, n)| (secs(*at), *n)).collect();
    assert_eq!(followed(kpa.as_mut(), secs(200), 5), want);
}

#[test]
fn a_burst_is_panicked_about_and_held_for_a_window() {
    // 10 in flight in each of seconds 100 to 199, then 200 in second 200 and 10 again.
    let mut kpa = busy(&rules(), 10);
    let mut wants = Vec::new();
    for (at, requests) in [(200_u32, 200), (201, 10), (202, 10)] {
        kpa.observe(&sample(at.into(), f64::from(at) + 1.0, requests));
        let decision = kpa.decide(secs(u64::from(at) + 1), &pool(1));
        wants.push((decision.want, decision.figures.is_some_and(|figures| figures.panicking)));
    }
    // Panic average (5·10 + 200)/6 = 41.67: ⌈4.17⌉ = 5 ≥ 2·1. The next are (4·10 + 200 + 10)/6, the
    // same.
    assert_eq!(wants, [(Some(5), true); 3]);
    let mut panicking = true;
    for at in 203..300_u32 {
        kpa.observe(&sample(at.into(), f64::from(at) + 1.0, 10));
        let decision = kpa.decide(secs(u64::from(at) + 1), &pool(5));
        panicking = decision.figures.is_some_and(|figures| figures.panicking);
        // Last over the threshold with one ready, at 203; left after 203 + 60.
        assert_eq!(panicking, at < 263, "{at}");
        // Then ⌊5/2⌋ = 2, because ⌈10/10⌉ = 1.
        assert_eq!(decision.want, Some(if panicking { 5 } else { 2 }), "{at}");
    }
    assert!(!panicking);
}

#[test]
fn the_last_one_goes_after_the_longer_of_grace_and_retention() {
    for (grace, retention, gone) in [(0, 0, 260), (30, 0, 290), (30, 20, 290), (30, 45, 305)] {
        let rules = Rules { grace: Span(secs(grace)), retention: Span(secs(retention)), ..rules() };
        let mut kpa = busy(&rules, 1);
        assert_eq!(followed(kpa.as_mut(), secs(200), 1), [(secs(gone), 0)], "{grace} {retention}");
    }
    let rules = Rules { scale_to_zero: false, ..rules() };
    let mut kpa = busy(&rules, 1);
    for at in 200..400_u32 {
        kpa.observe(&sample(at.into(), f64::from(at) + 1.0, 0));
        assert_eq!(kpa.decide(secs(u64::from(at) + 1), &pool(1)).want, Some(1));
    }
}

#[test]
fn a_request_at_the_last_moment_keeps_the_instance() {
    let mut kpa = busy(&rules(), 1);
    for at in 200..289_u32 {
        kpa.observe(&sample(at.into(), f64::from(at) + 1.0, 0));
        assert_eq!(kpa.decide(secs(u64::from(at) + 1), &pool(1)).want, Some(1));
    }
    // Nothing has been reported since 200, but one is in flight at 290, when the grace is over.
    kpa.observe(&sample(289.0, 290.0, 0));
    kpa.observe(&sample(290.0, 290.0, 1));
    let decision = kpa.decide(secs(290), &pool(1));
    assert_eq!((decision.want, decision.again), (Some(1), Some(secs(291))));
}

#[test]
fn a_young_instance_is_active_for_a_window_first() {
    // Nothing was ever asked of it; ready since 105.
    let mut kpa = Kpa::new(&rules(), secs(1), secs(100));
    for at in 100..105_u32 {
        kpa.observe(&sample(at.into(), f64::from(at) + 1.0, 0));
        let starting = Pool { ready: 0, starting: 1, reachable: true };
        assert_eq!(kpa.decide(secs(u64::from(at) + 1), &starting).want, Some(1), "activating");
    }
    // Active for 60 s, then inactive for 30 s.
    assert_eq!(followed(&mut kpa, secs(105), 1), [(secs(195), 0)]);
}

#[test]
fn a_start_that_failed_is_not_held_for() {
    let mut kpa = busy(&rules(), 1);
    for at in 200..259_u32 {
        kpa.observe(&sample(at.into(), f64::from(at) + 1.0, 0));
        assert_eq!(kpa.decide(secs(u64::from(at) + 1), &pool(0)).want, Some(1), "{at}");
    }
    kpa.observe(&sample(259.0, 260.0, 0));
    let decision = kpa.decide(secs(260), &pool(0));
    assert_eq!((decision.want, decision.again), (Some(0), None));
}

#[test]
fn the_initial_scale_is_a_minimum_until_it_is_reached() {
    let rules = Rules { initial: 4, max: 9, min: 1, ..rules() };
    let mut kpa = Kpa::new(&rules, secs(1), secs(0));
    let mut at = 0_u32;
    let mut step = |ready, reachable| {
        kpa.observe(&sample(f64::from(at), f64::from(at + 1), 0));
        at += 1;
        kpa.decide(secs(at.into()), &Pool { ready, starting: 0, reachable }).want
    };
    assert_eq!(step(0, true), Some(4));
    assert_eq!(step(3, false), Some(1), "nobody can reach it");
    assert_eq!(step(3, true), Some(4));
    assert_eq!(step(4, true), Some(2), "reached; ⌊4/2⌋");
    assert_eq!(step(2, true), Some(1));
    assert_eq!(step(0, true), Some(1), "reached once is enough");
}

#[test]
fn bounds_hold_for_every_policy() {
    for kind in [PolicyKind::Kpa, PolicyKind::Fixed, PolicyKind::Histogram] {
        let rules = Rules { policy: kind, min: 2, max: 3, ..rules() };
        let mut policy = busy(&rules, 90);
        policy.observe(&sample(200.0, 201.0, 90));
        assert_eq!(policy.decide(secs(201), &pool(3)).want, Some(3), "{kind}");
        let changes = followed(policy.as_mut(), secs(201), 3);
        assert_eq!(changes.last().map(|(_, want)| *want), Some(2), "{kind}: {changes:?}");
    }
}

#[test]
fn an_instance_is_kept_for_its_keep_alive() {
    let rules = Rules { policy: PolicyKind::Fixed, keep_alive: Span(secs(90)), ..rules() };
    let mut fixed = busy(&rules, 1);
    assert_eq!(followed(fixed.as_mut(), secs(200), 1), [(secs(290), 0)]);
    // Three were needed until 200, one until 250: three go to one at 290, and to none at 340.
    let mut fixed = busy(&rules, 25);
    fixed.observe(&sample(200.0, 250.0, 10));
    let done = Sample { busy_until: secs(250), ..sample(250.0, 250.0, 0) };
    fixed.observe(&done);
    assert_eq!(followed(fixed.as_mut(), secs(250), 3), [(secs(290), 1), (secs(340), 0)]);
}

/// A histogram that has seen these idle times, in minutes, and then a request done at `done`.
fn learnt(idle: &[u64], done: Moment) -> Histogram {
    let rules = Rules { policy: PolicyKind::Histogram, keep_alive: Span(secs(600)), ..rules() };
    let mut histogram = Histogram::new(&rules, secs(1));
    for minutes in idle {
        histogram.observe(&Sample {
            arrivals: 1,
            peak: 1,
            gaps: 1,
            longest_gap: secs(minutes * 60),
            busy_until: done,
            to: done,
            from: done,
            ..Sample::default()
        });
    }
    histogram
}

#[test]
fn an_instance_is_back_before_the_next_request_is_expected() {
    let at = |minutes: f64| secs(100_000) + Duration::from_secs_f64(minutes * 60.0);
    // Always 30 min: head 30, tail 31. Back after 30·0.9 = 27 min, kept until 31·1.1 = 34.1 min.
    let mut histogram = learnt(&[30; 20], at(0.0));
    let want = [(at(0.0), 0), (at(27.0), 1), (at(34.1), 0)];
    assert_eq!(followed(&mut histogram, at(0.0), 1), want);
    // Head in the first minute: it stays, until 1·1.1 = 1.1 min.
    let mut histogram = learnt(&[0; 20], at(0.0));
    assert_eq!(followed(&mut histogram, at(0.0), 1), [(at(1.1), 0)]);
    // 1 of 20 at 5 min is 5 % and the head, 19 at 50 min: 4.5 min and 51·1.1 = 56.1 min.
    let idle: Vec<_> = [5].into_iter().chain([50; 19]).collect();
    let windows = learnt(&idle, at(0.0)).idle_times().windows().expect("says something");
    assert_eq!(windows, Windows { begin: secs(270), end: secs(3366) });
}

#[test]
fn what_says_nothing_leaves_the_fixed_keep_alive() {
    let at = |minutes: u64| secs(100_000 + minutes * 60);
    // Nothing yet; evenly spread over the four hours; mostly longer than four hours.
    let even: Vec<_> = (0..240).collect();
    for idle in [&[][..], &even, &[30, 300, 300]] {
        let mut histogram = learnt(idle, at(0));
        histogram.observe(&Sample {
            arrivals: 1,
            peak: 1,
            busy_until: at(0),
            ..sample(1e5, 1e5, 0)
        });
        assert_eq!(followed(&mut histogram, at(0), 1), [(at(10), 0)], "{} idle times", idle.len());
    }
    // 60 bins of one and 180 of none: mean 1/4, variance 1/4 − 1/16 = 3/16, √3 = 1.73 < 2.
    // 40 bins of one: mean 1/6, variance 5/36, √5 = 2.24 ≥ 2.
    for (bins, variation, telling) in [(60, 3.0_f64.sqrt(), false), (40, 5.0_f64.sqrt(), true)] {
        let idle: Vec<_> = (0..bins).collect();
        let learnt = learnt(&idle, at(0));
        let got = learnt.idle_times().variation();
        assert!((got - variation).abs() < 1e-9, "{got} instead of {variation}");
        assert_eq!(learnt.idle_times().windows().is_some(), telling);
    }
}
