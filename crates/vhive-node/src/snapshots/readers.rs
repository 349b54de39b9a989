//! Reads what earlier nodes have left, on threads of its own: no start does it, however large a guest's memory is.
//!
//! What becomes known is read one after the other. What a start waits for goes before that, in the order in
//! which starts have come, on a second thread if the first is busy.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Instant;

use vhive_sandbox::snapshot::Blame;

use super::stored::{Doubt, Read, Stored};
use super::{Inner, Snapshots};

/// Threads when starts wait.
const MOST: u32 = 2;

/// Who reads, and what is to be read.
#[derive(Debug, Default)]
pub(super) struct Readers(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Lanes<Stored>,
    running: u32,
    closed: bool,
}

/// First come, first served; what somebody waits for before the rest.
#[derive(Debug)]
struct Lanes<T> {
    urgent: VecDeque<Arc<T>>,
    rest: VecDeque<Arc<T>>,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { urgent: VecDeque::new(), rest: VecDeque::new() }
    }
}

impl<T> Lanes<T> {
    /// Enters one, or moves it to where somebody waits. False if it has its place already.
    fn add(&mut self, one: &Arc<T>, is_urgent: bool) -> bool {
        let place = |lane: &VecDeque<Arc<T>>| lane.iter().position(|other| Arc::ptr_eq(other, one));
        match (place(&self.urgent), place(&self.rest)) {
            (Some(_), _) => return false,
            (None, Some(_)) if !is_urgent => return false,
            (None, Some(at)) => drop(self.rest.remove(at)),
            (None, None) => {}
        }
        let lane = if is_urgent { &mut self.urgent } else { &mut self.rest };
        lane.push_back(Arc::clone(one));
        true
    }

    fn next(&mut self) -> Option<Arc<T>> {
        self.urgent.pop_front().or_else(|| self.rest.pop_front())
    }
}

impl Readers {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it holds the lock, so a poisoned queue is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads nothing more; what is being read is given up.
    pub(super) fn close(&self) {
        let mut waiting = {
            let mut queue = self.queue();
            queue.closed = true;
            std::mem::take(&mut queue.waiting)
        };
        while let Some(stored) = waiting.next() {
            // Whoever waits for it need not any longer.
            stored.judge(Read::Failed(Blame::Host, "the node is being shut down".to_owned()));
        }
    }
}

impl Snapshots {
    /// Has a snapshot read, unless that has been done: before all others if a start waits for it, else in its
    /// turn. False if nobody will.
    pub(super) fn have_read(&self, stored: &Arc<Stored>, urgent: bool) -> bool {
        if !stored.is_unread() {
            return true;
        }
        let readers = &self.0.readers;
        let mut queue = readers.queue();
        if queue.closed {
            return false;
        }
        let is_new = queue.waiting.add(stored, urgent);
        let enough = if urgent && is_new { MOST } else { 1 };
        if queue.running >= enough {
            return true;
        }
        queue.running += 1;
        drop(queue);
        let (readers, store) = (Arc::clone(readers), Arc::downgrade(&self.0));
        let thread = thread::Builder::new().name("vhive-verify".to_owned());
        if let Err(error) = thread.spawn(move || work_off(&readers, &store)) {
            // Starts boot meanwhile, and the next one tries again.
            tracing::warn!(%error, "no thread to read snapshots");
            let mut queue = self.0.readers.queue();
            queue.running -= 1;
            return queue.running > 0;
        }
        true
    }
}

fn work_off(readers: &Readers, store: &Weak<Inner>) {
    loop {
        let stored = {
            let mut queue = readers.queue();
            let Some(stored) = queue.waiting.next() else {
                queue.running -= 1;
                return;
            };
            stored
        };
        let began = Instant::now();
        let Some(read) = stored.read(&|| !readers.queue().closed) else { continue };
        let why = match &read {
            Read::Sound => None,
            Read::Damaged(why) => Some(why),
            Read::Failed(Blame::Either, why) => stored.failed(began, Doubt::Strong).then_some(why),
            Read::Failed(_, why) => {
                tracing::warn!(snapshot = %stored.id, why, "snapshot not read");
                None
            }
        };
        if let (Some(why), Some(store)) = (why, store.upgrade()) {
            // Before anybody hears of it, so that the next one finds the place free.
            Snapshots(store).retire(&stored, why);
        }
        stored.judge(read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_reader_first_is_served_first() {
        let (one, two, three, four) = (Arc::new(1), Arc::new(2), Arc::new(3), Arc::new(4));
        let mut lanes = Lanes::default();
        assert!(lanes.add(&one, false) && lanes.add(&two, false));
        assert!(lanes.add(&three, true) && lanes.add(&four, true));
        // Who has a place keeps it, and gets a better one only if somebody waits now.
        assert!(!lanes.add(&three, true) && !lanes.add(&three, false) && !lanes.add(&one, false));
        assert!(lanes.add(&two, true));
        let order: Vec<i32> = std::iter::from_fn(|| lanes.next()).map(|one| *one).collect();
        assert_eq!(order, [3, 4, 2, 1]);
    }
}
