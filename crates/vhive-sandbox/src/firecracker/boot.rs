//! Booting a guest: configure it, start it, wait until it answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use vhive_api::guest::GuestConfig;

use super::Firecracker;
use super::api::{ApiError, Balloon, BootSource, Drive, MachineConfig, NetworkInterface};
use super::checkpoint::Taken;
use super::config::FirecrackerConfig;
use super::diff::{self, Base};
use super::ground::Ground;
use super::linux::Linux;
use super::sandbox::FirecrackerSandbox;
use super::version::Version;
use super::vm::{Port, Vm, Wanted, guest_memory, vcpus};
use crate::bare;
use crate::contract::{chain, entropy, own_words};
use crate::deadline::Deadline;
use crate::journal::{End, Milestone};
use crate::linux::make_readable;
use crate::network::{NetworkSlot, TAP};
use crate::qemu::LEAST_MEMORY;
use crate::run_dir::SandboxDir;
use crate::runtime::{BootError, Guest, SandboxSpec};
use crate::snapshot::{MemoryShape, Platform};

/// Names in the root directory: kernel, initramfs, and the function's root file system.
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";
pub(super) const ROOTFS: &str = "rootfs";

/// The guest's one interface, and its one disk.
const INTERFACE: &str = "eth0";
const DISK: &str = "root";

/// What is booted.
#[derive(Debug)]
pub(super) struct Booted {
    /// The files that it is made of, by their names in the root directory.
    pub(super) lent: Vec<(&'static str, PathBuf)>,
    pub(super) command_line: String,
}

impl Booted {
    /// A Linux guest, with a root file system if it is to get so far.
    pub(super) fn linux(linux: &Linux, rootfs: Option<PathBuf>) -> Self {
        let mut lent = vec![(KERNEL, linux.vmlinux.clone()), (INITRD, linux.initramfs.clone())];
        lent.extend(rootfs.map(|rootfs| (ROOTFS, rootfs)));
        Self { lent, command_line: linux.command_line.clone() }
    }

