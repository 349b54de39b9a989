//! One function in virtual time: its queue, its instances, and the policy that is asked.
//!
//! ```text
//!   arrive ─► a free slot? ─yes─► busy until done ─► the longest waiting, else idle
//!               │no                                     ▲
//!               ▼                                       │ started
//!             waiting ─► starts missing? ─► starting ───┘
//!
//!   look ─► sample ─► Policy::observe, decide ─► resize: starts missing, idle beyond go
//! ```
//!
//! As the node's pool, throttle and scaler do it: the least loaded instance serves, of equals the
//! oldest; a request that finds none waits first come first served, for whichever comes first, a
//! start or a slot that is given back; the policy is looked at when a request comes while nobody
//! looks, when one has to wait, and when the last decision said. That the real ones do the same is
//! not proved here but measured: `sim-vs-live`.

use std::collections::VecDeque;
use std::time::Duration;

use vhive_api::StartKind;
use vhive_load::rng::Rng;
use vhive_policy::autoscale::{Policy, Rules};
use vhive_policy::start::Facts;

use super::free::{Free, Member};
use super::meter::Meter;
use super::plan::FunctionPlan;
use super::starts::{One, Profile};
use super::tally::Tally;

mod looks;
mod starting;

/// A moment or a length in nanoseconds.
pub(super) type Ns = u64;

/// Something that will happen to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A request in the instance of this slot is done.
    Done(u32),
    /// The start in this slot gives its turn back.
    Yields(u32),
    /// The instance of this slot has started.
    Ready(u32),
    /// The start in this slot asks for its turn.
    Asks(u32),
    /// Its policy is looked at.
    Look,
}

/// What surrounds a function.
pub(super) trait Around {
    /// Notes that something will happen to the function.
    fn schedule(&mut self, at: Ns, event: Event);
    /// Its instance in this slot holds a request from now on.
    fn busy(&mut self, place: Place);
    /// … or none.
    fn idle(&mut self, place: Place, now: Ns);
    /// … or is gone; `idle` says whether it held none before.
    fn gone(&mut self, place: Place, idle: bool);
    /// Where figures go.
    fn tally(&mut self) -> &mut Tally;
}

/// An instance seen from its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: u32,
    pub(super) slot: u32,
    /// Number of the instance in its function, never used again.
    pub(super) no: u32,
    /// Its memory in bytes.
    pub(super) memory: u64,
}

/// What holds for all functions of a run.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) rules: Rules,
    pub(super) tick: Duration,
    /// How late a look is.
    pub(super) late: Ns,
    /// When the trace begins, after a moment from which ticks are counted.
    pub(super) begins: Ns,
    /// Whether looks of which nothing would come are left out.
    pub(super) leaves_out: bool,
    pub(super) function: FunctionPlan,
}

/// Starts that are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// For requests that wait.
    pub(super) waiting: u32,
    /// All, those included.
    pub(super) all: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Vacant,
    Starting,
    Ready,
    /// Goes when it holds nothing, unless a request wants it before.
    Leaving,
}

#[derive(Clone, Copy, Debug)]
struct Instance {
    state: State,
    no: u32,
    node: u32,
    leases: u32,
    begun: Ns,
    /// When it was ready.
    ready: Ns,
    /// Since when it has been idle or busy.
    since: Ns,
    kind: StartKind,
    /// By how much its first request takes longer than others.
    extra: Ns,
    replied: bool,
    /// Whether its pages were prefetched, and if so, whether too many were missed.
    missed: Option<bool>,
    /// Whether its node counts it as idle.
    idle: bool,
}

impl Instance {
    fn starting(no: u32, node: u32, now: Ns, kind: StartKind) -> Self {
        Self {
            state: State::Starting,
            no,
            node,
            leases: 0,
            begun: now,
            ready: now,
            since: now,
            kind,
            extra: 0,
            replied: false,
            missed: None,
            idle: false,
        }
    }

    fn member(&self, slot: u32) -> Member {
        Member { slot, no: self.no, leases: self.leases }
    }
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    came: Ns,
    runtime: Ns,
}

