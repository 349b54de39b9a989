//! What becomes of the snapshots of revisions that are deleted.
//!
//! A guest's memory, with its secrets and its first request in it, goes with the revision: whoever makes one of the same
//! name later, perhaps somebody else, does not start from it. What is there for whoever makes the revision is marked
//! as *kept*: archives that were taken in, and what a deletion was told to leave.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhive_api::RevisionKey;

use super::Snapshots;
use super::stored::Stored;

/// In a snapshot's directory: it may outlive its revision, or be there before it.
pub(super) const KEPT: &str = "kept";

/// Whether a revision has been deleted: what is being taken of its instances then is not kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deleted(Arc<AtomicBool>);

impl Deleted {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Snapshots that are in no list any more.
#[derive(Debug)]
pub(crate) struct Disowned(Vec<Arc<Stored>>);

type IsKnown = Box<dyn Fn(&RevisionKey) -> bool + Send + Sync>;

/// Who knows which revisions there are.
#[derive(Default)]
pub(super) struct Owners(std::sync::OnceLock<IsKnown>);

impl Owners {
    /// Whether there is a revision by this name, as far as is known.
    pub(super) fn has(&self, key: &RevisionKey) -> bool {
        self.0.get().is_none_or(|is_known| is_known(key))
    }
}

impl Snapshots {
    /// Takes the snapshots of all revisions that have had this name out of the list, but for those that are
    /// marked as kept if `all` is false. Their files go with [`Snapshots::discard_all`].
    pub(crate) fn disown(&self, key: &RevisionKey, all: bool) -> Disowned {
        let mut state = self.state();
        let goes = |stored: &Stored| {
            stored.snapshot.manifest().owner.revision == *key && (all || !stored.state().kept)
        };
        let gone: Vec<_> = state.entries.extract_if(.., |_, stored| goes(stored)).collect();
        if all {
            // Nor does whoever makes it again wait for what failed with the old one.
            state.failed.retain(|_, failed| failed.revision != *key);
        }
        drop(state);
        Disowned(gone.into_iter().map(|(_, stored)| stored).collect())
    }

    /// Removes their files: at once, or when their last user is done. Blocks.
    pub(crate) fn discard_all(&self, Disowned(gone): Disowned) {
        for stored in gone {
            tracing::info!(snapshot = %stored.id, "snapshot removed: its revision is no more");
            self.discard(&stored);
        }
    }

    /// Marks the snapshots of revisions by this name as there for whoever makes it again. Blocks.
    ///
    /// # Errors
    /// One could not be marked; others may be.
    pub(crate) fn keep(&self, key: &RevisionKey) -> io::Result<()> {
        let all: Vec<_> = self.state().entries.values().cloned().collect();
        let of_it = |stored: &&Arc<Stored>| stored.snapshot.manifest().owner.revision == *key;
        all.iter().filter(of_it).try_for_each(Stored::keep)
    }

    /// Says who knows which revisions there are, whether they serve or not; without, none counts as deleted.
    /// Only the first registration counts.
    pub(crate) fn on_owner(&self, is_known: impl Fn(&RevisionKey) -> bool + Send + Sync + 'static) {
        // There is one node to a store.
        let _first = self.0.owners.0.set(Box::new(is_known));
    }

    /// Takes those out of the list whose revision is no more and that are not marked as kept.
    pub(super) fn take_orphans(&self) -> Disowned {
        let all: Vec<_> = self.state().entries.values().cloned().collect();
        // Asked without the lock: whoever knows has locks of its own.
        let orphans: Vec<_> = all.into_iter().filter(|stored| self.is_orphan(stored)).collect();
        let mut state = self.state();
        let goes = |stored: &Arc<Stored>| {
            let seen = orphans.iter().any(|orphan| Arc::ptr_eq(orphan, stored));
            let stored = stored.state();
            seen && !stored.is_held() && !stored.kept
        };
        let gone: Vec<_> = state.entries.extract_if(.., |_, stored| goes(stored)).collect();
        drop(state);
        Disowned(gone.into_iter().map(|(_, stored)| stored).collect())
    }

    /// Whether its revision is no more.
    pub(super) fn is_orphan(&self, stored: &Stored) -> bool {
        !self.0.owners.has(&stored.snapshot.manifest().owner.revision)
    }
}

impl Disowned {
    /// How many there are, and what they take up on the disk, in bytes.
    pub(super) fn figures(&self) -> (u32, u64) {
        let bytes = self.0.iter().map(|stored| stored.state().bytes).sum();
        (u32::try_from(self.0.len()).unwrap_or(u32::MAX), bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Stored {
    /// Marks it as one that may outlive its revision, also for the next node.
    fn keep(self: &Arc<Self>) -> io::Result<()> {
        let Some(hold) = self.hold() else { return Ok(()) };
        File::create(hold.snapshot().dir().join(KEPT))?;
        self.state().kept = true;
        Ok(())
    }
}
