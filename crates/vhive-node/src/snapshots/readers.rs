//! Reads what earlier nodes have left, on threads of its own: no start does it, however large a guest's memory is.
//!
//! What becomes known is read one after the other. What a start waits for goes before that, on a second
//! thread if the first is busy.

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
    waiting: VecDeque<Arc<Stored>>,
    running: u32,
    closed: bool,
}

impl Readers {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it holds the lock, so a poisoned queue is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads nothing more; what is being read is given up.
    pub(super) fn close(&self) {
        let waiting = {
            let mut queue = self.queue();
            queue.closed = true;
            std::mem::take(&mut queue.waiting)
        };
        for stored in waiting {
            // Whoever waits for it need not any longer.
            stored.judge(Read::Failed(Blame::Host, "the node is being shut down".to_owned()));
        }
    }
}

impl Snapshots {
    /// Has a snapshot read, unless that has been done: at once if a start waits for it, else in its turn.
    /// False if nobody will.
    pub(super) fn have_read(&self, stored: &Arc<Stored>, urgent: bool) -> bool {
        if !stored.is_unread() {
            return true;
        }
        let readers = &self.0.readers;
        let mut queue = readers.queue();
        let at = queue.waiting.iter().position(|one| Arc::ptr_eq(one, stored));
        match at {
            _ if queue.closed => return false,
            Some(_) if !urgent => return true,
            at => drop(at.and_then(|at| queue.waiting.remove(at))),
        }
        if urgent {
            queue.waiting.push_front(Arc::clone(stored));
        } else {
            queue.waiting.push_back(Arc::clone(stored));
        }
        if queue.running >= if urgent { MOST } else { 1 } {
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
            let Some(stored) = queue.waiting.pop_front() else {
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
