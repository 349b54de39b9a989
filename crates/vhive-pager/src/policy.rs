//! How working sets are recorded and prefetched. A new policy is a variant here and its answers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How `Record` finds a working set and how `Prefetch` installs it. *Whether* to is the node's
/// question, not asked here.
///
/// ```
/// use vhive_pager::PrefetchPolicy;
/// assert_eq!("fault-around".parse(), Ok(PrefetchPolicy::FaultAround));
/// assert_eq!(PrefetchPolicy::default().to_string(), "reap-pipelined");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrefetchPolicy {
    /// As published: one read of the whole working set into fresh memory, then install it all, then
    /// resume the guest.
    ///
    /// # Source
    /// Ustiugov et al., *Benchmarking, Analysis, and Optimization of Serverless Function
    /// Snapshots*, ASPLOS 2021, §5.
    ReapSerial,
    /// Chunks are read many at a time and installed as they land; the guest resumes after the first.
    #[default]
    ReapPipelined,
    /// As `ReapPipelined`, and each fault brings the 16 aligned pages around it.
    FaultAround,
    /// As `ReapPipelined`, with a working set taken from the page cache after a run on the mapped
    /// memory file, so it works for any VMM; nothing is recorded through the pager.
    ///
    /// # Source
    /// Ao et al., *FaaSnap: FaaS Made Fast Using Snapshot-based VMs*, EuroSys 2022, §4.2.
    Mincore,
}

/// What must be installed before the guest may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResumeAfter {
    /// The first chunk: what was touched first.
    FirstChunk,
    /// The whole working set.
    Everything,
}

impl PrefetchPolicy {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::ReapSerial, Self::ReapPipelined, Self::FaultAround, Self::Mincore];

    /// The name in configuration and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReapSerial => "reap-serial",
            Self::ReapPipelined => "reap-pipelined",
            Self::FaultAround => "fault-around",
            Self::Mincore => "mincore",
        }
    }

    /// How many aligned pages one fault brings; a power of two.
    #[must_use]
    pub const fn pages_per_fault(self) -> u32 {
        match self {
            Self::FaultAround => 16,
            Self::ReapSerial | Self::ReapPipelined | Self::Mincore => 1,
        }
    }

    /// Whether the working set is recorded by serving faults. Otherwise run the guest on the mapped
    /// memory file and call [`crate::working_set::from_page_cache`].
    #[must_use]
    pub const fn records_faults(self) -> bool {
        !matches!(self, Self::Mincore)
    }

    /// Whether reading and installing overlap.
    pub(crate) const fn overlaps(self) -> bool {
        !matches!(self, Self::ReapSerial)
    }

    pub(crate) const fn resume_after(self) -> ResumeAfter {
        if self.overlaps() { ResumeAfter::FirstChunk } else { ResumeAfter::Everything }
    }
}

impl fmt::Display for PrefetchPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "prefetch policy {text:?} is none of `reap-serial`, `reap-pipelined`, `fault-around`, `mincore`"
)]
pub struct ParsePolicyError {
    /// The text, cut to 80 characters.
    pub text: String,
}

impl FromStr for PrefetchPolicy {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|policy| policy.name() == text);
        found.ok_or_else(|| ParsePolicyError { text: text.chars().take(80).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_has_one_name_everywhere() {
        for policy in PrefetchPolicy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
            let json = serde_json::to_string(&policy).expect("serializes");
            assert_eq!(json, format!("\"{policy}\""));
            assert_eq!(serde_json::from_str::<PrefetchPolicy>(&json).expect("reads"), policy);
            assert!(policy.pages_per_fault().is_power_of_two());
        }
        assert!("reap".parse::<PrefetchPolicy>().is_err());
    }
}
