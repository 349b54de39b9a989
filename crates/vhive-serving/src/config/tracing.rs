//! The `[serving.tracing]` section.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vhive_api::Span;

use super::ConfigError;

/// Spans of invocations. Without a collector nothing is traced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracingConfig {
    /// Address of an OpenTelemetry collector; `/v1/traces` is the path of one that has none.
    pub otlp: Option<String>,
    /// What is spoken with it.
    pub otlp_protocol: OtlpProtocol,
    /// Address of a Zipkin collector; `/api/v2/spans` is the path of one that has none.
    pub zipkin: Option<String>,
    /// How many of the requests are sampled whose context does not say.
    pub sample_percent: f64,
    /// As what the gateway appears.
    pub service_name: String,
    /// Invocations waiting to be sent to one collector; further ones are dropped and counted.
    pub queue: usize,
    /// Most invocations in one message.
    pub batch: usize,
    /// How long an invocation waits for others to be sent with.
    pub interval: Span,
    /// How long a collector may take to answer.
    pub timeout: Span,
}

/// What OTLP goes over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtlpProtocol {
    /// Protobuf, by POST.
    #[default]
    Http,
    /// gRPC.
    Grpc,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self {
            otlp: None,
            otlp_protocol: OtlpProtocol::Http,
            zipkin: None,
            sample_percent: 100.0,
            service_name: "vhive".to_owned(),
            queue: 4096,
            batch: 256,
            interval: Span(Duration::from_secs(1)),
            timeout: Span(Duration::from_secs(10)),
        }
    }
}

impl TracingConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key, reason: &str| Err(ConfigError { key, reason: reason.to_owned() });
        let addresses = [("tracing.otlp", &self.otlp), ("tracing.zipkin", &self.zipkin)];
        for (key, address) in addresses {
            if let Some(address) = address
                && let Err(reason) = crate::trace::check_address(address)
            {
                return wrong(key, reason);
            }
        }
        if !(0.0..=100.0).contains(&self.sample_percent) {
            return wrong("tracing.sample_percent", "must be from 0 to 100");
        }
        if self.queue == 0 {
            return wrong("tracing.queue", "must be at least 1");
        }
        if !(1..=10_000).contains(&self.batch) {
            return wrong("tracing.batch", "must be from 1 to 10000");
        }
        if self.timeout.0.is_zero() {
            return wrong("tracing.timeout", "must be longer than nothing");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_are_named() {
        assert_eq!(TracingConfig::default().validate(), Ok(()));
        type Change = fn(&mut TracingConfig);
        let changes: [(&str, Change); 5] = [
            ("tracing.otlp", |c| c.otlp = Some("collector:4318".to_owned())),
            ("tracing.zipkin", |c| c.zipkin = Some("https://zipkin".to_owned())),
            ("tracing.sample_percent", |c| c.sample_percent = f64::NAN),
            ("tracing.queue", |c| c.queue = 0),
            ("tracing.batch", |c| c.batch = 0),
        ];
        for (key, change) in changes {
            let mut config = TracingConfig::default();
            change(&mut config);
            assert_eq!(config.validate().expect_err(key).key, key);
        }
    }
}
