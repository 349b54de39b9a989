//! Exit codes: what a script may rely on.

use std::process::ExitCode;

/// Shown at the end of `vhive --help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done
  1  failed; the message says what, why and what to do
  2  the command line was not understood
  3  the named thing does not exist
  4  no node answers
  5  the host cannot do it (see `vhive doctor`)
  6  the function replied with a status of 400 or more (`vhive invoke`)";

/// An error that decides the exit code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Exit {
    /// The named thing does not exist.
    #[error("{0}")]
    NotFound(String),
    /// No node answers.
    #[error("no node answers at {0}; start one with `vhive node`")]
    NoNode(String),
}

/// The exit code for an error.
pub(crate) fn code_of(error: &anyhow::Error) -> ExitCode {
    let code = match error.downcast_ref::<Exit>() {
        Some(Exit::NotFound(_)) => 3,
        Some(Exit::NoNode(_)) => 4,
        None => 1,
    };
    ExitCode::from(code)
}

/// The host offers no runtime that isolates.
pub(crate) const HOST_UNFIT: u8 = 5;

/// The function's reply was an error of its own.
pub(crate) const FUNCTION_ERROR: u8 = 6;
