//! The runtimes `runc`, `crun` and `runsc` (gVisor): containers, started straight from a bundle.
//!
//! ```text
//!   Oci::boot ─► directory · cgroups · image mount · network namespace ─► config.json
//!            ─► thread in a mount namespace of its own: overlay ─► `runc run --detach`
//!            ─► vhive-init (first process of the container) ⇄ pipes = Hello, Started, …
//! ```
//!
//! The same init as in a microVM is the first process, and its standard input and output are the
//! guest channel; so readiness, output, exit codes and stop signals are the same code everywhere.
//! No daemon, and no mount that outlives its container. Why: `docs/decisions/0018-containers.md`.

mod bundle;
mod command;
mod config;
mod container;
mod criu;
mod criu_probe;
mod gvisor;
mod image;
mod layer;
mod probe;
mod restore;
mod sandbox;
mod seccomp;
mod start;
mod tool;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use vhive_api::RuntimeName;

pub use config::{ContainerConfig, GvisorConfig, Platform};
pub use image::sweep;

use crate::deadline::Deadline;
use crate::runtime::{BootError, HostLacks, Restore, Runtime, Sandbox, SandboxSpec};
use gvisor::Gvisor;
use image::Images;
use layer::Layer;
use probe::Found;
use tool::Tool;

/// One of the three runtimes.
#[derive(Debug)]
pub struct Oci {
    tool: Tool,
    /// Directory of what is kept for all sandboxes: the layer with init.
    cache: PathBuf,
    images: Images,
    /// What has been found out about the host; asked once.
    found: Mutex<Option<Result<Arc<Found>, HostLacks>>>,
}

impl Oci {
    /// runc. Nothing is looked at before the first use; `cache` is a directory in the node's state
    /// directory, whose tag what a killed node was trying out carries: its sweep finds it.
    #[must_use]
    pub fn runc(config: ContainerConfig, cache: impl Into<PathBuf>) -> Self {
        Self::new(Tool::runc(config), cache.into())
    }

    /// crun.
    #[must_use]
    pub fn crun(config: ContainerConfig, cache: impl Into<PathBuf>) -> Self {
        Self::new(Tool::crun(config), cache.into())
    }

    /// gVisor.
    #[must_use]
    pub fn runsc(config: GvisorConfig, cache: impl Into<PathBuf>) -> Self {
        Self::new(Tool::runsc(config), cache.into())
    }

    fn new(tool: Tool, cache: PathBuf) -> Self {
        Self { tool, cache, images: Images::default(), found: Mutex::default() }
    }

    /// What the host has of it, e.g. `runc 1.1.5`; may take seconds the first time.
    ///
    /// # Errors
    /// [`HostLacks`] as from [`Runtime::check_host`].
    pub fn version(&self) -> Result<String, HostLacks> {
        Ok(self.found()?.version.clone())
    }

    fn found(&self) -> Result<Arc<Found>, HostLacks> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let look = || {
            let layer = Layer::make(&self.cache)?;
            probe::look(&self.tool, layer, &self.cache).map(Arc::new)
        };
        found.get_or_insert_with(look).clone()
    }
}

impl Runtime for Oci {
    fn name(&self) -> RuntimeName {
        self.tool.name
    }

    fn check_host(&self) -> Result<(), HostLacks> {
        self.found().map(drop)
    }

    fn boot(&self, spec: &SandboxSpec, deadline: Deadline) -> Result<Box<dyn Sandbox>, BootError> {
        let host = |lacks| BootError::Host { runtime: self.name(), lacks };
        let found = self.found().map_err(host)?;
        let mut sandbox = start::boot(&self.tool, &found, &self.images, spec, deadline)?;
        if self.tool.is_gvisor() {
            let (tool, shape) = (self.tool.clone(), gvisor::shape(spec));
            let platform = gvisor::platform(&tool, &found);
            sandbox.gvisor = Some(Gvisor { tool, platform, shape });
        }
        Ok(Box::new(sandbox))
    }

    fn restores(&self) -> Option<&dyn Restore> {
        let saved = || self.found().is_ok_and(|found| found.criu.is_ok());
        (self.tool.is_gvisor() || saved()).then_some(self as &dyn Restore)
    }

    fn restores_nothing(&self) -> Option<HostLacks> {
        if self.tool.is_gvisor() {
            return None;
        }
        self.found().ok().and_then(|found| found.criu.clone().err())
    }
}
