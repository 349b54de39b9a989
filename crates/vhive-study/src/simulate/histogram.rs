//! Counts of whole numbers in buckets that are at most 1/128 wide.

/// Buckets of one doubling.
const PARTS: u64 = 128;
/// `PARTS` is two to this.
const BITS: u32 = 7;
/// Doublings up to 2⁴⁰: twelve days in microseconds.
const DOUBLINGS: u32 = 34;

/// A histogram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    n: u64,
    most: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        let buckets = PARTS * u64::from(DOUBLINGS);
        let buckets = usize::try_from(buckets).unwrap_or(usize::MAX);
        Self { counts: vec![0; buckets], n: 0, most: 0 }
    }
}

impl Histogram {
    pub(super) fn add(&mut self, value: u64) {
        let last = self.counts.len() - 1;
        let at = bucket(value).min(last);
        self.counts[at] += 1;
        self.n += 1;
        self.most = self.most.max(value);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.n += other.n;
        self.most = self.most.max(other.most);
    }

    pub(super) fn n(&self) -> u64 {
        self.n
    }

    /// The least value that this part of all do not exceed, up to 1/128 too large; 0 without any.
    pub(super) fn quantile(&self, part: f64) -> u64 {
        let enough = part.clamp(0.0, 1.0) * self.n as f64;
        let mut so_far = 0_u64;
        for (at, count) in self.counts.iter().enumerate() {
            so_far += count;
            if *count > 0 && so_far as f64 >= enough {
                return greatest(at as u64).min(self.most);
            }
        }
        self.most
    }
}

fn bucket(value: u64) -> usize {
    if value < PARTS {
        return usize::try_from(value).unwrap_or(0);
    }
    let doubling = value.ilog2() - BITS;
    let part = (value >> doubling) - PARTS;
    usize::try_from(u64::from(doubling + 1) * PARTS + part).unwrap_or(usize::MAX)
}

/// The greatest value of a bucket.
fn greatest(bucket: u64) -> u64 {
    if bucket < PARTS {
        return bucket;
    }
    let (doubling, part) = (bucket / PARTS - 1, bucket % PARTS);
    ((PARTS + part + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_value_is_found_again_within_its_bucket(value in 0..1_u64 << 40) {
            let upper = greatest(bucket(value) as u64);
            proptest::prop_assert!(upper >= value && upper - value <= value / PARTS);
        }

        #[test]
        fn quantiles_are_those_of_the_values(values in proptest::collection::vec(0..100_000_u64, 1..200)) {
            let mut histogram = Histogram::default();
            let mut sorted = values.clone();
            sorted.sort_unstable();
            for value in &values {
                histogram.add(*value);
            }
            let middle = sorted[(sorted.len() - 1) / 2];
            let got = histogram.quantile(0.5);
            proptest::prop_assert!(got >= middle && got - middle <= middle / PARTS + 1);
            proptest::prop_assert_eq!(histogram.quantile(1.0), sorted[sorted.len() - 1]);
        }
    }
}
