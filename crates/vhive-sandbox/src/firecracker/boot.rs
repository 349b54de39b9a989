//! Booting a guest: configure it, start it, wait until it answers.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::Firecracker;
use super::api::{ApiError, Balloon, BootSource, MachineConfig, NetworkInterface};
use super::checkpoint::Taken;
use super::config::FirecrackerConfig;
use super::ground::Ground;
use super::sandbox::FirecrackerSandbox;
use super::version::Version;
use super::vm::{Vm, Wanted, guest_memory, vcpus};
use crate::bare;
use crate::contract::{chain, own_words};
use crate::deadline::Deadline;
use crate::journal::{End, Milestone};
use crate::network::{NetworkSlot, TAP};
use crate::run_dir::SandboxDir;
use crate::runtime::{BootError, Guest, Sandbox as _, SandboxSpec};
use crate::snapshot::MemoryShape;

/// Name of the kernel in the root directory.
const KERNEL: &str = "kernel";

/// The guest's one interface.
const INTERFACE: &str = "eth0";

/// Boots a guest without an operating system until its port answers.
pub(super) fn boot(
    firecracker: &Firecracker,
    spec: &SandboxSpec,
    (ground, network, dir): (&Arc<Ground>, &Arc<NetworkSlot>, SandboxDir),
    deadline: Deadline,
) -> Result<FirecrackerSandbox, BootError> {
    let Guest::Bare { kernel } = &spec.guest else {
        return Err(BootError::Resource {
            step: "boot a Linux guest".to_owned(),
            source: io::ErrorKind::Unsupported.into(),
        });
    };
    let platform = spec.guest.platform(ground.platform.clone()).map_err(|source| {
        let step = format!("read the bare guest {}", kernel.display());
        BootError::Resource { step, source }
    })?;
    let lent: [(&str, PathBuf); 1] = [(KERNEL, kernel.clone())];
    let config = &firecracker.config;
    let (dir_path, served) = (dir.path(), false);
    let wanted = Wanted { spec, network, ground, config, dir: dir_path, lent: &lent, served };
    let (mut vm, _) = Vm::spawn(&wanted, deadline)?;
    let journal = &spec.journal;
    journal.reach(Milestone::Spawned, Instant::now());
    let started = start(&mut vm, spec, network, (config, ground.version), deadline);
    started.map_err(|error| {
        let reason = own_words(&vm.supervised, journal, &chain(&error));
        BootError::Spawn { program: ground.binary.display().to_string(), reason }
    })?;
    journal.reach(Milestone::Started, Instant::now());
    let shape = MemoryShape { memory: guest_memory(spec), vcpus: vcpus(spec) };
    let sandbox = FirecrackerSandbox {
        pids: [vm.supervised.pid()],
        vm,
        id: spec.id.clone(),
        port: spec.port,
        journal: Arc::clone(journal),
        taken: Some(Taken { platform, shape }),
        paging: None,
        _dir: dir,
        network: Arc::clone(network),
    };
    if let Err(error) = bare::wait_listening(sandbox.endpoint(), journal, deadline) {
        sandbox.vm.supervised.abandon();
        let (wanted, reason) = (Milestone::Listening, error.to_string());
        // Before the sandbox is dropped, which would be taken for the reason.
        journal.end(End::Failed { step: "boot".to_owned(), reason: reason.clone() });
        return Err(BootError::Guest { wanted, attempts: 1, reason });
    }
    Ok(sandbox)
}

/// Describes the machine and starts it. What [`super::ground`] calls the machine's number is to be
/// raised when this changes.
fn start(
    vm: &mut Vm,
    spec: &SandboxSpec,
    network: &NetworkSlot,
    (config, version): (&FirecrackerConfig, Version),
    deadline: Deadline,
) -> Result<(), ApiError> {
    let inside = vm.jail.inside(KERNEL);
    let api = &mut vm.api;
    let machine = MachineConfig {
        vcpu_count: vcpus(spec),
        mem_size_mib: guest_memory(spec).mib_ceil(),
        smt: false,
        track_dirty_pages: false,
        cpu_template: config.cpu_template,
    };
    api.machine_config(&machine, deadline)?;
    let source = BootSource {
        kernel_image_path: inside,
        // Firecracker adds where its devices are.
        boot_args: bare::command_line(network.guest(), spec.port),
    };
    api.boot_source(&source, deadline)?;
    let interface = NetworkInterface {
        iface_id: INTERFACE.to_owned(),
        host_dev_name: TAP.to_owned(),
        guest_mac: network.mac().to_string(),
    };
    api.network_interface(&interface, deadline)?;
    if config.entropy {
        api.entropy(deadline)?;
    }
    if config.balloon {
        api.balloon(&Balloon::for_version(version), deadline)?;
    }
    api.start(deadline)
}
