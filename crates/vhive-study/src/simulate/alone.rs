//! Functions one after the other, where nothing couples them.

use std::sync::atomic::{AtomicUsize, Ordering};

use vhive_load::rng::Rng;

use super::cell::{Around, Cell, Common, Event, Missing, Ns, Place};
use super::events::Events;
use super::starts::Starts;
use super::tally::Tally;
use super::workload::Workload;

/// Functions that a thread takes at a time.
const BATCH: usize = 16;

struct Alone {
    /// All but looks, of which the function knows itself when they are.
    events: Events,
    tally: Tally,
}

impl Around for Alone {
    fn schedule(&mut self, at: Ns, event: Event) {
        if event != Event::Look {
            self.events.push(at, 0, event);
        }
    }

    fn busy(&mut self, _: Place) {}

    fn idle(&mut self, _: Place, _: Ns) {}

    fn gone(&mut self, _: Place, _: bool) {}

    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
}

/// Simulates every function; the figures are the same with any number of threads.
pub(super) fn run(
    common: &Common,
    (workload, starts): (&Workload, &Starts),
    seed: u64,
    threads: usize,
) -> Tally {
    let next = AtomicUsize::new(0);
    let count = workload.functions.len();
    let work = || {
        let mut alone = Alone { events: Events::default(), tally: Tally::new(workload.horizon()) };
        loop {
            let begin = next.fetch_add(BATCH, Ordering::Relaxed);
            if begin >= count {
                return alone.tally;
            }
            for function in begin..(begin + BATCH).min(count) {
                one(common, (workload, starts), (seed, function), &mut alone);
            }
        }
    };
    let mut whole = Tally::new(workload.horizon());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            match thread.join() {
                Ok(part) => whole.merge(&part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    whole
}

fn one(
    common: &Common,
    (workload, starts): (&Workload, &Starts),
    (seed, function): (u64, usize),
    alone: &mut Alone,
) {
    alone.events.clear();
    let mut cell = cell(common, (workload, starts), (seed, function));
    cell.begin(alone);
    let mut arrivals = workload.arrivals(function);
    let mut minute = Vec::new();
    for _ in 0..workload.minutes {
        minute.clear();
        arrivals.minute(&mut minute);
        for invocation in &minute {
            until(&mut cell, invocation.at, alone);
            let missing = cell.arrive(invocation.at, invocation.runtime, alone);
            start(&mut cell, missing, invocation.at, alone);
        }
    }
    let horizon = workload.horizon();
    until(&mut cell, horizon, alone);
    // Whoever came in time is served, also if that is later.
    while cell.waiting() > 0 {
        let Some(next) = next(&cell, alone) else { break };
        happen(&mut cell, next, alone);
    }
    cell.end(horizon, alone);
}

/// When something happens next, and whether it is a look. Of what happens at the same time a look is
/// the last.
fn next(cell: &Cell<'_>, alone: &Alone) -> Option<(Ns, bool)> {
    match (alone.events.first(), cell.next_look()) {
        (Some(event), Some(look)) if look < event => Some((look, true)),
        (Some(event), _) => Some((event, false)),
        (None, look) => look.map(|look| (look, true)),
    }
}

fn happen(cell: &mut Cell<'_>, (now, is_look): (Ns, bool), alone: &mut Alone) {
    let event = if is_look { None } else { alone.events.pop() };
    let event = event.map_or(Event::Look, |(_, _, event)| event);
    let missing = cell.happen(now, event, alone);
    start(cell, missing, now, alone);
}

/// What happens up to a moment.
fn until(cell: &mut Cell<'_>, moment: Ns, alone: &mut Alone) {
    while let Some(next) = next(cell, alone).filter(|(now, _)| *now <= moment) {
        happen(cell, next, alone);
    }
}

#[inline]
fn start(cell: &mut Cell<'_>, missing: Missing, now: Ns, alone: &mut Alone) {
    for _ in 0..missing.all {
        cell.start(now, 0, alone);
    }
}

/// A function of a run before anything has happened.
pub(super) fn cell<'a>(
    common: &'a Common,
    (workload, starts): (&Workload, &'a Starts),
    (seed, function): (u64, usize),
) -> Cell<'a> {
    let mut rng = Rng::of_part(seed.rotate_left(31), function as u64);
    let profile = starts.profile(rng.bits());
    let memory = workload.memory(function, common.function.memory, profile);
    Cell::new(common, profile, memory, rng)
}
