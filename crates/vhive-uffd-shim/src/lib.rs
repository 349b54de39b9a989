//! A library that is preloaded into QEMU and decides what becomes its guest's memory, because QEMU
//! itself can neither map a file that it may only read, nor hand its memory to a pager.
//!
//! ```text
//!   QEMU: mmap(MAP_FIXED, fd of the memory backend) ──► here: is it the file that is meant?
//!      VHIVE_UFFD_MAP_FD   ──► map that descriptor's file instead, private (copied on write)
//!      VHIVE_UFFD_DEV_FD   ──► map nothing, register a userfaultfd over it, and send it with
//!      + VHIVE_UFFD_SOCK_FD    the message that Firecracker sends to the pager
//! ```
//!
//! Advice for huge pages is not passed on, so that mapped memory arrives as the host's readahead says.
//!
//! `VHIVE_UFFD_MEM_INODE` (`<device>:<inode>`) says which file QEMU will try to map. Whatever goes
//! wrong ends QEMU with a word on its standard error: it must never run with memory that nobody
//! serves.
//!
//! # Source
//! Linux `Documentation/admin-guide/mm/userfaultfd.rst`; Firecracker,
//! `docs/snapshotting/handling-page-faults-on-snapshot-resume.md`; QEMU `util/mmap-alloc.c`.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::mem::size_of;
use std::sync::atomic::{AtomicBool, Ordering};

/// `_IO(0xAA, 0x00)` on `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xAA00;
/// `_IOWR(0xAA, 0x3F, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xC018_AA3F;
/// `_IOWR(0xAA, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xC020_AA00;
const UFFD_API: u64 = 0xAA;
const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
/// The pager serves a fault best on the CPU of the thread that waits.
const UFFD_FEATURE_THREAD_ID: u64 = 1 << 8;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
/// Bytes in a page of guest memory.
const PAGE: usize = 4096;

#[repr(C)]
#[derive(Debug)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

const _: () = assert!(size_of::<UffdioApi>() == 0x18 && size_of::<UffdioRegister>() == 0x20);

/// One call of `mmap`.
#[derive(Clone, Copy, Debug)]
struct Call {
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off64_t,
}

/// Takes the place of the C library's function.
///
/// # Safety
/// As `mmap(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    serve(Call { address, length, protection, flags, fd, offset })
}

/// Takes the place of the C library's function.
///
/// # Safety
/// As `mmap(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off64_t,
) -> *mut c_void {
    serve(Call { address, length, protection, flags, fd, offset })
}

/// Takes the place of the C library's function. QEMU asks for huge pages in all guest memory. For a
/// mapped file the kernel takes that as leave to read 2 MiB at each fault, whatever the host's
/// readahead says; how a clone's memory arrives shall depend on its policy and on the host's
/// setting alone.
///
/// # Safety
/// As `madvise(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int {
    if advice == libc::MADV_HUGEPAGE && MAPPED.load(Ordering::SeqCst) {
        return 0;
    }
    // SAFETY: passes on what the caller answers for.
    let result = unsafe { libc::syscall(libc::SYS_madvise, address, length, advice) };
    c_int::try_from(result).unwrap_or(-1)
}

fn serve(call: Call) -> *mut c_void {
    if call.fd < 0 || !is_guest_memory(call.fd) {
        return map(call);
    }
    if MAPPED.swap(true, Ordering::SeqCst) {
        fail("guest memory is mapped a second time");
    }
    if call.offset != 0 || length(call.fd) != Some(call.length as u64) {
        fail("guest memory is not mapped as a whole");
    }
    let kept = libc::MAP_FIXED | libc::MAP_NORESERVE;
    let private = libc::MAP_PRIVATE | libc::MAP_NORESERVE | (call.flags & kept);
    if let Some(fd) = number(c"VHIVE_UFFD_MAP_FD") {
        return map(Call { flags: private, fd, ..call });
    }
    let (Some(device), Some(socket)) =
        (number(c"VHIVE_UFFD_DEV_FD"), number(c"VHIVE_UFFD_SOCK_FD"))
    else {
        fail("nothing says what becomes guest memory");
    };
    let anonymous = private | libc::MAP_ANONYMOUS;
    let memory = map(Call { flags: anonymous, fd: -1, offset: 0, ..call });
    if memory == libc::MAP_FAILED {
        return memory;
    }
    let uffd = register(device, memory, call.length);
    hand_over(socket, uffd, memory, call);
    for fd in [device, socket, uffd] {
        // SAFETY: closes descriptors that only this library uses.
        unsafe { libc::close(fd) };
    }
    memory
}

