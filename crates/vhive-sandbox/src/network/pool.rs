//! The pool of slots: workers build and retire them, requests only take them.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vhive_api::guest::GuestNetwork;

use super::addresses::{GATEWAY, GUEST, GUEST_MAC, GUEST_PREFIX, Mac};
use super::slot::{BuildError, Devices, Site, Tools};
use super::{NetworkConfig, OpenError, TakeError, host, namespace, site};
use crate::deadline::Deadline;
use crate::run_dir::RunRoot;

/// Threads that build and retire. The kernel makes network devices one at a time, so more of them
/// only wait for each other.
const WORKERS: usize = 2;

/// Pauses between attempts to refill a pool that nobody waits for, after failures.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A pool of network slots. Clones are the same pool; dropping the last one closes it.
#[derive(Clone, Debug)]
pub struct NetworkPool {
    handle: Arc<Handle>,
}

/// One ready-made network for one sandbox. Dropping it gives it back to its pool, which retires it
/// off the caller's path: no slot serves two guests, so nothing of one is left for the next.
#[derive(Debug)]
pub struct NetworkSlot {
    devices: Option<Devices>,
    tap: Mutex<Option<OwnedFd>>,
    home: Arc<Home>,
}

#[derive(Debug)]
struct Handle {
    home: Arc<Home>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

/// What a pool, its workers and its slots share. Dropping it removes the node's place.
struct Home {
    site: Site,
    guest: GuestNetwork,
    ready: usize,
    max: usize,
    state: Mutex<State>,
    /// For workers: there is something to do.
    work: Condvar,
    /// For takers: something has been done.
    done: Condvar,
    /// Dropped last: removes what the host has of us.
    _place: site::Place,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Devices>,
    returned: Vec<Devices>,
    building: usize,
    taken: usize,
    waiting: usize,
    /// Slots are being made until as many are ready as are to be kept.
    filling: bool,
    /// Numbers of all slots that exist, also those being built or retired.
    numbers: BTreeSet<u32>,
    /// Where to look for the next free number, so that they come again as late as possible.
    next: u32,
    /// Failures to build in a row.
    failures: u32,
    /// Failures ever, so that who waits sees a new one.
    attempts: u64,
    failure: Option<Arc<BuildError>>,
    closed: bool,
}

enum Work {
    Build(u32),
    Retire(Vec<Devices>),
    End,
}

impl State {
    /// Slots that are ready or will be.
    fn coming(&self) -> usize {
        self.ready.len() + self.building
    }

    /// Whether the pool is to be filled up to `full`. It is let run half empty first: making a slot
    /// takes the processors and locks that the start needs which has just taken one, so most starts
    /// are to meet a pool at rest.
    fn is_filling(&mut self, full: usize) -> bool {
        let coming = self.coming();
        self.filling = coming < full && (self.filling || coming < full.div_ceil(2));
        self.filling
    }

