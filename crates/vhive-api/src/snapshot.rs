//! Whether revisions are snapshotted, and how a restored guest gets its memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whether a revision's cold starts come from a snapshot, and with which memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotPolicy {
    /// Every cold start boots; no snapshot is taken.
    #[default]
    Off,
    /// The VMM maps the memory file and the host's kernel pages it in.
    Vanilla,
    /// Every page is served on first touch by our pager.
    Lazy,
    /// The first start from the snapshot records which pages are touched until the reply, later
    /// ones prefetch them.
    Reap,
}

/// When the snapshot of a revision is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotAt {
    /// Of an instance that has answered a request: what answering needs is in memory, and so are
    /// that request and its reply.
    #[default]
    FirstReply,
    /// Of an instance that is ready and has been asked nothing.
    Ready,
}

/// How pages are recorded and prefetched under [`SnapshotPolicy::Reap`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrefetchPolicy {
    /// As published: read the whole working set, then install it, then run.
    ReapSerial,
    /// Install pieces as they arrive from the disk, and run meanwhile.
    #[default]
    ReapPipelined,
    /// No working set: each fault brings the 16 pages around it.
    FaultAround,
    /// The working set is what the host's page cache holds of the memory file after a start whose
    /// memory the kernel paged.
    Mincore,
}

/// How a restored guest's memory arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryMode {
    /// The VMM maps the memory file; the kernel pages.
    File,
    /// The pager serves each first touch.
    Lazy,
    /// Likewise, and the touched pages are recorded.
    Record,
    /// A recorded working set is installed; the pager serves the rest.
    Prefetch,
}

impl SnapshotPolicy {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::Off, Self::Vanilla, Self::Lazy, Self::Reap];

    /// The policy as written in annotations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Vanilla => "vanilla",
            Self::Lazy => "lazy",
            Self::Reap => "reap",
        }
    }
}

impl SnapshotAt {
    /// Every moment.
    pub const ALL: [Self; 2] = [Self::FirstReply, Self::Ready];

    /// Whether nothing is said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The moment as written in annotations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FirstReply => "first-reply",
            Self::Ready => "ready",
        }
    }
}

impl PrefetchPolicy {
    /// Every policy.
    pub const ALL: [Self; 4] =
        [Self::ReapSerial, Self::ReapPipelined, Self::FaultAround, Self::Mincore];

    /// The policy as written in annotations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReapSerial => "reap-serial",
            Self::ReapPipelined => "reap-pipelined",
            Self::FaultAround => "fault-around",
            Self::Mincore => "mincore",
        }
    }
}

impl MemoryMode {
    /// The mode as written in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Lazy => "lazy",
            Self::Record => "record",
            Self::Prefetch => "prefetch",
        }
    }
}

/// The text names no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} {text:?}; known: {known}")]
pub struct ParsePolicyError {
    kind: &'static str,
    text: String,
    known: String,
}

impl FromStr for SnapshotPolicy {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| ParsePolicyError {
            kind: "snapshot policy",
            text: text.to_owned(),
            known: Self::ALL.map(Self::as_str).join(", "),
        })
    }
}

impl FromStr for PrefetchPolicy {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| ParsePolicyError {
            kind: "prefetch policy",
            text: text.to_owned(),
            known: Self::ALL.map(Self::as_str).join(", "),
        })
    }
}

impl FromStr for SnapshotAt {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|at| at.as_str() == text);
        found.ok_or_else(|| ParsePolicyError {
            kind: "moment of a snapshot",
            text: text.to_owned(),
            known: Self::ALL.map(Self::as_str).join(", "),
        })
    }
}

impl fmt::Display for SnapshotPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for PrefetchPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for MemoryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_equal_the_serialised_form() {
        for policy in SnapshotPolicy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
            assert_eq!(serde_json::to_value(policy).expect("serialises"), policy.as_str());
        }
        for policy in PrefetchPolicy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
            assert_eq!(serde_json::to_value(policy).expect("serialises"), policy.as_str());
        }
        for at in SnapshotAt::ALL {
            assert_eq!(at.as_str().parse(), Ok(at));
            assert_eq!(serde_json::to_value(at).expect("serialises"), at.as_str());
        }
        let modes = [MemoryMode::File, MemoryMode::Lazy, MemoryMode::Record, MemoryMode::Prefetch];
        for mode in modes {
            assert_eq!(serde_json::to_value(mode).expect("serialises"), mode.as_str());
        }
        let error = "on".parse::<SnapshotPolicy>().expect_err("no policy").to_string();
        assert_eq!(error, "unknown snapshot policy \"on\"; known: off, vanilla, lazy, reap");
    }
}
