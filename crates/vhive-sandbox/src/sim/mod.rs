//! `sim`: isolates nothing, sleeps for the stated times, then answers HTTP/1.1. For tests, dry runs
//! and for measuring everything around a sandbox.
//!
//! Every sandbox has an address of its own in 127.0.0.0/8; one thread per [`Sim`] serves them all,
//! so that thousands cost little. Variables of the process override the configuration:
//!
//! | variable | meaning |
//! |---|---|
//! | `VHIVE_SIM_SPAWN_MS`, `…_BOOT_MS`, `…_INIT_MS`, `…_LISTEN_MS` | times up to `Spawned`, `KernelUp`, `Started`, `Listening` |
//! | `VHIVE_SIM_REPLY_MS` | time from a whole request to its reply |
//! | `VHIVE_SIM_SAY` | a line that it writes to its output once it has booted |
//! | `VHIVE_SIM_FAULT` | what goes wrong, see [`Fault`] |

mod fault;
mod http;
mod paging;
mod restore;
mod serve;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use vhive_api::guest::Stream;
use vhive_api::{MemoryMode, RuntimeName, SandboxId, Span};

use self::fault::Plan;
pub use self::fault::{Fault, ParseFaultError, Step};
use self::paging::SimPaging;
use self::restore::Saver;
use self::serve::{Server, UnitNo};
use crate::deadline::Deadline;
use crate::journal::{End, Milestone};
use crate::run_dir::{SandboxDir, SandboxRecord};
use crate::runtime::{
    BootError, Checkpoint, HostLacks, Paging, Restore, Runtime, Sandbox, SandboxSpec,
};

/// How long each step takes, and what goes wrong. The default takes no time and works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimConfig {
    /// Up to [`Milestone::Spawned`].
    pub spawn: Span,
    /// From there to [`Milestone::KernelUp`].
    pub boot: Span,
    /// From there to [`Milestone::Started`].
    pub init: Span,
    /// From there to [`Milestone::Listening`].
    pub listen: Span,
    /// From a whole request to its reply.
    pub reply: Span,
    /// Whether the guest tells of its kernel, its mounts, its start and its listening, as a microVM with our
    /// init does; else only of being spawned.
    pub tells: bool,
    /// Whether each sandbox makes its run directory, as real ones do.
    pub run_dir: bool,
    /// What goes wrong.
    pub fault: Option<Fault>,
    /// How it takes snapshots and starts from them.
    pub snapshot: SimSnapshot,
}

/// How long snapshots and restores take, and what a restored guest touches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimSnapshot {
    /// The memory modes that are offered; none = no snapshots at all.
    pub modes: Vec<MemoryMode>,
    /// The version that snapshots are taken on and restored on.
    pub version: String,
    /// To write a snapshot.
    pub checkpoint: Span,
    /// From `Spawned` to `Restored` in the mode `file`.
    pub restore_file: Span,
    /// … `lazy`.
    pub restore_lazy: Span,
    /// … `record`.
    pub restore_record: Span,
    /// … `prefetch`.
    pub restore_prefetch: Span,
    /// From there to `Resumed`.
    pub resume: Span,
    /// Pages that an invocation touches: what is recorded, and what faults if not prefetched.
    pub touched_pages: u64,
    /// Pages that it touches although no recording has them.
    pub missed_pages: u64,
    /// Pages that it touches before prefetching, which was about to, has brought them.
    pub awaited_pages: u64,
}

impl Default for SimSnapshot {
    fn default() -> Self {
        let none = Span(Duration::ZERO);
        Self {
            modes: vec![
                MemoryMode::File,
                MemoryMode::Lazy,
                MemoryMode::Record,
                MemoryMode::Prefetch,
            ],
            version: "1".to_owned(),
            checkpoint: none,
            restore_file: none,
            restore_lazy: none,
            restore_record: none,
            restore_prefetch: none,
            resume: none,
            touched_pages: 64,
            missed_pages: 0,
            awaited_pages: 0,
        }
    }
}

impl Default for SimConfig {
    fn default() -> Self {
        let none = Span(Duration::ZERO);
        Self {
            spawn: none,
            boot: none,
            init: none,
            listen: none,
            reply: none,
            tells: true,
            run_dir: false,
            fault: None,
            snapshot: SimSnapshot::default(),
        }
    }
}

/// The simulated runtime.
#[derive(Debug)]
pub struct Sim {
    config: SimConfig,
    /// Started by the first boot.
    server: Mutex<Option<Arc<Server>>>,
    addresses: AtomicU32,
}

impl Sim {
    /// A runtime that behaves as stated.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        // Begin elsewhere in each process, so that freshly used addresses do not meet.
        let addresses = AtomicU32::new(std::process::id().wrapping_mul(2_654_435_761));
        Self { config, server: Mutex::default(), addresses }
    }

    fn server(&self) -> std::io::Result<Arc<Server>> {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = &*server {
            return Ok(Arc::clone(server));
        }
        let started = Server::start()?;
        *server = Some(Arc::clone(&started));
        Ok(started)
    }

    /// The next of 4 million loopback addresses; the port is the kernel's choice.
    fn address(&self) -> SocketAddrV4 {
        let [_, a, b, c] = self.addresses.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        SocketAddrV4::new(Ipv4Addr::new(127, a % 64 + 64, b, c.clamp(1, 254)), 0)
    }
}

impl Runtime for Sim {
    fn name(&self) -> RuntimeName {
        RuntimeName::Sim
    }

    fn check_host(&self) -> Result<(), HostLacks> {
        Ok(())
    }

