//! What a pool does for snapshots: makes them ahead of time, withholds instances for them, and ends
//! recordings behind replies.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;
use vhive_api::{Revision, SnapshotAt, SnapshotPolicy};
use vhive_sandbox::Journal;

use super::core::{InstanceNo, Refusal};
use super::{AcquireError, Instance, Pool, Running};
use crate::node::Shared;
use crate::snapshots::{SnapshotInfo, Wanted};
use crate::start;
use crate::take::{TakeError, Tell};

/// The outcome of a snapshot, or why no instance could be started for it.
pub(crate) type Created = Result<Result<SnapshotInfo, TakeError>, AcquireError>;

/// Who waits for a snapshot.
#[derive(Debug)]
pub(super) struct Creator {
    started: oneshot::Sender<Result<(), AcquireError>>,
    tell: Tell,
}

impl Creator {
    pub(super) fn refuse(self, error: AcquireError) {
        // Whoever asked may have gone.
        drop(self.started.send(Err(error)));
    }

    /// There is an instance to take the snapshot of.
    pub(super) fn go_on(self) -> Tell {
        drop(self.started.send(Ok(())));
        self.tell
    }
}

/// When a booted instance's snapshot is to be asked for: once it is ready, and again after none could be taken, or
/// the one that was there has gone. An instance may live long.
#[derive(Debug)]
pub(super) struct Occasion {
    revision: Arc<Revision>,
    look: Mutex<Look>,
}

#[derive(Debug, Default)]
struct Look {
    /// The store's wishes when it was looked at last.
    wishes: Option<u64>,
    /// Then it is to be looked at again.
    from: Option<Instant>,
}

impl Occasion {
    pub(super) fn of(revision: Arc<Revision>) -> Self {
        Self { revision, look: Mutex::default() }
    }

    /// Of which instances its revision wants snapshots.
    pub(super) fn at(&self) -> SnapshotAt {
        self.revision.snapshot_at
    }

    /// Whether it has come. Cheap unless something has changed: it is asked behind every reply.
    pub(super) fn comes(&self, shared: &Shared) -> bool {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        let (wishes, now) = (shared.snapshots.wishes(), Instant::now());
        if look.wishes == Some(wishes) && look.from.is_none_or(|from| now < from) {
            return false;
        }
        let wanted = shared.snapshots.wanted(&self.revision, now);
        look.wishes = Some(wishes);
        look.from = match wanted {
            Wanted::From(from) => Some(from),
            Wanted::No | Wanted::Now => None,
        };
        wanted == Wanted::Now
    }
}

impl Pool {
    /// Starts an instance by booting it, and takes its snapshot before it serves anybody. Dropping
    /// the future does not stop that.
    pub(crate) async fn create_snapshot(self: &Arc<Self>) -> Created {
        let closing = || AcquireError::Closing(self.key.clone());
        let (tell, told) = oneshot::channel();
        let (started, up) = oneshot::channel();
        let mut refused = None;
        self.run(|state, out| {
            let now = Instant::now();
            match state.core.prepare(now, out) {
                Ok(no) => _ = state.creators.insert(no, Creator { started, tell }),
                Err(why) => refused = Some(state.explain(&self.key, why, now)),
            }
        });
        if let Some(error) = refused {
            return Err(error);
        }
        up.await.map_err(|_| closing())??;
        told.await.map_err(|_| closing())
    }

    /// Looks whether what an earlier node has left, or this one under another description, still fits, and has it
    /// read. Takes a snapshot, of an instance that nobody has asked for anything, if the revision wants it so and
    /// there is none. In the background: a runtime may have to be found out about, which takes seconds.
    pub(crate) fn look_at_snapshot(self: &Arc<Self>) {
        let revision = self.revision();
        if revision.snapshot == SnapshotPolicy::Off {
            return;
        }
        let ahead = revision.snapshot_at == SnapshotAt::Ready && revision.missing.is_none();
        if !ahead && !self.shared.snapshots.has(&revision) {
            return;
        }
        let pool = Arc::clone(self);
        drop(self.shared.handle.spawn_blocking(move || {
            let shared = &pool.shared;
            shared.look_whether_it_fits(&revision);
            shared.snapshots.read_ahead(&revision);
            let runtime = || shared.tools.runtimes.get(revision.runtime);
            let wanted = || shared.snapshots.wanted(&revision, Instant::now()) == Wanted::Now;
            if ahead && wanted() && runtime().is_some_and(|runtime| runtime.restores().is_some()) {
                pool.run(|state, out| state.core.want_alone(Instant::now(), out));
            }
        }));
    }

