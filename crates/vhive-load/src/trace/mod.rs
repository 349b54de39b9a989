//! Traces, and what is to be sent when because of them. All of it is pure but for reading files.
//!
//! ```text
//!  azure2019 ─┐
//!  azure2021 ─┼─► functions ─► Plan ─► shots, in order, one minute in memory at a time
//!  rps, iat  ─┘                  └──► dag: what follows each shot
//!
//!  Huawei's, IBM's ──► convert ──► a trace as azure2019 or azure2021 reads it
//!  experiments     ──► multi   ──► one Config after the other
//! ```

pub mod azure2019;
pub mod azure2021;
pub mod config;
pub mod convert;
pub mod dag;
pub mod day;
pub mod draw;
pub mod files;
pub mod gaps;
pub mod multi;
pub mod plan;
pub mod rps;
pub mod sample;
pub mod synth;
mod table;
mod whole;

use std::path::PathBuf;
use std::time::Duration;

pub use config::Config;
pub use gaps::Distribution;
pub use plan::Plan;

use crate::call::Work;

/// The most minutes (or seconds) of one experiment: those of a day in minutes.
pub const MOST_UNITS: usize = 86_400;

/// One function of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// A label of RFC 1123, unique in the trace.
    pub name: String,
    /// Its invocations.
    pub source: Source,
}

/// When a function is invoked, and for what.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// So many times in each unit; when exactly and for how long is drawn.
    Counts {
        /// Per unit.
        counts: Vec<u32>,
        /// Runtime in milliseconds and memory in mebibytes.
        stats: draw::Stats,
    },
    /// At these times, in order.
    Exact(Vec<Invocation>),
}

/// One invocation whose time is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Invocation {
    /// From the trace's beginning, in nanoseconds.
    pub at_ns: u64,
    /// What it does.
    pub work: Work,
}

/// What a column of a trace stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// A minute, as in the published traces.
    #[default]
    Minute,
    /// A second: the same trace, sixty times as fast.
    Second,
}

impl Unit {
    /// Its length.
    #[must_use]
    pub const fn length(self) -> Duration {
        match self {
            Self::Minute => Duration::from_secs(60),
            Self::Second => Duration::from_secs(1),
        }
    }

    /// Its length in nanoseconds.
    #[must_use]
    pub const fn ns(self) -> u64 {
        match self {
            Self::Minute => 60_000_000_000,
            Self::Second => 1_000_000_000,
        }
    }
}

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A place in a file is not understood.
    #[error("{path}:{line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counts from 1.
        line: u64,
        /// Which column, and what is wrong with it.
        problem: String,
    },
    /// A file of another form than it should have.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Numbers that make no experiment.
    #[error("{0}")]
    Absurd(String),
}

/// A name for the function with this index and these hashes, fit for a service.
pub(crate) fn name(index: usize, hash: &str) -> String {
    let fits = |c: &char| c.is_ascii_alphanumeric();
    let hash: String = hash.chars().filter(fits).take(18).collect();
    let name = format!("trace-func-{index}-{}", hash.to_ascii_lowercase());
    name.trim_end_matches('-').to_owned()
}
