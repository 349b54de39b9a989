//! How working sets are recorded and prefetched: what each [`PrefetchPolicy`] means for the pager. A
//! new policy is a variant there and its answers here; *whether* to record or prefetch is the
//! node's question.
//!
//! # Source
//! `reap-serial`: Ustiugov et al., *Benchmarking, Analysis, and Optimization of Serverless Function
//! Snapshots*, ASPLOS 2021, §5. `mincore`: Ao et al., *FaaSnap: FaaS Made Fast Using Snapshot-based
//! VMs*, EuroSys 2022, §4.2.

pub use vhive_api::PrefetchPolicy;

/// What must be installed before the guest may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResumeAfter {
    /// The first chunk: what was touched first.
    FirstChunk,
    /// The whole working set.
    Everything,
}

/// How many aligned pages one fault brings; a power of two.
#[must_use]
pub const fn pages_per_fault(policy: PrefetchPolicy) -> u32 {
    match policy {
        PrefetchPolicy::FaultAround => 16,
        PrefetchPolicy::ReapSerial | PrefetchPolicy::ReapPipelined | PrefetchPolicy::Mincore => 1,
    }
}

/// Whether the working set is recorded by serving faults. Otherwise run the guest on the mapped
/// memory file and call [`crate::working_set::from_page_cache`].
#[must_use]
pub const fn records_faults(policy: PrefetchPolicy) -> bool {
    !matches!(policy, PrefetchPolicy::Mincore)
}

/// Whether reading and installing overlap, and the guest runs meanwhile.
pub(crate) const fn overlaps(policy: PrefetchPolicy) -> bool {
    !matches!(policy, PrefetchPolicy::ReapSerial)
}

pub(crate) const fn resume_after(policy: PrefetchPolicy) -> ResumeAfter {
    if overlaps(policy) { ResumeAfter::FirstChunk } else { ResumeAfter::Everything }
}
