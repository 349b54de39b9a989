//! An average over the last so many seconds, and the maximum over the last so many ticks.

use std::collections::VecDeque;

use super::Aggregation;

/// The newest value's weight at least.
const SMALLEST_WEIGHT: f64 = 0.2;
/// Which part of the whole weight shall lie within the window.
const PRECISION: f64 = 0.9999;

/// The last so many buckets of time. Buckets have numbers that ascend with time; what they hold is
/// summed up.
///
/// As Knative's: the average divides by the buckets since the first write, so that a young window is
/// not diluted; a gap within the window counts as zeros; buckets after the last write shorten the
/// window; after a whole window without a write it begins anew.
#[derive(Clone, Debug)]
pub struct Window {
    /// By number modulo length.
    buckets: Box<[f64]>,
    aggregation: Aggregation,
    /// First and last bucket that was written since the window began anew.
    written: Option<(u64, u64)>,
}

impl Window {
    /// A window of so many buckets, at least one.
    #[must_use]
    pub fn new(buckets: usize, aggregation: Aggregation) -> Self {
        Self { buckets: vec![0.0; buckets.max(1)].into_boxed_slice(), aggregation, written: None }
    }

    /// Adds a value to a bucket. One that lies a window or more before the last write is ignored.
    pub fn record(&mut self, bucket: u64, value: f64) {
        let length = self.buckets.len() as u64;
        let (first, last) = match self.written {
            None => (bucket, bucket),
            Some((_, last)) if bucket >= last.saturating_add(length) => {
                self.buckets.fill(0.0);
                (bucket, bucket)
            }
            Some((first, last)) if bucket > last => {
                for gone in last + 1..=bucket {
                    let at = self.at(gone);
                    self.buckets[at] = 0.0;
                }
                (first, bucket)
            }
            Some((_, last)) if bucket.saturating_add(length) <= last => return,
            Some((first, last)) => (first.min(bucket), last),
        };
        self.written = Some((first, last));
        let at = self.at(bucket);
        self.buckets[at] += value;
    }

    /// The average as of a bucket. None if nothing has been written for longer than the window.
    #[must_use]
    pub fn average(&self, now: u64) -> Option<f64> {
        let length = self.buckets.len() as u64;
        let (first, last) = self.written?;
        let missing = now.saturating_sub(last);
        if missing > length {
            return None;
        }
        let missing = missing.min(length);
        let valid = length - missing;
        match self.aggregation {
            Aggregation::Linear => {
                if valid == 0 {
                    return Some(0.0);
                }
                let (newer, older) = self.buckets.split_at(self.at(last) + 1);
                let of_newer = index(valid).min(newer.len());
                let of_older = index(valid) - of_newer;
                let sum = sum(&newer[newer.len() - of_newer..])
                    + sum(&older[older.len().saturating_sub(of_older)..]);
                let count = (last - first + 1).min(valid);
                Some((sum / count as f64 * 1e6).round() / 1e6)
            }
            Aggregation::WeightedExponential => {
                let weight = smoothing(self.buckets.len());
                let mut factor = weight * (1.0 - weight).powf(missing as f64);
                let mut sum = 0.0;
                for value in self.newest(last).take(index(valid)) {
                    sum += value * factor;
                    factor *= 1.0 - weight;
                }
                Some(sum)
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets.fill(0.0);
        self.written = None;
    }

    /// The buckets from the last written one backwards.
    fn newest(&self, last: u64) -> impl Iterator<Item = f64> + '_ {
        let (newer, older) = self.buckets.split_at(self.at(last) + 1);
        newer.iter().rev().chain(older.iter().rev()).copied()
    }

    fn at(&self, bucket: u64) -> usize {
        index(bucket % self.buckets.len() as u64)
    }
}

/// A simulator averages a window for every simulated second: four sums at a time do not wait for
/// each other. What that changes is far below the sixth digit, to which averages are rounded.
fn sum(values: &[f64]) -> f64 {
    let (fours, rest) = values.as_chunks::<4>();
    let mut sums = [0.0; 4];
    for four in fours {
        for (sum, value) in sums.iter_mut().zip(four) {
            *sum += value;
        }
    }
    sums.iter().sum::<f64>() + rest.iter().sum::<f64>()
}

fn index(small: u64) -> usize {
    usize::try_from(small).expect("no more than the length of a slice")
}

/// How much of the whole weight the newest bucket has.
fn smoothing(buckets: usize) -> f64 {
    (1.0 - (1.0 - PRECISION).powf(1.0 / buckets as f64)).max(SMALLEST_WEIGHT)
}

/// The greatest value of the last so many ticks.
///
/// As Knative's: a tick belongs to the numbered stretch that its time falls into, and of several
/// values in one stretch the greatest counts.
#[derive(Clone, Debug)]
pub struct Held {
    length: u64,
    /// Numbers ascending, values descending: the greatest is in front.
    values: VecDeque<(u64, u32)>,
}

impl Held {
    /// Over so many stretches, at least one.
    #[must_use]
    pub fn new(length: u64) -> Self {
        Self { length: length.max(1), values: VecDeque::new() }
    }

    /// One as long as this that holds nothing.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self::new(self.length)
    }

    /// Adds a value and returns the greatest that still counts.
    pub fn record(&mut self, stretch: u64, value: u32) -> u32 {
        while self.values.back().is_some_and(|(_, last)| *last <= value) {
            self.values.pop_back();
        }
        while self.values.front().is_some_and(|(at, _)| at + self.length <= stretch) {
            self.values.pop_front();
        }
        if self.values.back().is_none_or(|(at, _)| *at < stretch) {
            self.values.push_back((stretch, value));
        }
        self.values.front().map_or(value, |(_, greatest)| *greatest)
    }
}
