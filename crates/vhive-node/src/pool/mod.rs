//! The instances of one revision and the requests that wait for them.
//!
//! [`core::Core`] decides; this file carries its decisions out: it owns the sandboxes, wakes the
//! waiting, spawns starts and stops. Nothing blocks under the lock, and whatever may take another
//! lock (a stop, a wake-up, a lease that comes back) happens after it is released.

mod back_off;
mod behind;
mod core;
mod lease;
mod liveness;
mod users;

use std::collections::HashMap;
use std::fmt;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use jiff::Timestamp;
use rustix::process::Pid;
use tokio::sync::{oneshot, watch};
use vhive_api::{
    Bytes, MemoryFigures, Revision, RevisionKey, RuntimeName, SandboxId, SnapshotAt, SnapshotPolicy,
};
use vhive_sandbox::{Journal, Paging, Sandbox};

pub(crate) use self::back_off::BackOff;
pub(crate) use self::behind::Gone;
use self::behind::{Creator, Occasion};
pub(crate) use self::core::Counts;
use self::core::{Action, Answer, Bounds, Core, InstanceNo, Refusal, WaiterNo};
pub use self::lease::Lease;
pub(crate) use self::liveness::Turn;
use self::liveness::Watched;
use self::users::Users;
use crate::counters::Watch;
use crate::limits::{Full, NoRoom, Reservation};
use crate::node::Shared;
use crate::snapshots::{CloneToken, Deleted};
use crate::standby::Standby;
use crate::start::{self, StartFailure, StartReport};
use crate::status::RevisionStanding;
use crate::take::{self, AfterReply, TakeJob};

/// What an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InstanceState {
    /// Being started.
    Starting,
    /// Serves, or could.
    Ready,
    /// Serves what it holds and gets nothing more until its readiness probe succeeds again.
    Unready,
    /// Serves what it holds and then stops, because fewer instances are wanted.
    Leaving,
    /// Serves what it holds and then stops, because a request found it broken.
    Broken,
    /// Holds nothing and is withheld while a snapshot is taken of it.
    Snapshotting,
}

impl InstanceState {
    /// The state as written in status and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Leaving => "leaving",
            Self::Broken => "broken",
            Self::Snapshotting => "snapshotting",
        }
    }
}

/// Why a request got no instance.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AcquireError {
    /// No such revision is registered.
    #[error("revision {0} is not known to this node; apply its service again")]
    Unknown(RevisionKey),
    /// The start that this request waited for failed.
    #[error("no instance could be started")]
    StartFailed(#[source] Arc<StartFailure>),
    /// An earlier start failed and the next is not due yet.
    #[error("no instance, and the next start is not tried before {} s", retry_after.as_secs() + 1)]
    BackingOff {
        /// The earlier failure.
        #[source]
        failure: Arc<StartFailure>,
        /// Time until a request would be met by another start.
        retry_after: std::time::Duration,
    },
    /// The node has no room for another instance.
    #[error("no room for another instance")]
    Full(#[source] Full),
    /// The node or the revision is being shut down.
    #[error("revision {0} is being shut down")]
    Closing(RevisionKey),
    /// There are as many instances as there may be.
    #[error("revision {0} has as many instances as its max-scale allows; evict one first")]
    AtMax(RevisionKey),
}

/// One running instance, as its leases see it.
#[derive(Debug)]
struct Instance {
    id: SandboxId,
    endpoint: std::net::SocketAddr,
    journal: Arc<Journal>,
    report: Arc<StartReport>,
    ready_at: Instant,
    /// How its memory arrives, if it came from a snapshot.
    paging: Option<Arc<dyn Paging>>,
    /// What is to be done after its first reply.
    after: Mutex<Option<AfterReply>>,
    /// From its readiness on until its first lease is given back: the connection that showed it.
    connection: Mutex<Option<TcpStream>>,
    /// Of one that may be snapshotted.
    occasion: Option<Occasion>,
    users: Users,
}

impl Instance {
    fn connection(&self) -> Option<TcpStream> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What must be released when an instance goes: the sandbox first, then its room.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) sandbox: Box<dyn Sandbox>,
    /// What it was started from, which may no longer be what the next one is started from.
    pub(crate) revision: Arc<Revision>,
    pub(crate) room: Reservation,
    /// The snapshot that it came from.
    pub(crate) origin: Option<CloneToken>,
    /// Held by who asks whether it lives, and by who has it stand still.
    pub(crate) turn: Arc<Turn>,
    /// A connection to it on which nothing has been said.
    pub(crate) connection: Option<TcpStream>,
    /// A snapshot of it may be asked for.
    pub(crate) saves: bool,
}

