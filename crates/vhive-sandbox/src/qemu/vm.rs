//! From "what is wanted" to a running QEMU with everything that belongs to it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use vhive_api::guest::GuestConfig;
use vhive_api::{Bytes, Digest, SandboxId};

use super::command::{self, Accelerator, Interface, Machine};
use super::memory::Backing;
use super::program::Program;
use super::qmp::Qmp;
use crate::cgroup::{Cgroup, Limits, MachineShare};
use crate::contract::{self, Conversation, Outputs, Supervised, Words, own_words};
use crate::deadline::Deadline;
use crate::journal::{Journal, Milestone};
use crate::network::NetworkSlot;
use crate::process::Confinement;
use crate::run_dir::RunRoot;
use crate::runtime::BootError;

/// Threads that one QEMU may have besides its virtual CPUs: main loop, call-RCU, and the block
/// layer's workers.
const THREADS: u32 = 80;

/// The kernel to boot, and how.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) digest: Digest,
    pub(super) vmlinux: PathBuf,
    /// None for a bare guest, which has no channel either.
    pub(super) initramfs: Option<PathBuf>,
    pub(super) command_line: String,
}

/// One microVM to be started.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) id: &'a SandboxId,
    /// Under which name its cgroup goes; without one there are no limits.
    pub(super) run_root: Option<&'a RunRoot>,
    pub(super) journal: &'a Arc<Journal>,
    pub(super) binary: &'a Path,
    pub(super) accelerator: Accelerator,
    pub(super) uid: u32,
    pub(super) guest: &'a Guest,
    /// CPU time while it serves, in thousandths of a CPU; there are whole processors only.
    pub(super) cpu_millis: u32,
    pub(super) memory: Bytes,
    /// What becomes guest memory, of that size.
    pub(super) backing: Backing,
    /// Saved state that follows; without it the kernel is started.
    pub(super) incoming: Option<File>,
    /// Memory that QEMU may use besides the guest's.
    pub(super) overhead: Bytes,
    pub(super) rootfs: Option<&'a Path>,
    pub(super) network: Option<&'a NetworkSlot>,
    /// Sent when the guest says hello; without it the microVM ends then. Of no use to a clone.
    pub(super) config: Option<GuestConfig>,
}

/// A running microVM. The fields are dropped in this order: first the process, then what it used.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) supervised: Supervised,
    pub(super) qmp: Qmp,
    /// Its CPU time; with it goes its control group.
    pub(super) share: Option<MachineShare>,
    /// The guest's memory as a file, if what the guest writes goes there.
    pub(super) memory: Option<OwnedFd>,
}

/// A QEMU that has been spawned and is building its machine.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) supervised: Supervised,
    control: UnixStream,
    share: Option<MachineShare>,
    memory: Option<OwnedFd>,
    /// The number under which QEMU has the saved state.
    pub(super) state_fd: Option<RawFd>,
}

impl Vm {
    /// Starts QEMU and waits until it has built the machine; the guest's kernel runs from then on.
    ///
    /// # Errors
    /// [`BootError`]; nothing is left behind.
    pub(super) fn start(wanted: Wanted<'_>, deadline: Deadline) -> Result<Self, BootError> {
        let (journal, binary) = (Arc::clone(wanted.journal), wanted.binary);
        let vm = Spawned::spawn(wanted)?.greet(&journal, binary, deadline)?;
        journal.reach(Milestone::Spawned, Instant::now());
        Ok(vm)
    }

    /// From now on it has the CPU time that was asked for.
    ///
    /// # Errors
    /// [`BootError::Resource`].
    pub(super) fn serve(&self) -> Result<(), BootError> {
        let serve = || self.share.as_ref().map_or(Ok(()), MachineShare::serve);
        resource("limit the microVM's CPU time", serve)
    }
}

