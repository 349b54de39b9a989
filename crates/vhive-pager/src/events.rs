//! What a userfaultfd tells: faults, and changes of the mapping.
//!
//! # Source
//! `struct uffd_msg` of `include/uapi/linux/userfaultfd.h`.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::sys;

const MESSAGE: usize = 32;
const AT_ONCE: usize = 64;

/// One message of a userfaultfd. Addresses are the VMM's.
#[derive(Debug)]
pub(crate) enum Event {
    /// This thread (0: not told) waits for this page.
    Fault { address: u64, thread: u32 },
    /// A fault of a kind that we never asked for: write protection, or a minor one.
    OtherFault { address: u64, flags: u64 },
    /// The range was given back (`MADV_DONTNEED`, `MADV_REMOVE`): its pages now read as zero.
    Remove { start: u64, end: u64 },
    /// The range was unmapped.
    Unmap { start: u64, end: u64 },
    /// The range moved.
    Remap { from: u64 },
    /// The process forked; the child's memory has this userfaultfd.
    Fork { child: Option<OwnedFd> },
    /// Something newer than this program.
    Unknown { event: u8 },
}

/// Takes the messages that are there, at most 64, without waiting.
pub(crate) fn read(uffd: BorrowedFd<'_>) -> Result<Vec<Event>, Errno> {
    let mut bytes = [0; MESSAGE * AT_ONCE];
    match rustix::io::retry_on_intr(|| rustix::io::read(uffd, &mut bytes)) {
        Ok(count) => Ok(bytes[..count].chunks_exact(MESSAGE).map(parse).collect()),
        Err(Errno::AGAIN) => Ok(Vec::new()),
        Err(errno) => Err(errno),
    }
}

fn parse(message: &[u8]) -> Event {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&message[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    let short = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&message[at..at + 4]);
        u32::from_ne_bytes(bytes)
    };
    // Bits 1 and 2 of a fault's flags: write protection, minor.
    const OTHER: u64 = 0b110;
    match message[0] {
        0x12 if word(8) & OTHER == 0 => Event::Fault { address: word(16), thread: short(24) },
        0x12 => Event::OtherFault { address: word(16), flags: word(8) },
        0x13 => Event::Fork { child: sys::adopt_from_event(short(8).cast_signed()) },
        0x14 => Event::Remap { from: word(8) },
        0x15 => Event::Remove { start: word(8), end: word(16) },
        0x16 => Event::Unmap { start: word(8), end: word(16) },
        event => Event::Unknown { event },
    }
}
