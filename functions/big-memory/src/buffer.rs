//! The buffer, and which of its pages a request touches.
//!
//! ```text
//! buffer  |<──────── stable ────────>|<───────────── rest ──────────────>|
//! request |########## all ###########|        |### varying ###|          |
//!                                             └ begins where the seed says
//! ```

use std::hint::black_box;

/// Words of a page: 4096 bytes.
const PAGE_WORDS: usize = 512;
const PAGES_PER_MIB: u64 = 256;

/// Memory in which word `i` holds `word(i)`; no page is zero and no two are alike.
pub(crate) struct Buffer(Vec<u64>);

impl Buffer {
    /// Fills a buffer; `None` if there is no such memory or `mib` is 0.
    pub(crate) fn new(mib: u64) -> Option<Self> {
        let words = usize::try_from(mib.checked_mul(1 << 17)?).ok()?;
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(words).ok()?;
        buffer.extend((0..words as u64).map(word));
        (words > 0).then_some(Self(buffer))
    }

    pub(crate) fn mib(&self) -> u64 {
        self.0.len() as u64 >> 17
    }

    /// Reads one word of each page.
    pub(crate) fn read(&self, touch: &Touch) -> u64 {
        touch.words().fold(0, |sum, index| next(sum, self.0[index]))
    }

    /// Reads one word of each page and writes it back.
    pub(crate) fn read_and_write(&mut self, touch: &Touch) -> u64 {
        touch.words().fold(0, |sum, index| {
            let word = &mut self.0[index];
            *word = black_box(*word);
            next(sum, *word)
        })
    }
}

/// The `i`-th word of the buffer.
///
/// # Source
/// SplitMix64 (Steele, Lea, Flood, 2014), whose `i`-th output needs no state.
fn word(i: u64) -> u64 {
    let z = i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn next(sum: u64, word: u64) -> u64 {
    sum.rotate_left(5) ^ word
}

/// The pages of one request, as page numbers within the buffer.
pub(crate) struct Touch {
    stable: u64,
    varying: u64,
    begin: u64,
    word: usize,
}

impl Touch {
    /// `mib` must be within the buffer and `varying_percent` at most 100.
    pub(crate) fn new(buffer: &Buffer, mib: u64, seed: u64, varying_percent: u64) -> Self {
        let pages = mib * PAGES_PER_MIB;
        let varying = pages * varying_percent / 100;
        let stable = pages - varying;
        let places = buffer.mib() * PAGES_PER_MIB - pages + 1;
        // The lower half of a page only: the allocator's header shifts the buffer by some words.
        let word = usize::try_from(seed % 256).expect("it is below 256");
        Self { stable, varying, begin: stable + word_of(seed) % places, word }
    }

    /// Pages touched.
    pub(crate) fn pages(&self) -> u64 {
        self.stable + self.varying
    }

    /// Those of them that lie elsewhere for another seed.
    pub(crate) fn varying_pages(&self) -> u64 {
        self.varying
    }

    fn words(&self) -> impl Iterator<Item = usize> {
        let pages = (0..self.stable).chain(self.begin..self.begin + self.varying);
        let word = self.word;
        pages.map(move |page| {
            usize::try_from(page).expect("it is within the buffer") * PAGE_WORDS + word
        })
    }
}

/// Spreads seeds that differ by little.
fn word_of(seed: u64) -> u64 {
    word(seed.wrapping_mul(2) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn words_are_those_of_the_published_generator() {
        // The first outputs for the state 0.
        assert_eq!(word(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(word(1), 0x6E78_9E6A_A1B9_65F4);
    }

    #[test]
    fn every_stated_page_is_touched_once_and_lies_within() {
        let buffer = Buffer::new(4).expect("4 MiB are there");
        for (mib, percent) in [(1, 0), (3, 10), (4, 3), (4, 100), (1, 100)] {
            for seed in [0, 1, u64::MAX] {
                let touch = Touch::new(&buffer, mib, seed, percent);
                let pages: HashSet<usize> = touch.words().map(|i| i / PAGE_WORDS).collect();
                assert_eq!(pages.len() as u64, mib * PAGES_PER_MIB);
                assert!(pages.iter().all(|page| *page < 1024));
            }
        }
    }

    #[test]
    fn writing_changes_nothing() {
        let mut buffer = Buffer::new(2).expect("2 MiB are there");
        let touch = Touch::new(&buffer, 1, 7, 50);
        let sum = buffer.read(&touch);
        assert_eq!(buffer.read_and_write(&touch), sum);
        assert_eq!(buffer.read(&touch), sum);
        assert_ne!(buffer.read(&Touch::new(&buffer, 1, 8, 50)), sum);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Buffer::new(0).is_none());
        assert!(Buffer::new(u64::MAX).is_none());
        assert!(Buffer::new(1 << 40).is_none());
    }
}
