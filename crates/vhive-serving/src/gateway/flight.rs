//! What the gateway keeps about a client's connection and about each request on it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::request::Parts;
use tokio::time::Instant;
use vhive_api::{
    FaultTimeline, InvocationId, InvocationRecord, MemoryFigures, Outcome, Phase, PhaseSpan,
    RECORD_VERSION, StartKind,
};
use vhive_node::Lease;

use super::Gateway;
use super::field::Field;
use super::timer::{Lost, Silence, Timer};
use super::upgrade::Tunnel;
use super::upload::Uploaded;
use super::upstream::Connection;
use crate::catalog::{Choice, Route};
use crate::status::GatewayError;
use crate::trace::{Asked, Trace, TraceField, TraceResponse};

/// One client connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) gateway: Arc<Gateway>,
    /// The client's address without port.
    pub(super) address: Box<str>,
    /// Whether it speaks TLS.
    pub(super) secure: bool,
    /// It should make room for others, if it serves nothing.
    dismissed: AtomicBool,
    /// It has not taken all that was written to it.
    blocked: AtomicBool,
    state: Mutex<ClientState>,
}

#[derive(Debug)]
struct ClientState {
    /// Requests being served, with their deadlines.
    flights: Vec<(u64, Instant)>,
    idle_since: Instant,
    /// Requests whose reply is complete, until it has been handed to the kernel.
    #[expect(clippy::vec_box, reason = "a flight is moved around as a pointer")]
    done: Vec<Box<Flight>>,
    timers: Vec<Timer>,
    /// What the connection becomes when hyper is through with it.
    tunnel: Option<Box<Tunnel>>,
    closed: bool,
    /// Of the task that serves it.
    waker: Option<Waker>,
}

impl Client {
    pub(super) fn new(gateway: Arc<Gateway>, address: Box<str>, secure: bool) -> Arc<Self> {
        let state = ClientState {
            flights: Vec::new(),
            idle_since: Instant::now(),
            done: Vec::new(),
            timers: Vec::new(),
            tunnel: None,
            closed: false,
            waker: None,
        };
        let (dismissed, blocked) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { gateway, address, secure, dismissed, blocked, state: Mutex::new(state) })
    }

    /// Ends complete requests; called when their replies have been written.
    pub(super) fn settle(&self) {
        let mut now = None;
        while let Some(mut flight) = self.take_done() {
            flight.land(*now.get_or_insert_with(Instant::now));
            self.gateway.ledger.put(flight);
        }
    }

    fn take_done(&self) -> Option<Box<Flight>> {
        self.state().done.pop()
    }

    /// Leaves what the connection becomes.
    pub(super) fn leave_tunnel(&self, tunnel: Box<Tunnel>) {
        self.state().tunnel = Some(tunnel);
    }

    /// Takes what the connection becomes.
    pub(super) fn take_tunnel(&self) -> Option<Box<Tunnel>> {
        self.state().tunnel.take()
    }

    /// The connection is gone: nothing will be settled any more.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.settle();
    }

    /// When the connection should be looked at again if nothing happens, and whether it should be
    /// given up now: idle for too long, or a request is overdue although its reply is waiting to be
    /// written, so that the client does not read.
    pub(super) fn check(&self, now: Instant, idle: Duration) -> Check {
        let state = self.state();
        match state.flights.iter().map(|(_, deadline)| *deadline).min() {
            None if state.idle_since + idle <= now => Check::Idle,
            None => Check::Again(state.idle_since + idle),
            Some(deadline) if deadline + OVERDUE <= now => Check::Overdue,
            Some(deadline) => Check::Again(deadline + OVERDUE),
        }
    }

    /// Which task is to be woken when it should go.
    pub(super) fn wake_by(&self, waker: &Waker) {
        self.state().waker = Some(waker.clone());
    }

    /// Whether it has yet to take what was written to it.
    pub(super) fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::Relaxed);
    }

    /// Asks it to go, unless it serves something or has done so a moment ago.
    pub(super) fn dismiss(&self, now: Instant) -> bool {
        let state = self.state();
        let serves = !state.flights.is_empty() || self.blocked.load(Ordering::Relaxed);
        if serves || state.idle_since + SETTLED > now {
            return false;
        }
        let Some(waker) = &state.waker else { return false };
        self.dismissed.store(true, Ordering::Release);
        waker.wake_by_ref();
        true
    }

    /// Whether it should go. A request that has come meanwhile keeps it.
    pub(super) fn is_dismissed(&self) -> bool {
        if !self.dismissed.load(Ordering::Acquire) {
            return false;
        }
        let idle = !self.blocked.load(Ordering::Relaxed) && self.state().flights.is_empty();
        self.dismissed.store(idle, Ordering::Release);
        idle
    }

    /// Notes a request.
    fn begin(&self, id: u64, deadline: Instant) {
        self.state().flights.push((id, deadline));
    }

    /// Counts as serving a request until the guard is dropped.
    pub(super) fn busy(self: &Arc<Self>, id: u64, deadline: Instant) -> Busy {
        self.begin(id, deadline);
        Busy { client: Arc::clone(self), id }
    }

    /// A timer for a request with this deadline.
    fn timer(&self, deadline: Instant) -> Timer {
        let timer = self.state().timers.pop();
        match timer {
            Some(mut timer) => {
                timer.set(deadline);
                timer
            }
            None => Timer::new(deadline),
        }
    }

    fn end(&self, id: u64, timer: Option<Timer>, now: Instant) {
        let mut state = self.state();
        state.flights.retain(|(other, _)| *other != id);
        if state.flights.is_empty() {
            state.idle_since = now;
        }
        if let Some(timer) = timer
            && state.timers.len() < KEPT_TIMERS
        {
            state.timers.push(timer);
        }
    }

    fn park(&self, flight: Box<Flight>) {
        let mut state = self.state();
        if state.closed {
            drop(state);
            drop(flight);
        } else {
            state.done.push(flight);
        }
    }

    fn state(&self) -> MutexGuard<'_, ClientState> {
        // Nothing panics while it holds the lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client that is being served something that has no flight.
