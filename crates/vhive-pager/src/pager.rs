//! The pager: prepare a guest's memory while its VMM starts, attach it, serve it.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vhive_api::Digest;

use crate::handler::{Handler, Roster};
use crate::handshake::Handoff;
use crate::loader::{Desk, Limits, Loader, Order, Progress};
use crate::policy::{self, PrefetchPolicy, ResumeAfter};
use crate::regions::{Regions, RegionsError, page_count};
use crate::stats::PagerStats;
use crate::trace::FaultTrace;
use crate::vm::{OnDeath, Parts, ServeError, Vm};
use crate::working_set::WorkingSetError;

/// How many threads and how much memory a pager has, however many guests it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagerConfig {
    /// Threads that serve faults.
    pub handlers: usize,
    /// The CPUs that these may run on. If empty, each follows the guest that it serves, as far as the VMM's
    /// userfaultfd names faulting threads: a fault served on another CPU takes three times as long.
    pub handler_cpus: Vec<usize>,
    /// Reads of working sets in flight at a time.
    pub readers: usize,
    /// Chunks of working sets installed at a time.
    pub copiers: usize,
    /// Chunks of 256 KiB that can be read before they are installed; resident as long as the pager lives.
    pub staging_chunks: usize,
}

impl Default for PagerConfig {
    fn default() -> Self {
        Self { handlers: 2, handler_cpus: Vec::new(), readers: 8, copiers: 2, staging_chunks: 128 }
    }
}

/// Why a pager did not start.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// A number of threads is zero, or there are fewer staging chunks than threads.
    #[error(
        "a pager needs a handler, a reader, a copier and more than {needed} staging chunks, not {0:?}",
        needed = .0.readers + .0.copiers
    )]
    Config(PagerConfig),
    /// No thread, no descriptor, or a CPU that cannot be had.
    #[error("cannot start a thread that serves faults")]
    Handler(#[source] io::Error),
    /// No thread, or no memory.
    #[error("cannot start the threads that read working sets")]
    Loader(#[source] io::Error),
}

/// Serves the memory of restored guests. Dropping it reports every guest that is still attached as dead.
#[derive(Debug)]
pub struct Pager {
    // Declared in the order in which they stop.
    handlers: Vec<Handler>,
    loader: Loader,
    next: AtomicU64,
}

/// A memory file, and how its pages are to arrive.
#[derive(Debug)]
pub struct PreparedMemory {
    /// The memory file, open for reading. It must not change while it is served.
    pub file: File,
    /// Its digest, which working sets name; the pager does not compute it.
    pub digest: Digest,
    /// How its pages arrive.
    pub mode: Mode,
}

/// How pages of guest memory arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each when it is touched.
    Lazy,
    /// Each when it is touched, and the order is noted; zeros bring the zeros around them, and a streak what it
    /// leads to.
    Record {
        /// How.
        policy: PrefetchPolicy,
    },
    /// Those of a working set at once, the others when they are touched.
    Prefetch {
        /// The working-set file.
        working_set: PathBuf,
        /// How.
        policy: PrefetchPolicy,
    },
}

impl Mode {
    const fn policy(&self) -> PrefetchPolicy {
        match self {
            // A lazy guest's faults bring one page each, as the default's do.
            Self::Lazy => PrefetchPolicy::ReapPipelined,
            Self::Record { policy } | Self::Prefetch { policy, .. } => *policy,
        }
    }
}

