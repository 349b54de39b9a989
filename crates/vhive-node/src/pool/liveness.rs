//! Asks running instances whether they still live, if their revision wants that.
//!
//! # Source
//! Kubernetes, "Configure Liveness, Readiness and Startup Probes".

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use vhive_api::TimedProbe;
use vhive_api::guest::Stream;
use vhive_sandbox::{Deadline, Journal};

use super::Pool;
use super::core::InstanceNo;
use crate::probe;

/// One instance that is asked, until it ends or is given up.
pub(super) struct Watched {
    pub(super) pool: Weak<Pool>,
    pub(super) no: InstanceNo,
    pub(super) endpoint: SocketAddr,
    pub(super) journal: Arc<Journal>,
    pub(super) probe: TimedProbe,
    pub(super) turn: Arc<Turn>,
}

/// Held while an instance is asked whether it lives; and while it stands still, when it is not.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    state: Mutex<TurnState>,
    free: Condvar,
}

#[derive(Debug, Default)]
struct TurnState {
    is_taken: bool,
    /// Whether what was asked last was not answered well.
    has_failed: bool,
}

/// A turn that has been taken; free again when dropped.
#[derive(Debug)]
pub(crate) struct TurnGuard<'a>(&'a Turn);

impl Turn {
    fn lock(&self) -> MutexGuard<'_, TurnState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn, unless somebody has it.
    fn try_take(&self) -> Option<TurnGuard<'_>> {
        let mut state = self.lock();
        let is_free = !std::mem::replace(&mut state.is_taken, true);
        drop(state);
        is_free.then(|| TurnGuard(self))
    }

    /// The turn, if it is free within `patience` and the instance was well when it was asked last.
    pub(crate) fn take(&self, patience: Duration) -> Option<TurnGuard<'_>> {
        let end = Instant::now() + patience;
        let mut state = self.lock();
        while state.is_taken {
            let left = end.checked_duration_since(Instant::now())?;
            let woken = self.free.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.has_failed {
            return None;
        }
        state.is_taken = true;
        Some(TurnGuard(self))
    }
}

impl TurnGuard<'_> {
    fn note(&self, has_failed: bool) {
        self.0.lock().has_failed = has_failed;
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        self.0.lock().is_taken = false;
        self.0.free.notify_one();
    }
}

/// What an instance is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Serving,
    /// It stands still, or may any moment.
    Snapshotting,
    Gone,
}

impl Watched {
    /// Asks it, period by period. No try overlaps with a snapshot: that waits a moment for a try under
    /// way, and while it is taken there is none.
    pub(super) async fn watch(self) {
        let timing = self.probe.timing;
        let period = timing.period.max(Duration::from_millis(1));
        tokio::time::sleep(timing.initial_delay).await;
        let mut failures = 0;
        loop {
            tokio::time::sleep(period).await;
            match self.doing() {
                Doing::Gone => return,
                Doing::Snapshotting => continue,
                Doing::Serving => {}
            }
            let (check, endpoint) = (self.probe.check.clone(), self.endpoint);
            let turn = Arc::clone(&self.turn);
            let tried = tokio::task::spawn_blocking(move || {
                // None if a snapshot has just begun.
                let turn = turn.try_take()?;
                let tried = probe::check(&check, endpoint, Deadline::after(timing.timeout));
                turn.note(tried.is_err());
                Some(tried)
            });
            let Ok(tried) = tried.await else { return };
            let Some(tried) = tried else { continue };
            match tried {
                Ok(()) => failures = 0,
                Err(answer) => {
                    failures += 1;
                    if failures >= timing.failures.max(1) {
                        return self.give_up(&answer);
                    }
                }
            }
        }
    }

    fn doing(&self) -> Doing {
        let Some(pool) = self.pool.upgrade() else { return Doing::Gone };
        let state = pool.state();
        match state.slots.get(&self.no) {
            None => Doing::Gone,
            Some(slot) if slot.running.is_none() => Doing::Snapshotting,
            Some(_) => Doing::Serving,
        }
    }

    fn give_up(&self, answer: &str) {
        let Some(pool) = self.pool.upgrade() else { return };
        let (what, failures) = (probe::what(&self.probe.check), self.probe.timing.failures);
        let text = format!(
            "vhive: liveness probe {what} was answered by {answer}, {failures} times in a row; the \
             instance is replaced"
        );
        tracing::warn!(revision = %pool.key, text, "instance given up");
        self.journal.line(Stream::Console, text);
        pool.died(self.no);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_waited_for_only_so_long_and_not_given_of_what_is_unwell() {
        let turn = Turn::default();
        let asking = turn.try_take().expect("free");
        assert!(turn.try_take().is_none());
        assert!(turn.take(Duration::from_millis(10)).is_none(), "whoever hangs is not waited for");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| turn.take(Duration::from_secs(60)).is_some());
            drop(asking);
            assert!(waiting.join().unwrap());
        });
        turn.try_take().expect("free again").note(true);
        assert!(turn.take(Duration::ZERO).is_none(), "no snapshot is wanted of it");
        turn.try_take().expect("asked again").note(false);
        assert!(turn.take(Duration::ZERO).is_some());
    }
}
