//! What the node counts and measures, for Prometheus. The names stand in
//! `docs/design/records-and-metrics.md`.

use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use vhive_api::{MemoryFigures, Phase, RuntimeName};

use crate::node::Shared;
use crate::pool::{InstanceState, PoolView};
use crate::start::StartReport;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StartLabels {
    runtime: &'static str,
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    runtime: &'static str,
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuntimeLabels {
    runtime: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    runtime: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabels {
    runtime: &'static str,
    mode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InstanceLabels {
    namespace: String,
    revision: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RevisionLabels {
    namespace: String,
    revision: String,
}

/// Half a millisecond to a little above a minute.
fn phase_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 18))
}

type NewHistogram = fn() -> Histogram;

/// The node's own counters; gauges are read off when asked for.
#[derive(Debug)]
pub(crate) struct Metrics {
    starts: Family<StartLabels, Counter>,
    phases: Family<PhaseLabels, Histogram, NewHistogram>,
    taken: Family<OutcomeLabels, Counter>,
    recordings: Family<OutcomeLabels, Counter>,
    fallbacks: Family<RuntimeLabels, Counter>,
    missed: Family<RuntimeLabels, Counter>,
    faults: Family<ModeLabels, Counter>,
    prefetched: Family<RuntimeLabels, Counter>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let new: NewHistogram = phase_histogram;
        Self {
            starts: Family::default(),
            phases: Family::new_with_constructor(new),
            taken: Family::default(),
            recordings: Family::default(),
            fallbacks: Family::default(),
            missed: Family::default(),
            faults: Family::default(),
            prefetched: Family::default(),
        }
    }

    /// A snapshot was taken, or not.
    pub(crate) fn snapshot_taken(&self, runtime: RuntimeName, outcome: &'static str) {
        let labels = OutcomeLabels { runtime: runtime.as_str(), outcome };
        self.taken.get_or_create(&labels).inc();
    }

    /// A recording became a working set, or not.
    pub(crate) fn recorded(&self, runtime: RuntimeName, outcome: &'static str) {
        let labels = OutcomeLabels { runtime: runtime.as_str(), outcome };
        self.recordings.get_or_create(&labels).inc();
    }

    /// A restore failed and a boot took its place.
    pub(crate) fn fell_back(&self, runtime: RuntimeName) {
        self.fallbacks.get_or_create(&RuntimeLabels { runtime: runtime.as_str() }).inc();
    }

    /// Prefetching missed too many pages.
    pub(crate) fn missed(&self, runtime: RuntimeName) {
        self.missed.get_or_create(&RuntimeLabels { runtime: runtime.as_str() }).inc();
    }

    /// The first reply of an instance that came from a snapshot.
    pub(crate) fn restored(&self, runtime: RuntimeName, figures: &MemoryFigures) {
        let (runtime, mode) = (runtime.as_str(), figures.mode.as_str());
        if let Some(faults) = figures.faults {
            self.faults.get_or_create(&ModeLabels { runtime, mode }).inc_by(faults);
        }
        let labels = RuntimeLabels { runtime };
        self.prefetched.get_or_create(&labels).inc_by(figures.prefetched_bytes);
    }

    pub(crate) fn started(&self, runtime: RuntimeName, report: &StartReport) {
        let (runtime, kind) = (runtime.as_str(), report.kind.as_str());
        self.starts.get_or_create(&StartLabels { runtime, kind, outcome: "ready" }).inc();
        let observe = |phase: Phase, seconds: f64| {
            let labels = PhaseLabels { runtime, phase: phase.as_str() };
            self.phases.get_or_create(&labels).observe(seconds);
        };
        observe(Phase::Start, report.length.as_secs_f64());
        for part in &report.phases {
            observe(part.phase, part.length.as_secs_f64());
        }
    }

    pub(crate) fn start_failed(&self, runtime: RuntimeName) {
        let runtime = runtime.as_str();
        let labels = StartLabels { runtime, kind: "boot", outcome: "failed" };
        self.starts.get_or_create(&labels).inc();
    }

    pub(crate) fn register(&self, shared: &Arc<Shared>, registry: &mut Registry) {
        let help = "Cold starts by runtime, kind and outcome";
        registry.register("vhive_starts", help, self.starts.clone());
        let help = "Length of cold starts and of their phases";
        let phases = self.phases.clone();
        registry.register_with_unit("vhive_start_phase", help, Unit::Seconds, phases);
        let help = "Snapshots by runtime and outcome";
        registry.register("vhive_snapshot_taken", help, self.taken.clone());
        let help = "Recordings by runtime and outcome";
        registry.register("vhive_recordings", help, self.recordings.clone());
        let help = "Restores that failed and were followed by a boot";
        registry.register("vhive_restore_fallback", help, self.fallbacks.clone());
        let help = "Starts that prefetched and still faulted too often";
        registry.register("vhive_prefetch_missed", help, self.missed.clone());
        let help = "Page faults served up to the first reply, by memory mode";
        registry.register("vhive_restore_faults", help, self.faults.clone());
        let help = "Bytes read of working sets up to the first reply";
        let prefetched = self.prefetched.clone();
        registry.register_with_unit("vhive_prefetched", help, Unit::Bytes, prefetched);
        registry.register_collector(Box::new(Gauges(Arc::downgrade(shared))));
    }
}

