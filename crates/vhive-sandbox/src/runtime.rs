//! The seam between the brain and the hands.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use vhive_api::guest::Process;
use vhive_api::{Bytes, RuntimeName, SandboxId};

use crate::deadline::Deadline;
use crate::journal::{Journal, Milestone};
use crate::network::NetworkSlot;
use crate::run_dir::RunRoot;

/// What to start.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    /// Names the sandbox's directory, cgroup and host name.
    pub id: SandboxId,
    /// The function's root file system: a read-only EROFS image. `sim` ignores it.
    pub rootfs: PathBuf,
    /// What to run in it.
    pub process: Process,
    /// TCP port on which the function will listen.
    pub port: u16,
    /// CPU limit in thousandths of a CPU; microVMs round it up to whole vCPUs.
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

    /// Starts a sandbox and returns when its function's process has been started
    /// ([`Milestone::Started`] is in the journal). Whether it is *ready* is the caller's business.
    ///
    /// # Errors
    /// [`BootError`]; every host resource has been released by then.
    fn boot(&self, spec: &SandboxSpec, deadline: Deadline) -> Result<Box<dyn Sandbox>, BootError>;
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

    /// Asks the function to end by its stop signal and waits until the sandbox has ended or the
    /// deadline passed. Dropping it afterwards is still needed.
    fn stop(&mut self, deadline: Deadline);
}
