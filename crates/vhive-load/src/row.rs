//! One request, as it went.

use serde::{Deserialize, Serialize};

use crate::call::Work;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// With a reply whose status is 2xx, or 304 (gRPC: 200 and its own 0).
    Ok,
    /// With another reply, or none because something broke.
    Error,
    /// Without a reply within the time that a request may take, or told so by a gRPC server, to which that time is
    /// sent (`DEADLINE_EXCEEDED`).
    Timeout,
    /// It was under way when the run's drain ended.
    Unfinished,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Error, Self::Timeout, Self::Unfinished];

    /// As written in rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Unfinished => "unfinished",
        }
    }
}

/// One row per scheduled request. Times are nanoseconds from the run's beginning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Position in the schedule, from 0.
    pub number: u64,
    /// Index of its target.
    pub target: u32,
    /// When it was to be sent.
    pub intended_ns: u64,
    /// When its first byte was handed to the kernel; for one that could not be sent, when that
    /// was known.
    pub sent_ns: u64,
    /// Whether it was sent at all. One that was not has neither lateness nor latency.
    #[serde(default = "yes")]
    pub sent: bool,
    /// What setting up a connection took, where one had to be made for it: a part of the
    /// lateness, not of the latency.
    pub connect_ns: Option<u64>,
    /// When the reply's first byte came.
    pub first_byte_ns: Option<u64>,
    /// When the reply's last byte came, or when it was given up.
    pub done_ns: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// The reply's status.
    pub status: Option<u16>,
    /// gRPC's.
    pub grpc_status: Option<i32>,
    /// Why it is no success.
    pub error: Option<Box<str>>,
    /// `X-Request-Id` of the reply.
    pub id: Option<Box<str>>,
    /// Bytes of the reply's body.
    pub body_bytes: u64,
    /// What was asked of the function.
    pub work: Option<Work>,
    /// Position among its target's requests of the same minute of a trace, from 0.
    pub nth: u32,
    /// Of a request that follows others: when the first of them was to be sent.
    #[serde(default)]
    pub flow_ns: Option<u64>,
    /// What the function says it took, in microseconds.
    pub function_us: Option<u64>,
    /// What it says of its memory, in KiB.
    pub function_memory_kib: Option<u64>,
    /// How much longer than asked for it says that its work took, in per cent of CPU time.
    #[serde(default)]
    pub function_drift_percent: Option<f64>,
}

const fn yes() -> bool {
    true
}

impl Row {
    /// From the intended to the actual send.
    #[must_use]
    pub const fn late_ns(&self) -> u64 {
        self.sent_ns.saturating_sub(self.intended_ns)
    }

    /// From the actual send to the end; of one that was never sent, 0.
    #[must_use]
    pub const fn latency_ns(&self) -> u64 {
        self.done_ns.saturating_sub(self.sent_ns)
    }

    /// From the intended send to the end: what a user feels, whatever the generator did.
    #[must_use]
    pub const fn total_ns(&self) -> u64 {
        self.done_ns.saturating_sub(self.intended_ns)
    }
}

/// One planned request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shot {
    /// When to send it, in nanoseconds from the run's beginning.
    pub at_ns: u64,
    /// Index of its target.
    pub target: u32,
    /// What the function shall do, if that is part of the plan.
    pub work: Option<Work>,
    /// Position among its target's requests of the same minute of a trace, from 0.
    pub nth: u32,
}
