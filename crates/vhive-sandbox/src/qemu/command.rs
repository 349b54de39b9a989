//! QEMU's command line for one microVM: a pure function of what is wanted.
//!
//! Everything that QEMU needs is handed over as an open descriptor, because it runs as a user who
//! may open next to nothing. The descriptors keep their numbers across the exec.

use std::ffi::OsString;
use std::os::fd::RawFd;

use vhive_api::Bytes;

/// How the guest's instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the processor, through `/dev/kvm`.
    Kvm,
    /// By translation: slow, and works everywhere.
    Tcg,
}

impl Accelerator {
    /// QEMU's name of it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl Accelerator {
    /// QEMU's name of the processor that guests see under it.
    #[must_use]
    pub(super) const fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            // Without `rep movsb/stosb`, which is translated byte by byte, the kernel copies and
            // clears by words: 7 % of a boot. Newer QEMUs say that short ones are fast as well, and a
            // kernel that sees this without the former does not get through its start.
            Self::Tcg => "max,erms=off,fsrm=off",
        }
    }
}

/// Number of the machine that [`arguments`] describes: to be raised when devices, their order or
/// their properties change, since a snapshot restores only on the same machine.
pub(super) const MACHINE: u32 = 2;

/// One microVM. Numbers of descriptors that QEMU inherits end in `_fd`.
#[derive(Clone, Debug)]
pub(super) struct Machine<'a> {
    /// Shows in process lists.
    pub(super) name: &'a str,
    pub(super) accelerator: Accelerator,
    pub(super) vcpus: u32,
    pub(super) memory: Bytes,
    /// A file of `memory` bytes that becomes guest memory.
    pub(super) memory_fd: RawFd,
    /// Whether what the guest writes goes into that file.
    pub(super) memory_shared: bool,
    /// Saved devices and virtual CPUs to wait for, instead of starting the kernel.
    pub(super) incoming: bool,
    pub(super) kernel_fd: RawFd,
    pub(super) initramfs_fd: Option<RawFd>,
    pub(super) command_line: &'a str,
    /// Connected stream socket: the guest's `vhive.0` port. None for a guest that has no init of
    /// ours.
    pub(super) channel_fd: Option<RawFd>,
    /// Connected stream socket: QMP.
    pub(super) qmp_fd: RawFd,
    /// Read-only disk; `vda` in the guest.
    pub(super) rootfs_fd: Option<RawFd>,
    pub(super) interface: Option<Interface>,
}

/// The guest's network interface.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub(super) tap_fd: RawFd,
    pub(super) mac: String,
}

/// Upper bound for translated code, in MiB. TCG's own default is an eighth of the host's memory,
/// which no memory limit could allow for.
pub(super) const TRANSLATION_MIB: u64 = 128;

/// The arguments, without the program's name. The console is QEMU's standard output.
pub(super) fn arguments(machine: &Machine<'_>) -> Vec<OsString> {
    let Machine { accelerator, vcpus, memory, .. } = machine;
    let opened = |fd: RawFd| format!("/proc/self/fd/{fd}");
    let memory_file = opened(machine.memory_fd);
    let mut words: Vec<String> = Vec::new();
    let mut option = |name: &str, value: String| words.extend([name.to_owned(), value]);

    option("-name", format!("{},process={}", machine.name, machine.name));
    option("-machine", "microvm,memory-backend=ram0,dump-guest-core=off".to_owned());
    match accelerator {
        Accelerator::Kvm => option("-accel", "kvm".to_owned()),
        Accelerator::Tcg => option("-accel", format!("tcg,tb-size={TRANSLATION_MIB}")),
    }
    option("-cpu", accelerator.cpu().to_owned());
    option("-smp", vcpus.to_string());
    option("-m", format!("size={}k", memory.0 / 1024));
    // If shared, the file is half of a snapshot.
    let share = if machine.memory_shared { "on" } else { "off" };
    let backend = format!("memory-backend-file,id=ram0,share={share}");
    option("-object", format!("{backend},size={},mem-path={memory_file}", memory.0));
    if machine.incoming {
        option("-incoming", "defer".to_owned());
    }
    option("-kernel", opened(machine.kernel_fd));
    if let Some(fd) = machine.initramfs_fd {
        option("-initrd", opened(fd));
    }
    option("-append", machine.command_line.to_owned());

    option("-sandbox", SANDBOX.to_owned());
    option("-global", "virtio-mmio.force-legacy=false".to_owned());
    option("-chardev", "stdio,id=console,signal=off".to_owned());
    option("-serial", "chardev:console".to_owned());
    option("-chardev", format!("socket,id=qmp,fd={}", machine.qmp_fd));
    option("-mon", "chardev=qmp,mode=control".to_owned());
    if let Some(fd) = machine.channel_fd {
        option("-chardev", format!("socket,id=channel,fd={fd}"));
        option("-device", "virtio-serial-device".to_owned());
        option("-device", "virtserialport,chardev=channel,name=vhive.0".to_owned());
    }
    if let Some(fd) = machine.rootfs_fd {
        option("-add-fd", format!("fd={fd},set=1"));
        let file = "driver=file,node-name=rootfs,filename=/dev/fdset/1";
        option("-blockdev", format!("{file},read-only=on,auto-read-only=off,locking=off"));
        option("-device", "virtio-blk-device,drive=rootfs".to_owned());
    }
    if let Some(Interface { tap_fd, mac }) = &machine.interface {
        option("-netdev", format!("tap,id=net0,fd={tap_fd}"));
        // A link whose state can be asked for is up twice in a guest's eyes, and what follows from the
        // second time waits for a second: mostly for a clone.
        let quiet = "guest_announce=off,status=off";
        option("-device", format!("virtio-net-device,netdev=net0,mac={mac},{quiet}"));
    }
    words.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
    words.extend(["-display", "none"].map(str::to_owned));
    words.into_iter().map(OsString::from).collect()
}

