//! vHive's own views: one service in detail, logs, records, the node, metrics, health.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::header;
use serde::Deserialize;
use serde_json::{Value, json};
use vhive_api::{InvocationRecord, SandboxId};
use vhive_node::counters::{Counting, offered};
use vhive_node::{
    InstanceStatus, Line, LogFollower, NotTaken, SnapshotId, StartFailure, StartReport,
};

use super::State;
use super::status::Problem;
use crate::objects;
use crate::status::chain;

/// What may follow `…/describe?`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DescribeQuery {
    /// With the instances' proportional memory, which the kernel takes milliseconds to add up.
    footprint: bool,
    /// With what the instances' processes have used of the host.
    counters: Option<CountersQuery>,
}

/// How much is counted.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CountersQuery {
    Basic,
    All,
}

impl From<CountersQuery> for Counting {
    fn from(asked: CountersQuery) -> Self {
        match asked {
            CountersQuery::Basic => Self::Basic,
            CountersQuery::All => Self::All,
        }
    }
}

/// `GET …/describe`: everything that is known of a service.
pub(super) async fn describe(
    shared: State,
    Path((namespace, name)): Path<(String, String)>,
    query: Result<Query<DescribeQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(query) = query?;
    let services = &shared.services;
    services.settle().await;
    let entry = services.catalog.get(&namespace, &name);
    let entry = entry.ok_or_else(|| Problem::no_service(&name))?;
    let (route, latest) = (entry.latest(), entry.stored.latest());
    let (key, throttle) = (latest.revision.key.clone(), &route.throttle);
    let node = services.node.clone();
    // Reads /proc for each instance.
    let look = move || {
        let status = node.status(&key)?;
        let instances = status.instances.iter().map(|one| instance(one, &query));
        let instances: Vec<Value> = instances.collect();
        Some((status, instances))
    };
    let looked = tokio::task::spawn_blocking(look).await.ok().flatten();
    let (status, instances) = looked.unzip();
    let last_start = status.as_ref().and_then(|status| status.last_start.as_deref());
    let last_failure = status.as_ref().and_then(|status| status.last_failure.as_deref());
    Ok(Json(json!({
        "service": objects::of_service(entry.stored.kind(), &services.catalog, &entry),
        "revision": latest.revision,
        // By which it is listed, if there is one: other snapshots may bear the revision's name.
        "snapshot": SnapshotId::of(&latest.revision).to_string(),
        "no_snapshot": status.as_ref().and_then(|status| status.not_taken.as_ref()).map(not_taken),
        "scaling": latest.rules,
        "ready": status.as_ref().map_or(0, |status| status.ready),
        "starting": status.as_ref().map_or(0, |status| status.starting),
        "in_flight": throttle.in_flight(),
        "queued": throttle.queued(),
        "queue_depth": throttle.depth(),
        "instances": instances.unwrap_or_default(),
        "last_start": last_start.map(start),
        "last_failure": last_failure.map(failure),
    })))
}

/// Why there is no snapshot, and when the next try may be made.
fn not_taken(not_taken: &NotTaken) -> Value {
    json!({"why": not_taken.why, "again_in_s": not_taken.again_in.map(|wait| wait.as_secs())})
}

fn instance(instance: &InstanceStatus, query: &DescribeQuery) -> Value {
    // First, so that it is as near to what is counted as can be.
    let counters = query.counters.map(|asked| instance.counters(asked.into()));
    let footprint = if query.footprint { instance.footprint() } else { None };
    let resident = footprint.map(|found| found.rss).or(instance.memory);
    json!({
        "sandbox": instance.id,
        "state": instance.state.as_str(),
        "leases": instance.leases,
        "since": instance.since,
        "endpoint": instance.endpoint,
        "memory_bytes": resident.map(|bytes| bytes.0),
        "pss_bytes": footprint.map(|found| found.pss.0),
        "paging": instance.paging,
        "counters": counters,
    })
}

fn start(report: &StartReport) -> Value {
    json!({
        "kind": report.kind,
        "sandbox": report.sandbox,
        "at": report.at,
        "length_us": micros(report.length),
        "waited_us": micros(report.waited),
        "attempts": report.attempts,
        "phases": report.spans(report.began),
        "guest_clock_error_us": report.guest_clock_error.map(micros),
        "fallback": report.fallback,
    })
}

fn failure(failure: &StartFailure) -> Value {
    json!({
        "sandbox": failure.sandbox,
        "at": failure.at,
        "length_us": micros(failure.length),
        "error": chain(failure),
        "console": failure.console,
    })
}

fn micros(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// What may follow `…/logs?`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LogQuery {
    follow: bool,
}

