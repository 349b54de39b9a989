//! What happens behind a reply: a snapshot is taken, a recording becomes a working set.
//!
//! ```text
//!   last slot back ──► Pool withholds the instance ──► door closes its connections
//!                        ▲                                │
//!                        └── runs on, serves again ◄── checkpoint ──► publish (beside requests)
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use vhive_api::{
    Bytes, MemoryFigures, MemoryMode, PrefetchPolicy, Revision, RuntimeName, SandboxId,
};
use vhive_sandbox::snapshot::DraftError;
use vhive_sandbox::{Deadline, Paging, Replay, SnapshotError};

use crate::footprint::Footprint;
use crate::node::Shared;
use crate::pool::{Gone, Pool, Running};
use crate::snapshots::{Deleted, KeepError, NoRoom, SnapshotInfo, StoredSnapshot, Taking, chain};
use crate::standby;
use crate::start::{missed, panic_text};

/// Why no snapshot was taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// Somebody else is at it, or has just been.
    #[error("a snapshot of this revision is being taken already")]
    Busy,
    /// The instance is being asked whether it lives, or was not well when it was asked last.
    #[error("the instance's liveness probe has not been answered well; it is tried again later")]
    Unwell,
    /// The runtime cannot take any.
    #[error("runtime {0} takes no snapshots")]
    Unsupported(RuntimeName),
    /// The disk is too full for it.
    #[error("snapshot not begun")]
    NoRoom(#[source] NoRoom),
    /// No draft could be begun.
    #[error("snapshot not begun")]
    Begin(#[source] DraftError),
    /// The runtime did not write it.
    #[error("snapshot not taken")]
    Checkpoint(#[source] SnapshotError),
    /// The code that should have taken it panicked: a defect.
    #[error("the checkpoint panicked: {0}; please report this as a defect")]
    Panicked(String),
    /// It was written and could not be kept.
    #[error("snapshot not kept")]
    Keep(#[source] KeepError),
}

/// How long a snapshot waits for a try of the liveness probe that is under way.
const PROBED: Duration = Duration::from_secs(1);

/// Who waits for a snapshot.
pub(crate) type Tell = oneshot::Sender<Result<SnapshotInfo, TakeError>>;

/// A snapshot that the pool has asked for. If it is dropped undone, the sandbox is stopped.
pub(crate) struct TakeJob {
    pub(crate) no: u64,
    pub(crate) id: SandboxId,
    pub(crate) revision: Arc<Revision>,
    pub(crate) running: Running,
    pub(crate) tell: Option<Tell>,
    /// Until it is done, the pool is not empty.
    pub(crate) counted: Gone,
}

/// Takes it on a blocking thread, at once: while it waited, the instance would serve nobody. The pool gets the
/// instance back in any case.
pub(crate) fn spawn(shared: Arc<Shared>, pool: Arc<Pool>, job: TakeJob) {
    let handle = shared.handle.clone();
    drop(handle.spawn_blocking(move || take(&shared, &pool, job)));
}

fn take(shared: &Arc<Shared>, pool: &Arc<Pool>, job: TakeJob) {
    let TakeJob { no, id, revision, mut running, tell, counted } = job;
    let began = Instant::now();
    let written = write((shared, pool.deleted()), (&revision, &id), &mut running);
    let lost = matches!(
        &written,
        Err(TakeError::Panicked(_)) | Err(TakeError::Checkpoint(SnapshotError::Lost(_)))
    );
    // The instance serves again before the snapshot is complete.
    pool.snapshotted(no, running, lost);
    let withheld = began.elapsed();
    let kept = written.and_then(|(taking, draft)| taking.publish(draft).map_err(TakeError::Keep));
    let key = &revision.key;
    let outcome = match &kept {
        Ok(info) => {
            let (took, bytes) = (began.elapsed(), info.allocated);
            tracing::info!(revision = %key, ?withheld, ?took, %bytes, "snapshot taken");
            "taken"
        }
        Err(TakeError::Busy | TakeError::Unwell | TakeError::Keep(KeepError::Deleted)) => "dropped",
        Err(error) => {
            let why = chain(error);
            shared.snapshots.explain(&revision, &why);
            tracing::warn!(revision = %key, sandbox = %id, why, lost, "snapshot not taken");
            if lost { "lost" } else { "failed" }
        }
    };
    if kept.is_ok() {
        pool.saved();
    }
    shared.metrics.snapshot_taken(revision.runtime, outcome);
    if let Some(tell) = tell {
        // Whoever asked may have gone.
        drop(tell.send(kept));
    }
    if outcome == "taken" {
        standby::refill(shared, &revision);
    }
    drop(counted);
}

type Written = (Taking, vhive_sandbox::SnapshotDraft);

fn write(
    (shared, deleted): (&Shared, &Deleted),
    (revision, id): (&Revision, &SandboxId),
    running: &mut Running,
) -> Result<Written, TakeError> {
    if deleted.is_set() {
        return Err(TakeError::Keep(KeepError::Deleted));
    }
    let mut taking = shared.snapshots.begin(revision, deleted).ok_or(TakeError::Busy)?;
    let needed = takes(revision, running);
    let unsupported = TakeError::Unsupported(revision.runtime);
    let checkpoint = running.sandbox.checkpoint().ok_or(unsupported)?;
    taking.reserve(needed).map_err(TakeError::NoRoom)?;
    let mut draft = taking.draft().map_err(TakeError::Begin)?;
    // A try of the liveness probe comes to its end first, and the next one waits: nobody talks to it.
    let turn = Arc::clone(&running.turn);
    let _turn = turn.take(PROBED).ok_or(TakeError::Unwell)?;
    shared.quiesce(&revision.key, id);
    let deadline = Deadline::after(shared.config.snapshots.take_deadline.0);
    let written = catch_unwind(AssertUnwindSafe(|| checkpoint.snapshot_into(&mut draft, deadline)));
    match written {
        Ok(Ok(())) => Ok((taking, draft)),
        Ok(Err(error)) => Err(TakeError::Checkpoint(error)),
        Err(panic) => Err(TakeError::Panicked(panic_text(&*panic))),
    }
}

/// What a snapshot takes up on the disk while it is written: what the guest has touched of its memory, and as
/// much again where the runtime writes it twice.
fn takes(revision: &Revision, running: &Running) -> Bytes {
    let copies = if revision.runtime == RuntimeName::Firecracker { 2 } else { 1 };
    let held = Footprint::of(running.sandbox.processes()).map_or(0, |held| held.rss.0);
    Bytes(held.min(revision.memory.0).saturating_mul(copies))
}

/// What is to be done after the first reply of an instance that came from a snapshot.
#[derive(Debug)]
pub(crate) struct AfterReply {
    pub(crate) runtime: RuntimeName,
    pub(crate) revision: Arc<Revision>,
    pub(crate) paging: Arc<dyn Paging>,
    pub(crate) stored: Arc<StoredSnapshot>,
    /// The newest working set when its start was decided.
    pub(crate) newest: Option<u32>,
    /// Its recording becomes a working set, if the snapshot is still there then: a clone that never replies well
    /// keeps nothing in its place.
    pub(crate) records: bool,
}

impl AfterReply {
    /// Does it on a blocking thread. How memory had arrived is asked now, at the time of the reply.
    pub(crate) fn spawn(self, shared: &Arc<Shared>, counted: Gone) {
        let (figures, replay) = (self.paging.figures(), self.paging.replay());
        let of_thread = Arc::clone(shared);
        drop(shared.handle.spawn_blocking(move || {
            self.run(&of_thread, &figures, replay);
            drop(counted);
        }));
    }

    fn run(self, shared: &Shared, figures: &MemoryFigures, replay: Option<Replay>) {
        shared.metrics.restored(self.runtime, figures);
        let revision = &self.revision.key;
        let wants_set =
            figures.prefetch.is_some_and(|policy| policy != PrefetchPolicy::FaultAround);
        let prefetches = figures.mode == MemoryMode::Prefetch && wants_set;
        if prefetches && self.paging.shortfall().is_some() {
            // It was of no use, or not to its end: what is recorded afresh will not be damaged.
            tracing::warn!(%revision, "working set could not be used; recording again");
            shared.metrics.missed(self.runtime);
            self.stored.forget_working_sets(self.newest);
        } else if let Some(Replay { pages, missed: faults }) = replay {
            let much = missed(faults, pages, shared.config.snapshots.rerecord_above_percent);
            if self.stored.set_missed(self.newest, much) {
                tracing::info!(%revision, faults, pages, "working set missed; recording again");
            }
            if much {
                shared.metrics.missed(self.runtime);
            }
            if self.stored.facts().begins_anew() {
                tracing::info!(%revision, "working sets have missed for long; recording afresh");
                self.stored.forget_working_sets(self.newest);
            }
        }
        let hold = if self.records { self.stored.hold() } else { None };
        if !self.records {
            // Some are served as if they recorded; from now on nobody could want to know.
            if self.paging.discard_recording() {
                shared.metrics.recorded(self.runtime, "unused");
            }
        } else if hold.is_some() {
            match self.paging.finish_recording() {
                Ok(Some(number)) => {
                    tracing::info!(%revision, number, "working set recorded");
                    shared.metrics.recorded(self.runtime, "recorded");
                    self.stored.recorded();
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%revision, %error, "working set not recorded");
                    shared.metrics.recorded(self.runtime, "failed");
                }
            }
        } else if self.paging.discard_recording() {
            // The snapshot has gone. The clone may live on for long, and would record all that time.
            tracing::info!(%revision, "recording discarded: its snapshot has gone");
            shared.metrics.recorded(self.runtime, "discarded");
        }
        self.stored.settle();
        shared.snapshots.has_grown(&self.stored);
        standby::refill(shared, &self.revision);
    }
}
