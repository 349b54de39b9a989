//! What the autoscaler has decided last, under Knative's names.
//!
//! # Source
//! Knative Serving 1.19 and later, `pkg/autoscaler/scaling` and `pkg/reconciler/autoscaling/kpa`:
//! OpenTelemetry's `kn.revision…`, in Prometheus' spelling.

use std::sync::Arc;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::autoscale::{Figures, Metric, Pool};
use crate::catalog::Route;

/// One decision of the autoscaler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scaled {
    /// Instances wanted.
    pub(crate) desired: u32,
    /// Instances that there were.
    pub(crate) pool: Pool,
    /// How many of them were to go once they have served what they hold.
    pub(crate) leaving: u32,
    /// What it was decided from.
    pub(crate) figures: Option<Figures>,
}

/// How Knative names a revision.
#[derive(Clone, Debug, EncodeLabelSet)]
pub(super) struct Labels {
    pub(super) k8s_namespace_name: String,
    pub(super) kn_service_name: String,
    pub(super) kn_configuration_name: String,
    pub(super) kn_revision_name: String,
}

impl Labels {
    pub(super) fn of(route: &Route) -> Self {
        let revision = &route.revision;
        Self {
            k8s_namespace_name: revision.key.namespace.clone(),
            kn_service_name: revision.service_label().to_owned(),
            kn_configuration_name: revision.service.clone(),
            kn_revision_name: revision.key.name.clone(),
        }
    }
}

type Read = fn(&Scaled) -> Option<f64>;

fn of(scaled: &Scaled, metric: Metric, read: fn(&Figures) -> f64) -> Option<f64> {
    scaled.figures.as_ref().filter(|figures| figures.metric == metric).map(read)
}

const GAUGES: [(&str, &str, Read); 14] = [
    ("kn_revision_pods_desired", "Instances wanted", |s| Some(s.desired.into())),
    ("kn_revision_pods_requested", "Instances asked of the node", |s| Some(s.desired.into())),
    ("kn_revision_pods_count", "Instances that serve", |s| Some(s.pool.ready.into())),
    ("kn_revision_pods_not_ready_count", "Instances being started", |s| {
        Some(s.pool.starting.into())
    }),
    ("kn_revision_pods_pending_count", "Instances being started", |s| Some(s.pool.starting.into())),
    ("kn_revision_pods_terminating_count", "Instances that serve what they hold and go", |s| {
        Some(s.leaving.into())
    }),
    ("kn_revision_panic_mode", "1 while it panics", |s| {
        s.figures.map(|figures| if figures.panicking { 1.0 } else { 0.0 })
    }),
    ("kn_revision_capacity_excess", "Room for more load beyond target-burst-capacity", |s| {
        s.figures.map(|figures| figures.excess)
    }),
    ("kn_revision_concurrency_stable", "Requests in flight, over the stable window", |s| {
        of(s, Metric::Concurrency, |figures| figures.stable)
    }),
    ("kn_revision_concurrency_panic", "Requests in flight, over the panic window", |s| {
        of(s, Metric::Concurrency, |figures| figures.panic)
    }),
    ("kn_revision_concurrency_target", "Requests in flight per instance aimed at", |s| {
        of(s, Metric::Concurrency, |figures| figures.target)
    }),
    ("kn_revision_rps_stable", "Requests per second, over the stable window", |s| {
        of(s, Metric::Rps, |figures| figures.stable)
    }),
    ("kn_revision_rps_panic", "Requests per second, over the panic window", |s| {
        of(s, Metric::Rps, |figures| figures.panic)
    }),
    ("kn_revision_rps_target", "Requests per second and instance aimed at", |s| {
        of(s, Metric::Rps, |figures| figures.target)
    }),
];

/// Writes the decisions about all revisions that there was one about.
pub(super) fn encode(
    routes: &[Arc<Route>],
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    let scaled =
        |route: &Arc<Route>| route.metrics.last_scaled().map(|scaled| (Labels::of(route), scaled));
    let all: Vec<(Labels, Scaled)> = routes.iter().filter_map(scaled).collect();
    for (name, about, read) in GAUGES {
        let mut family = encoder.encode_descriptor(name, about, None, MetricType::Gauge)?;
        for (labels, scaled) in &all {
            if let Some(value) = read(scaled) {
                ConstGauge::new(value).encode(family.encode_family(labels)?)?;
            }
        }
    }
    Ok(())
}
