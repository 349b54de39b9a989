//! Why network operations fail; one enum each.

use std::io;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::slot::BuildError;
use crate::runtime::HostLacks;

/// Why a pool could not be opened. What had been made by then is removed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host cannot carry slots.
    #[error("network slots are not available here")]
    Host(#[source] HostLacks),
    /// A living node has the same state directory.
    #[error(
        "another node with tag {tag} runs on this host; stop it, or use another state directory"
    )]
    InUse {
        /// The tag of both.
        tag: String,
    },
    /// All ranges are claimed or routed.
    #[error(
        "no free part of 198.18.0.0/15 for slots: all are claimed in /run/vhive/network or routed; \
         set `network.range` to unused addresses, or purge nodes that are gone"
    )]
    NoRange,
    /// The configured range is too small or too large.
    #[error("network.range {net} cannot hold slots; use a prefix from /8 to /29")]
    BadRange {
        /// The range.
        net: Ipv4Net,
    },
    /// The configured range is in use.
    #[error("network.range {net} overlaps a route or another node's range; use another one")]
    RangeTaken {
        /// The range.
        net: Ipv4Net,
    },
    /// More slots are wanted than there are addresses.
    #[error(
        "network.max {max} exceeds the {capacity} slots of range {net}; lower it or set a larger `network.range`"
    )]
    TooMany {
        /// As configured.
        max: u32,
        /// What fits.
        capacity: u32,
        /// The range.
        net: Ipv4Net,
    },
    /// A step failed.
    #[error("cannot {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why that failed.
        #[source]
        source: io::Error,
    },
}

/// Why no slot could be taken. The pool is as before.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TakeError {
    /// All slots are in use.
    #[error("all {max} network slots are in use; raise `network.max`")]
    Exhausted {
        /// The limit.
        max: u32,
    },
    /// No slot was ready, and one could not be built.
    #[error("no network slot is ready")]
    Build(#[source] Arc<BuildError>),
    /// No slot was ready in time.
    #[error("no network slot was ready in time; raise `network.ready` to keep more of them")]
    Deadline,
    /// The pool has been closed.
    #[error("the network pool is closed")]
    Closed,
}

/// Why a sweep did not remove everything.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// It belongs to a living node.
    #[error("a node with tag {tag} is running; stop it first")]
    InUse {
        /// Its tag.
        tag: String,
    },
    /// A step failed.
    #[error("cannot {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why that failed.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn step(step: &'static str, source: io::Error) -> Self {
        Self::Step { step, source }
    }
}

impl SweepError {
    pub(super) fn step(step: &'static str, source: io::Error) -> Self {
        Self::Step { step, source }
    }
}
