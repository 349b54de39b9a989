//! From a trace and the memory file to the bytes of a working set.

use std::fs::File;
use std::io;

use vhive_api::Digest;

use super::format::{self, CHUNK_BYTES};
use super::{Extent, read_up_to};
use crate::pages::{PageNumber, PageSet, Run, by_content};
use crate::regions::{RegionsError, page_count};
use crate::sys::PAGE;
use crate::trace::FaultTrace;

/// A gap of so many pages is carried along rather than ending a run: copying a page more costs less
/// than starting another copy.
const GAP_CARRIED: u32 = 2;
const PAGES_AT_ONCE: u32 = 64;

/// Why no working set could be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The memory file cannot be read.
    #[error("cannot read the memory file")]
    Read(#[source] io::Error),
    /// The memory file has an impossible size.
    #[error("cannot make a working set of the memory file")]
    Memory(#[from] RegionsError),
    /// The trace is of a memory of another size.
    #[error("the trace is of a memory of {trace} pages, the memory file has {memory}")]
    OtherSize {
        /// Pages that the trace is of.
        trace: u32,
        /// Pages of the file.
        memory: u32,
    },
    /// The memory file became shorter while it was read.
    #[error("the memory file ended before page {0}")]
    Ended(PageNumber),
}

/// Makes a working set of the pages in `trace`, with their bytes from `memory`, whose digest the caller
/// knows.
///
/// # Errors
/// If the memory file cannot be read, or is not the one that was traced.
pub fn create(trace: &FaultTrace, memory: &File, digest: Digest) -> Result<Vec<u8>, CreateError> {
    let pages = page_count(memory.metadata().map_err(CreateError::Read)?.len())?;
    if trace.bound() != pages {
        return Err(CreateError::OtherSize { trace: trace.bound(), memory: pages });
    }
    let extents = extents(trace, memory)?;
    let data_runs = || extents.iter().filter(|extent| !extent.is_zero).map(|extent| extent.run);
    let mut data = vec![0; data_runs().map(Run::bytes).sum()];
    let mut at = 0;
    for run in data_runs() {
        read_run(memory, run, &mut data[at..at + run.bytes()])?;
        at += run.bytes();
    }
    let sums: Vec<u64> = data.chunks(CHUNK_BYTES).map(format::checksum).collect();
    let mut bytes = format::encode_head(digest, pages, &extents, &sums);
    bytes.append(&mut data);
    Ok(bytes)
}

/// Merges the traced pages into runs, zero pages apart, in the order of each run's first touch.
fn extents(trace: &FaultTrace, memory: &File) -> Result<Vec<Extent>, CreateError> {
    let mut traced = PageSet::below(trace.bound());
    for page in trace.pages() {
        traced.insert(*page);
    }
    let (mut data, mut zero) = (PageSet::below(trace.bound()), PageSet::below(trace.bound()));
    let mut buffer = vec![0; PAGES_AT_ONCE as usize * PAGE];
    for whole in traced.runs(0) {
        for run in split(whole) {
            let bytes = &mut buffer[..run.bytes()];
            read_run(memory, run, bytes)?;
            for (part, is_zero) in by_content(run, bytes) {
                let set = if is_zero { &mut zero } else { &mut data };
                part.iter().for_each(|page| {
                    set.insert(page);
                });
            }
        }
    }
    let data_runs = data.runs(GAP_CARRIED);
    for page in data_runs.iter().flat_map(|run| run.iter()) {
        zero.remove(page);
    }
    let mut position = vec![u32::MAX; trace.bound() as usize];
    for (at, page) in (0..).zip(trace.pages()) {
        position[*page as usize] = at;
    }
    let first_touch = |extent: &Extent| extent.run.iter().map(|page| position[page as usize]).min();
    let data_extents = data_runs.into_iter().map(|run| Extent { run, is_zero: false });
    let zero_extents = zero.runs(0).into_iter().map(|run| Extent { run, is_zero: true });
    let mut extents: Vec<Extent> = data_extents.chain(zero_extents).collect();
    extents.sort_by_cached_key(first_touch);
    Ok(extents)
}

fn split(run: Run) -> impl Iterator<Item = Run> {
    (0..run.pages)
        .step_by(PAGES_AT_ONCE as usize)
        .map(move |at| Run { first: run.first + at, pages: PAGES_AT_ONCE.min(run.pages - at) })
}

fn read_run(memory: &File, run: Run, bytes: &mut [u8]) -> Result<(), CreateError> {
    let count = read_up_to(memory, bytes, run.offset()).map_err(CreateError::Read)?;
    if count == bytes.len() {
        return Ok(());
    }
    let whole = u32::try_from(count / PAGE).unwrap_or(0);
    Err(CreateError::Ended(run.first + whole))
}
