//! What the gateway answers when a function cannot: every error has one HTTP status, one code for
//! programs (`x-vhive-error`) and one text for people, and this file is where.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use http::StatusCode;
use vhive_api::{Bytes, Outcome, SandboxId};
use vhive_node::AcquireError;

use crate::throttle::QueueFull;

/// Why a request was answered by the gateway instead of a function.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatewayError {
    /// The request is not one that can be forwarded.
    #[error("bad request: {0}")]
    BadRequest(&'static str),
    /// No service answers to that host.
    #[error("no service answers to host {0:?}; see `vhive get` for the names")]
    UnknownHost(String),
    /// The body is longer than the gateway lets through.
    #[error("the request's body is longer than {0} (serving.gateway.max_body)")]
    BodyTooLarge(Bytes),
    /// Too many requests wait for an instance.
    #[error("{0}")]
    QueueFull(QueueFull),
    /// There is no instance.
    #[error(transparent)]
    NoInstance(#[from] AcquireError),
    /// The revision's timeout passed.
    #[error("no complete reply within {} s (timeoutSeconds); the request was {doing}", limit.as_secs())]
    TimedOut {
        /// The timeout.
        limit: Duration,
        /// What was being done.
        doing: &'static str,
    },
    /// The time for the reply's beginning passed.
    #[error(
        "no reply has begun within {} s (responseStartTimeoutSeconds); the request was {doing}",
        limit.as_secs()
    )]
    NotBegun {
        /// The time.
        limit: Duration,
        /// What was being done.
        doing: &'static str,
    },
    /// The function has said nothing for too long.
    #[error(
        "the function has said nothing for {} s (idleTimeoutSeconds); the request was {doing}",
        limit.as_secs()
    )]
    Idle {
        /// The time.
        limit: Duration,
        /// What was being done.
        doing: &'static str,
    },
    /// The instance could not be reached.
    #[error("instance {sandbox} does not accept connections: {reason}")]
    Unreachable {
        /// The instance.
        sandbox: SandboxId,
        /// The system's words.
        reason: String,
    },
    /// The instance broke before it replied.
    #[error("instance {sandbox} broke before it replied: {reason}")]
    Broke {
        /// The instance.
        sandbox: SandboxId,
        /// How.
        reason: String,
    },
    /// The client sent no complete body.
    #[error("the request's body broke off")]
    ClientGone,
    /// No more asynchronous requests are taken.
    #[error("{0}")]
    AsyncFull(String),
    /// An asynchronous request could not be made durable.
    #[error("{0}")]
    AsyncStore(String),
}

/// How an error is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    /// Seconds for `Retry-After`.
    pub(crate) retry_after: Option<u64>,
    pub(crate) outcome: Outcome,
}

impl GatewayError {
    /// The status, code and outcome of each error.
    pub(crate) fn told(&self) -> Told {
        let told = |status, code, retry_after, outcome| Told { status, code, retry_after, outcome };
        let (refused, failed, broke) =
            (Outcome::Refused, Outcome::StartFailed, Outcome::InstanceFailed);
        match self {
            Self::BadRequest(_) => told(StatusCode::BAD_REQUEST, "bad-request", None, refused),
            Self::UnknownHost(_) => told(StatusCode::NOT_FOUND, "unknown-host", None, refused),
            Self::BodyTooLarge(_) => {
                told(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", None, refused)
            }
            Self::QueueFull(_) => {
                told(StatusCode::SERVICE_UNAVAILABLE, "queue-full", Some(1), refused)
            }
            Self::NoInstance(AcquireError::Unknown(_)) => {
                told(StatusCode::NOT_FOUND, "unknown-revision", None, refused)
            }
            Self::NoInstance(AcquireError::StartFailed(_)) => {
                told(StatusCode::BAD_GATEWAY, "start-failed", None, failed)
            }
            Self::NoInstance(AcquireError::BackingOff { retry_after, .. }) => {
                let seconds = retry_after.as_secs() + 1;
                told(StatusCode::SERVICE_UNAVAILABLE, "start-backing-off", Some(seconds), failed)
            }
            Self::NoInstance(AcquireError::Full(_)) => {
                told(StatusCode::SERVICE_UNAVAILABLE, "node-full", Some(1), refused)
            }
            // Only said to one who asks for an instance beside the others; nobody does here.
            Self::NoInstance(AcquireError::AtMax(_)) => {
                told(StatusCode::SERVICE_UNAVAILABLE, "node-full", Some(1), refused)
            }
            Self::NoInstance(AcquireError::Closing(_)) => {
                told(StatusCode::SERVICE_UNAVAILABLE, "shutting-down", Some(1), refused)
            }
            Self::TimedOut { .. } | Self::NotBegun { .. } | Self::Idle { .. } => {
                told(StatusCode::GATEWAY_TIMEOUT, "timeout", None, Outcome::TimedOut)
            }
            Self::Unreachable { .. } => {
                told(StatusCode::BAD_GATEWAY, "instance-unreachable", None, broke)
            }
            Self::Broke { .. } => told(StatusCode::BAD_GATEWAY, "instance-failed", None, broke),
            Self::ClientGone => {
                told(StatusCode::BAD_REQUEST, "client-gone", None, Outcome::ClientGone)
            }
            Self::AsyncFull(_) => {
                told(StatusCode::SERVICE_UNAVAILABLE, "async-queue-full", Some(1), refused)
            }
            Self::AsyncStore(_) => {
                told(StatusCode::INTERNAL_SERVER_ERROR, "async-not-kept", None, refused)
            }
        }
    }

    /// The error and its causes in one line, and the console of a failed start below it.
    pub(crate) fn text(&self) -> String {
        let mut text = chain(self);
        let console = match self {
            Self::NoInstance(
                AcquireError::StartFailed(failure) | AcquireError::BackingOff { failure, .. },
            ) => failure.console.as_slice(),
            _ => &[],
        };
        text.push('\n');
        for line in console {
            let _infallible = writeln!(text, "| {line}");
        }
        text
    }
}

/// An error and its causes, joined by colons.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _infallible = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