    /// A number that no slot has, below `capacity`.
    fn number(&mut self, capacity: u32) -> Option<u32> {
        let next = self.next;
        let number = (next..capacity).chain(0..next).find(|n| !self.numbers.contains(n))?;
        self.numbers.insert(number);
        self.next = (number + 1) % capacity;
        Some(number)
    }
}

impl NetworkPool {
    /// Claims addresses, sets up the host and starts to build slots; does not wait for them.
    /// What a killed node with this run directory left is removed first.
    ///
    /// # Errors
    /// [`OpenError`]; the host is as before.
    pub fn open(config: &NetworkConfig, root: &RunRoot) -> Result<Self, OpenError> {
        let dns = config.dns.clone().unwrap_or_else(host::name_servers);
        let (place, site) = site::open(config, root, &dns)?;
        let capacity = site.range.capacity();
        if config.max > capacity {
            let net = site.range.net();
            return Err(OpenError::TooMany { max: config.max, capacity, net });
        }
        let guest = GuestNetwork { address: GUEST, prefix: GUEST_PREFIX, gateway: GATEWAY, dns };
        let home = Arc::new(Home {
            site,
            guest,
            ready: config.ready as usize,
            max: config.max as usize,
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            _place: place,
        });
        let handle = Handle { home: Arc::clone(&home), workers: Mutex::default() };
        for n in 0..WORKERS {
            let mut tools = Tools::new().map_err(|e| OpenError::step("open netlink", e))?;
            let home = Arc::clone(&home);
            let worker = std::thread::Builder::new()
                .name(format!("vhive-net-{n}"))
                .spawn(move || home.run(&mut tools))
                .map_err(|e| OpenError::step("start a thread", e))?;
            lock(&handle.workers).push(worker);
        }
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Takes a slot: a ready one at once, else the next one that gets ready.
    ///
    /// # Errors
    /// [`TakeError`]; at once when all slots are in use.
    pub fn take(&self, deadline: Deadline) -> Result<NetworkSlot, TakeError> {
        let home = &self.handle.home;
        let mut state = home.lock();
        let devices = match state.ready.pop_front() {
            Some(devices) => devices,
            None => {
                state.waiting += 1;
                let (back, result) = home.wait_ready(state, deadline);
                state = back;
                state.waiting -= 1;
                result?
            }
        };
        state.taken += 1;
        drop(state);
        home.work.notify_one();
        Ok(home.lend(devices))
    }

    /// Waits until as many slots are ready as are to be kept.
    ///
    /// # Errors
    /// [`TakeError::Build`] when building fails meanwhile, [`TakeError::Deadline`],
    /// [`TakeError::Closed`].
    pub fn warm(&self, deadline: Deadline) -> Result<(), TakeError> {
        let home = &self.handle.home;
        let mut state = home.lock();
        let attempts = state.attempts;
        loop {
            let target = home.ready.min(home.max.saturating_sub(state.taken));
            if state.ready.len() >= target {
                return Ok(());
            }
            state.filling = true;
            home.work.notify_all();
            state = home.wait(state, attempts, deadline)?;
        }
    }

    /// A handle of the socket that guests whose slots are opened for it find at
    /// [`GATEWAY`](super::GATEWAY) and [`INGRESS_PORT`](super::INGRESS_PORT); for whoever answers there.
    /// Their connections come from their clone addresses.
    ///
    /// # Errors
    /// Too many open files.
    pub fn ingress(&self) -> io::Result<TcpListener> {
        self.handle.home.site.ingress.try_clone()
    }

    /// Stops the workers and removes all slots that are not in use. Those that are go when they
    /// are dropped, and with the last of them the firewall table and the claim on addresses.
    pub fn close(&self) {
        self.handle.close();
    }
}

impl Handle {
    fn close(&self) {
        self.home.lock().closed = true;
        self.home.work.notify_all();
        self.home.done.notify_all();
        for worker in lock(&self.workers).drain(..) {
            // A worker that panicked has said so; its slot goes with the place.
            let _ = worker.join();
        }
        self.home.remove_idle();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl Home {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn lend(self: &Arc<Self>, mut devices: Devices) -> NetworkSlot {
        let tap = Mutex::new(devices.tap.take());
        NetworkSlot { devices: Some(devices), tap, home: Arc::clone(self) }
    }

    fn wait_ready<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        deadline: Deadline,
    ) -> (MutexGuard<'a, State>, Result<Devices, TakeError>) {
        let attempts = state.attempts;
        self.work.notify_one();
        loop {
            if let Some(devices) = state.ready.pop_front() {
                return (state, Ok(devices));
            }
            if state.taken >= self.max {
                return (state, Err(TakeError::Exhausted { max: self.max_number() }));
            }
            match self.wait_inner(state, attempts, deadline) {
                (back, Ok(())) => state = back,
                (back, Err(error)) => return (back, Err(error)),
            }
        }
    }

    fn max_number(&self) -> u32 {
        u32::try_from(self.max).unwrap_or(u32::MAX)
    }

    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        attempts: u64,
        deadline: Deadline,
    ) -> Result<MutexGuard<'a, State>, TakeError> {
        let (state, result) = self.wait_inner(state, attempts, deadline);
        result.map(|()| state)
    }

