//! By how much a quantile of one sample differs from that of another, and how sure that is.

use super::blocks::{Worth, worth};
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
    /// How many values of each sample in a row were drawn together; 1 each where they do not depend on
    /// those before.
    pub block: [usize; 2],
}

impl Difference {
    /// Whether the interval leaves out that there is none.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.interval.is_some_and(|interval| interval.low > 0.0 || interval.high < 0.0)
    }
}

/// The difference of the quantiles `part` of the finite values, each of which is independent of the
/// others; none if a sample has none.
#[must_use]
pub fn difference(a: &[f64], b: &[f64], part: f64, seed: u64) -> Option<Difference> {
    between(&Sample::of_values(a)?, &Sample::of_values(b)?, part, seed)
}

/// As [`difference`], of values in the order of their time, which may depend on those shortly before:
/// such as are near each other are drawn together.
#[must_use]
pub fn difference_in_time(a: &[f64], b: &[f64], part: f64, seed: u64) -> Option<Difference> {
    between(&Sample::in_time(a, part)?, &Sample::in_time(b, part)?, part, seed)
}

fn between(a: &Sample, b: &Sample, part: f64, seed: u64) -> Option<Difference> {
    let by = quantile(&b.sorted, part) - quantile(&a.sorted, part);
    let mut random = Random::new(seed);
    let enough = a.sorted.len() >= 3 && b.sorted.len() >= 3;
    let interval = enough.then(|| {
        let one = |_| b.resampled(part, &mut random) - a.resampled(part, &mut random);
        percentiles((0..RESAMPLES).map(one).collect())
    });
    Some(Difference { by, interval, block: [a.worth.block, b.worth.block] })
}

/// What is resampled.
struct Sample {
    /// In the order in which they are drawn from: of independent values any.
    values: Vec<f64>,
    sorted: Vec<f64>,
    worth: Worth,
}

impl Sample {
    fn of_values(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        let worth = Worth { block: 1, size: sorted.len() as f64 };
        (!sorted.is_empty()).then(|| Self { values: sorted.clone(), sorted, worth })
    }

    fn in_time(values: &[f64], part: f64) -> Option<Self> {
        let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        let sorted = sorted(&values);
        let worth = worth(&values, quantile(&sorted, part));
        (!sorted.is_empty()).then_some(Self { values, sorted, worth })
    }

    /// The quantile of a sample drawn from this one block by block, with replacement, as large as it is.
    ///
    /// Of a large sample only the one value is drawn: the k-th of n draws, which is at the same place
    /// in the sample as the k-th of n even draws in an interval, and that is distributed as
    /// `Beta(k, n + 1 − k)`. Of values that depend on each other, n is what they are worth.
    fn resampled(&self, part: f64, random: &mut Random) -> f64 {
        let n = self.values.len();
        if n <= FEW {
            let mut again = Vec::with_capacity(n + self.worth.block);
            while again.len() < n {
                let from = random.below(n + 1 - self.worth.block);
                again.extend_from_slice(&self.values[from..from + self.worth.block]);
            }
            again.truncate(n);
            again.sort_by(f64::total_cmp);
            return quantile(&again, part);
        }
        let k = part * (self.worth.size - 1.0) + 1.0;
        let (below, above) = (gamma(k, random), gamma(self.worth.size + 1.0 - k, random));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 ..= n")]
        let at = (below / (below + above) * n as f64) as usize;
        self.sorted[at.min(n - 1)]
    }
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
pub(super) mod tests {
    use super::*;

    /// Even in 0 to 1, moved.
    pub(in crate::stats) fn sample(n: usize, seed: u64, moved: f64) -> Vec<f64> {
        let mut random = Random::new(seed);
        (0..n).map(|_| unit(&mut random) + moved).collect()
    }

    /// Latencies of a process whose logarithm depends on the one before by so much; their median is 1.
    pub(in crate::stats) fn autoregressive(n: usize, dependence: f64, seed: u64) -> Vec<f64> {
        let mut random = Random::new(seed);
        let news = (1.0 - dependence * dependence).sqrt();
        let mut now = normal(&mut random);
        let next = |_| {
            now = dependence * now + news * normal(&mut random);
            (now / 2.0).exp()
        };
        (0..n).map(next).collect()
    }

    type Way = fn(&[f64], &[f64], f64, u64) -> Option<Difference>;

