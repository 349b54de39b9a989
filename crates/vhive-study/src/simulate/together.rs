//! Functions that share nodes of limited memory: everything in the order in which it happens.

use std::collections::VecDeque;

use vhive_policy::placement::{Ask, NodeRoom, Placement};

use super::alone::cell;
use super::cell::{Around, Cell, Common, Event, Missing, Ns, Place};
use super::events::Events;
use super::starts::Starts;
use super::tally::Tally;
use super::turns::{self, Turns};
use super::workload::{Arrivals, Invocation, Workload};

/// Idle instances of a node beyond which the list of them is tidied.
const TIDY: usize = 64;

/// A look that is farther away is looked for again when so much time has passed: it often comes sooner
/// than was thought, and what was noted for later stays among the events until then.
const FAR: Ns = 16_000_000_000;

/// The nodes, as they are without a limit to their number of functions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nodes {
    pub(super) count: usize,
    pub(super) memory: u64,
    pub(super) placement: Placement,
    pub(super) turns: TurnsOf,
}

/// How starts of a node take turns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TurnsOf {
    /// Turns of each node; 0 = no start waits for another.
    pub(super) each: u32,
    /// A start gives its turn back after so much probing.
    pub(super) most: Ns,
}

/// An instance that was idle since a moment; it may have served since.
#[derive(Clone, Copy, Debug)]
struct Idle {
    cell: u32,
    place: Place,
    since: Ns,
}

/// What surrounds all functions.
struct Hosts {
    events: Events,
    /// The function that something happens to, and when.
    cell: u32,
    now: Ns,
    /// Of each function, the earliest of its looks among the events. None is noted that is not earlier.
    looks: Vec<Ns>,
    rooms: Vec<NodeRoom>,
    /// Of each node, in the order in which they became idle.
    idle: Vec<VecDeque<Idle>>,
    /// Idle instances of each node.
    idling: Vec<usize>,
    /// A node whose list has mostly what is idle no more.
    untidy: Option<usize>,
    tally: Tally,
}

impl Hosts {
    fn room(&mut self, node: u32) -> Option<&mut NodeRoom> {
        self.rooms.get_mut(usize::try_from(node).ok()?)
    }

    fn count_idle(&mut self, node: u32, more: bool) {
        let index = usize::try_from(node).unwrap_or(usize::MAX);
        if let Some(count) = self.idling.get_mut(index) {
            *count = if more { *count + 1 } else { count.saturating_sub(1) };
        }
    }
}

impl Around for Hosts {
    fn schedule(&mut self, at: Ns, event: Event) {
        if event != Event::Look {
            self.events.push(at, self.cell, event);
            return;
        }
        let at = at.min(self.now.saturating_add(FAR));
        let index = usize::try_from(self.cell).unwrap_or(usize::MAX);
        if let Some(earliest) = self.looks.get_mut(index).filter(|earliest| at < **earliest) {
            *earliest = at;
            self.events.push(at, self.cell, Event::Look);
        }
    }

    fn busy(&mut self, place: Place) {
        self.count_idle(place.node, false);
        if let Some(room) = self.room(place.node) {
            room.idle = room.idle.saturating_sub(place.memory);
        }
    }

    fn idle(&mut self, place: Place, now: Ns) {
        self.count_idle(place.node, true);
        if let Some(room) = self.room(place.node) {
            room.idle += place.memory;
        }
        let cell = self.cell;
        let index = usize::try_from(place.node).unwrap_or(usize::MAX);
        if let Some(list) = self.idle.get_mut(index) {
            list.push_back(Idle { cell, place, since: now });
            if list.len() > 2 * self.idling.get(index).copied().unwrap_or(0) + TIDY {
                self.untidy = Some(index);
            }
        }
    }

