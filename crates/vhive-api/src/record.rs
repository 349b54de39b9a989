//! The one row per invocation: who, how it was started, and where the time went.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{InvocationId, SandboxId};
use crate::runtime::RuntimeName;
use crate::snapshot::{MemoryMode, PrefetchPolicy};
use crate::timeline::FaultTimeline;

/// How the instance that served an invocation came to be running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartKind {
    /// It was running and ready when the request came.
    Warm,
    /// The request waited for an instance that was booted.
    Boot,
    /// … that was restored from a snapshot, its memory paged by the host's kernel.
    Snapshot,
    /// … that was restored, its memory served page by page by our pager.
    Lazy,
    /// … that was restored likewise while its working set was recorded: REAP's first start.
    Record,
    /// … that was restored with its recorded working set prefetched: REAP.
    Reap,
}

impl StartKind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Warm, Self::Boot, Self::Snapshot, Self::Lazy, Self::Record, Self::Reap];

    /// The kind of a start from a snapshot.
    #[must_use]
    pub const fn restored(mode: MemoryMode) -> Self {
        match mode {
            MemoryMode::File => Self::Snapshot,
            MemoryMode::Lazy => Self::Lazy,
            MemoryMode::Record => Self::Record,
            MemoryMode::Prefetch => Self::Reap,
        }
    }

    /// The kind as written in records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Boot => "boot",
            Self::Snapshot => "snapshot",
            Self::Lazy => "lazy",
            Self::Record => "record",
            Self::Reap => "reap",
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
    /// Of a start from a snapshot: from the VMM's being set up to its virtual CPUs running.
    Restore,
    /// From there to the guest's word that it is itself again: clock, entropy, name and network.
    Resume,
    /// From there to the function being confirmed ready.
    FunctionReady,
    /// From forwarding the request to the reply's last byte.
    Request,
}

impl Phase {
    /// Every phase, parents before children, in the order in which they happen.
    pub const ALL: [Self; 13] = [
        Self::Total,
        Self::Queue,
        Self::Start,
        Self::Image,
        Self::Turn,
        Self::NetworkSlot,
        Self::VmmSpawn,
        Self::KernelBoot,
        Self::Init,
        Self::Restore,
        Self::Resume,
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
            | Self::Restore
            | Self::Resume
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
            Self::Restore => "restore",
            Self::Resume => "resume",
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

/// How the memory of a restored guest arrived, up to the reply of the invocation that waited for
/// the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryFigures {
    /// By which means.
    pub mode: MemoryMode,
    /// How pages were recorded or prefetched; absent in modes that do neither.
    pub prefetch: Option<PrefetchPolicy>,
    /// Faults that the pager served; absent where the kernel pages.
    pub faults: Option<u64>,
    /// Pages that these faults brought, zero pages included.
    pub fault_pages: u64,
    /// Pages known to be zero, brought by faults or from the working set.
    pub zero_pages: u64,
    /// Pages installed from the working set, zero ones included.
    pub prefetched_pages: u64,
    /// Bytes read of the working set's file.
    pub prefetched_bytes: u64,
    /// Time in which the guest waited for memory, in microseconds: from each fault's arrival at
    /// the pager to its page's installation, and what the start was held up for by prefetching.
    pub wait_us: u64,
    /// From the beginning of prefetching to its last page installed, in microseconds.
    pub prefetch_us: u64,
}

impl MemoryFigures {
    /// Nothing has arrived yet.
    #[must_use]
    pub const fn new(mode: MemoryMode, prefetch: Option<PrefetchPolicy>) -> Self {
        Self {
            mode,
            prefetch,
            faults: None,
            fault_pages: 0,
            zero_pages: 0,
            prefetched_pages: 0,
            prefetched_bytes: 0,
            wait_us: 0,
            prefetch_us: 0,
        }
    }
}

/// Version of [`InvocationRecord`] that is written. Version 2 had no `fault_timeline`, version 1 had
/// no `memory` and no `fallback` either; both can be read.
pub const RECORD_VERSION: u32 = 3;

/// One row per invocation, written as one line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvocationRecord {
    /// Version of this schema: [`RECORD_VERSION`].
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
    /// How a restored guest's memory arrived; absent without a start from a snapshot.
    #[serde(default)]
    pub memory: Option<MemoryFigures>,
    /// When it missed which page; absent where no pager served its memory. Behind a pointer, so
    /// that the other records stay small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_timeline: Option<Arc<FaultTimeline>>,
    /// Why the start did not go the way that the revision's policy wanted, e.g. a snapshot that
    /// could not be restored.
    #[serde(default)]
    pub fallback: Option<String>,
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
    fn records_of_every_version_can_be_read() {
        let mut lines = vec![serde_json::json!({
            "version": 1, "id": "4bd7730718b21cf6", "at": "2026-11-25T16:54:46Z",
            "namespace": "default", "service": "hello", "revision": "hello-00001",
            "runtime": "qemu", "sandbox": "657ffd3896b4e892", "start": "lazy",
            "outcome": "replied", "status": 200, "request_bytes": 18, "response_bytes": 60,
            "phases": [], "guest_clock_error_us": null, "error": null,
        })];
        let mut second = lines[0].clone();
        second["version"] = 2.into();
        second["fallback"] = serde_json::Value::Null;
        second["memory"] = serde_json::json!({
            "mode": "lazy", "prefetch": null, "faults": 2, "fault_pages": 2, "zero_pages": 1,
            "prefetched_pages": 0, "prefetched_bytes": 0, "wait_us": 90, "prefetch_us": 0,
        });
        let mut third = second.clone();
        third["version"] = 3.into();
        third["fault_timeline"] = serde_json::json!({
            "attached_us": 512, "every": 1, "residual": [[7, 4096], [60, 12]], "awaited": [],
        });
        lines.extend([second, third]);
        assert_eq!(lines.len(), RECORD_VERSION as usize, "one of each version");
        let records: Vec<InvocationRecord> =
            lines.into_iter().map(|l| serde_json::from_value(l).expect("a record")).collect();
        let faults = |record: &InvocationRecord| {
            let timeline = record.fault_timeline.as_ref();
            (record.memory.and_then(|memory| memory.faults), timeline.map(|t| t.len()))
        };
        let read: Vec<_> = records.iter().map(faults).collect();
        assert_eq!(read, [(None, None), (Some(2), None), (Some(2), Some(2))]);
        for record in &records {
            let line = serde_json::to_string(record).expect("serialises");
            assert_eq!(line.contains("fault_timeline"), record.fault_timeline.is_some());
            assert_eq!(serde_json::from_str::<InvocationRecord>(&line).expect("again"), *record);
        }
    }

    #[test]
    fn names_agree_with_the_serialised_form() {
        for phase in Phase::ALL {
            let json = serde_json::to_value(phase).expect("a phase serialises");
            assert_eq!(json, phase.as_str());
        }
        for kind in StartKind::ALL {
            assert_eq!(serde_json::to_value(kind).expect("serialises"), kind.as_str());
        }
    }
}
