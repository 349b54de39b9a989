//! The seam between the brain and the hands.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use vhive_api::guest::{Hooks, Process};
use vhive_api::{
    Bytes, FaultTimeline, MemoryFigures, MemoryMode, PrefetchPolicy, RuntimeName, SandboxId,
};

use crate::deadline::Deadline;
use crate::journal::{Journal, Milestone};
use crate::network::NetworkSlot;
use crate::qemu::AcceleratorChoice;
use crate::run_dir::RunRoot;
use crate::snapshot::{Blame, DraftError, Mismatch, OpenError, Platform, Snapshot, SnapshotDraft};

/// What runs inside a sandbox, below the function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Guest {
    /// Linux with our init: the microVM's own kernel, or the host's.
    #[default]
    Linux,
    /// A program without an operating system that is booted in the kernel's place and serves the
    /// function's port itself. It speaks no guest contract: it is ready when its port answers, and
    /// nothing makes its clones differ. Only runtimes with virtual machines boot it.
    Bare {
        /// A static ELF with a PVH entry.
        kernel: PathBuf,
    },
}

/// What a sandbox will be asked for besides serving. What is not said here it may refuse, and be there
/// the sooner for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Snapshots may be taken of it ([`Sandbox::checkpoint`]).
    pub snapshots: bool,
    /// Commands may be run in it ([`Sandbox::run`]).
    pub commands: bool,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    /// Names the sandbox's directory, cgroup and host name.
    pub id: SandboxId,
    /// What runs inside, below the function.
    pub guest: Guest,
    /// The function's root file system: a read-only EROFS image. `sim` and bare guests ignore it.
    pub rootfs: PathBuf,
    /// What to run in it.
    pub process: Process,
    /// What the function wants to be told of snapshots.
    pub hooks: Hooks,
    /// What else it will be asked for.
    pub uses: Uses,
    /// TCP port on which the function will listen.
    pub port: u16,
    /// CPU limit in thousandths of a CPU; microVMs have whole vCPUs, and a quota besides where it is
    /// not a whole number of them.
    pub cpu_millis: u32,
    /// Memory limit; for microVMs the size of guest memory.
    pub memory: Bytes,
    /// The network slot; only `sim` does without. Goes back to its pool when the last clone of
    /// the spec and the sandbox made from it are dropped.
    pub network: Option<Arc<NetworkSlot>>,
    /// Where the sandbox keeps its sockets and logs, and what a sweep would find.
    pub run_root: RunRoot,
    /// Where it tells what happens.
    pub journal: Arc<Journal>,
}

/// Why a host cannot offer a runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {fix}")]
pub struct HostLacks {
    /// The missing or unfit thing.
    pub what: String,
    /// What the user can do about it.
    pub fix: String,
}

/// Why a sandbox could not be booted. Nothing of it is left behind; its journal has the console.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The host cannot offer the runtime.
    #[error("runtime {runtime} is not available here")]
    Host {
        /// Which runtime.
        runtime: RuntimeName,
        /// Why not.
        #[source]
        lacks: HostLacks,
    },
    /// A host resource could not be made.
    #[error("cannot {step}")]
    Resource {
        /// What was being done, e.g. `create cgroup /sys/fs/cgroup/…`.
        step: String,
        /// Why that failed.
        #[source]
        source: std::io::Error,
    },
    /// The VMM or runtime process could not be started, or ended at once.
    #[error("cannot start {program}: {reason}")]
    Spawn {
        /// The program.
        program: String,
        /// Its own words, or the system's.
        reason: String,
    },
    /// The guest did not reach a milestone.
    #[error("guest not {wanted:?} after {attempts} attempt(s): {reason}")]
    Guest {
        /// What was waited for.
        wanted: Milestone,
        /// How often it was tried.
        attempts: u32,
        /// Why, as the journal says.
        reason: String,
    },
}

/// A way to isolate a function, as in Kubernetes' RuntimeClass.
pub trait Runtime: Send + Sync + fmt::Debug {
    /// Its name.
    fn name(&self) -> RuntimeName;

