//! The guest's clocks, as far as the host has a say in them.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::failure::{Failure, Step as _};

/// Nanoseconds on CLOCK_MONOTONIC.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The monotonic clock is never negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Sets the wall clock: a microVM has no other that is right.
pub(crate) fn set_wall(unix_ns: u64) -> Result<(), Failure> {
    let second = 1_000_000_000;
    let time = Timespec {
        tv_sec: (unix_ns / second).cast_signed(),
        tv_nsec: (unix_ns % second).cast_signed(),
    };
    clock_settime(ClockId::Realtime, time).step("set the clock")
}
