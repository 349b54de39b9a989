//! Reading working sets and installing them, many at a time, with few threads.
//!
//! All threads do the same: install a chunk that has landed, if fewer than `copiers` do so, else read a
//! chunk, if fewer than `readers` do so, else sleep. So up to `readers` chunks are in flight, and a chunk is
//! mostly installed by the thread that read it, without another being woken.

mod plan;
mod verified;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime};

use vhive_api::Digest;

use crate::pages::{PageNumber, PageSet};
use crate::policy::{self, PrefetchPolicy};
use crate::sys::{Buffer, Mapping};
use crate::vm::{Put, Vm, lock};
use crate::working_set::{CHUNK_BYTES, WorkingSet, WorkingSetError, open_direct, read_many};
use plan::Plan;
use verified::{Identity, Verified};

/// What has been installed of one working set.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InstalledSoFar {
    pub(crate) pages: u64,
    pub(crate) zero_pages: u64,
    pub(crate) bytes: u64,
    pub(crate) at: Option<Instant>,
}

#[derive(Default)]
struct State {
    installed: InstalledSoFar,
    first_chunk: bool,
    finished: bool,
    error: Option<Arc<WorkingSetError>>,
    pages: Option<PageSet>,
}

/// How far one prefetch is; shared between the loader, the session and who serves its faults.
#[derive(Default)]
pub(crate) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

impl Progress {
    pub(crate) fn installed(&self) -> InstalledSoFar {
        lock(&self.state).installed
    }

    pub(crate) fn error(&self) -> Option<Arc<WorkingSetError>> {
        lock(&self.state).error.clone()
    }

    /// Whether prefetching holds this page and has not finished. Before the working set is understood it may
    /// hold any.
    pub(crate) fn will_bring(&self, page: PageNumber) -> bool {
        let state = lock(&self.state);
        !state.finished && state.pages.as_ref().is_none_or(|pages| pages.holds(page))
    }

