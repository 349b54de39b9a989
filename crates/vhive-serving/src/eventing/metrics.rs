//! What brokers and triggers count.
//!
//! # Source
//! Knative Eventing 1.19 and later: `kn.eventing.dispatch.duration`, in Prometheus' spelling; its
//! buckets are `pkg/broker/filter`'s. What it has no name for is named as the rest of this node.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::Eventing;
use crate::deferred::End;
use crate::kind::Kind;
use crate::registry::{Object, Spec};

const BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// What became of events at a broker.
const TAKEN: [&str; 3] = ["accepted", "full", "looped"];

/// What became of deliveries of a trigger.
const ENDS: [&str; 4] = ["delivered", "dead-lettered", "dropped", "unwanted"];

/// Figures of one broker or trigger, for as long as it exists.
#[derive(Debug)]
pub(crate) struct Figures {
    counts: [AtomicU64; 4],
    /// Of tries that were answered by 2xx, and of all others.
    dispatch: [Histogram; 2],
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            counts: Default::default(),
            dispatch: std::array::from_fn(|_| Histogram::new(BUCKETS)),
        }
    }
}

impl Figures {
    fn count(&self, which: usize) {
        self.counts[which].fetch_add(1, Ordering::Relaxed);
    }

    /// A broker has taken an event, or had no room for it.
    pub(super) fn taken(&self, accepted: bool) {
        self.count(usize::from(!accepted));
    }

    /// A broker has refused an event that has led to too many others.
    pub(super) fn looped(&self) {
        self.count(2);
    }

    /// A try has ended.
    pub(super) fn tried(&self, arrived: bool, took: Duration) {
        self.dispatch[usize::from(!arrived)].observe(took.as_secs_f64());
    }

    /// A delivery has ended.
    pub(super) fn ended(&self, end: End, is_letter: bool) {
        let which = match end {
            // A dead letter has been counted when it became one.
            End::Delivered if is_letter => return,
            End::Delivered => 0,
            End::DeadLettered => 1,
            End::Dropped => 2,
            End::Unwanted => 3,
        };
        self.count(which);
    }
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct BrokerLabels {
    namespace: String,
    broker: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct TriggerLabels {
    namespace: String,
    broker: String,
    trigger: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct DispatchLabels {
    kn_broker_namespace: String,
    kn_broker_name: String,
    kn_trigger_name: String,
    outcome: &'static str,
}

/// Reads the figures off the registry when asked.
#[derive(Debug)]
struct OfEventing(Arc<Eventing>);

/// Adds the metrics of brokers and triggers to a registry.
pub(crate) fn register(eventing: Arc<Eventing>, registry: &mut Registry) {
    registry.register_collector(Box::new(OfEventing(eventing)));
}

/// Namespace, broker and name of a trigger.
fn place(trigger: &Object) -> (String, String, String) {
    let broker = match &trigger.spec {
        Ok(Spec::Trigger(spec)) => spec.broker.clone(),
        _ => String::new(),
    };
    (trigger.stored.namespace.clone(), broker, trigger.stored.name.clone())
}

impl Collector for OfEventing {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let registry = &self.0.catalog.objects;
        let brokers = registry.list(Kind::Broker, None);
        let triggers = registry.list(Kind::Trigger, None);
        let zero = ConstCounter::new(0_u64);

        let about = "Well-formed events that came to a broker by what became of them";
        let name = "vhive_eventing_events";
        let mut family = encoder.encode_descriptor(name, about, None, zero.metric_type())?;
        for broker in &brokers {
            for (outcome, n) in TAKEN.iter().zip(&broker.figures.counts) {
                let (namespace, broker) =
                    (broker.stored.namespace.clone(), broker.stored.name.clone());
                let labels = BrokerLabels { namespace, broker, outcome };
                let value = ConstCounter::new(n.load(Ordering::Relaxed));
                value.encode(family.encode_family(&labels)?)?;
            }
        }

        let about = "Deliveries by how they ended";
        let name = "vhive_eventing_deliveries";
        let mut family = encoder.encode_descriptor(name, about, None, zero.metric_type())?;
        for trigger in &triggers {
            for (outcome, n) in ENDS.iter().zip(&trigger.figures.counts) {
                let (namespace, broker, trigger) = place(trigger);
                let labels = TriggerLabels { namespace, broker, trigger, outcome };
                let value = ConstCounter::new(n.load(Ordering::Relaxed));
                value.encode(family.encode_family(&labels)?)?;
            }
        }

        let about = "Deliveries that wait or are under way";
        let name = "vhive_eventing_pending";
        let pending = ConstGauge::new(i64::try_from(self.0.queue.pending()).unwrap_or(i64::MAX));
        let kind = pending.metric_type();
        pending.encode(encoder.encode_descriptor(name, about, None, kind)?)?;

        let about = "Time of each try to deliver an event";
        let name = "kn_eventing_dispatch_duration";
        let (unit, kind) = (Some(&Unit::Seconds), MetricType::Histogram);
        let mut family = encoder.encode_descriptor(name, about, unit, kind)?;
        for trigger in &triggers {
            for (outcome, histogram) in ["2xx", "failed"].iter().zip(&trigger.figures.dispatch) {
                let (kn_broker_namespace, kn_broker_name, kn_trigger_name) = place(trigger);
                let labels = DispatchLabels {
                    kn_broker_namespace,
                    kn_broker_name,
                    kn_trigger_name,
                    outcome,
                };
                histogram.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
