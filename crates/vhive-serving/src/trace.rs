//! Traces: the context of a sampled request goes on to its function, and once its record is
//! written, spans are made of it and sent to collectors, away from the request's path.
//!
//! ```text
//!   request ──► begin: read the context, decide, make two ids ──► function (traceparent, b3)
//!                                                                    │
//!   reply (traceresponse) ◄───────────────────────────────────────────┘
//!      └─► record ──► finish ──► bounded queue ──► spans ──► OTLP, Zipkin
//! ```
//!
//! Without a collector nothing of this happens, and contexts pass as they are.

mod context;
mod export;
mod otlp;
mod spans;
mod zipkin;

use std::num::{NonZeroU64, NonZeroU128};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::Method;
use tokio::sync::mpsc;
use vhive_api::InvocationRecord;

use self::context::{Decision, Fields, Forms, Incoming, SpanId, TraceId};
pub(crate) use self::context::{TRACE_RESPONSE, TraceField};
pub(crate) use self::export::{Exporters, check_address};
use crate::config::TracingConfig;

/// What is kept of a sampled request until its record is written.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    id: TraceId,
    /// The client's span.
    parent: Option<SpanId>,
    /// The gateway's span of the request.
    server: SpanId,
    /// The gateway's span of the exchange with the function; the function's parent.
    client: SpanId,
    state: Option<Box<str>>,
    forms: Forms,
    short: bool,
    method: Method,
    path: Box<str>,
    secure: bool,
}

impl Trace {
    /// The fields by which the function learns of it.
    pub(crate) fn each_field(&self, mut put: impl FnMut(&'static str, &str)) {
        put(TraceField::Parent.name(), &format!("00-{}-{}-01", self.id, self.client));
        if let Some(state) = &self.state {
            put(TraceField::State.name(), state);
        }
        let whole = self.id.to_string();
        let trace = if self.short { &whole[16..] } else { &whole[..] };
        if self.forms.single {
            let sampled = if self.forms.debug { "d" } else { "1" };
            let value = format!("{trace}-{}-{sampled}-{}", self.client, self.server);
            put(TraceField::B3.name(), &value);
        }
        if self.forms.multi {
            put(TraceField::B3TraceId.name(), trace);
            put(TraceField::B3SpanId.name(), &self.client.to_string());
            put(TraceField::B3ParentSpanId.name(), &self.server.to_string());
            if self.forms.debug {
                put(TraceField::B3Flags.name(), "1");
            } else {
                put(TraceField::B3Sampled.name(), "1");
            }
        }
    }

    /// What the client is told in [`TRACE_RESPONSE`].
    pub(crate) fn response(&self) -> TraceResponse {
        TraceResponse { id: self.id, server: self.server }
    }
}

/// The value of [`TRACE_RESPONSE`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct TraceResponse {
    id: TraceId,
    server: SpanId,
}

impl std::fmt::Display for TraceResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "00-{}-{}-01", self.id, self.server)
    }
}

/// A sampled request that is over.
#[derive(Debug)]
struct Finished {
    trace: Trace,
    record: Arc<InvocationRecord>,
}

/// What a request is, for its span.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a Method,
    /// Path and query.
    pub(crate) target: &'a str,
    pub(crate) secure: bool,
}

/// What became of the traces for one collector.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) exporter: &'static str,
    /// The collector has taken them.
    pub(crate) exported: AtomicU64,
    /// The queue was full.
    pub(crate) dropped: AtomicU64,
    /// The collector has not taken them.
    pub(crate) failed: AtomicU64,
}

impl Counts {
    fn new(exporter: &'static str) -> Arc<Self> {
        let zero = AtomicU64::default;
        Arc::new(Self { exporter, exported: zero(), dropped: zero(), failed: zero() })
    }
}

/// The gateway's side: decides, makes ids, hands finished requests over.
#[derive(Debug)]
pub(crate) struct Tracer {
    queues: Vec<(mpsc::Sender<Arc<Finished>>, Arc<Counts>)>,
    pub(crate) counts: [Arc<Counts>; 2],
    /// Of all 64-bit numbers, those up to this one are sampled; none if nothing is.
    sampled_to: Option<u64>,
    ids: AtomicU64,
}

