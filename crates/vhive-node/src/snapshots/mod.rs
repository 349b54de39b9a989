//! The snapshots of this node: which there are, which can be used, and when they go.
//!
//! ```text
//!   <state>/snapshots/<digest of its owner>/<runtime>/   one snapshot
//!                     <digest of its owner>/draft-…/     being written
//!                     removed-…/  import-…/              being deleted, being read in
//! ```
//!
//! Its owner is a revision in a namespace: what is in its memory, the first request among it, is
//! nobody else's.
//!
//! A snapshot appears by rename and leaves its place by rename. What an earlier node left half-made
//! is removed when the store is opened; what it had completed is read and compared with its digests
//! before it is used for the first time.

mod archive;
mod evict;
mod failed;
mod fit;
mod info;
mod open;
mod owners;
mod readers;
mod room;
mod stored;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use vhive_api::{Bytes, Digest, Revision, RuntimeName, SnapshotPolicy};
use vhive_sandbox::snapshot::{Blame, DraftError, Owner};
use vhive_sandbox::{Deadline, Snapshot, SnapshotDraft};

pub use self::archive::{ExportError, ImportError};
use self::evict::Sweep;
use self::failed::Failed;
pub use self::failed::NotTaken;
use self::fit::On;
pub use self::info::{Collected, SnapshotInfo, StaleField};
pub use self::open::StoreError;
use self::owners::Owners;
pub(crate) use self::owners::{Deleted, Disowned};
use self::readers::Readers;
pub use self::room::NoRoom;
use self::room::{Reserved, Room};
pub(crate) use self::stored::{CloneToken, Doubt, Hold, Stored as StoredSnapshot, chain};
use self::stored::{Stored, Unsound};
use crate::config::Config;
use crate::pool::BackOff;

/// Names a snapshot: a revision has at most one per runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId {
    /// Of the owner: its namespace and the revision's digest.
    pub digest: Digest,
    /// The runtime that has taken it.
    pub runtime: RuntimeName,
}

impl SnapshotId {
    /// Of the snapshot that this revision has, or would have.
    #[must_use]
    pub fn of(revision: &Revision) -> Self {
        Self::of_owner(&owner(revision), revision.runtime)
    }

    /// A manifest of any age tells its owner's namespace, so that old snapshots have such names too.
    pub(crate) fn of_owner(owner: &Owner, runtime: RuntimeName) -> Self {
        // No namespace has a slash in its name.
        let text = format!("{}/{}", owner.revision.namespace, owner.digest);
        Self { digest: Digest::of(text.as_bytes()), runtime }
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.digest.hex(), self.runtime)
    }
}

/// The snapshots of one node. Clones are handles of the same store; every method blocks for the
/// disk.
#[derive(Clone)]
pub struct Snapshots(Arc<Inner>);

/// Longest time between two tries to take a snapshot that cannot be taken.
const MOST_BACK_OFF: Duration = Duration::from_secs(3600);

struct Inner {
    dir: PathBuf,
    max_bytes: u64,
    back_off: BackOff,
    readers: Arc<Readers>,
    /// How often a snapshot has come to be wanted that was not before: one has gone, or could not be taken.
    wishes: AtomicU64,
    state: Mutex<State>,
    /// Told when a snapshot has left the store.
    gone: OnceLock<Box<dyn Fn() + Send + Sync>>,
    owners: Owners,
    reserved: Reserved,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.readers.close();
    }
}

#[derive(Default)]
struct State {
    entries: BTreeMap<SnapshotId, Arc<Stored>>,
    taking: HashSet<SnapshotId>,
    failed: HashMap<SnapshotId, Failed>,
    retired: u64,
}

impl State {
    /// Whether there is one that fits this node, as far as is known.
    fn has_fitting(&self, id: &SnapshotId) -> bool {
        self.entries.get(id).is_some_and(|stored| stored.state().stale.is_none())
    }
}

/// Whether a snapshot should be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// No, as far as can be told.
    No,
    /// When there is occasion.
    Now,
    /// Not before: it has failed of late.
    From(Instant),
}

/// Why a snapshot that is there cannot be used for a start.
#[derive(Debug)]
pub(crate) struct Unfit(pub(crate) String);

