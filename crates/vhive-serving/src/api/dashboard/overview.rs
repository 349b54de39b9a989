//! `GET /vhive/v1/overview`: the node at a glance.
//!
//! Made to be asked for every second: it takes counters and states from memory, goes once through
//! the records that are kept, and neither reads `/proc` nor waits for a change. Of many services,
//! instances and snapshots it shows the liveliest and says how many there are.

use std::cmp::Reverse;
use std::collections::HashSet;

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::response::{IntoResponse as _, Response};
use http::header;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use vhive_api::{InvocationRecord, Revision, RevisionKey};
use vhive_node::{RevisionStanding, StartReport};

use super::super::status::Problem;
use super::super::{Shared, State};
use super::recent::{Lately, history};
use crate::catalog::{Entry, Route};
use crate::status::chain;

/// Most rows of each list.
const SERVICES: usize = 200;
const INSTANCES: usize = 200;
const SNAPSHOTS: usize = 100;
const STARTS: usize = 12;
/// How far back the history reaches, in seconds.
const HISTORY: i64 = 300;
/// Most letters of a message.
const MESSAGE: usize = 2000;

/// What may follow `/vhive/v1/overview?`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(in crate::api) struct OverviewQuery {
    /// With the last minutes second by second, as far as records are kept.
    history: bool,
}

/// `GET /vhive/v1/overview`.
pub(in crate::api) async fn overview(
    shared: State,
    query: Result<Query<OverviewQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    shared.gateway.ledger.write();
    let (services, now) = (&shared.services, Timestamp::now());
    let records = services.node.records().recent(usize::MAX);
    let lately = Lately::of(&records, now);

    let living: Vec<Living> =
        services.catalog.list(None).into_iter().map(|entry| Living::of(&shared, entry)).collect();
    let totals = totals(&living);
    let rows: Vec<Value> = liveliest(&living).map(|one| one.row(&shared, &lately)).collect();

    let mut view = json!({
        "at": now,
        "node": node(&shared),
        "requests": {
            "ended": totals.ended,
            "failed": totals.failed,
            "in_flight": totals.in_flight,
            "queued": totals.queued,
            "now": lately.now,
            "minute": lately.minute,
        },
        "services": rows,
        "services_total": living.len(),
        "instances": instances(&shared, &living),
        "instances_ready": totals.ready,
        "instances_starting": totals.starting,
        "starts": starts(&services.node.records().recent_starts(), &living),
    });
    snapshots(&shared, &mut view);
    if query.history {
        let full = records.len() >= services.node.config().records.recent as usize;
        view["history"] = json!(history(&records, full, now, HISTORY));
    }
    let headers =
        [(header::CACHE_CONTROL, "no-store"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, Json(view)).into_response())
}

/// A service with what its revisions do.
struct Living {
    entry: Entry,
    /// One for each of the entry's routes.
    standings: Vec<RevisionStanding>,
    totals: Totals,
}

#[derive(Clone, Copy, Default)]
struct Totals {
    ended: u64,
    failed: u64,
    in_flight: u64,
    queued: u64,
    ready: u64,
    starting: u64,
}

/// As many services as are shown, by name: of more, those that do the most.
fn liveliest(living: &[Living]) -> impl Iterator<Item = &Living> {
    let mut order: Vec<usize> = (0..living.len()).collect();
    if order.len() > SERVICES {
        // Stable: those alike stay in the order of their names.
        order.sort_by_key(|at| Reverse(living[*at].liveliness()));
        order.truncate(SERVICES);
        order.sort_unstable();
    }
    order.into_iter().map(|at| &living[at])
}

fn totals(living: &[Living]) -> Totals {
    living.iter().fold(Totals::default(), |sum, one| sum.plus(one.totals))
}

impl Totals {
    fn of(route: &Route, standing: &RevisionStanding) -> Self {
        let (ended, failed) = route.metrics.ended();
        Self {
            ended,
            failed,
            in_flight: route.throttle.in_flight().into(),
            queued: route.throttle.queued().into(),
            ready: standing.counts.ready.into(),
            starting: standing.counts.starting.into(),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            ended: self.ended + other.ended,
            failed: self.failed + other.failed,
            in_flight: self.in_flight + other.in_flight,
            queued: self.queued + other.queued,
            ready: self.ready + other.ready,
            starting: self.starting + other.starting,
        }
    }
}

impl Living {
    fn of(shared: &Shared, entry: Entry) -> Self {
        let node = &shared.services.node;
        let standing =
            |route: &std::sync::Arc<Route>| node.standing(&route.revision.key).unwrap_or_default();
        let standings: Vec<_> = entry.routes.iter().map(standing).collect();
        let each = entry.routes.iter().zip(&standings);
        let totals = each
            .map(|(route, standing)| Totals::of(route, standing))
            .fold(Totals::default(), Totals::plus);
        Self { entry, standings, totals }
    }

    fn liveliness(&self) -> (bool, bool, bool) {
        let totals = self.totals;
        let failed = self.standings.iter().any(|one| one.failure().is_some());
        (totals.in_flight > 0, totals.ready + totals.starting > 0, failed)
    }

    fn routes(&self) -> impl Iterator<Item = (&Revision, &RevisionStanding)> {
        self.entry.routes.iter().map(|route| route.revision.as_ref()).zip(&self.standings)
    }

    /// The failure that is the state of one of its revisions.
    fn failure(&self) -> Option<String> {
        let failure = self.standings.iter().rev().find_map(RevisionStanding::failure)?;
        let mut text = chain(failure.as_ref());
        for line in &failure.console {
            text.push('\n');
            text.push_str(line);
        }
        let cut = text.char_indices().nth(MESSAGE).map_or(text.len(), |(at, _)| at);
        text.truncate(cut);
        Some(text)
    }

