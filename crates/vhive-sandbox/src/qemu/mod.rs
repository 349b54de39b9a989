//! The runtime `qemu`: a microVM with its own kernel, under KVM where that is fit, else emulated.
//!
//! ```text
//!   Qemu::boot ─► Vm::start ──► memfd · cgroup · sockets · tap ─► supervisor ─► QEMU (own user)
//!                    │                                               │
//!                    └── QMP greeting = Spawned                      └── vhive.0 ⇄ vhive-init
//!                                                  Hello = KernelUp, Mounted, Started, …
//! ```
//!
//! Why it is set up like this: `docs/decisions/0005-qemu-microvm.md` and
//! `0006-unprivileged-qemu.md`.

mod accelerator;
mod checkpoint;
mod command;
mod config;
mod ground;
mod memory;
mod program;
mod qmp;
mod restore;
mod sandbox;
mod vm;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use vhive_api::guest::{GuestConfig, Stream};
use vhive_api::{Bytes, RuntimeName};

pub use accelerator::AcceleratorChoice;
pub use command::Accelerator;
pub use config::{Choose, QemuConfig};

use crate::contract::{chain, entropy};
use crate::deadline::Deadline;
use crate::journal::{End, Milestone, WaitError};
use crate::kernel::KernelStore;
use crate::network::NetworkSlot;
use crate::run_dir::{SandboxDir, SandboxRecord};
use crate::runtime::{BootError, Guest, HostLacks, Restore, Runtime, Sandbox, SandboxSpec};
use crate::snapshot::MemoryShape;
use checkpoint::Taken;
use ground::Ground;
use memory::Backing;
use sandbox::QemuSandbox;
use vm::{Vm, Wanted};

/// Least memory of a guest: with 64 MiB the kernel does not reach its init.
pub const LEAST_MEMORY: Bytes = Bytes::mib(96);

/// How often a boot is tried whose guest does not reach its init.
const ATTEMPTS: u32 = 2;

/// The runtime.
#[derive(Debug)]
pub struct Qemu {
    config: QemuConfig,
    kernels: KernelStore,
    /// Directory of what has been found out about the host.
    cache: PathBuf,
    /// What all boots have in common; kept once it has been found.
    ground: Mutex<Option<Arc<Ground>>>,
}

impl Qemu {
    /// A runtime that boots the current kernel of `kernels`, and keeps what it finds out about
    /// the host in the directory `cache`. Nothing is looked at before the first use.
    #[must_use]
    pub fn new(config: QemuConfig, kernels: KernelStore, cache: impl Into<PathBuf>) -> Self {
        Self { config, kernels, cache: cache.into(), ground: Mutex::default() }
    }

    /// Which accelerator guests run under, and why. May take seconds the first time.
    ///
    /// # Errors
    /// [`HostLacks`] if there can be no guests at all.
    pub fn accelerator(&self) -> Result<AcceleratorChoice, HostLacks> {
        Ok(self.ground()?.choice.clone())
    }

    fn ground(&self) -> Result<Arc<Ground>, HostLacks> {
        let mut known = self.ground.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ground) = &*known {
            return Ok(Arc::clone(ground));
        }
        let found = Ground::find(&self.config, &self.kernels, &self.cache)?;
        Ok(Arc::clone(known.insert(Arc::new(found))))
    }
}

impl Runtime for Qemu {
    fn name(&self) -> RuntimeName {
        RuntimeName::Qemu
    }

    fn check_host(&self) -> Result<(), HostLacks> {
        self.ground().map(drop)
    }