/// A start that the pool has asked for.
#[derive(Debug)]
pub(crate) struct StartJob {
    pub(crate) no: InstanceNo,
    pub(crate) id: SandboxId,
    pub(crate) revision: Arc<Revision>,
    pub(crate) journal: Arc<Journal>,
    pub(crate) room: Reservation,
    pub(crate) began: Instant,
    /// It must not come from a snapshot.
    pub(crate) boots: bool,
    /// A VMM that waits for the revision's snapshot, with the same identity and journal.
    pub(crate) standby: Option<Standby>,
}

#[derive(Debug)]
struct Slot {
    id: SandboxId,
    since: Timestamp,
    journal: Arc<Journal>,
    processes: Vec<Pid>,
    /// Lists them all, where there may be more.
    group: Option<PathBuf>,
    /// What counts for whoever asks.
    watch: Arc<Watch>,
    /// Once it is ready.
    instance: Option<Arc<Instance>>,
    /// Likewise, but while a snapshot is taken of it.
    running: Option<Running>,
}

#[derive(Debug)]
struct Waiter {
    tell: oneshot::Sender<Result<Lease, AcquireError>>,
    since: Instant,
}

#[derive(Debug)]
struct State {
    core: Core,
    revision: Arc<Revision>,
    slots: HashMap<InstanceNo, Slot>,
    waiters: HashMap<WaiterNo, Waiter>,
    /// Who waits for the snapshots of instances that were started for nothing else.
    creators: HashMap<InstanceNo, Creator>,
    last_start: Option<Arc<StartReport>>,
    last_failure: Option<Arc<StartFailure>>,
    last_full: Option<Full>,
    last_ended: Option<(SandboxId, Arc<Journal>)>,
    timer: Option<Instant>,
}

/// One instance at the time of asking.
#[derive(Clone, Debug)]
pub(crate) struct InstanceView {
    pub(crate) id: SandboxId,
    pub(crate) state: InstanceState,
    pub(crate) leases: u32,
    pub(crate) since: Timestamp,
    pub(crate) endpoint: Option<std::net::SocketAddr>,
    pub(crate) processes: Vec<Pid>,
    pub(crate) group: Option<PathBuf>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) paging: Option<MemoryFigures>,
}

/// A pool at the time of asking.
#[derive(Clone, Debug)]
pub(crate) struct PoolView {
    pub(crate) revision: Arc<Revision>,
    pub(crate) counts: Counts,
    pub(crate) last_start: Option<Arc<StartReport>>,
    pub(crate) last_failure: Option<Arc<StartFailure>>,
    pub(crate) instances: Vec<InstanceView>,
    /// Since when a snapshot is wanted and not there.
    pub(crate) snapshot_waits: Option<Instant>,
}

/// The pool of one revision.
pub(crate) struct Pool {
    key: RevisionKey,
    shared: Arc<Shared>,
    state: Mutex<State>,
    /// Counts changes of any journal of this pool.
    told: watch::Sender<u64>,
    /// Sandboxes that exist: starting, ready, or being stopped; and what is being done behind
    /// replies.
    alive: watch::Sender<u32>,
    /// Whether the revision has been deleted, and not only left unused.
    deleted: Deleted,
}

/// What to do once the pool's lock is released.
#[derive(Default)]
struct Effects {
    takes: Vec<TakeJob>,
    refused: Vec<(Creator, AcquireError)>,
    answers: Vec<(Waiter, Result<Lease, AcquireError>)>,
    starts: Vec<StartJob>,
    stops: Vec<(Running, Arc<Journal>)>,
    timer: Option<Instant>,
    overdue: bool,
}

impl Pool {
    pub(crate) fn new(shared: Arc<Shared>, revision: Arc<Revision>) -> Arc<Self> {
        let config = &shared.config;
        let back_off = BackOff::new(config.back_off_first.0, config.back_off_most.0);
        let key = revision.key.clone();
        let state = State {
            core: Core::new(bounds(&revision), back_off, config.snapshots.idle_wait.0),
            revision,
            slots: HashMap::new(),
            waiters: HashMap::new(),
            creators: HashMap::new(),
            last_start: None,
            last_failure: None,
            last_full: None,
            last_ended: None,
            timer: None,
        };
        Arc::new(Self {
            key,
            shared,
            state: Mutex::new(state),
            told: watch::Sender::new(0),
            alive: watch::Sender::new(0),
            deleted: Deleted::default(),
        })
    }

