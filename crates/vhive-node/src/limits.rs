//! How many instances, and how much memory, this node may have at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vhive_api::Bytes;

use crate::pool::Pool;

/// Raises the number of files that this process may have open as far as it may do so itself, and says what it
/// is now (none = without limit). Connections, clones and snapshots all need some, and a shell allows 1024.
///
/// # Errors
/// What the kernel says.
pub fn raise_open_files() -> std::io::Result<Option<u64>> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    }
    Ok(maximum)
}

/// A node has no room for another instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "node is full: {instances} of {max_instances} instances, {memory} of {max_memory}, and {wanted} \
     more wanted; scale something down, or raise max_instances or max_memory"
)]
pub struct Full {
    /// Instances that there are.
    pub instances: u32,
    /// Most instances.
    pub max_instances: u32,
    /// Memory that they reserve.
    pub memory: Bytes,
    /// Most memory.
    pub max_memory: Bytes,
    /// Memory that the refused instance would have reserved.
    pub wanted: Bytes,
}

/// How much of a node is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Instances that there are, those being stopped included.
    pub instances: u32,
    /// Most instances.
    pub max_instances: u32,
    /// Memory that they reserve, overhead included.
    pub memory: Bytes,
    /// Most memory.
    pub max_memory: Bytes,
}

/// Room on a node, shared by its pools.
#[derive(Debug)]
pub(crate) struct Budget {
    max_instances: u32,
    max_memory: u64,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    instances: u32,
    memory: u64,
    leaving_instances: u32,
    leaving_memory: u64,
    /// Pools to tell when room comes.
    starved: Vec<Weak<Pool>>,
}

/// The answer when there is no room now.
#[derive(Debug)]
pub(crate) struct NoRoom {
    pub(crate) full: Full,
    /// Instances that are being stopped will make enough room.
    pub(crate) may_come: bool,
}

impl Budget {
    pub(crate) fn new(max_instances: u32, max_memory: Bytes) -> Arc<Self> {
        Arc::new(Self { max_instances, max_memory: max_memory.0, taken: Mutex::default() })
    }

    /// Takes room for one instance. Without room, `pool` is told (by `Pool::poke`) as soon as some
    /// comes.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        memory: Bytes,
        pool: &Arc<Pool>,
    ) -> Result<Reservation, NoRoom> {
        let mut taken = self.taken();
        let fits = |instances: u32, used: u64| {
            instances < self.max_instances && used.saturating_add(memory.0) <= self.max_memory
        };
        if fits(taken.instances, taken.memory) {
            taken.instances += 1;
            taken.memory += memory.0;
            drop(taken);
            return Ok(Reservation { budget: Arc::clone(self), memory: memory.0, leaving: false });
        }
        if !taken.starved.iter().any(|weak| std::ptr::eq(weak.as_ptr(), Arc::as_ptr(pool))) {
            taken.starved.push(Arc::downgrade(pool));
        }
        let may_come = fits(
            taken.instances - taken.leaving_instances,
            taken.memory.saturating_sub(taken.leaving_memory),
        );
        let full = Full {
            instances: taken.instances,
            max_instances: self.max_instances,
            memory: Bytes(taken.memory),
            max_memory: Bytes(self.max_memory),
            wanted: memory,
        };
        Err(NoRoom { full, may_come })
    }

    /// Instances and memory reserved at present.
    pub(crate) fn usage(&self) -> (u32, Bytes) {
        let taken = self.taken();
        (taken.instances, Bytes(taken.memory))
    }

    pub(crate) fn bounds(&self) -> (u32, Bytes) {
        (self.max_instances, Bytes(self.max_memory))
    }

    pub(crate) fn room(&self) -> Room {
        let (instances, memory) = self.usage();
        let (max_instances, max_memory) = self.bounds();
        Room { instances, max_instances, memory, max_memory }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // No method panics while it holds the lock, so a poisoned state is still whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for one instance. Dropping it gives it back and tells the pools that wait for room; so it
/// must never be dropped while a pool's lock is held.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    memory: u64,
    leaving: bool,
}

impl Reservation {
    /// Notes that it will be given back soon.
    pub(crate) fn leave(&mut self) {
        if !self.leaving {
            self.leaving = true;
            let mut taken = self.budget.taken();
            taken.leaving_instances += 1;
            taken.leaving_memory += self.memory;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut taken = self.budget.taken();
        taken.instances -= 1;
        taken.memory -= self.memory;
        if self.leaving {
            taken.leaving_instances -= 1;
            taken.leaving_memory -= self.memory;
        }
        let starved = std::mem::take(&mut taken.starved);
        drop(taken);
        for pool in starved {
            if let Some(pool) = pool.upgrade() {
                pool.poke();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_the_system_allows() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let less = maximum.map_or(Some(1 << 20), |most| Some(most - 1));
        setrlimit(Resource::Nofile, Rlimit { current: less, maximum }).expect("lowered");
        assert_eq!(raise_open_files().expect("raised"), maximum);
        assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    }
}