#[derive(Debug)]
pub(super) struct Busy {
    client: Arc<Client>,
    id: u64,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.client.end(self.id, None, Instant::now());
    }
}

/// Timers kept for later requests of a connection.
const KEPT_TIMERS: usize = 8;

/// How long a client may be idle before it has to make room for others.
const SETTLED: Duration = Duration::from_secs(1);

/// How long after its deadline a request is still given to notice that by itself.
const OVERDUE: Duration = Duration::from_secs(1);

/// What [`Client::check`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Again(Instant),
    Idle,
    Overdue,
}

/// One request from its head to the last byte of its reply. Dropping it writes its record.
#[derive(Debug)]
pub(super) struct Flight {
    client: Arc<Client>,
    /// The host that was asked for, unless it is that of the revision's service.
    host: Option<Box<str>>,
    pub(super) route: Arc<Route>,
    number: u64,
    id: InvocationId,
    began: Instant,
    timer: Option<Timer>,
    pub(super) lease: Option<Lease>,
    served_by: Option<Served>,
    /// When it got its lease, if it had to wait.
    leased: Option<Instant>,
    forwarded: Option<Instant>,
    /// Counted elsewhere, and counted here.
    pub(super) uploaded: Option<Uploaded>,
    pub(super) sent: u64,
    pub(super) downloaded: u64,
    status: u16,
    /// What the function says of it in gRPC's words is its own failure.
    grpc_failed: bool,
    outcome: Option<Outcome>,
    error: Option<String>,
    ended: Option<Instant>,
    /// Read for many records at once.
    pub(super) clock: Option<Clock>,
    /// When the function must have said something, of a revision that bounds that.
    silence: Option<Box<Silence>>,
    /// Of a sampled request.
    pub(super) trace: Option<Box<Trace>>,
}

/// The instance that served, as the record tells it.
#[derive(Debug)]
struct Served {
    sandbox: vhive_api::SandboxId,
    /// The start that the request waited for.
    cold: Option<Box<Cold>>,
}

