//! The bytes of a working set, version 1. Before changing anything here read
//! `docs/design/working-set-format.md`: published files are never rewritten.

use vhive_api::Digest;
use xxhash_rust::xxh3::xxh3_64;

use super::{Extent, Part, WorkingSet, WorkingSetError};
use crate::pages::{PageSet, Run};
use crate::sys::PAGE;

const MAGIC: [u8; 8] = *b"VHIVEWS\n";
/// The version that is written.
pub const VERSION: u32 = 1;
/// Pages of data under one checksum; also what is read at once.
pub const CHUNK_PAGES: u32 = 64;
pub(crate) const CHUNK_BYTES: usize = CHUNK_PAGES as usize * PAGE;
const HEADER_BYTES: usize = 128;
const CHECKED_BYTES: usize = 80;
const ENTRY_BYTES: usize = 8;
const ZERO_FLAG: u32 = 1 << 31;

// Tripwires. A changed figure makes published files unreadable: write a new version and keep a
// reader of this one (docs/design/working-set-format.md).
const _: () = assert!(VERSION == 1);
const _: () = assert!(CHUNK_BYTES == 256 << 10);
const _: () = assert!(HEADER_BYTES == 128 && CHECKED_BYTES == 80 && ENTRY_BYTES == 8);
const _: () = assert!(PAGE == 4096);

pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// What comes before the page data: header, tables, and zeros up to the next page.
pub(super) fn encode_head(
    memory: Digest,
    memory_pages: u32,
    extents: &[Extent],
    sums: &[u64],
) -> Vec<u8> {
    let mut tables = Vec::with_capacity(ENTRY_BYTES * (extents.len() + sums.len()));
    let mut data_pages = 0;
    for Extent { run, is_zero } in extents {
        data_pages += if *is_zero { 0 } else { run.pages };
        let flag = if *is_zero { ZERO_FLAG } else { 0 };
        tables.extend_from_slice(&run.first.to_le_bytes());
        tables.extend_from_slice(&(run.pages | flag).to_le_bytes());
    }
    for sum in sums {
        tables.extend_from_slice(&sum.to_le_bytes());
    }
    let count = |len: usize| u32::try_from(len).expect("there are fewer than 2^31 pages");
    let mut head = Vec::with_capacity((HEADER_BYTES + tables.len()).next_multiple_of(PAGE));
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&count(PAGE).to_le_bytes());
    head.extend_from_slice(memory.as_bytes());
    for field in [memory_pages, count(extents.len()), data_pages, CHUNK_PAGES, count(sums.len()), 0]
    {
        head.extend_from_slice(&field.to_le_bytes());
    }
    head.extend_from_slice(&checksum(&tables).to_le_bytes());
    let sum = checksum(&head);
    head.extend_from_slice(&sum.to_le_bytes());
    head.resize(HEADER_BYTES, 0);
    head.extend_from_slice(&tables);
    head.resize(head.len().next_multiple_of(PAGE), 0);
    head
}

struct Header {
    memory: Digest,
    memory_pages: u32,
    extents: u32,
    data_pages: u32,
    chunks: u32,
    tables_checksum: u64,
}

impl Header {
    fn tables_bytes(&self) -> u64 {
        (u64::from(self.extents) + u64::from(self.chunks)) * ENTRY_BYTES as u64
    }

    fn data_offset(&self) -> u64 {
        (HEADER_BYTES as u64 + self.tables_bytes()).next_multiple_of(PAGE as u64)
    }

    fn read(bytes: &[u8], length: u64) -> Result<Self, WorkingSetError> {
        let header = bytes.get(..HEADER_BYTES).ok_or(WorkingSetError::Magic)?;
        if header[..8] != MAGIC {
            return Err(WorkingSetError::Magic);
        }
        let version = word(header, 8);
        if version != VERSION {
            return Err(WorkingSetError::Version(version));
        }
        if long(header, CHECKED_BYTES) != checksum(&header[..CHECKED_BYTES]) {
            return Err(WorkingSetError::Checksum(Part::Header));
        }
        let mut memory = [0; 32];
        memory.copy_from_slice(&header[16..48]);
        let read = Self {
            memory: Digest::from_bytes(memory),
            memory_pages: word(header, 48),
            extents: word(header, 52),
            data_pages: word(header, 56),
            chunks: word(header, 64),
            tables_checksum: long(header, 72),
        };
        // Whoever can write a checksum can still write nonsense.
        if word(header, 12) as usize != PAGE
            || word(header, 60) != CHUNK_PAGES
            || word(header, 68) != 0
        {
            return Err(WorkingSetError::Malformed("a size that this version fixes is another"));
        }
        if read.extents > read.memory_pages || read.data_pages > read.memory_pages {
            return Err(WorkingSetError::Malformed("it holds more than the memory"));
        }
        if read.chunks != read.data_pages.div_ceil(CHUNK_PAGES) {
            return Err(WorkingSetError::Malformed("the number of chunks is not that of the data"));
        }
        let expected = read.data_offset() + u64::from(read.data_pages) * PAGE as u64;
        if length != expected {
            return Err(WorkingSetError::Length { expected, found: length });
        }
        Ok(read)
    }
}

