//! The decisions of one pool, without I/O, locks or a clock: events in, actions out.
//!
//! ```text
//!            ┌── Start ──► Starting ── started ──► Ready ◄──── slot wanted ────┐
//!   acquire ─┤                 │                  │  │  └── resize down, busy ─► Leaving
//!            └── wait, FIFO    └─ start_failed    │  └── resize down, idle ─┐      │ last release
//!                                 (back-off)      └── broken ─► Broken ─────┴► Stop ◄┘
//!
//!   Ready ── last release, replied, snapshot wanted, nobody waits ──► Snapshotting ──► Ready
//!
//!   if none is idle for long, another one ──► Starting ──► Snapshotting ──► Stop, or Ready
//!   while an instance is unwell it gets no slots, in whatever state
//! ```

mod overdue;
mod withhold;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use self::overdue::Waits;
use super::back_off::BackOff;

/// Numbers an instance within its pool, ascending, never reused.
pub(crate) type InstanceNo = u64;
/// Numbers a waiting request within its pool, ascending: their order is the queue's.
pub(crate) type WaiterNo = u64;

/// What limits a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Requests that an instance may hold at a time; 0 = no limit.
    pub(crate) concurrency: u32,
    /// Most instances; 0 = no limit.
    pub(crate) max: u32,
}

/// What the owner of a [`Core`] must do after an event, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start this instance, then report `started`, `start_failed` or `no_room`.
    Start(InstanceNo),
    /// Lend the waiter a slot of the instance.
    Grant(WaiterNo, InstanceNo),
    /// Tell the waiter that it will not get one.
    Fail(WaiterNo, Refusal),
    /// Stop and release the instance; the core has forgotten it.
    Stop(InstanceNo),
    /// Take a snapshot of the instance, which holds nothing, then report `snapshotted`.
    Snapshot(InstanceNo),
    /// No instance that serves will do for the snapshot: `prepare` one, unless there is a snapshot;
    /// then report `saved`.
    Overdue,
}

/// Why a request gets no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The start that could have served it failed just now.
    StartFailed,
    /// The last start failed and the next is not due before this.
    BackingOff(Instant),
    /// The node has no room for another instance.
    Full,
    /// The pool is being closed.
    Closing,
    /// There are as many instances as there may be.
    AtMax,
}

/// The immediate answer to a request for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It has a slot of this instance.
    Granted(InstanceNo),
    /// It waits; an action will name it.
    Waits(WaiterNo),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Being started, since this era of the back-off.
    Starting(u64),
    /// Serves.
    Ready,
    /// Serves what it holds, then stops, unless a request wants a slot before that.
    Leaving,
    /// Serves what it holds, then stops.
    Broken,
    /// Holds nothing and is lent to nobody while a snapshot is taken of it.
    Snapshotting,
}

#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each holds or not, whatever the others do")]
struct Instance {
    state: State,
    leases: u32,
    /// A snapshot of it is wanted, once it has replied and idles.
    due: bool,
    /// It has replied to a request.
    replied: bool,
    /// It is here for its snapshot only and goes when that is taken, unless a request wants it.
    passing: bool,
    /// It says that it is not ready: it serves what it holds and gets nothing more.
    unwell: bool,
}

impl Instance {
    fn starting(era: u64) -> Self {
        let state = State::Starting(era);
        Self { state, leases: 0, due: false, replied: false, passing: false, unwell: false }
    }
}

/// How many of what; for status and for the autoscaler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Instances that serve or could.
    pub(crate) ready: u32,
    /// Instances being started.
    pub(crate) starting: u32,
    /// Ready instances that hold at least one request.
    pub(crate) busy: u32,
    /// Ready instances that go once they hold none.
    pub(crate) leaving: u32,
    /// Requests that wait for a slot.
    pub(crate) queued: u32,
    /// Slots lent at present.
    pub(crate) leases: u32,
}

