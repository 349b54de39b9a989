//! A step that init could not do, and why: what the host is told before the guest powers off.

use std::fmt::Display;

/// A failed step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What was to be done, e.g. `mount root`.
    pub(crate) step: String,
    /// Why that failed.
    pub(crate) reason: String,
}

/// Names the step that an error belongs to.
pub(crate) trait Step<T> {
    /// Turns the error into a [`Failure`] of `step`.
    fn step(self, step: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Display> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure { step: step.into(), reason: error.to_string() })
    }
}
