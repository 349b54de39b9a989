//! Putting a run of pages in place, whatever the kernel answers.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::sys::{self, PAGE, Stopped};

/// What the pages shall hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    /// These bytes, a whole number of pages.
    Bytes(&'a [u8]),
    /// Zeros, so many bytes.
    Zeros(usize),
}

/// Why an installation ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The mapping is being changed (an event waits to be read): try again afterwards.
    Busy,
    /// No such range (any more): there is nothing to install into.
    Unmapped,
    /// The process is gone.
    Gone,
    /// Anything else.
    Failed(Errno),
}

/// How far an installation came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Installed {
    /// Bytes now in place, whoever put them there.
    pub(crate) bytes: usize,
    /// Pages that this call put in place.
    pub(crate) pages: u32,
    /// Why it ended early.
    pub(crate) stop: Option<Stop>,
}

/// Installs `content` at `address`. A page that is there already stays, and who waits for it is woken.
///
/// # Source
/// `Documentation/admin-guide/mm/userfaultfd.rst`: `EEXIST` somebody was faster, `EAGAIN` part was done or
/// the mapping is being changed, `ENOENT` no such range, `ESRCH` the process is gone.
pub(crate) fn install(uffd: BorrowedFd<'_>, address: u64, content: Content<'_>) -> Installed {
    let total = match content {
        Content::Bytes(bytes) => bytes.len(),
        Content::Zeros(len) => len,
    };
    let mut installed = Installed::default();
    while installed.bytes < total {
        let at = installed.bytes;
        let to = address + at as u64;
        let outcome = match content {
            Content::Bytes(bytes) => sys::copy(uffd, to, &bytes[at..]),
            Content::Zeros(len) => sys::zero(uffd, to, len - at),
        };
        let stopped = match outcome {
            Ok(()) => Stopped { done: total - at, errno: Errno::AGAIN },
            Err(stopped) => stopped,
        };
        installed.bytes += stopped.done;
        installed.pages += pages(stopped.done);
        if stopped.done > 0 {
            continue;
        }
        match stopped.errno {
            Errno::EXIST => {
                // Whoever installed it woke the waiters it knew of; there may be one since.
                let _ = sys::wake(uffd, to, PAGE);
                installed.bytes += PAGE;
            }
            Errno::INTR => {}
            errno => {
                installed.stop = Some(match errno {
                    Errno::AGAIN => Stop::Busy,
                    Errno::NOENT => Stop::Unmapped,
                    Errno::SRCH => Stop::Gone,
                    other => Stop::Failed(other),
                });
                break;
            }
        }
    }
    installed
}

fn pages(bytes: usize) -> u32 {
    u32::try_from(bytes / PAGE).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn pages_that_are_there_stay_and_the_others_come() {
        let Ok(uffd) = sys::create() else {
            println!("SKIP pages_that_are_there_stay_and_the_others_come: userfaultfd");
            return;
        };
        let uffd = uffd.as_fd();
        sys::handshake(uffd, 0).expect("agreed");
        let memory = sys::Mapping::reserve(8 * PAGE).expect("mapped");
        sys::register(uffd, memory.address(), memory.len() as u64).expect("registered");
        let third = memory.address() + 3 * PAGE as u64;
        let zero = install(uffd, third, Content::Zeros(2 * PAGE));
        assert_eq!(zero, Installed { bytes: 2 * PAGE, pages: 2, stop: None });
        let bytes = vec![7; 8 * PAGE];
        let all = install(uffd, memory.address(), Content::Bytes(&bytes));
        assert_eq!(all, Installed { bytes: 8 * PAGE, pages: 6, stop: None });
        assert!(memory[..3 * PAGE].iter().all(|byte| *byte == 7));
        assert!(memory[3 * PAGE..5 * PAGE].iter().all(|byte| *byte == 0));
        assert!(memory[5 * PAGE..].iter().all(|byte| *byte == 7));
        let nowhere = install(uffd, 0x1000, Content::Bytes(&bytes[..PAGE]));
        assert_eq!(nowhere.stop, Some(Stop::Unmapped));
    }
}
