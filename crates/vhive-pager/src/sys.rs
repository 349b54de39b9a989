//! The kernel's side of paging: userfaultfd, and memory owned by mapping it. All unsafe code of the
//! crate is here, one operation per block.
//!
//! What is written through a userfaultfd appears in its maker's memory from outside, as with `/proc/<pid>/mem`: Rust's
//! rules about references cannot speak of that, so the functions are safe. Nothing here follows such addresses.
//!
//! # Source
//! `Documentation/admin-guide/mm/userfaultfd.rst` and `include/uapi/linux/userfaultfd.h` of Linux.

use std::ffi::c_void;
use std::fs::File;
use std::mem::{offset_of, size_of};
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use rustix::io::{Errno, Result};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::{self, Advice, MapFlags, ProtFlags, UserfaultfdFlags};

/// The only page size served, in bytes.
pub const PAGE: usize = 4096;
const HUGE_PAGE: usize = 2 << 20;

const API_VERSION: u64 = 0xaa;
/// Asks for a message when a range is given back with `madvise` (`UFFD_FEATURE_EVENT_REMOVE`).
pub const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
/// Asks that a fault names its thread (`UFFD_FEATURE_THREAD_ID`).
pub const FEATURE_THREAD_ID: u64 = 1 << 8;
const MODE_MISSING: u64 = 1 << 0;
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Extent {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Extent,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct ZeroPage {
    range: Extent,
    mode: u64,
    done: i64,
}

const IOC_NEW: Opcode = opcode::none(0xaa, 0x00);
const UFFDIO_API: Opcode = opcode::read_write::<Api>(0xaa, 0x3f);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<Register>(0xaa, 0x00);
const UFFDIO_WAKE: Opcode = opcode::read::<Extent>(0xaa, 0x02);
const UFFDIO_COPY: Opcode = opcode::read_write::<Copy>(0xaa, 0x03);
const UFFDIO_ZEROPAGE: Opcode = opcode::read_write::<ZeroPage>(0xaa, 0x04);

// What the header's macros make of them on 64-bit machines: a wrong struct is a build error.
const _: () = assert!(IOC_NEW == 0x0000_aa00);
const _: () = assert!(UFFDIO_API == 0xc018_aa3f && size_of::<Api>() == 24);
const _: () = assert!(UFFDIO_REGISTER == 0xc020_aa00 && size_of::<Register>() == 32);
const _: () = assert!(UFFDIO_WAKE == 0x8010_aa02 && size_of::<Extent>() == 16);
const _: () = assert!(UFFDIO_COPY == 0xc028_aa03 && offset_of!(Copy, done) == 32);
const _: () = assert!(UFFDIO_ZEROPAGE == 0xc020_aa04 && offset_of!(ZeroPage, done) == 24);

/// How far an operation came before it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Bytes done before.
    pub done: usize,
    /// Why it went no further.
    pub errno: Errno,
}

/// Opens `/dev/userfaultfd`. Whoever inherits it may make userfaultfds of its own memory.
///
/// # Errors
/// If the device is absent or not ours to open.
pub fn open_device() -> std::io::Result<File> {
    File::options().read(true).write(true).open("/dev/userfaultfd")
}

/// Makes a non-blocking userfaultfd of the calling process's memory from an open `/dev/userfaultfd`.
///
/// # Errors
/// As the device says.
pub fn from_device(device: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: `NewDescriptor` describes the request as the kernel defines it; no memory is passed.
    unsafe { ioctl(device, NewDescriptor) }
}

/// Makes a non-blocking userfaultfd of the calling process's memory: by the device, else by the system call.
///
/// # Errors
/// The system call's: not permitted, not in this kernel.
pub fn create() -> Result<OwnedFd> {
    if let Ok(device) = open_device() {
        return from_device(device.as_fd());
    }
    // SAFETY: making the descriptor changes no memory; only registering ranges with it does.
    unsafe { mm::userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }
}

struct NewDescriptor;

