//! A day in the shape of Azure Functions: drawn, not recorded.
//!
//! # Source
//! Shahrad et al., "Serverless in the Wild", USENIX ATC 2020. From it are: how many invocations a
//! function has in a day (figure 5: 45 % have one an hour or fewer, 81 % one a minute or fewer,
//! and the range), how long they take on average (figure 7: log-normal, −0.38 and 2.36 of the
//! seconds' logarithm), how much memory is allocated (figure 8: Burr, 11.652, 0.221, 107.083 MB),
//! that about three in ten functions are called by timers (figure 3), and that the rate swings by
//! about a half over the day (figure 4). Not from it, and ours: the straight lines between those points, how an
//! invocation's time is spread around its function's average, and that whatever is no timer comes
//! independently of what came before.

use super::draw::{MEMORY_QUANTILES, Percentiles, RUNTIME_QUANTILES, Stats};
use crate::rng::Rng;

/// Share of functions, and how many invocations in a day so many have at most.
const INVOCATIONS: [(f64, f64); 7] = [
    (0.0, 1.0),
    (0.45, 24.0),
    (0.81, 1440.0),
    (0.95, 30_000.0),
    (0.99, 400_000.0),
    (0.999, 4_000_000.0),
    (1.0, 40_000_000.0),
];
/// Invocations up to which a function may be one that a timer calls.
const TIMED: f64 = 1440.0;
/// Share of timers among those.
const TIMERS: f64 = 0.36;
/// Logarithm of the average runtime in seconds: mean and deviation.
const RUNTIME: (f64, f64) = (-0.38, 2.36);
/// Allocated memory in megabytes: Burr's c, k and scale.
const MEMORY: (f64, f64, f64) = (11.652, 0.221, 107.083);
/// A function's percentiles of runtime over its average.
const SPREAD: [f64; 7] = [0.3, 0.35, 0.7, 0.9, 1.15, 2.4, 4.0];
/// Memory likewise.
const SPREAD_OF_MEMORY: [f64; 8] = [0.9, 0.92, 0.96, 1.0, 1.04, 1.08, 1.12, 1.2];
/// By how much the rate swings around its mean.
const SWING: f64 = 0.25;
const MINUTES: f64 = 1440.0;
const MINUTE: f64 = 60e9;

/// The shape.
#[derive(Clone, Copy, Debug)]
pub struct Day {
    seed: u64,
    /// What invocations beyond one a minute are multiplied with.
    scale: f64,
}

/// One function.
#[derive(Clone, Debug)]
pub struct One {
    /// In a day.
    invocations: f64,
    /// Nanoseconds between calls and to the first one, of a timer.
    timer: Option<(u64, u64)>,
    /// How long an invocation takes, and its memory.
    pub stats: Stats,
}

impl Day {
    /// A day of so many functions. About so many invocations in all, if that is said: functions beyond one a minute get more or
    /// fewer, but never fewer than that.
    #[must_use]
    pub fn new(functions: usize, invocations: Option<u64>, seed: u64) -> Self {
        let plain = Self { seed, scale: 1.0 };
        let Some(wanted) = invocations else { return plain };
        let (mut rare, mut often) = (0.0, 0.0);
        for number in 0..functions {
            let count = plain.invocations(&mut plain.rng(number));
            if count > TIMED { often += count } else { rare += count }
        }
        let scale = if often > 0.0 { (wanted as f64 - rare).max(0.0) / often } else { 1.0 };
        Self { seed, scale }
    }

    fn rng(self, number: usize) -> Rng {
        Rng::of_part(self.seed.rotate_left(17), number as u64)
    }

    fn invocations(self, rng: &mut Rng) -> f64 {
        let part = rng.unit();
        let above = INVOCATIONS.iter().position(|(share, _)| *share > part);
        let above = above.unwrap_or(INVOCATIONS.len() - 1).max(1);
        let ((low, fewest), (high, most)) = (INVOCATIONS[above - 1], INVOCATIONS[above]);
        // Straight in the logarithm of the count.
        let count = fewest * (most / fewest).powf((part - low) / (high - low));
        if count > TIMED { (count * self.scale).max(TIMED) } else { count }
    }

    /// One of its functions.
    #[must_use]
    pub fn function(self, number: usize) -> One {
        let mut rng = self.rng(number);
        let invocations = self.invocations(&mut rng);
        let timer = (invocations <= TIMED && rng.unit() < TIMERS).then(|| {
            let minutes = [1.0, 5.0, 10.0, 15.0, 30.0, 60.0, 360.0, MINUTES];
            let rough = MINUTES / invocations;
            let period = minutes.into_iter().find(|minutes| *minutes >= rough).unwrap_or(MINUTES);
            // Timers fire with the clock's whole minutes, a few seconds after.
            let begin = (rng.unit() * period).floor() * MINUTE + rng.unit() * 5e9;
            (whole(period * MINUTE), whole(begin))
        });
        let average = (RUNTIME.0 + RUNTIME.1 * normal(&mut rng)).exp() * 1e3;
        let average = average.clamp(1.0, 60_000.0);
        let (c, k, scale) = MEMORY;
        let memory = scale * ((1.0 - rng.unit()).powf(-1.0 / k) - 1.0).powf(1.0 / c);
        let memory = memory.clamp(16.0, 4096.0);
        let runtime = SPREAD.map(|part| (part * average).max(1.0));
        let memory = SPREAD_OF_MEMORY.map(|part| part * memory);
        let stats = Stats {
            runtime: Percentiles::new(RUNTIME_QUANTILES, &runtime).expect("the spread rises"),
            memory: Percentiles::new(MEMORY_QUANTILES, &memory).expect("the spread rises"),
            mean_runtime_ms: average,
        };
        One { invocations, timer, stats }
    }
}

