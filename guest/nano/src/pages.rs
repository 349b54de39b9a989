//! What is done with memory: pages are filled with a pattern that follows from their number, and
//! touched in an order that follows from a seed, so that anybody can tell what the checksum must be.
//!
//! - Word `i` of page `p` is `mix(p + 1) + i * STEP`, all 64-bit and wrapping.
//! - The order of seed `s` over `n` pages is a Feistel network of four rounds, each
//!   `(l, r) → (r, l ^ (mix(s + round * STEP ^ r) & mask))`, on the least even number of bits that
//!   hold `n - 1`; a result that is no page is put in again.
//! - The checksum is FNV-1a over 64-bit words instead of bytes.

/// Words of 8 bytes in a page.
pub const WORDS: usize = 512;

/// An odd number without pattern: 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// FNV-1a's constants for 64 bits.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// Pages that a job gets through before others have their turn.
const SLICE: u64 = 64;

/// The finalizer of `SplitMix64`.
#[must_use]
pub const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Memory to work on.
pub trait Area {
    /// How many pages there are.
    fn pages(&self) -> u64;
    /// The physical address of the first.
    fn begin(&self) -> u64;
    /// A page's words; none if there is no such page.
    fn page(&mut self, number: u64) -> Option<&mut [u64; WORDS]>;
}

/// An order of pages: a permutation of `0..pages`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    seed: u64,
    pages: u64,
    /// Half of the bits that hold a page's number.
    half: u32,
}

impl Order {
    /// The order of `seed` over so many pages.
    #[must_use]
    pub const fn new(seed: u64, pages: u64) -> Self {
        let bits = 64 - pages.saturating_sub(1).leading_zeros();
        let half = bits.div_ceil(2);
        Self { seed, pages, half: if half == 0 { 1 } else { half } }
    }

    /// The page at a place; `at` must be less than the number of pages.
    #[must_use]
    pub const fn page(&self, at: u64) -> u64 {
        let mut page = self.shuffle(at);
        // It ends: the network is a permutation, and `at` lies on a cycle with itself.
        while page >= self.pages {
            page = self.shuffle(page);
        }
        page
    }

    const fn shuffle(&self, at: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = ((at >> self.half) & mask, at & mask);
        let mut round: u64 = 0;
        while round < 4 {
            let key = self.seed.wrapping_add(round.wrapping_mul(STEP));
            (left, right) = (right, left ^ (mix(key ^ right) & mask));
            round += 1;
        }
        (left << self.half) | right
    }
}

/// Work in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Filling pages.
    Fill {
        /// The next one.
        next: u64,
        /// How many in all.
        pages: u64,
    },
    /// Touching pages.
    Touch {
        /// In which order.
        order: Order,
        /// The place of the next one.
        next: u64,
        /// How many in all.
        pages: u64,
        /// Whether each page's last word becomes the seed after it has been read.
        write: bool,
        /// Of what has been read so far.
        checksum: u64,
    },
}

impl Job {
    /// Filling pages.
    #[must_use]
    pub const fn fill(pages: u64) -> Self {
        Self::Fill { next: 0, pages }
    }

    /// Touching the first `pages` of the order of `seed` over the `filled` ones.
    #[must_use]
    pub const fn touch((seed, filled): (u64, u64), pages: u64, write: bool) -> Self {
        let order = Order::new(seed, filled);
        Self::Touch { order, next: 0, pages, write, checksum: FNV_BASIS }
    }

    /// Does a part of it; says whether it is done.
    pub fn go_on(&mut self, area: &mut impl Area) -> bool {
        match self {
            Self::Fill { next, pages } => {
                let end = (*pages).min(*next + SLICE);
                for number in *next..end {
                    if let Some(page) = area.page(number) {
                        fill(page, number);
                    }
                }
                *next = end;
                end == *pages
            }
            Self::Touch { order, next, pages, write, checksum } => {
                let end = (*pages).min(*next + SLICE);
                for at in *next..end {
                    let Some(page) = area.page(order.page(at)) else { continue };
                    *checksum = read(page, *checksum);
                    if *write {
                        page[WORDS - 1] = order.seed;
                    }
                }
                *next = end;
                end == *pages
            }
        }
    }
}