    fn gone(&mut self, place: Place, idle: bool) {
        if idle {
            self.busy(place);
        }
        if let Some(room) = self.room(place.node) {
            room.free += place.memory;
        }
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
}

struct World<'a> {
    cells: Vec<Cell<'a>>,
    hosts: Hosts,
    placement: Placement,
    turns: Turns,
    /// A start gives its turn back after so much probing.
    most: Ns,
    placed: u64,
    waiting: usize,
    /// The function of the event that is under way; none when a request comes.
    event_of: Option<u32>,
}

/// Simulates all functions on the nodes.
pub(super) fn run(
    common: &Common,
    (workload, starts): (&Workload, &Starts),
    seed: u64,
    nodes: Nodes,
) -> Tally {
    let horizon = workload.horizon();
    let count = workload.functions.len();
    let cells = (0..count).map(|number| cell(common, (workload, starts), (seed, number)));
    let mut world = World {
        cells: cells.collect(),
        hosts: Hosts {
            events: Events::default(),
            cell: 0,
            now: 0,
            looks: vec![Ns::MAX; count],
            rooms: vec![NodeRoom { free: nodes.memory, idle: 0 }; nodes.count],
            idle: vec![VecDeque::new(); nodes.count],
            idling: vec![0; nodes.count],
            untidy: None,
            tally: Tally::new(horizon),
        },
        placement: nodes.placement,
        turns: Turns::new(nodes.count, nodes.turns.each),
        most: nodes.turns.most,
        placed: 0,
        waiting: 0,
        event_of: None,
    };
    for number in 0..count {
        world.turn_to(number);
        let World { cells, hosts, .. } = &mut world;
        cells[number].begin(hosts);
    }
    let mut arrivals: Vec<Arrivals<'_>> = (0..count).map(|n| workload.arrivals(n)).collect();
    let (mut one, mut minute) = (Vec::new(), Vec::new());
    for _ in 0..workload.minutes {
        minute.clear();
        for (number, arrivals) in arrivals.iter_mut().enumerate() {
            one.clear();
            arrivals.minute(&mut one);
            minute.extend(one.iter().map(|invocation| (*invocation, number)));
        }
        minute.sort_by_key(|(Invocation { at, .. }, number)| (*at, *number));
        for (Invocation { at, runtime }, number) in minute.iter().copied() {
            world.until(at);
            world.event_of = None;
            world.act(number, at, |cell, hosts| cell.arrive(at, runtime, hosts));
        }
    }
    world.until(horizon);
    // Whoever came in time is served, also if that is later.
    while world.waiting > 0 {
        let Some((now, number, event)) = world.hosts.events.pop() else { break };
        world.happen(now, number, event);
    }
    for number in 0..count {
        world.turn_to(number);
        let World { cells, hosts, .. } = &mut world;
        cells[number].end(horizon, hosts);
    }
    world.hosts.tally
}

impl<'a> World<'a> {
    fn turn_to(&mut self, number: usize) {
        self.hosts.cell = u32::try_from(number).unwrap_or(u32::MAX);
    }

    fn until(&mut self, moment: Ns) {
        while self.hosts.events.first().is_some_and(|now| now <= moment) {
            let Some((now, number, event)) = self.hosts.events.pop() else { return };
            self.happen(now, number, event);
        }
    }

    fn happen(&mut self, now: Ns, number: u32, event: Event) {
        self.event_of = Some(number);
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        let look = if event == Event::Look { self.hosts.looks.get_mut(index) } else { None };
        if let Some(earliest) = look.filter(|earliest| **earliest == now) {
            *earliest = Ns::MAX;
        }
        if let Event::Asks(slot) | Event::Yields(slot) = event {
            let node = self.cells.get(index).and_then(|cell| cell.node(slot));
            let Some(node) = node else { return };
            let next = match event {
                Event::Yields(_) => self.turns.give_back(node),
                _ => self.turns.ask(node, (number, slot)).then_some((number, slot)),
            };
            self.begin_turn(next, now);
            return;
        }
        self.act(index, now, |cell, hosts| {
            let missing = cell.happen(now, event, hosts);
            if event == Event::Look
                && let Some(next) = cell.next_look()
            {
                hosts.schedule(next, Event::Look);
            }
            missing
        });
    }

