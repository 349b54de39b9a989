//! Deadlines that move.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A deadline that is cheap to move into the future: the runtime's timer is only moved when it
/// fires too early.
#[derive(Debug)]
pub(super) struct Timer {
    sleep: Pin<Box<Sleep>>,
    deadline: Instant,
    polled: bool,
}

impl Timer {
    pub(super) fn new(deadline: Instant) -> Self {
        Self { sleep: Box::pin(sleep_until(deadline)), deadline, polled: false }
    }

    pub(super) fn set(&mut self, deadline: Instant) {
        self.deadline = deadline;
        if deadline < self.sleep.deadline() {
            self.sleep.as_mut().reset(deadline);
            self.polled = false;
        }
    }

    /// As [`Timer::poll`], for one who always polls it from the same task: costs one load unless
    /// it has fired.
    pub(super) fn poll_from_same_task(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.polled && !self.may_have_fired() {
            return Poll::Pending;
        }
        self.polled = true;
        self.poll(cx)
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.deadline);
        }
        Poll::Pending
    }

    /// Whether it may have fired since it was last polled; costs one load.
    pub(super) fn may_have_fired(&self) -> bool {
        self.sleep.is_elapsed()
    }
}

/// Why the function's next byte is waited for no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// Its sandbox has ended.
    Ended,
    /// It has been silent for so long.
    Silent(Duration),
}

/// How long the function has said nothing while the gateway waited for it.
#[derive(Debug)]
pub(super) struct Silence {
    limit: Duration,
    timer: Timer,
    /// The timer runs.
    lasts: bool,
}

impl Silence {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, timer: Timer::new(Instant::now() + limit), lasts: true }
    }

    /// Ready, with the limit, once it has lasted for as long, counted from the first call behind
    /// [`Silence::end`].
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        if !std::mem::replace(&mut self.lasts, true) {
            self.timer.set(Instant::now() + self.limit);
        }
        self.timer.poll(cx).map(|()| self.limit)
    }

    pub(super) fn end(&mut self) {
        self.lasts = false;
    }
}
