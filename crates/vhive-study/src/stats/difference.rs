//! By how much a quantile of one sample differs from that of another, and how sure that is.

use super::{Interval, RESAMPLES, Random, percentiles, quantile, sorted};

/// Values up to which a sample is resampled value by value.
const FEW: usize = 500;

/// A difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The quantile of the second sample less that of the first.
    pub by: f64,
    /// Its interval: both samples are resampled. Absent if one has fewer than three values.
    pub interval: Option<Interval>,
}

impl Difference {
    /// Whether the interval leaves out that there is none.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.interval.is_some_and(|interval| interval.low > 0.0 || interval.high < 0.0)
    }
}

/// The difference of the quantiles `part` of the finite values; none if a sample has none.
#[must_use]
pub fn difference(a: &[f64], b: &[f64], part: f64, seed: u64) -> Option<Difference> {
    let (a, b) = (sorted(a), sorted(b));
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let by = quantile(&b, part) - quantile(&a, part);
    let mut random = Random::new(seed);
    let enough = a.len() >= 3 && b.len() >= 3;
    let interval = enough.then(|| {
        let one = |_| resampled(&b, part, &mut random) - resampled(&a, part, &mut random);
        percentiles((0..RESAMPLES).map(one).collect())
    });
    Some(Difference { by, interval })
}

/// The quantile of a sample drawn from this one, with replacement, as large as it is.
///
/// Of a large sample only the one value is drawn: the k-th of n draws, which is at the same place
/// in the sample as the k-th of n even draws in an interval, and that is distributed as
/// `Beta(k, n + 1 − k)`.
fn resampled(values: &[f64], part: f64, random: &mut Random) -> f64 {
    if values.len() <= FEW {
        let mut again: Vec<f64> =
            values.iter().map(|_| values[random.below(values.len())]).collect();
        again.sort_by(f64::total_cmp);
        return quantile(&again, part);
    }
    let n = values.len() as f64;
    let k = (part * (n - 1.0)).round() + 1.0;
    let (below, above) = (gamma(k, random), gamma(n + 1.0 - k, random));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 ..= n")]
    let at = (below / (below + above) * n) as usize;
    values[at.min(values.len() - 1)]
}

/// A gamma variate of a shape from one on.
///
/// # Source
/// Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", 2000.
fn gamma(shape: f64, random: &mut Random) -> f64 {
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(random);
        let v = (1.0 + c * x).powi(3);
        if v <= 0.0 {
            continue;
        }
        let u = unit(random);
        if u.ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
            return d * v;
        }
    }
}

/// # Source
/// Box and Muller.
fn normal(random: &mut Random) -> f64 {
    let (radius, turn) = ((-2.0 * unit(random).ln()).sqrt(), unit(random));
    radius * (turn * std::f64::consts::TAU).cos()
}

/// Above 0, up to 1.
fn unit(random: &mut Random) -> f64 {
    ((random.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Even in 0 to 1, moved.
    fn sample(n: usize, seed: u64, moved: f64) -> Vec<f64> {
        let mut random = Random::new(seed);
        (0..n).map(|_| unit(&mut random) + moved).collect()
    }

    #[test]
    fn a_shift_is_found_and_none_is_not() {
        for n in [40, 400, 4000] {
            let (a, same) = (sample(n, 1, 0.0), sample(n, 2, 0.0));
            let moved: Vec<f64> = same.iter().map(|value| value + 0.5).collect();
            for part in [0.5, 0.99] {
                let found = difference(&a, &moved, part, 7).expect("values");
                assert!(found.is_clear() && (found.by - 0.5).abs() < 0.3, "{n} {part} {found:?}");
                assert_eq!(difference(&a, &moved, part, 7), Some(found), "the same seed");
            }
        }
        assert_eq!(difference(&[], &[1.0], 0.5, 1), None);
        let few = difference(&[1.0, 2.0], &[5.0, 5.0], 0.5, 1).expect("values");
        assert!(few.by == 3.5 && !few.is_clear(), "too few to say");
    }

    #[test]
    fn intervals_hold_no_difference_about_as_often_as_they_say() {
        for n in [60, 800] {
            let clear = (0..200)
                .filter(|round| {
                    let (a, b) = (sample(n, 2 * round, 0.0), sample(n, 2 * round + 1, 0.0));
                    difference(&a, &b, 0.5, *round).is_some_and(|found| found.is_clear())
                })
                .count();
            // 5 % of 200 are ten; more than thirty would be a mistake.
            assert!(clear <= 30, "{clear} of 200 with n = {n}");
        }
    }

    #[test]
    fn large_samples_are_resampled_as_widely_as_small_ones() {
        // The median of n even draws deviates by 1/(2√n).
        for n in [400, 800] {
            let values: Vec<f64> = (0..n).map(|at| f64::from(at) / f64::from(n)).collect();
            let mut random = Random::new(3);
            let all: Vec<f64> = (0..2000).map(|_| resampled(&values, 0.5, &mut random)).collect();
            let mean = all.iter().sum::<f64>() / 2000.0;
            let deviation =
                (all.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 2000.0).sqrt();
            let expected = 0.5 / f64::from(n).sqrt();
            assert!((mean - 0.5).abs() < 0.01, "{n}: {mean}");
            assert!((deviation / expected - 1.0).abs() < 0.15, "{n}: {deviation} for {expected}");
        }
    }
}
