//! What a sandbox's processes have used of the host, counted by the host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One thing that a host counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counter {
    /// CPU time, in microseconds.
    CpuUs,
    /// Of that, outside the kernel. The kernel divides by samples, 1/250 s or so apart.
    UserUs,
    /// Of that, in the kernel.
    SystemUs,
    /// Page faults that needed no I/O.
    MinorFaults,
    /// Page faults that waited for I/O.
    MajorFaults,
    /// Bytes fetched from storage.
    ReadBytes,
    /// Bytes that were made to go to storage.
    WrittenBytes,
    /// How often another process went on instead.
    ContextSwitches,
    /// How often one went on on another CPU.
    Migrations,
    /// CPU cycles.
    Cycles,
    /// Instructions retired.
    Instructions,
    /// Accesses to the last-level cache, as the kernel's generic event counts them.
    CacheReferences,
    /// Of these, misses.
    CacheMisses,
    /// Branches retired.
    Branches,
    /// Of these, mispredicted.
    BranchMisses,
    /// Cycles in which nothing was issued for want of instructions.
    FrontendStalls,
    /// Cycles in which nothing was issued for want of data or units.
    BackendStalls,
    /// TopDown: places for operations in the pipeline. All that follow are parts of these.
    Slots,
    /// Level 1: used by operations that retired.
    Retiring,
    /// Level 1: used by operations that did not retire, or lost in recovering from them.
    BadSpeculation,
    /// Level 1: empty, because the front end supplied nothing.
    FrontendBound,
    /// Level 1: empty, because the back end took nothing.
    BackendBound,
    /// Level 2, of retiring: operations of microcode or of instructions of several operations.
    HeavyOperations,
    /// Level 2, of bad speculation: mispredicted branches.
    BranchMispredicts,
    /// Level 2, of front-end bound: latency (the others are bandwidth).
    FetchLatency,
    /// Level 2, of back-end bound: memory (the others are the core's units).
    MemoryBound,
}

impl Counter {
    /// Every one, in the order of tables.
    pub const ALL: [Self; 26] = [
        Self::CpuUs,
        Self::UserUs,
        Self::SystemUs,
        Self::MinorFaults,
        Self::MajorFaults,
        Self::ReadBytes,
        Self::WrittenBytes,
        Self::ContextSwitches,
        Self::Migrations,
        Self::Cycles,
        Self::Instructions,
        Self::CacheReferences,
        Self::CacheMisses,
        Self::Branches,
        Self::BranchMisses,
        Self::FrontendStalls,
        Self::BackendStalls,
        Self::Slots,
        Self::Retiring,
        Self::BadSpeculation,
        Self::FrontendBound,
        Self::BackendBound,
        Self::HeavyOperations,
        Self::BranchMispredicts,
        Self::FetchLatency,
        Self::MemoryBound,
    ];

    /// The name as written in documents and headings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CpuUs => "cpu_us",
            Self::UserUs => "user_us",
            Self::SystemUs => "system_us",
            Self::MinorFaults => "minor_faults",
            Self::MajorFaults => "major_faults",
            Self::ReadBytes => "read_bytes",
            Self::WrittenBytes => "written_bytes",
            Self::ContextSwitches => "context_switches",
            Self::Migrations => "migrations",
            Self::Cycles => "cycles",
            Self::Instructions => "instructions",
            Self::CacheReferences => "cache_references",
            Self::CacheMisses => "cache_misses",
            Self::Branches => "branches",
            Self::BranchMisses => "branch_misses",
            Self::FrontendStalls => "frontend_stalls",
            Self::BackendStalls => "backend_stalls",
            Self::Slots => "slots",
            Self::Retiring => "retiring",
            Self::BadSpeculation => "bad_speculation",
            Self::FrontendBound => "frontend_bound",
            Self::BackendBound => "backend_bound",
            Self::HeavyOperations => "heavy_operations",
            Self::BranchMispredicts => "branch_mispredicts",
            Self::FetchLatency => "fetch_latency",
            Self::MemoryBound => "memory_bound",
        }
    }

    /// Whether it is an event that is counted only from the first look at an instance on.
    #[must_use]
    pub fn is_event(self) -> bool {
        self >= Self::ContextSwitches
    }

    /// Whether it is a share of [`Counter::Slots`].
    #[must_use]
    pub const fn is_topdown(self) -> bool {
        matches!(
            self,
            Self::Retiring
                | Self::BadSpeculation
                | Self::FrontendBound
                | Self::BackendBound
                | Self::HeavyOperations
                | Self::BranchMispredicts
                | Self::FetchLatency
                | Self::MemoryBound
        )
    }
}

