//! What gateway and autoscaler count, for Prometheus. The names stand in
//! `docs/design/records-and-metrics.md`.

mod requests;
mod scaling;
mod spent;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use vhive_api::{InvocationRecord, Outcome, Phase, StartKind};

pub(crate) use self::scaling::Scaled;
use self::spent::{Spent, Total};
use crate::catalog::Catalog;

/// The outcomes, in the order in which they are counted.
const OUTCOMES: [&str; 6] =
    ["replied", "client-gone", "timed-out", "refused", "start-failed", "instance-failed"];

/// Figures of one revision; made once, so that counting a request looks nothing up.
#[derive(Debug, Default)]
pub(crate) struct RouteMetrics {
    /// By outcome and by the first digit of the status (0 = none).
    requests: [[AtomicU64; 6]; 6],
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    warm: Spent,
    cold: Spent,
    /// The autoscaler's last decision.
    scaled: Mutex<Option<Scaled>>,
}

impl RouteMetrics {
    /// Notes what the autoscaler has decided.
    pub(crate) fn scaled(&self, scaled: Scaled) {
        *self.scaled.lock().unwrap_or_else(PoisonError::into_inner) = Some(scaled);
    }

    fn last_scaled(&self) -> Option<Scaled> {
        *self.scaled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that have ended, and how many of them went wrong on this side: without a reply
    /// although the client was there, or with one that says 5xx.
    pub(crate) fn ended(&self) -> (u64, u64) {
        let (mut all, mut failed) = (0, 0);
        for (outcome, classes) in OUTCOMES.iter().zip(&self.requests) {
            for (class, n) in classes.iter().enumerate() {
                let n = n.load(Ordering::Relaxed);
                all += n;
                failed += match *outcome {
                    "client-gone" => 0,
                    "replied" if class < 5 => 0,
                    _ => n,
                };
            }
        }
        (all, failed)
    }

    /// Counts a finished request.
    pub(crate) fn count(&self, record: &InvocationRecord) {
        let outcome = match record.outcome {
            Outcome::Replied => 0,
            Outcome::ClientGone => 1,
            Outcome::TimedOut => 2,
            Outcome::Refused => 3,
            Outcome::StartFailed => 4,
            Outcome::InstanceFailed => 5,
        };
        let class = usize::from(record.status / 100).min(5);
        self.requests[outcome][class].fetch_add(1, Ordering::Relaxed);
        self.request_bytes.fetch_add(record.request_bytes, Ordering::Relaxed);
        self.response_bytes.fetch_add(record.response_bytes, Ordering::Relaxed);
        let Some(total) = record.phases.iter().find(|span| span.phase == Phase::Total) else {
            return;
        };
        match record.start {
            Some(StartKind::Warm) => self.warm.observe(class, total.length_us),
            Some(_) => self.cold.observe(class, total.length_us),
            None => {}
        }
    }

    /// How long those took that an instance was found for, of one class of status.
    fn answered(&self, class: usize) -> Total {
        self.warm.total(Some(class)).and(&self.cold.total(Some(class)))
    }
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct RevisionLabels {
    namespace: String,
    service: String,
    revision: String,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct RequestLabels {
    namespace: String,
    service: String,
    revision: String,
    outcome: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct AsyncLabels {
    what: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct TraceLabels {
    exporter: &'static str,
    what: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct StartLabels {
    namespace: String,
    service: String,
    revision: String,
    start: &'static str,
}

/// Reads the figures off the catalog when asked.
#[derive(Debug)]
struct Gateway(Arc<Catalog>, Arc<crate::gateway::Gateway>);

/// Adds the gateway's metrics to a registry.
pub(crate) fn register(gateway: &Arc<crate::gateway::Gateway>, registry: &mut Registry) {
    let catalog = Arc::clone(&gateway.catalog);
    registry.register_collector(Box::new(Gateway(catalog, Arc::clone(gateway))));
}

impl Collector for Gateway {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let routes = self.0.routes();
        let labels = |route: &crate::catalog::Route| {
            let revision = &route.revision;
            (revision.key.namespace.clone(), revision.service.clone(), revision.key.name.clone())
        };

        let zero = ConstCounter::new(0_u64);
        let about = "Requests by how they ended and by class of status";
        let mut requests =
            encoder.encode_descriptor("vhive_gateway_requests", about, None, zero.metric_type())?;
        for route in &routes {
            let (namespace, service, revision) = labels(route);
            for (outcome, classes) in OUTCOMES.iter().zip(&route.metrics.requests) {
                for (status, n) in ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].iter().zip(classes) {
                    let n = n.load(Ordering::Relaxed);
                    if n == 0 {
                        continue;
                    }
                    let labels = RequestLabels {
                        namespace: namespace.clone(),
                        service: service.clone(),
                        revision: revision.clone(),
                        outcome,
                        status,
                    };
                    ConstCounter::new(n).encode(requests.encode_family(&labels)?)?;
                }
            }
        }

        let gauge = ConstGauge::new(0_i64);
        for (name, about, read) in GAUGES {
            let mut family = encoder.encode_descriptor(name, about, None, gauge.metric_type())?;
            for route in &routes {
                let (namespace, service, revision) = labels(route);
                let labels = RevisionLabels { namespace, service, revision };
                let value = ConstGauge::new(i64::from(read(&route.throttle)));
                value.encode(family.encode_family(&labels)?)?;
            }
        }

        for (name, about, read) in BYTES {
            let unit = Some(&Unit::Bytes);
            let mut family = encoder.encode_descriptor(name, about, unit, zero.metric_type())?;
            for route in &routes {
                let (namespace, service, revision) = labels(route);
                let labels = RevisionLabels { namespace, service, revision };
                let value = ConstCounter::new(read(&route.metrics));
                value.encode(family.encode_family(&labels)?)?;
            }
        }

        let about = "Asynchronous requests that wait or are under way";
        let name = "vhive_gateway_async_pending";
        let deferred = &self.1.deferred;
        let pending = i64::try_from(deferred.pending()).unwrap_or(i64::MAX);
        let value = ConstGauge::new(pending);
        value.encode(encoder.encode_descriptor(name, about, None, gauge.metric_type())?)?;
        let about = "Asynchronous requests by what became of them, and tries after the first";
        let name = "vhive_gateway_async";
        let mut family = encoder.encode_descriptor(name, about, None, zero.metric_type())?;
        for (what, count) in
            [("done", &deferred.done), ("failed", &deferred.failed), ("retried", &deferred.retried)]
        {
            let labels = AsyncLabels { what };
            let value = ConstCounter::new(count.load(Ordering::Relaxed));
            value.encode(family.encode_family(&labels)?)?;
        }

        let about = "Sampled requests by collector and by what became of their traces";
        let name = "vhive_gateway_traces";
        let mut family = encoder.encode_descriptor(name, about, None, zero.metric_type())?;
        for counts in &self.1.tracer.counts {
            for (what, count) in [
                ("exported", &counts.exported),
                ("dropped", &counts.dropped),
                ("failed", &counts.failed),
            ] {
                let labels = TraceLabels { exporter: counts.exporter, what };
                let value = ConstCounter::new(count.load(Ordering::Relaxed));
                value.encode(family.encode_family(&labels)?)?;
            }
        }

        let about = "Time from a request's head to the last byte of its reply";
        let kind = prometheus_client::metrics::MetricType::Histogram;
        let name = "vhive_gateway_request_duration";
        let mut family = encoder.encode_descriptor(name, about, Some(&Unit::Seconds), kind)?;
        for route in &routes {
            let metrics = &route.metrics;
            for (start, spent) in [("warm", &metrics.warm), ("cold", &metrics.cold)] {
                let (namespace, service, revision) = labels(route);
                let labels = StartLabels { namespace, service, revision, start };
                spent.total(None).encode(family.encode_family(&labels)?)?;
            }
        }
        requests::encode(&routes, &mut encoder)?;
        scaling::encode(&routes, &mut encoder)
    }
}

type Throttle = crate::throttle::Throttle;
type Gauge = (&'static str, &'static str, fn(&Throttle) -> u32);

const GAUGES: [Gauge; 2] = [
    ("vhive_gateway_requests_in_flight", "Requests being served or waiting", Throttle::in_flight),
    ("vhive_gateway_requests_queued", "Requests waiting for an instance", Throttle::queued),
];

type Byte = (&'static str, &'static str, fn(&RouteMetrics) -> u64);

const BYTES: [Byte; 2] = [
    ("vhive_gateway_request_size", "Request bodies forwarded", |metrics| {
        metrics.request_bytes.load(Ordering::Relaxed)
    }),
    ("vhive_gateway_response_size", "Reply bodies forwarded", |metrics| {
        metrics.response_bytes.load(Ordering::Relaxed)
    }),
];
