//! Asynchronous invocations: a request with `Prefer: respond-async` is kept on disk, answered by 202
//! at once, and sent to its function behind that, again if need be. Its reply is kept to be fetched.
//!
//! ```text
//!   client ──► gateway ──► Deferred::accept ──► async.redb          202, Location
//!                                                  │
//!              gateway ◄── dispatch (again on failure) ──► async.redb ──► API: state, reply
//! ```
//!
//! At least once: a request that was under way when the node was killed is sent again. At most one
//! reply is kept, the first that came to be written.
//!
//! The queue with its bounds and its dispatcher is also that of events, in a file of their own: an
//! [`Errand`] says where a request goes and what comes of its reply.
//!
//! # Source
//! RFC 7240 §4.1 (`respond-async`).

mod dispatch;
mod errand;
mod store;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

pub(crate) use self::dispatch::{Got, SendError, run};
pub(crate) use self::errand::{End, Errand, Invocations, Sending, Verdict};
use self::store::{Kept, Queue};
pub(crate) use self::store::{KeptReply, Pending};
use crate::config::AsyncConfig;
use crate::store::StoreError;

/// Bodies that are read at a time.
const READ_AT_A_TIME: usize = 64;

/// How much longer than a request one may be that takes its place in a full queue.
const SLACK: u64 = 4096;

/// How far an invocation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// It waits for its turn, or for its next try.
    Pending,
    /// It has been sent.
    Running,
    /// The function has replied, whatever the status.
    Done,
    /// It was given up; the reply is the gateway's last one.
    Failed,
}

/// What is told of an invocation.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Told {
    pub(crate) id: String,
    pub(crate) host: String,
    pub(crate) state: Stage,
    pub(crate) attempts: u32,
    pub(crate) accepted: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ended: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcceptError {
    /// Too many wait, or too much.
    #[error(
        "{pending} requests{} wait already ({bytes} bytes)",
        if *of_lane { " for the same service or trigger" } else { "" }
    )]
    Full {
        /// Whether only those of the same service or trigger are too many.
        of_lane: bool,
        /// Requests that wait.
        pending: usize,
        /// Their bodies together.
        bytes: u64,
    },
    /// It could not be made durable.
    #[error("the request cannot be kept")]
    Store(#[from] StoreError),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShutDown,
}

/// The asynchronous invocations of a node.
#[derive(Debug)]
pub(crate) struct Deferred {
    pub(crate) config: AsyncConfig,
    queue: Arc<Queue>,
    /// Those that are not done, by id.
    open: Mutex<Open>,
    /// Wakes the dispatcher, once for each.
    news: mpsc::UnboundedSender<Arc<Pending>>,
    stopped: CancellationToken,
    /// One permit per body that is being read: until it is whole it counts nowhere else.
    reading: Semaphore,
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) retried: AtomicU64,
}

#[derive(Debug, Default)]
struct Open {
    requests: HashMap<String, (Arc<Pending>, Stage, u32)>,
    bytes: u64,
    /// What the lanes hold of both.
    lanes: HashMap<String, Held>,
}

/// Requests, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    pending: usize,
    bytes: u64,
}

impl Open {
    fn add(&mut self, one: Arc<Pending>) {
        let size = one.size();
        self.bytes += size;
        let lane = self.lanes.entry(one.lane().to_owned()).or_default();
        lane.pending += 1;
        lane.bytes += size;
        self.requests.insert(one.id.clone(), (one, Stage::Pending, 0));
    }

    fn remove(&mut self, id: &str) {
        let Some((gone, ..)) = self.requests.remove(id) else { return };
        let size = gone.size();
        self.bytes = self.bytes.saturating_sub(size);
        let Some(lane) = self.lanes.get_mut(gone.lane()) else { return };
        lane.pending = lane.pending.saturating_sub(1);
        lane.bytes = lane.bytes.saturating_sub(size);
        if lane.pending == 0 {
            self.lanes.remove(gone.lane());
        }
    }

