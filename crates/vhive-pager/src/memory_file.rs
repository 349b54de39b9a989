//! Reading a memory file for the sake of faults.

use std::fs::File;
use std::num::NonZeroU64;
use std::sync::Mutex;

use rustix::fs::{Advice, fadvise};

use crate::pages::{PageSet, Run};
use crate::sys::PAGE;
use crate::vm::{ServeError, lock};
use crate::working_set::read_up_to;

/// Aligned pages that are looked at around a recorded fault. The disk brings them in the time of two or three
/// single pages, and faults rarely come alone.
pub(crate) const LOOKED_AT: u32 = 16;

/// The memory file of one guest.
pub(crate) struct MemoryFile {
    file: File,
    /// Windows that the kernel was asked for, by number; none where nothing is read ahead.
    asked: Option<Mutex<PageSet>>,
}

impl MemoryFile {
    /// `pages` is the file's size; `looks_around` says whether a fault's neighbours are read ahead, into the page
    /// cache: installed is what is touched.
    pub(crate) fn new(file: File, pages: u32, looks_around: bool) -> Self {
        let windows = pages.div_ceil(LOOKED_AT);
        Self { file, asked: looks_around.then(|| Mutex::new(PageSet::below(windows))) }
    }

    /// Whether faults' neighbours are read ahead.
    pub(crate) const fn looks_around(&self) -> bool {
        self.asked.is_some()
    }

    /// Begins to bring a run and its neighbours into the page cache, once. The kernel does so also where the
    /// host's readahead is switched off.
    pub(crate) fn look_around(&self, run: Run) {
        let Some(asked) = &self.asked else { return };
        let last = run.first.saturating_add(run.pages.saturating_sub(1));
        for window in run.first / LOOKED_AT..=last / LOOKED_AT {
            if lock(asked).insert(window) {
                let run = Run { first: window * LOOKED_AT, pages: LOOKED_AT };
                let bytes = NonZeroU64::new(run.bytes() as u64);
                // A hint: without it the pages come one by one.
                let _ = fadvise(&self.file, run.offset(), bytes, Advice::WillNeed);
            }
        }
    }

    /// Reads a run.
    pub(crate) fn read(&self, run: Run, bytes: &mut [u8]) -> Result<(), ServeError> {
        let count = read_up_to(&self.file, bytes, run.offset())
            .map_err(|error| ServeError::Read(run.first, error))?;
        if count == bytes.len() {
            return Ok(());
        }
        Err(ServeError::Ended(run.first + u32::try_from(count / PAGE).unwrap_or(0)))
    }
}