    /// A snapshot has waited for long enough: an instance is started for it, if there is room.
    pub(super) fn overdue(self: &Arc<Self>) {
        let revision = self.revision();
        if !self.shared.snapshots.has(&revision) {
            return self.prepare_overdue();
        }
        let pool = Arc::clone(self);
        drop(self.shared.handle.spawn_blocking(move || {
            pool.shared.look_whether_it_fits(&revision);
            pool.prepare_overdue();
        }));
    }

    fn prepare_overdue(self: &Arc<Self>) {
        let revision = self.revision();
        let now = Instant::now();
        if self.shared.snapshots.fits(&revision) {
            self.saved();
        } else if self.shared.snapshots.wanted(&revision, now) == Wanted::Now {
            let mut begun = Ok(0);
            self.run(|state, out| begun = state.core.prepare(now, out));
            let why = match begun {
                Ok(no) if self.state().slots.contains_key(&no) => None,
                // It was decided, and there was no room for it.
                Ok(_) => Some(Refusal::Full),
                Err(why) => Some(why),
            };
            match why {
                None => {
                    tracing::info!(revision = %self.key, "booting an instance for its snapshot")
                }
                Some(why) => tracing::info!(revision = %self.key, ?why, "snapshot has to wait"),
            }
        }
    }

    /// There is a snapshot of the revision: no other is wanted.
    pub(crate) fn saved(self: &Arc<Self>) {
        self.run(|state, _| state.core.saved());
    }

    /// Stops what idles; nothing comes back before the next request. Resolves when it is gone, what
    /// is still to be done behind earlier replies included, and says how many it was.
    pub(crate) async fn evict(self: &Arc<Self>) -> u32 {
        let mut alive = self.alive.subscribe();
        let (mut gone, mut staying) = (0, 0);
        self.run(|state, out| {
            gone = state.core.evict(Instant::now(), out);
            staying = state.core.staying();
        });
        // The sender lives in self, so this cannot fail.
        let _ = alive.wait_for(|n| *n <= staying).await;
        gone
    }

    /// A snapshot has been taken, or not. `lost` says that the instance does not go on.
    pub(crate) fn snapshotted(self: &Arc<Self>, no: InstanceNo, running: Running, lost: bool) {
        let journal = {
            let mut state = self.state();
            match state.slots.get_mut(&no) {
                Some(slot) => {
                    slot.running = Some(running);
                    Ok(Arc::clone(&slot.journal))
                }
                None => Err(running),
            }
        };
        match journal {
            Ok(journal) => {
                self.run(|state, out| state.core.snapshotted(no, lost, Instant::now(), out));
                if journal.ended().is_some() {
                    self.died(no);
                }
            }
            // It was given up meanwhile.
            Err(running) => {
                start::spawn_stop(&self.shared, Gone(Arc::clone(self)), running, Journal::new());
            }
        }
    }

    /// The first reply of an instance that came from a snapshot ends its recording.
    pub(super) fn after_reply(self: &Arc<Self>, instance: &Instance) {
        if instance.paging.is_none() {
            return;
        }
        let after = instance.after.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(after) = after else { return };
        after.spawn(&self.shared, self.count_in());
    }

    /// Counts one more that exists, until the value is dropped.
    pub(super) fn count_in(self: &Arc<Self>) -> Gone {
        self.alive.send_modify(|n| *n += 1);
        Gone(Arc::clone(self))
    }
}

/// Counts a sandbox as gone when dropped.
pub(crate) struct Gone(pub(super) Arc<Pool>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.alive.send_modify(|n| *n -= 1);
    }
}