    fn row(&self, shared: &Shared, lately: &Lately<'_>) -> Value {
        let (stored, totals) = (&self.entry.stored, self.totals);
        let host = shared.services.catalog.host(stored);
        let traffic = stored.routed.iter().map(|assigned| {
            json!({
                "revision": assigned.revision,
                "percent": assigned.percent,
                "tag": assigned.tag,
                "latest": assigned.latest,
            })
        });
        json!({
            "namespace": stored.namespace,
            "name": stored.name,
            "host": host,
            "url": if stored.standalone { "".to_owned() } else { format!("http://{host}") },
            "labels": stored.labels,
            "image": stored.latest().revision.image,
            "runtime": stored.latest().revision.runtime,
            "latest_revision": stored.latest().name(),
            "revisions": stored.revisions.len(),
            "ready": !stored.routed.is_empty()
                || stored.standalone && stored.revisions.iter().any(|one| one.ready),
            "failure": self.failure(),
            "instances_ready": totals.ready,
            "instances_starting": totals.starting,
            "in_flight": totals.in_flight,
            "queued": totals.queued,
            "ended": totals.ended,
            "failed": totals.failed,
            "latency": lately.service(&stored.namespace, &stored.name),
            "traffic": traffic.collect::<Vec<_>>(),
        })
    }
}

fn node(shared: &Shared) -> Value {
    let (services, node) = (&shared.services, &shared.services.node);
    let runtimes = node.runtimes().names().map(|name| {
        let accelerator = node.runtimes().get(name).and_then(|one| one.known_accelerator());
        json!({"name": name, "accelerator": accelerator})
    });
    let room = node.room();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "gateway": shared.gateway_address.to_string(),
        "domain": services.config.gateway.domain,
        "process": std::process::id(),
        "default_runtime": services.config.defaults.runtime,
        "runtimes": runtimes.collect::<Vec<_>>(),
        "instances": room.instances,
        "max_instances": room.max_instances,
        "memory_bytes": room.memory.0,
        "max_memory_bytes": room.max_memory.0,
        "records": {"written": node.records().pushed(), "dropped": node.records().dropped()},
    })
}

fn instances(shared: &Shared, living: &[Living]) -> Vec<Value> {
    let running = living.iter().filter(|one| one.totals.ready + one.totals.starting > 0);
    let keys = running.flat_map(|one| one.routes().map(|(revision, _)| &revision.key));
    let of = |key: &RevisionKey| {
        let (revision, instances) = shared.services.node.instances(key)?;
        Some(instances.into_iter().map(move |one| {
            json!({
                "sandbox": one.id,
                "namespace": revision.key.namespace,
                "service": revision.service,
                "revision": revision.key.name,
                "runtime": revision.runtime,
                "state": one.state.as_str(),
                "in_flight": one.leases,
                "since": one.since,
            })
        }))
    };
    keys.filter_map(of).flatten().take(INSTANCES).collect()
}

/// The last cold starts, newest first: those that a request waited for, whole, and of each revision
/// the last one even if nobody did.
fn starts(records: &[std::sync::Arc<InvocationRecord>], living: &[Living]) -> Vec<Value> {
    let known: HashSet<_> = records.iter().filter_map(|record| record.sandbox.as_ref()).collect();
    let unseen = living.iter().flat_map(Living::routes).filter_map(|(revision, standing)| {
        let report = standing.last_start.as_deref()?;
        (!known.contains(&report.sandbox)).then(|| (report.at, unwaited(revision, report)))
    });
    let mut all: Vec<(Timestamp, Value)> = unseen.collect();
    all.extend(records.iter().map(|record| (record.at, told(record))));
    all.sort_by_key(|(at, _)| Reverse(*at));
    all.into_iter().take(STARTS).map(|(_, start)| start).collect()
}

fn told(record: &InvocationRecord) -> Value {
    json!({
        "at": record.at,
        "namespace": record.namespace,
        "service": record.service,
        "revision": record.revision,
        "runtime": record.runtime,
        "sandbox": record.sandbox,
        "kind": record.start,
        "status": record.status,
        "fallback": record.fallback,
        "phases": record.phases,
    })
}

fn unwaited(revision: &Revision, report: &StartReport) -> Value {
    json!({
        "at": report.at,
        "namespace": revision.key.namespace,
        "service": revision.service,
        "revision": revision.key.name,
        "runtime": revision.runtime,
        "sandbox": report.sandbox,
        "kind": report.kind,
        "status": null,
        "fallback": report.fallback,
        "phases": report.spans(report.began),
    })
}

fn snapshots(shared: &Shared, view: &mut Value) {
    let mut all = shared.services.node.snapshots().list();
    view["snapshots_total"] = json!(all.len());
    view["snapshots_bytes"] = json!(all.iter().map(|one| one.allocated.0).sum::<u64>());
    all.sort_by_key(|one| Reverse(one.used));
    let shown = all.iter().take(SNAPSHOTS).map(|one| {
        json!({
            "digest": one.digest,
            "namespace": one.revision.namespace,
            "revision": one.revision.name,
            "runtime": one.runtime,
            "taken": one.taken,
            "used": one.used,
            "memory_bytes": one.memory.0,
            "allocated_bytes": one.allocated.0,
            "working_sets": one.working_sets.len(),
            "clones": one.clones,
            "stale": one.stale.is_some(),
        })
    });
    view["snapshots"] = json!(shown.collect::<Vec<_>>());
}
