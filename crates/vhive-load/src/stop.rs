//! Ending a run early: first no more is sent, then what is under way is given up.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Asks a run to end; clones ask the same run.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<u8>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Stop {
    /// The first time: nothing more is sent. The second time: nothing is waited for.
    pub fn ask(&self) {
        self.0.send_modify(|times| *times = times.saturating_add(1));
    }

    /// Whether it was asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        *self.0.borrow() > 0
    }

    /// Returns once it was asked.
    pub async fn asked(&self) {
        self.reached(1).await;
    }

    /// Returns once it is asked again, however often it was before.
    pub async fn asked_again(&self) {
        let before = *self.0.borrow();
        self.reached(before.saturating_add(1)).await;
    }

    pub(crate) async fn asked_twice(&self) {
        self.reached(2).await;
    }

    async fn reached(&self, times: u8) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|asked| *asked >= times).await;
    }
}

/// What work on a thread of its own does to files: it takes steps, none of which begins once there are to
/// be no more. Clones are of the same work.
#[derive(Clone, Debug, Default)]
pub struct Steps(Arc<Mutex<bool>>);

impl Steps {
    /// Takes a step, a short one, unless there are to be no more.
    pub fn take<T>(&self, step: impl FnOnce() -> T) -> Option<T> {
        let ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!*ended).then(step)
    }

    /// There are to be no more. When it returns, none is under way.
    pub fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn asked_again_is_once_more_than_before() {
        let stop = Stop::default();
        stop.ask();
        assert!(stop.asked().now_or_never().is_some());
        let again = stop.asked_again();
        tokio::pin!(again);
        assert!(again.as_mut().now_or_never().is_none(), "once is what it was before");
        stop.clone().ask();
        assert!(again.now_or_never().is_some());
    }
}
