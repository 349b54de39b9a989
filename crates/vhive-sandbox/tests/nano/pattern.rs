//! What the guest's checksums must be, worked out independently of it from what
//! `docs/design/nano-guest.md` says.

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
const WORDS: u64 = 512;

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The first `count` pages of the order of `seed` over `filled` pages.
pub(crate) fn touched(seed: u64, filled: u64, count: u64) -> Vec<u64> {
    let half = (64 - (filled - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1 << half) - 1;
    let shuffle = |at: u64| {
        let halves = (at >> half, at & mask);
        let (left, right) = (0..4_u64).fold(halves, |(left, right), round| {
            let key = seed.wrapping_add(round.wrapping_mul(STEP)) ^ right;
            (right, left ^ (mix(key) & mask))
        });
        (left << half) | right
    };
    let page = |at| {
        let mut page = shuffle(at);
        while page >= filled {
            page = shuffle(page);
        }
        page
    };
    (0..count).map(page).collect()
}

/// The checksum of these pages, in this order. `last` is what the last word of each is, unless
/// what the pattern says.
pub(crate) fn checksum(pages: &[u64], last: Option<u64>) -> u64 {
    let words = pages.iter().flat_map(|page| {
        (0..WORDS).map(move |word| {
            let pattern = mix(page + 1).wrapping_add(word.wrapping_mul(STEP));
            last.filter(|_| word == WORDS - 1).unwrap_or(pattern)
        })
    });
    words.fold(0xcbf2_9ce4_8422_2325, |sum, word| (sum ^ word).wrapping_mul(0x0100_0000_01b3))
}