    /// Says whether this host can offer it. May take seconds the first time; the answer is for
    /// `vhive doctor` and for skipping tests.
    ///
    /// # Errors
    /// [`HostLacks`] with the reason and the fix.
    fn check_host(&self) -> Result<(), HostLacks>;

    /// How its guests' instructions are run, and why so; none before that has been found out (by
    /// [`Runtime::check_host`] or the first start), and for runtimes without guests. Never waits.
    fn known_accelerator(&self) -> Option<AcceleratorChoice> {
        None
    }

    /// Starts a sandbox and returns when its function's process has been started
    /// ([`Milestone::Started`] is in the journal). Whether it is *ready* is the caller's business.
    ///
    /// # Errors
    /// [`BootError`]; every host resource has been released by then.
    fn boot(&self, spec: &SandboxSpec, deadline: Deadline) -> Result<Box<dyn Sandbox>, BootError>;

    /// The view of a runtime that can restore snapshots; its sandboxes can be snapshotted. May take
    /// seconds the first time.
    fn restores(&self) -> Option<&dyn Restore> {
        None
    }

    /// Why [`Runtime::restores`] has nothing, if that is this host's doing.
    fn restores_nothing(&self) -> Option<HostLacks> {
        None
    }
}

/// How a restored guest's memory shall arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// By which means.
    pub mode: MemoryMode,
    /// How pages are recorded or prefetched in the modes that do.
    pub policy: PrefetchPolicy,
    /// Whether what the kernel maps is recorded off its page cache, which is emptied of the memory file
    /// before: of meaning in the mode [`MemoryMode::File`] only, and with [`PrefetchPolicy::Mincore`].
    pub from_page_cache: bool,
}

impl Memory {
    /// By this mode and policy, recorded wherever they can be.
    #[must_use]
    pub fn new(mode: MemoryMode, policy: PrefetchPolicy) -> Self {
        let from_page_cache = mode == MemoryMode::File && policy == PrefetchPolicy::Mincore;
        Self { mode, policy, from_page_cache }
    }
}

/// What a runtime can do that restores snapshots.
pub trait Restore: Send + Sync {
    /// The modes that runtime and host offer now; [`MemoryMode::File`] is always among them. It is asked at
    /// each start.
    fn memory_modes(&self) -> &[MemoryMode];

    /// Why this mode is not among them, if that is known. As [`Restore::memory_modes`], it looks at the
    /// host as it is now.
    fn lacks(&self, _mode: MemoryMode) -> Option<HostLacks> {
        None
    }

    /// What snapshots of such guests are taken on and must agree with, but for what
    /// [`Guest::platform`] knows.
    ///
    /// # Errors
    /// [`HostLacks`] if the runtime cannot be offered for them, be it for a moment only: that says
    /// nothing of any snapshot.
    fn platform(&self, guest: &Guest) -> Result<Platform, HostLacks>;

    /// Spawns a VMM that waits to become a clone whose memory arrives by `mode` (the three modes
    /// that the pager serves count as one). None if the runtime cannot separate the two.
    ///
    /// # Errors
    /// [`RestoreError`]; every host resource has been released by then.
    fn prespawn(
        &self,
        _spec: &SandboxSpec,
        _from: &Snapshot,
        _mode: MemoryMode,
        _deadline: Deadline,
    ) -> Result<Option<Box<dyn Prespawned>>, RestoreError> {
        Ok(None)
    }

    /// Starts a clone and returns when its guest is itself again ([`Milestone::Resumed`] is in the
    /// journal): clock, entropy, host name and network are right. The function in it runs; whether
    /// it is *ready* is the caller's business. The caller has checked the manifest
    /// ([`Manifest::check`](crate::snapshot::Manifest::check)).
    ///
    /// # Errors
    /// [`RestoreError`]; every host resource has been released by then.
    fn restore(
        &self,
        spec: &SandboxSpec,
        from: &Snapshot,
        memory: Memory,
        deadline: Deadline,
    ) -> Result<Box<dyn Sandbox>, RestoreError>;
}

