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
//! # Source
//! RFC 7240 §4.1 (`respond-async`).

mod dispatch;
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

pub(crate) use self::dispatch::run;
use self::store::{Kept, Queue};
pub(crate) use self::store::{KeptReply, Pending};
use crate::config::AsyncConfig;
use crate::store::StoreError;

/// Bodies that are read at a time.
const READ_AT_A_TIME: usize = 64;

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
        "{pending} asynchronous requests wait already ({bytes} bytes); no more than serving.async allow"
    )]
    Full {
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

    /// Keeps a request; it is on disk when this returns.
    ///
    /// # Errors
    /// [`AcceptError`]; then it will not be sent.
    pub(crate) async fn accept(self: &Arc<Self>, pending: Pending) -> Result<(), AcceptError> {
        let size = pending.size();
        {
            // Room is taken before the disk is waited for, so that no burst can exceed the bounds.
            let mut open = self.entries();
            let (count, bytes) = (open.requests.len(), open.bytes);
            if count >= self.config.max_pending || bytes + size > self.config.max_bytes.0 {
                return Err(AcceptError::Full { pending: count, bytes });
            }
            open.bytes += size;
            let kept = (Arc::new(pending.clone()), Stage::Pending, 0);
            open.requests.insert(pending.id.clone(), kept);
        }
        let deferred = Arc::clone(self);
        // To the end, even if the client hangs up meanwhile.
        let written = tokio::task::spawn_blocking(move || match deferred.queue.add(&pending) {
            Ok(()) => {
                let _ = deferred.news.send(Arc::new(pending));
                Ok(())
            }
            Err(error) => {
                deferred.leave(&pending.id);
                Err(error)
            }
        });
        Ok(written.await.map_err(|_| AcceptError::ShutDown)??)
    }

    /// Begins no more tries; those under way go on. What is not done stays for the next node.
    pub(crate) fn stop(&self) {
        self.stopped.cancel();
    }

    /// A turn for reading a body; none if too many are being read.
    pub(crate) fn turn_to_read(&self) -> Result<SemaphorePermit<'_>, AcceptError> {
        let (pending, bytes) = (self.pending(), self.entries().bytes);
        self.reading.try_acquire().map_err(|_| AcceptError::Full { pending, bytes })
    }

    fn enter(&self, pending: Arc<Pending>) {
        let mut open = self.entries();
        open.bytes += pending.size();
        open.requests.insert(pending.id.clone(), (Arc::clone(&pending), Stage::Pending, 0));
        drop(open);
        let _ = self.news.send(pending);
    }

    fn leave(&self, id: &str) {
        let mut open = self.entries();
        if let Some((pending, ..)) = open.requests.remove(id) {
            open.bytes = open.bytes.saturating_sub(pending.size());
        }
    }

    /// Notes how far an invocation has come.
    fn turn(&self, id: &str, stage: Stage, attempts: u32) {
        if let Some(entry) = self.entries().requests.get_mut(id) {
            (entry.1, entry.2) = (stage, attempts);
        }
    }

    /// Keeps the reply and forgets the request, in one step on disk.
    async fn end(self: &Arc<Self>, id: &str, reply: KeptReply) {
        let count = if reply.head.stage == Stage::Done { &self.done } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
        let (queue, most) = (Arc::clone(&self.queue), self.config.max_results);
        let key = id.to_owned();
        let written = tokio::task::spawn_blocking(move || queue.end(&key, &reply, most)).await;
        if let Ok(Err(error)) = written {
            // It stays pending on disk, and is sent again by the next node: at least once.
            tracing::error!(%error, id, "the reply of an asynchronous invocation is lost");
        }
        self.leave(id);
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
