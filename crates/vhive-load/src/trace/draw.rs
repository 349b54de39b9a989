//! How long an invocation runs and how much memory it uses, drawn from percentiles.
//!
//! # Source
//! invitro `pkg/generator/specification.go`: a uniform quantile picks a bracket of percentiles,
//! and a whole number is drawn evenly from it; runtime and memory independently.

use crate::call::Work;
use crate::rng::Rng;

/// Runtimes are cut to these, in milliseconds.
pub const RUNTIME_MS: (u64, u64) = (1, 60_000);
/// Memory is cut to these, in mebibytes.
pub const MEMORY_MIB: (u64, u64) = (1, 10 * 1024);

/// Values at rising quantiles.
#[derive(Clone, Debug, PartialEq)]
pub struct Percentiles {
    quantiles: &'static [f64],
    values: Vec<u64>,
    /// Whether each value is above the one before.
    rises: bool,
}

/// Quantiles of Azure's durations.
pub const RUNTIME_QUANTILES: &[f64] = &[0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0];
/// Quantiles of Azure's memory.
pub const MEMORY_QUANTILES: &[f64] = &[0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0];

impl Percentiles {
    /// `None` unless there is one value per quantile and they do not fall.
    #[must_use]
    pub fn new(quantiles: &'static [f64], values: &[f64]) -> Option<Self> {
        let rises = values.windows(2).all(|two| two[0] <= two[1]);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates"
        )]
        let whole = |value: &f64| *value as u64;
        (rises && values.len() == quantiles.len()).then(|| {
            let values: Vec<u64> = values.iter().map(whole).collect();
            let rises = values.windows(2).all(|two| two[0] < two[1]);
            Self { quantiles, values, rises }
        })
    }

    /// The values, one per quantile.
    #[must_use]
    pub fn values(&self) -> &[u64] {
        &self.values
    }

    /// Draws a value.
    #[inline]
    pub fn draw(&self, quantile: f64, rng: &mut Rng) -> u64 {
        // How many quantiles are below, without a branch for each: a simulator asks millions of
        // times a second.
        let above: usize = self.quantiles.iter().map(|at| usize::from(quantile > *at)).sum();
        let above = above.min(self.values.len() - 1);
        match above.checked_sub(1) {
            // Below the first percentile that is known, that is the value.
            None => self.values[0],
            Some(below) => rng.between(self.values[below], self.values[above]),
        }
    }

    /// Leaves the random numbers where [`draw`](Self::draw) would leave them.
    fn pass(&self, quantile: f64, rng: &mut Rng) {
        if !self.rises {
            self.draw(quantile, rng);
        } else if quantile > self.quantiles[0] {
            rng.bits();
        }
    }

    /// The middle one of the known values.
    #[must_use]
    pub fn median(&self) -> u64 {
        let at = self.quantiles.iter().position(|quantile| *quantile == 0.5);
        at.and_then(|at| self.values.get(at)).copied().unwrap_or_default()
    }
}

/// A function's runtimes and memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// In milliseconds.
    pub runtime: Percentiles,
    /// In mebibytes.
    pub memory: Percentiles,
    /// Mean runtime, in milliseconds.
    pub mean_runtime_ms: f64,
}

impl Stats {
    /// Draws one invocation.
    pub fn draw(&self, rng: &mut Rng) -> Work {
        let (runtime, memory) = (rng.unit(), rng.unit());
        Work {
            runtime_ms: cut(self.runtime.draw(runtime, rng), RUNTIME_MS),
            memory_mib: cut(self.memory.draw(memory, rng), MEMORY_MIB),
        }
    }

    /// The runtime of the invocation that [`draw`](Self::draw) would draw, in milliseconds, where its
    /// memory does not matter.
    #[inline]
    pub fn draw_runtime(&self, rng: &mut Rng) -> u32 {
        let (runtime, memory) = (rng.unit(), rng.unit());
        let runtime = cut(self.runtime.draw(runtime, rng), RUNTIME_MS);
        self.memory.pass(memory, rng);
        runtime
    }
}

fn cut(value: u64, (least, most): (u64, u64)) -> u32 {
    u32::try_from(value.clamp(least, most)).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn stats() -> Stats {
        let runtime = [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 100_000.0];
        let memory = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0];
        Stats {
            runtime: Percentiles::new(RUNTIME_QUANTILES, &runtime).unwrap(),
            memory: Percentiles::new(MEMORY_QUANTILES, &memory).unwrap(),
            mean_runtime_ms: 30.0,
        }
    }

    #[test]
    fn each_bracket_is_drawn_as_often_as_it_is_wide() {
        let (stats, mut rng) = (stats(), Rng::new(3));
        let n = 20_000;
        let all: Vec<Work> = (0..n).map(|_| stats.draw(&mut rng)).collect();
        let share = |count: usize| count as f64 / f64::from(n);
        let runtime = |low, high| {
            share(all.iter().filter(|work| (low..high).contains(&work.runtime_ms)).count())
        };
        assert!((runtime(10, 20) - 0.24).abs() < 0.02);
        assert!((runtime(20, 30) - 0.25).abs() < 0.02);
        assert!((runtime(40, 50) - 0.24).abs() < 0.02);
        assert!((runtime(50, 60_001) - 0.01).abs() < 0.005);
        assert!(all.iter().all(|work| (1..=60_000).contains(&work.runtime_ms)));
        let memory = share(all.iter().filter(|work| (40..50).contains(&work.memory_mib)).count());
        assert!((memory - 0.25).abs() < 0.02);
        assert_eq!(stats.runtime.median(), 30);
    }

    #[test]
    fn a_runtime_alone_is_that_of_the_whole_invocation() {
        let flat = Percentiles::new(MEMORY_QUANTILES, &[9.0; 8]).unwrap();
        for stats in [stats(), Stats { memory: flat, ..stats() }] {
            let (mut whole, mut alone) = (Rng::new(5), Rng::new(5));
            for _ in 0..2000 {
                assert_eq!(stats.draw_runtime(&mut alone), stats.draw(&mut whole).runtime_ms);
            }
        }
    }

    #[test]
    fn percentiles_that_fall_are_refused() {
        assert_eq!(Percentiles::new(RUNTIME_QUANTILES, &[1.0, 0.0, 3.0, 4.0, 5.0, 6.0, 7.0]), None);
        assert_eq!(Percentiles::new(RUNTIME_QUANTILES, &[1.0]), None);
    }
}