#[derive(Debug)]
struct Cold {
    kind: StartKind,
    spans: Vec<PhaseSpan>,
    clock_error: Option<Duration>,
    fallback: Option<String>,
    memory: Option<MemoryFigures>,
    timeline: Option<Arc<FaultTimeline>>,
}

/// Codes of gRPC by which a function says that it has failed, and not that it was asked something wrong: unknown,
/// deadline exceeded, internal, unavailable, data loss.
const GRPC_FAILURES: [&str; 5] = ["2", "4", "13", "14", "15"];

impl Flight {
    /// Counts a request in.
    pub(super) fn begin(
        client: &Arc<Client>,
        choice: Choice,
        host: &str,
        began: Instant,
    ) -> Box<Self> {
        let route = choice.route;
        let number = client.gateway.next_id();
        client.begin(number, began + route.revision.timeout);
        route.throttle.enter(began);
        Box::new(Self {
            client: Arc::clone(client),
            host: (!choice.of_service).then(|| super::without_port(host).into()),
            route,
            number,
            id: InvocationId::from_bits(number),
            began,
            timer: None,
            lease: None,
            served_by: None,
            leased: None,
            forwarded: None,
            uploaded: None,
            sent: 0,
            downloaded: 0,
            status: 0,
            grpc_failed: false,
            outcome: None,
            error: None,
            ended: None,
            clock: None,
            silence: None,
            trace: None,
        })
    }

    pub(super) fn id(&self) -> InvocationId {
        self.id
    }

    /// Looks at the request's trace context, if anybody wants to know of traces.
    pub(super) fn trace<'a>(
        &mut self,
        fields: impl Iterator<Item = (TraceField, &'a [u8])>,
        asked: &Asked<'_>,
    ) {
        self.trace = self.client.gateway.tracer.begin(fields, asked);
    }

    /// As [`Flight::trace`], of a request that hyper has read.
    pub(super) fn trace_from(&mut self, parts: &Parts) {
        if !self.client.gateway.tracer.is_on() {
            return;
        }
        let fields = parts.headers.iter().filter_map(|(name, value)| {
            Some((Field::of(name.as_str().as_bytes()).of_trace()?, value.as_bytes()))
        });
        let target = parts.uri.path();
        let asked = Asked { method: &parts.method, target, secure: self.client.secure };
        self.trace(fields, &asked);
    }

    /// What the client is told of its trace.
    pub(super) fn trace_response(&self) -> Option<TraceResponse> {
        self.trace.as_ref().map(|trace| trace.response())
    }

    /// The client's address and the gateway.
    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// The host that was asked for, unless it is that of the revision's service.
    pub(super) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Goes on with another revision, because this one has been replaced.
    pub(super) fn reroute(&mut self, route: Arc<Route>) {
        let now = Instant::now();
        self.route.throttle.leave(now);
        route.throttle.enter(now);
        self.route = route;
    }

    /// Keeps the lease until the reply has been read.
    pub(super) fn hold(&mut self, lease: Lease, waited: bool) {
        if waited {
            self.leased = Some(Instant::now());
        }
        let cold = lease.start().map(|report| {
            Box::new(Cold {
                kind: report.kind,
                spans: report.spans(self.began.into_std()),
                clock_error: report.guest_clock_error,
                fallback: report.fallback.clone(),
                memory: None,
                timeline: None,
            })
        });
        self.served_by = Some(Served { sandbox: lease.sandbox().clone(), cold });
        self.lease = Some(lease);
    }

    /// The request leaves for the instance.
    pub(super) fn forward(&mut self) {
        self.forwarded = Some(self.leased.unwrap_or(self.began));
    }

    /// When the reply must be complete.
    pub(super) fn deadline(&self) -> Instant {
        self.began + self.route.revision.timeout
    }

    /// When the reply must have begun.
    pub(super) fn head_deadline(&self) -> Instant {
        let bound = self.route.revision.response_start_timeout;
        bound.map_or(self.deadline(), |bound| self.deadline().min(self.began + bound))
    }

