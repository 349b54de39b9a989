//! Asks running instances whether they still live and whether they are still ready, if their revision wants
//! that. One that no longer lives is replaced; one that is not ready gets no requests until it is.
//!
//! # Source
//! Kubernetes, "Configure Liveness, Readiness and Startup Probes".

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use vhive_api::guest::Stream;
use vhive_api::{Readiness, Revision, TimedProbe};
use vhive_sandbox::{Deadline, Journal};

use super::Pool;
use super::core::InstanceNo;
use crate::probe;

/// Failures in a row that count if a revision does not say how many.
///
/// # Source
/// Kubernetes API reference, Probe.
const FAILURES: u32 = 3;

/// What an instance is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    Liveness,
    Readiness,
}

impl Asks {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }
}

/// What the instances of a revision are asked while they run. Commands are not: the sandbox belongs to the
/// pool while it serves.
pub(super) fn probes(revision: &Revision) -> impl Iterator<Item = (Asks, TimedProbe)> {
    let liveness = revision.liveness.clone().map(|probe| (Asks::Liveness, probe));
    let again = !revision.probe.period.is_zero();
    let readiness = again.then(|| {
        let mut timing = revision.probe;
        if timing.failures == 0 {
            timing.failures = FAILURES;
        }
        (Asks::Readiness, TimedProbe { check: revision.readiness.clone(), timing })
    });
    let all = liveness.into_iter().chain(readiness);
    all.filter(|(_, probe)| !matches!(probe.check, Readiness::Exec(_)))
}

/// One instance that is asked, until it ends or is given up.
pub(super) struct Watched {
    pub(super) pool: Weak<Pool>,
    pub(super) no: InstanceNo,
    pub(super) endpoint: SocketAddr,
    pub(super) journal: Arc<Journal>,
    pub(super) asks: Asks,
    pub(super) probe: TimedProbe,
    pub(super) turn: Arc<Turn>,
}

/// Held while an instance is asked how it does; and while it stands still, when it is not.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    state: Mutex<TurnState>,
    free: Condvar,
}

#[derive(Debug, Default)]
struct TurnState {
    asking: u32,
    stands_still: bool,
    /// Whether what was asked last was not answered well: for its life, and for its readiness.
    has_failed: [bool; 2],
}

/// An instance is being asked; over when dropped.
#[derive(Debug)]
struct Asking<'a>(&'a Turn, Asks);

/// An instance stands still; over when dropped.
#[derive(Debug)]
pub(crate) struct Still<'a>(&'a Turn);

impl Turn {
    fn lock(&self) -> MutexGuard<'_, TurnState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn to ask, unless it stands still.
    fn try_ask(&self, asks: Asks) -> Option<Asking<'_>> {
        let mut state = self.lock();
        if state.stands_still {
            return None;
        }
        state.asking += 1;
        Some(Asking(self, asks))
    }

    /// A turn to have it stand still, if nobody asks it any more within `patience` and it was well
    /// when it was asked last.
    pub(crate) fn take(&self, patience: Duration) -> Option<Still<'_>> {
        let end = Instant::now() + patience;
        let mut state = self.lock();
        while state.asking > 0 || state.stands_still {
            let left = end.checked_duration_since(Instant::now())?;
            let woken = self.free.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.has_failed.contains(&true) {
            return None;
        }
        state.stands_still = true;
        Some(Still(self))
    }
}

impl Asking<'_> {
    fn note(&self, has_failed: bool) {
        self.0.lock().has_failed[self.1 as usize] = has_failed;
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.asking = state.asking.saturating_sub(1);
        drop(state);
        self.0.free.notify_all();
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.0.lock().stands_still = false;
        self.0.free.notify_all();
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
        if self.asks == Asks::Liveness {
            tokio::time::sleep(timing.initial_delay).await;
        }
        let (mut failures, mut successes, mut is_well) = (0_u32, 0_u32, true);
        loop {
            tokio::time::sleep(period).await;
            match self.doing() {
                Doing::Gone => return,
                Doing::Snapshotting => continue,
                Doing::Serving => {}
            }
            let (check, endpoint, asks) = (self.probe.check.clone(), self.endpoint, self.asks);
            let turn = Arc::clone(&self.turn);
            let tried = tokio::task::spawn_blocking(move || {
                // None if a snapshot has just begun.
                let turn = turn.try_ask(asks)?;
                let tried = probe::check(&check, endpoint, Deadline::after(timing.timeout));
                turn.note(tried.is_err());
                Some(tried)
            });
            let Ok(tried) = tried.await else { return };
            let Some(tried) = tried else { continue };
            match tried {
                Ok(()) => {
                    (failures, successes) = (0, successes.saturating_add(1));
                    if !is_well && successes >= timing.successes.max(1) {
                        is_well = true;
                        self.go_on();
                    }
                }
                Err(answer) => {
                    (failures, successes) = (failures.saturating_add(1), 0);
                    if failures < timing.failures.max(1) {
                        continue;
                    }
                    match self.asks {
                        Asks::Liveness => return self.give_up(&answer),
                        Asks::Readiness if is_well => {
                            is_well = false;
                            self.withhold(&answer);
                        }
                        Asks::Readiness => {}
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
        self.tell(&pool, &format!("{}; the instance is replaced", self.failed(answer)));
        pool.died(self.no);
    }

    fn withhold(&self, answer: &str) {
        let Some(pool) = self.pool.upgrade() else { return };
        let failed = self.failed(answer);
        self.tell(&pool, &format!("{failed}; the instance gets no requests until it succeeds"));
        pool.set_well(self.no, false);
    }

    fn go_on(&self) {
        let Some(pool) = self.pool.upgrade() else { return };
        let what = probe::what(&self.probe.check);
        self.tell(&pool, &format!("{} probe {what} succeeds again", self.asks.as_str()));
        pool.set_well(self.no, true);
    }

    fn failed(&self, answer: &str) -> String {
        let (what, failures) = (probe::what(&self.probe.check), self.probe.timing.failures.max(1));
        let asks = self.asks.as_str();
        format!("{asks} probe {what} was answered by {answer}, {failures} times in a row")
    }

    fn tell(&self, pool: &Pool, what: &str) {
        tracing::warn!(revision = %pool.key, what, "an instance's probe");
        self.journal.line(Stream::Console, format!("vhive: {what}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_waited_for_only_so_long_and_not_given_of_what_is_unwell() {
        let turn = Turn::default();
        let asking = turn.try_ask(Asks::Liveness).expect("free");
        let other = turn.try_ask(Asks::Readiness).expect("who asks keeps nobody else from it");
        drop(other);
        assert!(turn.take(Duration::from_millis(10)).is_none(), "whoever hangs is not waited for");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| turn.take(Duration::from_secs(60)).is_some());
            drop(asking);
            assert!(waiting.join().unwrap());
        });
        let still = turn.take(Duration::ZERO).expect("free again");
        assert!(turn.try_ask(Asks::Liveness).is_none(), "nobody asks what stands still");
        drop(still);
        turn.try_ask(Asks::Readiness).expect("asked").note(true);
        turn.try_ask(Asks::Liveness).expect("asked").note(false);
        assert!(turn.take(Duration::ZERO).is_none(), "no snapshot is wanted of what is not ready");
        turn.try_ask(Asks::Readiness).expect("asked again").note(false);
        assert!(turn.take(Duration::ZERO).is_some());
    }
}
