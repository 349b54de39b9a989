//! Random numbers that a seed reproduces on every machine.

/// Xoshiro256++, seeded by SplitMix64.
///
/// # Source
/// Blackman, Vigna: *Scrambled linear pseudorandom number generators* (2021).
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self([(); 4].map(|()| split_mix(&mut state)))
    }

    /// The sequence of one part of a seeded whole, e.g. of one function: the parts do not depend
    /// on each other, nor on how many there are.
    #[must_use]
    pub fn of_part(seed: u64, part: u64) -> Self {
        let mut state = part;
        Self::new(seed ^ split_mix(&mut state))
    }

    /// 64 random bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let t = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= t;
        *d = d.rotate_left(45);
        result
    }

    /// Uniform in [0, 1).
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Exponential with mean 1, above 0.
    #[inline]
    pub fn exponential(&mut self) -> f64 {
        // 1 − u is in (0, 1], so the logarithm is finite; a zero would be two arrivals in one.
        (-(1.0 - self.unit()).ln()).max(f64::MIN_POSITIVE)
    }

    /// Uniform in `low .. high`; `low` when that is empty.
    #[inline]
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        match high.checked_sub(low) {
            None | Some(0) => low,
            // The bias is below 2⁻³² for the milliseconds and mebibytes that are drawn.
            Some(width) => low + self.bits() % width,
        }
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_reproduces_and_parts_differ() {
        let draw = |mut rng: Rng| [(); 4].map(|()| rng.bits());
        assert_eq!(draw(Rng::new(42)), draw(Rng::new(42)));
        assert_ne!(draw(Rng::new(42)), draw(Rng::new(43)));
        assert_ne!(draw(Rng::of_part(42, 0)), draw(Rng::of_part(42, 1)));
    }

    #[test]
    fn means_are_as_said() {
        let mut rng = Rng::new(1);
        let n = 100_000;
        let mean = |sum: f64| sum / f64::from(n);
        let unit = mean((0..n).map(|_| rng.unit()).sum());
        let exponential = mean((0..n).map(|_| rng.exponential()).sum());
        assert!((unit - 0.5).abs() < 0.01, "{unit}");
        assert!((exponential - 1.0).abs() < 0.02, "{exponential}");
        assert!((0..1000).all(|_| (3..7).contains(&rng.between(3, 7))));
        assert_eq!(rng.between(9, 2), 9);
    }
}
