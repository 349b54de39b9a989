//! Reads in flight: an `io_uring` that owns what it reads into until the kernel is done with it.
//!
//! # Source
//! `io_uring_setup(2)`, `io_uring_enter(2)`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

use crate::sys::Buffer;

/// A read of `bytes` bytes at `offset` into the start of `buffer`.
pub(crate) struct Read {
    pub(crate) file: Arc<File>,
    pub(crate) buffer: Buffer,
    pub(crate) bytes: u32,
    pub(crate) offset: u64,
}

/// A read that has ended, and how many bytes it brought.
pub(crate) struct Landed<T> {
    pub(crate) read: Read,
    pub(crate) token: T,
    pub(crate) outcome: io::Result<usize>,
}

/// Reads in flight; each carries a token of its owner.
pub(crate) struct Ring<T> {
    ring: IoUring,
    flights: Vec<Option<(Read, T)>>,
    begun: Vec<usize>,
}

impl<T> Ring<T> {
    /// For at most `depth` reads at a time, all by the calling thread.
    ///
    /// # Errors
    /// If the kernel has no `io_uring`, or does not permit it.
    pub(crate) fn new(depth: usize) -> io::Result<Self> {
        let entries = u32::try_from(depth).unwrap_or(u32::MAX);
        // Completions are noted when we ask for them, and interrupt nothing.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)
            .or_else(|_| IoUring::new(entries))?;
        let flights = (0..depth).map(|_| None).collect();
        Ok(Self { ring, flights, begun: Vec::new() })
    }

    /// How many more reads there is room for.
    pub(crate) fn room(&self) -> usize {
        self.flights.iter().filter(|flight| flight.is_none()).count()
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.flights.iter().all(Option::is_none)
    }

    /// Notes a read, which begins with the next [`Ring::turn`]. Without room it comes back.
    pub(crate) fn begin(&mut self, read: Read, token: T) -> Option<(Read, T)> {
        let Some(slot) = self.flights.iter().position(Option::is_none) else {
            return Some((read, token));
        };
        self.flights[slot] = Some((read, token));
        self.begun.push(slot);
        None
    }

    /// Begins what was noted, waits until something has landed if anything is in flight, and gives what has.
    ///
    /// # Errors
    /// If the kernel does not take or give anything; what is in flight stays so.
    pub(crate) fn turn(&mut self) -> io::Result<Vec<Landed<T>>> {
        while let Some(&slot) = self.begun.last() {
            if let Some((read, _)) = &mut self.flights[slot] {
                let bytes = read.bytes.min(u32::try_from(read.buffer.len()).unwrap_or(u32::MAX));
                let fd = types::Fd(read.file.as_raw_fd());
                let entry = opcode::Read::new(fd, read.buffer.as_mut_ptr(), bytes)
                    .offset(read.offset)
                    .build()
                    .user_data(slot as u64);
                push(&mut self.ring, &entry)?;
            }
            self.begun.pop();
        }
        if self.is_empty() {
            return Ok(Vec::new());
        }
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        let mut landed = Vec::new();
        for entry in self.ring.completion() {
            let slot = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let flight = self.flights.get_mut(slot).and_then(Option::take);
            let Some((read, token)) = flight else { continue };
            let outcome = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            landed.push(Landed { read, token, outcome });
        }
        Ok(landed)
    }
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    // SAFETY: the file and the buffer belong to a flight, which leaves `flights` only when its completion has
    // been seen, or never: see `drop`. A buffer's bytes stay where they are however its owner moves.
    let pushed = unsafe { ring.submission().push(entry) };
    pushed.map_err(|_| io::Error::other("the submission queue is full"))
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        for slot in std::mem::take(&mut self.begun) {
            self.flights[slot] = None;
        }
        while !self.is_empty() {
            if self.turn().is_err() {
                // The kernel may still write into them.
                std::mem::forget(std::mem::take(&mut self.flights));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Mapping, PAGE};

    #[test]
    fn reads_land_with_their_bytes_and_tokens() {
        let Ok(mut ring) = Ring::new(2) else {
            println!("SKIP reads_land_with_their_bytes_and_tokens: io_uring");
            return;
        };
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path().join("file");
        let content: Vec<u8> = (0..3 * PAGE).map(|at| (at / PAGE) as u8 + 1).collect();
        std::fs::write(&path, content).expect("written");
        let file = Arc::new(File::open(&path).expect("opened"));
        let mut buffers = Mapping::resident(3 * PAGE).expect("mapped").split(PAGE);
        let mut read = |page: usize| Read {
            file: Arc::clone(&file),
            buffer: buffers.pop().expect("enough"),
            bytes: 4096,
            offset: (page * PAGE) as u64,
        };
        assert!(ring.begin(read(2), 2).is_none());
        assert!(ring.begin(read(5), 5).is_none());
        assert_eq!(ring.begin(read(0), 0).map(|(_, token)| token), Some(0));
        let mut seen = Vec::new();
        while !ring.is_empty() {
            for landed in ring.turn().expect("taken") {
                let count = landed.outcome.expect("read");
                seen.push((landed.token, count, landed.read.buffer[0]));
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, [(2, PAGE, 3), (5, 0, 0)], "what lies beyond the end has no bytes");
        assert_eq!(ring.room(), 2);
    }
}