/// One function.
pub(super) struct Cell<'a> {
    common: &'a Common,
    profile: &'a Profile,
    memory: u64,
    rng: Rng,
    policy: Option<Box<dyn Policy>>,
    meter: Meter,
    watched: bool,
    due: Option<Ns>,
    poked: Option<Ns>,
    /// The first of the looks before `due` that are left out, because nothing would come of them.
    left_out: Option<Ns>,
    wanted: Option<u32>,
    ever_ready: bool,
    instances: Vec<Instance>,
    /// Where starts take turns: by slot, what was drawn for its last start.
    drawn: Vec<One>,
    vacant: Vec<u32>,
    /// Ready instances with a free slot.
    free: Free,
    leaving: Vec<u32>,
    /// Ready ones, those that leave not among them.
    ready: u32,
    starting: u32,
    waiting: VecDeque<Waiting>,
    next: u32,
    /// What each node has of its snapshot, by node.
    snapshots: Vec<(u32, Facts)>,
}

impl<'a> Cell<'a> {
    pub(super) fn new(common: &'a Common, profile: &'a Profile, memory: u64, rng: Rng) -> Self {
        Self {
            common,
            profile,
            memory,
            rng,
            policy: None,
            meter: Meter::default(),
            watched: false,
            due: None,
            poked: None,
            left_out: None,
            wanted: None,
            ever_ready: false,
            instances: Vec::new(),
            drawn: Vec::new(),
            vacant: Vec::new(),
            free: Free::new(common.function.concurrency),
            leaving: Vec::new(),
            ready: 0,
            starting: 0,
            waiting: VecDeque::new(),
            next: 0,
            snapshots: Vec::new(),
        }
    }

    /// Memory of an instance in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    /// Requests that have not been given an instance.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The run begins: what shall be there without a request is asked for.
    pub(super) fn begin(&mut self, around: &mut impl Around) {
        if self.first() > 0 {
            self.watched = true;
            self.poke(0, around);
        }
    }

    /// A request comes that takes so long.
    pub(super) fn arrive(&mut self, now: Ns, runtime: Ns, around: &mut impl Around) -> Missing {
        self.catch_up(now, true, around);
        around.tally().arrived(now);
        self.meter.enter(now, self.watched);
        if !self.watched {
            self.watched = true;
            self.poke(now, around);
        }
        let request = Waiting { came: now, runtime };
        if let Some(slot) = self.take_slot() {
            around.tally().warm();
            self.grant(slot, now, request, around);
            return Missing::default();
        }
        self.waiting.push_back(request);
        self.poke(now, around);
        self.missing()
    }

    /// Something happens that was scheduled.
    pub(super) fn happen(&mut self, now: Ns, event: Event, around: &mut impl Around) -> Missing {
        match event {
            Event::Done(slot) => {
                self.catch_up(now, false, around);
                self.done(slot, now, around)
            }
            Event::Ready(slot) => self.started(slot, now, around),
            Event::Look if self.poked == Some(now) => {
                self.poked = None;
                self.look(now, around)
            }
            Event::Look if self.due == Some(now) => self.look(now, around),
            // What surrounds it has to do with turns, not the function.
            Event::Look | Event::Asks(_) | Event::Yields(_) => Missing::default(),
        }
    }

    /// No node has room for a start: whoever waits for nothing else is refused.
    pub(super) fn no_room(&mut self, now: Ns, around: &mut impl Around) {
        if self.ready + self.starting > 0 || !self.leaving.is_empty() {
            return;
        }
        for _ in std::mem::take(&mut self.waiting) {
            self.meter.leave(now);
            around.tally().refused();
        }
    }

    /// Whether an instance is the same one still and has been idle since then.
    pub(super) fn idles(&self, place: &Place, since: Ns) -> bool {
        let index = usize::try_from(place.slot).unwrap_or(usize::MAX);
        self.instances.get(index).is_some_and(|i| i.no == place.no && i.idle && i.since == since)
    }

    /// Stops an instance that idles; `looked` says whether a look of this very moment is over.
    pub(super) fn evict(&mut self, place: Place, now: Ns, looked: bool, around: &mut impl Around) {
        self.catch_up(now, looked, around);
        self.remove(place.slot, now, around);
        around.tally().evicted();
    }