    /// Lends a slot: at once, or after waiting for one. Dropping the future gives up the place in
    /// the queue (or the slot); a start that it caused goes on.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Result<Lease, AcquireError> {
        let now = Instant::now();
        let (waiter, told) = {
            let mut entered = None;
            self.run(|state, out| {
                let answer = state.core.acquire(now, out);
                entered = Some(match answer {
                    Ok(Answer::Granted(no)) => Ok(Err(state.lend(self, no, now))),
                    Ok(Answer::Waits(waiter)) => {
                        let (tell, told) = oneshot::channel();
                        state.waiters.insert(waiter, Waiter { tell, since: now });
                        Ok(Ok((waiter, told)))
                    }
                    Err(why) => Err(state.explain(&self.key, why, now)),
                });
            });
            match entered.expect("run calls its closure once")? {
                Ok(waiting) => waiting,
                Err(lease) => return lease.ok_or_else(|| AcquireError::Closing(self.key.clone())),
            }
        };
        let _place = Place { pool: self, waiter };
        told.await.unwrap_or_else(|_| Err(AcquireError::Closing(self.key.clone())))
    }

    pub(crate) fn resize(self: &Arc<Self>, want: u32) {
        self.run(|state, out| state.core.resize(want, Instant::now(), out));
    }

    /// Looks again: a back-off may have ended, or room come.
    pub(crate) fn poke(self: &Arc<Self>) {
        self.run(|state, out| state.core.poke(Instant::now(), out));
    }

    /// Uses this description from the next start on.
    pub(crate) fn update(self: &Arc<Self>, revision: Arc<Revision>) {
        self.run(|state, out| {
            state.core.set_bounds(bounds(&revision));
            if state.revision.missing.is_some() && state.revision.missing != revision.missing {
                // What failed for that reason need not wait.
                state.core.forgive();
                state.last_failure = None;
            }
            let alone = revision.snapshot_at == SnapshotAt::Ready;
            state.core.change_policy(revision.snapshot != SnapshotPolicy::Off, alone);
            state.revision = revision;
            state.core.poke(Instant::now(), out);
        });
    }

    /// Takes no more requests; see [`Core::close`].
    pub(crate) fn close(self: &Arc<Self>) {
        self.run(|state, out| state.core.close(out));
    }

    /// Closes and stops everything at once, whatever is lent.
    pub(crate) fn abandon(self: &Arc<Self>) {
        self.run(|state, out| state.core.abandon(out));
    }

    /// Resolves when no sandbox of this pool exists any more.
    pub(crate) async fn emptied(&self) {
        let mut alive = self.alive.subscribe();
        // The sender lives in self, so this cannot fail.
        let _ = alive.wait_for(|n| *n == 0).await;
    }

    /// Sandboxes that exist, in whatever state.
    pub(crate) fn alive(&self) -> u32 {
        *self.alive.borrow()
    }

    /// Of which revision it is.
    pub(crate) fn key(&self) -> &RevisionKey {
        &self.key
    }

    pub(crate) fn deleted(&self) -> &Deleted {
        &self.deleted
    }

    /// What its instances are started from now.
    pub(crate) fn revision(&self) -> Arc<Revision> {
        Arc::clone(&self.state().revision)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state().core.counts()
    }

    pub(crate) fn standing(&self) -> RevisionStanding {
        let state = self.state();
        RevisionStanding {
            counts: state.core.counts().into(),
            last_start: state.last_start.clone(),
            last_failure: state.last_failure.clone(),
        }
    }

    pub(crate) fn view(&self) -> PoolView {
        let state = self.state();
        let mut numbers: Vec<InstanceNo> = state.slots.keys().copied().collect();
        numbers.sort_unstable();
        let instances = numbers
            .into_iter()
            .filter_map(|no| {
                let slot = state.slots.get(&no)?;
                let (what, leases) = state.core.instance(no)?;
                Some(InstanceView {
                    id: slot.id.clone(),
                    state: what,
                    leases,
                    since: slot.since,
                    endpoint: slot.instance.as_ref().map(|instance| instance.endpoint),
                    processes: slot.processes.clone(),
                    group: slot.group.clone(),
                    watch: Arc::clone(&slot.watch),
                    paging: slot
                        .instance
                        .as_ref()
                        .and_then(|one| Some(one.paging.as_ref()?.figures())),
                })
            })
            .collect();
        PoolView {
            revision: Arc::clone(&state.revision),
            counts: state.core.counts(),
            last_start: state.last_start.clone(),
            last_failure: state.last_failure.clone(),
            instances,
            snapshot_waits: state.core.waits_since(),
        }
    }

    /// Journals of all instances, and of the last one that ended; by age.
    pub(crate) fn journals(&self) -> Vec<(SandboxId, Arc<Journal>)> {
        let state = self.state();
        let mut numbers: Vec<InstanceNo> = state.slots.keys().copied().collect();
        numbers.sort_unstable();
        let live = numbers.iter().filter_map(|no| state.slots.get(no));
        let live = live.map(|slot| (slot.id.clone(), Arc::clone(&slot.journal)));
        state.last_ended.clone().into_iter().chain(live).collect()
    }

    /// Changes whenever a journal of this pool does.
    pub(crate) fn told(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }

    // === a start's way back ===

    /// A start succeeded.
    pub(crate) fn started(
        self: &Arc<Self>,
        no: InstanceNo,
        mut running: Running,
        report: Arc<StartReport>,
        after: Option<AfterReply>,
    ) {
        let occasion = running.saves.then(|| Occasion::of(Arc::clone(&running.revision)));
        let wanted = occasion.as_ref().is_some_and(|occasion| occasion.comes(&self.shared));
        let (revision, endpoint) = (Arc::clone(&running.revision), running.sandbox.endpoint());
        let (journal, turn, instance) = {
            let mut state = self.state();
            let Some(slot) = state.slots.get_mut(&no) else { return };
            slot.processes = running.sandbox.processes().to_vec();
            slot.group = running.sandbox.group();
            let instance = Instance {
                id: slot.id.clone(),
                endpoint,
                journal: Arc::clone(&slot.journal),
                report: Arc::clone(&report),
                ready_at: Instant::now(),
                paging: running.sandbox.paging(),
                after: Mutex::new(after),
                connection: Mutex::new(running.connection.take()),
                occasion,
                users: Users::default(),
            };
            let instance = Arc::new(instance);
            slot.instance = Some(Arc::clone(&instance));
            let turn = Arc::clone(&running.turn);
            slot.running = Some(running);
            let journal = Arc::clone(&slot.journal);
            state.last_start = Some(report);
            (journal, turn, instance)
        };
        self.run(|state, out| {
            let now = Instant::now();
            match revision.snapshot_at {
                SnapshotAt::FirstReply if wanted => state.core.want_snapshot(no),
                SnapshotAt::Ready if wanted => state.core.want_alone(now, out),
                _ => {}
            }
            state.core.started(no, now, out);
            if state.core.instance(no).is_none_or(|(_, leases)| leases == 0) {
                // Nobody waits to use it, and a function may serve one connection at a time only.
                drop(instance.connection());
            }
        });
        for (asks, probe) in liveness::probes(&revision) {
            let (pool, journal) = (Arc::downgrade(self), Arc::clone(&journal));
            let turn = Arc::clone(&turn);
            let watched = Watched { pool, no, endpoint, journal, asks, probe, turn };
            self.shared.handle.spawn(watched.watch());
        }
        if journal.ended().is_some() {
            // It ended between being confirmed ready and being entered here.
            self.died(no);
        }
    }

    /// A start failed. Nothing of it exists any more but its room, which the caller drops before
    /// what it gets here.
    pub(crate) fn start_failed(
        self: &Arc<Self>,
        no: InstanceNo,
        failure: Arc<StartFailure>,
    ) -> Gone {
        let mut creator = None;
        self.run(|state, out| {
            if let Some(slot) = state.slots.remove(&no) {
                state.last_ended = Some((slot.id, slot.journal));
            }
            creator = state.creators.remove(&no);
            state.last_failure = Some(Arc::clone(&failure));
            state.core.start_failed(no, Instant::now(), out);
        });
        if let Some(creator) = creator {
            creator.refuse(AcquireError::StartFailed(failure));
        }
        // Another start may be under way already, and the numbers the same.
        self.shared.changed(&self.key);
        Gone(Arc::clone(self))
    }

    /// An instance says that it is not ready, or that it is again.
    fn set_well(self: &Arc<Self>, no: InstanceNo, is_well: bool) {
        self.run(|state, out| state.core.set_well(no, is_well, Instant::now(), out));
        self.shared.changed(&self.key);
    }

    fn died(self: &Arc<Self>, no: InstanceNo) {
        let mut instance = None;
        self.run(|state, out| {
            instance = state.slots.get(&no).and_then(|slot| slot.instance.clone());
            state.core.died(no, Instant::now(), out);
        });
        if let Some(instance) = instance {
            instance.users.end();
        }
    }

    fn release(self: &Arc<Self>, no: InstanceNo, instance: &Instance, how: Back) {
        // Whoever had the instance first had no use for it. It must be in no snapshot.
        drop(instance.connection());
        if how == Back::Replied {
            self.after_reply(instance);
        }
        let occasion = instance.occasion.as_ref().filter(|_| how == Back::Replied);
        let wanted = occasion.filter(|occasion| occasion.comes(&self.shared)).map(Occasion::at);
        self.run(|state, out| {
            let now = Instant::now();
            match wanted {
                Some(SnapshotAt::FirstReply) => state.core.want_again(no, now),
                Some(SnapshotAt::Ready) => state.core.want_alone(now, out),
                None => {}
            }
            match how {
                Back::Unused => {}
                Back::Replied => state.core.replied(no),
                Back::Broken => state.core.broken(no, now, out),
            }
            state.core.release(no, now, out);
        });
    }

    // === carrying out ===

    fn state(&self) -> MutexGuard<'_, State> {
        // The core does not panic; should it ever, the pool goes on with what it has.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Feeds one event to the core, does what it asks for, and tells the door if the number of
    /// instances is another one now.
    fn run(self: &Arc<Self>, event: impl FnOnce(&mut State, &mut Vec<Action>)) {
        let mut effects = Effects::default();
        let changed = {
            let mut state = self.state();
            let before = state.core.size();
            let mut actions = Vec::new();
            event(&mut state, &mut actions);
            if !actions.is_empty() {
                self.apply(&mut state, actions, &mut effects);
            }
            let due = state.core.poke_at(Instant::now());
            if due.is_some() && due != state.timer {
                effects.timer = due;
            }
            state.timer = due;
            state.core.size() != before
        };
        self.perform(effects);
        if changed {
            self.shared.changed(&self.key);
        }
    }

    fn apply(self: &Arc<Self>, state: &mut State, actions: Vec<Action>, effects: &mut Effects) {
        let now = Instant::now();
        let mut actions = std::collections::VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Start(no) => match self.shared.budget.reserve(self.cost(state), self) {
                    Ok(room) => effects.starts.push(self.job(state, no, room, now)),
                    Err(NoRoom { full, may_come }) => {
                        let mut more = Vec::new();
                        state.last_full = Some(full);
                        state.core.no_room(no, may_come, &mut more);
                        actions.extend(more);
                        if let Some(creator) = state.creators.remove(&no) {
                            effects.refused.push((creator, AcquireError::Full(full)));
                        }
                    }
                },
                Action::Grant(waiter, no) => {
                    let Some(waiter) = state.waiters.remove(&waiter) else { continue };
                    let lease = state.lend(self, no, waiter.since);
                    let lease = lease.ok_or_else(|| AcquireError::Closing(self.key.clone()));
                    effects.answers.push((waiter, lease));
                }
                Action::Fail(waiter, why) => {
                    let Some(waiter) = state.waiters.remove(&waiter) else { continue };
                    let error = state.explain(&self.key, why, now);
                    effects.answers.push((waiter, Err(error)));
                }
                Action::Stop(no) => {
                    let Some(slot) = state.slots.remove(&no) else { continue };
                    // While a snapshot is taken of it, whoever takes it will stop it.
                    if let Some(mut running) = slot.running {
                        running.room.leave();
                        effects.stops.push((running, Arc::clone(&slot.journal)));
                    }
                    state.last_ended = Some((slot.id, slot.journal));
                    drop(state.creators.remove(&no));
                }
                Action::Snapshot(no) => {
                    let tell = state.creators.remove(&no).map(Creator::go_on);
                    let Some(slot) = state.slots.get_mut(&no) else { continue };
                    let Some(running) = slot.running.take() else { continue };
                    let (id, revision) = (slot.id.clone(), Arc::clone(&running.revision));
                    let counted = self.count_in();
                    let job = TakeJob { no, id, revision, running, tell, counted };
                    effects.takes.push(job);
                }
                Action::Overdue => effects.overdue = true,
            }
        }
    }

    /// Memory that one more instance reserves.
    fn cost(&self, state: &State) -> Bytes {
        match state.revision.runtime {
            RuntimeName::Sim => state.revision.memory,
            _ => {
                let overhead = self.shared.config.instance_overhead.0;
                Bytes(state.revision.memory.0.saturating_add(overhead))
            }
        }
    }

    fn job(
        &self,
        state: &mut State,
        no: InstanceNo,
        room: Reservation,
        began: Instant,
    ) -> StartJob {
        let boots = state.core.is_prepared(no);
        let standby = if boots { None } else { self.shared.standbys.take(&self.key) };
        let (id, journal) = match &standby {
            Some(standby) => (standby.id.clone(), Arc::clone(&standby.journal)),
            None => (SandboxId::random(), Journal::new()),
        };
        let slot = Slot {
            id: id.clone(),
            since: Timestamp::now(),
            journal: Arc::clone(&journal),
            processes: Vec::new(),
            group: None,
            watch: Arc::default(),
            instance: None,
            running: None,
        };
        state.slots.insert(no, slot);
        self.alive.send_modify(|n| *n += 1);
        let revision = Arc::clone(&state.revision);
        StartJob { no, id, revision, journal, room, began, boots, standby }
    }

    fn perform(self: &Arc<Self>, effects: Effects) {
        for (waiter, answer) in effects.answers {
            // The receiver may be gone; then the lease comes back and is dropped here.
            drop(waiter.tell.send(answer));
        }
        for (creator, error) in effects.refused {
            creator.refuse(error);
        }
        for job in effects.takes {
            take::spawn(Arc::clone(&self.shared), Arc::clone(self), job);
        }
        for job in effects.starts {
            self.watch(job.no, &job.journal);
            start::spawn(Arc::clone(&self.shared), Arc::clone(self), job);
        }
        if effects.overdue {
            self.overdue();
        }
        for (running, journal) in effects.stops {
            start::spawn_stop(&self.shared, Gone(Arc::clone(self)), running, journal);
        }
        if let Some(at) = effects.timer {
            let weak = Arc::downgrade(self);
            self.shared.handle.spawn(async move {
                tokio::time::sleep_until(at.into()).await;
                if let Some(pool) = weak.upgrade() {
                    pool.poke();
                }
            });
        }
    }

    /// Lets the journal tell of news and of its sandbox's end.
    fn watch(self: &Arc<Self>, no: InstanceNo, journal: &Arc<Journal>) {
        let pool: Weak<Self> = Arc::downgrade(self);
        let seen: Weak<Journal> = Arc::downgrade(journal);
        journal.watch(move || {
            let (Some(pool), Some(journal)) = (pool.upgrade(), seen.upgrade()) else { return };
            pool.told.send_modify(|n| *n += 1);
            if journal.ended().is_some() {
                pool.died(no);
            }
        });
    }
}

