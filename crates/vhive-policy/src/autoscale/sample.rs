//! What was seen of a revision's requests, and how it becomes one report per second.

use std::time::Duration;

use super::Metric;

const SECOND: Duration = Duration::from_secs(1);

/// A point in time: how long after a beginning that the caller has chosen. Never goes back.
pub type Moment = Duration;

/// What was seen of a revision's requests in one stretch of time. The stretches of one revision
/// follow one another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Its beginning: the end of the last one, or when a request came while nobody looked.
    pub from: Moment,
    /// Its end.
    pub to: Moment,
    /// Requests in flight or waiting, times the seconds for which they were.
    pub area: f64,
    /// Requests that came.
    pub arrivals: u32,
    /// Most requests in flight or waiting at a time.
    pub peak: u32,
    /// Requests in flight or waiting at its end.
    pub in_flight: u32,
    /// When the last request was done; `from` of the first stretch if there was none yet.
    pub busy_until: Moment,
    /// Idle times that ended in this stretch: from a request that left nobody behind to the next
    /// one. There is none before the first request.
    pub gaps: u32,
    /// The longest of them. All others lie within the stretch, and count as short.
    pub longest_gap: Duration,
}

impl Sample {
    /// The same, seen so many nanoseconds later.
    #[must_use]
    pub fn later(self, by: u64) -> Self {
        let later = |at: Moment| at.saturating_add(Duration::from_nanos(by));
        let (from, to) = (later(self.from), later(self.to));
        Self { from, to, busy_until: later(self.busy_until), ..self }
    }
}

/// Makes one report per whole bucket of time out of samples that end whenever they do.
///
/// The report of a bucket is the average of what was there during it. It belongs to the bucket that
/// begins when it is complete, as when Knative's reports arrive; so a window of sixty buckets
/// covers the sixty seconds that are over, and none that has just begun.
#[derive(Clone, Copy, Debug)]
pub struct Reports {
    bucket: Duration,
    metric: Metric,
    /// The bucket that is not over yet, and what it has so far.
    open: u64,
    sum: f64,
}

impl Reports {
    /// Reports of one metric per `bucket`, from a moment on.
    #[must_use]
    pub fn new(bucket: Duration, metric: Metric, from: Moment) -> Self {
        Self { bucket, metric, open: number(from, bucket), sum: 0.0 }
    }

    /// The bucket of a moment.
    #[must_use]
    pub fn number(&self, at: Moment) -> u64 {
        number(at, self.bucket)
    }

    /// The bucket that is not over yet.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open
    }

    /// What the open bucket has so far.
    #[must_use]
    pub fn so_far(&self) -> f64 {
        self.sum
    }

    /// Forgets what the open bucket has so far.
    pub fn forget(&mut self) {
        self.sum = 0.0;
    }

    /// Takes a sample and calls `report` with the bucket that each complete report belongs to; with
    /// the first and the last of several buckets if nothing was there in any of them. What a sample
    /// tells of several buckets is shared out evenly among them, as far as there were requests: a
    /// look a moment after a full second shifts nothing of what was over before into the next one,
    /// where it would hold an instance for a second more. Of stretches without any requests only the
    /// last `most` reports are made.
    pub fn take(&mut self, sample: &Sample, most: u64, mut report: impl FnMut((u64, u64), f64)) {
        let last = self.number(sample.to);
        if last <= self.open {
            self.sum += self.amount(sample);
            return;
        }
        let amount = self.amount(sample);
        let busy = if sample.in_flight > 0 {
            sample.to
        } else {
            sample.busy_until.min(sample.to).max(sample.from)
        };
        let (begun, until) = (nanos(sample.from), nanos(busy));
        let length = until.saturating_sub(begun) as f64;
        let share = |from: u64, to: u64| {
            if amount == 0.0 {
                return 0.0;
            }
            if begun == until {
                return if from <= until && until < to { amount } else { 0.0 };
            }
            let inside = to.min(until).saturating_sub(from.max(begun));
            amount * inside as f64 / length
        };
        let width = nanos(self.bucket).max(1);
        let first = self.number(sample.from).max(self.open);
        let from = if amount > 0.0 { first } else { last };
        if from - self.open > most {
            // Nothing was there for so long that what lies before has no effect any more.
            self.open = from - most;
            self.sum = 0.0;
        }
        while self.open < last {
            if self.sum == 0.0 && from > self.open {
                let silent = self.open + 1;
                self.open = from.min(last);
                report((silent, self.open), 0.0);
                continue;
            }
            let begin = self.open.saturating_mul(width);
            let sum = self.sum + share(begin, begin.saturating_add(width));
            self.open += 1;
            self.sum = 0.0;
            report((self.open, self.open), sum * 1e9 / width as f64);
        }
        let begin = last.saturating_mul(width);
        self.sum = share(begin, begin.saturating_add(width));
    }

    fn amount(&self, sample: &Sample) -> f64 {
        match self.metric {
            Metric::Concurrency => sample.area,
            Metric::Rps => f64::from(sample.arrivals),
        }
    }
}

fn nanos(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}

fn number(at: Moment, bucket: Duration) -> u64 {
    if bucket == SECOND {
        return at.as_secs();
    }
    if bucket.subsec_nanos() == 0 && bucket.as_secs() > 0 {
        return at.as_secs() / bucket.as_secs();
    }
    u64::try_from(at.as_nanos() / bucket.as_nanos().max(1)).unwrap_or(u64::MAX)
}

pub(super) fn moment(number: u64, bucket: Duration) -> Moment {
    if bucket == SECOND {
        return Duration::from_secs(number);
    }
    let nanos = u128::from(number).saturating_mul(bucket.as_nanos());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The next moment that is a multiple of `step`, after `now`.
pub(super) fn next_multiple(now: Moment, step: Duration) -> Moment {
    moment(number(now, step) + 1, step)
}
