//! The brain: which instance serves, how a cold one starts, what is swept.
//!
//! ```text
//!   acquire ──► Pool ── free slot ─────────────────────────────────► Lease (back on drop)
//!                │                                                     ▲
//!                ├── nothing there or under way ──► start ──► ready ───┤
//!                └── else wait, first come first served ───────────────┘
//!   resize ───► Pool ── start what is missing, stop what idles beyond
//!   reply ────► Pool ── the first one of an instance: take a snapshot, end a recording
//! ```
//!
//! ```no_run
//! # async fn run(images: vhive_image::ImageStore, revision: vhive_api::Revision)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use vhive_node::{Config, Node, Runtimes};
//! use vhive_sandbox::sim::{Sim, SimConfig};
//!
//! let runtimes = Runtimes::new().with(Sim::new(SimConfig::default()));
//! let node = Node::open(Config::default(), runtimes, images, None).await?;
//! let key = revision.key.clone();
//! node.register(Arc::new(revision));
//! let lease = node.acquire(&key).await?;
//! println!("send the request to {}", lease.endpoint());
//! # Ok(()) }
//! ```
//!
//! What this crate does not do: parse HTTP, CRI or manifests, or decide how many instances there
//! should be.
#![warn(missing_docs)]

pub mod config;
pub mod counters;
mod drain;
mod footprint;
mod guest;
mod limits;
mod logs;
mod metrics;
mod node;
mod pool;
pub mod probe;
pub mod process;
mod records;
mod snapshots;
mod standby;
mod start;
mod status;
pub mod sweep;
mod take;
#[cfg(test)]
mod testing;

pub use config::{Config, ConfigError, RecordsConfig, SnapshotsConfig};
pub use drain::ShutdownError;
pub use footprint::Footprint;
pub use limits::{Full, Room, raise_open_files};
pub use logs::{InstanceLog, LogFollower};
pub use node::{CreateError, Node, OpenError, ResolveError, Runtimes, Tools};
pub use pool::{AcquireError, InstanceState, Lease};
pub use records::Records;
pub use snapshots::{
    Collected, ExportError, ImportError, KeepError, NoRoom, NotTaken, SnapshotId, SnapshotInfo,
    Snapshots, StaleField, StoreError,
};
pub use start::{StartError, StartFailure, StartPhase, StartReport};
pub use status::{Instance, InstanceStatus, RevisionCounts, RevisionStanding, RevisionStatus};
pub use sweep::{Ground, GroundError, PurgeError, Purged, purge};
pub use take::TakeError;
// Words of the hands that the node's own interface uses; doors need no other way to them.
pub use vhive_sandbox::{Deadline, Line};