// SAFETY: `USERFAULTFD_IOC_NEW` takes flags as its argument, writes no memory, and returns a new descriptor.
unsafe impl Ioctl for NewDescriptor {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        IOC_NEW
    }

    fn as_ptr(&mut self) -> *mut c_void {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        ptr::without_provenance_mut(flags.bits() as usize)
    }

    unsafe fn output_from_ptr(returned: IoctlOutput, _: *mut c_void) -> Result<OwnedFd> {
        // SAFETY: the call succeeded, so `returned` is a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(returned) })
    }
}

/// Agrees with the kernel on the interface's version and on `features`; once per userfaultfd.
///
/// # Errors
/// `EINVAL` if the kernel lacks a feature.
pub fn handshake(uffd: BorrowedFd<'_>, features: u64) -> Result<()> {
    let mut api = Api { api: API_VERSION, features, ioctls: 0 };
    // SAFETY: the opcode belongs to this struct, asserted above.
    let call = unsafe { Updater::<UFFDIO_API, Api>::new(&mut api) };
    // SAFETY: the kernel reads and writes only the struct, which outlives the call.
    unsafe { ioctl(uffd, call) }
}

/// From now on a touch of a page of this range that has none waits for one.
///
/// # Errors
/// `EINVAL` for what is not page-aligned private anonymous memory, `EBUSY` if another has it.
pub fn register(uffd: BorrowedFd<'_>, start: u64, len: u64) -> Result<()> {
    let range = Extent { start, len };
    let mut register = Register { range, mode: MODE_MISSING, ioctls: 0 };
    // SAFETY: the opcode belongs to this struct, asserted above.
    let call = unsafe { Updater::<UFFDIO_REGISTER, Register>::new(&mut register) };
    // SAFETY: the kernel reads and writes only the struct, which outlives the call.
    unsafe { ioctl(uffd, call) }
}

/// Fills missing pages at `to` with `from` and wakes who waits for them.
///
/// # Errors
/// Where it stopped and why: `EEXIST` a page is there, `EAGAIN` the mapping is being changed,
/// `ENOENT` no such range, `ESRCH` the process is gone.
pub fn copy(uffd: BorrowedFd<'_>, to: u64, from: &[u8]) -> std::result::Result<(), Stopped> {
    let source = from.as_ptr().expose_provenance() as u64;
    let mut copy = Copy { to, from: source, len: from.len() as u64, mode: 0, done: 0 };
    // SAFETY: the opcode belongs to this struct, asserted above.
    let call = unsafe { Updater::<UFFDIO_COPY, Copy>::new(&mut copy) };
    // SAFETY: the kernel writes only the struct, and reads `len` bytes from `from`; both outlive the call.
    let outcome = unsafe { ioctl(uffd, call) };
    outcome.map_err(|errno| Stopped { done: usize::try_from(copy.done).unwrap_or(0), errno })
}

/// Fills missing pages at `to` with zeros and wakes who waits for them.
///
/// # Errors
/// As [`copy`].
pub fn zero(uffd: BorrowedFd<'_>, to: u64, len: usize) -> std::result::Result<(), Stopped> {
    let range = Extent { start: to, len: len as u64 };
    let mut zero = ZeroPage { range, mode: 0, done: 0 };
    // SAFETY: the opcode belongs to this struct, asserted above.
    let call = unsafe { Updater::<UFFDIO_ZEROPAGE, ZeroPage>::new(&mut zero) };
    // SAFETY: the kernel reads and writes only the struct, which outlives the call.
    let outcome = unsafe { ioctl(uffd, call) };
    outcome.map_err(|errno| Stopped { done: usize::try_from(zero.done).unwrap_or(0), errno })
}

/// Wakes who waits for a page of this range; if the page is still missing, it asks again.
///
/// # Errors
/// `EINVAL` for a range that is not page-aligned.
pub fn wake(uffd: BorrowedFd<'_>, start: u64, len: usize) -> Result<()> {
    // SAFETY: the opcode belongs to this struct, asserted above.
    let call = unsafe { Setter::<UFFDIO_WAKE, Extent>::new(Extent { start, len: len as u64 }) };
    // SAFETY: the kernel only reads the struct, which outlives the call.
    unsafe { ioctl(uffd, call) }
}

