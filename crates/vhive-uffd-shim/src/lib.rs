//! Preloaded into QEMU, hands its guest memory's page faults to a pager, as Firecracker does by itself.
//!
//! ```text
//!   QEMU: mmap(memory backend's file) ──► this: private anonymous memory instead, at the same place
//!                                               userfaultfd over it ──── unix socket ──► vhive-pager
//! ```
//!
//! The parent gives three variables: `VHIVE_UFFD_MEM_INODE` (`<device>:<inode>`, decimal, of the backend's file, a
//! sparse dummy as long as guest memory), `VHIVE_UFFD_DEV_FD` (an inherited `/dev/userfaultfd`, so that QEMU
//! needs no privilege) and `VHIVE_UFFD_SOCK_FD` (an inherited stream socket, on which the one message of
//! `vhive_pager::handshake` is sent). Without them it does nothing. When the memory is handed over, it closes
//! the descriptors and removes the variables and `LD_PRELOAD`, so that no child inherits them.
//!
//! A guest must never run with memory that nobody serves: whatever fails is told on standard error, and the
//! process aborts. If no hand-off message arrives in time, the file was never mapped: kill QEMU.
//!
//! What this does not do: serve faults, or know anything of QEMU but that it maps one file once.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::OnceLock;

use libc::{c_int, c_void, off_t, size_t};
use vhive_pager::handshake;
use vhive_pager::regions::Region;
use vhive_pager::sys;

const INODE: &CStr = c"VHIVE_UFFD_MEM_INODE";
const DEVICE: &CStr = c"VHIVE_UFFD_DEV_FD";
const SOCKET: &CStr = c"VHIVE_UFFD_SOCK_FD";
const PRELOAD: &CStr = c"LD_PRELOAD";

/// Device and inode of the file that stands for guest memory, once it is handed over.
static HANDED_OVER: OnceLock<(u64, u64)> = OnceLock::new();

/// `mmap`, but for the one file that stands for guest memory.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: size_t,
    protection: c_int,
    flags: c_int,
    descriptor: c_int,
    offset: off_t,
) -> *mut c_void {
    let is_of_file = descriptor >= 0 && flags & libc::MAP_ANONYMOUS == 0;
    let Some(file) = is_of_file.then(|| guest_memory(descriptor)).flatten() else {
        // SAFETY: what the caller promises for `mmap`, it promises for the system call.
        return unsafe { map(address, length, protection, flags, descriptor, offset) };
    };
    if HANDED_OVER.set(file).is_err() {
        fail("guest memory is mapped a second time");
    }
    if offset != 0 || file_length(descriptor) != Some(length as u64) {
        fail("guest memory is not mapped as a whole");
    }
    let placement = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | placement;
    // SAFETY: as above: the caller gives this range away, whatever is mapped there.
    let mapped = unsafe { map(address, length, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        fail("guest memory cannot be mapped");
    }
    if let Err(reason) = hand_over(mapped.expose_provenance() as u64, length as u64) {
        fail(&reason);
    }
    mapped
}

/// `mmap` by its other name.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap64(
    address: *mut c_void,
    length: size_t,
    protection: c_int,
    flags: c_int,
    descriptor: c_int,
    offset: off_t,
) -> *mut c_void {
    // SAFETY: what the caller promises for the one it promises for the other.
    unsafe { mmap(address, length, protection, flags, descriptor, offset) }
}

/// The system call itself: looking up the next `mmap` might allocate, and so map.
#[expect(clippy::too_many_arguments, reason = "those of mmap")]
unsafe fn map(
    address: *mut c_void,
    length: size_t,
    protection: c_int,
    flags: c_int,
    descriptor: c_int,
    offset: off_t,
) -> *mut c_void {
    let number = libc::SYS_mmap;
    // SAFETY: the arguments are those of `mmap`, in its order; the caller answers for them.
    let mapped =
        unsafe { libc::syscall(number, address, length, protection, flags, descriptor, offset) };
    std::ptr::with_exposed_provenance_mut(usize::from_ne_bytes(mapped.to_ne_bytes()))
}

/// Device and inode of the descriptor's file, if it stands for guest memory. Allocates nothing.
fn guest_memory(descriptor: c_int) -> Option<(u64, u64)> {
    let wanted = match HANDED_OVER.get() {
        Some(file) => *file,
        None => variable(INODE).map(parse)?,
    };
    let status = status(descriptor)?;
    (wanted == (status.st_dev, status.st_ino)).then_some(wanted)
}

fn parse(text: &str) -> (u64, u64) {
    let parts = text.split_once(':').and_then(|(device, inode)| {
        let device = device.parse().ok()?;
        Some((device, inode.parse().ok()?))
    });
    parts.unwrap_or_else(|| fail("VHIVE_UFFD_MEM_INODE is not <device>:<inode>"))
}

fn file_length(descriptor: c_int) -> Option<u64> {
    u64::try_from(status(descriptor)?.st_size).ok()
}

fn status(descriptor: c_int) -> Option<libc::stat> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the pointer is to room for the structure, which the call fills if it succeeds.
    let outcome = unsafe { libc::fstat(descriptor, status.as_mut_ptr()) };
    // SAFETY: the call succeeded, so the structure is filled.
    (outcome == 0).then(|| unsafe { status.assume_init() })
}

fn hand_over(address: u64, bytes: u64) -> Result<(), String> {
    let device = inherited(DEVICE)?;
    let socket = inherited(SOCKET)?;
    let uffd = sys::from_device(device.as_fd())
        .map_err(|error| format!("cannot make a userfaultfd: {error}"))?;
    sys::handshake(uffd.as_fd(), sys::FEATURE_EVENT_REMOVE)
        .map_err(|error| format!("the kernel's userfaultfd cannot tell of removals: {error}"))?;
    sys::register(uffd.as_fd(), address, bytes)
        .map_err(|error| format!("cannot register guest memory: {error}"))?;
    let region = Region { address, bytes, offset: 0 };
    handshake::send(socket.as_fd(), uffd.as_fd(), &[region])
        .map_err(|error| format!("cannot hand guest memory over: {error}"))?;
    for name in [INODE, DEVICE, SOCKET, PRELOAD] {
        // SAFETY: the name is a C string. QEMU maps its memory before it starts a thread that reads variables.
        unsafe { libc::unsetenv(name.as_ptr()) };
    }
    Ok(())
}

/// Takes the descriptor that a variable names.
fn inherited(name: &CStr) -> Result<OwnedFd, String> {
    let text = variable(name).ok_or_else(|| format!("{} is not set", name.to_string_lossy()))?;
    let number: c_int = text.parse().map_err(|_| format!("{text:?} is no descriptor"))?;
    if number < 3 || status(number).is_none() {
        return Err(format!("descriptor {number} was not inherited"));
    }
    // SAFETY: it is open, and the parent gave it for this purpose: nobody else in this process uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The variable's value, without allocating.
fn variable(name: &CStr) -> Option<&'static str> {
    // SAFETY: the name is a C string.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: the C library keeps the value, a C string, until the variable is changed; only we change it, at the end.
    let value = unsafe { CStr::from_ptr(value) };
    value.to_str().ok()
}

fn fail(reason: &str) -> ! {
    // SAFETY: descriptor 2 is standard error, or writing to it fails.
    let stderr = unsafe { BorrowedFd::borrow_raw(2) };
    if let Ok(stderr) = stderr.try_clone_to_owned() {
        let mut stderr = std::fs::File::from(stderr);
        let text = format!("vhive-uffd-shim: {reason}\n");
        let _ = std::io::Write::write_all(&mut stderr, text.as_bytes());
    }
    std::process::abort()
}