impl State {
    fn lend(&self, pool: &Arc<Pool>, no: InstanceNo, since: Instant) -> Option<Lease> {
        let instance = self.slots.get(&no)?.instance.as_ref()?;
        Some(Lease::new(Arc::clone(pool), no, Arc::clone(instance), since))
    }

    fn explain(&self, key: &RevisionKey, why: Refusal, now: Instant) -> AcquireError {
        let closing = || AcquireError::Closing(key.clone());
        match why {
            Refusal::Closing => closing(),
            Refusal::AtMax => AcquireError::AtMax(key.clone()),
            Refusal::Full => self.last_full.map_or_else(closing, AcquireError::Full),
            Refusal::StartFailed => {
                self.last_failure.clone().map_or_else(closing, AcquireError::StartFailed)
            }
            Refusal::BackingOff(until) => {
                let retry_after = until.saturating_duration_since(now);
                let failure = self.last_failure.clone();
                failure.map_or_else(closing, |failure| AcquireError::BackingOff {
                    failure,
                    retry_after,
                })
            }
        }
    }
}

/// How a slot comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    /// Without a reply.
    Unused,
    /// After a whole reply.
    Replied,
    /// The instance is of no use any more.
    Broken,
}

fn bounds(revision: &Revision) -> Bounds {
    Bounds { concurrency: revision.container_concurrency, max: revision.scale.max }
}

/// A place in the queue, given up on drop.
struct Place<'a> {
    pool: &'a Arc<Pool>,
    waiter: WaiterNo,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        let waiter = state.waiters.remove(&self.waiter);
        state.core.cancel(self.waiter);
        drop(state);
        drop(waiter);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("key", &self.key).finish_non_exhaustive()
    }
}
