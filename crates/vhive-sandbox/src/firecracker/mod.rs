//! The runtime `firecracker`: a microVM with its own kernel, under KVM.
//!
//! ```text
//!   boot ─► Vm::spawn ─► jail · cgroup · netns · tap ─► (jailer ─►) Firecracker (own user)
//!              │                                              │ api.sock
//!              └── API answers = Spawned    configuration, InstanceStart = Started
//! ```
//!
//! A function's init speaks to the host over the serial port, which is Firecracker's standard input
//! and output, and so is there again in every clone.
//!
//! There are two questions to a host. [`Firecracker::check_bare`]: are program and `/dev/kvm`
//! there? That is enough for guests without an operating system. [`Runtime::check_host`]: does it
//! also run what functions need, a Linux guest? Why it is set up like this:
//! `docs/decisions/0019-firecracker.md`.

mod api;
mod balloon;
mod boot;
mod checkpoint;
mod config;
mod diff;
mod ground;
mod http;
mod jail;
mod linux;
mod metrics;
mod restore;
mod sandbox;
mod version;
mod vm;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use vhive_api::RuntimeName;

pub use balloon::GivenBack;
pub use config::{CpuTemplate, FirecrackerConfig};
pub use metrics::Metrics;
pub use restore::WaitingFirecracker;
pub use sandbox::FirecrackerSandbox;

use crate::contract::chain;
use crate::deadline::Deadline;
use crate::journal::End;
use crate::kernel::KernelStore;
use crate::linux::KvmDevice;
use crate::network::NetworkSlot;
use crate::process::ProgramFile;
use crate::qemu::{Accelerator, AcceleratorChoice};
use crate::remembered::{Known, kept_on};
use crate::run_dir::{SandboxDir, SandboxRecord};
use crate::runtime::{BootError, Guest, HostLacks, Restore, Runtime, Sandbox, SandboxSpec};
use ground::Ground;
use linux::Linux;

/// The runtime.
#[derive(Debug)]
pub struct Firecracker {
    config: FirecrackerConfig,
    /// What all guests have in common, or why there is none of it for a moment.
    ground: Mutex<Known<Host, Ground>>,
    /// Where guest kernels are, and where what is found out about the host is kept.
    kernels: Option<(KernelStore, PathBuf)>,
    /// What functions need besides; kept once it has been found.
    linux: Mutex<Known<Arc<Ground>, Linux>>,
}

/// What is found out anew once it has changed: the programs, and who may use KVM.
type Host = ([Option<ProgramFile>; 2], KvmDevice);

impl Firecracker {
    /// A runtime for guests without an operating system. It looks at nothing before its first use.
    #[must_use]
    pub fn new(config: FirecrackerConfig) -> Self {
        Self { config, ground: Mutex::default(), kernels: None, linux: Mutex::default() }
    }

    /// Functions too: they run on the current kernel of `kernels`, and what is found out about the
    /// host is kept in the directory `cache`.
    #[must_use]
    pub fn with_kernels(self, kernels: KernelStore, cache: impl Into<PathBuf>) -> Self {
        Self { kernels: Some((kernels, cache.into())), ..self }
    }

    /// Says whether this host can run guests without an operating system ([`Guest::Bare`]).
    ///
    /// # Errors
    /// [`HostLacks`] with the reason and the fix.
    pub fn check_bare(&self) -> Result<(), HostLacks> {
        self.ground().map(drop)
    }

    /// What the host has of it, e.g. `Firecracker 1.13.1, memory by file, lazy`.
    ///
    /// # Errors
    /// As from [`Firecracker::check_bare`].
    pub fn about(&self) -> Result<String, HostLacks> {
        let ground = self.ground()?;
        let modes: Vec<_> = self.memory_modes().iter().map(ToString::to_string).collect();
        Ok(format!("Firecracker {}, memory by {}", ground.version, modes.join(", ")))
    }

    fn ground(&self) -> Result<Arc<Ground>, HostLacks> {
        let mut known = self.ground.lock().unwrap_or_else(PoisonError::into_inner);
        let programs = [&self.config.binary, &self.config.jailer].map(|it| ProgramFile::of(it));
        let now = (programs, KvmDevice::now());
        kept_on(&mut known, now, Host::eq, || Ground::find(&self.config))
    }

    fn linux(&self) -> Result<Arc<Linux>, HostLacks> {
        let ground = self.ground()?;
        let mut known = self.linux.lock().unwrap_or_else(PoisonError::into_inner);
        let (kernels, cache) = self.kernels.as_ref().ok_or_else(|| HostLacks {
            what: "opened for guests without an operating system only".to_owned(),
            fix: "open it with guest kernels".to_owned(),
        })?;
        let look = || Linux::find(&self.config, &ground, (kernels, cache));
        kept_on(&mut known, Arc::clone(&ground), Arc::ptr_eq, look)
    }