    fn wait_inner<'a>(
        &self,
        state: MutexGuard<'a, State>,
        attempts: u64,
        deadline: Deadline,
    ) -> (MutexGuard<'a, State>, Result<(), TakeError>) {
        if state.closed {
            return (state, Err(TakeError::Closed));
        }
        // An attempt that failed since the caller came is its answer; an older one is not.
        if let Some(failure) = state.failure.clone().filter(|_| state.attempts > attempts) {
            return (state, Err(TakeError::Build(failure)));
        }
        let left = deadline.left();
        if left.is_zero() {
            return (state, Err(TakeError::Deadline));
        }
        let state = self
            .done
            .wait_timeout(state, left)
            .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        (state, Ok(()))
    }

    /// A worker's life.
    fn run(&self, tools: &mut Tools) {
        loop {
            match self.next_work() {
                Work::End => return,
                Work::Build(number) => self.build(tools, number),
                Work::Retire(slots) => self.retire(tools, slots),
            }
            self.done.notify_all();
        }
    }

    fn next_work(&self) -> Work {
        let mut state = self.lock();
        let mut pause = None;
        loop {
            if state.closed {
                return Work::End;
            }
            let (filling, coming) = (state.is_filling(self.ready), state.coming());
            let room = coming + state.taken < self.max;
            // After failures, unless somebody waits, let some time pass first.
            let pause = *pause.get_or_insert_with(|| Deadline::after(backoff(state.failures)));
            let due = state.failures == 0 || pause.passed();
            let wanted = coming < state.waiting || (due && filling);
            // Who waits comes before what is only to be tidied up, unless that is a lot.
            let urgent = coming < state.waiting && state.returned.len() < self.max;
            if room
                && wanted
                && (urgent || state.returned.is_empty())
                && let Some(number) = state.number(self.site.range.capacity())
            {
                state.building += 1;
                return Work::Build(number);
            }
            if !state.returned.is_empty() {
                return Work::Retire(std::mem::take(&mut state.returned));
            }
            state = if room && filling && !due {
                self.work
                    .wait_timeout(state, pause.left())
                    .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state)
            } else {
                self.work.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
        }
    }

    fn build(&self, tools: &mut Tools, number: u32) {
        let built = self.site.build(tools, number);
        let mut state = self.lock();
        state.building -= 1;
        match built {
            Ok(devices) => {
                state.ready.push_back(devices);
                state.failures = 0;
                state.failure = None;
            }
            Err(error) => {
                let reason = &error.source;
                tracing::warn!(slot = number, %error, %reason, "network slot not built");
                state.numbers.remove(&number);
                state.failures = state.failures.saturating_add(1);
                state.attempts += 1;
                state.failure = Some(Arc::new(error));
            }
        }
    }

    fn retire(&self, tools: &mut Tools, slots: Vec<Devices>) {
        let numbers: Vec<u32> = slots.iter().map(|slot| slot.number).collect();
        self.site.retire(tools, slots);
        let mut state = self.lock();
        for number in &numbers {
            state.numbers.remove(number);
        }
        drop(state);
        // The other worker may have found all numbers in use.
        self.work.notify_one();
    }

    fn give_back(&self, devices: Devices) {
        let mut state = self.lock();
        state.taken -= 1;
        state.returned.push(devices);
        let closed = state.closed;
        drop(state);
        if closed {
            self.remove_idle();
        } else {
            self.work.notify_one();
            self.done.notify_all();
        }
    }

    /// Removes what is not in use; for a closed pool.
    fn remove_idle(&self) {
        let mut state = self.lock();
        let mut idle = std::mem::take(&mut state.returned);
        idle.extend(std::mem::take(&mut state.ready));
        let in_use = state.taken > 0;
        drop(state);
        // With nothing in use, all go together when the place is dropped.
        if in_use && let Ok(mut tools) = namespace::inside(&self.site.host, Tools::new) {
            self.site.retire(&mut tools, idle);
        }
    }
}

