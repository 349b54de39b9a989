//! Booting a guest: configure it, start it, wait until it answers.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Firecracker;
use super::api::{ApiError, BootSource, MachineConfig, NetworkInterface};
use super::checkpoint::Taken;
use super::ground::Ground;
use super::sandbox::FirecrackerSandbox;
use super::vm::{Vm, Wanted, guest_memory, vcpus};
use crate::contract::{chain, own_words};
use crate::deadline::Deadline;
use crate::journal::Milestone;
use crate::network::{GATEWAY, GUEST, GUEST_PREFIX, NetworkSlot, TAP};
use crate::run_dir::SandboxDir;
use crate::runtime::{BootError, Guest, Sandbox as _, SandboxSpec};
use crate::snapshot::MemoryShape;

/// Name of the kernel in the root directory.
const KERNEL: &str = "kernel";

/// The guest's one interface.
const INTERFACE: &str = "eth0";

/// After a refused connection, how long is waited before the next one.
const REFUSED: Duration = Duration::from_millis(5);

/// How long a connection is waited for before it is looked whether the guest still runs. A SYN
/// that the guest's device has not taken yet waits in the tap device, so one try usually suffices.
const TRY: Duration = Duration::from_secs(1);

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
    let lent: [(&str, PathBuf); 1] = [(KERNEL, kernel.clone())];
    let config = &firecracker.config;
    let (dir_path, served) = (dir.path(), false);
    let wanted = Wanted { spec, network, ground, config, dir: dir_path, lent: &lent, served };
    let (mut vm, _) = Vm::spawn(&wanted, deadline)?;
    let journal = &spec.journal;
    journal.reach(Milestone::Spawned, Instant::now());
    let started = start(&mut vm, spec, network, (firecracker, deadline));
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
        taken: Some(Taken { platform: ground.platform.clone(), shape }),
        paging: None,
        _dir: dir,
        network: Arc::clone(network),
    };
    let pidfd = sandbox.vm.supervised.pidfd();
    let listens = pidfd.and_then(|pidfd| listens(sandbox.endpoint(), &pidfd, deadline));
    if let Err(error) = listens {
        let reason = own_words(&sandbox.vm.supervised, journal, &error.to_string());
        return Err(BootError::Guest { wanted: Milestone::Listening, attempts: 1, reason });
    }
    journal.reach(Milestone::Listening, Instant::now());
    Ok(sandbox)
}

/// Describes the machine and starts it. What [`super::ground`] calls the machine's number is to be
/// raised when this changes.
fn start(
    vm: &mut Vm,
    spec: &SandboxSpec,
    network: &NetworkSlot,
    (firecracker, deadline): (&Firecracker, Deadline),
) -> Result<(), ApiError> {
    let inside = vm.jail.inside(KERNEL);
    let api = &mut vm.api;
    let machine = MachineConfig {
        vcpu_count: vcpus(spec),
        mem_size_mib: guest_memory(spec).mib_ceil(),
        smt: false,
        track_dirty_pages: false,
        cpu_template: firecracker.config.cpu_template,
    };
    api.machine_config(&machine, deadline)?;
    let source = BootSource {
        kernel_image_path: inside,
        initrd_path: None,
        boot_args: command_line(spec.port),
    };
    api.boot_source(&source, deadline)?;
    let interface = NetworkInterface {
        iface_id: INTERFACE.to_owned(),
        host_dev_name: TAP.to_owned(),
        guest_mac: network.mac().to_string(),
    };
    api.network_interface(&interface, deadline)?;
    api.start(deadline)
}

/// What a guest without an operating system is told; Firecracker adds where its devices are.
fn command_line(port: u16) -> String {
    format!("nano.ip={GUEST}/{GUEST_PREFIX} nano.gw={GATEWAY} nano.port={port}")
}

/// Waits until the guest accepts a connection.
fn listens(endpoint: SocketAddr, pidfd: &OwnedFd, deadline: Deadline) -> io::Result<()> {
    loop {
        let left = deadline.left();
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its port does not answer"));
        }
        let pause = match TcpStream::connect_timeout(&endpoint, left.min(TRY)) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Duration::ZERO,
            Err(_) => REFUSED.min(left),
        };
        let timeout = Timespec::try_from(pause).map_err(io::Error::other)?;
        let mut ended = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut ended, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Err(io::Error::new(io::ErrorKind::BrokenPipe, "it has ended")),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd as _;
    use std::path::Path;

    use super::*;
    use crate::process::{Launch, spawn};

    #[test]
    fn a_port_is_waited_for_while_its_process_lives() {
        let (_, writer) = io::pipe().expect("a pipe");
        let args = ["1000".into()];
        let launch = Launch {
            program: Path::new("sleep"),
            args: &args,
            environment: &[],
            inherit: &[],
            stdin: None,
            stdout: writer.as_fd(),
            stderr: writer.as_fd(),
            confinement: None,
        };
        let child = spawn(&launch).expect("spawned");
        let pidfd = child.pidfd().try_clone_to_owned().expect("a descriptor");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let there = listener.local_addr().expect("an address");
        let soon = Deadline::after(Duration::from_secs(10));
        listens(there, &pidfd, soon).expect("it listens");
        drop(listener);
        let brief = Deadline::after(Duration::from_millis(30));
        let error = listens(there, &pidfd, brief).expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(child);
        let error = listens(there, &pidfd, soon).expect_err("it has gone");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
