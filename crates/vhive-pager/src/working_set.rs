//! The pages that an invocation needs, with their bytes, in one file in the order of first touch.
//!
//! ```text
//!   FaultTrace ──create──► bytes ──publish──► <snapshot>/working-set.<n> ──open──► WorkingSet
//! ```
//!
//! A working set belongs to one memory file, by that file's digest, and is never changed: a further
//! recording, or a merge of several, is the next `n`. The format is described in
//! `docs/design/working-set-format.md`.

mod build;
mod format;
mod store;

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::io::Errno;
use vhive_api::Digest;

use crate::pages::{PageSet, Run};
use crate::regions::page_count;
use crate::sys::{self, PAGE};
use crate::trace::FaultTrace;

pub use build::{CreateError, create};
pub(crate) use format::{CHUNK_BYTES, checksum};
pub use format::{CHUNK_PAGES, VERSION};
pub use store::{PublishError, newest_valid, number_of, publish};

/// Pages that a working set holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Which.
    pub run: Run,
    /// Whether all of them are zero, and so have no bytes in the file.
    pub is_zero: bool,
}

/// What a working-set file says of itself; its pages stay in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkingSet {
    /// The digest of the memory file that it belongs to.
    pub memory: Digest,
    /// The number of pages of that file.
    pub memory_pages: u32,
    /// What it holds: disjoint, in the order of first touch.
    pub extents: Vec<Extent>,
    pub(crate) checksums: Vec<u64>,
    pub(crate) data_offset: u64,
    pub(crate) data_pages: u32,
}

/// Why a working set is not used.
#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    /// It cannot be read.
    #[error("cannot read the working set")]
    Read(#[source] io::Error),
    /// Something else than a working set.
    #[error("not a working set")]
    Magic,
    /// A version that this program does not know.
    #[error("working set of version {0}; this program reads version {VERSION}")]
    Version(u32),
    /// Bytes were changed.
    #[error("the checksum of the working set's {0} is wrong")]
    Checksum(Part),
    /// It contradicts itself.
    #[error("the working set is malformed: {0}")]
    Malformed(&'static str),
    /// It is shorter or longer than it says.
    #[error("the working set has {found} bytes instead of {expected}")]
    Length {
        /// What its header implies.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// It was recorded over another memory file.
    #[error("the working set belongs to memory {found}, not {expected}")]
    OtherMemory {
        /// The memory to be served.
        expected: Digest,
        /// The memory that it names.
        found: Digest,
    },
}

/// A part of a working-set file that has a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The fixed fields at its beginning.
    Header,
    /// The lists of extents and checksums.
    Tables,
    /// A chunk of page data, by its number.
    Chunk(u32),
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::Tables => f.write_str("tables"),
            Self::Chunk(number) => write!(f, "chunk {number}"),
        }
    }
}

