//! What the Rust functions share: one port that speaks HTTP/1.1, h2c and the gRPC Greeter.
//!
//! ```no_run
//! use vhive_function::{Function, Reply, Request};
//!
//! struct Echo;
//!
//! impl Function for Echo {
//!     const NAME: &'static str = "echo";
//!     const HELP: &'static str = "POST / with any body: replies with its length";
//!
//!     async fn call(&self, request: Request) -> Reply {
//!         Reply::json(&serde_json::json!({ "bytes": request.body.len() }))
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     vhive_function::run(Echo)
//! }
//! ```
//!
//! The function listens on `$PORT` (8080 if unset, any free port if 0) of `$HOST` (0.0.0.0 if
//! unset), says so in one line on stdout, and exits with 0 on SIGTERM.
//!
//! # Source
//! Knative, `runtime-contract.md` (`PORT`, SIGTERM); gRPC over HTTP/2, `PROTOCOL-HTTP2.md`.

mod grpc;
pub mod host;
mod listener;
mod message;
mod serve;

use std::future::Future;
use std::process::ExitCode;

pub use grpc::{Done, Work};
pub use message::{Reply, Request};

/// A function that answers requests.
pub trait Function: Send + Sync + 'static {
    /// Its name, for messages.
    const NAME: &'static str;
    /// What `GET /` replies: how to call it.
    const HELP: &'static str;
    /// Longest request body in bytes; a longer one gets status 413.
    const MAX_BODY: usize = 1 << 20;

    /// Answers `POST /`.
    fn call(&self, request: Request) -> impl Future<Output = Reply> + Send;

    /// Answers `helloworld.Greeter/SayHello`; `None` says that it is not implemented.
    fn greet(&self, name: &str) -> Option<String> {
        let _ = name;
        None
    }

    /// Answers `faas.Executor/Execute`; `None` says that it is not implemented.
    fn execute(&self, work: Work) -> impl Future<Output = Option<Result<Done, String>>> + Send {
        let _ = work;
        std::future::ready(None)
    }
}

/// Serves until SIGTERM or SIGINT. Returns failure, with the reason on stderr, if it cannot listen.
pub fn run<F: Function>(function: F) -> ExitCode {
    match serve::serve(function) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", F::NAME);
            ExitCode::FAILURE
        }
    }
}