impl NetworkSlot {
    /// The address at which the host reaches the guest, at any port.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.devices().address
    }

    /// The addresses inside, the same for every guest so that snapshots fit any slot.
    #[must_use]
    pub fn guest(&self) -> &GuestNetwork {
        &self.home.guest
    }

    /// The hardware address that the guest's interface must have, the same for every guest.
    #[must_use]
    pub fn mac(&self) -> Mac {
        GUEST_MAC
    }

    /// Where the slot's network namespace is pinned, for runtimes that enter it.
    #[must_use]
    pub fn netns(&self) -> &Path {
        &self.devices().pin
    }

    /// Opens the slot's tap device, for a VMM to inherit. The first call costs next to nothing.
    /// Later ones, for another attempt at a start, open it anew; whoever still has an earlier
    /// descriptor is cut off. Frames carry a virtio-net header (`IFF_VNET_HDR`); close-on-exec is
    /// set.
    ///
    /// # Errors
    /// Any of the tun driver or of configuring the device.
    pub fn open_tap(&self) -> io::Result<OwnedFd> {
        match lock(&self.tap).take() {
            Some(tap) => Ok(tap),
            None => self.devices().open_tap(),
        }
    }

    /// Lets the guest reach the node's ingress ([`NetworkPool::ingress`]); without this it is refused
    /// there. Holds until the slot is given back.
    ///
    /// # Errors
    /// Any of reaching into the slot's namespace.
    pub fn open_ingress(&self) -> io::Result<()> {
        self.devices().open_ingress()
    }

    /// Makes a network namespace in which `eth0` is what a microVM's guest has: for a container,
    /// instead of the tap device, once per slot. It goes with its last process and descriptor.
    ///
    /// # Errors
    /// Any of making namespace and devices; `AlreadyExists` the second time.
    pub fn make_namespace(&self) -> io::Result<OwnedFd> {
        self.devices().make_inner()
    }

    /// Closes the tap device if it is still open here, for a VMM that opens it by its name,
    /// [`TAP`](super::TAP), from inside the namespace. Takes milliseconds.
    pub fn release_tap(&self) {
        drop(lock(&self.tap).take());
    }

    fn devices(&self) -> &Devices {
        self.devices.as_ref().expect("only Drop takes them")
    }
}

impl Drop for NetworkSlot {
    fn drop(&mut self) {
        if let Some(mut devices) = self.devices.take() {
            // Closing the tap device takes milliseconds; the worker that retires the slot does it.
            devices.tap = lock(&self.tap).take();
            self.home.give_back(devices);
        }
    }
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Home")
            .field("range", &self.site.range)
            .field("ready", &state.ready.len())
            .field("taken", &state.taken)
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}

fn backoff(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE)
}

/// No method panics while it holds one of these locks, so a poisoned state is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a pool that keeps `full` slots decides while they are taken one by one, until it fills.
    fn takes_until_filling(full: usize) -> usize {
        let mut state = State { building: full, ..State::default() };
        assert!(!state.is_filling(full), "a full pool rests");
        let mut taken = 0;
        while !state.is_filling(full) && state.building > 0 {
            state.building -= 1;
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_pool_runs_half_empty_before_it_fills() {
        for (full, takes) in [(1, 1), (2, 2), (3, 2), (4, 3), (8, 5)] {
            assert_eq!(takes_until_filling(full), takes, "{full}");
        }
        assert!(!State::default().is_filling(0), "nothing is kept ready");
    }

    #[test]
    fn it_fills_to_the_top() {
        let mut state = State::default();
        for coming in 0..8 {
            state.building = coming;
            assert!(state.is_filling(8), "{coming}");
        }
        state.building = 8;
        assert!(!state.is_filling(8));
        state.building = 7;
        assert!(!state.is_filling(8), "and rests again");
    }
}
