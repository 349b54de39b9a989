//! How instances of a function start, and what its node knows of it after their first reply.
//!
//! ```text
//!   without a limit   start ───────────────────────────────────────────────► Ready
//!   with turns        line_up ─ image ─► Asks ─ waits ─► begin_turn ─► Yields ─► Ready
//! ```
//!
//! As on the node: the image is made before a start asks for its turn, how it starts is decided when it has
//! its turn, and it gives that back when it is ready, or before that if its function takes too long.

use vhive_api::{MemoryMode, StartKind};
use vhive_policy::start::{Facts, Start, choose, missed};

use super::super::starts::One;
use super::{Around, Cell, Event, Instance, Ns};

impl Cell<'_> {
    /// Starts an instance on a node where no start waits for another.
    pub(in super::super) fn start(&mut self, now: Ns, node: u32, around: &mut impl Around) {
        let kind = self.kind(node);
        let (slot, one) = self.enter(now, node, kind);
        around.tally().started(kind);
        around.schedule(now.saturating_add(one.ready), Event::Ready(slot));
    }

    /// Begins a start on a node where starts take turns. Returns its slot, and after how long it asks for its turn.
    pub(in super::super) fn line_up(&mut self, now: Ns, node: u32) -> (u32, Ns) {
        let (slot, one) = self.enter(now, node, self.kind(node));
        let index = usize::try_from(slot).unwrap_or(usize::MAX);
        if self.drawn.len() <= index {
            self.drawn.resize(self.instances.len(), One::default());
        }
        self.drawn[index] = one;
        (slot, one.before)
    }

    /// The start in this slot has its turn. A function that is not ready after `most` of probing gives its
    /// start's turn back.
    pub(in super::super) fn begin_turn(
        &mut self,
        now: Ns,
        slot: u32,
        most: Ns,
        around: &mut impl Around,
    ) {
        let instance = *self.at(slot);
        let index = usize::try_from(slot).unwrap_or(usize::MAX);
        let mut one = self.drawn.get(index).copied().unwrap_or_default();
        let asked = instance.begun.saturating_add(one.before);
        around.tally().waited_for_turn(now.saturating_sub(asked));
        let kind = self.kind(instance.node);
        if kind != instance.kind {
            // While it waited, its node got a snapshot, or learnt of it.
            one = self.draw(slot, kind);
        }
        around.tally().started(kind);
        around.schedule(now.saturating_add(one.turn(most)), Event::Yields(slot));
        let left = one.ready.saturating_sub(one.before);
        around.schedule(now.saturating_add(left), Event::Ready(slot));
    }

    /// Where the instance of a slot is.
    pub(in super::super) fn node(&self, slot: u32) -> Option<u32> {
        self.instances.get(usize::try_from(slot).ok()?).map(|instance| instance.node)
    }

    /// A new instance that starts, and what was drawn for its start.
    fn enter(&mut self, now: Ns, node: u32, kind: StartKind) -> (u32, One) {
        let instance = Instance::starting(self.next, node, now, kind);
        self.next += 1;
        self.starting += 1;
        let slot = if let Some(slot) = self.vacant.pop() {
            *self.at(slot) = instance;
            slot
        } else {
            self.instances.push(instance);
            u32::try_from(self.instances.len() - 1).unwrap_or(u32::MAX)
        };
        self.free.begin(slot);
        let one = self.draw(slot, kind);
        (slot, one)
    }

    /// Draws how the instance of a slot starts in this way.
    fn draw(&mut self, slot: u32, kind: StartKind) -> One {
        let function = &self.common.function;
        let one = self.profile.draw(kind, function.prefetch, &mut self.rng);
        let most = function.rerecord_above_percent;
        let prefetched = kind == StartKind::Reap && one.pages > 0;
        let instance = self.at(slot);
        (instance.kind, instance.extra) = (kind, one.extra);
        instance.missed = prefetched.then(|| missed(one.faults, one.pages, most));
        one
    }

    fn kind(&self, node: u32) -> StartKind {
        let function = &self.common.function;
        let found = self.snapshots.binary_search_by_key(&node, |(node, _)| *node);
        let facts = found.ok().and_then(|at| self.snapshots.get(at)).map(|(_, facts)| *facts);
        match choose(function.snapshot, function.prefetch, facts, self.profile.can()) {
            Start::Boot => StartKind::Boot,
            Start::Restore(mode) => StartKind::restored(mode),
        }
    }

    /// The first reply of an instance: behind it a node has a snapshot, or a working set more, or
    /// knows that prefetching missed too much.
    pub(super) fn learnt(&mut self, node: u32, kind: StartKind, missed: Option<bool>) {
        let found = self.snapshots.binary_search_by_key(&node, |(node, _)| *node);
        let function = &self.common.function;
        let at = match found {
            Ok(at) => at,
            Err(at) if kind == StartKind::Boot && function.takes_snapshots() => {
                self.snapshots.insert(at, (node, Facts::default()));
                return;
            }
            Err(_) => return,
        };
        let records = match kind {
            StartKind::Record => true,
            StartKind::Snapshot => function.records_in(MemoryMode::File, self.profile.can()),
            _ => false,
        };
        let Some((_, facts)) = self.snapshots.get_mut(at) else { return };
        if records {
            facts.working_sets += 1;
            (facts.missed, facts.misses) = (false, 0);
        }
        let Some(missed) = missed else { return };
        facts.missed = missed;
        facts.misses = facts.misses.saturating_add(missed.into());
        if facts.begins_anew() {
            *facts = Facts::default();
        }
    }
}