/// Why a memory cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The memory file cannot be examined.
    #[error("cannot examine the memory file")]
    Examine(#[source] io::Error),
    /// The memory file has an impossible size.
    #[error("the memory file cannot be served")]
    Size(#[from] RegionsError),
    /// A policy whose working sets are not recorded by serving faults.
    #[error("policy `{0}` does not record faults: restore with the memory file mapped instead")]
    DoesNotRecord(PrefetchPolicy),
}

/// Why a guest could not be attached. It was reported dead.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Its regions do not fit the memory file.
    #[error("the guest's regions do not fit its memory file")]
    Regions(#[from] RegionsError),
    /// The descriptor cannot be watched.
    #[error("cannot watch the guest's userfaultfd")]
    Watch(#[source] io::Error),
}

/// Why a wait for memory ended without it.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// It took too long.
    #[error("the working set was not in place before the deadline")]
    Deadline,
    /// The guest is dead.
    #[error("the guest's memory cannot be served")]
    Dead(#[source] Arc<ServeError>),
}

impl Pager {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the configuration makes no sense, or threads, descriptors or memory cannot be had.
    pub fn start(config: &PagerConfig) -> Result<Self, PagerError> {
        let PagerConfig { handlers, readers, copiers, staging_chunks: buffers, .. } = *config;
        if handlers == 0 || readers == 0 || copiers == 0 || buffers <= readers + copiers {
            return Err(PagerError::Config(config.clone()));
        }
        let started = (0..handlers).map(|number| Handler::start(number, &config.handler_cpus));
        let handlers = started.collect::<io::Result<_>>().map_err(PagerError::Handler)?;
        let loader =
            Loader::start(Limits { readers, copiers, buffers }).map_err(PagerError::Loader)?;
        Ok(Self { handlers, loader, next: AtomicU64::new(0) })
    }

    /// Takes a memory file; for [`Mode::Prefetch`], reading the working set begins now, so that it goes on
    /// while the VMM starts. A working set that cannot be used is no error: the guest is served without,
    /// and [`Session::prefetch_failure`] tells why.
    ///
    /// # Errors
    /// If the memory file cannot be served.
    pub fn prepare(&self, memory: PreparedMemory) -> Result<Prepared, PrepareError> {
        let bytes = memory.file.metadata().map_err(PrepareError::Examine)?.len();
        let memory_pages = page_count(bytes)?;
        let policy = memory.mode.policy();
        let load = match memory.mode {
            Mode::Lazy => None,
            Mode::Record { .. } if policy::records_faults(policy) => None,
            Mode::Record { .. } => return Err(PrepareError::DoesNotRecord(policy)),
            Mode::Prefetch { ref working_set, .. } => {
                let path = working_set.clone();
                let order = Order { path, memory: memory.digest, memory_pages, policy };
                let (id, progress) = self.loader.desk().submit(order);
                Some(Load { desk: Arc::clone(self.loader.desk()), id, progress })
            }
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let at = usize::try_from(id).unwrap_or(0) % self.handlers.len();
        let roster = Arc::clone(self.handlers[at].roster());
        let records = matches!(memory.mode, Mode::Record { .. });
        let (file, memory_bytes) = (memory.file, bytes);
        Ok(Prepared { id, roster, file, memory_bytes, memory_pages, policy, records, load })
    }
}

/// A working set on its way; dropping it stops that.
#[derive(Debug)]
struct Load {
    desk: Arc<Desk>,
    id: u64,
    progress: Arc<Progress>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.desk.cancel(self.id);
    }
}

/// A memory that waits for its guest.
#[derive(Debug)]
pub struct Prepared {
    id: u64,
    roster: Arc<Roster>,
    file: File,
    memory_bytes: u64,
    memory_pages: u32,
    policy: PrefetchPolicy,
    records: bool,
    load: Option<Load>,
}

impl Prepared {
    /// The size of the memory file, which [`crate::handshake::receive`] wants to know.
    #[must_use]
    pub const fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Serves the guest from now on. It may be resumed after [`Session::may_resume`]; before, its VMM's own
    /// faults are served.
    ///
    /// `on_death` must kill the VMM at once and without waiting, and is told why. It is called, once and from any thread, when the
    /// memory cannot be served any more, while the userfaultfd is still open: afterwards missing pages would
    /// read as zeros.
    ///
    /// # Errors
    /// If the guest does not fit the memory file or cannot be watched; `on_death` has been called then.
    pub fn attach(self, handoff: Handoff, on_death: OnDeath) -> Result<Session, AttachError> {
        let Handoff { uffd, regions } = handoff;
        let checked = match Regions::new(regions.as_slice(), self.memory_bytes) {
            Ok(regions) => fcntl_getfl(&uffd)
                .and_then(|flags| fcntl_setfl(&uffd, flags | OFlags::NONBLOCK))
                .map(|()| regions)
                .map_err(|errno| AttachError::Watch(errno.into())),
            Err(error) => Err(error.into()),
        };
        let regions = match checked {
            Ok(regions) => regions,
            Err(error) => {
                on_death(&ServeError::NotAttached);
                return Err(error);
            }
        };
        let vm = Arc::new(Vm::new(Parts {
            uffd,
            regions,
            memory: self.file,
            memory_pages: self.memory_pages,
            window: policy::pages_per_fault(self.policy),
            records: self.records,
            progress: self.load.as_ref().map(|load| Arc::clone(&load.progress)),
            on_death,
        }));
        if let Err(error) = self.roster.add(self.id, &vm) {
            vm.die(ServeError::NotAttached);
            return Err(AttachError::Watch(error));
        }
        if let Some(load) = &self.load {
            load.desk.attach(load.id, &vm);
        }
        Ok(Session { id: self.id, roster: self.roster, policy: self.policy, load: self.load, vm })
    }
}

/// A guest whose memory is served. Drop it only when the VMM is dead or about to be: the userfaultfd is closed,
/// and missing pages read as zeros.
#[derive(Debug)]
pub struct Session {
    id: u64,
    roster: Arc<Roster>,
    policy: PrefetchPolicy,
    load: Option<Load>,
    vm: Arc<Vm>,
}

impl Session {
    /// Waits until the policy lets the guest run: at once without a working set or when it turned out
    /// unusable, else after its first chunk (`reap-serial`: all of it) is in place.
    ///
    /// # Errors
    /// If the deadline passes first (the guest may be resumed all the same: the rest comes by faults), or the
    /// guest is dead.
    pub fn may_resume(&self, deadline: Instant) -> Result<(), WaitError> {
        self.wait(policy::resume_after(self.policy) == ResumeAfter::Everything, deadline)
    }

    /// Waits until the whole working set is in place, if there is one that can be used.
    ///
    /// # Errors
    /// As [`Session::may_resume`].
    pub fn wait_installed(&self, deadline: Instant) -> Result<(), WaitError> {
        self.wait(true, deadline)
    }

    fn wait(&self, for_everything: bool, deadline: Instant) -> Result<(), WaitError> {
        let Some(load) = &self.load else { return self.alive() };
        let begun = Instant::now();
        let in_time = load.progress.wait(for_everything, deadline);
        self.vm.add_wait(begun.elapsed());
        self.alive()?;
        if in_time { Ok(()) } else { Err(WaitError::Deadline) }
    }

    fn alive(&self) -> Result<(), WaitError> {
        self.vm.failure().map_or(Ok(()), |failure| Err(WaitError::Dead(failure)))
    }

    /// Ends the recording and gives it; `None` if there was none, or it was ended before. Faults are served on.
    #[must_use]
    pub fn finish_recording(&self) -> Option<FaultTrace> {
        self.vm.finish_recording()
    }

    /// Ends the recording for nobody: what was recorded is dropped, and faults are served without adding to it.
    /// False if there was none, or it was ended before.
    pub fn discard_recording(&self) -> bool {
        self.vm.finish_recording().is_some()
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> PagerStats {
        self.vm.stats()
    }

    /// Why the working set was not used, or not to its end. The guest is served all the same.
    #[must_use]
    pub fn prefetch_failure(&self) -> Option<Arc<WorkingSetError>> {
        self.load.as_ref()?.progress.error()
    }

    /// Why the guest was reported dead.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<ServeError>> {
        self.vm.failure()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.vm.forget();
        self.roster.remove(self.id);
    }
}
