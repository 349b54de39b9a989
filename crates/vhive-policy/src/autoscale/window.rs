//! An average over the last so many seconds, and the maximum over the last so many ticks.

use std::collections::VecDeque;

use super::Aggregation;

/// The newest value's weight at least.
const SMALLEST_WEIGHT: f64 = 0.2;
/// Which part of the whole weight shall lie within the window.
const PRECISION: f64 = 0.9999;

/// How much of a bucket's value is one: whole numbers add up to the same whatever leaves and comes in
/// between, and halves of the sixth digit, to which averages are rounded, are halves.
const QUANTA: f64 = 1e11;
/// So many are a millionth, the sixth digit.
const MILLIONTH: u64 = 100_000;

/// The last so many buckets of time. Buckets have numbers that ascend with time; what they hold is
/// summed up.
///
/// As Knative's: the average divides by the buckets since the first write, so that a young window is
/// not diluted; a gap within the window counts as zeros; buckets after the last write shorten the
/// window; after a whole window without a write it begins anew.
///
/// Writing to a bucket and averaging take the same time however long the window is; only a weighted
/// average looks at each bucket.
#[derive(Clone, Debug)]
pub struct Window {
    /// In quanta, in a ring.
    buckets: Box<[u64]>,
    aggregation: Aggregation,
    /// First and last bucket that was written since the window began anew.
    written: Option<(u64, u64)>,
    /// Where the last one is.
    place: usize,
    /// Of all buckets.
    sum: u128,
    /// What keeps a linear average above zero by itself: half a millionth of each bucket is rounded
    /// up to the sixth digit, and this is twice as much.
    tells: u64,
    /// The last bucket that holds so much.
    telling: Option<u64>,
}

impl Window {
    /// A window of so many buckets, at least one.
    #[must_use]
    pub fn new(buckets: usize, aggregation: Aggregation) -> Self {
        let buckets = vec![0; buckets.max(1)].into_boxed_slice();
        let tells = quanta(1e-6 * buckets.len() as f64);
        Self { buckets, aggregation, written: None, place: 0, sum: 0, tells, telling: None }
    }

    /// Adds a value to a bucket. One that lies a window or more before the last write is ignored.
    pub fn record(&mut self, bucket: u64, value: f64) {
        let length = self.buckets.len() as u64;
        let (first, last) = match self.written {
            None => (bucket, bucket),
            Some((_, last)) if bucket >= last.saturating_add(length) => {
                self.empty();
                (bucket, bucket)
            }
            Some((first, last)) if bucket > last => {
                self.advance(bucket - last);
                (first, bucket)
            }
            Some((_, last)) if bucket.saturating_add(length) <= last => return,
            Some((first, last)) => (first.min(bucket), last),
        };
        self.written = Some((first, last));
        let back = index(last - bucket);
        let at = if self.place >= back { self.place } else { self.place + self.buckets.len() };
        let held = &mut self.buckets[at - back];
        let before = *held;
        *held = before.saturating_add(quanta(value));
        self.sum += u128::from(*held - before);
        if *held >= self.tells {
            self.telling = self.telling.max(Some(bucket));
        }
    }

    /// Records nothing in each of these buckets, which follow the last write or come after it.
    pub fn silence(&mut self, from: u64, to: u64) {
        if to < from {
            return;
        }
        match self.written {
            None => self.written = Some((from, to)),
            Some((_, last)) if from >= last.saturating_add(self.buckets.len() as u64) => {
                self.empty();
                self.written = Some((from, to));
            }
            Some((first, last)) if to > last => {
                self.advance(to - last);
                self.written = Some((first, to));
            }
            Some(_) => {}
        }
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
                // Behind the last one in the ring is the oldest.
                let oldest = self.oldest_first().take(index(missing));
                let sum = self.sum - oldest.map(u128::from).sum::<u128>();
                let count = (last - first + 1).min(valid);
                let part = MILLIONTH.saturating_mul(count);
                // Nearly always small enough for what the processor divides by itself.
                let millionths = match u64::try_from(sum) {
                    Ok(sum) if sum < u64::MAX / 2 => ((sum + part / 2) / part) as f64,
                    _ => ((sum + u128::from(part / 2)) / u128::from(part)) as f64,
                };
                Some(millionths / 1e6)
            }
            Aggregation::WeightedExponential => {
                let weight = smoothing(self.buckets.len());
                let mut factor = weight * (1.0 - weight).powf(missing as f64);
                let mut sum = 0.0;
                for value in self.newest().take(index(valid)) {
                    sum += value * factor;
                    factor *= 1.0 - weight;
                }
                Some(sum)
            }
        }
    }

    /// The bucket before which a linear average stays above zero, if nothing but silence comes;
    /// none if that is not known.
    #[must_use]
    pub fn positive_until(&self) -> Option<u64> {
        let linear = self.aggregation == Aggregation::Linear;
        self.telling.filter(|_| linear).map(|at| at.saturating_add(self.buckets.len() as u64))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.empty();
        self.written = None;
    }

    fn empty(&mut self) {
        if self.sum > 0 {
            self.buckets.fill(0);
        }
        (self.sum, self.telling) = (0, None);
    }

    /// The last bucket becomes one so many later; those in between and itself hold nothing.
    fn advance(&mut self, by: u64) {
        let length = self.buckets.len();
        if by >= length as u64 {
            self.empty();
        }
        if self.sum == 0 {
            let by = index(by % length as u64);
            self.place = (self.place + by) % length;
            return;
        }
        for _ in 0..by {
            self.place = if self.place + 1 == length { 0 } else { self.place + 1 };
            let gone = std::mem::take(&mut self.buckets[self.place]);
            self.sum -= u128::from(gone);
        }
    }

    /// The ring from behind the last written bucket on: the oldest first.
    fn oldest_first(&self) -> impl Iterator<Item = u64> + '_ {
        let (newer, older) = self.buckets.split_at(self.place + 1);
        older.iter().chain(newer).copied()
    }

    /// The buckets from the last written one backwards.
    fn newest(&self) -> impl Iterator<Item = f64> + '_ {
        let (newer, older) = self.buckets.split_at(self.place + 1);
        let all = newer.iter().rev().chain(older.iter().rev());
        all.map(|quanta| *quanta as f64 / QUANTA)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn quanta(value: f64) -> u64 {
    (value * QUANTA + 0.5) as u64
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