    fn known_accelerator(&self) -> Option<AcceleratorChoice> {
        let known = match self.ground.try_lock() {
            Ok(known) => known,
            Err(TryLockError::Poisoned(known)) => known.into_inner(),
            // Somebody is finding it out.
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(known.as_ref()?.choice.clone())
    }

    fn boot(&self, spec: &SandboxSpec, deadline: Deadline) -> Result<Box<dyn Sandbox>, BootError> {
        let host = |lacks| BootError::Host { runtime: RuntimeName::Qemu, lacks };
        let ground = self.ground().map_err(host)?;
        let network = network_of(spec)?;
        if let Guest::Bare { kernel } = &spec.guest {
            let step = format!("boot the bare guest {}", kernel.display());
            return Err(BootError::Resource { step, source: io::ErrorKind::Unsupported.into() });
        }
        if spec.memory < LEAST_MEMORY {
            let source = io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a guest needs at least {LEAST_MEMORY}"),
            );
            let step = format!("boot a guest with {} of memory", spec.memory);
            return Err(BootError::Resource { step, source });
        }
        let record = SandboxRecord { id: spec.id.clone(), runtime: RuntimeName::Qemu };
        let dir = SandboxDir::create(&spec.run_root, &record).map_err(|source| {
            let step = format!("create the directory of sandbox {}", spec.id);
            BootError::Resource { step, source }
        })?;
        let booted = self.boot_guest(spec, &network, &ground, deadline);
        let vm = booted.inspect_err(|error| {
            let (step, reason) = ("boot".to_owned(), chain(error));
            spec.journal.end(End::Failed { step, reason });
        })?;
        Ok(Box::new(QemuSandbox {
            pids: [vm.supervised.pid()],
            vm,
            id: spec.id.clone(),
            port: spec.port,
            journal: Arc::clone(&spec.journal),
            taken: Some(Taken {
                platform: ground.platform.clone(),
                shape: MemoryShape { memory: guest_memory(spec), vcpus: vcpus(spec) },
            }),
            paging: None,
            _dir: dir,
            network,
        }))
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
        BootError::Host { runtime: RuntimeName::Qemu, lacks: HostLacks { what, fix } }
    })
}

/// QEMU takes whole MiB.
fn guest_memory(spec: &SandboxSpec) -> Bytes {
    Bytes::mib(spec.memory.mib_ceil())
}

fn vcpus(spec: &SandboxSpec) -> u32 {
    spec.cpu_millis.div_ceil(1000).max(1)
}

impl Qemu {
    /// Boots until the function has been started, once more if the guest's kernel hangs.
    fn boot_guest(
        &self,
        spec: &SandboxSpec,
        network: &NetworkSlot,
        ground: &Ground,
        deadline: Deadline,
    ) -> Result<Vm, BootError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let failed = |wanted, error: &WaitError| BootError::Guest {
                wanted,
                attempts,
                reason: error.to_string(),
            };
            let backing = Backing::fresh(guest_memory(spec)).map_err(|source| {
                let step = "allocate guest memory".to_owned();
                BootError::Resource { step, source }
            })?;
            let vm = Vm::start(self.wanted(spec, network, ground, backing), deadline)?;
            let hello = deadline.or_after(self.config.hello_deadline.into());
            match spec.journal.wait(Milestone::KernelUp, hello) {
                Ok(_) => {}
                Err(WaitError::Deadline { .. }) if attempts < ATTEMPTS && !deadline.passed() => {
                    vm.supervised.abandon();
                    // Before anything is forgotten: until it has gone it may still speak.
                    drop(vm);
                    tracing::warn!(sandbox = %spec.id, "guest kernel hangs and is booted once more");
                    let waited = self.config.hello_deadline.to_string();
                    let line = format!("vhive: no init within {waited}; booting once more");
                    spec.journal.line(Stream::Console, line);
                    spec.journal.retry();
                    continue;
                }
                Err(error) => {
                    vm.supervised.abandon();
                    return Err(failed(Milestone::KernelUp, &error));
                }
            }
            return match spec.journal.wait(Milestone::Started, deadline) {
                Ok(_) => Ok(vm),
                Err(error) => {
                    vm.supervised.abandon();
                    Err(failed(Milestone::Started, &error))
                }
            };
        }
    }

    fn wanted<'a>(
        &'a self,
        spec: &'a SandboxSpec,
        network: &'a NetworkSlot,
        ground: &'a Ground,
        backing: Backing,
    ) -> Wanted<'a> {
        Wanted {
            id: &spec.id,
            run_root: Some(&spec.run_root),
            journal: &spec.journal,
            binary: &self.config.binary,
            accelerator: ground.choice.accelerator,
            uid: self.config.uid_of(&spec.id),
            guest: &ground.guest,
            vcpus: vcpus(spec),
            memory: guest_memory(spec),
            backing,
            incoming: None,
            overhead: self.config.overhead,
            rootfs: Some(&spec.rootfs),
            network: Some(network),
            config: Some(GuestConfig {
                process: spec.process.clone(),
                hostname: spec.id.to_string(),
                port: spec.port,
                network: Some(network.guest().clone()),
                now_unix_ns: 0,
                entropy: entropy(),
                hooks: spec.hooks.clone(),
            }),
        }
    }
}