impl Tracer {
    /// The tracer, and what sends to the collectors of this configuration, which has been
    /// validated.
    pub(crate) fn new(config: &TracingConfig) -> (Self, Exporters) {
        let counts = [Counts::new("otlp"), Counts::new("zipkin")];
        let (queues, exporters) = export::start(config, &counts);
        let seed = getrandom::u64().expect("the kernel's random source answers after boot");
        let sampled_to = share(config.sample_percent);
        (Self { queues, counts, sampled_to, ids: AtomicU64::new(seed) }, exporters)
    }

    /// Whether there is a collector. Without one, contexts are none of the gateway's business.
    pub(crate) fn is_on(&self) -> bool {
        !self.queues.is_empty()
    }

    /// Looks at a request's context. None if it is not sampled: then its context goes on untouched.
    pub(crate) fn begin<'a>(
        &self,
        fields: impl Iterator<Item = (TraceField, &'a [u8])>,
        asked: &Asked<'_>,
    ) -> Option<Box<Trace>> {
        let mut all = Fields::default();
        for (field, value) in fields {
            all.add(field, value);
        }
        let incoming = if all.is_empty() { Incoming::Nothing } else { all.read() };
        let (remote, decision) = match incoming {
            Incoming::Context(remote) => {
                let decision = remote.decision;
                (Some(remote), decision)
            }
            Incoming::Decision(decision) => (None, decision),
            Incoming::Nothing => (None, Decision::Open),
        };
        if decision == Decision::NotSampled {
            return None;
        }
        let id = remote.as_ref().map_or_else(|| self.new_trace(), |remote| remote.trace);
        if decision == Decision::Open && !self.draws(id) {
            return None;
        }
        let path = asked.target.split('?').next().unwrap_or("/");
        let path: String = path.chars().take(MOST_PATH).collect();
        let (parent, short) = remote.as_ref().map_or((None, false), |r| (Some(r.parent), r.short));
        Some(Box::new(Trace {
            id,
            parent,
            server: self.new_span(),
            client: self.new_span(),
            state: remote.and_then(|remote| remote.state),
            forms: all.forms(),
            short,
            method: asked.method.clone(),
            path: path.into_boxed_str(),
            secure: asked.secure,
        }))
    }

    /// Hands a finished request over, or counts it as dropped. Never waits.
    pub(crate) fn finish(&self, trace: Trace, record: &Arc<InvocationRecord>) {
        let finished = Arc::new(Finished { trace, record: Arc::clone(record) });
        for (queue, counts) in &self.queues {
            if queue.try_send(Arc::clone(&finished)).is_err() {
                counts.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Every node on a trace's way that samples by share and looks at the same bits decides alike.
    ///
    /// # Source
    /// OpenTelemetry's `TraceIdRatioBased`: the lower half of the trace's number.
    fn draws(&self, id: TraceId) -> bool {
        let low = id.0.get() & u128::from(u64::MAX);
        self.sampled_to.is_some_and(|most| low <= u128::from(most))
    }

    fn new_trace(&self) -> TraceId {
        let bits = (u128::from(self.next()) << 64) | u128::from(self.next());
        TraceId(NonZeroU128::new(bits).unwrap_or(NonZeroU128::MIN))
    }

    fn new_span(&self) -> SpanId {
        SpanId(NonZeroU64::new(self.next()).unwrap_or(NonZeroU64::MIN))
    }

    fn next(&self) -> u64 {
        mix(self.ids.fetch_add(STEP, Ordering::Relaxed))
    }
}

/// Most characters of a path in a span.
const MOST_PATH: usize = 256;

const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of `SplitMix64`, a bijection.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The greatest of all 64-bit numbers that belongs to such a share; none for nothing.
fn share(percent: f64) -> Option<u64> {
    if percent <= 0.0 {
        return None;
    }
    if percent >= 100.0 {
        return Some(u64::MAX);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and the greatest number"
    )]
    Some((percent / 100.0 * 18_446_744_073_709_551_616.0) as u64)
}

#[cfg(test)]
mod tests;
