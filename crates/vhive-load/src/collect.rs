//! Rows on their way to whoever writes them: every request that was begun gives exactly one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::call::Did;
use crate::clock::Clock;
use crate::row::{Outcome, Row, Shot};

/// Rows that are handed over at once.
const BATCH: usize = 256;

/// Gathers rows; hands them over in batches, so that the sending thread wakes nobody per request.
#[derive(Debug)]
pub(crate) struct Collector {
    clock: OnceLock<Clock>,
    rows: Mutex<Vec<Row>>,
    out: Mutex<Option<Sender<Vec<Row>>>>,
    in_flight: AtomicU64,
    idle: Notify,
}

impl Collector {
    pub(crate) fn new(out: Sender<Vec<Row>>) -> Self {
        let (clock, rows) = (OnceLock::new(), Mutex::new(Vec::with_capacity(BATCH)));
        let out = Mutex::new(Some(out));
        Self { clock, rows, out, in_flight: AtomicU64::new(0), idle: Notify::new() }
    }

    /// The run's clock, which begins when it is first asked for: after the connections are made.
    pub(crate) fn clock(&self) -> Clock {
        *self.clock.get_or_init(Clock::start)
    }

    /// Begins a request.
    pub(crate) fn begin(self: &Arc<Self>, number: u64, shot: Shot) -> Pending {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Pending {
            open: true,
            number,
            shot,
            sent_ns: None,
            connect_ns: None,
            flow_ns: None,
            told: None,
            collector: Arc::clone(self),
        }
    }

    /// Counts as something under way until it is dropped: a request that is to follow another.
    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Held(Arc::clone(self))
    }

    fn one_less(&self) {
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.notify_waiters();
        }
    }

    /// How many are under way.
    pub(crate) fn under_way(&self) -> u64 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Whether something is under way.
    pub(crate) fn has_any(&self) -> bool {
        self.under_way() > 0
    }

    /// As [`Collector::idle`], without sleeping.
    pub(crate) async fn idle_awake(&self) {
        while self.has_any() {
            tokio::task::yield_now().await;
        }
    }

    /// Returns once nothing is under way.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if !self.has_any() {
                return;
            }
            idle.await;
        }
    }

    /// Hands over what is gathered.
    pub(crate) fn flush(&self) {
        let batch = std::mem::replace(&mut *locked(&self.rows), Vec::with_capacity(BATCH));
        if batch.is_empty() {
            return;
        }
        if let Some(out) = &*locked(&self.out) {
            // The receiver is only gone when nobody wants rows any more.
            let _ = out.send(batch);
        }
    }

    /// Hands over the last rows and tells the receiver so.
    pub(crate) fn close(&self) {
        self.flush();
        *locked(&self.out) = None;
    }

    fn put(&self, row: Row) {
        let full = {
            let mut rows = locked(&self.rows);
            rows.push(row);
            rows.len() >= BATCH
        };
        if full {
            self.flush();
        }
        self.one_less();
    }
}

/// Something that keeps the run from ending.
#[derive(Debug)]
pub(crate) struct Held(Arc<Collector>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.one_less();
    }
}

/// What came of a request.
#[derive(Debug, Default)]
pub(crate) struct End {
    pub(crate) done_ns: u64,
    pub(crate) first_byte_ns: Option<u64>,
    pub(crate) status: Option<u16>,
    pub(crate) grpc_status: Option<i32>,
    pub(crate) error: Option<Box<str>>,
    pub(crate) id: Option<Box<str>>,
    pub(crate) body_bytes: u64,
    pub(crate) did: Did,
}

/// A request under way. One that is dropped gives a row too: unfinished.
#[derive(Debug)]
pub(crate) struct Pending {
    open: bool,
    pub(crate) number: u64,
    pub(crate) shot: Shot,
    pub(crate) sent_ns: Option<u64>,
    pub(crate) connect_ns: Option<u64>,
    /// Of a request that follows others: when the first of them was to be sent.
    pub(crate) flow_ns: Option<u64>,
    /// Told when the request has ended.
    pub(crate) told: Option<oneshot::Sender<Outcome>>,
    collector: Arc<Collector>,
}

impl Pending {
    pub(crate) fn end(mut self, outcome: Outcome, end: End) {
        self.put(outcome, end);
    }

    /// Ends it now, without a reply.
    pub(crate) fn fail(self, outcome: Outcome, why: impl Into<Box<str>>) {
        let done_ns = self.collector.clock().now_ns();
        self.end(outcome, End { done_ns, error: Some(why.into()), ..End::default() });
    }

    fn put(&mut self, outcome: Outcome, end: End) {
        self.open = false;
        self.collector.put(Row {
            number: self.number,
            target: self.shot.target,
            intended_ns: self.shot.at_ns,
            sent_ns: self.sent_ns.unwrap_or(end.done_ns),
            sent: self.sent_ns.is_some(),
            connect_ns: self.connect_ns,
            first_byte_ns: end.first_byte_ns,
            done_ns: end.done_ns,
            outcome,
            status: end.status,
            grpc_status: end.grpc_status,
            error: end.error,
            id: end.id,
            body_bytes: end.body_bytes,
            work: self.shot.work,
            nth: self.shot.nth,
            flow_ns: self.flow_ns,
            function_us: end.did.duration_us,
            function_memory_kib: end.did.memory_kib,
            function_drift_percent: end.did.drift_percent,
        });
        if let Some(told) = self.told.take() {
            // Whoever waited may have given up.
            let _ = told.send(outcome);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.open {
            let done_ns = self.collector.clock().now_ns();
            self.put(Outcome::Unfinished, End { done_ns, ..End::default() });
        }
    }
}

/// Locks what no panic can leave half-changed.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