    /// Waits until the first chunk (or everything) is in place, or nothing more will come. False at the deadline.
    pub(crate) fn wait(&self, for_everything: bool, deadline: Instant) -> bool {
        let mut state = lock(&self.state);
        loop {
            if state.finished || (state.first_chunk && !for_everything) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn finish(&self, error: Option<WorkingSetError>) {
        let mut state = lock(&self.state);
        if !state.finished {
            state.finished = true;
            state.error = error.map(Arc::new);
            if state.error.is_none() {
                state.installed.at = Some(Instant::now());
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn chunk_done(&self, index: usize, done: InstalledSoFar) {
        let mut state = lock(&self.state);
        state.installed.pages += done.pages;
        state.installed.zero_pages += done.zero_pages;
        state.installed.bytes += done.bytes;
        state.first_chunk |= index == 0;
        drop(state);
        if index == 0 {
            self.changed.notify_all();
        }
    }
}

/// What is to be prefetched.
pub(crate) struct Order {
    pub(crate) path: PathBuf,
    pub(crate) memory: Digest,
    pub(crate) memory_pages: u32,
    pub(crate) policy: PrefetchPolicy,
}

/// How much is done at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) readers: usize,
    pub(crate) copiers: usize,
    pub(crate) buffers: usize,
}

type LoadId = u64;

struct Load {
    id: LoadId,
    order: Arc<Order>,
    progress: Arc<Progress>,
    vm: Option<Arc<Vm>>,
    is_opening: bool,
    plan: Option<Arc<Plan>>,
    /// The file, once it is open and if it can be told from a changed one.
    identity: Option<Identity>,
    /// Whether this very file has been read whole before and was right.
    is_verified: bool,
    next_read: usize,
    landed: VecDeque<Chunk>,
    unfinished: usize,
}

impl Load {
    fn is_installable(&self) -> bool {
        self.vm.is_some() && self.plan.is_some() && !self.landed.is_empty()
    }
}

struct Chunk {
    index: usize,
    bytes: Staged,
}

impl Chunk {
    fn into_pooled(self) -> Option<Buffer> {
        match self.bytes {
            Staged::Pooled(buffer) => Some(buffer),
            Staged::Fresh(_) => None,
        }
    }
}

enum Staged {
    Pooled(Buffer),
    /// As published: memory that nobody has touched yet.
    Fresh(Mapping),
}

impl Staged {
    fn as_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Pooled(buffer) => buffer,
            Self::Fresh(mapping) => mapping,
        }
    }
}

enum Task {
    Open(LoadId, Arc<Order>, Buffer),
    /// Chunks from this one on, one per buffer; without buffers, this one into fresh memory.
    Read(LoadId, Arc<Plan>, usize, Vec<Buffer>),
    Install(LoadId, Install),
}

/// One chunk that has landed.
struct Install {
    plan: Arc<Plan>,
    chunk: Chunk,
    vm: Arc<Vm>,
    checks: bool,
}

impl Task {
    const fn load(&self) -> LoadId {
        match self {
            Self::Open(id, ..) | Self::Read(id, ..) | Self::Install(id, ..) => *id,
        }
    }

    const fn installs(&self) -> bool {
        matches!(self, Self::Install(..))
    }
}

enum Done {
    Opened(Arc<Plan>, Option<Identity>),
    Landed(Vec<Chunk>),
    Installed(usize, InstalledSoFar),
    /// The process is gone: nobody waits for the rest.
    Gone,
}

struct Board {
    loads: Vec<Load>,
    free: Vec<Buffer>,
    verified: Verified,
    limits: Limits,
    reading: usize,
    installing: usize,
    next_id: LoadId,
    is_stopping: bool,
}

/// The loads and the threads' meeting place.
pub(crate) struct Desk {
    board: Mutex<Board>,
    work: Condvar,
}

/// Owns the threads.
pub(crate) struct Loader {
    desk: Arc<Desk>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    pub(crate) fn start(limits: Limits) -> io::Result<Self> {
        let pool = Mapping::resident(limits.buffers * CHUNK_BYTES)?;
        let board = Board {
            loads: Vec::new(),
            free: pool.split(CHUNK_BYTES),
            verified: Verified::default(),
            limits,
            reading: 0,
            installing: 0,
            next_id: 0,
            is_stopping: false,
        };
        let desk = Arc::new(Desk { board: Mutex::new(board), work: Condvar::new() });
        let mut loader = Self { desk: Arc::clone(&desk), threads: Vec::new() };
        for number in 0..limits.readers + limits.copiers {
            let desk = Arc::clone(&desk);
            let thread = thread::Builder::new().name(format!("pager-load-{number}"));
            loader.threads.push(thread.spawn(move || desk.work())?);
        }
        Ok(loader)
    }

    pub(crate) fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        let abandoned = {
            let mut board = lock(&self.desk.board);
            board.is_stopping = true;
            std::mem::take(&mut board.loads)
        };
        for load in abandoned {
            load.progress.finish(None);
        }
        self.desk.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Desk {
    /// Begins to read a working set.
    pub(crate) fn submit(&self, order: Order) -> (LoadId, Arc<Progress>) {
        let progress = Arc::new(Progress::default());
        let mut board = lock(&self.board);
        let id = board.next_id;
        board.next_id += 1;
        if board.is_stopping {
            progress.finish(None);
            return (id, progress);
        }
        board.loads.push(Load {
            id,
            order: Arc::new(order),
            progress: Arc::clone(&progress),
            vm: None,
            is_opening: false,
            plan: None,
            identity: None,
            is_verified: false,
            next_read: 0,
            landed: VecDeque::new(),
            unfinished: 0,
        });
        drop(board);
        self.work.notify_one();
        (id, progress)
    }

    /// From now on what lands is installed.
    pub(crate) fn attach(&self, id: LoadId, vm: &Arc<Vm>) {
        if let Some(load) = lock(&self.board).load(id) {
            load.vm = Some(Arc::clone(vm));
        }
        self.work.notify_one();
    }

    /// Nothing more is read or installed for it, but for what is under way.
    pub(crate) fn cancel(&self, id: LoadId) {
        lock(&self.board).end(id, None);
        self.work.notify_one();
    }

    fn work(&self) {
        let mut board = lock(&self.board);
        loop {
            if board.is_stopping {
                return;
            }
            let Some(task) = board.next_task() else {
                board = self.work.wait(board).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let is_more = board.has_task();
            drop(board);
            if is_more {
                self.work.notify_one();
            }
            let (id, installs) = (task.load(), task.installs());
            let mut freed = Vec::new();
            let attempt = catch_unwind(AssertUnwindSafe(|| perform(task, &mut freed)));
            let outcome =
                attempt.unwrap_or(Err(WorkingSetError::Malformed("reading it broke off")));
            board = lock(&self.board);
            if installs {
                board.installing -= 1;
            } else {
                board.reading -= 1;
            }
            board.free.append(&mut freed);
            board.settle(id, outcome);
        }
    }
}

impl Board {
    fn load(&mut self, id: LoadId) -> Option<&mut Load> {
        self.loads.iter_mut().find(|load| load.id == id)
    }

    /// Whether another thread would find something to do.
    fn has_task(&self) -> bool {
        let may_install = self.installing < self.limits.copiers;
        let may_read = self.reading < self.limits.readers;
        self.loads.iter().any(|load| {
            (may_install && load.is_installable()) || (may_read && self.is_readable(load))
        })
    }

    fn is_readable(&self, load: &Load) -> bool {
        let has_buffer = self.free.len() > self.reserve(load);
        match &load.plan {
            None => !load.is_opening && has_buffer,
            Some(plan) => {
                load.next_read < plan.chunks.len()
                    && (has_buffer || !policy::overlaps(load.order.policy))
            }
        }
    }

    /// Buffers that a load leaves to others: guests that do not wait yet leave some for those that do.
    fn reserve(&self, load: &Load) -> usize {
        if load.vm.is_some() { 0 } else { self.limits.readers + self.limits.copiers }
    }

    fn next_task(&mut self) -> Option<Task> {
        if self.installing < self.limits.copiers
            && let Some(load) = self.loads.iter_mut().find(|load| load.is_installable())
            && let (Some(vm), Some(plan)) = (&load.vm, &load.plan)
            && let Some(chunk) = load.landed.pop_front()
        {
            self.installing += 1;
            let (plan, vm, checks) = (Arc::clone(plan), Arc::clone(vm), !load.is_verified);
            return Some(Task::Install(load.id, Install { plan, chunk, vm, checks }));
        }
        if self.reading >= self.limits.readers {
            return None;
        }
        let at = self.loads.iter().position(|load| self.is_readable(load))?;
        let reserve = self.reserve(&self.loads[at]);
        let load = &mut self.loads[at];
        let Some(plan) = &load.plan else {
            let buffer = self.free.pop()?;
            load.is_opening = true;
            self.reading += 1;
            return Some(Task::Open(load.id, Arc::clone(&load.order), buffer));
        };
        let (plan, first) = (Arc::clone(plan), load.next_read);
        let count = if policy::overlaps(load.order.policy) {
            plan.chunks_of_read(first).min(self.free.len() - reserve)
        } else {
            0
        };
        let buffers = self.free.split_off(self.free.len() - count);
        self.reading += 1;
        load.next_read += count.max(1);
        Some(Task::Read(load.id, plan, first, buffers))
    }

    fn settle(&mut self, id: LoadId, outcome: Result<Done, WorkingSetError>) {
        let opened = if let Ok(Done::Opened(_, identity)) = &outcome { *identity } else { None };
        let is_verified = opened.is_some_and(|identity| self.verified.holds(identity));
        let Some(load) = self.load(id) else {
            // Cancelled meanwhile.
            if let Ok(Done::Landed(chunks)) = outcome {
                self.free.extend(chunks.into_iter().filter_map(Chunk::into_pooled));
            }
            return;
        };
        match outcome {
            Ok(Done::Opened(plan, identity)) => {
                load.identity = identity;
                load.is_verified = is_verified;
                load.unfinished = plan.chunks.len();
                lock(&load.progress.state).pages = Some(plan.pages.clone());
                load.plan = Some(plan);
            }
            Ok(Done::Landed(chunks)) => load.landed.extend(chunks),
            Ok(Done::Installed(index, done)) => {
                load.unfinished -= 1;
                load.progress.chunk_done(index, done);
            }
            Ok(Done::Gone) => return self.end(id, None),
            Err(error) => return self.end(id, Some(error)),
        }
        if load.plan.is_some() && load.unfinished == 0 {
            if let Some(identity) = load.identity.filter(|_| !load.is_verified) {
                self.verified.add(identity);
            }
            self.end(id, None);
        }
    }

    fn end(&mut self, id: LoadId, error: Option<WorkingSetError>) {
        let Some(at) = self.loads.iter().position(|load| load.id == id) else { return };
        let load = self.loads.remove(at);
        self.free.extend(load.landed.into_iter().filter_map(Chunk::into_pooled));
        load.progress.finish(error);
    }
}

fn perform(task: Task, freed: &mut Vec<Buffer>) -> Result<Done, WorkingSetError> {
    match task {
        Task::Open(_, order, mut buffer) => {
            let opened = open(&order, &mut buffer);
            freed.push(buffer);
            let (plan, identity) = opened?;
            Ok(Done::Opened(Arc::new(plan), identity))
        }
        Task::Read(_, plan, first, buffers) => read(&plan, first, buffers, freed),
        Task::Install(_, mut task) => {
            let outcome = install(&mut task);
            freed.extend(task.chunk.into_pooled());
            outcome
        }
    }
}

/// Reads neighbouring chunks at once, each into a buffer of its own.
fn read(
    plan: &Plan,
    first: usize,
    buffers: Vec<Buffer>,
    freed: &mut Vec<Buffer>,
) -> Result<Done, WorkingSetError> {
    let chunks = &plan.chunks[first..first + buffers.len().max(1)];
    let mut staged: Vec<Staged> = buffers.into_iter().map(Staged::Pooled).collect();
    if staged.is_empty() {
        let fresh = Mapping::reserve(chunks[0].bytes.max(1));
        staged.push(Staged::Fresh(fresh.map_err(|errno| WorkingSetError::Read(errno.into()))?));
    }
    let offset = chunks[0].offset;
    let expected: usize = chunks.iter().map(|chunk| chunk.bytes).sum();
    let parts = staged.iter_mut().zip(chunks);
    let mut parts: Vec<&mut [u8]> =
        parts.map(|(staged, chunk)| &mut staged.as_mut()[..chunk.bytes]).collect();
    let outcome = read_many(&plan.file, &mut parts, offset);
    let landed = (first..).zip(staged).map(|(index, bytes)| Chunk { index, bytes });
    if matches!(outcome, Ok(count) if count == expected) {
        return Ok(Done::Landed(landed.collect()));
    }
    freed.extend(landed.filter_map(Chunk::into_pooled));
    let found = offset + outcome.map_err(WorkingSetError::Read)? as u64;
    Err(WorkingSetError::Length { expected: offset + expected as u64, found })
}

fn open(order: &Order, buffer: &mut [u8]) -> Result<(Plan, Option<Identity>), WorkingSetError> {
    let file = open_direct(&order.path).map_err(WorkingSetError::Read)?;
    let identity = Identity::of(&file, SystemTime::now()).map_err(WorkingSetError::Read)?;
    let set = WorkingSet::read(&file, buffer)?;
    set.belongs_to(order.memory)?;
    if set.memory_pages != order.memory_pages {
        return Err(WorkingSetError::Malformed("it is of a memory of another size"));
    }
    Ok((Plan::new(set, file, policy::overlaps(order.policy)), identity))
}

fn install(task: &mut Install) -> Result<Done, WorkingSetError> {
    let Install { plan, chunk: Chunk { index, bytes }, vm, checks } = task;
    let chunk = &plan.chunks[*index];
    let bytes = &bytes.as_mut()[..chunk.bytes];
    if *checks {
        for (number, part) in (chunk.first_checksum..).zip(bytes.chunks(CHUNK_BYTES)) {
            plan.set.check_chunk(number, part)?;
        }
    }
    let mut done = InstalledSoFar { bytes: chunk.bytes as u64, ..InstalledSoFar::default() };
    for piece in &chunk.pieces {
        let content = piece.source.map(|at| &bytes[at..at + piece.run.bytes()]);
        match vm.prefetch(piece.run, content) {
            Put::Gone => return Ok(Done::Gone),
            Put::Pages(pages) => {
                done.pages += u64::from(pages);
                done.zero_pages += if content.is_none() { u64::from(pages) } else { 0 };
            }
        }
    }
    Ok(Done::Installed(*index, done))
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").finish_non_exhaustive()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}