/// The state of one pool.
#[derive(Debug)]
pub(crate) struct Core {
    bounds: Bounds,
    want: u32,
    closing: bool,
    /// `want` does not count before the next request.
    dormant: bool,
    instances: BTreeMap<InstanceNo, Instance>,
    /// Ready instances with a free slot, by load, then age.
    free: BTreeSet<(u32, InstanceNo)>,
    leaving: BTreeSet<InstanceNo>,
    starting: u32,
    broken: u32,
    snapshotting: u32,
    waiting: BTreeSet<WaiterNo>,
    next_instance: InstanceNo,
    next_waiter: WaiterNo,
    /// Gates every start after a failed one.
    failed: BackOff,
    /// Gates starts that no request asked for, after a crash.
    crashed: BackOff,
    /// How long a snapshot waits for an idle instance.
    patience: Duration,
    /// A snapshot that is wanted and not there.
    waits: Option<Waits>,
}

impl Core {
    pub(crate) fn new(bounds: Bounds, back_off: BackOff, patience: Duration) -> Self {
        Self {
            bounds,
            want: 0,
            closing: false,
            dormant: false,
            instances: BTreeMap::new(),
            free: BTreeSet::new(),
            leaving: BTreeSet::new(),
            starting: 0,
            broken: 0,
            snapshotting: 0,
            waiting: BTreeSet::new(),
            next_instance: 0,
            next_waiter: 0,
            failed: back_off,
            crashed: back_off,
            patience,
            waits: None,
        }
    }

