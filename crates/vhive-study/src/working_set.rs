//! A reader of working-set files, for their page statistics. Its own, so that the instrument does
//! not link the pager; a test compares the two.
//!
//! # Source
//! `docs/design/working-set-format.md`, version 1.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8] = b"VHIVEWS\n";
const VERSION: u32 = 1;
const PAGE: u32 = 4096;
const HEADER: usize = 128;
/// Bytes of the header before its own checksum.
const CHECKED: usize = 80;
/// Most bytes of tables that are read: those of 64 GiB of guest memory, a page each.
const MOST_TABLES: u64 = 1 << 28;
const ZERO: u32 = 1 << 31;

/// Neighbouring pages of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Number of the first page.
    pub first: u32,
    /// How many, at least one.
    pub pages: u32,
    /// Whether all are zero.
    pub zero: bool,
}

/// What a working set holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSet {
    /// Pages of the guest's memory.
    pub memory_pages: u32,
    /// What it holds, in the order of first touch.
    pub extents: Vec<Extent>,
}

/// Why a file is not understood.
#[derive(Debug, thiserror::Error)]
pub enum WorkingSetError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is no working set, or a damaged one.
    #[error("{} is no working set of version {VERSION}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
}

impl WorkingSet {
    /// Reads a file's header and tables; the page data are not looked at.
    ///
    /// # Errors
    /// When it cannot be read or contradicts itself.
    pub fn open(path: &Path) -> Result<Self, WorkingSetError> {
        let read = |source| WorkingSetError::Read { path: path.to_owned(), source };
        let content = |why| WorkingSetError::Content { path: path.to_owned(), why };
        let mut file = File::open(path).map_err(read)?;
        let mut header = [0; HEADER];
        file.read_exact(&mut header).map_err(read)?;
        let (extents, chunks) = counts(&header).map_err(content)?;
        let bytes = (u64::from(extents) + u64::from(chunks)) * 8;
        if bytes > MOST_TABLES {
            return Err(content("its tables are too long"));
        }
        let mut tables = Vec::new();
        file.take(bytes).read_to_end(&mut tables).map_err(read)?;
        if tables.len() as u64 != bytes {
            return Err(content("it ends within its tables"));
        }
        Self::decode(&header, &tables).map_err(content)
    }

    fn decode(header: &[u8; HEADER], tables: &[u8]) -> Result<Self, &'static str> {
        if xxh3_64(tables) != long(header, 72) {
            return Err("the checksum of its tables is wrong");
        }
        let (count, memory_pages) = (word(header, 52) as usize, word(header, 48));
        let mut extents = Vec::with_capacity(count);
        for entry in tables.chunks_exact(8).take(count) {
            let (first, pages) = (word(entry, 0), word(entry, 4));
            let extent = Extent { first, pages: pages & !ZERO, zero: pages & ZERO != 0 };
            let end = u64::from(extent.first) + u64::from(extent.pages);
            if extent.pages == 0 || end > u64::from(memory_pages) {
                return Err("an extent is empty or beyond the memory");
            }
            extents.push(extent);
        }
        Ok(Self { memory_pages, extents })
    }

    /// Its pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.pages)).sum()
    }

    /// Those that are zero, and so are not in the file.
    #[must_use]
    pub fn zero_pages(&self) -> u64 {
        let zero = self.extents.iter().filter(|extent| extent.zero);
        zero.map(|extent| u64::from(extent.pages)).sum()
    }

    /// Lengths of its runs of neighbouring pages, in the order of their addresses, however the file
    /// divides them.
    #[must_use]
    pub fn runs(&self) -> Vec<u64> {
        let mut sorted = self.extents.clone();
        sorted.sort_unstable_by_key(|extent| extent.first);
        let mut runs: Vec<u64> = Vec::new();
        let mut end = None;
        for Extent { first, pages, .. } in sorted {
            match runs.last_mut() {
                Some(last) if end == Some(u64::from(first)) => *last += u64::from(pages),
                _ => runs.push(u64::from(pages)),
            }
            end = Some(u64::from(first) + u64::from(pages));
        }
        runs
    }
}

/// Numbers of extents and of chunks.
fn counts(header: &[u8; HEADER]) -> Result<(u32, u32), &'static str> {
    if !header.starts_with(MAGIC) {
        return Err("its first bytes are others");
    }
    if word(header, 8) != VERSION {
        return Err("it has another version");
    }
    if xxh3_64(&header[..CHECKED]) != long(header, CHECKED) {
        return Err("the checksum of its header is wrong");
    }
    if word(header, 12) != PAGE {
        return Err("its pages are not of 4 KiB");
    }
    Ok((word(header, 52), word(header, 64)))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let long = bytes.get(at..at + 8).and_then(|long| long.try_into().ok());
    long.map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(extents: &[(u32, u32, bool)]) -> WorkingSet {
        let extents = extents.iter().map(|(first, pages, zero)| Extent {
            first: *first,
            pages: *pages,
            zero: *zero,
        });
        WorkingSet { memory_pages: 100, extents: extents.collect() }
    }

    #[test]
    fn neighbours_are_one_run_however_the_file_divides_them() {
        let found = set(&[(10, 2, false), (40, 1, false), (12, 3, true), (8, 2, false)]);
        assert_eq!((found.pages(), found.zero_pages()), (8, 3));
        assert_eq!(found.runs(), [7, 1]);
        assert_eq!(set(&[]).runs(), [0; 0]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(0_u8.., 0..400), good: bool) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("working-set.1");
            if good && bytes.len() >= HEADER {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..16].copy_from_slice(&[1, 0, 0, 0, 0, 16, 0, 0]);
                let sum = xxh3_64(&bytes[..CHECKED]);
                bytes[CHECKED..CHECKED + 8].copy_from_slice(&sum.to_le_bytes());
            }
            std::fs::write(&path, &bytes).unwrap();
            assert!(WorkingSet::open(&path).is_err());
        }
    }
}