    fn has(&self, name: &str) -> bool {
        self.lent.iter().any(|(its, _)| *its == name)
    }
}

/// What the guest is, and what its snapshots are taken on.
fn booted(
    spec: &SandboxSpec,
    network: &NetworkSlot,
    (ground, linux): (&Ground, Option<&Linux>),
) -> Result<(Booted, Platform), BootError> {
    let failed = |step: String| move |source| BootError::Resource { step, source };
    let Some(linux) = linux else {
        let Guest::Bare { kernel } = &spec.guest else {
            return Err(failed("boot a Linux guest".to_owned())(io::ErrorKind::Unsupported.into()));
        };
        let platform = spec.guest.platform(ground.platform.clone());
        let step = format!("read the bare guest {}", kernel.display());
        let platform = platform.map_err(failed(step))?;
        let command_line = bare::command_line(network.guest(), spec.port);
        return Ok((Booted { lent: vec![(KERNEL, kernel.clone())], command_line }, platform));
    };
    if spec.memory < LEAST_MEMORY {
        let what = format!("a guest needs at least {LEAST_MEMORY}");
        let source = io::Error::new(io::ErrorKind::InvalidInput, what);
        let step = format!("boot a guest with {} of memory", spec.memory);
        return Err(failed(step)(source));
    }
    let step = format!("open {} to Firecracker's user", spec.rootfs.display());
    make_readable(&spec.rootfs).map_err(failed(step))?;
    let platform = linux.on(&ground.platform);
    Ok((Booted::linux(linux, Some(spec.rootfs.clone())), platform))
}

/// What its init is to start.
fn guest_config(spec: &SandboxSpec, network: &NetworkSlot) -> GuestConfig {
    GuestConfig {
        process: spec.process.clone(),
        hostname: spec.id.to_string(),
        port: spec.port,
        network: Some(network.guest().clone()),
        now_unix_ns: 0,
        entropy: entropy(),
        hooks: spec.hooks.clone(),
    }
}

/// Boots a guest until its function has been started, or, without an operating system, until its
/// port answers.
pub(super) fn boot(
    firecracker: &Firecracker,
    spec: &SandboxSpec,
    (ground, linux): (&Arc<Ground>, Option<&Linux>),
    (network, dir): (&Arc<NetworkSlot>, SandboxDir),
    deadline: Deadline,
) -> Result<FirecrackerSandbox, BootError> {
    let (booted, platform) = booted(spec, network, (ground, linux))?;
    let config = &firecracker.config;
    let init = linux.map(|_| guest_config(spec, network));
    let wanted = Wanted {
        spec,
        network: Some(network),
        ground,
        config,
        dir: dir.path(),
        lent: &booted.lent,
        served: false,
        port: if init.is_some() { Port::Init(init.as_ref()) } else { Port::Console },
    };
    let vm = launch(&wanted, &booted, deadline)?;
    let journal = &spec.journal;
    let address = IpAddr::V4(network.address());
    let (milestone, reached) = if linux.is_some() {
        let started = journal.wait(Milestone::Started, deadline);
        (Milestone::Started, started.map(drop))
    } else {
        journal.reach(Milestone::Started, Instant::now());
        let endpoint = SocketAddr::new(address, spec.port);
        (Milestone::Listening, bare::wait_listening(endpoint, journal, deadline))
    };
    if let Err(error) = reached {
        vm.supervised.abandon();
        let reason = error.to_string();
        // Before the sandbox is dropped, which would be taken for the reason.
        journal.end(End::Failed { step: "boot".to_owned(), reason: reason.clone() });
        return Err(BootError::Guest { wanted: milestone, attempts: 1, reason });
    }
    vm.serve()?;
    let shape = MemoryShape { memory: guest_memory(spec), vcpus: vcpus(spec) };
    let increments = config.diff_snapshots && diff::is_sound(ground.version, shape.memory);
    let base = increments.then_some(Base::Zeros);
    Ok(FirecrackerSandbox {
        pids: [vm.supervised.pid()],
        vm,
        id: spec.id.clone(),
        port: spec.port,
        journal: Arc::clone(journal),
        is_bare: linux.is_none(),
        has_balloon: config.balloon,
        taken: Some(Taken { platform, shape, base }),
        paging: None,
        _dir: dir,
        network: Arc::clone(network),
    })
}

/// Spawns a Firecracker and lets its guest run: [`Milestone::Spawned`].
///
/// # Errors
/// [`BootError`]; nothing is left behind.
pub(super) fn launch(
    wanted: &Wanted<'_>,
    booted: &Booted,
    deadline: Deadline,
) -> Result<Vm, BootError> {
    let Wanted { spec, ground, .. } = wanted;
    let (mut vm, _) = Vm::spawn(wanted, deadline)?;
    spec.journal.reach(Milestone::Spawned, Instant::now());
    start(&mut vm, wanted, booted, deadline).map_err(|error| {
        let reason = own_words(&vm.supervised, &spec.journal, &chain(&error));
        BootError::Spawn { program: ground.binary.display().to_string(), reason }
    })?;
    vm.keep_every_byte().map_err(|source| {
        let step = "keep what the guest says".to_owned();
        BootError::Resource { step, source }
    })?;
    Ok(vm)
}

/// Describes the machine and starts it. What [`super::ground`] calls the machine's number is to be
/// raised when this changes.
fn start(
    vm: &mut Vm,
    wanted: &Wanted<'_>,
    booted: &Booted,
    deadline: Deadline,
) -> Result<(), ApiError> {
    let Wanted { spec, config, network, .. } = wanted;
    let version: Version = wanted.ground.version;
    let config: &FirecrackerConfig = config;
    let inside = |name: &str| vm.jail.inside(name);
    let (kernel, rootfs) = (inside(KERNEL), inside(ROOTFS));
    let initrd = booted.has(INITRD).then(|| inside(INITRD));
    let api = &mut vm.api;
    let machine = MachineConfig {
        vcpu_count: vcpus(spec),
        mem_size_mib: guest_memory(spec).mib_ceil(),
        smt: false,
        track_dirty_pages: config.diff_snapshots,
        cpu_template: config.cpu_template,
    };
    api.machine_config(&machine, deadline)?;
    let source = BootSource {
        kernel_image_path: kernel,
        initrd_path: initrd,
        // Firecracker adds where its devices are.
        boot_args: booted.command_line.clone(),
    };
    api.boot_source(&source, deadline)?;
    if booted.has(ROOTFS) {
        let drive = Drive {
            drive_id: DISK.to_owned(),
            path_on_host: rootfs,
            is_root_device: false,
            is_read_only: true,
        };
        api.drive(&drive, deadline)?;
    }
    if let Some(network) = network {
        let interface = NetworkInterface {
            iface_id: INTERFACE.to_owned(),
            host_dev_name: TAP.to_owned(),
            guest_mac: network.mac().to_string(),
        };
        api.network_interface(&interface, deadline)?;
    }
    if config.entropy {
        api.entropy(deadline)?;
    }
    if config.balloon {
        api.balloon(&Balloon::for_version(version), deadline)?;
    }
    api.start(deadline)
}