impl WorkingSet {
    /// Reads what the file says of itself and checks all of it but the page data.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path) -> Result<Self, WorkingSetError> {
        let file = File::open(path).map_err(WorkingSetError::Read)?;
        let mut buffer = vec![0; CHUNK_BYTES];
        Self::read(&file, &mut buffer)
    }

    /// As [`WorkingSet::open`], reading by way of `buffer`, so that the file may be open for direct I/O.
    pub(crate) fn read(file: &File, buffer: &mut [u8]) -> Result<Self, WorkingSetError> {
        let length = file.metadata().map_err(WorkingSetError::Read)?.len();
        let first = buffer.len().min(FIRST_READ);
        let count = read_up_to(file, &mut buffer[..first], 0).map_err(WorkingSetError::Read)?;
        let head_bytes = format::head_bytes(&buffer[..count], length)?;
        let mut head = Vec::with_capacity(head_bytes);
        head.extend_from_slice(&buffer[..count.min(head_bytes)]);
        while head.len() < head_bytes {
            let wanted = (head_bytes - head.len()).min(buffer.len());
            let count = read_up_to(file, &mut buffer[..wanted], head.len() as u64);
            match count.map_err(WorkingSetError::Read)? {
                0 => {
                    return Err(WorkingSetError::Length {
                        expected: head_bytes as u64,
                        found: head.len() as u64,
                    });
                }
                count => head.extend_from_slice(&buffer[..count]),
            }
        }
        format::decode(&head, length)
    }

    /// Checks that it belongs to this memory.
    ///
    /// # Errors
    /// [`WorkingSetError::OtherMemory`].
    pub fn belongs_to(&self, memory: Digest) -> Result<(), WorkingSetError> {
        if self.memory == memory {
            return Ok(());
        }
        Err(WorkingSetError::OtherMemory { expected: memory, found: self.memory })
    }

    /// Reads all page data and compares it with the checksums.
    ///
    /// # Errors
    /// The first chunk that is wrong.
    pub fn verify(&self, file: &File) -> Result<(), WorkingSetError> {
        let mut buffer = vec![0; CHUNK_BYTES];
        for (number, range) in (0..).zip(self.chunks()) {
            let (offset, bytes) = range;
            let chunk = &mut buffer[..bytes];
            file.read_exact_at(chunk, offset).map_err(WorkingSetError::Read)?;
            self.check_chunk(number, chunk)?;
        }
        Ok(())
    }

    /// Where each chunk's bytes are in the file, and how many.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        let total = self.data_bytes();
        (0..total).step_by(CHUNK_BYTES).map(move |at| {
            (
                self.data_offset + at,
                CHUNK_BYTES.min(usize::try_from(total - at).unwrap_or(CHUNK_BYTES)),
            )
        })
    }

    pub(crate) fn check_chunk(&self, number: u32, bytes: &[u8]) -> Result<(), WorkingSetError> {
        match self.checksums.get(number as usize) {
            Some(expected) if *expected == checksum(bytes) => Ok(()),
            _ => Err(WorkingSetError::Checksum(Part::Chunk(number))),
        }
    }

    /// The number of bytes of page data.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        u64::from(self.data_pages) * PAGE as u64
    }

    /// The number of pages that it holds, zero ones included.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.run.pages)).sum()
    }

    /// Its pages as a set.
    #[must_use]
    pub fn page_set(&self) -> PageSet {
        let mut set = PageSet::below(self.memory_pages);
        for page in self.extents.iter().flat_map(|extent| extent.run.iter()) {
            set.insert(page);
        }
        set
    }

    /// Its pages as a trace, to be merged with others by [`FaultTrace::merge`]. Within an extent the order of
    /// touch is not known any more; pages of bridged gaps count as touched.
    #[must_use]
    pub fn trace(&self) -> FaultTrace {
        let mut trace = FaultTrace::below(self.memory_pages);
        for page in self.extents.iter().flat_map(|extent| extent.run.iter()) {
            trace.record(page);
        }
        trace
    }
}

/// What the first read brings: header and tables of a working set of some thousand extents.
const FIRST_READ: usize = 64 << 10;

/// Opens a working set for reading past the page cache where the file system can.
pub(crate) fn open_direct(path: &Path) -> io::Result<File> {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(direct).open(path);
    match opened {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => File::open(path),
        other => other,
    }
}

/// Reads until the buffer is full or the file ends.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    read_many(file, &mut [buffer], offset)
}

/// Reads until the buffers, one after the other, are full or the file ends.
pub(crate) fn read_many(file: &File, buffers: &mut [&mut [u8]], offset: u64) -> io::Result<usize> {
    let mut slices: Vec<IoSliceMut<'_>> =
        buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
    let mut slices = &mut slices[..];
    let mut count = 0;
    IoSliceMut::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match rustix::io::preadv(file, slices, offset + count as u64) {
            Ok(0) => break,
            Ok(more) => {
                count += more;
                IoSliceMut::advance_slices(&mut slices, more);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // With direct I/O only the file's end yields a part of a sector, and no read may begin there.
        if !count.is_multiple_of(512) {
            break;
        }
    }
    Ok(count)
}

/// The pages of `memory` that are in the page cache, by address: what a guest touched that ran on the mapped
/// file, if the cache held none of it before and nothing was read ahead (`MADV_RANDOM`, or a read-ahead of zero).
///
/// # Errors
/// If the file cannot be mapped, or has too many pages.
pub fn from_page_cache(memory: &File) -> io::Result<FaultTrace> {
    use std::os::fd::AsFd as _;
    let bytes = memory.metadata()?.len();
    let pages = page_count(bytes).map_err(io::Error::other)?;
    let len = usize::try_from(bytes).map_err(io::Error::other)?;
    let mut trace = FaultTrace::below(pages);
    for (page, state) in (0..pages).zip(sys::cached_pages(memory.as_fd(), len)?) {
        if state & 1 != 0 {
            trace.record(page);
        }
    }
    Ok(trace)
}