    /// What is said when the reply has not begun in time.
    pub(super) fn late(&self, doing: &'static str) -> GatewayError {
        let revision = &self.route.revision;
        let bound = revision.response_start_timeout.filter(|bound| *bound < revision.timeout);
        match bound {
            Some(limit) => GatewayError::NotBegun { limit, doing },
            None => GatewayError::TimedOut { limit: revision.timeout, doing },
        }
    }

    /// A timer for the reply's beginning, to be put back with [`Flight::put_timer`].
    pub(super) fn start_timer(&self) -> Timer {
        self.client.timer(self.head_deadline())
    }

    /// From now on for the reply's end.
    pub(super) fn put_timer(&mut self, mut timer: Timer) {
        timer.set(self.deadline());
        self.timer = Some(timer);
    }

    /// Ready once the deadline has passed.
    pub(super) fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.timer.as_mut().map_or(Poll::Pending, |timer| timer.poll(cx))
    }

    /// Ready once something is to be given up that waits for the function's next byte: the function
    /// has ended, or has said nothing for as long as its revision allows.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<Lost> {
        if self.poll_ended(cx).is_ready() {
            return Poll::Ready(Lost::Ended);
        }
        let Some(limit) = self.route.revision.idle_timeout else { return Poll::Pending };
        let silence = self.silence.get_or_insert_with(|| Box::new(Silence::new(limit)));
        silence.poll(cx).map(Lost::Silent)
    }

    /// The function has said something, or it is not its turn.
    pub(super) fn hear(&mut self) {
        if let Some(silence) = &mut self.silence {
            silence.end();
        }
    }

    /// The function has said something if an interim reply has come.
    pub(super) fn hear_interim(&mut self, connection: &mut Connection) {
        if connection.take_interim() {
            self.hear();
        }
    }

    /// Ready once the instance that serves it has ended.
    pub(super) fn poll_ended(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.lease.as_mut().map_or(Poll::Pending, |lease| lease.poll_ended(cx))
    }

    /// The reply's head is there.
    pub(super) fn set_status(&mut self, status: http::StatusCode) {
        self.status = status.as_u16();
        self.hear();
    }

    /// What a gRPC function says at its reply's end, or in the head of one without content.
    pub(super) fn set_grpc_status(&mut self, fields: &http::HeaderMap) {
        if let Some(code) = fields.get("grpc-status") {
            self.grpc_failed = GRPC_FAILURES.iter().any(|failure| code == failure);
        }
    }

    /// How it ends; only the first word counts.
    fn conclude(&mut self, outcome: Outcome, error: Option<String>) {
        if self.outcome.is_none() {
            self.outcome = Some(outcome);
            self.error = error;
        }
    }

    /// The function's reply has been read to its end: the slot goes back at once. A function that says that it has
    /// failed may be sick from the beginning, so that reply is no occasion for a snapshot or the end of a recording.
    pub(super) fn replied(&mut self) {
        self.conclude(Outcome::Replied, None);
        if let Some(lease) = self.lease.take() {
            if let Some(cold) = self.served_by.as_mut().and_then(|served| served.cold.as_mut()) {
                let arrival = lease.arrival(self.began.into_std());
                cold.memory = arrival.as_ref().map(|arrival| arrival.figures);
                cold.timeline = arrival.and_then(|arrival| arrival.timeline).map(Arc::new);
            }
            if self.status < 500 && !self.grpc_failed {
                lease.replied();
            }
        }
    }

    /// As [`Flight::replied`]; the record is written when the client has the reply.
    pub(super) fn complete(mut self: Box<Self>) {
        self.replied();
        let client = Arc::clone(&self.client);
        client.park(self);
    }

    /// The client has the reply.
    pub(super) fn settle(mut self: Box<Self>) {
        self.land(Instant::now());
        let client = Arc::clone(&self.client);
        client.gateway.ledger.put(self);
    }

    /// The request ends here, without a reply of the function's or in the middle of it.
    pub(super) fn fail(mut self: Box<Self>, outcome: Outcome, error: String) {
        self.conclude(outcome, Some(error));
        self.settle();
    }

    fn record(&mut self, ended: Instant) -> InvocationRecord {
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let at = |instant: Instant| {
            i64::try_from((instant - self.began).as_micros()).unwrap_or(i64::MAX)
        };
        let span = |phase, from: Instant, to: Instant| PhaseSpan {
            phase,
            begin_us: at(from),
            length_us: micros(to.saturating_duration_since(from)),
        };
        let mut phases = Vec::with_capacity(4);
        phases.push(span(Phase::Total, self.began, ended));
        let (sandbox, cold) = match self.served_by.take() {
            Some(Served { sandbox, cold }) => (Some(sandbox), cold),
            None => (None, None),
        };
        let waited = self.leased.or(if sandbox.is_none() { Some(ended) } else { None });
        let start_us = cold.as_ref().and_then(|cold| cold.spans.first());
        if let Some(until) = waited {
            let total = micros(until.saturating_duration_since(self.began));
            let in_start = start_us.map_or(0, |start| overlap(start, total));
            let length_us = total.saturating_sub(in_start);
            phases.push(PhaseSpan { phase: Phase::Queue, begin_us: 0, length_us });
        }
        let warm = sandbox.as_ref().map(|_| StartKind::Warm);
        let (mut guest_clock_error_us, mut fallback) = (None, None);
        let (mut memory, mut fault_timeline) = (None, None);
        let kind = cold.map_or(warm, |cold| {
            phases.extend(cold.spans);
            guest_clock_error_us = cold.clock_error.map(micros);
            (memory, fault_timeline) = (cold.memory, cold.timeline);
            fallback = cold.fallback;
            Some(cold.kind)
        });
        if let Some(forwarded) = self.forwarded {
            phases.push(span(Phase::Request, forwarded, ended));
        }
        let revision = &self.route.revision;
        InvocationRecord {
            version: RECORD_VERSION,
            id: self.id,
            at: self.clock.unwrap_or_else(Clock::read).at(self.began),
            namespace: revision.key.namespace.clone(),
            service: revision.service.clone(),
            revision: revision.key.name.clone(),
            runtime: revision.runtime,
            sandbox,
            start: kind,
            outcome: self.outcome.take().unwrap_or(Outcome::ClientGone),
            status: self.status,
            request_bytes: self.uploaded.as_ref().map_or(self.sent, |n| n.load(Ordering::Relaxed)),
            response_bytes: self.downloaded,
            phases,
            guest_clock_error_us,
            memory,
            fault_timeline,
            fallback,
            error: self.error.take(),
        }
    }
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    instant: Instant,
    wall: jiff::Timestamp,
}