/// The system call itself: the C library's function is this one.
fn map(call: Call) -> *mut c_void {
    let Call { address, length, protection, flags, fd, offset } = call;
    // SAFETY: passes on what the caller answers for.
    let result =
        unsafe { libc::syscall(libc::SYS_mmap, address, length, protection, flags, fd, offset) };
    result as *mut c_void
}

/// Whether guest memory has been mapped.
static MAPPED: AtomicBool = AtomicBool::new(false);

/// Whether the descriptor is of the file that `VHIVE_UFFD_MEM_INODE` names.
fn is_guest_memory(fd: c_int) -> bool {
    let Some(wanted) = variable(c"VHIVE_UFFD_MEM_INODE") else { return false };
    let wanted = wanted.split_once(':');
    let wanted = wanted.and_then(|(dev, ino)| Some((dev.parse().ok()?, ino.parse().ok()?)));
    let Some(wanted) = wanted else {
        fail("VHIVE_UFFD_MEM_INODE is not a device and an inode");
    };
    status(fd).is_some_and(|status| (status.st_dev, status.st_ino) == wanted)
}

fn length(fd: c_int) -> Option<u64> {
    u64::try_from(status(fd)?.st_size).ok()
}

fn status(fd: c_int) -> Option<libc::stat> {
    let mut status = core::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `status` has room for what is written.
    if unsafe { libc::fstat(fd, status.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: fstat succeeded, so it is filled.
    Some(unsafe { status.assume_init() })
}

fn variable(name: &CStr) -> Option<&'static str> {
    // SAFETY: the name is a C string; nobody changes QEMU's environment.
    let value: *const c_char = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: getenv returns a C string that lives as long as the environment.
    unsafe { CStr::from_ptr(value) }.to_str().ok()
}

fn number(name: &CStr) -> Option<c_int> {
    variable(name)?.parse().ok()
}

/// Makes a userfaultfd for this process and registers the memory with it.
fn register(device: c_int, memory: *mut c_void, length: usize) -> c_int {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the argument is a set of flags.
    let uffd = unsafe { libc::ioctl(device, USERFAULTFD_IOC_NEW, flags) };
    if uffd < 0 {
        fail("no userfaultfd");
    }
    let features = UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_THREAD_ID;
    let mut api = UffdioApi { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: the argument is the structure that the operation takes.
    if unsafe { libc::ioctl(uffd, UFFDIO_API, &raw mut api) } != 0 {
        fail("the userfaultfd does not offer what is needed");
    }
    let mut range = UffdioRegister {
        start: memory.addr() as u64,
        len: length as u64,
        mode: UFFDIO_REGISTER_MODE_MISSING,
        ioctls: 0,
    };
    // SAFETY: the argument is the structure that the operation takes; the range was mapped above.
    if unsafe { libc::ioctl(uffd, UFFDIO_REGISTER, &raw mut range) } != 0 {
        fail("guest memory cannot be registered");
    }
    uffd
}

/// Sends the userfaultfd to the pager, with the one region.
fn hand_over(socket: c_int, uffd: c_int, memory: *mut c_void, call: Call) {
    let text = format!(
        "[{{\"base_host_virt_addr\":{},\"size\":{},\"offset\":{},\"page_size\":{PAGE}}}]",
        memory.addr(),
        call.length,
        call.offset,
    );
    let mut part = libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: text.len() };
    let mut space = Space([0; SPACE]);
    // SAFETY: all zero is a valid message header.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = space.0.as_mut_ptr().cast();
    message.msg_controllen = SPACE;
    // SAFETY: the header has room for one control message.
    let control = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: it lies in `space`, which is large enough and aligned.
    let header = unsafe { &mut *control };
    header.cmsg_level = libc::SOL_SOCKET;
    header.cmsg_type = libc::SCM_RIGHTS;
    header.cmsg_len = LENGTH;
    // SAFETY: the header is the one above.
    let data = unsafe { libc::CMSG_DATA(control) };
    // SAFETY: there is room for one descriptor behind the header.
    unsafe { data.cast::<c_int>().write_unaligned(uffd) };
    // SAFETY: everything that the header names lives on this stack.
    let sent = unsafe { libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL) };
    if usize::try_from(sent) != Ok(text.len()) {
        fail("cannot hand guest memory over");
    }
}

/// Room for one control message, aligned as its header.
#[repr(align(8))]
struct Space([u8; SPACE]);

/// Bytes of a control message with one descriptor, without and with padding.
const LENGTH: usize = size_of::<libc::cmsghdr>() + size_of::<c_int>();
const SPACE: usize = LENGTH.next_multiple_of(size_of::<usize>());

/// Ends QEMU.
fn fail(what: &str) -> ! {
    let error = std::io::Error::last_os_error();
    eprintln!("vhive-uffd-shim: {what}: {error}");
    std::process::abort();
}
