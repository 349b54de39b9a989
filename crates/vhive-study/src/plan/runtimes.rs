//! What `vhive study runtimes` varies, and what it measures beside starts.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vhive_api::{Bytes, RuntimeName, Span};

use super::PlanError;

/// The part of a plan for `vhive study runtimes` alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runtimes {
    /// Which are compared; empty = all that work on the node, but `sim`.
    pub names: Vec<RuntimeName>,
    /// Functions whose time is that of system calls: a group in the comparison.
    pub system_calls: Vec<String>,
    /// Functions whose time is that of the processor: likewise.
    pub cpu: Vec<String>,
    /// Functions whose throughput is measured.
    pub load: Vec<String>,
    /// Requests under way at a time then.
    pub connections: u32,
    /// For how long.
    pub load_for: Span,
    /// The memory that is filled with idle instances; absent = density is not measured.
    pub density: Option<Bytes>,
    /// Whose instances.
    pub density_function: String,
    /// How long filling may take, each runtime.
    pub density_deadline: Span,
}

impl Default for Runtimes {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            system_calls: vec!["syscalls".to_owned()],
            cpu: vec!["pyaes".to_owned()],
            load: ["hello", "syscalls", "pyaes"].map(str::to_owned).to_vec(),
            connections: 8,
            load_for: Span(Duration::from_secs(5)),
            density: None,
            density_function: "hello".to_owned(),
            density_deadline: Span(Duration::from_secs(900)),
        }
    }
}

impl Runtimes {
    /// # Errors
    /// The first key that makes no sense.
    pub(super) fn validate(&self) -> Result<(), PlanError> {
        let bad = |key, why: &str| Err(PlanError::Value { key, why: why.to_owned() });
        if !(1..=1024).contains(&self.connections) {
            return bad("runtimes.connections", "must be from 1 to 1024");
        }
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(3600));
        if !(least..=most).contains(&self.load_for.0) {
            return bad("runtimes.load_for", "must be from 100ms to 1h");
        }
        if self.density.is_some_and(|size| size < Bytes::mib(64)) {
            return bad("runtimes.density", "must be at least 64Mi");
        }
        Ok(())
    }
}