impl Snapshots {
    pub(crate) fn open(state_dir: &Path, config: &Config) -> Result<Self, StoreError> {
        let dir = state_dir.join("snapshots");
        let (entries, retired) = open::open(&dir)?;
        // A whole memory may have been written in vain: what fails time and again is tried ever more rarely.
        let most = MOST_BACK_OFF.max(config.back_off_most.0);
        let back_off = BackOff::new(config.back_off_first.0, most);
        let max_bytes = config.snapshots.max_bytes.0;
        let state = State { entries, retired, ..State::default() };
        let (readers, state) = (Arc::default(), Mutex::new(state));
        let (wishes, gone, owners) = (AtomicU64::new(0), OnceLock::new(), Owners::default());
        let reserved = Reserved::default();
        let inner =
            Inner { dir, max_bytes, back_off, readers, wishes, state, gone, owners, reserved };
        let store = Self(Arc::new(inner));
        store.collect();
        Ok(store)
    }

    // === for starts ===

    /// The snapshot that a start of this revision may come from, held in its place; none if there
    /// is none. A snapshot that an earlier node has left is read first, as far as that is done before the deadline.
    pub(crate) fn usable(
        &self,
        revision: &Revision,
        on: On<'_>,
        deadline: Deadline,
    ) -> Result<Option<Hold>, Unfit> {
        let id = SnapshotId::of(revision);
        let Some(hold) = self.find(&id).and_then(|stored| stored.hold()) else { return Ok(None) };
        let stored = hold.stored();
        let platform = fit::platform(on)?;
        let began = Instant::now();
        if let Err(error) = stored.look() {
            let why = chain(&error);
            match error.blame() {
                Blame::Snapshot => self.retire(stored, &why),
                Blame::Either if stored.failed(began, Doubt::Strong) => self.retire(stored, &why),
                Blame::Either | Blame::Host => {}
            }
            return Err(Unfit(why));
        }
        self.compare(stored, revision, &platform)?;
        stored.notice_writes();
        let tried = stored.tried();
        let is_read = self.have_read(stored, true);
        let deadline = if is_read { deadline } else { Deadline::at(Instant::now()) };
        match stored.verdict(tried, deadline) {
            Ok(()) => Ok(Some(hold)),
            Err(Unsound::NotYet) => Err(Unfit("snapshot not yet verified".to_owned())),
            Err(Unsound::Unread(why)) => Err(Unfit(why)),
            Err(Unsound::Damaged(why)) => {
                self.retire(stored, &why);
                Err(Unfit(why))
            }
        }
    }

    /// If the revision's snapshot has been left by an earlier node and is not read yet, has it read before
    /// others; the future resolves when that is done, or will not be.
    pub(crate) fn reading(&self, revision: &Revision) -> Option<impl Future<Output = ()> + use<>> {
        let stored = self.find(&SnapshotId::of(revision)).filter(|stored| stored.is_of_use())?;
        let tried = stored.tried();
        let is_read = stored.is_pending() && self.have_read(&stored, true);
        is_read.then_some(async move { stored.judged(tried).await })
    }

    /// Has a snapshot that an earlier node has left read in the background, so that no start waits for that.
    pub(crate) fn read_ahead(&self, revision: &Revision) {
        if let Some(stored) =
            self.find(&SnapshotId::of(revision)).filter(|stored| stored.is_of_use())
        {
            // If nobody does, the first start asks again.
            let _is_read = self.have_read(&stored, false);
        }
    }

    /// Reads no more snapshots: the node is going.
    pub(crate) fn close(&self) {
        self.0.readers.close();
    }

    /// Takes a snapshot out that is at fault; the next one may be taken.
    pub(crate) fn retire(&self, stored: &Arc<Stored>, why: &str) {
        let mut state = self.state();
        let known = state.entries.get(&stored.id).is_some_and(|known| Arc::ptr_eq(known, stored));
        if !known {
            return;
        }
        state.entries.remove(&stored.id);
        state.retired += 1;
        drop(state);
        tracing::warn!(snapshot = %stored.id, why, "snapshot retired");
        self.discard(stored);
        self.wish();
    }

    // === for taking ===

