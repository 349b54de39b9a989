//! Requests under Knative's names, from the figures that stand under ours.
//!
//! # Source
//! Knative Serving 1.19 and later, `pkg/queue/sharedmain`, `pkg/queue` and `pkg/activator`:
//! OpenTelemetry's `kn.serving…` and `kn.revision.request…`, in Prometheus' spelling.

use std::sync::Arc;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::scaling::Labels;
use crate::catalog::Route;
use crate::throttle::Throttle;

#[derive(Clone, Debug, EncodeLabelSet)]
struct AnsweredLabels {
    http_response_status_code: &'static str,
    k8s_namespace_name: String,
    kn_service_name: String,
    kn_configuration_name: String,
    kn_revision_name: String,
}

/// What patterns like `5..` match as they do a whole status.
const CLASSES: [(usize, &str); 5] = [(1, "1xx"), (2, "2xx"), (3, "3xx"), (4, "4xx"), (5, "5xx")];

type Read = fn(&Throttle) -> u32;

const GAUGES: [(&str, &str, Read); 4] = [
    ("kn_serving_queue_depth", "Requests waiting for an instance", Throttle::queued),
    ("kn_revision_request_concurrency", "Requests being served or waiting", Throttle::in_flight),
    ("kn_revision_request_queued", "Requests waiting for an instance", Throttle::queued),
    ("kn_revision_request_active", "Requests being served", |throttle| {
        throttle.in_flight().saturating_sub(throttle.queued())
    }),
];

/// Writes the requests of all revisions.
pub(super) fn encode(
    routes: &[Arc<Route>],
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    for (name, about, read) in GAUGES {
        let mut family = encoder.encode_descriptor(name, about, None, MetricType::Gauge)?;
        for route in routes {
            let value = ConstGauge::new(i64::from(read(&route.throttle)));
            value.encode(family.encode_family(&Labels::of(route))?)?;
        }
    }
    let about = "Time from a request's head to the last byte of an instance's reply";
    let name = "kn_serving_invocation_duration";
    let kind = MetricType::Histogram;
    let mut family = encoder.encode_descriptor(name, about, Some(&Unit::Seconds), kind)?;
    for route in routes {
        for (class, http_response_status_code) in CLASSES {
            let total = route.metrics.answered(class);
            if total.count() == 0 {
                continue;
            }
            let labels = Labels::of(route);
            let labels = AnsweredLabels {
                http_response_status_code,
                k8s_namespace_name: labels.k8s_namespace_name,
                kn_service_name: labels.kn_service_name,
                kn_configuration_name: labels.kn_configuration_name,
                kn_revision_name: labels.kn_revision_name,
            };
            total.encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}
