//! The one row per invocation: who, how it was started, and where the time went.

use serde::{Deserialize, Serialize};

use crate::ids::{InvocationId, SandboxId};
use crate::runtime::RuntimeName;

/// How the instance that served an invocation came to be running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartKind {
    /// It was running and ready when the request came.
    Warm,
    /// The request waited for an instance that was booted.
    Boot,
}

impl StartKind {
    /// The kind as written in records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Boot => "boot",
        }
    }
}

/// A named part of an invocation. Parents contain their children, so adding up one level never
/// counts a moment twice.
///
/// ```
/// use vhive_api::Phase;
/// assert_eq!(Phase::KernelBoot.parent(), Some(Phase::Start));
/// assert_eq!(Phase::Start.parent(), Some(Phase::Total));
/// assert_eq!(Phase::Total.parent(), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// From the request's last header byte read to the reply's last byte handed to the kernel.
    Total,
    /// Waiting in the throttle for an instance, without the part spent in `Start`.
    Queue,
    /// The cold start that this request waited for, from its decision to ready.
    Start,
    /// Making the root file system image available.
    Image,
    /// Waiting for a turn: the number of starts under way is limited.
    Turn,
    /// Taking a network slot.
    NetworkSlot,
    /// From asking for the VMM's (or runtime's) process to its being set up.
    VmmSpawn,
    /// From there to the guest's first message: its kernel runs init.
    KernelBoot,
    /// From there to the function's process having been started.
    Init,
    /// From there to the function being confirmed ready.
    FunctionReady,
    /// From forwarding the request to the reply's last byte.
    Request,
}

impl Phase {
    /// Every phase, parents before children, in the order in which they happen.
    pub const ALL: [Self; 11] = [
        Self::Total,
        Self::Queue,
        Self::Start,
        Self::Image,
        Self::Turn,
        Self::NetworkSlot,
        Self::VmmSpawn,
        Self::KernelBoot,
        Self::Init,
        Self::FunctionReady,
        Self::Request,
    ];

    /// The phase that contains this one.
    #[must_use]
    pub const fn parent(self) -> Option<Self> {
        match self {
            Self::Total => None,
            Self::Queue | Self::Start | Self::Request => Some(Self::Total),
            Self::Image
            | Self::Turn
            | Self::NetworkSlot
            | Self::VmmSpawn
            | Self::KernelBoot
            | Self::Init
            | Self::FunctionReady => Some(Self::Start),
        }
    }

    /// The phase as written in records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Queue => "queue",
            Self::Start => "start",
            Self::Image => "image",
            Self::Turn => "turn",
            Self::NetworkSlot => "network_slot",
            Self::VmmSpawn => "vmm_spawn",
            Self::KernelBoot => "kernel_boot",
            Self::Init => "init",
            Self::FunctionReady => "function_ready",
            Self::Request => "request",
        }
    }
}

/// One measured phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseSpan {
    /// Which phase.
    pub phase: Phase,
    /// Begin, in microseconds after the invocation began (negative when the start was under way
    /// before this request joined it). Monotonic host clock.
    pub begin_us: i64,
    /// Length in microseconds.
    pub length_us: u64,
}

/// How an invocation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The function replied; the HTTP status is its own.
    Replied,
    /// The client went away before the reply was complete.
    ClientGone,
    /// No reply within the revision's timeout.
    TimedOut,
    /// The queue was full.
    Refused,
    /// No instance could be started.
    StartFailed,
    /// The instance broke while it held the request.
    InstanceFailed,
}

/// One row per invocation, written as one line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvocationRecord {
    /// Version of this schema: 1.
    pub version: u32,
    /// Identifies the invocation; also sent to the function as `X-Request-Id` if it had none.
    pub id: InvocationId,
    /// When the invocation began, wall clock, UTC.
    pub at: jiff::Timestamp,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service name.
    pub service: String,
    /// Revision name.
    pub revision: String,
    /// Runtime of the revision.
    pub runtime: RuntimeName,
    /// The sandbox that served it, if one did.
    pub sandbox: Option<SandboxId>,
    /// How that sandbox's start concerned this invocation; absent if none served it.
    pub start: Option<StartKind>,
    /// How it ended.
    pub outcome: Outcome,
    /// HTTP status that the client got.
    pub status: u16,
    /// Bytes of request body forwarded.
    pub request_bytes: u64,
    /// Bytes of reply body forwarded.
    pub response_bytes: u64,
    /// The phases, parents before children.
    pub phases: Vec<PhaseSpan>,
    /// By how much guest times may be off against the host's clock, in microseconds; absent
    /// without a cold start in a guest.
    pub guest_clock_error_us: Option<u64>,
    /// Why it failed, for every outcome but `replied`.
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_children() {
        for (at, phase) in Phase::ALL.into_iter().enumerate() {
            if let Some(parent) = phase.parent() {
                let parent_at = Phase::ALL.iter().position(|p| *p == parent);
                assert!(parent_at.is_some_and(|p| p < at), "{phase:?}");
            }
        }
    }

    #[test]
    fn names_agree_with_the_serialised_form() {
        for phase in Phase::ALL {
            let json = serde_json::to_value(phase).expect("a phase serialises");
            assert_eq!(json, phase.as_str());
        }
        for kind in [StartKind::Warm, StartKind::Boot] {
            assert_eq!(serde_json::to_value(kind).expect("serialises"), kind.as_str());
        }
    }
}