/// QEMU's own system call filter, at its strictest.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine<'static> {
        Machine {
            name: "vhive-1",
            accelerator: Accelerator::Tcg,
            vcpus: 2,
            memory: Bytes::mib(128),
            memory_fd: 10,
            memory_shared: true,
            incoming: false,
            kernel_fd: 11,
            initramfs_fd: Some(12),
            command_line: "console=ttyS0, quiet",
            channel_fd: Some(13),
            qmp_fd: 14,
            rootfs_fd: Some(15),
            interface: Some(Interface { tap_fd: 16, mac: "02:00:00:00:00:01".to_owned() }),
        }
    }

    fn value_of<'a>(words: &'a [OsString], option: &str) -> Vec<&'a str> {
        let pairs = words.windows(2).filter(|pair| pair[0] == option);
        pairs.filter_map(|pair| pair[1].to_str()).collect()
    }

    #[test]
    fn everything_is_passed_by_descriptor() {
        let words = arguments(&machine());
        let memory =
            "memory-backend-file,id=ram0,share=on,size=134217728,mem-path=/proc/self/fd/10";
        assert_eq!(value_of(&words, "-object"), [memory]);
        assert_eq!(value_of(&words, "-kernel"), ["/proc/self/fd/11"]);
        assert_eq!(value_of(&words, "-m"), ["size=131072k"]);
        assert_eq!(value_of(&words, "-netdev"), ["tap,id=net0,fd=16"]);
        assert_eq!(value_of(&words, "-sandbox"), [SANDBOX]);
        // A word of its own needs no escaping of commas.
        assert_eq!(value_of(&words, "-append"), ["console=ttyS0, quiet"]);
    }

    #[test]
    fn a_clone_differs_in_its_memory_and_in_waiting_only() {
        let booted = arguments(&machine());
        let clone = Machine { memory_shared: false, incoming: true, ..machine() };
        let restored = arguments(&clone);
        assert_eq!(value_of(&restored, "-incoming"), ["defer"]);
        assert!(value_of(&restored, "-object")[0].contains("share=off"));
        let rest = |words: &[OsString]| -> Vec<OsString> {
            let differs = |word: &&OsString| {
                let text = word.to_string_lossy();
                !text.contains("memory-backend-file") && *text != *"-incoming" && *text != *"defer"
            };
            words.iter().filter(differs).cloned().collect()
        };
        assert_eq!(rest(&booted), rest(&restored));
    }

    #[test]
    fn a_bare_guest_has_its_interface_alone() {
        let bare = Machine { initramfs_fd: None, channel_fd: None, rootfs_fd: None, ..machine() };
        let words = arguments(&bare);
        assert!(value_of(&words, "-initrd").is_empty());
        let devices = value_of(&words, "-device");
        assert!(matches!(&devices[..], [one] if one.starts_with("virtio-net-device")));
    }

    #[test]
    fn a_probe_has_neither_disk_nor_network() {
        let probe = Machine {
            rootfs_fd: None,
            interface: None,
            accelerator: Accelerator::Kvm,
            ..machine()
        };
        let words = arguments(&probe);
        assert!(value_of(&words, "-blockdev").is_empty() && value_of(&words, "-netdev").is_empty());
        assert_eq!(value_of(&words, "-accel"), ["kvm"]);
    }
}
