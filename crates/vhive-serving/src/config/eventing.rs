//! `[serving.eventing]`.

use serde::{Deserialize, Serialize};
use vhive_api::Bytes;

use super::{AsyncConfig, ConfigError};

/// Brokers and triggers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventingConfig {
    /// Deliveries that may wait or be under way, one per event and trigger that wants it; 503
    /// beyond.
    pub max_pending: usize,
    /// Their data and attributes together.
    pub max_bytes: Bytes,
    /// Longest event, with its attributes if they are in its body; 413 beyond.
    pub max_event: Bytes,
    /// Events sent at a time, to all subscribers together.
    pub concurrency: usize,
    /// Events sent at a time for one trigger, so that a subscriber that hangs holds up its own only.
    pub per_trigger: usize,
    /// How often an event may lead to a reply that leads to a reply …
    pub hops: u32,
}

impl Default for EventingConfig {
    fn default() -> Self {
        Self {
            max_pending: 10_000,
            max_bytes: Bytes::mib(256),
            max_event: Bytes::mib(1),
            concurrency: 256,
            per_trigger: 64,
            // As Knative's brokers do.
            hops: 255,
        }
    }
}

impl EventingConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let zero = |key| Err(ConfigError { key, reason: "must be at least 1".to_owned() });
        if self.concurrency == 0 {
            return zero("eventing.concurrency");
        }
        if self.per_trigger == 0 {
            return zero("eventing.per_trigger");
        }
        if self.hops == 0 {
            return zero("eventing.hops");
        }
        Ok(())
    }

    /// The bounds of the queue of deliveries.
    pub(crate) fn queue(&self) -> AsyncConfig {
        AsyncConfig {
            max_pending: self.max_pending,
            max_bytes: self.max_bytes,
            max_body: self.max_event,
            max_reply: self.max_event,
            max_results: 0,
            concurrency: self.concurrency,
            // The triggers say how often.
            attempts: u32::MAX,
        }
    }
}
