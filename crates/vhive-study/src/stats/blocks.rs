//! How far the values of one run depend on those before, and how many independent ones they are worth.
//!
//! Requests of one run are slow together: a cold start, a pause or a busy neighbour is in all that were
//! due meanwhile. Blocks of consecutive values keep that together; of a quantile it matters only which
//! values are above it, so that is what is looked at.
//!
//! # Source
//! Künsch, "The Jackknife and the Bootstrap for General Stationary Observations", 1989. The length of
//! blocks: Politis and White, "Automatic Block-Length Selection for the Dependent Bootstrap", 2004,
//! with the correction of Patton, Politis and White, 2009.

use super::mean;

/// What a series is worth for one of its quantiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Worth {
    /// Consecutive values that are drawn together; 1 where values do not depend on those before.
    pub(super) block: usize,
    /// As many independent values would tell the quantile as well.
    pub(super) size: f64,
}

/// That of values in the order of their time, for their quantile `at`.
pub(super) fn worth(values: &[f64], at: f64) -> Worth {
    let n = values.len();
    let below: Vec<f64> = values.iter().map(|value| f64::from(u8::from(*value <= at))).collect();
    let share = mean(&below);
    let deviations: Vec<f64> = below.iter().map(|one| one - share).collect();
    let block = length(&deviations);
    let independent = Worth { block: 1, size: n as f64 };
    let even = share * (1.0 - share);
    if block < 2 || even <= 0.0 {
        return independent;
    }
    // The variance of the mean of a block, over all blocks that there are.
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(deviations.iter().scan(0.0, |sum, one| {
            *sum += one;
            Some(*sum)
        }))
        .collect();
    let length = block as f64;
    let squares: Vec<f64> =
        sums.windows(block + 1).map(|part| ((part[block] - part[0]) / length).powi(2)).collect();
    // Few blocks do not tell how far their own mean is from the true one.
    let blocks = n as f64 / length;
    let variance = mean(&squares) * blocks / (blocks - 1.0);
    let size = n as f64 / (length * variance / even).max(1.0);
    Worth { block, size }
}

/// How many consecutive values to draw together, of deviations from their mean.
fn length(deviations: &[f64]) -> usize {
    let n = deviations.len() as f64;
    let covariance = |lag: usize| {
        let pairs = deviations.iter().zip(deviations.iter().skip(lag));
        pairs.map(|(a, b)| a * b).sum::<f64>() / n
    };
    let mut of_lag = vec![covariance(0)];
    if of_lag[0] <= 0.0 {
        return 1;
    }
    // So many lags in a row without a correlation end the search for one.
    let quiet = ceiling(n.log10().sqrt()).max(5);
    let most = (ceiling(n.sqrt()) + quiet).min(deviations.len().saturating_sub(1));
    let chance = 2.0 * (n.log10() / n).sqrt() * of_lag[0];
    let mut last = 0;
    for lag in 1..=most {
        of_lag.push(covariance(lag));
        if of_lag[lag].abs() >= chance {
            last = lag;
        } else if lag - last >= quiet {
            break;
        }
    }
    if last == 0 {
        return 1;
    }
    let seen = (2 * last).min(most);
    (of_lag.len()..=seen).for_each(|lag| of_lag.push(covariance(lag)));
    // A window that is flat in its middle, and falls to nothing at its end.
    let weight = |lag: usize| (2.0 * (1.0 - lag as f64 / seen as f64)).clamp(0.0, 1.0);
    let lags = || (1..=seen).map(|lag| (lag as f64, weight(lag) * of_lag[lag]));
    let spread = of_lag[0] + 2.0 * lags().map(|(_, weighed)| weighed).sum::<f64>();
    let bias = 2.0 * lags().map(|(lag, weighed)| lag * weighed).sum::<f64>();
    if spread <= 0.0 {
        return 1;
    }
    let best = (1.5 * (bias / spread).powi(2) * n).cbrt();
    ceiling(best.min(3.0 * n.sqrt()).min(n / 3.0)).max(1)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn ceiling(value: f64) -> usize {
    value.ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::super::difference::tests::{autoregressive, sample};
    use super::*;

    #[test]
    fn independent_values_are_worth_themselves() {
        let one = |seed| worth(&sample(2000, seed, 0.0), 0.5);
        let all: Vec<Worth> = (0..100).map(one).collect();
        // A correlation may be seen where there is none, now and then; it costs little.
        let whole = all.iter().filter(|worth| worth.block == 1 && worth.size == 2000.0).count();
        assert!(whole >= 90, "{whole} of 100");
        assert!(all.iter().all(|worth| worth.size > 1000.0), "{all:?}");
        for values in [vec![], vec![1.0], vec![1.0; 50], vec![1.0, 2.0, 3.0]] {
            let Worth { block, size } = worth(&values, 1.0);
            assert_eq!((block, size), (1, values.len() as f64), "{values:?}");
        }
    }

    #[test]
    fn dependent_values_are_worth_as_many_as_theory_says() {
        // Of a normal process with the correlation c, whether two values are above the median is
        // correlated by 2/π · asin c.
        for dependence in [0.5, 0.8, 0.9_f64] {
            let lags =
                (1..500).map(|lag| dependence.powi(lag).asin() / std::f64::consts::FRAC_PI_2);
            let inflated = 1.0 + 2.0 * lags.sum::<f64>();
            let sizes: Vec<f64> = (0..40)
                .map(|seed| worth(&autoregressive(4000, dependence, seed), 1.0).size)
                .collect();
            let found = 4000.0 / mean(&sizes);
            assert!((found / inflated - 1.0).abs() < 0.25, "{dependence}: {found} for {inflated}");
        }
    }
}