    /// The run ends: what is there counts up to now.
    pub(super) fn end(&mut self, now: Ns, around: &mut impl Around) {
        self.catch_up(now, true, around);
        let there: Vec<u32> = (0..)
            .zip(&self.instances)
            .filter(|(_, i)| i.state != State::Vacant)
            .map(|(slot, _)| slot)
            .collect();
        for slot in there {
            self.account(slot, now, around.tally());
        }
    }

    fn at(&mut self, slot: u32) -> &mut Instance {
        let index = usize::try_from(slot).unwrap_or(usize::MAX);
        self.instances.get_mut(index).expect("slots are given out by this function")
    }

    fn place(&mut self, slot: u32) -> Place {
        let memory = self.memory;
        let instance = self.at(slot);
        Place { node: instance.node, slot, no: instance.no, memory }
    }

    // === the pool ===

    fn takes_more(&self, leases: u32) -> bool {
        let concurrency = self.common.function.concurrency;
        concurrency == 0 || leases < concurrency
    }

    fn note_free(&mut self, slot: u32) {
        let instance = *self.at(slot);
        if instance.state == State::Ready && self.takes_more(instance.leases) {
            self.free.insert(instance.member(slot));
        }
    }

    fn forget_free(&mut self, slot: u32) {
        let member = self.at(slot).member(slot);
        self.free.remove(member);
    }