impl Spawned {
    /// Spawns QEMU with everything that it needs.
    ///
    /// # Errors
    /// [`BootError`]; nothing is left behind.
    pub(super) fn spawn(wanted: Wanted<'_>) -> Result<Self, BootError> {
        let Backing { file: memory, shared, environment, inherit } = wanted.backing;
        let vcpus = MachineShare::vcpus(wanted.cpu_millis);
        let limits = Limits {
            memory: Some(Bytes(wanted.memory.0.saturating_add(wanted.overhead.0))),
            tasks: Some(vcpus.saturating_add(THREADS)),
            cpu_millis: Some(MachineShare::at_work(wanted.cpu_millis)),
        };
        let cgroup = wanted.run_root.map(|root| {
            let make = || Cgroup::create(root, wanted.id, &limits);
            resource("create the sandbox's cgroup", make)
        });
        let cgroup = cgroup.transpose()?.map(Arc::new);
        let (channel, their_channel) = resource("make the guest channel", UnixStream::pair)?;
        let (control, their_control) = resource("make the control socket", UnixStream::pair)?;
        let (console, stdout) = resource("make the console's pipe", io::pipe)?;
        let (errors, stderr) = resource("make the error pipe", io::pipe)?;
        let kernel = open(&wanted.guest.vmlinux)?;
        let initramfs = wanted.guest.initramfs.as_deref().map(open).transpose()?;
        // A bare guest's end is closed at once.
        let their_channel = initramfs.is_some().then_some(their_channel);
        let rootfs = wanted.rootfs.map(open).transpose()?;
        let tap = wanted.network.map(|slot| resource("open the tap device", || slot.open_tap()));
        let tap = tap.transpose()?;
        let name = format!("vhive-{}", wanted.id);
        let machine = Machine {
            name: &name,
            accelerator: wanted.accelerator,
            vcpus,
            memory: wanted.memory,
            memory_fd: memory.as_raw_fd(),
            memory_shared: shared,
            incoming: wanted.incoming.is_some(),
            kernel_fd: kernel.as_raw_fd(),
            initramfs_fd: initramfs.as_ref().map(|file| file.as_raw_fd()),
            command_line: &wanted.guest.command_line,
            channel_fd: their_channel.as_ref().map(|channel| channel.as_raw_fd()),
            qmp_fd: their_control.as_raw_fd(),
            rootfs_fd: rootfs.as_ref().map(|file| file.as_raw_fd()),
            interface: tap.as_ref().zip(wanted.network).map(|(tap, slot)| Interface {
                tap_fd: tap.as_raw_fd(),
                mac: slot.mac().to_string(),
            }),
        };
        let arguments = command::arguments(&machine);
        let share = || memory.try_clone();
        let ours = shared.then(|| resource("share guest memory", share)).transpose()?;
        let state_fd = wanted.incoming.as_ref().map(|file| file.as_raw_fd());
        let is_clone = wanted.incoming.is_some();
        let mut inherit = inherit;
        inherit.extend([their_control.into(), kernel.into()]);
        inherit.extend(their_channel.map(OwnedFd::from));
        inherit.extend(initramfs.map(OwnedFd::from));
        inherit.push(memory);
        inherit.extend(rootfs.into_iter().chain(wanted.incoming).map(OwnedFd::from));
        inherit.extend(tap);
        let program = Program {
            path: wanted.binary.to_owned(),
            arguments,
            environment,
            inherit,
            stdout: stdout.into(),
            stderr: stderr.into(),
            confinement: Confinement {
                uid: wanted.uid,
                extra_group: (wanted.accelerator == Accelerator::Kvm).then(kvm_group).flatten(),
            },
            cgroup: cgroup.clone(),
            netns: wanted.network.map(|slot| slot.netns().to_owned()),
        };
        let from_guest = OwnedFd::from(channel);
        let to_guest = resource("make the guest channel", || from_guest.try_clone())?;
        let outputs = Outputs {
            console: Some(console),
            errors,
            from_guest: from_guest.into(),
            to_guest: Some(to_guest.into()),
            kills: None,
        };
        let journal = Arc::clone(wanted.journal);
        let conversation = if is_clone {
            Conversation::with_clone(Arc::clone(&journal))
        } else {
            Conversation::new(Arc::clone(&journal), wanted.config)
        };
        let words = Words {
            name: "QEMU",
            out_of_memory: "QEMU exceeded its memory limit and was killed; raise qemu.overhead",
            silent: "the guest powered off without saying why",
            limit: cgroup.as_ref().map(|cgroup| cgroup.out_of_memory()),
        };
        let start = || contract::start(|| program.spawn(), outputs, conversation, journal, words);
        let supervised = resource("start QEMU", start)?;
        let share = cgroup.map(|cgroup| MachineShare::new(cgroup, wanted.cpu_millis));
        Ok(Self { supervised, control, share, memory: ours, state_fd })
    }

    /// Waits until QEMU has built the machine.
    ///
    /// # Errors
    /// [`BootError::Spawn`] with QEMU's own words if it has ended; nothing is left behind.
    pub(super) fn greet(
        self,
        journal: &Journal,
        binary: &Path,
        deadline: Deadline,
    ) -> Result<Vm, BootError> {
        let Self { supervised, control, share, memory, .. } = self;
        match Qmp::greet(control, deadline) {
            Ok(qmp) => Ok(Vm { supervised, qmp, share, memory }),
            Err(error) => {
                let reason = own_words(&supervised, journal, &super::chain(&error));
                Err(BootError::Spawn { program: binary.display().to_string(), reason })
            }
        }
    }
}

/// The group that may open `/dev/kvm`, if there is one.
fn kvm_group() -> Option<u32> {
    let device = std::fs::metadata("/dev/kvm").ok()?;
    (device.mode() & 0o060 == 0o060 && device.gid() != 0).then_some(device.gid())
}

fn open(path: &Path) -> Result<File, BootError> {
    resource(&format!("open {}", path.display()), || File::open(path))
}

fn resource<T>(step: &str, make: impl FnOnce() -> io::Result<T>) -> Result<T, BootError> {
    make().map_err(|source| BootError::Resource { step: step.to_owned(), source })
}