/// A VMM that has been spawned for a snapshot and waits for its state, so that a restore need not
/// wait for it. It owns its sandbox's directory, network slot and disk. Dropping it releases them.
pub trait Prespawned: Send + fmt::Debug {
    /// Goes on where [`Restore::prespawn`] stopped, as [`Restore::restore`] does. The sandbox has
    /// identity and journal of the specification for which it was spawned.
    ///
    /// # Errors
    /// [`RestoreError`]; every host resource has been released by then.
    fn restore(
        self: Box<Self>,
        memory: Memory,
        deadline: Deadline,
    ) -> Result<Box<dyn Sandbox>, RestoreError>;
}

/// Why a clone could not be restored. Nothing of it is left behind; its journal has the console.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot was taken on something else.
    #[error("snapshot does not fit")]
    Mismatch(#[source] Mismatch),
    /// A file of the snapshot is missing, damaged or cannot be read now.
    #[error("snapshot is unusable")]
    Snapshot(#[source] OpenError),
    /// The runtime does not take the snapshot's state: it should be retired.
    #[error("{program} does not take the saved state: {reason}")]
    State {
        /// The program.
        program: String,
        /// Its own words.
        reason: String,
    },
    /// The runtime ended in the middle, of which it does not say why.
    #[error("{program} broke off while it restored: {reason}")]
    BrokenOff {
        /// The program.
        program: String,
        /// Its own words.
        reason: String,
    },
    /// The runtime does not offer this mode here.
    #[error("memory mode {mode} is not offered here: {reason}")]
    Mode {
        /// Which.
        mode: MemoryMode,
        /// Why not.
        reason: String,
    },
    /// The memory cannot be served.
    #[error("guest memory cannot be served: {0}")]
    Pager(String),
    /// It failed as a boot can fail.
    #[error(transparent)]
    Start(#[from] BootError),
}

impl RestoreError {
    /// What it says of the snapshot: one that is to blame is not to be tried again.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Snapshot(error) => error.blame(),
            Self::State { .. } => Blame::Snapshot,
            Self::Mismatch(_) | Self::Mode { .. } => Blame::Host,
            Self::BrokenOff { .. } | Self::Pager(_) | Self::Start(BootError::Guest { .. }) => {
                Blame::Either
            }
            Self::Start(
                BootError::Host { .. } | BootError::Resource { .. } | BootError::Spawn { .. },
            ) => Blame::Host,
        }
    }
}

/// A sandbox that can be snapshotted.
pub trait Checkpoint {
    /// Writes the sandbox's state into the draft. The sandbox is paused meanwhile and goes on
    /// afterwards, also after an error unless [`SnapshotError::is_lost`]. Nobody may talk to the
    /// function meanwhile, and nobody should have a connection to it open: the connection would be
    /// in the snapshot.
    ///
    /// # Errors
    /// [`SnapshotError`]; the draft is to be dropped.
    fn snapshot_into(
        &mut self,
        draft: &mut SnapshotDraft,
        deadline: Deadline,
    ) -> Result<(), SnapshotError>;
}

/// Why no snapshot could be taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The guest did not get ready for it; it runs on.
    #[error("the guest did not prepare for the snapshot: {0}")]
    Guest(String),
    /// A file could not be written; the sandbox runs on.
    #[error("cannot write the snapshot")]
    Write(#[from] DraftError),
    /// The runtime refused; the sandbox runs on.
    #[error("cannot {step}: {reason}")]
    Runtime {
        /// What was being done.
        step: &'static str,
        /// Its own words.
        reason: String,
    },
    /// The sandbox could not be made to go on and is to be dropped.
    #[error("the sandbox does not go on after the snapshot: {0}")]
    Lost(String),
}

impl SnapshotError {
    /// Whether the sandbox is of no use any more.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }
}

/// How a restored sandbox's memory has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// In figures.
    pub figures: MemoryFigures,
    /// Fault by fault, where a pager serves it; taken at the same moment as the figures.
    pub timeline: Option<FaultTimeline>,
}

