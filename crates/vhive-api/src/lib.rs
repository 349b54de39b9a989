//! The words that cross a process boundary: what a function *is*, how its sandbox reports back,
//! and the one row written per invocation.
//!
//! ```text
//!   YAML ──► Service ──► Revision ──► (node) ──► Sandbox ──► guest::Message
//!                                        │
//!                                        └────► InvocationRecord ── JSON Lines
//! ```
//!
//! What this crate does not do: I/O, policy, or anything that needs a clock or a host.
#![warn(missing_docs)]

pub mod counters;
pub mod cpus;
pub mod guest;
pub mod ids;
pub mod inside;
pub mod record;
pub mod revision;
pub mod runtime;
pub mod snapshot;
pub mod timeline;
pub mod units;

pub use counters::{Counter, HostCounters};
pub use cpus::{Cpus, CpusError};
pub use ids::{Digest, InvocationId, ParseDigestError, RevisionDigest, RevisionKey, SandboxId};
pub use record::{
    InvocationRecord, MemoryFigures, Outcome, Phase, PhaseSpan, RECORD_VERSION, StartKind,
};
pub use revision::{
    Calls, HttpProbe, ProbeTiming, Protocol, Readiness, Revision, Scale, TimedProbe,
};
pub use runtime::{GuestName, ParseRuntimeError, RuntimeName};
pub use snapshot::{MemoryMode, ParsePolicyError, PrefetchPolicy, SnapshotAt, SnapshotPolicy};
pub use timeline::{FaultAt, FaultTimeline};
pub use units::{Bytes, Span, UnitError};