    /// A lane of these that has waiting requests already, without the one that goes, and would hold
    /// more than is then left for all the others, with what it holds.
    fn greedy(&self, gone: Option<&Pending>, new: &[Arc<Pending>], left: Held) -> Option<Held> {
        let mut after = HashMap::<&str, (Held, Held)>::new();
        for one in new {
            let mut held = self.lanes.get(one.lane()).copied().unwrap_or_default();
            if let Some(gone) = gone.filter(|gone| gone.lane() == one.lane()) {
                held.pending = held.pending.saturating_sub(1);
                held.bytes = held.bytes.saturating_sub(gone.size());
            }
            let (_, more) = after.entry(one.lane()).or_insert((held, held));
            more.pending += 1;
            more.bytes += one.size();
        }
        let greedy = after.into_values().find(|(held, more)| {
            held.pending > 0 && (more.pending > left.pending || more.bytes > left.bytes)
        });
        greedy.map(|(held, _)| held)
    }
}

/// What the dispatcher takes from.
pub(crate) type News = mpsc::UnboundedReceiver<Arc<Pending>>;

impl Deferred {
    /// Opens `<state directory>/async.redb`; what is pending in it is news. Blocks for the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn open(path: &Path, config: AsyncConfig) -> Result<(Arc<Self>, News), StoreError> {
        let queue = Queue::open(path)?;
        let left = queue.pending()?;
        let (news, receive) = mpsc::unbounded_channel();
        let deferred = Self {
            config,
            queue: Arc::new(queue),
            open: Mutex::default(),
            news,
            stopped: CancellationToken::new(),
            reading: Semaphore::new(READ_AT_A_TIME),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            retried: AtomicU64::new(0),
        };
        for pending in left {
            deferred.enter(Arc::new(pending));
        }
        Ok((Arc::new(deferred), receive))
    }

    /// Keeps requests, all or none; they are on disk when this returns.
    ///
    /// # Errors
    /// [`AcceptError`]; then none will be sent.
    pub(crate) async fn accept(self: &Arc<Self>, pending: Vec<Pending>) -> Result<(), AcceptError> {
        self.exchange(None, pending).await
    }

    /// Forgets a request and keeps these in its place, in one step on disk.
    ///
    /// # Errors
    /// [`AcceptError`]; then it stays, and none of these will be sent.
    pub(crate) async fn replace(
        self: &Arc<Self>,
        id: &str,
        next: Vec<Pending>,
    ) -> Result<(), AcceptError> {
        self.exchange(Some(id.to_owned()), next).await
    }

    async fn exchange(
        self: &Arc<Self>,
        gone: Option<String>,
        new: Vec<Pending>,
    ) -> Result<(), AcceptError> {
        if gone.is_none() && new.is_empty() {
            return Ok(());
        }
        let new: Vec<Arc<Pending>> = new.into_iter().map(Arc::new).collect();
        self.take_room(gone.as_deref(), &new)?;
        let deferred = Arc::clone(self);
        // To the end, even if the client hangs up meanwhile.
        let written = tokio::task::spawn_blocking(move || {
            let written = deferred.queue.exchange(gone.as_deref(), &new);
            if written.is_ok() {
                gone.iter().for_each(|id| deferred.leave(id));
                new.into_iter().for_each(|one| drop(deferred.news.send(one)));
            } else {
                new.iter().for_each(|one| deferred.leave(&one.id));
            }
            written
        });
        Ok(written.await.map_err(|_| AcceptError::ShutDown)??)
    }

    /// Takes room before the disk is waited for, so that no burst can exceed the bounds. A lane gets
    /// no more than it leaves: alone it has half of the queue, and whoever comes after that finds
    /// room. One that takes another's place and is hardly longer always finds it, so that a full queue
    /// can drain.
    fn take_room(&self, gone: Option<&str>, new: &[Arc<Pending>]) -> Result<(), AcceptError> {
        let size: u64 = new.iter().map(|one| one.size()).sum();
        let mut open = self.entries();
        let (pending, bytes) = (open.requests.len(), open.bytes);
        let gone = gone.and_then(|id| open.requests.get(id)).map(|(old, ..)| Arc::clone(old));
        let freed = gone.as_ref().map(|old| old.size());
        let replaces = freed.is_some_and(|freed| new.len() <= 1 && size <= freed + SLACK);
        let count = (pending + new.len()).saturating_sub(usize::from(freed.is_some()));
        let total = (bytes + size).saturating_sub(freed.unwrap_or(0));
        let fits = count <= self.config.max_pending && total <= self.config.max_bytes.0;
        if !fits && !replaces {
            return Err(AcceptError::Full { of_lane: false, pending, bytes });
        }
        let left = Held {
            pending: self.config.max_pending.saturating_sub(count),
            bytes: self.config.max_bytes.0.saturating_sub(total),
        };
        if !replaces && let Some(Held { pending, bytes }) = open.greedy(gone.as_deref(), new, left)
        {
            return Err(AcceptError::Full { of_lane: true, pending, bytes });
        }
        new.iter().for_each(|one| open.add(Arc::clone(one)));
        Ok(())
    }

    /// Begins no more tries; those under way go on. What is not done stays for the next node.
    pub(crate) fn stop(&self) {
        self.stopped.cancel();
    }

    /// A turn for reading a body; none if too many are being read.
    pub(crate) fn turn_to_read(&self) -> Result<SemaphorePermit<'_>, AcceptError> {
        let (pending, bytes) = (self.pending(), self.entries().bytes);
        self.reading.try_acquire().map_err(|_| AcceptError::Full { of_lane: false, pending, bytes })
    }

    fn enter(&self, pending: Arc<Pending>) {
        let mut open = self.entries();
        open.add(Arc::clone(&pending));
        drop(open);
        let _ = self.news.send(pending);
    }

    fn leave(&self, id: &str) {
        self.entries().remove(id);
    }

    /// Notes how far an invocation has come.
    fn turn(&self, id: &str, stage: Stage, attempts: u32) {
        if let Some(entry) = self.entries().requests.get_mut(id) {
            (entry.1, entry.2) = (stage, attempts);
        }
    }

    /// Keeps the reply and forgets the request, in one step on disk.
    ///
    /// # Errors
    /// [`StoreError`]; then it is as before.
    async fn end(self: &Arc<Self>, id: &str, reply: &KeptReply) -> Result<(), StoreError> {
        let (queue, most) = (Arc::clone(&self.queue), self.config.max_results);
        let (key, kept) = (id.to_owned(), reply.clone());
        let written = tokio::task::spawn_blocking(move || queue.end(&key, &kept, most)).await;
        // Without an answer the node ends; the next one sends it again: at least once.
        let Ok(written) = written else { return Ok(()) };
        written?;
        let count = if reply.head.stage == Stage::Done { &self.done } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
        self.leave(id);
        Ok(())
    }

    /// What is known of an invocation. Blocks for the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn told(&self, id: &str) -> Result<Option<Told>, StoreError> {
        let open = self.entries().requests.get(id).cloned();
        if let Some((pending, state, attempts)) = open {
            return Ok(Some(Told {
                id: id.to_owned(),
                host: pending.host.clone(),
                state,
                attempts,
                accepted: pending.accepted,
                ended: None,
                status: None,
                error: None,
            }));
        }
        Ok(self.queue.reply(id)?.map(|(reply, _)| Told {
            id: id.to_owned(),
            host: reply.host,
            state: reply.stage,
            attempts: reply.attempts,
            accepted: reply.accepted,
            ended: Some(reply.ended),
            status: Some(reply.status),
            error: reply.error,
        }))
    }

    /// The reply of an invocation that has ended. Blocks for the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn reply(&self, id: &str) -> Result<Option<(Kept, Bytes)>, StoreError> {
        self.queue.reply(id)
    }

    /// Forgets the reply of an invocation. Blocks for the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(crate) fn forget(&self, id: &str) -> Result<bool, StoreError> {
        self.queue.forget(id)
    }

    /// Requests that are not done.
    pub(crate) fn pending(&self) -> usize {
        self.entries().requests.len()
    }

    fn entries(&self) -> MutexGuard<'_, Open> {
        // Nothing panics while it holds the lock, so what a poisoned one holds is still whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