    /// Whether a snapshot of this revision should be taken when there is occasion.
    pub(crate) fn wanted(&self, revision: &Revision, now: Instant) -> Wanted {
        if revision.snapshot == SnapshotPolicy::Off {
            return Wanted::No;
        }
        let id = SnapshotId::of(revision);
        let state = self.state();
        if state.has_fitting(&id) || state.taking.contains(&id) {
            return Wanted::No;
        }
        let gate = state.failed.get(&id).map(|failed| &failed.gate);
        gate.and_then(|gate| gate.closed_until(now)).map_or(Wanted::Now, Wanted::From)
    }

    /// Grows when [`Snapshots::wanted`] may have become another answer for an instance that was not
    /// snapshotted when it was ready. Costs nothing.
    pub(crate) fn wishes(&self) -> u64 {
        self.0.wishes.load(Ordering::Relaxed)
    }

    fn wish(&self) {
        self.0.wishes.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there is one that fits this node, as far as is known.
    pub(crate) fn fits(&self, revision: &Revision) -> bool {
        self.state().has_fitting(&SnapshotId::of(revision))
    }

    /// A snapshot has grown: others may have to go.
    pub(crate) fn has_grown(&self, stored: &Stored) {
        if self.figures().bytes > self.0.max_bytes {
            self.sweep(Sweep::For(stored.id));
        }
    }

    /// Begins to take one, if nobody else is at it and none is there that fits. It is not kept if the revision
    /// is deleted meanwhile.
    pub(crate) fn begin(&self, revision: &Revision, deleted: &Deleted) -> Option<Taking> {
        self.begin_for(SnapshotId::of(revision), owner(revision), deleted.clone())
    }

    fn begin_for(&self, id: SnapshotId, owner: Owner, deleted: Deleted) -> Option<Taking> {
        let mut state = self.state();
        if state.has_fitting(&id) || !state.taking.insert(id) {
            return None;
        }
        drop(state);
        Some(Taking { store: self.clone(), id, owner, deleted, room: None, done: false })
    }

    fn find(&self, id: &SnapshotId) -> Option<Arc<Stored>> {
        self.state().entries.get(id).cloned()
    }

    fn place(&self, id: &SnapshotId) -> PathBuf {
        self.0.dir.join(id.digest.hex()).join(id.runtime.as_str())
    }

    /// Enters what has been published at its place, or takes it away if its revision has been deleted. One that
    /// did not fit has made room before.
    fn enter(
        &self,
        id: SnapshotId,
        snapshot: Snapshot,
        deleted: &Deleted,
    ) -> Result<Arc<Stored>, KeepError> {
        let stored = Stored::new(id, snapshot, &self.0.dir, true).map_err(KeepError::Read)?;
        let mut state = self.state();
        // Under the same lock as `disown` looks for what is there: one of the two finds it.
        if deleted.is_set() {
            drop(state);
            self.discard(&stored);
            return Err(KeepError::Deleted);
        }
        state.failed.remove(&id);
        state.entries.insert(id, Arc::clone(&stored));
        drop(state);
        self.sweep(Sweep::For(id));
        Ok(stored)
    }

    /// Removes a stale snapshot in whose place another is about to be put.
    fn make_room(&self, id: &SnapshotId) {
        let mut state = self.state();
        let stale = state.entries.get(id).is_some_and(|stored| stored.state().stale.is_some());
        let stored = if stale { state.entries.remove(id) } else { None };
        drop(state);
        if let Some(stored) = stored {
            tracing::info!(snapshot = %id, "stale snapshot replaced");
            self.discard(&stored);
        }
    }

    /// Says who is to be told when a snapshot has left the store; on whichever thread that happened, so
    /// it must be quick. Only the first registration counts.
    pub(crate) fn on_gone(&self, gone: impl Fn() + Send + Sync + 'static) {
        // There is one node to a store.
        let _first = self.0.gone.set(Box::new(gone));
    }

    /// Removes one that is not in the list any more.
    fn discard(&self, stored: &Stored) {
        if let Err(error) = self.doom(stored) {
            tracing::warn!(snapshot = %stored.id, %error, "snapshot not removed");
        }
    }

    fn doom(&self, stored: &Stored) -> io::Result<()> {
        let doomed = stored.doom();
        if let Some(gone) = self.0.gone.get() {
            gone();
        }
        doomed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, so a poisoned state is still whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn owner(revision: &Revision) -> Owner {
    Owner {
        revision: revision.key.clone(),
        digest: revision.digest(),
        image: revision.image_digest,
    }
}

/// The right to take a snapshot of one revision; one has it at a time. Dropping it without
/// [`Taking::publish`] counts as a failure, after which the revision has to wait.
#[derive(Debug)]
pub(crate) struct Taking {
    store: Snapshots,
    id: SnapshotId,
    owner: Owner,
    deleted: Deleted,
    /// On the disk, while it is written.
    room: Option<Room>,
    done: bool,
}

/// Why a snapshot was not kept. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// It could not be written or put in its place.
    #[error("snapshot not written")]
    Draft(#[source] DraftError),
    /// It alone is larger than all snapshots may be.
    #[error("snapshot takes {bytes}, more than node.snapshots.max_bytes = {most}")]
    TooLarge {
        /// What it takes up.
        bytes: Bytes,
        /// The configured limit.
        most: Bytes,
    },
    /// An earlier one has been removed and somebody still needs its files; or there is one that this node could
    /// not read when it began, and left alone.
    #[error(
        "{} holds a snapshot that was removed and is still in use, or one that could not be read when the node \
         began (the log says why); try again later, or move it away and restart the node", place.display()
    )]
    Occupied {
        /// Where.
        place: PathBuf,
    },
    /// It could not be looked at once it was in its place.
    #[error("snapshot cannot be read back")]
    Read(#[source] io::Error),
    /// Nobody may start from it.
    #[error("its revision has been deleted meanwhile")]
    Deleted,
}

impl Taking {
    /// Reserves what it takes up on the disk while it is written.
    pub(crate) fn reserve(&mut self, needed: Bytes) -> Result<(), NoRoom> {
        self.room = Some(self.store.0.reserved.reserve(&self.store.0.dir, needed)?);
        Ok(())
    }

    /// A draft for the runtime to write into.
    pub(crate) fn draft(&self) -> Result<SnapshotDraft, DraftError> {
        let place = self.store.place(&self.id);
        let beside = place.parent().unwrap_or(&self.store.0.dir);
        open::make_dir(beside)
            .map_err(|source| DraftError::Write { path: beside.to_owned(), source })?;
        SnapshotDraft::begin(beside, self.owner.clone())
    }

    /// Puts the complete draft in its place. Blocks for writing and reading all of it.
    pub(crate) fn publish(mut self, draft: SnapshotDraft) -> Result<SnapshotInfo, KeepError> {
        if self.deleted.is_set() {
            return Err(KeepError::Deleted);
        }
        let bytes = stored::allocated(draft.dir()).map_err(KeepError::Read)?;
        let most = self.store.0.max_bytes;
        if bytes > most {
            return Err(KeepError::TooLarge { bytes: Bytes(bytes), most: Bytes(most) });
        }
        let place = self.store.place(&self.id);
        self.store.make_room(&self.id);
        let snapshot = draft.publish(&place).map_err(|error| match error {
            DraftError::Write { ref source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                KeepError::Occupied { place: place.clone() }
            }
            error => KeepError::Draft(error),
        })?;
        let stored = self.store.enter(self.id, snapshot, &self.deleted)?;
        self.done = true;
        Ok(self.store.info(&stored))
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        let place = self.store.place(&self.id);
        let mut state = self.store.state();
        state.taking.remove(&self.id);
        // That it was in vain is no fault of a revision that is made again.
        if !self.done && !self.deleted.is_set() {
            let gate = self.store.0.back_off;
            let revision = self.owner.revision.clone();
            let new = || Failed { revision, gate, why: "it was given up".to_owned() };
            let failed = state.failed.entry(self.id).or_insert_with(new);
            let era = failed.gate.era();
            failed.gate.fail(era, Instant::now());
        }
        drop(state);
        if !self.done {
            self.store.wish();
        }
        if let Some(parent) = place.parent() {
            // Where nothing came of it, no empty directory stays.
            let _in_use = std::fs::remove_dir(parent);
        }
    }
}

impl fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshots").field("dir", &self.0.dir).finish_non_exhaustive()
    }
}
