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
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Instant;

use vhive_api::guest::{GuestConfig, Stream};
use vhive_api::{Bytes, RuntimeName};

pub use accelerator::AcceleratorChoice;
pub use command::Accelerator;
pub use config::{Choose, QemuConfig};

use crate::bare;
use crate::cgroup::MachineShare;
use crate::contract::{chain, entropy};
use crate::deadline::Deadline;
use crate::journal::{End, Milestone, WaitError};
use crate::kernel::KernelStore;
use crate::linux::KvmDevice;
use crate::network::NetworkSlot;
use crate::process::ProgramFile;
use crate::remembered::{Known, kept_on};
use crate::run_dir::{SandboxDir, SandboxRecord};
use crate::runtime::{BootError, Guest, HostLacks, Restore, Runtime, Sandbox, SandboxSpec};
use crate::snapshot::{MemoryShape, Platform};
use checkpoint::Taken;
use ground::Ground;
use memory::Backing;
use sandbox::QemuSandbox;
use vm::{Vm, Wanted};

/// Least memory of a guest: with 64 MiB the kernel does not reach its init.
pub const LEAST_MEMORY: Bytes = Bytes::mib(96);

/// How often a boot is tried whose guest does not reach its init.
const ATTEMPTS: u32 = 2;

/// What is found out anew once it has changed: the program, and who may use KVM.
type Host = (Option<ProgramFile>, KvmDevice);

/// The runtime.
#[derive(Debug)]
pub struct Qemu {
    config: QemuConfig,
    kernels: KernelStore,
    /// Directory of what has been found out about the host.
    cache: PathBuf,
    /// What all boots have in common, or why there is none of it for a moment.
    ground: Mutex<Known<Host, Ground>>,
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
        // Snapshots name the version; one that has been replaced takes new ones.
        let now = (ProgramFile::of(&self.config.binary), KvmDevice::now());
        let look = || Ground::find(&self.config, &self.kernels, &self.cache);
        kept_on(&mut known, now, Host::eq, look)
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
        Some(known.as_ref()?.1.get()?.choice.clone())
    }

    fn boot(&self, spec: &SandboxSpec, deadline: Deadline) -> Result<Box<dyn Sandbox>, BootError> {
        let host = |lacks| BootError::Host { runtime: RuntimeName::Qemu, lacks };
        let ground = self.ground().map_err(host)?;
        let network = network_of(spec)?;
        let kernel = kernel_of(spec, &network, &ground)?;
        let is_bare = spec.guest != Guest::Linux;
        if !is_bare && spec.memory < LEAST_MEMORY {
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
        let on = (&*ground, &kernel);
        let booted = if is_bare {
            self.boot_bare(spec, &network, on, deadline)
        } else {
            self.boot_guest(spec, &network, on, deadline)
        };
        let serves = booted.and_then(|vm| vm.serve().map(|()| vm));
        let vm = serves.inspect_err(|error| {
            let (step, reason) = ("boot".to_owned(), chain(error));
            spec.journal.end(End::Failed { step, reason });
        })?;
        let vcpus = MachineShare::vcpus(spec.cpu_millis);
        Ok(Box::new(QemuSandbox {
            pids: [vm.supervised.pid()],
            vm,
            id: spec.id.clone(),
            port: spec.port,
            journal: Arc::clone(&spec.journal),
            is_bare,
            taken: Some(Taken {
                platform: Platform { kernel: Some(kernel.digest), ..ground.platform.clone() },
                shape: MemoryShape { memory: guest_memory(spec), vcpus },
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

/// What is booted.
fn kernel_of(
    spec: &SandboxSpec,
    network: &NetworkSlot,
    ground: &Ground,
) -> Result<vm::Guest, BootError> {
    let Guest::Bare { kernel } = &spec.guest else { return Ok(ground.guest.clone()) };
    let digest = bare::digest(kernel).map_err(|source| {
        let step = format!("read the bare guest {}", kernel.display());
        BootError::Resource { step, source }
    })?;
    let command_line = bare::command_line(network.guest(), spec.port);
    Ok(vm::Guest { digest, vmlinux: kernel.clone(), initramfs: None, command_line })
}

/// QEMU takes whole MiB.
fn guest_memory(spec: &SandboxSpec) -> Bytes {
    Bytes::mib(spec.memory.mib_ceil())
}

impl Qemu {
    /// Boots until the function has been started, once more if the guest's kernel hangs.
    fn boot_guest(
        &self,
        spec: &SandboxSpec,
        network: &NetworkSlot,
        on: (&Ground, &vm::Guest),
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
            let vm = self.start(spec, network, on, deadline)?;
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

    /// Boots a guest that is ready when its port answers.
    fn boot_bare(
        &self,
        spec: &SandboxSpec,
        network: &NetworkSlot,
        on: (&Ground, &vm::Guest),
        deadline: Deadline,
    ) -> Result<Vm, BootError> {
        let vm = self.start(spec, network, on, deadline)?;
        spec.journal.reach(Milestone::Started, Instant::now());
        let endpoint = SocketAddr::new(network.address().into(), spec.port);
        let listens = bare::wait_listening(endpoint, &spec.journal, deadline);
        listens.map_err(|error| {
            vm.supervised.abandon();
            let (wanted, reason) = (Milestone::Listening, error.to_string());
            BootError::Guest { wanted, attempts: 1, reason }
        })?;
        Ok(vm)
    }

    fn start(
        &self,
        spec: &SandboxSpec,
        network: &NetworkSlot,
        on: (&Ground, &vm::Guest),
        deadline: Deadline,
    ) -> Result<Vm, BootError> {
        let backing = Backing::fresh(guest_memory(spec)).map_err(|source| {
            let step = "allocate guest memory".to_owned();
            BootError::Resource { step, source }
        })?;
        Vm::start(self.wanted(spec, network, on, backing), deadline)
    }

    fn wanted<'a>(
        &'a self,
        spec: &'a SandboxSpec,
        network: &'a NetworkSlot,
        (ground, guest): (&'a Ground, &'a vm::Guest),
        backing: Backing,
    ) -> Wanted<'a> {
        let is_linux = spec.guest == Guest::Linux;
        Wanted {
            id: &spec.id,
            run_root: Some(&spec.run_root),
            journal: &spec.journal,
            binary: &self.config.binary,
            accelerator: ground.choice.accelerator,
            uid: self.config.uid_of(&spec.id),
            guest,
            cpu_millis: spec.cpu_millis,
            memory: guest_memory(spec),
            backing,
            incoming: None,
            overhead: self.config.overhead,
            rootfs: is_linux.then_some(&*spec.rootfs),
            network: Some(network),
            config: is_linux.then(|| GuestConfig {
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
