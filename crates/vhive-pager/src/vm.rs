//! One guest's memory while it is served: its faults, its changes, its end.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::events::{self, Event};
use crate::install::{Content, Stop, install};
use crate::loader::Progress;
use crate::memory_file::{LOOKED_AT, MemoryFile};
use crate::pages::{PageNumber, PageSet, Run, all_zero, by_content};
use crate::place::Place;
use crate::regions::{Placed, Regions};
use crate::stats::PagerStats;
use crate::sys::{self, PAGE};
use crate::trace::FaultTrace;

/// Why a guest's memory could not be served any more; the guest was reported dead then.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The memory file cannot be read.
    #[error("cannot read page {0} of the memory file")]
    Read(PageNumber, #[source] io::Error),
    /// The memory file became shorter.
    #[error("the memory file ends before page {0}")]
    Ended(PageNumber),
    /// A fault where no memory was handed over.
    #[error("a fault at {0:#x}, where no guest memory was handed over")]
    Outside(u64),
    /// A fault of a kind that was not asked for.
    #[error("a fault at {0:#x} of a kind not served (flags {1:#x})")]
    Kind(u64, u64),
    /// The VMM moved its memory.
    #[error("guest memory at {0:#x} was moved")]
    Moved(u64),
    /// The VMM forked, with its memory.
    #[error("the VMM forked")]
    Forked,
    /// A message that this program does not know.
    #[error("a userfaultfd message of unknown kind {0:#x}")]
    Unknown(u8),
    /// The kernel refused.
    #[error("the kernel refused to {0}")]
    Kernel(&'static str, #[source] Errno),
    /// The thread that served it broke off.
    #[error("the thread that served the memory broke off")]
    Panicked,
    /// It was not served at all.
    #[error("the guest could not be attached")]
    NotAttached,
    /// The pager was stopped while the guest lived.
    #[error("the pager was stopped")]
    Stopped,
}

pub(crate) type OnDeath = Box<dyn FnOnce(&ServeError) + Send>;

/// What a thread that serves faults has of its own: a buffer for pages, and its place.
pub(crate) struct Scratch(Vec<u8>, Place);

impl Scratch {
    pub(crate) fn new(place: Place) -> Self {
        Self(vec![0; MOST_WINDOW as usize * PAGE], place)
    }
}

const MOST_WINDOW: u32 = 64;

/// How prefetching fares with one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// So many pages came by it.
    Pages(u32),
    /// There is nothing to install into any more.
    Gone,
}

/// Whether there will be more to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    GoesOn,
    ProcessGone,
}

pub(crate) struct Vm {
    uffd: OwnedFd,
    regions: Regions,
    memory: MemoryFile,
    window: u32,
    progress: Option<Arc<Progress>>,
    attached: Instant,
    /// Read-held over every installation of file content, and write-held over reading messages: between a
    /// range's message and its entry here no old content can slip into it.
    removed: RwLock<Removed>,
    messages_read: (Mutex<u64>, Condvar),
    /// Held while faults are served, so that whoever asks sees those whose guest already goes on.
    serving: Mutex<()>,
    recording: Mutex<Option<FaultTrace>>,
    stats: Mutex<PagerStats>,
    ward: Mutex<Ward>,
}

struct Removed {
    pages: PageSet,
    /// Kept open: closing one would give the child zeros for pages.
    children: Vec<OwnedFd>,
}

struct Ward {
    on_death: Option<OnDeath>,
    failure: Option<Arc<ServeError>>,
}

/// What a [`Vm`] is made of.
pub(crate) struct Parts {
    pub(crate) uffd: OwnedFd,
    pub(crate) regions: Regions,
    pub(crate) memory: std::fs::File,
    pub(crate) memory_pages: u32,
    pub(crate) window: u32,
    pub(crate) records: bool,
    pub(crate) progress: Option<Arc<Progress>>,
    pub(crate) on_death: OnDeath,
}

