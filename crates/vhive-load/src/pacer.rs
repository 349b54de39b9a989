//! Waiting until a moment, to the microsecond, without leaving the thread that sends.
//!
//! ```text
//!   until(t):  ── timerfd sleeps in the kernel ──► t − spin ── yields, replies are read ──► t: send
//! ```
//!
//! The runtime's own timer counts milliseconds, and handing over from another thread costs a
//! wake-up; both were measured (`docs/decisions/0020-load-generator.md`).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::clock::{Clock, nanos};
use crate::collect::Collector;
use crate::stop::Stop;

/// How long before a send the thread stops sleeping: what a wake-up may take, and no more.
pub const SPIN: Duration = Duration::from_micros(150);

/// Waits for moments of a clock.
#[derive(Debug)]
pub(crate) struct Pacer {
    clock: Clock,
    timer: AsyncFd<OwnedFd>,
    spin_ns: u64,
    /// With what it is asked whether replies are awaited, if they keep the thread awake.
    busy: Option<Arc<Collector>>,
    stop: Stop,
}

impl Pacer {
    pub(crate) fn new(
        clock: Clock,
        spin: Duration,
        busy: Option<Arc<Collector>>,
        stop: Stop,
    ) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        #[expect(deprecated, reason = "what took its place is unsafe; an OwnedFd never moves")]
        let timer = AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, flags)?)?;
        Ok(Self { clock, timer, spin_ns: nanos(spin), busy, stop })
    }

    /// Returns at the moment, or later; `false` at once when the run is to stop.
    pub(crate) async fn until(&self, at_ns: u64) -> io::Result<bool> {
        loop {
            if self.stop.is_asked() {
                return Ok(false);
            }
            let left = at_ns.saturating_sub(self.clock.now_ns());
            if left == 0 {
                return Ok(true);
            }
            match left.checked_sub(self.spin_ns) {
                Some(sleep @ 1..) if !self.is_busy() => self.sleep(sleep).await?,
                _ => tokio::task::yield_now().await,
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.busy.as_ref().is_some_and(|collector| collector.has_any())
    }

    async fn sleep(&self, ns: u64) -> io::Result<()> {
        let value = Timespec {
            tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        tokio::select! {
            ready = self.timer.readable() => ready?.clear_ready(),
            () = self.stop.asked() => {}
        }
        Ok(())
    }
}
