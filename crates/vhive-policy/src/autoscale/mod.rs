//! How many instances a revision should have, and until when: pure functions of what was seen.
//!
//! ```text
//!   demand ──Sample──► Policy::observe
//!                         │             kpa        window ─► decide ─► bounds ─► to_zero
//!   pool ────────────► Policy::decide ──fixed──────────────────────────────► Decision
//!   now  ───────────────┘               histogram                        want, ask again at
//! ```
//!
//! Nothing here waits, reads a clock or knows a runtime: time is a [`Moment`] that the caller
//! chooses, so that the simulator runs the same code as the node.
//!
//! | file | what it decides |
//! |---|---|
//! | `rules.rs` | nothing; what a revision and the node's configuration say |
//! | `sample.rs` | nothing; what was seen, and which whole second it falls into |
//! | `window.rs` | an average over the last so many seconds |
//! | `decide.rs` | Knative's arithmetic for one tick |
//! | `bounds.rs` | the fewest and the most instances |
//! | `to_zero.rs` | when the last instance goes |
//! | `policy.rs` | nothing; what every policy is asked |
//! | `kpa.rs`, `fixed.rs`, `histogram.rs` | the policies |
//!
//! # Source
//! Knative Serving, `pkg/autoscaler` and `pkg/reconciler/autoscaling/kpa`, as it was in August
//! 2026; Shahrad et al., "Serverless in the Wild", USENIX ATC 2020, section 4.

mod bounds;
mod decide;
mod fixed;
mod histogram;
mod kpa;
mod policy;
mod rules;
mod sample;
mod to_zero;
mod window;

pub use bounds::Bounds;
pub use decide::{Decided, Load, Panic, decide, excess_burst_capacity};
pub use fixed::Fixed;
pub use histogram::{Histogram, IdleTimes, Windows};
pub use kpa::Kpa;
pub use policy::{BREATH, Decision, Figures, Policy, Pool, policy};
pub use rules::{Aggregation, Metric, PolicyKind, Rules};
pub use sample::{Moment, Reports, Sample};
pub use to_zero::{Phase, ToZero};
pub use window::{Held, Window};

#[cfg(test)]
mod properties;
#[cfg(test)]
mod vectors;