/// Reads the present state when a scrape asks.
#[derive(Debug)]
struct Gauges(Weak<Shared>);

impl Collector for Gauges {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(shared) = self.0.upgrade() else { return Ok(()) };
        let views: Vec<PoolView> = shared.pools().iter().map(|pool| pool.view()).collect();
        instances(&views, &mut to)?;
        queues(&views, &mut to)?;
        waiting(&views, &mut to)?;
        let (instances, memory) = shared.budget.usage();
        let (max_instances, max_memory) = shared.budget.bounds();
        let snapshots = shared.snapshots.figures();
        let gauges = [
            ("vhive_snapshots", "Snapshots in the store", u64::from(snapshots.count), None),
            ("vhive_standbys", "VMMs spawned ahead", shared.standbys.count() as u64, None),
            ("vhive_snapshot", "Their size on disk", snapshots.bytes, Some(Unit::Bytes)),
            ("vhive_node_instances", "Instances that the node holds", u64::from(instances), None),
            ("vhive_node_instances_limit", "Most of them", u64::from(max_instances), None),
            ("vhive_node_memory", "Memory reserved", memory.0, Some(Unit::Bytes)),
            ("vhive_node_memory_limit", "Most of it", max_memory.0, Some(Unit::Bytes)),
        ];
        for (name, help, value, unit) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(to.encode_descriptor(
                name,
                help,
                unit.as_ref(),
                gauge.metric_type(),
            )?)?;
        }
        let counters = [
            ("vhive_records", "Invocation records taken", shared.records.pushed()),
            ("vhive_records_dropped", "Records that reached no file", shared.records.dropped()),
            ("vhive_snapshots_retired", "Snapshots found at fault", snapshots.retired),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(to.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

fn instances(views: &[PoolView], to: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let mut family = to.encode_descriptor("vhive_instances", "Instances by state", None, GAUGE)?;
    let states = [
        InstanceState::Starting,
        InstanceState::Ready,
        InstanceState::Unready,
        InstanceState::Leaving,
        InstanceState::Broken,
        InstanceState::Snapshotting,
    ];
    for view in views {
        for state in states {
            let count = view.instances.iter().filter(|i| i.state == state).count();
            let labels = InstanceLabels {
                namespace: view.revision.key.namespace.clone(),
                revision: view.revision.key.name.clone(),
                state: state.as_str(),
            };
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn queues(views: &[PoolView], to: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let mut family =
        to.encode_descriptor("vhive_queued_requests", "Requests waiting for a slot", None, GAUGE)?;
    for view in views {
        let labels = RevisionLabels {
            namespace: view.revision.key.namespace.clone(),
            revision: view.revision.key.name.clone(),
        };
        let gauge = ConstGauge::new(i64::from(view.counts.queued));
        gauge.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Revisions whose snapshot waits for an idle instance, or for room for one of its own.
fn waiting(views: &[PoolView], to: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let help = "Since when a snapshot is wanted and not there";
    let unit = Some(&Unit::Seconds);
    let mut family = to.encode_descriptor("vhive_snapshot_waiting", help, unit, GAUGE)?;
    for view in views {
        let Some(since) = view.snapshot_waits else { continue };
        let labels = RevisionLabels {
            namespace: view.revision.key.namespace.clone(),
            revision: view.revision.key.name.clone(),
        };
        let gauge = ConstGauge::new(since.elapsed().as_secs_f64());
        gauge.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

const GAUGE: prometheus_client::metrics::MetricType = prometheus_client::metrics::MetricType::Gauge;
