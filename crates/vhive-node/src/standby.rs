//! VMMs that have been spawned ahead for a snapshot, so that a start from it need not wait for a
//! process: one per revision, and as many as its largest burst of starts of late, if there is room.
//!
//! ```text
//!   reply of a start from a snapshot ──► refill (behind it) ──► Standby
//!   next start of the revision ──► take: its sandbox has the standby's identity and journal
//! ```
//!
//! A standby owns a network slot and a process that has no guest memory yet. It is no instance: it
//! can serve nothing, and the autoscaler does not see it.

mod demand;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use vhive_api::{MemoryMode, Revision, RevisionKey, RuntimeName, SandboxId};
use vhive_sandbox::{Deadline, Journal, Prespawned, SandboxSpec};

use crate::guest;
use crate::node::Shared;
use crate::process;
use crate::snapshots::{Hold, StoredSnapshot, chain};
use crate::start::{network, uses, wanted_mode};
use demand::Demand;

/// A VMM that waits for a snapshot's state.
#[derive(Debug)]
pub(crate) struct Standby {
    revision: RevisionKey,
    pub(crate) id: SandboxId,
    pub(crate) journal: Arc<Journal>,
    stored: Weak<StoredSnapshot>,
    /// Whether the kernel is to page its memory; else the pager does.
    is_file: bool,
    /// Only ever taken out; the lock lets a standby travel with an order.
    prespawned: Mutex<Box<dyn Prespawned>>,
}

impl Standby {
    /// Whether it lives, and a start may still come from its snapshot.
    fn is_of_use(&self) -> bool {
        let stored = || self.stored.upgrade().is_some_and(|stored| stored.is_of_use());
        self.journal.ended().is_none() && stored()
    }

    /// The VMM, if it waits for just this snapshot and way of memory.
    pub(crate) fn fitting(self, hold: &Hold, mode: MemoryMode) -> Option<Box<dyn Prespawned>> {
        let same = self.stored.upgrade().is_some_and(|stored| Arc::ptr_eq(&stored, hold.stored()));
        let fits = same && self.is_file == (mode == MemoryMode::File);
        let prespawned = self.prespawned.into_inner().unwrap_or_else(PoisonError::into_inner);
        fits.then_some(prespawned)
    }
}

/// All standbys of a node.
#[derive(Debug, Default)]
pub(crate) struct Standbys(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Oldest first.
    ready: VecDeque<Standby>,
    making: HashSet<RevisionKey>,
    /// Of revisions that have started from a snapshot.
    demand: HashMap<RevisionKey, Demand>,
    closed: bool,
}

impl Standbys {
    /// A standby of use for the revision, for a start that may be from a snapshot.
    pub(crate) fn take(&self, revision: &RevisionKey) -> Option<Standby> {
        let mut state = self.state();
        let now = Instant::now();
        match state.demand.get_mut(revision) {
            Some(demand) => demand.add(now),
            None => drop(state.demand.insert(revision.clone(), Demand::new(now))),
        }
        // Any other is not worth a start; refilling replaces it.
        let fits = |standby: &Standby| standby.revision == *revision && standby.is_of_use();
        let at = state.ready.iter().position(fits)?;
        state.ready.remove(at)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.state().ready.len()
    }

    /// Gives up those of a revision, or all. Blocks until they have ended.
    pub(crate) fn give_up(&self, revision: Option<&RevisionKey>) {
        let mut state = self.state();
        state.closed |= revision.is_none();
        if let Some(key) = revision {
            state.demand.remove(key);
        }
        let all = std::mem::take(&mut state.ready);
        let goes = |standby: &Standby| revision.is_none_or(|key| standby.revision == *key);
        let (gone, kept): (VecDeque<_>, VecDeque<_>) = all.into_iter().partition(goes);
        state.ready = kept;
        drop(state);
        drop(gone);
    }

    /// Gives up those whose snapshot is gone, and what they hold: a network slot, a process, its files'
    /// blocks on the disk. Blocks until they have ended.
    pub(crate) fn give_up_useless(&self) {
        let mut state = self.state();
        let all = std::mem::take(&mut state.ready);
        let (kept, gone): (VecDeque<_>, VecDeque<_>) =
            all.into_iter().partition(Standby::is_of_use);
        state.ready = kept;
        drop(state);
        drop(gone);
    }