    /// How many of so many pairs of runs of the same process differ clearly.
    fn clear(rounds: u64, n: usize, (dependence, part): (f64, f64), way: Way) -> usize {
        let differs = |round: &u64| {
            let [a, b] = [2 * round, 2 * round + 1].map(|seed| autoregressive(n, dependence, seed));
            way(&a, &b, part, *round).is_some_and(|found| found.is_clear())
        };
        (0..rounds).filter(differs).count()
    }

    #[test]
    fn two_runs_of_one_process_are_clearly_different_about_as_often_as_intervals_say() {
        // 5 % of 200 are ten, give or take six (two deviations); few requests are in the bunches above a p99,
        // so that its intervals are somewhat too narrow still. Drawn one by one, as if each were news, many
        // more pairs look different.
        for (dependence, part, expected, one_by_one) in [
            (0.0, 0.5, 3..=18, 0),
            (0.5, 0.5, 3..=18, 20),
            (0.9, 0.5, 3..=20, 80),
            (0.9, 0.99, 3..=26, 60),
        ] {
            let [blocks, values] = [difference_in_time as Way, difference]
                .map(|way| clear(200, 2000, (dependence, part), way));
            let told = format!("{dependence}, {part}: {blocks} by blocks, {values} one by one");
            println!("{told}");
            assert!(expected.contains(&blocks) && values >= one_by_one, "{told}");
        }
    }

    #[test]
    fn small_samples_are_drawn_block_by_block_as_widely_as_runs_differ() {
        let deviation = |all: &[f64]| {
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            (all.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt()
        };
        let runs: Vec<Vec<f64>> = (0..300).map(|seed| autoregressive(400, 0.8, seed)).collect();
        let medians: Vec<f64> = runs.iter().map(|run| quantile(&sorted(run), 0.5)).collect();
        let true_one = deviation(&medians);
        let mut random = Random::new(1);
        let mut resampled = |samples: Vec<Sample>| {
            let of_run = |sample: &Sample| {
                let all: Vec<f64> = (0..100).map(|_| sample.resampled(0.5, &mut random)).collect();
                deviation(&all)
            };
            let all: Vec<f64> = samples.iter().map(of_run).collect();
            all.iter().sum::<f64>() / all.len() as f64 / true_one
        };
        let few = &runs[..30];
        let blocks = resampled(few.iter().filter_map(|run| Sample::in_time(run, 0.5)).collect());
        let values = resampled(few.iter().filter_map(|run| Sample::of_values(run)).collect());
        println!("{blocks} by blocks, {values} one by one");
        assert!(
            (0.8..1.2).contains(&blocks) && values < 0.6,
            "{blocks} and {values} of {true_one}"
        );
    }

    #[test]
    fn a_shift_is_found_in_values_that_depend_on_each_other() {
        for n in [300, 3000] {
            let a = autoregressive(n, 0.8, 1);
            let b: Vec<f64> = autoregressive(n, 0.8, 2).iter().map(|value| value + 1.0).collect();
            let found = difference_in_time(&a, &b, 0.5, 1).expect("values");
            assert!(found.is_clear() && (found.by - 1.0).abs() < 0.3, "{found:?}");
            assert!(found.block.iter().all(|block| (2..n / 3 + 1).contains(block)), "{found:?}");
            assert_eq!(difference_in_time(&a, &b, 0.5, 1), Some(found), "the same seed");
            let wide = found.interval.expect("many values");
            let narrow = difference(&a, &b, 0.5, 1).and_then(|found| found.interval);
            let narrow = narrow.expect("many values");
            assert!(wide.high - wide.low > 1.2 * (narrow.high - narrow.low), "{wide:?} {narrow:?}");
        }
        assert_eq!(difference_in_time(&[], &[1.0], 0.5, 1), None);
        assert_eq!(difference_in_time(&[f64::NAN], &[1.0], 0.5, 1), None);
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
            let sample = Sample::of_values(&values).expect("values");
            let all: Vec<f64> = (0..2000).map(|_| sample.resampled(0.5, &mut random)).collect();
            let mean = all.iter().sum::<f64>() / 2000.0;
            let deviation =
                (all.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 2000.0).sqrt();
            let expected = 0.5 / f64::from(n).sqrt();
            assert!((mean - 0.5).abs() < 0.01, "{n}: {mean}");
            assert!((deviation / expected - 1.0).abs() < 0.15, "{n}: {deviation} for {expected}");
        }
    }
}