    /// A request wants a slot.
    pub(crate) fn acquire(
        &mut self,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Result<Answer, Refusal> {
        if self.closing {
            return Err(Refusal::Closing);
        }
        self.dormant = false;
        if let Some(no) = self.take_slot() {
            return Ok(Answer::Granted(no));
        }
        if !self.has_capacity()
            && let Some(until) = self.failed.closed_until(now)
        {
            return Err(Refusal::BackingOff(until));
        }
        let waiter = self.next_waiter;
        self.next_waiter += 1;
        self.waiting.insert(waiter);
        self.plan(now, out);
        Ok(Answer::Waits(waiter))
    }

    /// A waiting request has gone away.
    pub(crate) fn cancel(&mut self, waiter: WaiterNo) {
        self.waiting.remove(&waiter);
    }

    /// A start succeeded.
    pub(crate) fn started(&mut self, no: InstanceNo, now: Instant, out: &mut Vec<Action>) {
        if !self.is_starting(no) {
            return;
        }
        self.set_state(no, State::Ready);
        self.failed.reset();
        let due = self.instances.get(&no).is_some_and(|i| i.due);
        let saves = due && self.is_prepared(no);
        if due && !saves {
            self.wait_for_idle(now);
        }
        if saves && !self.closing {
            self.snapshot(no, out);
        } else {
            self.serve(no, out);
        }
        self.plan(now, out);
    }

    /// An instance can be lent: serves who waits. One that nobody wants goes.
    fn serve(&mut self, no: InstanceNo, out: &mut Vec<Action>) {
        self.note_free(no);
        while self.has_free_slot(no) {
            let Some(waiter) = self.waiting.pop_first() else { break };
            self.lend(no);
            out.push(Action::Grant(waiter, no));
        }
        let passing = self.instances.get_mut(&no).is_some_and(|i| std::mem::take(&mut i.passing));
        if passing && self.instances.get(&no).is_some_and(|i| i.leases == 0) {
            self.remove(no, out);
        } else {
            self.stop_if_done(no, out);
        }
    }

    /// A start failed.
    pub(crate) fn start_failed(&mut self, no: InstanceNo, now: Instant, out: &mut Vec<Action>) {
        let Some(Instance { state: State::Starting(era), .. }) = self.instances.get(&no).copied()
        else {
            return;
        };
        self.forget(no);
        self.failed.fail(era, now);
        if !self.has_capacity() {
            self.fail_waiting(Refusal::StartFailed, out);
        }
    }

    /// The node had no room for a start. `may_come` says that room is being made, after which
    /// `poke` follows.
    pub(crate) fn no_room(&mut self, no: InstanceNo, may_come: bool, out: &mut Vec<Action>) {
        if !self.is_starting(no) {
            return;
        }
        self.forget(no);
        if !may_come && !self.has_capacity() {
            self.fail_waiting(Refusal::Full, out);
        }
    }

    /// An instance ended by itself. What it held is lost. A start under way is not concerned: it
    /// fails by itself.
    pub(crate) fn died(&mut self, no: InstanceNo, now: Instant, out: &mut Vec<Action>) {
        match self.instances.get(&no) {
            None | Some(Instance { state: State::Starting(_), .. }) => return,
            Some(Instance {
                state: State::Ready | State::Leaving | State::Snapshotting, ..
            }) => {
                let era = self.crashed.era();
                self.crashed.fail(era, now);
            }
            Some(_) => {}
        }
        self.remove(no, out);
        self.after_loss(now, out);
    }

    /// The holder of a slot says that the instance is of no use any more. The slot is still held.
    pub(crate) fn broken(&mut self, no: InstanceNo, now: Instant, out: &mut Vec<Action>) {
        if self.instances.contains_key(&no) && !self.is_starting(no) {
            self.forget_free(no);
            self.set_state(no, State::Broken);
            self.after_loss(now, out);
        }
    }

    /// A slot comes back.
    pub(crate) fn release(&mut self, no: InstanceNo, now: Instant, out: &mut Vec<Action>) {
        let Some(instance) = self.instances.get(&no).copied() else { return };
        if instance.state != State::Broken {
            self.crashed.reset();
            if !instance.unwell
                && let Some(waiter) = self.waiting.pop_first()
            {
                self.unmark(no);
                out.push(Action::Grant(waiter, no));
                self.plan(now, out);
                return;
            }
        }
        self.forget_free(no);
        if let Some(instance) = self.instances.get_mut(&no) {
            instance.leases = instance.leases.saturating_sub(1);
        }
        let due = self.instances.get(&no).is_some_and(|i| {
            i.state == State::Ready && i.leases == 0 && i.due && i.replied && !i.unwell
        });
        if due && !self.closing {
            self.snapshot(no, out);
            return;
        }
        self.note_free(no);
        self.stop_if_done(no, out);
        if !self.waiting.is_empty() {
            // What has gone may have been unwell, and all that somebody waited for.
            self.after_loss(now, out);
        }
    }

    /// There should be `want` instances: starts what is missing, stops what idles beyond, marks
    /// what is busy beyond.
    pub(crate) fn resize(&mut self, want: u32, now: Instant, out: &mut Vec<Action>) {
        self.want = want;
        let mut excess = self.ready().saturating_sub(want);
        // What is unwell first, then idle ones, then the least busy; among equals the youngest.
        let mut victims: Vec<(bool, u32, std::cmp::Reverse<InstanceNo>)> = Vec::new();
        if excess > 0 {
            let ready = self.instances.iter().filter(|(_, i)| i.state == State::Ready);
            let each = ready.map(|(no, i)| (!i.unwell, i.leases, std::cmp::Reverse(*no)));
            victims = each.collect();
            victims.sort_unstable();
        }
        for (_, leases, std::cmp::Reverse(no)) in victims {
            if excess == 0 {
                break;
            }
            excess -= 1;
            if leases == 0 {
                self.remove(no, out);
            } else {
                self.forget_free(no);
                self.set_state(no, State::Leaving);
            }
        }
        self.after_loss(now, out);
    }

    /// Looks again: a back-off may have ended, or room come.
    pub(crate) fn poke(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.look_at_waits(now, out);
        self.after_loss(now, out);
    }

    /// Takes no more requests, starts nothing more, stops what idles. What is lent or under way
    /// goes on; waiting requests stay only while something can serve them.
    pub(crate) fn close(&mut self, out: &mut Vec<Action>) {
        self.closing = true;
        self.want = 0;
        let all: Vec<InstanceNo> = self.instances.keys().copied().collect();
        for no in all {
            self.stop_if_done(no, out);
        }
        if !self.has_capacity() {
            self.fail_waiting(Refusal::Closing, out);
        }
    }

    /// Closes at once: whatever is lent or waits.
    pub(crate) fn abandon(&mut self, out: &mut Vec<Action>) {
        self.closing = true;
        self.fail_waiting(Refusal::Closing, out);
        let ready: Vec<InstanceNo> = self
            .instances
            .iter()
            .filter(|(_, i)| !matches!(i.state, State::Starting(_)))
            .map(|(no, _)| *no)
            .collect();
        for no in ready {
            self.remove(no, out);
        }
    }

    pub(crate) fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        let all: Vec<InstanceNo> = self.instances.keys().copied().collect();
        self.free.clear();
        for no in all {
            self.note_free(no);
        }
    }