/// What has been counted. What the host does not count is not in it; a zero was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostCounters(pub BTreeMap<Counter, u64>);

impl HostCounters {
    /// A count, if the host offers it.
    #[must_use]
    pub fn get(&self, counter: Counter) -> Option<u64> {
        self.0.get(&counter).copied()
    }

    /// What has come since an earlier look at the same processes. What one of the looks lacks, or
    /// what has become less (a process has ended and took its count along), is absent.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let grown = self.0.iter().filter_map(|(counter, now)| {
            Some((*counter, now.checked_sub(earlier.get(*counter)?)?))
        });
        let mut grown = Self(grown.collect());
        // Samples that are corrected later: one part alone may be more than the whole.
        if grown.get(Counter::UserUs).is_none() || grown.get(Counter::SystemUs).is_none() {
            grown.0.remove(&Counter::UserUs);
            grown.0.remove(&Counter::SystemUs);
        }
        grown
    }

    /// A level-1 or level-2 category of TopDown as a share of the slots.
    #[must_use]
    pub fn share(&self, counter: Counter) -> Option<f64> {
        let slots = self.get(Counter::Slots).filter(|slots| *slots > 0)?;
        let part = self.get(counter).filter(|_| counter.is_topdown())?;
        Some(part as f64 / slots as f64)
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(Counter, u64)> for HostCounters {
    fn from_iter<I: IntoIterator<Item = (Counter, u64)>>(counts: I) -> Self {
        Self(counts.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_documents() {
        for counter in Counter::ALL {
            assert_eq!(serde_json::to_value(counter).expect("serialises"), counter.as_str());
        }
        let counts: HostCounters =
            [(Counter::CpuUs, 7), (Counter::ReadBytes, 0)].into_iter().collect();
        let text = serde_json::to_string(&counts).expect("serialises");
        assert_eq!(text, "{\"cpu_us\":7,\"read_bytes\":0}");
        assert_eq!(serde_json::from_str::<HostCounters>(&text).expect("read back"), counts);
    }

    #[test]
    fn what_either_look_lacks_is_absent_and_never_zero() {
        let before: HostCounters =
            [(Counter::CpuUs, 5), (Counter::Cycles, 9), (Counter::MinorFaults, 4)]
                .into_iter()
                .collect();
        let after: HostCounters =
            [(Counter::CpuUs, 12), (Counter::ReadBytes, 1), (Counter::MinorFaults, 3)]
                .into_iter()
                .collect();
        let since = after.since(&before);
        assert_eq!(since, [(Counter::CpuUs, 7)].into_iter().collect());
        assert_eq!(since.get(Counter::Cycles), None);
    }

    #[test]
    fn user_and_system_time_are_told_together_or_not_at_all() {
        let of = |cpu, user, system| -> HostCounters {
            [(Counter::CpuUs, cpu), (Counter::UserUs, user), (Counter::SystemUs, system)]
                .into_iter()
                .collect()
        };
        assert_eq!(of(30, 18, 12).since(&of(20, 10, 10)), of(10, 8, 2));
        let corrected = of(30, 25, 5).since(&of(20, 10, 10));
        assert_eq!(corrected, [(Counter::CpuUs, 10)].into_iter().collect());
    }

    #[test]
    fn shares_are_of_the_slots() {
        let counts: HostCounters =
            [(Counter::Slots, 400), (Counter::Retiring, 100), (Counter::Cycles, 100)]
                .into_iter()
                .collect();
        assert_eq!(counts.share(Counter::Retiring), Some(0.25));
        assert_eq!(counts.share(Counter::Cycles), None);
        assert_eq!(counts.share(Counter::BackendBound), None);
        assert_eq!(HostCounters::default().share(Counter::Retiring), None);
    }
}
