//! What can be configured, with the defaults.

mod autoscale;
mod eventing;
mod tracing;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vhive_api::{Bytes, PrefetchPolicy, RuntimeName, SnapshotPolicy, Span};

pub use self::autoscale::{AutoscaleConfig, Profile};
pub(crate) use self::autoscale::{DAY, HOUR};
pub use self::eventing::EventingConfig;
pub use self::tracing::{OtlpProtocol, TracingConfig};

/// The `[serving]` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where requests to functions arrive.
    pub gateway: GatewayConfig,
    /// Where services are managed.
    pub api: ApiConfig,
    /// What a service gets that does not say.
    pub defaults: Defaults,
    /// How the number of instances follows the demand.
    pub autoscale: AutoscaleConfig,
    /// How long revisions are kept that serve nothing any more.
    pub retention: RetentionConfig,
    /// Requests that are answered later.
    #[serde(rename = "async")]
    pub deferred: AsyncConfig,
    /// Spans of invocations.
    pub tracing: TracingConfig,
    /// Brokers and triggers.
    pub eventing: EventingConfig,
}

/// Requests with `Prefer: respond-async`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AsyncConfig {
    /// Requests that may wait or be under way; 503 beyond.
    pub max_pending: usize,
    /// Their bodies and heads together.
    pub max_bytes: Bytes,
    /// Longest body of one; 413 beyond.
    pub max_body: Bytes,
    /// Longest reply that is kept; an invocation with a longer one fails.
    pub max_reply: Bytes,
    /// Replies kept; the oldest go first.
    pub max_results: u64,
    /// Requests sent at a time, to all functions together.
    pub concurrency: usize,
    /// Tries of one request in all, while only the gateway answers.
    pub attempts: u32,
}

impl Default for AsyncConfig {
    fn default() -> Self {
        Self {
            max_pending: 10_000,
            max_bytes: Bytes::mib(256),
            max_body: Bytes::mib(1),
            max_reply: Bytes::mib(6),
            max_results: 10_000,
            concurrency: 64,
            attempts: 8,
        }
    }
}

/// How long revisions are kept that no request can reach any more. Defaults as in Knative's
/// `config-gc`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// A younger one is kept.
    pub since_created: Span,
    /// One that was reached more recently is kept.
    pub since_routed: Span,
    /// So many of a service are kept however old they are.
    pub min_idle: usize,
    /// No more than so many of a service are kept however young they are.
    pub max_idle: usize,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        let hours = |n: u64| Span(Duration::from_secs(n * 3600));
        Self { since_created: hours(48), since_routed: hours(15), min_idle: 20, max_idle: 1000 }
    }
}

/// Where and how requests to functions are taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Address and port; port 0 = any free one. HTTP/1.1 and HTTP/2 by prior knowledge.
    pub listen: SocketAddr,
    /// Address and port for the same with TLS; absent = none.
    pub tls_listen: Option<SocketAddr>,
    /// The gateway's certificate and those of its authorities, in PEM.
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Functions answer to `<name>.<namespace>.<domain>`.
    pub domain: String,
    /// Longest request head (HTTP/1) or header list (HTTP/2) in bytes, from 8 KiB on; a longer one
    /// is answered with 431.
    pub max_head: Bytes,
    /// Longest request body in bytes, 413 beyond it; absent = no limit.
    pub max_body: Option<Bytes>,
    /// How long a client may take to send a request's head, and how long its idle connection is
    /// kept.
    pub head_timeout: Span,
    /// How long a connection to an instance may take to be made.
    pub connect_timeout: Span,
    /// Idle connections kept to one instance.
    pub idle_connections: usize,
    /// Most client connections at a time. Beyond, the longest connected one that has been idle for a
    /// second is closed for the next; if there is none, further ones wait to be accepted.
    pub max_connections: usize,
    /// No request takes the short way: for comparisons. Not to be set from a file.
    #[serde(skip)]
    pub by_hyper_only: bool,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            tls_listen: None,
            tls_certificate: None,
            tls_key: None,
            domain: "example.com".to_owned(),
            max_head: Bytes(64 << 10),
            max_body: None,
            head_timeout: Span(Duration::from_secs(60)),
            connect_timeout: Span(Duration::from_secs(5)),
            idle_connections: 256,
            max_connections: 10_000,
            by_hyper_only: false,
        }
    }
}

