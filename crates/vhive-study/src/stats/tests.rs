use super::*;

#[test]
fn a_sample_is_summarised_as_by_hand() {
    // 1 2 3 4 100: quartiles 2 and 4, so that 100 lies beyond 4 + 1.5 × 2.
    let summary = Summary::of(&[4.0, 1.0, 100.0, 3.0, 2.0], 1).expect("not empty");
    assert_eq!((summary.n, summary.min, summary.max), (5, 1.0, 100.0));
    assert_eq!((summary.q1, summary.median, summary.q3), (2.0, 3.0, 4.0));
    assert_eq!(summary.mean, 22.0);
    assert_eq!(summary.outliers, 1);
    // Deviations −21 −20 −19 −18 78: squares 441 400 361 324 6084 sum to 7610.
    assert!((summary.variation - (7610.0_f64 / 4.0).sqrt() / 22.0).abs() < 1e-12);
}

#[test]
fn quantiles_are_interpolated() {
    // Type 7: position 0.25 × 3 = 0.75 between 10 and 20.
    assert_eq!(quantile(&[10.0, 20.0, 30.0, 40.0], 0.25), 17.5);
    assert_eq!(quantile(&[10.0, 20.0, 30.0, 40.0], 0.5), 25.0);
    assert_eq!(median(&[7.0]), Some(7.0));
    assert_eq!(median(&[f64::NAN]), None);
}

#[test]
fn a_single_value_has_no_spread_and_no_interval() {
    let summary = Summary::of(&[5.0], 1).expect("not empty");
    assert_eq!((summary.variation, summary.interval, summary.outliers), (0.0, None, 0));
    assert_eq!(Summary::of(&[], 1), None);
}

#[test]
fn geometric_means_are_as_by_hand() {
    assert!((geometric_mean(&[1.0, 4.0, 16.0]).expect("positive") - 4.0).abs() < 1e-12);
    assert_eq!(geometric_mean(&[1.0, 0.0]), None);
    assert_eq!(geometric_mean(&[]), None);
    // Medians 20/10 = 2 and 80/10 = 8: their geometric mean is 4.
    let (a, b, c) = ([10.0, 20.0, 30.0], [10.0, 10.0, 10.0], [80.0, 80.0, 80.0]);
    let found = ratio(&[(&a, &b), (&c, &b)], 1).expect("positive");
    assert!((found.ratio - 4.0).abs() < 1e-12);
    let interval = found.interval.expect("three values each");
    assert!(interval.low >= 2.0_f64.sqrt() * 2.0 - 1e-9 && interval.high <= 4.9, "{interval:?}");
    assert_eq!(ratio(&[(&a, &[])], 1), None);
    assert_eq!(ratio(&[(&a[..2], &b)], 1).expect("positive").interval, None);
}

#[test]
fn the_interval_holds_the_true_median_about_as_often_as_it_says() {
    let mut random = Random::new(42);
    let mut held = 0;
    for round in 0..60 {
        // Uniform on [0, 1): the median is one half.
        let values: Vec<f64> =
            (0..25).map(|_| (random.bits() >> 11) as f64 / (1_u64 << 53) as f64).collect();
        let summary = Summary::of(&values, round).expect("not empty");
        let Interval { low, high } = summary.interval.expect("enough values");
        held += usize::from(low <= 0.5 && 0.5 <= high);
    }
    // 95 % of 60 is 57; the percentile bootstrap of so few values may miss it by some per cent.
    assert!((52..=60).contains(&held), "{held} of 60");
}

proptest::proptest! {
    // Each case resamples thousands of times.
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(12))]

    #[test]
    fn order_statistics_are_in_order(values in proptest::collection::vec(0.0_f64..1e9, 1..60), seed: u64) {
        let s = Summary::of(&values, seed).expect("not empty");
        assert!(s.min <= s.q1 && s.q1 <= s.median && s.median <= s.q3 && s.q3 <= s.max);
        assert!(s.min <= s.mean + 1e-6 && s.mean <= s.max + 1e-6);
        if let Some(Interval { low, high }) = s.interval {
            assert!(s.min <= low && low <= high && high <= s.max);
        }
        assert_eq!(Summary::of(&values, seed), Some(s), "the seed decides");
    }

    #[test]
    fn scaling_a_sample_scales_its_figures(values in proptest::collection::vec(1.0_f64..1e6, 3..40)) {
        let double: Vec<f64> = values.iter().map(|v| v * 2.0).collect();
        let (one, two) = (Summary::of(&values, 7).unwrap(), Summary::of(&double, 7).unwrap());
        assert!((two.median - 2.0 * one.median).abs() <= 1e-9 * two.median);
        assert!((two.variation - one.variation).abs() < 1e-9);
        assert_eq!(one.outliers, two.outliers);
        let found = ratio(&[(&double, &values)], 7).unwrap();
        assert!((found.ratio - 2.0).abs() < 1e-9);
    }

    #[test]
    fn a_difference_of_series_is_that_of_their_values_whatever_they_are(
        a in proptest::collection::vec(-1e6_f64..1e6, 0..80),
        b in proptest::collection::vec(proptest::sample::select(vec![1.0, 2.0, f64::INFINITY]), 0..80),
        part in 0.0_f64..=1.0,
        seed: u64,
    ) {
        let found = difference_in_time(&a, &b, part, seed);
        let values = difference(&a, &b, part, seed);
        assert_eq!(found.map(|one| one.by), values.map(|one| one.by));
        let Some(found) = found else { return Ok(()) };
        let n = [a.len(), b.iter().filter(|value| value.is_finite()).count()];
        assert!((0..2).all(|at| (1..=n[at]).contains(&found.block[at])), "{found:?}");
        assert_eq!(found.interval.is_some(), n.iter().all(|n| *n >= 3));
        assert!(found.interval.is_none_or(|one| one.low <= one.high), "{found:?}");
    }

    #[test]
    fn random_numbers_stay_below_their_bound(seed: u64, most in 1_usize..1000) {
        let mut random = Random::new(seed);
        assert!((0..50).all(|_| random.below(most) < most));
    }
}
