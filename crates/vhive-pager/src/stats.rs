//! What a session counts.

use std::time::Duration;

use crate::pages::PageNumber;
use crate::timeline::{FaultAt, Timeline};

/// What happened to one guest's memory since it was attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PagerStats {
    /// Faults that the guest, or its VMM, waited for.
    pub faults: u64,
    /// Those of pages that no prefetch brings (any more): all of them without a working set.
    pub residual_faults: u64,
    /// Pages installed because of faults, zero ones included.
    pub fault_pages: u64,
    /// Pages installed as zeros, by faults and by prefetching.
    pub zero_pages: u64,
    /// Pages that prefetching installed, zero ones included.
    pub prefetched_pages: u64,
    /// Bytes of page data that prefetching read.
    pub prefetched_bytes: u64,
    /// The time in which memory was waited for: each fault from the moment its message was read until its page was
    /// in place, plus what [`crate::Session::may_resume`] took.
    pub wait: Duration,
    /// The first fault, since the memory was attached.
    pub first_fault: Option<Duration>,
    /// The last one.
    pub last_fault: Option<Duration>,
    /// When prefetching had installed everything, since the memory was attached (zero if before).
    pub prefetch_done: Option<Duration>,
    /// When which page was missing.
    pub timeline: Timeline,
}

impl PagerStats {
    pub(crate) fn fault(&mut self, since_attach: Duration, page: PageNumber, is_residual: bool) {
        self.faults += 1;
        self.residual_faults += u64::from(is_residual);
        self.first_fault.get_or_insert(since_attach);
        self.last_fault = Some(since_attach);
        let micros = u32::try_from(since_attach.as_micros()).unwrap_or(u32::MAX);
        self.timeline.note(FaultAt { micros, page, residual: is_residual });
    }
}