/// Where services are managed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Unix socket (mode 0660); absent = `<state directory>/api.sock`.
    pub socket: Option<PathBuf>,
    /// Loopback address with bearer token; port 0 = any free one.
    pub listen: SocketAddr,
    /// Longest request body.
    pub max_body: Bytes,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            socket: None,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)),
            max_body: Bytes::mib(3),
        }
    }
}

/// What a service gets that does not say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// Runtime without `runtimeClassName`.
    pub runtime: RuntimeName,
    /// CPU limit in thousandths of a CPU.
    pub cpu_millis: u32,
    /// Memory limit.
    pub memory: Bytes,
    /// `timeoutSeconds`.
    pub timeout: Span,
    /// Most that `timeoutSeconds` may be.
    pub max_timeout: Span,
    /// `containerConcurrency`; 0 = no limit.
    pub container_concurrency: u32,
    /// Requests that may wait for an instance of one revision.
    pub queue_depth: u32,
    /// Whether cold starts come from a snapshot, without `vhive.dev/snapshot-policy`.
    pub snapshot_policy: SnapshotPolicy,
    /// How working sets are recorded and prefetched, without `vhive.dev/prefetch-policy`.
    pub prefetch_policy: PrefetchPolicy,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            runtime: RuntimeName::Qemu,
            cpu_millis: 1000,
            memory: Bytes::mib(256),
            timeout: Span(Duration::from_secs(300)),
            max_timeout: Span(Duration::from_secs(600)),
            container_concurrency: 0,
            queue_depth: 10_000,
            snapshot_policy: SnapshotPolicy::Off,
            prefetch_policy: PrefetchPolicy::default(),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("serving.{key}: {reason}")]
pub struct ConfigError {
    /// The key below `[serving]`.
    pub key: &'static str,
    /// What is wrong with its value, and what would be right.
    pub reason: String,
}

impl Config {
    /// Checks everything that types cannot say, before anything is opened.
    ///
    /// # Errors
    /// [`ConfigError`] for the first value that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key, reason: &str| Err(ConfigError { key, reason: reason.to_owned() });
        let (gateway, scale) = (&self.gateway, &self.autoscale);
        let domain = &gateway.domain;
        if domain.is_empty() || domain.bytes().any(|b| !is_domain_byte(b)) {
            return wrong("gateway.domain", "must be a lower-case domain like `example.com`");
        }
        if !(8 << 10..=1 << 20).contains(&gateway.max_head.0) {
            return wrong("gateway.max_head", "must be from 8KiB to 1MiB");
        }
        let tls = [gateway.tls_certificate.is_some(), gateway.tls_key.is_some()];
        if tls != [gateway.tls_listen.is_some(); 2] {
            let reason = "tls_listen, tls_certificate and tls_key belong together";
            return wrong("gateway.tls_listen", reason);
        }
        if gateway.max_connections == 0 {
            return wrong("gateway.max_connections", "must be at least 1");
        }
        if self.deferred.concurrency == 0 {
            return wrong("async.concurrency", "must be at least 1");
        }
        if self.deferred.attempts == 0 {
            return wrong("async.attempts", "must be at least 1");
        }
        self.eventing.validate()?;
        if !self.api.listen.ip().is_loopback() {
            let reason = "must be a loopback address, because the token would travel unencrypted";
            return wrong("api.listen", reason);
        }
        self.tracing.validate()?;
        scale.validate()
    }
}

fn is_domain_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_and_bad_values_are_named() {
        assert_eq!(Config::default().validate(), Ok(()));
        let mut config = Config::default();
        config.api.listen = SocketAddr::from(([0, 0, 0, 0], 0));
        assert_eq!(config.validate().expect_err("not loopback").key, "api.listen");
        let mut config = Config::default();
        config.autoscale.target_percent = f64::NAN;
        assert_eq!(config.validate().expect_err("not a number").key, "autoscale.target_percent");
    }
}
