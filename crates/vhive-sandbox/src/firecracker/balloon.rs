//! The balloon: a device by which the host borrows memory that the guest does not use.
//!
//! ```text
//!   statistics ─► free memory ─► inflate by it: the guest hands pages over, the host drops them
//!              ─► deflate: the guest has them back, as pages that nobody has touched
//! ```
//!
//! So memory that the function has used and freed takes no room on the host, nor in a snapshot that
//! is taken next, and nothing of it is left to be done in a clone. What the guest caches is left to
//! it: only memory that is free counts.
//!
//! All of it needs the guest's driver. Who has none hands over no statistics, and nothing is asked
//! of it.
//!
//! # Source
//! Firecracker, `docs/ballooning.md`; virtio 1.2, “Traditional Memory Balloon Device”.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhive_api::Bytes;

use super::api::{Api, ApiError, BalloonStatistics};
use crate::deadline::Deadline;

/// What is left free in a guest that is asked for the rest: for what it allocates meanwhile.
const LEFT: Bytes = Bytes::mib(16);

/// The guest is asked for new statistics by a change of the interval in which it tells them, which
/// is else so long that it never does by itself. In seconds.
pub(super) const SELDOM: u16 = u16::MAX;
const AS_SELDOM: u16 = SELDOM - 1;

/// How long new statistics are waited for; a guest with nothing else to do takes a millisecond.
const FRESH: Duration = Duration::from_millis(100);

/// How long a guest may hand over nothing before it is taken to have no more.
const STALLED: Duration = Duration::from_millis(200);

/// How long is waited before the next look.
const PAUSE: Duration = Duration::from_millis(2);

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// What the guest said was free; none if it has no driver.
    pub free: Option<Bytes>,
    /// What it handed over.
    pub given: Bytes,
}

/// How much a guest is asked for, in whole MiB.
const fn wanted(free: Bytes) -> u64 {
    free.0.saturating_sub(LEFT.0) >> 20
}

/// Has the guest give back what is free. `ended` becomes readable when the guest has ended.
///
/// # Errors
/// [`ApiError`]: there is no balloon, or nobody answers. The guest runs on.
pub(super) fn give_back(
    api: &mut Api,
    ended: &impl AsFd,
    deadline: Deadline,
) -> Result<GivenBack, ApiError> {
    let Some(free) = free(api, ended, deadline)? else { return Ok(GivenBack::default()) };
    let mut given = Bytes(0);
    let target = wanted(free);
    if target > 0 {
        api.inflate(target, deadline)?;
        given = Bytes::mib(reach(api, ended, target, deadline)?);
        // Whatever the deadline says: the memory is the guest's.
        let then = Deadline::at(deadline.instant().max(Instant::now() + STALLED));
        api.inflate(0, then)?;
        reach(api, ended, 0, then)?;
    }
    Ok(GivenBack { free: Some(free), given })
}

/// What is free now.
fn free(api: &mut Api, ended: &impl AsFd, deadline: Deadline) -> Result<Option<Bytes>, ApiError> {
    let before = api.balloon_statistics(deadline)?;
    if before.free_memory.is_none() {
        return Ok(None);
    }
    // If it is what it was, nothing happens.
    let interval = api.balloon_interval(deadline)?;
    api.statistics_every(if interval == SELDOM { AS_SELDOM } else { SELDOM }, deadline)?;
    let until = deadline.or_after(FRESH);
    loop {
        let now = api.balloon_statistics(deadline)?;
        // One that says the same again is as good as new.
        if now != before || until.passed() || has_ended(ended, PAUSE) {
            return Ok(now.free_memory.map(Bytes));
        }
    }
}

/// Waits until the balloon has a size, or gets no nearer to it; says its size. In MiB.
fn reach(
    api: &mut Api,
    ended: &impl AsFd,
    target: u64,
    deadline: Deadline,
) -> Result<u64, ApiError> {
    let mut last = None;
    let mut stalled = deadline.or_after(STALLED);
    loop {
        let BalloonStatistics { actual_mib, .. } = api.balloon_statistics(deadline)?;
        if last != Some(actual_mib) {
            (last, stalled) = (Some(actual_mib), deadline.or_after(STALLED));
        }
        if actual_mib == target || stalled.passed() || has_ended(ended, PAUSE) {
            return Ok(actual_mib);
        }
    }
}

/// Waits a little, unless the guest ends.
fn has_ended(ended: &impl AsFd, most: Duration) -> bool {
    let most = Timespec::try_from(most).map_err(io::Error::other);
    let polled =
        most.and_then(|most| Ok(poll(&mut [PollFd::new(ended, PollFlags::IN)], Some(&most))?));
    // Whatever is wrong with waiting, looking without it would only be less polite.
    polled.map_or(true, |ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_memory_is_left_to_the_guest() {
        assert_eq!(wanted(Bytes::mib(100)), 84);
        assert_eq!(wanted(Bytes(Bytes::mib(17).0 - 1)), 0);
        assert_eq!(wanted(Bytes(0)), 0);
    }
}
