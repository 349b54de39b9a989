//! The guest: a process that hands its memory over exactly as Firecracker does, then touches it as told.
//!
//! Its standard input is `/dev/userfaultfd`, its standard output the socket to the pager. So it needs no
//! privilege and no descriptor by number, and no unsafe code: a touch is a read of a slice.

use std::hint::black_box;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow_lite::Result;
use serde::{Deserialize, Serialize};
use vhive_pager::handshake;
use vhive_pager::regions::Region;
use vhive_pager::sys::{self, FEATURE_EVENT_REMOVE, FEATURE_THREAD_ID, Mapping, PAGE};

/// A page: of which region, and which one there.
pub(crate) type Spot = (usize, usize);

/// What the guest is told to do; it answers each with one [`Answer`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Read a byte of each page, by so many threads at once.
    Touch { order: Vec<Spot>, threads: usize },
    /// Write a byte of each page, in this order.
    Write { order: Vec<Spot>, byte: u8 },
    /// Give pages of the last region back and look at them again, in this order, while the other regions
    /// are touched by so many threads.
    Churn { discards: Vec<(usize, usize)>, touches: Vec<Spot>, threads: usize },
    /// Tell the sum of each page of each region.
    Sums,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    /// Pages given back that then held something.
    NotZero(Vec<usize>),
    Sums(Vec<Vec<u64>>),
}

/// A region: its pages, and where its content begins in the memory file, in pages.
pub(crate) type Layout = Vec<(usize, usize)>;

pub(crate) fn run(layout: &str) -> Result {
    let layout: Layout = serde_json::from_str(layout)?;
    let device = io::stdin().as_fd().try_clone_to_owned()?;
    let socket = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    let uffd = sys::from_device(device.as_fd())?;
    sys::handshake(uffd.as_fd(), FEATURE_EVENT_REMOVE | FEATURE_THREAD_ID)?;
    let (mut memory, mut regions) = (Vec::new(), Vec::new());
    for (pages, offset) in layout {
        let mapping = Mapping::reserve(pages * PAGE)?;
        let (address, bytes) = (mapping.address(), mapping.len() as u64);
        sys::register(uffd.as_fd(), address, bytes)?;
        regions.push(Region { address, bytes, offset: (offset * PAGE) as u64 });
        memory.push(mapping);
    }
    regions.sort_by_key(|region| region.address);
    handshake::send(socket.as_fd(), uffd.as_fd(), &regions)?;
    drop(uffd);
    for line in BufReader::new(&socket).lines() {
        let answer = obey(serde_json::from_str(&line?)?, &mut memory)?;
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        (&socket).write_all(&text)?;
    }
    Ok(())
}

fn obey(command: Command, memory: &mut [Mapping]) -> Result<Answer> {
    match command {
        Command::Touch { order, threads } => {
            touch(memory, &order, threads, || ());
            Ok(Answer::Done)
        }
        Command::Write { order, byte } => {
            for (region, page) in order {
                memory[region][page * PAGE + 1] = byte;
            }
            Ok(Answer::Done)
        }
        Command::Churn { discards, touches, threads } => {
            let (last, others) = memory.split_last_mut().ok_or("no region")?;
            let mut not_zero = Vec::new();
            touch(others, &touches, threads, || {
                for (from, to) in discards {
                    if last.discard(from * PAGE..to * PAGE).is_err() {
                        not_zero.push(usize::MAX);
                    }
                    let pages = (from..to).filter(|page| sum(&last[page * PAGE..][..PAGE]) != 0);
                    not_zero.extend(pages);
                }
            });
            Ok(Answer::NotZero(not_zero))
        }
        Command::Sums => {
            let sums = memory.iter().map(|region| region.chunks(PAGE).map(sum).collect());
            Ok(Answer::Sums(sums.collect()))
        }
    }
}

fn touch(memory: &[Mapping], order: &[Spot], threads: usize, meanwhile: impl FnOnce()) {
    thread::scope(|scope| {
        for start in 0..threads {
            scope.spawn(move || {
                for (region, page) in order.iter().skip(start).step_by(threads) {
                    black_box(memory[*region][page * PAGE]);
                }
            });
        }
        meanwhile();
    });
}

/// Zero for a page of zeros; told apart otherwise by content and place.
pub(crate) fn sum(page: &[u8]) -> u64 {
    page.chunks_exact(8).fold(0, |sum: u64, word| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        sum.rotate_left(5).wrapping_mul(0x517c_c1b7_2722_0a95) ^ u64::from_le_bytes(bytes)
    })
}

/// Errors of a program that only its parent reads.
pub(crate) mod anyhow_lite {
    pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;
}
