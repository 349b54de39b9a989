//! The bounded queue in front of one revision, and what the autoscaler learns from it.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use vhive_api::RevisionKey;

use crate::autoscale::Sample;
use crate::scaler::Poke;

/// Why a request was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{queued} requests already wait for an instance, and no more than {depth} may")]
pub(crate) struct QueueFull {
    /// Requests waiting.
    pub(crate) queued: u32,
    /// Most that may wait.
    pub(crate) depth: u32,
}

/// The queue of one revision: counts what is in flight, bounds what waits.
#[derive(Debug)]
pub(crate) struct Throttle {
    depth: u32,
    queued: AtomicU32,
    watched: AtomicBool,
    poked: AtomicBool,
    revision: RevisionKey,
    poke: Arc<Poke>,
    meter: Mutex<Meter>,
}

/// Integrates the number of requests over time, and counts them.
#[derive(Debug)]
struct Meter {
    in_flight: u32,
    area: Duration,
    changed: Instant,
    sampled: Instant,
    arrivals: u32,
    peak: u32,
    /// When the last request left nobody behind; none before the first one.
    idle_since: Option<Instant>,
    gaps: u32,
    longest_gap: Duration,
}

impl Meter {
    fn new(now: Instant) -> Self {
        Self {
            in_flight: 0,
            area: Duration::ZERO,
            changed: now,
            sampled: now,
            arrivals: 0,
            peak: 0,
            idle_since: None,
            gaps: 0,
            longest_gap: Duration::ZERO,
        }
    }

    /// Begins a stretch: what was before does not count.
    fn begin(&mut self, now: Instant) {
        self.area = Duration::ZERO;
        self.sampled = now;
        (self.arrivals, self.peak) = (0, self.in_flight);
        (self.gaps, self.longest_gap) = (0, Duration::ZERO);
    }

    fn advance(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.changed);
        self.area = self.area.saturating_add(since.saturating_mul(self.in_flight));
        self.changed = self.changed.max(now);
    }
}

impl Throttle {
    /// The queue of a revision. `poke` wakes the autoscaler.
    pub(crate) fn new(depth: u32, revision: RevisionKey, poke: Arc<Poke>, now: Instant) -> Self {
        Self {
            depth,
            queued: AtomicU32::new(0),
            watched: AtomicBool::new(false),
            poked: AtomicBool::new(false),
            revision,
            poke,
            meter: Mutex::new(Meter::new(now)),
        }
    }

    /// Counts a request as in flight. [`Throttle::leave`] must follow.
    pub(crate) fn enter(&self, now: Instant) {
        let mut meter = self.meter();
        meter.advance(now);
        if meter.in_flight == 0 {
            if !self.watched.load(Ordering::Relaxed) {
                // Nobody has looked since the last request; there was nothing to see.
                meter.begin(now);
            }
            if let Some(idle) = meter.idle_since {
                meter.gaps = meter.gaps.saturating_add(1);
                meter.longest_gap = meter.longest_gap.max(now.saturating_duration_since(idle));
            }
        }
        meter.in_flight += 1;
        meter.arrivals = meter.arrivals.saturating_add(1);
        meter.peak = meter.peak.max(meter.in_flight);
        drop(meter);
        if !self.watched.load(Ordering::Relaxed) && !self.watched.swap(true, Ordering::AcqRel) {
            self.poke();
        }
    }

    fn poke(&self) {
        if !self.poked.swap(true, Ordering::AcqRel) {
            self.poke.poke(&self.revision);
        }
    }

    /// The autoscaler has taken the poke and looks: a later one counts again.
    pub(crate) fn looked_at(&self) {
        self.poked.store(false, Ordering::Release);
    }

    /// The request is done.
    pub(crate) fn leave(&self, now: Instant) {
        let mut meter = self.meter();
        meter.advance(now);
        meter.in_flight = meter.in_flight.saturating_sub(1);
        if meter.in_flight == 0 {
            meter.idle_since = Some(now);
        }
    }

    /// Waits for `lease`, in the queue if it is not there at once. The boolean says whether it
    /// was queued.
    ///
    /// # Errors
    /// [`QueueFull`]; `lease` has been dropped.
    pub(crate) async fn admit<L>(
        &self,
        lease: impl Future<Output = L>,
    ) -> Result<(L, bool), QueueFull> {
        let queued = self.queued.load(Ordering::Relaxed);
        if queued > 0 && queued >= self.depth {
            return Err(QueueFull { queued, depth: self.depth });
        }
        let mut lease = pin!(lease);
        let first = std::future::poll_fn(|cx| Poll::Ready(lease.as_mut().poll(cx))).await;
        if let Poll::Ready(lease) = first {
            return Ok((lease, false));
        }
        let _place = self.queue()?;
        self.poke();
        Ok((lease.await, true))
    }

