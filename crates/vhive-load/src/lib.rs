//! Reproduces traffic, open-loop, and writes one row per invocation.
//!
//! ```text
//!  rate ──► arrivals ─┐                       ┌─► rows.jsonl, rows.csv, rps<X>_lat.csv
//!                     ├─► shots ──► engine ───┤
//!  trace ─► plan ─────┘     (send at time t,  └─► summary (HDR histograms)
//!                            whatever came of the others)
//! ```
//!
//! Everything left of the engine is pure and computed ahead; the engine sends on one thread.
//!
//! What this crate does not do: link the node or anything of it. It speaks public HTTP and gRPC,
//! and so runs against any platform that does.

pub mod arrivals;
pub mod call;
pub mod clock;
mod collect;
pub mod deploy;
pub mod endpoints;
pub mod engine;
mod fingerprint;
pub mod flags;
pub mod flow;
pub mod grpc;
pub mod inject;
pub mod output;
mod pacer;
pub mod parquet;
pub mod pin;
pub mod rng;
pub mod row;
pub mod steps;
pub mod stop;
pub mod summary;
pub mod sweep;
pub mod trace;
mod wire;

pub use arrivals::Arrivals;
pub use call::{Plain, Protocol, Target, Work};
pub use clock::Clock;
pub use endpoints::Endpoint;
pub use engine::{Load, Ran, RunError, closed_loop, open_flows, open_loop};
pub use fingerprint::{files_of_trace, fingerprint};
pub use flow::{Flow, Flows, Step};
pub use grpc::GrpcCall;
pub use pacer::SPIN;
pub use row::{Outcome, Row, Shot};
pub use stop::{Steps, Stop};
pub use wire::Opened;

/// The most that is waited for, anywhere: ten years.
pub const LONGEST: std::time::Duration = std::time::Duration::from_secs(10 * 365 * 86_400);