    /// The ground for a guest of this kind, with what is booted if it is Linux.
    fn ground_of(&self, guest: &Guest) -> Result<(Arc<Ground>, Option<Arc<Linux>>), BootError> {
        let host = |lacks| BootError::Host { runtime: RuntimeName::Firecracker, lacks };
        let linux = (*guest == Guest::Linux).then(|| self.linux()).transpose().map_err(host)?;
        Ok((self.ground().map_err(host)?, linux))
    }
}

impl Runtime for Firecracker {
    fn name(&self) -> RuntimeName {
        RuntimeName::Firecracker
    }

    fn check_host(&self) -> Result<(), HostLacks> {
        self.linux().map(drop)
    }

    fn known_accelerator(&self) -> Option<AcceleratorChoice> {
        let known = match self.linux.try_lock() {
            Ok(known) => known,
            Err(TryLockError::Poisoned(known)) => known.into_inner(),
            // Somebody is finding it out.
            Err(TryLockError::WouldBlock) => return None,
        };
        known.as_ref()?.1.get()?;
        let reason = "Firecracker knows no other, and has booted a guest".to_owned();
        Some(AcceleratorChoice { accelerator: Accelerator::Kvm, reason })
    }

    fn boot(&self, spec: &SandboxSpec, deadline: Deadline) -> Result<Box<dyn Sandbox>, BootError> {
        let (ground, linux) = self.ground_of(&spec.guest)?;
        let network = network_of(spec)?;
        let dir = directory(spec)?;
        let booted = boot::boot(self, spec, (&ground, linux.as_deref()), (&network, dir), deadline);
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

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_trial_that_came_to_nothing_is_not_made_for_each_who_asks() {
        let (mut known, mut looks) = (None, 0);
        let mut ask = |ground: &Arc<i32>| {
            let lacks = || HostLacks { what: "a moment".to_owned(), fix: "try again".to_owned() };
            let asked: Result<Arc<()>, _> =
                kept_on(&mut known, Arc::clone(ground), Arc::ptr_eq, || {
                    looks += 1;
                    Err(lacks())
                });
            assert_eq!(asked, Err(lacks()));
            looks
        };
        let (first, other) = (Arc::new(1), Arc::new(1));
        assert_eq!([&first, &first, &other, &other].map(&mut ask), [1, 1, 2, 2]);
    }

    #[test]
    fn a_firecracker_that_does_not_say_its_version_is_not_asked_by_each_who_starts() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [binary, asked] = ["firecracker", "asked"].map(|name| dir.path().join(name));
        let install = |text: &str| {
            let draft = dir.path().join("draft");
            fs::write(&draft, format!("#!/bin/sh\necho >> {}\n{text}\n", asked.display()))
                .expect("written");
            fs::set_permissions(&draft, Permissions::from_mode(0o755)).expect("set");
            fs::rename(&draft, &binary).expect("renamed");
        };
        let config =
            FirecrackerConfig { binary: binary.clone(), use_jailer: false, ..Default::default() };
        let firecracker = Firecracker::new(config);
        install("exit 7");
        let check = || firecracker.check_bare().expect_err("it fails");
        let first = check();
        if first.what == "not run as root" {
            let test =
                "a_firecracker_that_does_not_say_its_version_is_not_asked_by_each_who_starts";
            return eprintln!("SKIP {test}: root");
        }
        let times = || fs::read_to_string(&asked).expect("asked").len();
        assert_eq!((first, times()), (check(), 1), "it hangs perhaps, for seconds");
        install("exit 8");
        assert!(check().what.contains("exited with code 8"), "one that is replaced is asked");
        assert_eq!(times(), 2);
    }

    #[test]
    fn a_firecracker_that_is_replaced_is_noticed_by_the_node_that_runs() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let binary = dir.path().join("firecracker");
        let install = |version: &str| {
            let draft = dir.path().join("draft");
            let script = format!(
                "#!/bin/sh\ncase $1 in --version) echo Firecracker v{version};; *) echo v8.0.0;; esac\n"
            );
            fs::write(&draft, script).expect("written");
            fs::set_permissions(&draft, Permissions::from_mode(0o755)).expect("set");
            fs::rename(&draft, &binary).expect("renamed");
        };
        let config =
            FirecrackerConfig { binary: binary.clone(), use_jailer: false, ..Default::default() };
        let firecracker = Firecracker::new(config);
        assert!(firecracker.check_bare().is_err(), "it is not installed");
        install("1.14.0");
        let first = match firecracker.about() {
            Ok(about) => about,
            Err(lacks) => {
                let test = "a_firecracker_that_is_replaced_is_noticed_by_the_node_that_runs";
                return eprintln!("SKIP {test}: {lacks}");
            }
        };
        assert!(first.starts_with("Firecracker 1.14.0, "), "{first}");
        install("1.15.2");
        let second = firecracker.about().expect("it is as good");
        assert!(second.starts_with("Firecracker 1.15.2, "), "{second}");
    }
}