    /// Does something to a function, and starts what it then misses.
    fn act(
        &mut self,
        number: usize,
        now: Ns,
        act: impl FnOnce(&mut Cell<'a>, &mut Hosts) -> Missing,
    ) {
        self.turn_to(number);
        self.hosts.now = now;
        let Self { cells, hosts, .. } = self;
        let Some(cell) = cells.get_mut(number) else { return };
        let before = cell.waiting();
        let missing = act(cell, hosts);
        if let Some(node) = self.hosts.untidy.take() {
            self.tidy(node);
        }
        for nth in 0..missing.all {
            if !self.start(number, now, nth < missing.waiting) {
                break;
            }
        }
        let after = self.cells.get(number).map_or(0, Cell::waiting);
        self.waiting = self.waiting + after - before;
    }

    /// Starts an instance where there is room; for a request that waits also where room can be
    /// made. False if there is none.
    fn start(&mut self, number: usize, now: Ns, evict: bool) -> bool {
        let Some(cell) = self.cells.get(number) else { return false };
        let need = cell.memory();
        let key = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let ask = Ask { need, key, turn: self.placed, evict };
        let Some(node) = self.placement.choose(&self.hosts.rooms, ask) else {
            let Self { cells, hosts, .. } = self;
            if evict && let Some(cell) = cells.get_mut(number) {
                cell.no_room(now, hosts);
            }
            return false;
        };
        self.make_room(node, need, now);
        self.turn_to(number);
        self.placed += 1;
        let Self { cells, hosts, .. } = self;
        let node_no = u32::try_from(node).unwrap_or(u32::MAX);
        if let (Some(cell), Some(room)) = (cells.get_mut(number), hosts.rooms.get_mut(node)) {
            room.free = room.free.saturating_sub(need);
            if self.turns.limited() {
                let (slot, before) = cell.line_up(now, node_no);
                if before > 0 {
                    hosts.schedule(now.saturating_add(before), Event::Asks(slot));
                } else {
                    let start = (self.hosts.cell, slot);
                    let next = self.turns.ask(node_no, start).then_some(start);
                    self.begin_turn(next, now);
                }
            } else {
                cell.start(now, node_no, hosts);
            }
        }
        true
    }

    /// Whose turn it is begins.
    fn begin_turn(&mut self, start: Option<turns::Start>, now: Ns) {
        let Some((number, slot)) = start else { return };
        let Self { cells, hosts, most, .. } = self;
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        if let Some(cell) = cells.get_mut(index) {
            hosts.cell = number;
            cell.begin_turn(now, slot, *most, hosts);
        }
    }

    /// Evicts from a node what has been idle longest, until so much memory is free.
    fn make_room(&mut self, node: usize, need: u64, now: Ns) {
        let Self { cells, hosts, event_of, .. } = self;
        while hosts.rooms.get(node).is_some_and(|room| room.free < need) {
            let Some(oldest) = hosts.idle.get_mut(node).and_then(VecDeque::pop_front) else {
                return;
            };
            let index = usize::try_from(oldest.cell).unwrap_or(usize::MAX);
            if let Some(cell) =
                cells.get_mut(index).filter(|cell| cell.idles(&oldest.place, oldest.since))
            {
                hosts.cell = oldest.cell;
                // A request comes after whatever else is at its moment, and an event after those
                // of functions with lower numbers.
                let looked = event_of.is_none_or(|acting| oldest.cell < acting);
                cell.evict(oldest.place, now, looked, hosts);
            }
        }
    }

    fn tidy(&mut self, node: usize) {
        let Self { cells, hosts, .. } = self;
        let Some(list) = hosts.idle.get_mut(node) else { return };
        list.retain(|one| {
            let index = usize::try_from(one.cell).unwrap_or(usize::MAX);
            cells.get(index).is_some_and(|cell| cell.idles(&one.place, one.since))
        });
    }
}