impl Clock {
    pub(super) fn read() -> Self {
        Self { instant: Instant::now(), wall: jiff::Timestamp::now() }
    }

    /// The wall clock at an instant that has passed not long ago.
    fn at(self, instant: Instant) -> jiff::Timestamp {
        let ago = self.instant.saturating_duration_since(instant);
        let ago = jiff::SignedDuration::try_from(ago).unwrap_or_default();
        self.wall.checked_sub(ago).unwrap_or(self.wall)
    }
}

/// How much of a start lies within the first `total` microseconds of an invocation.
fn overlap(start: &PhaseSpan, total: u64) -> u64 {
    let length = i64::try_from(start.length_us).unwrap_or(i64::MAX);
    let end =
        start.begin_us.saturating_add(length).clamp(0, i64::try_from(total).unwrap_or(i64::MAX));
    u64::try_from(end - start.begin_us.clamp(0, end)).unwrap_or(0)
}

impl Flight {
    /// The request is over; only its record is still to be written.
    fn land(&mut self, now: Instant) {
        if self.ended.is_none() {
            self.ended = Some(now);
            self.lease = None;
            self.route.throttle.leave(now);
            self.client.end(self.number, self.timer.take(), now);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let ended = self.ended.unwrap_or_else(Instant::now);
        self.land(ended);
        if self.outcome.is_none() {
            self.error = Some("the client went away before the reply was complete".to_owned());
        }
        let record = Arc::new(self.record(ended));
        self.route.metrics.count(&record);
        let gateway = &self.client.gateway;
        if let Some(trace) = self.trace.take() {
            gateway.tracer.finish(*trace, &record);
        }
        gateway.node.records().push(record);
    }
}
