//! The threads that serve faults: each waits for many guests at once.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::place::Place;
use crate::vm::{Flow, Scratch, ServeError, Vm, lock};

const STOP: u64 = u64::MAX;
const EVENTS_AT_ONCE: usize = 16;

/// One thread's guests, and how to reach it.
pub(crate) struct Roster {
    epoll: OwnedFd,
    stop: OwnedFd,
    is_stopping: AtomicBool,
    vms: Mutex<HashMap<u64, Arc<Vm>>>,
}

impl Roster {
    /// Serves the guest from now on.
    pub(crate) fn add(&self, id: u64, vm: &Arc<Vm>) -> io::Result<()> {
        let mut vms = lock(&self.vms);
        if self.is_stopping.load(Ordering::Acquire) {
            return Err(io::Error::other("the pager was stopped"));
        }
        vms.insert(id, Arc::clone(vm));
        let added = epoll::add(
            &self.epoll,
            vm.uffd(),
            epoll::EventData::new_u64(id),
            epoll::EventFlags::IN,
        );
        if added.is_err() {
            vms.remove(&id);
        }
        Ok(added?)
    }

    /// Serves the guest no more.
    pub(crate) fn remove(&self, id: u64) {
        if let Some(vm) = lock(&self.vms).remove(&id) {
            self.unwatch(&vm);
        }
    }

    fn unwatch(&self, vm: &Vm) {
        // It fails only if it was done before.
        let _ = epoll::delete(&self.epoll, vm.uffd());
    }

    fn serve(&self, place: Place) -> rustix::io::Result<()> {
        let mut scratch = Scratch::new(place);
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            events.clear();
            let room = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, room, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            for event in &events {
                let id = event.data.u64();
                if id == STOP {
                    return Ok(());
                }
                // Not there if it was removed since.
                let Some(vm) = lock(&self.vms).get(&id).cloned() else { continue };
                let served = catch_unwind(AssertUnwindSafe(|| vm.serve(&mut scratch)));
                match served.unwrap_or(Err(ServeError::Panicked)) {
                    Ok(Flow::GoesOn) => {}
                    Ok(Flow::ProcessGone) => self.unwatch(&vm),
                    Err(failure) => {
                        self.unwatch(&vm);
                        vm.die(failure);
                    }
                }
            }
        }
    }

    fn end_all(&self, failure: impl Fn() -> ServeError) {
        self.is_stopping.store(true, Ordering::Release);
        let vms: Vec<Arc<Vm>> = lock(&self.vms).values().cloned().collect();
        for vm in vms {
            vm.die(failure());
        }
    }
}

/// Owns one thread.
pub(crate) struct Handler {
    roster: Arc<Roster>,
    thread: Option<JoinHandle<()>>,
}

impl Handler {
    pub(crate) fn start(number: usize, cpus: &[usize]) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, stop.as_fd(), epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        let is_stopping = AtomicBool::new(false);
        let roster = Arc::new(Roster { epoll, stop, is_stopping, vms: Mutex::default() });
        let (set, fixed) = (cpu_set(cpus)?, !cpus.is_empty());
        let (placed, is_placed) = mpsc::sync_channel(1);
        let of_thread = Arc::clone(&roster);
        let thread = thread::Builder::new().name(format!("pager-{number}")).spawn(move || {
            let outcome = set.map_or(Ok(()), |set| sched_setaffinity(None, &set));
            let failed = outcome.is_err();
            let _ = placed.send(outcome);
            if failed {
                return;
            }
            let _end = EndAll(&of_thread);
            if let Err(errno) = of_thread.serve(Place::of_this_thread(fixed)) {
                tracing::error!(error = %errno, "page faults are no longer served");
            }
        })?;
        let handler = Self { roster, thread: Some(thread) };
        is_placed.recv().map_err(io::Error::other)??;
        Ok(handler)
    }

    pub(crate) const fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }
}

/// However the thread ends, its guests are not left waiting.
struct EndAll<'a>(&'a Roster);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        self.0.end_all(|| {
            if thread::panicking() { ServeError::Panicked } else { ServeError::Stopped }
        });
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.roster.is_stopping.store(true, Ordering::Release);
        let woken = rustix::io::write(&self.roster.stop, &1u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn cpu_set(cpus: &[usize]) -> io::Result<Option<CpuSet>> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        if *cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no CPU {cpu}")));
        }
        set.set(*cpu);
    }
    Ok((!cpus.is_empty()).then_some(set))
}

impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roster").finish_non_exhaustive()
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").finish_non_exhaustive()
    }
}