    /// What made starts fail is no more: the next one need not wait.
    pub(crate) fn forgive(&mut self) {
        self.failed.reset();
    }

    /// When `poke` is due, if anything hangs on it.
    pub(crate) fn poke_at(&self, now: Instant) -> Option<Instant> {
        let failed = self.failed.closed_until(now);
        let crashed = self.crashed.closed_until(now);
        let demand = !self.waiting.is_empty() || self.want > 0;
        let starts = failed.into_iter().chain(crashed).min().filter(|_| demand);
        starts.into_iter().chain(self.ask_at()).min().filter(|_| !self.closing)
    }

    /// Instances altogether, and of them those that start: what a door sees change.
    pub(crate) fn size(&self) -> (u32, u32) {
        (self.total(), self.starting)
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts { starting: self.starting, ..Counts::default() };
        counts.queued = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        for instance in self.instances.values() {
            counts.leases = counts.leases.saturating_add(instance.leases);
            if matches!(instance.state, State::Ready | State::Leaving | State::Snapshotting) {
                counts.ready += 1;
                counts.busy += u32::from(instance.leases > 0);
                counts.leaving += u32::from(instance.state == State::Leaving);
            }
        }
        counts
    }

    /// State and slots lent of one instance.
    pub(crate) fn instance(&self, no: InstanceNo) -> Option<(super::InstanceState, u32)> {
        let instance = self.instances.get(&no)?;
        let state = match instance.state {
            State::Starting(_) => super::InstanceState::Starting,
            State::Ready if instance.unwell => super::InstanceState::Unready,
            State::Ready => super::InstanceState::Ready,
            State::Leaving => super::InstanceState::Leaving,
            State::Broken => super::InstanceState::Broken,
            State::Snapshotting => super::InstanceState::Snapshotting,
        };
        Some((state, instance.leases))
    }

    // === decisions ===

    /// Starts what demand and `want` call for, as far as bounds and back-offs allow.
    fn plan(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.closing || self.failed.closed_until(now).is_some() {
            return;
        }
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        let for_waiting = match self.bounds.concurrency {
            0 => waiting.min(1),
            concurrency => waiting.div_ceil(concurrency),
        };
        // What is being started, or about to come back from its snapshot, will serve some; but nobody waits for
        // a snapshot that an instance was started for.
        let coming = self.starting + self.snapshotting;
        let alone = self.alone(|state| matches!(state, State::Starting(_) | State::Snapshotting));
        let mut needed = for_waiting.saturating_sub(coming - alone);
        if self.want > 0 && !self.dormant {
            needed = needed.max(self.missing(now));
        }
        if needed == 0 {
            return;
        }
        if self.bounds.max > 0 {
            needed = needed.min(self.bounds.max.saturating_sub(self.total() - self.broken));
        }
        if self.failed.failures() > 0 {
            // The last start failed: one at a time until one succeeds.
            needed = needed.min(1_u32.saturating_sub(self.starting));
        }
        for _ in 0..needed {
            self.start(out);
        }
    }

    fn start(&mut self, out: &mut Vec<Action>) -> InstanceNo {
        let no = self.next_instance;
        self.next_instance += 1;
        let instance = Instance::starting(self.failed.era());
        self.instances.insert(no, instance);
        self.count(no, instance.state, 1);
        out.push(Action::Start(no));
        no
    }

    /// How many instances in such a state were started for their snapshots only.
    fn alone(&self, is_in: impl Fn(State) -> bool) -> u32 {
        let alone = self.instances.values().filter(|i| i.passing && is_in(i.state));
        u32::try_from(alone.count()).unwrap_or(u32::MAX)
    }

    /// How many instances `want` lacks, after taking back marked ones.
    fn missing(&mut self, now: Instant) -> u32 {
        let alone = self.alone(|state| matches!(state, State::Starting(_)));
        let mut lacks = self.want.saturating_sub(self.ready() + self.starting - alone);
        while lacks > 0 {
            let Some(&no) = self.leaving.first() else { break };
            self.unmark(no);
            lacks -= 1;
        }
        if self.crashed.closed_until(now).is_some() { 0 } else { lacks }
    }

