//! How long requests took, counted without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};
use prometheus_client::metrics::histogram::exponential_buckets;

/// Upper bound of the first bucket in microseconds; each next one is twice as long.
const FIRST_US: u64 = 100;

/// Buckets with an upper bound: up to almost a minute.
const BOUNDED: usize = 20;

/// Durations by bucket; the last one has no bound.
#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDED + 1],
    sum_us: AtomicU64,
}

impl Buckets {
    fn observe(&self, us: u64) {
        let steps = us.saturating_sub(1) / FIRST_US;
        let at = usize::try_from(u64::BITS - steps.leading_zeros()).unwrap_or(BOUNDED);
        self.counts[at.min(BOUNDED)].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

/// Durations of requests by the first digit of the status (0 = none). Memory is taken for those that
/// there were.
#[derive(Debug, Default)]
pub(super) struct Spent([OnceLock<Box<Buckets>>; 6]);

impl Spent {
    /// Counts a request of a class.
    pub(super) fn observe(&self, class: usize, us: u64) {
        self.0[class].get_or_init(Box::default).observe(us);
    }

    /// All that were counted of a class, or of each.
    pub(super) fn total(&self, class: Option<usize>) -> Total {
        let mut total = Total::default();
        let wanted = self.0.iter().enumerate().filter(|(at, _)| class.is_none_or(|one| one == *at));
        for buckets in wanted.filter_map(|(_, buckets)| buckets.get()) {
            for (sum, count) in total.counts.iter_mut().zip(&buckets.counts) {
                *sum += count.load(Ordering::Relaxed);
            }
            total.sum_us += buckets.sum_us.load(Ordering::Relaxed);
        }
        total
    }
}

/// What was counted up to some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    counts: [u64; BOUNDED + 1],
    sum_us: u64,
}

impl Total {
    /// Both together.
    pub(super) fn and(mut self, other: &Self) -> Self {
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
        self.sum_us += other.sum_us;
        self
    }

    /// Requests.
    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(super) fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        // As whoever wrote the bounds down would compute them.
        let length = u16::try_from(BOUNDED).unwrap_or(u16::MAX);
        let bounds = exponential_buckets(0.0001, 2.0, length).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.counts).collect();
        let seconds = std::time::Duration::from_micros(self.sum_us).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(seconds, self.count(), &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let at = |us| {
            let spent = Spent::default();
            spent.observe(2, us);
            let total = spent.total(None);
            assert_eq!((total.count(), total.sum_us), (1, us));
            assert_eq!(spent.total(Some(5)), Total::default());
            total.counts.iter().position(|count| *count == 1).unwrap()
        };
        for bucket in 0..BOUNDED {
            let bound = FIRST_US << bucket;
            assert_eq!((at(bound), at(bound + 1)), (bucket, bucket + 1), "{bound} µs");
        }
        assert_eq!((at(0), at(1), at(u64::MAX)), (0, 0, BOUNDED));
    }
}