/// How many bytes come before the page data. The answer lies within the file's `length`.
pub(super) fn head_bytes(first_bytes: &[u8], length: u64) -> Result<usize, WorkingSetError> {
    let header = Header::read(first_bytes, length)?;
    usize::try_from(header.data_offset())
        .map_err(|_| WorkingSetError::Malformed("too many extents"))
}

/// Understands what comes before the page data, of a file of so many bytes.
pub(super) fn decode(head: &[u8], length: u64) -> Result<WorkingSet, WorkingSetError> {
    let header = Header::read(head, length)?;
    let split = HEADER_BYTES + ENTRY_BYTES * header.extents as usize;
    let end = split + ENTRY_BYTES * header.chunks as usize;
    let tables = head.get(HEADER_BYTES..end).ok_or(WorkingSetError::Malformed("cut tables"))?;
    if checksum(tables) != header.tables_checksum {
        return Err(WorkingSetError::Checksum(Part::Tables));
    }
    let mut seen = PageSet::below(header.memory_pages);
    let mut data_pages = 0u64;
    let mut extents = Vec::with_capacity(header.extents as usize);
    for entry in head[HEADER_BYTES..split].chunks_exact(ENTRY_BYTES) {
        let (first, pages) = (word(entry, 0), word(entry, 4) & !ZERO_FLAG);
        let (run, is_zero) = (Run { first, pages }, word(entry, 4) & ZERO_FLAG != 0);
        if pages == 0 || run.end() > u64::from(header.memory_pages) {
            return Err(WorkingSetError::Malformed("an extent is empty or beyond the memory"));
        }
        if !run.iter().all(|page| seen.insert(page)) {
            return Err(WorkingSetError::Malformed("extents overlap"));
        }
        data_pages += if is_zero { 0 } else { u64::from(pages) };
        extents.push(Extent { run, is_zero });
    }
    if data_pages != u64::from(header.data_pages) {
        return Err(WorkingSetError::Malformed("the extents do not account for the data"));
    }
    let checksums =
        head[split..end].chunks_exact(ENTRY_BYTES).map(|entry| long(entry, 0)).collect();
    Ok(WorkingSet {
        memory: header.memory,
        memory_pages: header.memory_pages,
        extents,
        checksums,
        data_offset: header.data_offset(),
        data_pages: header.data_pages,
    })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(long)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed(mut head: Vec<u8>) -> Vec<u8> {
        let sum = checksum(&head[..CHECKED_BYTES]);
        head[CHECKED_BYTES..CHECKED_BYTES + 8].copy_from_slice(&sum.to_le_bytes());
        head
    }

    fn extent(first: u32, pages: u32, is_zero: bool) -> Extent {
        Extent { run: Run { first, pages }, is_zero }
    }

    #[test]
    fn nonsense_under_good_checksums_is_refused() {
        let refused = |extents: &[Extent], length: u64| {
            let head = encode_head(Digest::of(b"m"), 100, extents, &[1]);
            decode(&head, length).expect_err("refused").to_string()
        };
        let length = 2 * PAGE as u64;
        assert!(refused(&[extent(0, 1, false), extent(0, 1, true)], length).contains("overlap"));
        assert!(refused(&[extent(100, 1, true), extent(1, 1, false)], length).contains("beyond"));
        assert!(refused(&[extent(0, 1, false)], length + 1).contains("8193 bytes instead of 8192"));
        let good = encode_head(Digest::of(b"m"), 100, &[extent(0, 1, false)], &[1]);
        assert!(decode(&good, length).is_ok());
        for (at, value) in [(48, 0u32), (52, 101), (56, 65), (60, 63), (64, 2), (68, 1), (12, 8192)]
        {
            let mut head = good.clone();
            head[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(decode(&sealed(head), length).is_err(), "{at}");
        }
        let mut newer = good;
        newer[8] = 2;
        assert!(matches!(decode(&newer, length), Err(WorkingSetError::Version(2))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_us_panic(mut head in proptest::collection::vec(any::<u8>(), 0..300), length in any::<u64>()) {
            let _ = decode(&head, length);
            if head.len() >= HEADER_BYTES {
                head[..8].copy_from_slice(&MAGIC);
                head[8..12].copy_from_slice(&1u32.to_le_bytes());
                let head = sealed(head);
                let _ = head_bytes(&head, length);
                let _ = decode(&head, length);
            }
        }

        #[test]
        fn every_flipped_bit_is_noticed(bit in 0usize..(128 + 16) * 8) {
            let good = encode_head(Digest::of(b"m"), 100, &[extent(5, 1, false)], &[1]);
            let mut head = good.clone();
            head[bit / 8] ^= 1 << (bit % 8);
            let length = 2 * PAGE as u64;
            match decode(&head, length) {
                // The header's padding means nothing.
                Ok(set) => prop_assert!((88..128).contains(&(bit / 8)) && Ok(set) == decode(&good, length).map_err(|e| e.to_string())),
                Err(_) => prop_assert!(!(88..128).contains(&(bit / 8))),
            }
        }
    }
}