/// `GET …/logs`: JSON Lines; with `follow=true`, without end.
pub(super) async fn logs(
    shared: State,
    Path((namespace, name)): Path<(String, String)>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let entry = shared.services.catalog.get(&namespace, &name);
    let entry = entry.ok_or_else(|| Problem::no_service(&name))?;
    let (key, node) = (&entry.latest().revision.key, &shared.services.node);
    let gone = || Problem::no_service(&name);
    let body = if query?.follow {
        let follower = node.follow_logs(key, true).ok_or_else(gone)?;
        Body::from_stream(follow(follower, shared.end.clone()))
    } else {
        let mut text = Vec::new();
        for log in node.logs(key).ok_or_else(gone)? {
            for line in &log.lines {
                write_line(&mut text, &log.sandbox, line);
            }
        }
        Body::from(text)
    };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

type Lines = Result<Bytes, Infallible>;

fn follow(
    follower: LogFollower,
    end: tokio_util::sync::CancellationToken,
) -> impl futures_util::Stream<Item = Lines> + Send {
    futures_util::stream::unfold((follower, end), |(mut follower, end)| async move {
        let lines = tokio::select! {
            lines = follower.next() => lines,
            () = end.cancelled() => return None,
        };
        let mut text = Vec::new();
        for (sandbox, line) in &lines {
            write_line(&mut text, sandbox, line);
        }
        Some((Ok(Bytes::from(text)), (follower, end)))
    })
}

fn write_line(text: &mut Vec<u8>, sandbox: &SandboxId, line: &Line) {
    let at = jiff::Timestamp::try_from(line.at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let value = json!({
        "sandbox": sandbox,
        "number": line.number,
        "at": at,
        "stream": line.stream,
        "text": line.text,
    });
    text.extend_from_slice(value.to_string().as_bytes());
    text.push(b'\n');
}

/// What may follow `/vhive/v1/records?`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RecordQuery {
    namespace: Option<String>,
    service: Option<String>,
    /// Only this invocation.
    id: Option<String>,
    limit: Option<usize>,
    /// With the timelines of faults, which may be a hundred times as long as the rest.
    faults: bool,
}

/// `GET /vhive/v1/records`: the newest records that are kept, oldest first.
pub(super) async fn records(
    shared: State,
    query: Result<Query<RecordQuery>, QueryRejection>,
) -> Result<Json<Vec<Arc<InvocationRecord>>>, Problem> {
    let Query(query) = query?;
    let wanted = |record: &&Arc<InvocationRecord>| {
        query.namespace.as_ref().is_none_or(|namespace| *namespace == record.namespace)
            && query.service.as_ref().is_none_or(|service| *service == record.service)
            && query.id.as_ref().is_none_or(|id| id == record.id.as_str())
    };
    let shown = |record: &Arc<InvocationRecord>| match record.fault_timeline {
        Some(_) if !query.faults => {
            let mut short = InvocationRecord::clone(record);
            short.fault_timeline = None;
            Arc::new(short)
        }
        _ => Arc::clone(record),
    };
    shared.gateway.ledger.write();
    let all = shared.services.node.records().recent(usize::MAX);
    let limit = query.limit.unwrap_or(100);
    let mut found: Vec<_> = all.iter().rev().filter(wanted).take(limit).map(shown).collect();
    found.reverse();
    Ok(Json(found))
}

/// `GET /vhive/v1/node`.
pub(super) async fn node(shared: State) -> Json<Value> {
    let (services, node) = (&shared.services, &shared.services.node);
    let runtimes: Vec<&str> = node.runtimes().names().map(vhive_api::RuntimeName::as_str).collect();
    let accelerators = node.runtimes().names().filter_map(|name| {
        let known = node.runtimes().get(name)?.known_accelerator()?;
        Some((name.as_str().to_owned(), json!(known)))
    });
    let accelerators: serde_json::Map<String, Value> = accelerators.collect();
    let config = node.config();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "gateway": shared.gateway_address.to_string(),
        "api": shared.api_address.to_string(),
        "domain": services.config.gateway.domain,
        "runtimes": runtimes,
        "accelerators": accelerators,
        "default_runtime": services.config.defaults.runtime,
        "max_instances": config.max_instances,
        "max_memory_bytes": config.max_memory().0,
        "start_threads": config.start_threads(),
        "cpus": config.cpus,
        "counters": offered(),
        "state_dir": config.state_dir,
        "run_dir": node.run_root().dir(),
        "revisions": node.revisions().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "records": {"written": node.records().pushed(), "dropped": node.records().dropped()},
        "process": std::process::id(),
    }))
}

/// `GET /metrics`, in OpenMetrics text.
pub(super) async fn metrics(shared: State) -> Result<Response, Problem> {
    shared.gateway.ledger.write();
    let mut registry = prometheus_client::registry::Registry::default();
    shared.services.node.register_metrics(&mut registry);
    crate::metrics::register(&shared.gateway, &mut registry);
    crate::eventing::register(Arc::clone(&shared.gateway.eventing), &mut registry);
    let mut text = String::new();
    let encoded = prometheus_client::encoding::text::encode(&mut text, &registry);
    encoded.map_err(|_| Problem::bad_request("metrics cannot be encoded"))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// `GET /healthz`.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}