/// What a working set is worth to the sandbox that it was prefetched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Pages that it has, whether they are in place yet or not.
    pub pages: u64,
    /// Faults of pages that it does not have (or cannot bring): those that another recording would spare.
    /// Pages that were on their way when they were touched do not count.
    pub missed: u64,
}

/// The way in which a restored sandbox's memory arrives. Every method may be called from any
/// thread, also after the sandbox has ended.
pub trait Paging: Send + Sync + fmt::Debug {
    /// What has happened so far. Costs microseconds, and waits for no page.
    fn figures(&self) -> MemoryFigures;

    /// The same, with its faults; times count from `began`. Costs tens of microseconds at most.
    fn arrival(&self, _began: Instant) -> Arrival {
        Arrival { figures: self.figures(), timeline: None }
    }

    /// What the working set is worth so far; none if none is prefetched. Costs what
    /// [`Paging::figures`] does.
    fn replay(&self) -> Option<Replay> {
        None
    }

    /// Why memory does not arrive as it was asked for, as far as that is known now: for instance, that
    /// no working set could be used. [`MemoryFigures::mode`] is what happens instead.
    fn shortfall(&self) -> Option<String> {
        None
    }

    /// Ends the recording and writes what was recorded as the snapshot's next working set; pages
    /// go on being served. To be called after the reply. Says the working set's number, or `None`
    /// if nothing was being recorded (any more).
    ///
    /// # Errors
    /// [`RecordingError`]; the recording is lost, the sandbox runs on.
    fn finish_recording(&self) -> Result<Option<u32>, RecordingError>;

    /// Ends the recording without writing anything, because there is no snapshot any more that it could belong
    /// to, or nobody needs it; pages go on being served as before. False if nothing was being recorded (any more).
    fn discard_recording(&self) -> bool {
        false
    }
}

/// Why a recording did not become a working set.
#[derive(Debug, thiserror::Error)]
#[error("working set not written: {0}")]
pub struct RecordingError(pub String);

/// Why a command gave no exit code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// Nothing in this sandbox could run it.
    #[error("no command can be run in this sandbox")]
    Unsupported,
    /// It could not be run, or took too long.
    #[error("{0}")]
    Failed(String),
}

/// One running unit with an address. Dropping it kills it and releases everything; that may block
/// for a kill and an unmount, so never drop one on an async runtime's thread.
pub trait Sandbox: Send + fmt::Debug {
    /// Its identifier.
    fn id(&self) -> &SandboxId;

    /// Where the function will listen, as seen from the host.
    fn endpoint(&self) -> SocketAddr;

    /// Host processes; the first one's exit ends the sandbox. Empty for `sim`.
    fn processes(&self) -> &[rustix::process::Pid];

    /// Directory of a control group that holds every process of the sandbox at any time, where there
    /// may be more than [`Sandbox::processes`] tells: those that the function has started.
    fn group(&self) -> Option<PathBuf> {
        None
    }

    /// The view of a sandbox that can be snapshotted; of one whose specification does not want that
    /// ([`Uses::snapshots`]) there may be none.
    fn checkpoint(&mut self) -> Option<&mut dyn Checkpoint> {
        None
    }

    /// Runs a command in the sandbox beside the function, as its user and with its variables, and
    /// says its exit code. It is killed at the deadline. Only for a sandbox whose specification wants
    /// that ([`Uses::commands`]).
    ///
    /// # Errors
    /// [`RunError`].
    fn run(&mut self, _command: &[String], _deadline: Deadline) -> Result<i32, RunError> {
        Err(RunError::Unsupported)
    }

    /// How the memory of a restored sandbox arrives; none if it was booted.
    fn paging(&self) -> Option<Arc<dyn Paging>> {
        None
    }

    /// Asks the function to end by its stop signal and waits until the sandbox has ended or the
    /// deadline passed. Dropping it afterwards is still needed.
    fn stop(&mut self, deadline: Deadline);
}