    fn boot(&self, spec: &SandboxSpec, deadline: Deadline) -> Result<Box<dyn Sandbox>, BootError> {
        let plan = self.plan(spec)?;
        let dir = self.dir(spec)?;
        let journal = &spec.journal;
        let mut steps = Steps { plan: &plan, spec, deadline };
        steps.take(Step::Spawn, plan.spawn, Milestone::Spawned)?;
        journal.reach(Milestone::Spawned, Instant::now());
        steps.take(Step::Boot, plan.boot, Milestone::KernelUp)?;
        if self.config.tells {
            journal.set_clock_error(Duration::ZERO);
            journal.reach(Milestone::KernelUp, Instant::now());
            journal.reach(Milestone::Mounted, Instant::now());
        }
        steps.take(Step::Init, plan.init, Milestone::Started)?;
        let sandbox = self.open(spec, &plan, dir, None)?;
        if self.config.tells {
            journal.reach(Milestone::Started, Instant::now());
        }
        let mut said = spec.process.env.iter().filter_map(|one| one.strip_prefix("VHIVE_SIM_SAY="));
        if let Some(text) = said.next_back() {
            journal.line(Stream::Stdout, text);
        }
        sandbox.server.begin(sandbox.unit, plan.listen);
        if let Some(Fault::ExitAtOnce(code)) = plan.fault {
            journal.line(Stream::Stderr, "sim exits as told");
            journal.end(End::Exited(code));
        }
        Ok(Box::new(sandbox))
    }

    fn restores(&self) -> Option<&dyn Restore> {
        let any = !self.config.snapshot.modes.is_empty();
        any.then_some(self as &dyn Restore)
    }
}

impl Sim {
    fn plan(&self, spec: &SandboxSpec) -> Result<Plan, BootError> {
        let bad = |reason| BootError::Spawn { program: "sim".to_owned(), reason };
        Plan::of(&self.config, &spec.process.env).map_err(|e| bad(e.to_string()))
    }

    fn dir(&self, spec: &SandboxSpec) -> Result<Option<SandboxDir>, BootError> {
        let record = SandboxRecord { id: spec.id.clone(), runtime: RuntimeName::Sim };
        let dir = self.config.run_dir.then(|| SandboxDir::create(&spec.run_root, &record));
        dir.transpose().map_err(failed("make the sandbox's directory"))
    }

    /// A sandbox with an address, on which nothing listens yet.
    fn open(
        &self,
        spec: &SandboxSpec,
        plan: &Plan,
        dir: Option<SandboxDir>,
        paging: Option<Arc<SimPaging>>,
    ) -> Result<SimSandbox, BootError> {
        let server = self.server().map_err(failed("start the simulator's thread"))?;
        let unit = server.open(self.address(), spec, plan, self.config.tells);
        let (unit, endpoint) = unit.map_err(failed("bind a loopback address"))?;
        let saver = self.restores().map(|_| {
            let (config, server) = (self.config.snapshot.clone(), Arc::clone(&server));
            Saver::new(config, plan, spec, (server, unit))
        });
        Ok(SimSandbox { id: spec.id.clone(), endpoint, unit, server, saver, paging, _dir: dir })
    }
}

fn failed(step: &str) -> impl FnOnce(std::io::Error) -> BootError {
    let step = step.to_owned();
    move |source| BootError::Resource { step, source }
}

/// The steps up to the function's start.
struct Steps<'a> {
    plan: &'a Plan,
    spec: &'a SandboxSpec,
    deadline: Deadline,
}

impl Steps<'_> {
    fn take(&mut self, step: Step, takes: Duration, wanted: Milestone) -> Result<(), BootError> {
        let guest = |reason: String| BootError::Guest { wanted, attempts: 1, reason };
        let hangs = matches!(self.plan.fault, Some(Fault::HangAt(at)) if at == step);
        let takes = if hangs { Duration::MAX } else { takes };
        let left = self.deadline.left();
        pass(takes.min(left));
        if takes > left {
            return Err(guest("deadline passed".to_owned()));
        }
        match self.plan.fault {
            Some(Fault::FailAt(at)) if at == step => {
                let reason = format!("sim fails at {step} as told");
                self.spec.journal.line(Stream::Console, reason.clone());
                Err(guest(reason))
            }
            #[expect(clippy::panic, reason = "the fault to be injected")]
            Some(Fault::PanicAt(at)) if at == step => panic!("sim panics at {step} as told"),
            _ => Ok(()),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "to take the stated time is what sim is for")]
fn pass(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}

#[derive(Debug)]
struct SimSandbox {
    id: SandboxId,
    endpoint: SocketAddr,
    unit: UnitNo,
    server: Arc<Server>,
    saver: Option<Saver>,
    paging: Option<Arc<SimPaging>>,
    _dir: Option<SandboxDir>,
}

impl Sandbox for SimSandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    fn processes(&self) -> &[Pid] {
        &[]
    }

    fn checkpoint(&mut self) -> Option<&mut dyn Checkpoint> {
        self.saver.as_mut().map(|saver| saver as &mut dyn Checkpoint)
    }

    fn paging(&self) -> Option<Arc<dyn Paging>> {
        let paging = self.paging.clone()?;
        Some(paging)
    }

    fn stop(&mut self, _: Deadline) {
        self.server.close(self.unit, End::Exited(0));
    }
}

impl Drop for SimSandbox {
    fn drop(&mut self) {
        self.server.close(self.unit, End::Vanished("the sandbox was killed".to_owned()));
    }
}
