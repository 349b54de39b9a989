//! Order statistics, and how sure one may be of them.
//!
//! Every figure is a function of its input and a seed: the same rows give the same report.

mod blocks;
mod difference;

pub use difference::{Difference, difference, difference_in_time};

/// Resamplings behind a confidence interval.
const RESAMPLES: usize = 2000;

/// An interval that holds the figure with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What a sample looks like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Values.
    pub n: usize,
    /// Least.
    pub min: f64,
    /// First quartile.
    pub q1: f64,
    /// Median.
    pub median: f64,
    /// Third quartile.
    pub q3: f64,
    /// Greatest.
    pub max: f64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation ÷ mean; 0 for a single value.
    pub variation: f64,
    /// Values further than 1.5 interquartile ranges outside the quartiles.
    pub outliers: usize,
    /// Of the median, by bootstrap; absent below three values.
    pub interval: Option<Interval>,
}

impl Summary {
    /// Summarises the values that are finite; none if there is none.
    #[must_use]
    pub fn of(values: &[f64], seed: u64) -> Option<Self> {
        let sorted = sorted(values);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let n = sorted.len();
        let mean = mean(&sorted);
        let (q1, median, q3) =
            (quantile(&sorted, 0.25), quantile(&sorted, 0.5), quantile(&sorted, 0.75));
        let (low, high) = (q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1));
        let outliers = sorted.iter().filter(|v| **v < low || **v > high).count();
        let squares: f64 = sorted.iter().map(|v| (v - mean).powi(2)).sum();
        let deviation = if n > 1 { (squares / (n - 1) as f64).sqrt() } else { 0.0 };
        let variation = if mean == 0.0 { 0.0 } else { deviation / mean.abs() };
        let interval = median_interval(&sorted, seed);
        Some(Self { n, min, q1, median, q3, max, mean, variation, outliers, interval })
    }
}

/// The finite values in ascending order.
fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The median of the finite values; none if there is none.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    (!sorted.is_empty()).then(|| quantile(&sorted, 0.5))
}

/// What only so many per cent of the finite values exceed; none if there is none.
#[must_use]
pub fn upper_percent(values: &[f64], percent: f64) -> Option<f64> {
    let sorted = sorted(values);
    (!sorted.is_empty()).then(|| quantile(&sorted, 1.0 - percent / 100.0))
}

/// The quantile of values in ascending order, interpolated between neighbours.
///
/// # Source
/// Hyndman and Fan, "Sample Quantiles in Statistical Packages", type 7 (the default of R and
/// NumPy).
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = part.clamp(0.0, 1.0) * last as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the last index"
    )]
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    let share = at - below as f64;
    sorted[below] + share * (sorted[above] - sorted[below])
}

/// The median's interval by the percentile bootstrap.
fn median_interval(sorted: &[f64], seed: u64) -> Option<Interval> {
    if sorted.len() < 3 {
        return None;
    }
    let mut random = Random::new(seed);
    Some(percentiles((0..RESAMPLES).map(|_| resampled_median(sorted, &mut random)).collect()))
}

fn resampled_median(values: &[f64], random: &mut Random) -> f64 {
    let mut again: Vec<f64> = values.iter().map(|_| values[random.below(values.len())]).collect();
    again.sort_by(f64::total_cmp);
    quantile(&again, 0.5)
}

fn percentiles(mut figures: Vec<f64>) -> Interval {
    figures.sort_by(f64::total_cmp);
    Interval { low: quantile(&figures, 0.025), high: quantile(&figures, 0.975) }
}

/// The geometric mean of positive values; none if one is not positive, or there is none.
#[must_use]
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() || values.iter().any(|v| !v.is_finite() || *v <= 0.0) {
        return None;
    }
    Some((values.iter().map(|v| v.ln()).sum::<f64>() / values.len() as f64).exp())
}

/// How many times as large the first samples are as the second ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Ratio {
    /// Geometric mean over the pairs of the ratio of their medians.
    pub ratio: f64,
    /// Its interval: each sample is resampled, the set of pairs is not. Absent if a sample has
    /// fewer than three values.
    pub interval: Option<Interval>,
    /// Pairs.
    pub n: usize,
}

/// The geometric mean of `median(a) ÷ median(b)` over pairs of samples; none when a median is not
/// positive.
#[must_use]
pub fn ratio(pairs: &[(&[f64], &[f64])], seed: u64) -> Option<Ratio> {
    let pairs: Vec<(Vec<f64>, Vec<f64>)> =
        pairs.iter().map(|(a, b)| (sorted(a), sorted(b))).collect();
    if pairs.iter().any(|(a, b)| a.is_empty() || b.is_empty()) {
        return None;
    }
    let medians = pairs.iter().map(|(a, b)| quantile(a, 0.5) / quantile(b, 0.5));
    let ratio = geometric_mean(&medians.collect::<Vec<_>>())?;
    let mut random = Random::new(seed);
    let enough = pairs.iter().all(|(a, b)| a.len() >= 3 && b.len() >= 3);
    let resampled = || {
        let figures = pairs
            .iter()
            .map(|(a, b)| resampled_median(a, &mut random) / resampled_median(b, &mut random));
        geometric_mean(&figures.collect::<Vec<_>>())
    };
    let figures: Option<Vec<f64>> =
        if enough { std::iter::repeat_with(resampled).take(RESAMPLES).collect() } else { None };
    Some(Ratio { ratio, interval: figures.map(percentiles), n: pairs.len() })
}

/// A small reproducible generator.
///
/// # Source
/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (`SplitMix64`).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator whose numbers follow from the seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 up to, but without, `most`; 0 if that is 0.
    pub fn below(&mut self, most: usize) -> usize {
        let wide = u128::from(self.bits()) * most as u128;
        usize::try_from(wide >> 64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