/// Takes the descriptor that a fork event carries.
pub(crate) fn adopt_from_event(descriptor: RawFd) -> Option<OwnedFd> {
    // SAFETY: the kernel installed it while the event was read, so it is open and nobody else owns it.
    (descriptor >= 0).then(|| unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Which pages of the file are in the page cache, without reading it. Meaningful for a file of ours.
///
/// # Errors
/// If the file cannot be mapped.
pub fn cached_pages(file: BorrowedFd<'_>, len: usize) -> std::io::Result<Vec<u8>> {
    let mut cached = vec![0; len.div_ceil(PAGE)];
    if len > 0 {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at a place that the kernel chooses; nothing ever reads through it.
        let start = unsafe { mm::mmap(ptr::null_mut(), len, ProtFlags::READ, flags, file, 0)? };
        let mapping = Mapping { start: NonNull::new(start.cast()).ok_or(Errno::FAULT)?, len };
        // SAFETY: the mapping has `len` bytes, and `cached` has one byte for each of its pages.
        let outcome = unsafe { libc::mincore(start, mapping.len, cached.as_mut_ptr()) };
        if outcome != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(cached)
}

/// Private anonymous memory, owned: unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is owned and reached only through this value, like a boxed slice.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes without filling them: pages appear at the first touch.
    ///
    /// # Errors
    /// As `mmap`.
    pub fn reserve(len: usize) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at a place that the kernel chooses touches no other memory.
        let start = unsafe { mm::mmap_anonymous(ptr::null_mut(), len, protection, flags)? };
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::FAULT)?, len })
    }

    /// Maps at least `len` bytes, with huge pages where they can be had, and fills them now.
    ///
    /// # Errors
    /// As `mmap`; no memory.
    pub fn resident(len: usize) -> Result<Self> {
        let mapping = Self::reserve(len.next_multiple_of(HUGE_PAGE))?;
        // Without huge pages it is only slower.
        let _ = mapping.advise(0..mapping.len, Advice::LinuxHugepage);
        mapping.advise(0..mapping.len, Advice::LinuxPopulateWrite)?;
        Ok(mapping)
    }

    /// Where it begins, as the process that owns it sees it.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start.as_ptr().expose_provenance() as u64
    }

    /// Gives pages back: they read as zero, or as whatever a userfaultfd's server says.
    ///
    /// # Errors
    /// For a range that is not page-aligned.
    pub fn discard(&mut self, bytes: Range<usize>) -> Result<()> {
        self.advise(bytes, Advice::LinuxDontNeed)
    }

    fn advise(&self, bytes: Range<usize>, advice: Advice) -> Result<()> {
        let within = bytes.start <= bytes.end && bytes.end <= self.len;
        let start = self.start.as_ptr().wrapping_add(bytes.start).cast();
        let len = if within { bytes.len() } else { return Err(Errno::INVAL) };
        // SAFETY: the range lies within this mapping. Contents change only by `discard`, which borrows mutably.
        unsafe { mm::madvise(start, len, advice) }
    }

    /// Cuts it into buffers of `size` bytes, each owned by itself; a rest is not used.
    #[must_use]
    pub fn split(self, size: usize) -> Vec<Buffer> {
        let count = self.len.checked_div(size).unwrap_or(0);
        let whole = Arc::new(self);
        (0..count).map(|i| Buffer { whole: Arc::clone(&whole), at: i * size, len: size }).collect()
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is readable, `len` bytes long, lives as long as `self`, and holds plain bytes.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; it is writable, and `&mut self` makes it the only reference.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and no reference into it outlives the value.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A piece of a [`Mapping`] that nobody else reaches.
#[derive(Debug)]
pub struct Buffer {
    whole: Arc<Mapping>,
    at: usize,
    len: usize,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.whole.start.as_ptr().wrapping_add(self.at);
        // SAFETY: `split` made this piece within the mapping and disjoint from others; the Arc keeps it mapped.
        unsafe { slice::from_raw_parts(start, self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.whole.start.as_ptr().wrapping_add(self.at);
        // SAFETY: as for `deref`; the pieces are disjoint, and `&mut self` makes this the only reference.
        unsafe { slice::from_raw_parts_mut(start, self.len) }
    }
}
