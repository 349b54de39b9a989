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
//! | `VHIVE_SIM_FAULT` | what goes wrong, see [`Fault`] |

mod fault;
mod http;
mod serve;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use vhive_api::guest::Stream;
use vhive_api::{RuntimeName, SandboxId, Span};

use self::fault::Plan;
pub use self::fault::{Fault, ParseFaultError, Step};
use self::serve::{Server, UnitNo};
use crate::deadline::Deadline;
use crate::journal::{End, Milestone};
use crate::run_dir::{SandboxDir, SandboxRecord};
use crate::runtime::{BootError, HostLacks, Runtime, Sandbox, SandboxSpec};

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
    /// Whether the guest tells of its kernel, its mounts and its listening, as a microVM with our
    /// init does; else only of being spawned and started, as a container does.
    pub tells: bool,
    /// Whether each sandbox makes its run directory, as real ones do.
    pub run_dir: bool,
    /// What goes wrong.
    pub fault: Option<Fault>,
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
        let bad = |reason| BootError::Spawn { program: "sim".to_owned(), reason };
        let plan = Plan::of(&self.config, &spec.process.env).map_err(|e| bad(e.to_string()))?;
        let failed = |step: &str| {
            let step = step.to_owned();
            move |source| BootError::Resource { step, source }
        };
        let record = SandboxRecord { id: spec.id.clone(), runtime: RuntimeName::Sim };
        let dir = self.config.run_dir.then(|| SandboxDir::create(&spec.run_root, &record));
        let dir = dir.transpose().map_err(failed("make the sandbox's directory"))?;

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
        let server = self.server().map_err(failed("start the simulator's thread"))?;
        let at = self.address();
        let unit = server.open(at, spec, &plan, self.config.tells);
        let (unit, endpoint) = unit.map_err(failed("bind a loopback address"))?;
        let sandbox = SimSandbox { id: spec.id.clone(), endpoint, unit, server, _dir: dir };
        journal.reach(Milestone::Started, Instant::now());
        sandbox.server.begin(unit, plan.listen);
        if let Some(Fault::ExitAtOnce(code)) = plan.fault {
            journal.line(Stream::Stderr, "sim exits as told");
            journal.end(End::Exited(code));
        }
        Ok(Box::new(sandbox))
    }
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

    fn stop(&mut self, _: Deadline) {
        self.server.close(self.unit, End::Exited(0));
    }
}

impl Drop for SimSandbox {
    fn drop(&mut self) {
        self.server.close(self.unit, End::Vanished("the sandbox was killed".to_owned()));
    }
}
