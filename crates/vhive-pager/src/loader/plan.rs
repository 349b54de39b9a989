//! Which bytes of a working set go where, chunk by chunk.

use std::fs::File;

use crate::pages::{PageSet, Run};
use crate::sys::PAGE;
use crate::working_set::{CHUNK_PAGES, WorkingSet};

/// Copies longer than this are cut: a fault that comes meanwhile waits for one copy at most.
const MOST_PAGES_AT_ONCE: u32 = 32;

/// Chunks of one read at the most: 1 MiB, beyond which disks get no faster.
const MOST_CHUNKS_AT_ONCE: usize = 4;

/// A working set, ready to be read and installed.
pub(crate) struct Plan {
    pub(crate) set: WorkingSet,
    pub(crate) file: File,
    pub(crate) pages: PageSet,
    pub(crate) chunks: Vec<ChunkPlan>,
}

/// What one read brings, and where it goes.
pub(crate) struct ChunkPlan {
    pub(crate) offset: u64,
    pub(crate) bytes: usize,
    pub(crate) first_checksum: u32,
    pub(crate) pieces: Vec<Piece>,
}

/// Neighbouring pages, and where their bytes are within the chunk; zeros without a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) run: Run,
    pub(crate) source: Option<usize>,
}

impl Plan {
    /// Plans one read per checksum, or one for everything.
    pub(crate) fn new(set: WorkingSet, file: File, in_chunks: bool) -> Self {
        let chunk_pages = if in_chunks { CHUNK_PAGES } else { set.data_pages.max(1) };
        let chunk_bytes = chunk_pages as usize * PAGE;
        let total = set.data_pages;
        let mut chunks: Vec<ChunkPlan> = Vec::new();
        let mut page = 0;
        for extent in &set.extents {
            let mut rest = extent.run;
            while rest.pages > 0 {
                // Zeros come with the chunk before them, or with the first.
                let is_new = chunks.len() <= (page / chunk_pages) as usize;
                if is_new && (!extent.is_zero || chunks.is_empty()) {
                    let bytes = chunk_bytes.min((total - page) as usize * PAGE);
                    let offset = set.data_offset + u64::from(page) * PAGE as u64;
                    let first_checksum = page / CHUNK_PAGES;
                    chunks.push(ChunkPlan { offset, bytes, first_checksum, pieces: Vec::new() });
                }
                let Some(chunk) = chunks.last_mut() else { break };
                let room = chunk_pages - page % chunk_pages;
                let most = if extent.is_zero { rest.pages } else { room.min(MOST_PAGES_AT_ONCE) };
                let run = Run { first: rest.first, pages: rest.pages.min(most) };
                let source = (page % chunk_pages) as usize * PAGE;
                chunk.pieces.push(Piece { run, source: (!extent.is_zero).then_some(source) });
                page += if extent.is_zero { 0 } else { run.pages };
                rest = Run { first: rest.first + run.pages, pages: rest.pages - run.pages };
            }
        }
        let pages = set.page_set();
        Self { set, file, pages, chunks }
    }

    /// How many chunks the read that begins with chunk `first` brings: one at the beginning, which a guest
    /// waits for, then more, for which fewer requests go to the disk.
    pub(crate) fn chunks_of_read(&self, first: usize) -> usize {
        MOST_CHUNKS_AT_ONCE.min(first.max(1)).min(self.chunks.len() - first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vhive_api::Digest;

    use super::*;
    use crate::working_set::Extent;

    fn set(extents: &[(u32, bool)]) -> WorkingSet {
        let mut first = 0;
        let mut all = Vec::new();
        for (pages, is_zero) in extents {
            all.push(Extent { run: Run { first, pages: *pages }, is_zero: *is_zero });
            first += pages + 1;
        }
        let data = all.iter().filter(|e| !e.is_zero).map(|e| e.run.pages).sum();
        WorkingSet {
            memory: Digest::of(b"m"),
            memory_pages: first,
            extents: all,
            checksums: Vec::new(),
            data_offset: 4096,
            data_pages: data,
        }
    }

    proptest! {
        #[test]
        fn every_page_is_installed_once_from_its_place(
            extents in proptest::collection::vec((1u32..150, any::<bool>()), 0..12), in_chunks in any::<bool>(),
        ) {
            let set = set(&extents);
            let file = File::open("/dev/null").expect("there");
            let plan = Plan::new(set.clone(), file, in_chunks);
            let mut offset = set.data_offset;
            let (mut data, mut zero) = (Vec::new(), Vec::new());
            for chunk in &plan.chunks {
                prop_assert_eq!(chunk.offset, offset);
                prop_assert_eq!(u64::from(chunk.first_checksum) * 64 * 4096, offset - set.data_offset);
                offset += chunk.bytes as u64;
                for piece in &chunk.pieces {
                    if let Some(at) = piece.source {
                        prop_assert!(at + piece.run.bytes() <= chunk.bytes);
                        let from = (chunk.offset - set.data_offset) / 4096 + (at / 4096) as u64;
                        data.extend(piece.run.iter().zip(from..));
                    } else {
                        zero.extend(piece.run.iter());
                    }
                }
            }
            prop_assert_eq!(offset, set.data_offset + set.data_bytes());
            let runs = |zero| set.extents.iter().filter(move |e| e.is_zero == zero).map(|e| e.run);
            let expected: Vec<(u32, u64)> = runs(false).flat_map(Run::iter).zip(0..).collect();
            prop_assert_eq!(data, expected);
            prop_assert_eq!(zero, runs(true).flat_map(Run::iter).collect::<Vec<_>>());
        }
    }
}