    /// Reserves the right to make one for the revision; what is no longer of use comes with it. Its first
    /// takes the place of others' oldest, further ones take free places only.
    fn begin(&self, revision: &RevisionKey, most: usize) -> Option<VecDeque<Standby>> {
        let mut state = self.state();
        let dead = |standby: &Standby| !standby.is_of_use();
        let there = |standby: &&Standby| standby.revision == *revision && !dead(standby);
        let (there, living) = (
            state.ready.iter().filter(there).count(),
            state.ready.iter().filter(|standby| !dead(standby)).count(),
        );
        let wanted = state.demand.get(revision).map_or(1, |demand| demand.wanted(Instant::now()));
        let is_enough = there >= wanted || (there > 0 && living >= most);
        if state.closed || is_enough || !state.making.insert(revision.clone()) {
            return None;
        }
        let all = std::mem::take(&mut state.ready);
        let (mut gone, mut kept): (VecDeque<_>, VecDeque<_>) = all.into_iter().partition(dead);
        while kept.len() >= most {
            gone.extend(kept.pop_front());
        }
        state.ready = kept;
        Some(gone)
    }

    /// `is_known`: whether the revision may still have starts, asked when nothing can be given up.
    fn end(
        &self,
        revision: &RevisionKey,
        made: Option<Standby>,
        is_known: impl FnOnce() -> bool,
    ) -> Option<Standby> {
        let mut state = self.state();
        state.making.remove(revision);
        // Its snapshot or its revision may have gone while it was made, when nobody could give it up.
        let is_of_use = |made: &Standby| made.is_of_use() && is_known();
        if state.closed || !made.as_ref().is_some_and(is_of_use) {
            return made;
        }
        state.ready.extend(made);
        None
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, so a poisoned state is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes standbys for the revision's next starts, as far as they are not there and would be of use.
/// Blocks; for a thread that nobody waits for.
pub(crate) fn refill(shared: &Shared, revision: &Revision) {
    let most = usize::try_from(shared.config.snapshots.standby).unwrap_or(usize::MAX);
    if most == 0 || revision.runtime == RuntimeName::Sim {
        return;
    }
    let is_known = || shared.has_pool(&revision.key);
    while is_known()
        && let Some(gone) = shared.standbys.begin(&revision.key, most)
    {
        drop(gone);
        let made = make(shared, revision).unwrap_or_else(|why| {
            tracing::debug!(revision = %revision.key, why, "no VMM spawned ahead");
            None
        });
        let is_made = made.is_some();
        // If it is of no use any more, it comes back and ends here.
        drop(shared.standbys.end(&revision.key, made, is_known));
        if !is_made {
            return;
        }
    }
}

fn make(shared: &Shared, revision: &Revision) -> Result<Option<Standby>, String> {
    let runtime = shared.tools.runtimes.get(revision.runtime).ok_or("no such runtime")?;
    let Some(restorer) = runtime.restores() else { return Ok(None) };
    let deadline = Deadline::after(shared.config.snapshots.restore_deadline.0);
    let guest = guest::of(revision, shared.ground.state_dir()).map_err(|error| chain(&error))?;
    let from = (restorer, &guest);
    let hold = shared.snapshots.usable(revision, from, deadline).map_err(|unfit| unfit.0)?;
    let Some(hold) = hold else { return Ok(None) };
    let Some(mode) = wanted_mode(revision, &hold, restorer) else { return Ok(None) };
    let images = &shared.tools.images;
    let rootfs = shared.handle.block_on(images.rootfs(&revision.image_digest));
    let rootfs = rootfs.map_err(|error| chain(&error))?;
    let process = process::process(&rootfs.config, revision).map_err(|error| chain(&error))?;
    let network = network(shared, revision, deadline).map_err(|error| chain(&error))?;
    let (id, journal) = (SandboxId::random(), Journal::new());
    let spec = SandboxSpec {
        guest,
        id: id.clone(),
        rootfs: rootfs.path.clone(),
        process,
        hooks: revision.hooks.clone(),
        uses: uses(revision, false),
        port: revision.port,
        cpu_millis: revision.cpu_millis,
        memory: revision.memory,
        network: Some(Arc::new(network)),
        run_root: shared.ground.run_root().clone(),
        journal: Arc::clone(&journal),
    };
    let prespawned = restorer.prespawn(&spec, hold.snapshot(), mode, deadline);
    let prespawned = prespawned.map_err(|error| chain(&error))?;
    Ok(prespawned.map(|prespawned| Standby {
        revision: revision.key.clone(),
        id,
        journal,
        stored: Arc::downgrade(hold.stored()),
        is_file: mode == MemoryMode::File,
        prespawned: Mutex::new(prespawned),
    }))
}