    fn take_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.first() {
            return Some(slot);
        }
        if self.common.function.concurrency == 1 {
            // Whoever leaves holds a request still, and no room for another.
            return None;
        }
        let leaving = self.leaving.iter().copied();
        let found = leaving.filter(|slot| {
            let index = usize::try_from(*slot).unwrap_or(usize::MAX);
            self.instances.get(index).is_some_and(|i| self.takes_more(i.leases))
        });
        let slot = found.min()?;
        self.unmark(slot);
        Some(slot)
    }

    fn unmark(&mut self, slot: u32) {
        if self.at(slot).state == State::Leaving {
            self.leaving.retain(|one| *one != slot);
            self.at(slot).state = State::Ready;
            self.ready += 1;
            self.note_free(slot);
        }
    }

    /// Lends a request a slot of an instance.
    fn grant(&mut self, slot: u32, now: Ns, request: Waiting, around: &mut impl Around) {
        self.forget_free(slot);
        let memory = self.memory;
        let instance = self.at(slot);
        instance.leases += 1;
        if instance.leases == 1 {
            around.tally().idled((instance.since, now), memory);
            instance.since = now;
        }
        if std::mem::take(&mut instance.idle) {
            let place = self.place(slot);
            around.busy(place);
        }
        self.note_free(slot);
        self.serve(slot, now, request, around);
    }

    /// A request runs in the slot that it has.
    fn serve(&mut self, slot: u32, now: Ns, request: Waiting, around: &mut impl Around) {
        let extra = std::mem::take(&mut self.at(slot).extra);
        around.tally().added(now - request.came + extra);
        let done = now.saturating_add(request.runtime).saturating_add(extra);
        around.schedule(done, Event::Done(slot));
    }

    fn done(&mut self, slot: u32, now: Ns, around: &mut impl Around) -> Missing {
        self.meter.leave(now);
        let instance = self.at(slot);
        if !std::mem::replace(&mut instance.replied, true) {
            let (node, kind, missed) = (instance.node, instance.kind, instance.missed);
            self.learnt(node, kind, missed);
        }
        if let Some(request) = self.waiting.pop_front() {
            self.unmark(slot);
            // As the node tells it: whoever came before its instance was ready has waited for that start,
            // even if another request has used it in between.
            let Instance { ready, kind, .. } = *self.at(slot);
            match request.came < ready {
                true => around.tally().cold(kind, now),
                false => around.tally().queued(),
            }
            self.serve(slot, now, request, around);
            return self.missing();
        }
        self.forget_free(slot);
        let instance = self.at(slot);
        instance.leases = instance.leases.saturating_sub(1);
        let (idle, state) = (instance.leases == 0, instance.state);
        if idle {
            around.tally().worked((instance.since, now));
            instance.since = now;
        }
        if idle && state == State::Leaving {
            self.remove(slot, now, around);
            return Missing::default();
        }
        self.note_free(slot);
        if idle {
            self.rest(slot, now, around);
        }
        Missing::default()
    }

    fn rest(&mut self, slot: u32, now: Ns, around: &mut impl Around) {
        self.at(slot).idle = true;
        let place = self.place(slot);
        around.idle(place, now);
    }

    fn started(&mut self, slot: u32, now: Ns, around: &mut impl Around) -> Missing {
        self.starting -= 1;
        self.ready += 1;
        self.ever_ready = true;
        let instance = self.at(slot);
        (instance.state, instance.ready, instance.since) = (State::Ready, now, now);
        let kind = instance.kind;
        self.note_free(slot);
        loop {
            let leases = self.at(slot).leases;
            if !self.takes_more(leases) {
                break;
            }
            let Some(request) = self.waiting.pop_front() else { break };
            around.tally().cold(kind, now);
            self.grant(slot, now, request, around);
        }
        if self.at(slot).leases == 0 {
            self.rest(slot, now, around);
        }
        self.missing()
    }

    fn remove(&mut self, slot: u32, now: Ns, around: &mut impl Around) {
        self.forget_free(slot);
        self.account(slot, now, around.tally());
        let place = self.place(slot);
        let instance = self.at(slot);
        let state = std::mem::replace(&mut instance.state, State::Vacant);
        let idle = std::mem::take(&mut instance.idle);
        match state {
            State::Ready => self.ready -= 1,
            State::Leaving => self.leaving.retain(|one| *one != slot),
            State::Starting | State::Vacant => {}
        }
        self.free.end(slot);
        self.vacant.push(slot);
        around.gone(place, idle);
    }

    /// Adds an instance's life to the figures.
    fn account(&mut self, slot: u32, now: Ns, tally: &mut Tally) {
        let memory = self.memory;
        let instance = self.at(slot);
        if instance.state != State::Starting {
            let stretch = (instance.since, now);
            if instance.leases == 0 { tally.idled(stretch, memory) } else { tally.worked(stretch) }
        }
        tally.lived(instance.begun, now, memory);
    }

    /// Starts that requests or the policy miss.
    fn missing(&mut self) -> Missing {
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        let starts = match self.common.function.concurrency {
            0 => waiting.min(1),
            concurrency => waiting.div_ceil(concurrency),
        };
        let waiting = starts.saturating_sub(self.starting);
        let mut all = waiting;
        if let Some(want) = self.wanted {
            let mut lacks = want.saturating_sub(self.ready + self.starting);
            while lacks > 0 {
                let Some(slot) = self.leaving.first().copied() else { break };
                self.unmark(slot);
                lacks -= 1;
            }
            all = all.max(lacks);
        }
        let max = self.common.rules.max;
        if max > 0 {
            let there =
                self.ready + self.starting + u32::try_from(self.leaving.len()).unwrap_or(u32::MAX);
            all = all.min(max.saturating_sub(there));
        }
        Missing { waiting: waiting.min(all), all }
    }

    fn resize(&mut self, want: u32, now: Ns, around: &mut impl Around) {
        let mut excess = self.ready.saturating_sub(want);
        // Idle ones first, of them the youngest.
        while excess > 0 {
            let Some(slot) = self.free.youngest_idle() else { break };
            self.remove(slot, now, around);
            excess -= 1;
        }
        if excess == 0 {
            return;
        }
        // Then the least busy, of equals the youngest.
        let mut busy: Vec<(u32, std::cmp::Reverse<u32>, u32)> = (0..)
            .zip(&self.instances)
            .filter(|(_, i)| i.state == State::Ready)
            .map(|(slot, i)| (i.leases, std::cmp::Reverse(i.no), slot))
            .collect();
        busy.sort_unstable();
        for (_, _, slot) in busy.into_iter().take(usize::try_from(excess).unwrap_or(usize::MAX)) {
            self.forget_free(slot);
            self.at(slot).state = State::Leaving;
            self.ready -= 1;
            self.leaving.push(slot);
        }
    }
}

pub(super) fn nanos(length: Duration) -> Ns {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}
