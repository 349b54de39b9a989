//! The runtime `firecracker`: a microVM with its own kernel, under KVM.
//!
//! ```text
//!   boot ─► Vm::spawn ─► jail · cgroup · netns · tap ─► (jailer ─►) Firecracker (own user)
//!              │                                              │ api.sock
//!              └── API answers = Spawned    configuration, InstanceStart = Started
//! ```
//!
//! There are two questions to a host. [`Firecracker::check_bare`]: are program and `/dev/kvm`
//! there? That is enough for guests without an operating system. [`Runtime::check_host`]: does it
//! also run what functions need, a Linux guest? Why it is set up like this:
//! `docs/decisions/0019-firecracker.md`.

mod api;
mod boot;
mod checkpoint;
mod config;
mod ground;
mod http;
mod jail;
mod metrics;
mod restore;
mod sandbox;
mod version;
mod vm;

use std::sync::{Arc, Mutex, PoisonError};

use vhive_api::RuntimeName;

pub use config::{CpuTemplate, FirecrackerConfig};
pub use metrics::Metrics;
pub use restore::WaitingFirecracker;
pub use sandbox::FirecrackerSandbox;

use crate::contract::chain;
use crate::deadline::Deadline;
use crate::journal::End;
use crate::network::NetworkSlot;
use crate::run_dir::{SandboxDir, SandboxRecord};
use crate::runtime::{BootError, Guest, HostLacks, Restore, Runtime, Sandbox, SandboxSpec};
use ground::Ground;

/// The runtime.
#[derive(Debug)]
pub struct Firecracker {
    config: FirecrackerConfig,
    /// What all guests have in common; kept once it has been found.
    ground: Mutex<Option<Arc<Ground>>>,
}

impl Firecracker {
    /// A runtime that looks at nothing before its first use.
    #[must_use]
    pub fn new(config: FirecrackerConfig) -> Self {
        Self { config, ground: Mutex::default() }
    }

    /// Says whether this host can run guests without an operating system ([`Guest::Bare`]).
    ///
    /// # Errors
    /// [`HostLacks`] with the reason and the fix.
    pub fn check_bare(&self) -> Result<(), HostLacks> {
        self.ground().map(drop)
    }

    fn ground(&self) -> Result<Arc<Ground>, HostLacks> {
        let mut known = self.ground.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ground) = &*known {
            return Ok(Arc::clone(ground));
        }
        let found = Ground::find(&self.config)?;
        Ok(Arc::clone(known.insert(Arc::new(found))))
    }

    /// The ground for a guest of this kind.
    fn ground_of(&self, guest: &Guest) -> Result<Arc<Ground>, BootError> {
        let host = |lacks| BootError::Host { runtime: RuntimeName::Firecracker, lacks };
        if *guest == Guest::Linux {
            return Err(host(no_linux()));
        }
        self.ground().map_err(host)
    }
}

/// What keeps Linux guests from being offered on any host.
fn no_linux() -> HostLacks {
    HostLacks {
        what: "Linux guests are not offered on Firecracker in this version of vHive".to_owned(),
        fix: "use runtimeClassName: qemu".to_owned(),
    }
}

impl Runtime for Firecracker {
    fn name(&self) -> RuntimeName {
        RuntimeName::Firecracker
    }

    fn check_host(&self) -> Result<(), HostLacks> {
        self.check_bare()?;
        Err(no_linux())
    }

    fn boot(&self, spec: &SandboxSpec, deadline: Deadline) -> Result<Box<dyn Sandbox>, BootError> {
        let ground = self.ground_of(&spec.guest)?;
        let network = network_of(spec)?;
        let dir = directory(spec)?;
        let booted = boot::boot(self, spec, (&ground, &network, dir), deadline);
        let sandbox = booted.inspect_err(|error| {
            let (step, reason) = ("boot".to_owned(), chain(error));
            spec.journal.end(End::Failed { step, reason });
        })?;
        Ok(Box::new(sandbox))
    }

    fn restores(&self) -> Option<&dyn Restore> {
        Some(self)
    }
}

/// The network slot, without which a guest is of no use.
fn network_of(spec: &SandboxSpec) -> Result<Arc<NetworkSlot>, BootError> {
    spec.network.clone().ok_or_else(|| {
        let what = "a microVM without a network slot cannot be reached".to_owned();
        let fix = "open the node with a network pool".to_owned();
        BootError::Host { runtime: RuntimeName::Firecracker, lacks: HostLacks { what, fix } }
    })
}

/// The sandbox's directory.
fn directory(spec: &SandboxSpec) -> Result<SandboxDir, BootError> {
    let record = SandboxRecord { id: spec.id.clone(), runtime: RuntimeName::Firecracker };
    SandboxDir::create(&spec.run_root, &record).map_err(|source| {
        let step = format!("create the directory of sandbox {}", spec.id);
        BootError::Resource { step, source }
    })
}