// Four words at a time, in both: where a processor is emulated one instruction costs a microsecond
// and more, and half of them would be the loop's.

fn fill(page: &mut [u64; WORDS], number: u64) {
    let mut word = mix(number.wrapping_add(1));
    let mut next = || {
        let this = word;
        word = word.wrapping_add(STEP);
        this
    };
    for [a, b, c, d] in page.as_chunks_mut::<4>().0 {
        (*a, *b, *c, *d) = (next(), next(), next(), next());
    }
}

fn read(page: &[u64; WORDS], checksum: u64) -> u64 {
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(FNV_PRIME);
    let four = |sum, [a, b, c, d]: &[u64; 4]| step(step(step(step(sum, *a), *b), *c), *d);
    page.as_chunks::<4>().0.iter().fold(checksum, four)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) struct Memory(pub(crate) Vec<[u64; WORDS]>);

    impl Area for Memory {
        fn pages(&self) -> u64 {
            self.0.len() as u64
        }

        fn begin(&self) -> u64 {
            0
        }

        fn page(&mut self, number: u64) -> Option<&mut [u64; WORDS]> {
            self.0.get_mut(usize::try_from(number).unwrap())
        }
    }

    fn run(mut job: Job, memory: &mut Memory) -> Job {
        while !job.go_on(memory) {}
        job
    }

    fn touched(memory: &mut Memory, seed: u64, pages: u64, write: bool) -> u64 {
        let job = Job::touch((seed, memory.pages()), pages, write);
        let Job::Touch { checksum, .. } = run(job, memory) else { panic!("another job") };
        checksum
    }

    #[test]
    fn a_checksum_is_that_of_the_pattern_in_its_order() {
        let mut memory = Memory(vec![[0; WORDS]; 200]);
        run(Job::fill(200), &mut memory);
        assert_eq!(memory.0[7][3], mix(8).wrapping_add(STEP.wrapping_mul(3)));
        let first = touched(&mut memory, 1, 150, false);
        assert_eq!(touched(&mut memory, 1, 150, false), first);
        assert_ne!(touched(&mut memory, 2, 150, false), first);
        assert_ne!(touched(&mut memory, 1, 149, false), first);
        let expected = (0..150).fold(FNV_BASIS, |sum, at| {
            read(&memory.0[usize::try_from(Order::new(1, 200).page(at)).unwrap()], sum)
        });
        assert_eq!(first, expected);
    }

    #[test]
    fn writing_shows_the_next_time() {
        let mut memory = Memory(vec![[0; WORDS]; 70]);
        run(Job::fill(70), &mut memory);
        let clean = touched(&mut memory, 5, 70, false);
        assert_eq!(touched(&mut memory, 5, 70, true), clean);
        assert!(memory.0.iter().all(|page| page[WORDS - 1] == 5));
        assert_ne!(touched(&mut memory, 5, 70, false), clean);
        assert_eq!(touched(&mut memory, 5, 0, false), FNV_BASIS);
    }

    #[test]
    fn an_order_is_a_permutation() {
        let sizes = (1..70).chain([127, 128, 129, 255, 256, 257, 1000, 1024, 1025, 2999]);
        for (seed, pages) in
            sizes.flat_map(|pages| [0, 1, mix(pages), u64::MAX].map(|s| (s, pages)))
        {
            let order = Order::new(seed, pages);
            let mut seen = vec![false; usize::try_from(pages).unwrap()];
            for at in 0..pages {
                let page = usize::try_from(order.page(at)).unwrap();
                assert!(!std::mem::replace(&mut seen[page], true), "{seed} over {pages}");
            }
        }
    }
}
