//! The hands: spec → running sandbox with an address, and back.
//!
//! ```text
//!   SandboxSpec ──► Runtime::boot ──► Box<dyn Sandbox> ── endpoint() ──► host:port of the function
//!        │                                   │
//!        └── Journal ◄── milestones, output, exit (pushed by the guest's init)
//!                                            Drop = stop and release everything
//! ```
//!
//! Everything here is synchronous: a start is a plain function on a blocking thread, and every
//! host resource is a value whose `Drop` releases it.
//!
//! What this crate does not do: queue, retry a request, decide how to start, know images or
//! registries, or be async.
#![warn(missing_docs)]

mod bare;
pub mod cgroup;
mod command;
mod contract;
pub mod deadline;
pub mod firecracker;
pub mod host;
pub mod journal;
pub mod kernel;
mod linux;
pub mod nano;
pub mod network;
pub mod oci;
mod paging;
pub mod process;
pub mod qemu;
mod remembered;
pub mod run_dir;
pub mod runtime;
pub mod sim;
pub mod snapshot;
pub mod trial;
mod userfaultfd;

pub use deadline::Deadline;
pub use journal::{End, Journal, Line, Milestone, WaitError};
pub use network::NetworkSlot;
pub use remembered::forget;
pub use run_dir::{RunRoot, SandboxDir};
pub use runtime::{
    Arrival, BootError, Checkpoint, Guest, HostLacks, Memory, Paging, Prespawned, RecordingError,
    Replay, Restore, RestoreError, RunError, Runtime, Sandbox, SandboxSpec, SnapshotError, Uses,
};
pub use snapshot::{Snapshot, SnapshotDraft};
