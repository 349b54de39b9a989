//! Page numbers and sets of them. A page number counts 4 KiB pages of the *memory file*, from its start.

use crate::sys::PAGE;

/// A 4 KiB page of the memory file, counted from the file's start.
pub type PageNumber = u32;

/// The most pages that a memory file may have: what a [`PageNumber`] counts (16 TiB).
pub const MOST_PAGES: u64 = u32::MAX as u64;

/// A run of neighbouring pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// The first page.
    pub first: PageNumber,
    /// How many.
    pub pages: u32,
}

impl Run {
    /// The page after the last.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.first as u64 + self.pages as u64
    }

    /// Whether the page is in it.
    #[must_use]
    pub const fn holds(self, page: PageNumber) -> bool {
        self.first <= page && (page as u64) < self.end()
    }

    /// Where its bytes begin in the memory file.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.first as u64 * PAGE as u64
    }

    /// How many bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.pages as usize * PAGE
    }

    /// Each page of it.
    pub fn iter(self) -> impl Iterator<Item = PageNumber> {
        self.first..self.first.saturating_add(self.pages)
    }
}

/// A set of pages below a bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    count: u32,
}

impl PageSet {
    /// An empty set of pages below `pages`.
    #[must_use]
    pub fn below(pages: u32) -> Self {
        Self { words: vec![0; (pages as usize).div_ceil(64)], count: 0 }
    }

    /// How many pages are in it.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether none is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether the page is in it; what lies beyond the bound is not.
    #[must_use]
    pub fn holds(&self, page: PageNumber) -> bool {
        self.words.get(page as usize / 64).is_some_and(|word| word & bit(page) != 0)
    }

    /// Adds the page; false if it was there already, or lies beyond the bound.
    pub fn insert(&mut self, page: PageNumber) -> bool {
        let Some(word) = self.words.get_mut(page as usize / 64) else { return false };
        let is_new = *word & bit(page) == 0;
        *word |= bit(page);
        self.count += u32::from(is_new);
        is_new
    }

    /// Removes the page; whether it was there.
    pub fn remove(&mut self, page: PageNumber) -> bool {
        let Some(word) = self.words.get_mut(page as usize / 64) else { return false };
        let was_there = *word & bit(page) != 0;
        *word &= !bit(page);
        self.count -= u32::from(was_there);
        was_there
    }

    /// Its pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PageNumber> {
        self.words.iter().zip(0u32..).flat_map(|(&word, index)| {
            let base = index * 64;
            (0..64).filter(move |b| word & (1 << b) != 0).map(move |b| base + b)
        })
    }

    /// Its pages in ascending order, as runs; a gap of up to `gap` pages does not end a run.
    #[must_use]
    pub fn runs(&self, gap: u32) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for page in self.iter() {
            match runs.last_mut() {
                Some(run) if u64::from(page) <= run.end() + u64::from(gap) => {
                    run.pages = page - run.first + 1;
                }
                _ => runs.push(Run { first: page, pages: 1 }),
            }
        }
        runs
    }
}

const fn bit(page: PageNumber) -> u64 {
    1 << (page % 64)
}

/// Whether every byte is zero.
#[must_use]
pub fn all_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |sum, byte| sum | byte) == 0)
}

/// Cuts `run`, whose bytes are `bytes`, into runs that are wholly zero or wholly not.
pub(crate) fn by_content(run: Run, bytes: &[u8]) -> Vec<(Run, bool)> {
    let mut parts: Vec<(Run, bool)> = Vec::new();
    for (page, content) in run.iter().zip(bytes.chunks(PAGE)) {
        let zero = all_zero(content);
        match parts.last_mut() {
            Some((last, is_zero)) if *is_zero == zero => last.pages += 1,
            _ => parts.push((Run { first: page, pages: 1 }, zero)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_page_set_is_a_set(pages in proptest::collection::vec(0u32..300, 0..200), gone in 0u32..300) {
            let mut set = PageSet::below(300);
            let mut model = BTreeSet::new();
            for page in pages {
                prop_assert_eq!(set.insert(page), model.insert(page));
            }
            prop_assert_eq!(set.remove(gone), model.remove(&gone));
            prop_assert_eq!(set.len() as usize, model.len());
            prop_assert!(set.iter().eq(model.iter().copied()));
            prop_assert_eq!(set.holds(gone), false);
            let pages: Vec<u32> = set.runs(0).into_iter().flat_map(Run::iter).collect();
            prop_assert!(pages.into_iter().eq(set.iter()));
        }

        #[test]
        fn runs_cover_the_set_and_bridge_only_small_gaps(
            pages in proptest::collection::btree_set(0u32..500, 0..100), gap in 0u32..4,
        ) {
            let mut set = PageSet::below(500);
            for page in &pages {
                set.insert(*page);
            }
            let runs = set.runs(gap);
            for run in &runs {
                prop_assert!(pages.contains(&run.first));
                let held: Vec<u32> = run.iter().filter(|page| pages.contains(page)).collect();
                prop_assert!(held.windows(2).all(|pair| pair[1] - pair[0] <= gap + 1));
            }
            prop_assert!(runs.windows(2).all(|w| u64::from(w[1].first) > w[0].end() + u64::from(gap)));
            prop_assert!(pages.iter().all(|p| runs.iter().any(|r| r.iter().any(|q| q == *p))));
        }
    }

    #[test]
    fn what_lies_beyond_the_bound_is_in_no_set() {
        let mut set = PageSet::below(64);
        assert!(!set.insert(64));
        assert!(!set.holds(u32::MAX));
        assert!(!set.remove(64));
        assert!(set.is_empty());
    }

    #[test]
    fn pages_are_told_apart_by_content() {
        let mut bytes = vec![0; 4 * PAGE];
        bytes[2 * PAGE - 1] = 1;
        let parts = by_content(Run { first: 7, pages: 4 }, &bytes);
        let expected = [
            (Run { first: 7, pages: 1 }, true),
            (Run { first: 8, pages: 1 }, false),
            (Run { first: 9, pages: 2 }, true),
        ];
        assert_eq!(parts, expected);
    }
}
