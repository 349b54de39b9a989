//! System calls that a function must not get through to the host's kernel with, each made by a
//! program of some bytes: no tool in an image makes them all.

use vhive_api::RuntimeName;
use vhive_api::guest::Stream;
use vhive_sandbox::End;

use crate::site::{Site, soon};

/// A system call, and how it ends.
struct Call {
    name: &'static str,
    number: u32,
    arguments: [u64; 2],
    /// Made as a 32-bit program makes it.
    narrow: bool,
    /// The error's number, or [`DONE`].
    ends: u8,
    /// Whether it is the same where the function has a kernel of its own.
    everywhere: bool,
}

/// What a program says whose call has succeeded.
const DONE: u8 = 200;

/// # Source
/// `arch/x86/entry/syscalls/syscall_{64,32}.tbl`, `include/uapi/linux/sched.h`,
/// `include/linux/socket.h`, `include/uapi/asm-generic/errno{-base,}.h`.
const CALLS: &[Call] = &[
    call("clone", 56, [SIGCHLD, 0], DONE),
    call("clone-user", 56, [SIGCHLD | NEWUSER, 0], EPERM),
    call("clone-user-net", 56, [SIGCHLD | NEWUSER | NEWNET, 0], EPERM),
    call("clone3", 435, [0, 0], ENOSYS),
    call("unshare-user", 272, [NEWUSER, 0], EPERM),
    call("inet", 41, [AF_INET, 1], DONE).everywhere(),
    call("vsock", 41, [AF_VSOCK, 1], EAFNOSUPPORT).everywhere(),
    // The kernel looks at the lower half of the register only.
    call("vsock-wide", 41, [AF_VSOCK | 1 << 32, 1], EAFNOSUPPORT).everywhere(),
    // Size of the kernel's log.
    call("syslog", 103, [10, 0], EPERM),
    call("fanotify", 300, [0, 0], EPERM),
    call("narrow-clone-user", 120, [SIGCHLD | NEWUSER, 0], EPERM).narrow(),
    call("narrow-inet", 359, [AF_INET, 1], DONE).narrow(),
    call("narrow-vsock", 359, [AF_VSOCK, 1], EAFNOSUPPORT).narrow(),
    // The old way to ask for any socket; its arguments are in memory.
    call("narrow-socketcall", 102, [1, 0], EAFNOSUPPORT).narrow(),
];

const SIGCHLD: u64 = 17;
const NEWUSER: u64 = 0x1000_0000;
const NEWNET: u64 = 0x4000_0000;
const AF_INET: u64 = 2;
const AF_VSOCK: u64 = 40;
const EPERM: u8 = 1;
const ENOSYS: u8 = 38;
const EAFNOSUPPORT: u8 = 97;

const fn call(name: &'static str, number: u32, arguments: [u64; 2], ends: u8) -> Call {
    Call { name, number, arguments, narrow: false, ends, everywhere: false }
}

impl Call {
    const fn narrow(self) -> Self {
        Self { narrow: true, ..self }
    }

    const fn everywhere(self) -> Self {
        Self { everywhere: true, ..self }
    }

    /// A static program for Linux on x86-64 that makes the call and exits with what became of it.
    ///
    /// # Source
    /// elf(5), one loadable segment; the instructions are Intel's.
    fn program(&self) -> Vec<u8> {
        const BASE: u64 = 0x40_0000;
        const HEADERS: u64 = 64 + 56;
        let [first, second] = self.arguments.map(u64::to_le_bytes);
        let mut code = vec![0xb8]; // mov eax, number
        code.extend(self.number.to_le_bytes());
        if self.narrow {
            code.push(0xbb); // mov ebx, first
            code.extend(&first[..4]);
            code.push(0xb9); // mov ecx, second
            code.extend(&second[..4]);
            code.extend([0x31, 0xd2, 0x31, 0xf6, 0x31, 0xff]); // xor edx, edx; esi, esi; edi, edi
            code.extend([0xcd, 0x80]); // int 0x80
        } else {
            code.extend([0x48, 0xbf]); // mov rdi, first
            code.extend(first);
            code.extend([0x48, 0xbe]); // mov rsi, second
            code.extend(second);
            code.extend([0x31, 0xd2, 0x4d, 0x31, 0xd2]); // xor edx, edx; r10, r10
            code.extend([0x4d, 0x31, 0xc0]); // xor r8, r8
            code.extend([0x0f, 0x05]); // syscall
        }
        code.extend([0xf7, 0xd8]); // neg eax: an error's number is positive now
        code.extend([0x7f, 0x05]); // jg over the next
        code.extend([0xb8, DONE, 0, 0, 0]); // mov eax, DONE
        code.extend([0x89, 0xc7]); // mov edi, eax
        code.extend([0xb8, 60, 0, 0, 0, 0x0f, 0x05]); // exit(edi)
        let size = HEADERS + code.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
        for word in [BASE + HEADERS, 64, 0] {
            file.extend(u64::to_le_bytes(word)); // entry, program headers, no section headers
        }
        file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
        file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // loaded, read and executed
        for word in [0, BASE, BASE, size, size, 0x1000] {
            file.extend(u64::to_le_bytes(word));
        }
        file.extend(code);
        file
    }
}

/// Neither new namespaces, in which root would have every capability, nor sockets that no network
/// namespace confines, nor the other doors into the host's kernel; what programs need is there.
pub(crate) fn the_hosts_kernel_is_kept_shut(site: &Site) {
    let own_kernel = site.runtime.name() == RuntimeName::Runsc;
    let made: Vec<_> = CALLS.iter().filter(|call| call.everywhere || !own_kernel).collect();
    let tries = made.iter().map(|call| {
        let bytes: String = call.program().iter().map(|byte| format!("\\{byte:03o}")).collect();
        let (file, name) = (format!("/tmp/{}", call.name), call.name);
        format!("printf '{bytes}' > {file}; chmod 755 {file}; {file}; echo {name} $?")
    });
    let booted = site.boot(&site.spec(&tries.collect::<Vec<_>>().join("\n")));
    assert_eq!(booted.journal.wait_end(soon()), Some(End::Exited(0)));
    let wanted: Vec<_> = made.iter().map(|call| format!("{} {}", call.name, call.ends)).collect();
    assert_eq!(booted.lines(Stream::Stdout), wanted);
}
