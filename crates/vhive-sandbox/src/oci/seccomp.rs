//! The system calls that no function has a use for, and that have been the way out of containers.
//!
//! # Source
//! The calls that Docker's default profile withholds from a container without added capabilities
//! (moby `profiles/seccomp`); most need a capability anyway that a container does not have.

use nix::errno::Errno;
use nix::sched::CloneFlags;
use serde_json::{Value, json};

/// Answered with `EPERM`, whatever their arguments.
const REFUSED: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "get_mempolicy",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "setns",
    "setdomainname",
    "sethostname",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "sysfs",
    "_sysctl",
    "syslog",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
    "vm86",
    "vm86old",
];

/// Sockets between virtual machines and their hosts.
///
/// # Source
/// `include/linux/socket.h`.
const AF_VSOCK: u32 = 40;

/// The flags of `clone` that make a namespace. Root in a user namespace of its own has every
/// capability there, and with them the parts of the kernel that are not made for strangers.
const NAMESPACES: [CloneFlags; 7] = [
    CloneFlags::CLONE_NEWCGROUP,
    CloneFlags::CLONE_NEWIPC,
    CloneFlags::CLONE_NEWNET,
    CloneFlags::CLONE_NEWNS,
    CloneFlags::CLONE_NEWPID,
    CloneFlags::CLONE_NEWUSER,
    CloneFlags::CLONE_NEWUTS,
];

/// The section of `config.json`.
pub(super) fn filter() -> Value {
    let mut rules = vec![
        refuse(REFUSED, Errno::EPERM, &json!([])),
        // Its flags are in memory, where no filter sees them; the C libraries then take `clone`.
        refuse(&["clone3"], Errno::ENOSYS, &json!([])),
        // Network namespaces do not hold for it: it leads to the host, and to the hypervisor below.
        // In a 32-bit program that asks by `socketcall`, whose arguments are in memory, this
        // refuses every socket.
        refuse(
            &["socket"],
            Errno::EAFNOSUPPORT,
            &json!([{
                // The kernel looks at the register's lower half only.
                "index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": u32::MAX, "valueTwo": AF_VSOCK,
            }]),
        ),
    ];
    rules.extend(NAMESPACES.map(|flag| {
        let has = json!([{
            "index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": flag.bits(), "valueTwo": flag.bits(),
        }]);
        refuse(&["clone"], Errno::EPERM, &has)
    }));
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    })
}

fn refuse(names: &[&str], error: Errno, args: &Value) -> Value {
    let error = error as i32;
    json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": args })
}
