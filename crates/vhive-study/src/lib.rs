//! Experiments on a running node: vary one thing, measure, state the uncertainty.
//!
//! ```text
//!   plan (TOML) ──► cold_start / parallel / runtimes ──► rows.jsonl + study.json ──► Analysis ──► report
//!                        │      ▲
//!                        ▼      │ records, memory
//!                  a node's API and gateway
//! ```
//!
//! A report is a function of the rows and facts alone: `vhive report` makes it again.
//!
//! What this crate does not do: link anything of what it measures. It speaks HTTP to a node that
//! somebody else has started.

pub mod analysis;
pub mod cold_start;
pub mod compare;
pub mod csv;
pub mod deadline;
pub mod density;
pub mod function;
pub mod host;
pub mod http;
pub mod load;
pub mod memory_group;
pub mod parallel;
pub mod plan;
pub mod report;
pub mod row;
pub mod run;
pub mod runtimes;
pub mod schedule;
pub mod session;
pub mod simulate;
pub mod stats;
pub mod target;
pub mod working_set;

pub use deadline::Deadline;
pub use http::Door;
pub use plan::{Kind, Plan};
pub use row::{StudyName, StudyResult};
pub use session::{Session, StudyError};
pub use target::Target;