impl Vm {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { uffd, regions, memory, memory_pages, window, records, progress, on_death } =
            parts;
        Self {
            uffd,
            regions,
            memory: MemoryFile::new(memory, memory_pages, records),
            window: window.clamp(1, MOST_WINDOW),
            progress,
            attached: Instant::now(),
            removed: RwLock::new(Removed {
                pages: PageSet::below(memory_pages),
                children: Vec::new(),
            }),
            messages_read: (Mutex::new(0), Condvar::new()),
            serving: Mutex::new(()),
            recording: Mutex::new(records.then(|| FaultTrace::below(memory_pages))),
            stats: Mutex::new(PagerStats::default()),
            ward: Mutex::new(Ward { on_death: Some(on_death), failure: None }),
        }
    }

    pub(crate) fn uffd(&self) -> BorrowedFd<'_> {
        self.uffd.as_fd()
    }

    pub(crate) fn stats(&self) -> PagerStats {
        let _served = lock(&self.serving);
        let mut stats = lock(&self.stats).clone();
        if let Some(progress) = &self.progress {
            let done = progress.installed();
            stats.prefetched_pages = done.pages;
            stats.prefetched_bytes = done.bytes;
            stats.zero_pages += done.zero_pages;
            stats.prefetch_done = done.at.map(|at| at.saturating_duration_since(self.attached));
        }
        stats
    }

    pub(crate) fn add_wait(&self, wait: Duration) {
        lock(&self.stats).wait += wait;
    }

    pub(crate) fn finish_recording(&self) -> Option<FaultTrace> {
        let _served = lock(&self.serving);
        lock(&self.recording).take()
    }

    pub(crate) fn failure(&self) -> Option<Arc<ServeError>> {
        lock(&self.ward).failure.clone()
    }

    /// Reports the guest dead, once. The userfaultfd stays open: a guest that still runs waits, and is not
    /// given zeros.
    pub(crate) fn die(&self, failure: ServeError) {
        let (on_death, failure) = {
            let mut ward = lock(&self.ward);
            let failure = Arc::clone(ward.failure.get_or_insert_with(|| Arc::new(failure)));
            (ward.on_death.take(), failure)
        };
        if let Some(on_death) = on_death {
            // Whatever it does, the thread has other guests to serve.
            let _ = catch_unwind(AssertUnwindSafe(|| on_death(&failure)));
        }
    }

    /// The guest is over: nobody is to be told of anything that happens from now on.
    pub(crate) fn forget(&self) {
        drop(lock(&self.ward).on_death.take());
    }

    /// Serves what waits in the userfaultfd.
    pub(crate) fn serve(&self, scratch: &mut Scratch) -> Result<Flow, ServeError> {
        let _serving = lock(&self.serving);
        let read_at = Instant::now();
        for (address, thread) in self.read_messages()? {
            scratch.1.near(thread);
            if self.fault(address, read_at, scratch)? == Flow::ProcessGone {
                return Ok(Flow::ProcessGone);
            }
        }
        Ok(Flow::GoesOn)
    }

    /// Reads messages, notes changes of the mapping, returns the faults' addresses and threads.
    fn read_messages(&self) -> Result<Vec<(u64, u32)>, ServeError> {
        let mut removed = self.removed.write().unwrap_or_else(PoisonError::into_inner);
        let messages =
            events::read(self.uffd()).map_err(|e| ServeError::Kernel("tell of faults", e))?;
        let mut faults = Vec::with_capacity(messages.len());
        let mut changed = false;
        for message in messages {
            match message {
                Event::Fault { address, thread } => faults.push((address, thread)),
                Event::Remove { start, end } | Event::Unmap { start, end } => {
                    changed = true;
                    for run in self.regions.pages_between(start, end) {
                        for page in run.iter() {
                            removed.pages.insert(page);
                        }
                    }
                }
                Event::OtherFault { address, flags } => {
                    return Err(ServeError::Kind(address, flags));
                }
                Event::Remap { from } => return Err(ServeError::Moved(from)),
                Event::Fork { child } => {
                    removed.children.extend(child);
                    return Err(ServeError::Forked);
                }
                Event::Unknown { event } => return Err(ServeError::Unknown(event)),
            }
        }
        drop(removed);
        if changed {
            *lock(&self.messages_read.0) += 1;
            self.messages_read.1.notify_all();
        }
        Ok(faults)
    }

    fn fault(
        &self,
        address: u64,
        read_at: Instant,
        scratch: &mut Scratch,
    ) -> Result<Flow, ServeError> {
        let page = self.regions.page_at(address).ok_or(ServeError::Outside(address))?;
        let is_residual = self.progress.as_ref().is_none_or(|progress| !progress.will_bring(page));
        let run = self.read_for(page, scratch)?;
        let bytes = &scratch.0[..run.bytes()];
        let removed = self.removed.read().unwrap_or_else(PoisonError::into_inner);
        let (mut pages, mut zero_pages, mut stop) = (0, 0, None);
        if removed.pages.holds(page) {
            for placed in self.regions.place(Run { first: page, pages: 1 }) {
                let installed = install(self.uffd(), placed.address, Content::Zeros(PAGE));
                pages += installed.pages;
                zero_pages += installed.pages;
                stop = installed.stop;
            }
        } else {
            for (part, is_zero) in by_content(run, bytes) {
                let at = (part.first - run.first) as usize * PAGE;
                let content = if is_zero { None } else { Some(&bytes[at..at + part.bytes()]) };
                let (installed, stopped) = self.put(&removed, part, content);
                pages += installed;
                zero_pages += if is_zero { installed } else { 0 };
                stop = stop.or(stopped);
            }
            if let Some(trace) = &mut *lock(&self.recording) {
                trace.record(page);
                for page in run.iter().filter(|page| !removed.pages.holds(*page)) {
                    trace.record(page);
                }
            }
        }
        drop(removed);
        match stop {
            None => {}
            Some(Stop::Gone) => return Ok(Flow::ProcessGone),
            Some(Stop::Failed(errno)) => return Err(ServeError::Kernel("install a page", errno)),
            Some(Stop::Busy | Stop::Unmapped) => {
                // The toucher asks again, or finds that it may not touch. By then the change is read, and done.
                let start = address & !(PAGE as u64 - 1);
                sys::wake(self.uffd(), start, PAGE)
                    .map_err(|errno| ServeError::Kernel("wake the guest", errno))?;
            }
        }
        let mut stats = lock(&self.stats);
        stats.fault(read_at.saturating_duration_since(self.attached), page, is_residual);
        stats.fault_pages += u64::from(pages);
        stats.zero_pages += u64::from(zero_pages);
        stats.wait += read_at.elapsed();
        drop(stats);
        // The guest goes on; what it will miss next is on its way meanwhile.
        self.memory.look_around(Run { first: page, pages: 1 });
        Ok(Flow::GoesOn)
    }

    /// Reads what one fault brings: the policy's window, or what a streak of recorded pages leads to; for a
    /// recorded page of zeros the zeros around it, which cost neither a read at the replay nor memory.
    fn read_for(&self, page: PageNumber, scratch: &mut Scratch) -> Result<Run, ServeError> {
        let run = self.streak(page).unwrap_or_else(|| self.window_around(page, self.window));
        if run.pages > 1 {
            self.memory.look_around(run);
        }
        let bytes = &mut scratch.0[..run.bytes()];
        self.memory.read(run, bytes)?;
        if !self.memory.looks_around() || run.pages > 1 || !all_zero(bytes) {
            return Ok(run);
        }
        let run = self.window_around(page, LOOKED_AT);
        self.memory.look_around(run);
        self.memory.read(run, &mut scratch.0[..run.bytes()])?;
        let parts = by_content(run, &scratch.0[..run.bytes()]);
        let around = |(part, is_zero): &(Run, bool)| *is_zero && part.holds(page);
        let zeros = parts.into_iter().find(around);
        let zeros = zeros.map_or(Run { first: page, pages: 1 }, |(part, _)| part);
        scratch.0[..zeros.bytes()].fill(0);
        Ok(zeros)
    }

    /// What is likely to be touched next, if the recorded pages lead up (or down) to this one without a gap:
    /// as many as lead there. A policy that brings windows brings just these.
    fn streak(&self, page: PageNumber) -> Option<Run> {
        if self.window > 1 {
            return None;
        }
        let recording = lock(&self.recording);
        let trace = recording.as_ref()?;
        let streak = trace.streak(page, MOST_WINDOW)?;
        let mut pieces = self.regions.place(streak).map(|placed| placed.run);
        pieces.find(|run| run.holds(page))
    }

    /// So many aligned pages around this one, as far as they were handed over in one piece.
    fn window_around(&self, page: PageNumber, pages: u32) -> Run {
        let window = Run { first: page - page % pages, pages };
        let mut pieces = self.regions.place(window).map(|placed| placed.run);
        let piece = pieces.find(|run| run.holds(page));
        piece.unwrap_or(Run { first: page, pages: 1 })
    }

    /// Installs a run (zeros without `bytes`), but for what was removed.
    fn put(&self, removed: &Removed, run: Run, bytes: Option<&[u8]>) -> (u32, Option<Stop>) {
        let (mut pages, mut stop) = (0, None);
        let mut put_part = |Placed { run: part, address }: Placed| {
            let at = (part.first - run.first) as usize * PAGE;
            let content = bytes.map_or(Content::Zeros(part.bytes()), |bytes| {
                Content::Bytes(&bytes[at..at + part.bytes()])
            });
            let installed = install(self.uffd(), address, content);
            pages += installed.pages;
            stop = stop.or(installed.stop);
        };
        for placed in self.regions.place(run) {
            if removed.pages.is_empty() {
                put_part(placed);
            } else {
                without(&removed.pages, placed).into_iter().for_each(&mut put_part);
            }
        }
        (pages, stop)
    }

    /// Installs a run ahead of any fault. What cannot be installed now is left to faults.
    pub(crate) fn prefetch(&self, run: Run, bytes: Option<&[u8]>) -> Put {
        const TRIES: u32 = 3;
        let mut pages = 0;
        for _ in 0..TRIES {
            let before = *lock(&self.messages_read.0);
            let removed = self.removed.read().unwrap_or_else(PoisonError::into_inner);
            let (installed, stop) = self.put(&removed, run, bytes);
            drop(removed);
            pages += installed;
            match stop {
                Some(Stop::Busy) => {
                    // Until the message is read and the change done; it is the handler's to read.
                    let patience = Duration::from_millis(1);
                    let count = lock(&self.messages_read.0);
                    let waiting = |count: &mut u64| *count == before;
                    let waited = self.messages_read.1.wait_timeout_while(count, patience, waiting);
                    drop(waited);
                }
                Some(Stop::Gone) => return Put::Gone,
                // A refusal comes again with the fault, and is reported there.
                None | Some(Stop::Unmapped | Stop::Failed(_)) => break,
            }
        }
        Put::Pages(pages)
    }
}

/// The parts of a placed run that are not in `removed`.
fn without(removed: &PageSet, placed: Placed) -> Vec<Placed> {
    let mut parts: Vec<Placed> = Vec::new();
    for (page, address) in placed.run.iter().zip((placed.address..).step_by(PAGE)) {
        if removed.holds(page) {
            continue;
        }
        match parts.last_mut() {
            Some(last) if last.run.end() == u64::from(page) => last.run.pages += 1,
            _ => parts.push(Placed { run: Run { first: page, pages: 1 }, address }),
        }
    }
    parts
}

/// Locks what stays consistent even if its holder broke off: single fields, changed at once.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").finish_non_exhaustive()
    }
}
