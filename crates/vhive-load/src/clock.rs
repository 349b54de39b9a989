//! The time of a run: nanoseconds since it began.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Counts from the beginning of a run.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    epoch_us: u64,
}

impl Clock {
    /// A clock at zero.
    #[must_use]
    pub fn start() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch_us = u64::try_from(epoch.as_micros()).unwrap_or(u64::MAX);
        Self { origin: Instant::now(), epoch_us }
    }

    /// Nanoseconds since the beginning.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        nanos(Instant::now().saturating_duration_since(self.origin))
    }

    /// The moment so many nanoseconds after the beginning.
    #[must_use]
    pub fn at(&self, ns: u64) -> Instant {
        self.origin + Duration::from_nanos(ns)
    }

    /// That moment in microseconds since 1970.
    #[must_use]
    pub fn epoch_us(&self, ns: u64) -> u64 {
        self.epoch_us.saturating_add(ns / 1000)
    }
}

/// A time span in nanoseconds; what is longer than 584 years is cut.
pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
