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
//!
//! Under gVisor, where init would cost tens of milliseconds, the function is the first process
//! itself unless something needs init (`form`); the host does the rest from outside (`function`,
//! `outside`). Why: `docs/decisions/0035-gvisor-without-init.md`.

mod abilities;
mod blame;
mod bundle;
mod command;
mod config;
mod container;
mod criu;
mod criu_probe;
mod form;
mod function;
mod gvisor;
mod image;
mod layer;
mod outside;
mod probe;
mod restore;
mod root;
mod sandbox;
mod seccomp;
mod start;
mod tool;
mod volumes;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use vhive_api::RuntimeName;

pub use config::{ContainerConfig, CrunConfig, GvisorConfig, Platform};
pub use image::sweep;

use crate::deadline::Deadline;
use crate::process::ProgramFile;
use crate::remembered::Kept;
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
    /// What has been found out about the host with a program (and CRIU), and which files those were.
    found: Mutex<([Option<ProgramFile>; 2], Kept<Found>)>,
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
    pub fn crun(config: CrunConfig, cache: impl Into<PathBuf>) -> Self {
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

    /// What the host has of it, e.g. `runc 1.1.5`, and what that version can do, e.g. `runsc
    /// 20240729, systrap, restores`; may take seconds the first time.
    ///
    /// # Errors
    /// [`HostLacks`] as from [`Runtime::check_host`].
    pub fn about(&self) -> Result<String, HostLacks> {
        let found = self.found()?;
        Ok(format!("{}{}", found.version, found.tool.about()))
    }

    fn found(&self) -> Result<Arc<Found>, HostLacks> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, kept) = &mut *found;
        // Another program is as good as another host: what it says, and what it can restore.
        let now = [&self.tool.binary, &self.tool.criu].map(|program| ProgramFile::of(program));
        if *files != now {
            kept.forget();
            *files = now;
        }
        kept.or_look(|| {
            let layer = Layer::make(&self.cache)?;
            probe::look(&self.tool, layer, &self.cache)
        })
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
        let mut sandbox = start::boot(&found, &self.images, spec, deadline)?;
        if found.tool.restores() && sandbox.outside.is_none() {
            let (tool, shape) = (found.tool.clone(), gvisor::shape(spec));
            let platform = gvisor::platform(&found);
            sandbox.gvisor = Some(Gvisor { tool, platform, shape });
        }
        Ok(Box::new(sandbox))
    }

    fn restores(&self) -> Option<&dyn Restore> {
        if !self.tool.is_gvisor() {
            let saved = self.found().is_ok_and(|found| found.criu.is_ok());
            return saved.then_some(self as &dyn Restore);
        }
        let restores = match self.found.try_lock() {
            Ok(known) => known.1.get().map(|found| found.tool.restores()),
            // Somebody is finding it out.
            Err(_) => None,
        };
        restores.unwrap_or_else(|| self.tool.restores()).then_some(self as &dyn Restore)
    }

    fn restores_nothing(&self) -> Option<HostLacks> {
        if self.tool.is_gvisor() {
            return None;
        }
        self.found().ok().and_then(|found| found.criu.clone().err())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_runtime_that_is_installed_later_is_found_and_one_that_is_replaced_asked_anew() {
        let test = "a_runtime_that_is_installed_later_is_found_and_one_that_is_replaced_asked_anew";
        let dir = tempfile::tempdir().expect("a temporary directory");
        let usual = Oci::runc(ContainerConfig::default(), dir.path().join("host"));
        if let Err(lacks) = usual.check_host() {
            return eprintln!("SKIP {test}: {lacks}");
        }
        let binary = dir.path().join("runtime");
        let config = ContainerConfig { binary: Some(binary.clone()), criu: None };
        let runtime = Oci::runc(config, dir.path().join("host"));
        let lacks = runtime.check_host().expect_err("it is not installed");
        assert!(lacks.what.starts_with("no "), "{lacks}");

        let install = |name: &str| {
            let draft = dir.path().join("draft");
            let script = format!(
                "#!/bin/sh\n[ $1 = --version ] && {{ echo {name}; exit; }}\nexec runc \"$@\"\n"
            );
            fs::write(&draft, script).expect("written");
            fs::set_permissions(&draft, Permissions::from_mode(0o755)).expect("set");
            fs::rename(&draft, &binary).expect("renamed");
        };
        install("one");
        assert_eq!(runtime.about(), Ok("one".to_owned()));
        install("two");
        assert_eq!(runtime.about(), Ok("two".to_owned()));
    }

    #[test]
    fn a_platform_that_does_not_answer_is_refused_in_time() {
        let test = "a_platform_that_does_not_answer_is_refused_in_time";
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache = dir.path().join("host");
        if let Err(lacks) = Oci::runsc(GvisorConfig::default(), &cache).check_host() {
            return eprintln!("SKIP {test}: {lacks}");
        }
        let config = GvisorConfig { platform: Platform::Kvm, ..GvisorConfig::default() };
        let begin = std::time::Instant::now();
        let answer = Oci::runsc(config, &cache).check_host();
        assert!(begin.elapsed() < std::time::Duration::from_secs(25), "{answer:?}");
        if let Err(lacks) = answer {
            assert!(lacks.what.contains("starts no container here"), "{lacks}");
        }
        let left = fs::read_dir(&cache).expect("readable").map(|e| e.expect("read").file_name());
        assert!(left.into_iter().all(|name| name.to_string_lossy().starts_with("init-")));
        let root = crate::run_dir::RunRoot::below(dir.path(), dir.path());
        assert_eq!(crate::cgroup::sweep(&root).expect("swept"), [""; 0], "it has left its groups");
    }
}
