//! Asks running instances whether they still live, if their revision wants that.
//!
//! # Source
//! Kubernetes, "Configure Liveness, Readiness and Startup Probes".

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::time::Duration;

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
    /// Held while it is asked; and while it stands still, when it is not.
    pub(super) turn: Arc<Mutex<()>>,
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
    /// Asks it, period by period. No try overlaps with a snapshot: that waits for a try under way, and
    /// while it is taken there is none.
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
                let _turn = match turn.try_lock() {
                    Ok(turn) => turn,
                    Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
                    // A snapshot has just begun.
                    Err(TryLockError::WouldBlock) => return None,
                };
                Some(probe::check(&check, endpoint, Deadline::after(timing.timeout)))
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
