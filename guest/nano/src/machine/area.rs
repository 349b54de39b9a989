//! The memory that is worked on: all RAM behind the image.

use core::ops::Range;
use core::ptr;

use nano::pages::{Area, WORDS};

const PAGE: u64 = 4096;

unsafe extern "C" {
    /// Set by the linker: the image's end.
    #[link_name = "nano_end"]
    static END: u8;
}

/// First address behind the image, at a page's boundary.
pub(crate) fn image_end() -> u64 {
    (&raw const END).expose_provenance() as u64
}

/// All RAM behind the image.
#[derive(Debug)]
pub(crate) struct Ram {
    begin: u64,
    pages: u64,
}

impl Ram {
    /// That of a range that holds the image's end.
    ///
    /// # Safety
    /// The range must be mapped RAM, and nobody else may use what lies behind the image.
    pub(crate) unsafe fn new(range: &Range<u64>) -> Self {
        let begin = image_end();
        Self { begin, pages: range.end.saturating_sub(begin) / PAGE }
    }
}

impl Area for Ram {
    fn pages(&self) -> u64 {
        self.pages
    }

    fn begin(&self) -> u64 {
        self.begin
    }

    fn page(&mut self, number: u64) -> Option<&mut [u64; WORDS]> {
        if number >= self.pages {
            return None;
        }
        let address = usize::try_from(self.begin + number * PAGE).ok()?;
        let page = ptr::with_exposed_provenance_mut::<[u64; WORDS]>(address);
        // SAFETY: `new`'s promise; it lies in the range, is aligned, and the borrow of `self`
        // keeps a second reference away.
        unsafe { page.as_mut() }
    }
}
