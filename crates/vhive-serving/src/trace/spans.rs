//! What an invocation's record becomes: spans, with the parents that its phases have.

use vhive_api::{InvocationRecord, Outcome, Phase, PhaseSpan, StartKind};

use super::context::SpanId;
use super::{Finished, STEP, Trace, mix};

/// One span, in no collector's words.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) id: SpanId,
    pub(super) parent: Option<SpanId>,
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Microseconds since 1970.
    pub(super) begin_us: u64,
    pub(super) length_us: u64,
    pub(super) attributes: Vec<(&'static str, Value)>,
    /// Why it went wrong.
    pub(super) error: Option<String>,
}

/// Whose work a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Serving the client.
    Server,
    /// Waiting for the function.
    Client,
    Internal,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Whole(i64),
    Flag(bool),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Whole(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

/// The spans of an invocation, parents first.
pub(super) fn spans(finished: &Finished) -> Vec<Span> {
    let Finished { trace, record } = finished;
    let origin = record.at.as_microsecond();
    let at = |begin_us: i64| u64::try_from(origin.saturating_add(begin_us)).unwrap_or(0);
    let mut spans = Vec::with_capacity(record.phases.len() + 1);
    for phase in &record.phases {
        let mut span = Span {
            id: id_of(trace, phase.phase),
            parent: phase.phase.parent().map(|parent| id_of(trace, parent)),
            name: phase.phase.as_str().to_owned(),
            kind: Kind::Internal,
            begin_us: at(phase.begin_us),
            length_us: phase.length_us,
            attributes: Vec::new(),
            error: None,
        };
        match phase.phase {
            Phase::Total => describe_request(&mut span, trace, record),
            Phase::Request => {
                span.kind = Kind::Client;
                span.attributes.extend(instance(record));
            }
            Phase::Queue => span.length_us = waited(record, phase.length_us),
            Phase::Start => describe_start(&mut span, record),
            _ => {}
        }
        spans.push(span);
    }
    if let Some(prefetch) = prefetch(record) {
        spans.push(Span {
            id: numbered(trace, u64::MAX),
            parent: Some(id_of(trace, Phase::Start)),
            name: "prefetch".to_owned(),
            kind: Kind::Internal,
            begin_us: at(prefetch.0),
            length_us: prefetch.1,
            attributes: Vec::new(),
            error: None,
        });
    }
    spans
}

fn id_of(trace: &Trace, phase: Phase) -> SpanId {
    match phase {
        Phase::Total => trace.server,
        Phase::Request => trace.client,
        other => numbered(trace, other as u64),
    }
}

/// A number that follows from the request's, so that every collector gets the same.
fn numbered(trace: &Trace, which: u64) -> SpanId {
    let mixed = mix(trace.server.0.get().wrapping_add(STEP.wrapping_mul(which.wrapping_add(1))));
    SpanId(std::num::NonZeroU64::new(mixed).unwrap_or(std::num::NonZeroU64::MIN))
}

/// From when to when the pager prefetched, if that is known.
fn prefetch(record: &InvocationRecord) -> Option<(i64, u64)> {
    let length = record.memory.map(|memory| memory.prefetch_us).filter(|length| *length > 0)?;
    let attached = record.fault_timeline.as_ref()?.attached_us;
    record.phases.iter().any(|span| span.phase == Phase::Start).then_some((attached, length))
}

/// How long the request waited in all. The record's phase leaves the start out, because its
/// phases are added up; a span has a beginning and an end.
fn waited(record: &InvocationRecord, without_start: u64) -> u64 {
    let Some(start) = record.phases.iter().find(|span| span.phase == Phase::Start) else {
        return without_start;
    };
    let PhaseSpan { begin_us, length_us, .. } = *start;
    let begin = u64::try_from(begin_us).unwrap_or(0);
    let end = i64::try_from(length_us).unwrap_or(i64::MAX).saturating_add(begin_us);
    let within = u64::try_from(end).unwrap_or(0).saturating_sub(begin);
    if without_start < begin { without_start } else { without_start.saturating_add(within) }
}

/// # Source
/// OpenTelemetry's semantic conventions for HTTP servers and for functions (`faas.…`).
fn describe_request(span: &mut Span, trace: &Trace, record: &InvocationRecord) {
    span.parent = trace.parent;
    span.kind = Kind::Server;
    span.name = format!("{} {}.{}", trace.method, record.service, record.namespace);
    let cold = record.start.is_some_and(|start| start != StartKind::Warm);
    let scheme = if trace.secure { "https" } else { "http" };
    span.attributes.extend([
        ("http.request.method", trace.method.as_str().into()),
        ("url.path", (&*trace.path).into()),
        ("url.scheme", scheme.into()),
        ("http.request.body.size", record.request_bytes.into()),
        ("http.response.body.size", record.response_bytes.into()),
        ("faas.name", record.service.as_str().into()),
        ("faas.version", record.revision.as_str().into()),
        ("faas.trigger", "http".into()),
        ("faas.invocation_id", record.id.as_str().into()),
        ("faas.coldstart", cold.into()),
        ("vhive.namespace", record.namespace.as_str().into()),
        ("vhive.runtime", record.runtime.as_str().into()),
        ("vhive.outcome", outcome(&record.outcome).into()),
    ]);
    if record.status > 0 {
        span.attributes.push(("http.response.status_code", u64::from(record.status).into()));
    }
    if let Some(start) = record.start {
        span.attributes.push(("vhive.start", start.as_str().into()));
    }
    span.attributes.extend(instance(record));
    let ours = !matches!(record.outcome, Outcome::Replied | Outcome::ClientGone);
    if ours || record.status >= 500 {
        let reason = record.error.clone();
        span.error = Some(reason.unwrap_or_else(|| format!("status {}", record.status)));
        let kind =
            if ours { outcome(&record.outcome).to_owned() } else { record.status.to_string() };
        span.attributes.push(("error.type", Value::Text(kind)));
    }
}

fn instance(record: &InvocationRecord) -> Option<(&'static str, Value)> {
    record.sandbox.as_ref().map(|sandbox| ("faas.instance", sandbox.as_str().into()))
}

fn describe_start(span: &mut Span, record: &InvocationRecord) {
    let attributes = &mut span.attributes;
    if let Some(start) = record.start {
        attributes.push(("vhive.start", start.as_str().into()));
    }
    attributes.push(("vhive.runtime", record.runtime.as_str().into()));
    if let Some(fallback) = &record.fallback {
        attributes.push(("vhive.fallback", fallback.as_str().into()));
    }
    if let Some(error) = record.guest_clock_error_us {
        attributes.push(("vhive.guest_clock_error_us", error.into()));
    }
    let Some(memory) = record.memory else { return };
    attributes.extend([
        ("vhive.memory.mode", memory.mode.as_str().into()),
        ("vhive.memory.fault_pages", memory.fault_pages.into()),
        ("vhive.memory.zero_pages", memory.zero_pages.into()),
        ("vhive.memory.prefetched_pages", memory.prefetched_pages.into()),
        ("vhive.memory.prefetched_bytes", memory.prefetched_bytes.into()),
        ("vhive.memory.wait_us", memory.wait_us.into()),
    ]);
    if let Some(policy) = memory.prefetch {
        attributes.push(("vhive.memory.prefetch", policy.as_str().into()));
    }
    if let Some(faults) = memory.faults {
        attributes.push(("vhive.memory.faults", faults.into()));
    }
}

fn outcome(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Replied => "replied",
        Outcome::ClientGone => "client-gone",
        Outcome::TimedOut => "timed-out",
        Outcome::Refused => "refused",
        Outcome::StartFailed => "start-failed",
        Outcome::InstanceFailed => "instance-failed",
    }
}

#[cfg(test)]
mod tests;