    fn queue(&self) -> Result<Place<'_>, QueueFull> {
        let queued = self.queued.fetch_add(1, Ordering::AcqRel);
        let place = Place(self);
        if queued >= self.depth {
            return Err(QueueFull { queued, depth: self.depth });
        }
        Ok(place)
    }

    /// What was seen since the last call, in moments after `epoch`.
    pub(crate) fn sample(&self, epoch: Instant, now: Instant) -> Sample {
        let mut meter = self.meter();
        meter.advance(now);
        let moment = |at: Instant| at.saturating_duration_since(epoch);
        let busy_until = if meter.in_flight > 0 { Some(now) } else { meter.idle_since };
        let sample = Sample {
            from: moment(meter.sampled),
            to: moment(now),
            area: meter.area.as_secs_f64(),
            arrivals: meter.arrivals,
            peak: meter.peak,
            in_flight: meter.in_flight,
            busy_until: moment(busy_until.unwrap_or(meter.sampled)),
            gaps: meter.gaps,
            longest_gap: meter.longest_gap,
        };
        meter.begin(now);
        sample
    }

    /// Begins to measure: what was before does not count.
    pub(crate) fn start_sampling(&self, now: Instant) {
        let mut meter = self.meter();
        meter.advance(now);
        meter.begin(now);
    }

    /// The autoscaler stops looking until the next request pokes it. False, and nothing done, if
    /// one is in flight.
    pub(crate) fn rest(&self) -> bool {
        let meter = self.meter();
        if meter.in_flight > 0 {
            return false;
        }
        self.watched.store(false, Ordering::Release);
        true
    }

    /// Makes the autoscaler look.
    pub(crate) fn watch(&self) {
        self.watched.store(true, Ordering::Release);
        self.poke();
    }

    /// Requests in flight or waiting.
    pub(crate) fn in_flight(&self) -> u32 {
        self.meter().in_flight
    }

    /// Requests waiting for an instance.
    pub(crate) fn queued(&self) -> u32 {
        self.queued.load(Ordering::Relaxed)
    }

    /// Most requests that may wait.
    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }

    fn meter(&self) -> MutexGuard<'_, Meter> {
        // Nothing panics while it holds the lock, so a poisoned meter is still whole.
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue, given back on drop.
struct Place<'a>(&'a Throttle);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn throttle(depth: u32, now: Instant) -> Throttle {
        let revision = RevisionKey::new("default", "hello-00001");
        Throttle::new(depth, revision, Arc::default(), now)
    }

    #[tokio::test]
    async fn the_queue_never_exceeds_its_depth() {
        let throttle = throttle(2, Instant::now());
        let mut waiting: Vec<_> =
            (0..2).map(|_| Box::pin(throttle.admit(std::future::pending::<()>()))).collect();
        for one in &mut waiting {
            assert!(one.as_mut().now_or_never().is_none());
        }
        let third = throttle.admit(std::future::pending::<()>()).now_or_never();
        assert_eq!(third, Some(Err(QueueFull { queued: 2, depth: 2 })));
        assert_eq!(throttle.queued(), 2);
        waiting.pop();
        assert_eq!(throttle.queued(), 1, "a client that leaves frees its place");
        assert_eq!(throttle.admit(async {}).await, Ok(((), false)));
    }

    #[tokio::test]
    async fn depth_zero_lets_in_what_need_not_wait() {
        let throttle = throttle(0, Instant::now());
        assert_eq!(throttle.admit(async { 1 }).await, Ok((1, false)));
        let full = throttle.admit(std::future::pending::<()>()).await;
        assert_eq!(full, Err(QueueFull { queued: 0, depth: 0 }));
        assert_eq!(throttle.queued(), 0);
    }

    #[test]
    fn samples_are_time_weighted_and_count() {
        let start = Instant::now();
        let throttle = throttle(0, start);
        throttle.watch();
        let at = |secs| start + Duration::from_secs(secs);
        throttle.enter(at(0));
        throttle.enter(at(2));
        throttle.leave(at(3));
        let sample = throttle.sample(start, at(4));
        let secs = Duration::from_secs;
        let seen = Sample { from: secs(0), to: secs(4), area: 5.0, arrivals: 2, ..sample };
        assert_eq!(sample, seen);
        assert_eq!((sample.peak, sample.in_flight, sample.gaps), (2, 1, 0));
        assert_eq!(sample.busy_until, secs(4));
        assert!(!throttle.rest());
        throttle.leave(at(5));
        let sample = throttle.sample(start, at(6));
        assert_eq!((sample.area, sample.arrivals, sample.peak), (1.0, 0, 1));
        assert_eq!(sample.busy_until, secs(5));
        assert!(throttle.rest());
        // Nobody looks for a while: the next sample begins with the next request.
        throttle.enter(at(65));
        throttle.leave(at(66));
        throttle.enter(at(68));
        let sample = throttle.sample(start, at(70));
        assert_eq!((sample.from, sample.area, sample.arrivals), (secs(65), 3.0, 2));
        assert_eq!((sample.gaps, sample.longest_gap), (2, secs(60)));
    }
}