    fn after_loss(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.plan(now, out);
        if self.waiting.is_empty() || self.has_capacity() {
            return;
        }
        if self.closing {
            self.fail_waiting(Refusal::Closing, out);
        } else if let Some(until) = self.failed.closed_until(now) {
            self.fail_waiting(Refusal::BackingOff(until), out);
        }
    }

    fn fail_waiting(&mut self, why: Refusal, out: &mut Vec<Action>) {
        out.extend(std::mem::take(&mut self.waiting).into_iter().map(|w| Action::Fail(w, why)));
    }

    /// Lends a slot of the least loaded instance, or else of one that is about to leave.
    fn take_slot(&mut self) -> Option<InstanceNo> {
        if self.free.is_empty() {
            let no = self.leaving.iter().copied().find(|no| self.has_free_slot(*no))?;
            self.unmark(no);
        }
        let &(_, no) = self.free.first()?;
        self.lend(no);
        Some(no)
    }

    fn lend(&mut self, no: InstanceNo) {
        self.forget_free(no);
        if let Some(instance) = self.instances.get_mut(&no) {
            instance.leases += 1;
        }
        self.note_free(no);
    }

    fn unmark(&mut self, no: InstanceNo) {
        if self.instances.get(&no).is_some_and(|i| i.state == State::Leaving) && !self.closing {
            self.set_state(no, State::Ready);
            self.note_free(no);
        }
    }

    fn stop_if_done(&mut self, no: InstanceNo, out: &mut Vec<Action>) {
        let Some(instance) = self.instances.get(&no) else { return };
        let done = match instance.state {
            State::Starting(_) | State::Snapshotting => false,
            // Idle although somebody waits: it is unwell.
            State::Ready => self.closing,
            State::Leaving | State::Broken => true,
        };
        if done && instance.leases == 0 {
            self.remove(no, out);
        }
    }

    fn remove(&mut self, no: InstanceNo, out: &mut Vec<Action>) {
        if self.forget(no) {
            out.push(Action::Stop(no));
        }
    }

    // === bookkeeping ===

    fn takes_more(&self, leases: u32) -> bool {
        self.bounds.concurrency == 0 || leases < self.bounds.concurrency
    }

    fn has_free_slot(&self, no: InstanceNo) -> bool {
        self.instances.get(&no).is_some_and(|i| !i.unwell && self.takes_more(i.leases))
    }

    fn note_free(&mut self, no: InstanceNo) {
        if let Some(instance) = self.instances.get(&no)
            && instance.state == State::Ready
            && !instance.unwell
            && self.takes_more(instance.leases)
        {
            self.free.insert((instance.leases, no));
        }
    }

    fn forget_free(&mut self, no: InstanceNo) {
        if let Some(instance) = self.instances.get(&no) {
            self.free.remove(&(instance.leases, no));
        }
    }

    /// Removes an instance without a word; false if there was none.
    fn forget(&mut self, no: InstanceNo) -> bool {
        self.forget_free(no);
        let Some(instance) = self.instances.remove(&no) else { return false };
        self.count(no, instance.state, -1);
        true
    }

    fn set_state(&mut self, no: InstanceNo, state: State) {
        let Some(instance) = self.instances.get_mut(&no) else { return };
        let before = std::mem::replace(&mut instance.state, state);
        self.count(no, before, -1);
        self.count(no, state, 1);
    }

    fn count(&mut self, no: InstanceNo, state: State, by: i32) {
        match state {
            State::Starting(_) => self.starting = self.starting.saturating_add_signed(by),
            State::Broken => self.broken = self.broken.saturating_add_signed(by),
            State::Snapshotting => {
                self.snapshotting = self.snapshotting.saturating_add_signed(by);
            }
            State::Leaving if by > 0 => _ = self.leaving.insert(no),
            State::Leaving => _ = self.leaving.remove(&no),
            State::Ready => {}
        }
    }

    fn is_starting(&self, no: InstanceNo) -> bool {
        self.instances.get(&no).is_some_and(|i| matches!(i.state, State::Starting(_)))
    }

    fn total(&self) -> u32 {
        u32::try_from(self.instances.len()).unwrap_or(u32::MAX)
    }

    fn ready(&self) -> u32 {
        let leaving = u32::try_from(self.leaving.len()).unwrap_or(u32::MAX);
        self.total() - self.starting - self.broken - leaving
    }
}

#[cfg(test)]
mod tests;
