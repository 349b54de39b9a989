//! What brokers and triggers ask for, once their documents are read.

use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::filter::Filter;

/// The host that brokers answer at, without its domain.
pub(crate) const INGRESS: &str = "broker-ingress.knative-eventing";

/// Longest pause before another try.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Where events go: always to this node's own gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sink {
    pub(crate) to: To,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Path and query.
    pub(crate) target: String,
}

/// What a sink is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum To {
    /// A service by reference.
    Service,
    /// A service or one of its tags by its host, whether or not there is one.
    Host,
    /// A broker.
    Broker,
}

impl Sink {
    /// The host to send to.
    pub(crate) fn host(&self, domain: &str) -> String {
        match self.to {
            To::Service | To::Host => format!("{}.{}.{domain}", self.name, self.namespace),
            To::Broker => format!("{INGRESS}.{domain}"),
        }
    }

    /// The path and query to send to.
    pub(crate) fn path(&self) -> String {
        match self.to {
            To::Service | To::Host => self.target.clone(),
            To::Broker => format!("/{}/{}", self.namespace, self.name),
        }
    }

    /// As it stands in a status.
    pub(crate) fn uri(&self, domain: &str) -> String {
        let path = self.path();
        format!("http://{}{}", self.host(domain), if path == "/" { "" } else { &path })
    }
}

/// How pauses grow from try to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backoff {
    Linear,
    Exponential,
}

/// How hard delivery is tried, and where to with what cannot be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeliverySpec {
    pub(crate) dead_letter: Option<Sink>,
    /// Tries after the first.
    pub(crate) retry: u32,
    pub(crate) backoff: Backoff,
    pub(crate) delay: Duration,
    /// For each try.
    pub(crate) timeout: Option<Duration>,
}

impl Default for DeliverySpec {
    /// # Source
    /// Knative Eventing, `config-br-defaults`.
    fn default() -> Self {
        Self {
            dead_letter: None,
            retry: 10,
            backoff: Backoff::Exponential,
            delay: Duration::from_millis(200),
            timeout: None,
        }
    }
}

impl DeliverySpec {
    /// The pause after so many tries, none if they were all.
    pub(crate) fn pause(&self, tries: u32) -> Option<Duration> {
        if tries > self.retry {
            return None;
        }
        let factor = match self.backoff {
            Backoff::Linear => tries,
            Backoff::Exponential => 1_u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX),
        };
        Some(self.delay.saturating_mul(factor).min(LONGEST_PAUSE))
    }
}

/// Whether a status says that another try may succeed.
///
/// # Source
/// Knative Eventing, data plane contract, "Event Acknowledgement and Delivery Retry"; 408 as in its
/// `SelectiveRetry`.
pub(crate) fn is_retried(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 404 | 408 | 409 | 429)
}

/// A broker's `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BrokerSpec {
    pub(crate) delivery: DeliverySpec,
}

/// A trigger's `spec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TriggerSpec {
    pub(crate) broker: String,
    /// All must hold.
    pub(crate) filters: Vec<Filter>,
    pub(crate) subscriber: Sink,
    /// Its broker's if it has none.
    pub(crate) delivery: Option<DeliverySpec>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_as_asked_and_end() {
        let spec = |backoff| DeliverySpec {
            retry: 4,
            backoff,
            delay: Duration::from_secs(1),
            ..DeliverySpec::default()
        };
        let pauses = |spec: &DeliverySpec| -> Vec<_> {
            (1..6).map(|tries| spec.pause(tries).map(|pause| pause.as_secs())).collect()
        };
        let linear = [Some(1), Some(2), Some(3), Some(4), None];
        assert_eq!(pauses(&spec(Backoff::Linear)), linear);
        let exponential = [Some(1), Some(2), Some(4), Some(8), None];
        assert_eq!(pauses(&spec(Backoff::Exponential)), exponential);
        let forever = DeliverySpec { retry: u32::MAX, ..spec(Backoff::Exponential) };
        assert_eq!(forever.pause(1_000_000), Some(LONGEST_PAUSE));
        assert_eq!(DeliverySpec { retry: 0, ..forever }.pause(1), None);
    }

    #[test]
    fn statuses_are_retried_as_in_the_contract() {
        let retried = |status| is_retried(StatusCode::from_u16(status).unwrap());
        assert!([404, 408, 409, 429, 500, 502, 503, 504].into_iter().all(retried));
        assert!(![200, 202, 301, 400, 401, 413, 422].into_iter().any(retried));
    }

    #[test]
    fn a_sink_is_an_address_of_this_node() {
        let sink = |to, target: &str| Sink {
            to,
            namespace: "n".to_owned(),
            name: "a".to_owned(),
            target: target.to_owned(),
        };
        let uri = |sink: Sink| sink.uri("example.com");
        assert_eq!(uri(sink(To::Service, "/")), "http://a.n.example.com");
        assert_eq!(uri(sink(To::Host, "/p?q")), "http://a.n.example.com/p?q");
        let broker = "http://broker-ingress.knative-eventing.example.com/n/a";
        assert_eq!(uri(sink(To::Broker, "/")), broker);
    }
}