impl One {
    /// Whether a timer calls it.
    #[must_use]
    pub const fn is_timed(&self) -> bool {
        self.timer.is_some()
    }

    /// Invocations of each minute, of the function with this number at a seed.
    #[must_use]
    pub fn counts(&self, (seed, number): (u64, usize), minutes: usize) -> Vec<u32> {
        let mut rng = counts_rng(seed, number);
        let count = |minute| {
            let (count, at) = self.count(minute, &mut rng);
            count + u32::from(at.is_some())
        };
        (0..minutes).map(count).collect()
    }

    /// Invocations of a minute, drawn in the order of minutes; for a timer when in it, if at all.
    pub fn count(&self, minute: usize, rng: &mut Rng) -> (u32, Option<u64>) {
        let (minute, begin) = (minute as f64, whole(minute as f64 * MINUTE));
        if let Some((period, first)) = self.timer {
            let end = begin + whole(MINUTE);
            let next = begin.saturating_sub(first).div_ceil(period) * period + first;
            return (0, (next < end).then(|| next - begin));
        }
        // Lowest at four in the morning of its own clock.
        let turn = (minute / MINUTES - 4.0 / 24.0) * std::f64::consts::TAU;
        let rate = self.invocations / MINUTES * (1.0 - SWING * turn.cos());
        (poisson(rate, rng), None)
    }
}

/// What the counts of a function are drawn with.
#[must_use]
pub fn counts_rng(seed: u64, number: usize) -> Rng {
    Rng::of_part(!seed, 2 * number as u64)
}

/// # Source
/// Knuth's product of uniforms below thirty, above that the normal approximation.
fn poisson(mean: f64, rng: &mut Rng) -> u32 {
    if mean > 30.0 {
        let value = mean + mean.sqrt() * normal(rng);
        return u32::try_from(whole(value.max(0.0).round())).unwrap_or(u32::MAX);
    }
    let (enough, mut product, mut count) = ((-mean).exp(), rng.unit(), 0);
    while product > enough && count < 1000 {
        product *= rng.unit();
        count += 1;
    }
    count
}

/// # Source
/// Box and Muller.
fn normal(rng: &mut Rng) -> f64 {
    let (radius, turn) = ((2.0 * rng.exponential()).sqrt(), rng.unit());
    radius * (turn * std::f64::consts::TAU).cos()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_the_published_one() {
        let day = Day::new(0, None, 1);
        let all: Vec<One> = (0..20_000).map(|number| day.function(number)).collect();
        let share = |of: &dyn Fn(&One) -> bool| {
            all.iter().filter(|one| of(one)).count() as f64 / all.len() as f64
        };
        assert!((share(&|one| one.invocations <= 24.0) - 0.45).abs() < 0.02);
        assert!((share(&|one| one.invocations <= 1440.0) - 0.81).abs() < 0.02);
        assert!((share(&|one| one.timer.is_some()) - 0.29).abs() < 0.02);
        // The median of a log-normal: e^−0.38 s.
        assert!((share(&|one| one.stats.mean_runtime_ms <= 684.0) - 0.5).abs() < 0.02);
        // Burr: half have less than 107.083·(2^(1/0.221) − 1)^(1/11.652) = 139.6 MB.
        assert!((share(&|one| one.stats.memory.median() < 140) - 0.5).abs() < 0.03);
    }

    #[test]
    fn a_total_is_met_and_minutes_add_up_to_the_day() {
        let day = Day::new(3000, Some(50_000_000), 3);
        let mut rng = Rng::new(1);
        let (mut meant, mut drawn) = (0.0, 0.0);
        for number in 0..3000 {
            let one = day.function(number);
            meant += one.invocations;
            if one.timer.is_none() && one.invocations < 1e6 {
                let counts: f64 =
                    (0..1440).map(|minute| f64::from(one.count(minute, &mut rng).0)).sum();
                drawn += counts - one.invocations;
            }
        }
        assert!((meant / 5e7 - 1.0).abs() < 0.01, "{meant}");
        assert!((drawn / 5e7).abs() < 0.01, "{drawn}");
    }

    #[test]
    fn a_timer_fires_once_a_period() {
        let mut one = Day::new(0, None, 1).function(0);
        one.timer = Some((300_000_000_000, 61_000_000_000));
        let mut rng = Rng::new(1);
        let fires: Vec<(usize, u64)> =
            (0..15).filter_map(|minute| Some((minute, one.count(minute, &mut rng).1?))).collect();
        assert_eq!(fires, [(1, 1_000_000_000), (6, 1_000_000_000), (11, 1_000_000_000)]);
    }
}
