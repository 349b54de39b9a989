//! When the invocations of one unit happen.
//!
//! # Source
//! invitro `pkg/generator/specification.go`: as many gaps are drawn as there are invocations and
//! scaled to fill the unit exactly, so that all fall into it. The first is at its beginning,
//! unless `_shift` rotates the gaps to a random place.
//!
//! Ours: the gaps fill the unit but for its last moments, so that a send that is a little late, and the
//! way to the function, do not carry it into the next.

use std::str::FromStr;

use crate::rng::Rng;

/// The end of a unit for which nothing is planned, in nanoseconds.
const CLEAR_NS: u64 = 5_000_000;
/// It is at most this part of the unit.
const CLEAR_PART: u64 = 200;

/// How gaps are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Exponential with mean 1.
    Exponential,
    /// Even in (0, 1).
    Uniform,
    /// All the same.
    Equidistant,
}

/// One of the five distributions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// How gaps are drawn.
    pub shape: Shape,
    /// Whether they are rotated, so that not all functions begin their minutes at once.
    pub shift: bool,
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (shape, shift) = match text {
            "exponential" => (Shape::Exponential, false),
            "exponential_shift" => (Shape::Exponential, true),
            "uniform" => (Shape::Uniform, false),
            "uniform_shift" => (Shape::Uniform, true),
            "equidistant" => (Shape::Equidistant, false),
            _ => {
                return Err(format!(
                    "{text:?} is not one of exponential, exponential_shift, uniform, \
                     uniform_shift, equidistant"
                ));
            }
        };
        Ok(Self { shape, shift })
    }
}

impl Distribution {
    /// `count` moments in `0 .. unit_ns`, in order; none in its last five milliseconds (of a shorter unit
    /// than a second, in its last two-hundredth).
    #[must_use]
    pub fn moments(self, count: u32, unit_ns: u64, rng: &mut Rng) -> Vec<u64> {
        let mut all = Vec::new();
        self.each_moment((count, unit_ns), rng, &mut Vec::new(), |at| all.push(at));
        all
    }

    /// Gives the same moments to `take` one by one; `gaps` is room to work in, whatever it holds.
    pub fn each_moment(
        self,
        (count, unit_ns): (u32, u64),
        rng: &mut Rng,
        gaps: &mut Vec<f64>,
        mut take: impl FnMut(u64),
    ) {
        gaps.clear();
        gaps.extend((0..count).map(|_| self.gap(rng)));
        let sum: f64 = gaps.iter().sum();
        let filled_ns = unit_ns.saturating_sub((unit_ns / CLEAR_PART).clamp(1, CLEAR_NS));
        let filled = filled_ns as f64;
        for gap in gaps.iter_mut() {
            *gap *= filled / sum;
        }
        let mut at = if self.shift { rotate(gaps, rng.unit() * filled) } else { 0.0 };
        for gap in gaps {
            take(whole(at).min(filled_ns));
            at += *gap;
        }
    }

    fn gap(self, rng: &mut Rng) -> f64 {
        match self.shape {
            Shape::Exponential => rng.exponential(),
            Shape::Uniform => rng.unit().max(f64::MIN_POSITIVE),
            Shape::Equidistant => 1.0,
        }
    }
}

/// Cuts the gaps at `split` and swaps the two parts; returns what is left there of the gap that
/// was cut, which is when the first invocation happens.
fn rotate(gaps: &mut [f64], split: f64) -> f64 {
    let mut sum = 0.0;
    let cut = gaps.iter().position(|gap| {
        sum += gap;
        sum > split
    });
    let Some(cut) = cut else { return 0.0 };
    gaps.rotate_left(cut);
    // In front is now the gap that was cut: its rest comes before the first invocation, which the
    // gaps behind it follow.
    gaps.rotate_left(1);
    sum - split
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn whole(ns: f64) -> u64 {
    ns as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    const ALL: [&str; 5] =
        ["exponential", "exponential_shift", "uniform", "uniform_shift", "equidistant"];
    const MINUTE: u64 = 60_000_000_000;

    fn moments(name: &str, count: u32, seed: u64) -> Vec<u64> {
        name.parse::<Distribution>().unwrap().moments(count, MINUTE, &mut Rng::new(seed))
    }

    #[test]
    fn equal_gaps_begin_at_once_and_fill_the_minute_but_for_its_end() {
        let filled = MINUTE - CLEAR_NS;
        let off = moments("equidistant", 3, 1).into_iter().zip([0, filled / 3, filled / 3 * 2]);
        assert!(off.into_iter().all(|(at, wanted)| at.abs_diff(wanted) < 2));
        assert!("normal".parse::<Distribution>().unwrap_err().contains("uniform_shift"));
    }

    #[test]
    fn a_rotation_keeps_the_gaps_in_their_circle() {
        let mut gaps = vec![1.0, 2.0, 3.0, 4.0];
        // Cut within the third: half of it is left.
        assert_eq!(rotate(&mut gaps, 4.5), 1.5);
        assert_eq!(gaps, [4.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn unshifted_functions_begin_together_and_shifted_ones_do_not() {
        for name in ALL {
            let firsts: Vec<u64> = (0..50).map(|seed| moments(name, 5, seed)[0]).collect();
            let together = firsts.iter().filter(|at| **at == 0).count();
            assert_eq!(together, if name.ends_with("shift") { 0 } else { 50 }, "{name}");
        }
    }

    #[test]
    fn exponential_gaps_spread_and_uniform_ones_less() {
        let deviation = |name| {
            let all = moments(name, 10_000, 5);
            let gaps: Vec<f64> = all.windows(2).map(|two| (two[1] - two[0]) as f64).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt()
                / mean
        };
        assert!((deviation("exponential") - 1.0).abs() < 0.05);
        assert!((deviation("uniform") - 1.0 / 3_f64.sqrt()).abs() < 0.03);
        assert!(deviation("equidistant") < 1e-6);
    }

    #[test]
    fn many_in_a_short_unit_make_no_burst_at_its_end() {
        const SECOND: u64 = 1_000_000_000;
        for name in ALL {
            let distribution = name.parse::<Distribution>().unwrap();
            let all = distribution.moments(10_000, SECOND, &mut Rng::new(7));
            let within =
                |from: u64| all.iter().filter(|at| (from..from + 5_000_000).contains(at)).count();
            // 50 in five milliseconds on the average.
            let last = within(SECOND - 10_000_000);
            assert!((20..100).contains(&last), "{name}: {last}");
            let at_once = all.windows(5).filter(|five| five[0] == five[4]).count();
            assert_eq!(at_once, 0, "{name}");
        }
    }

    proptest! {
        #[test]
        fn as_many_as_asked_for_in_order_within_the_unit(
            count in 0_u32..500, seed: u64, which in 0_usize..5,
        ) {
            let all = moments(ALL[which], count, seed);
            prop_assert_eq!(all.len(), usize::try_from(count).unwrap());
            prop_assert!(all.windows(2).all(|two| two[0] <= two[1]));
            prop_assert!(all.iter().all(|at| *at <= MINUTE - CLEAR_NS));
        }
    }
}
