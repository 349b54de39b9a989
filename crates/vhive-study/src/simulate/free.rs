//! Instances with a free slot, in the order in which the pool lends them.

use std::collections::BTreeSet;

/// No instance.
const GONE: u32 = u32::MAX;
/// Bits of a word.
const WORD: usize = 64;

/// Ready instances with a free slot: the least loaded first, of equals the oldest.
///
/// Where an instance holds one request at a time, all of them are idle, and only their age counts:
/// a bit for each, in the order of their age.
#[derive(Debug)]
pub(super) enum Free {
    /// Instances that hold one request.
    One(Ages),
    /// Leases, number, slot.
    Many(BTreeSet<(u32, u32, u32)>),
}

/// An instance of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) slot: u32,
    /// Its number; the greater, the younger.
    pub(super) no: u32,
    pub(super) leases: u32,
}

impl Free {
    pub(super) fn new(concurrency: u32) -> Self {
        if concurrency == 1 { Self::One(Ages::default()) } else { Self::Many(BTreeSet::new()) }
    }

    /// An instance is there; it is younger than all others.
    pub(super) fn begin(&mut self, slot: u32) {
        if let Self::One(ages) = self {
            ages.begin(slot);
        }
    }

    /// It is gone.
    pub(super) fn end(&mut self, slot: u32) {
        if let Self::One(ages) = self {
            ages.end(slot);
        }
    }

    pub(super) fn insert(&mut self, of: Member) {
        match self {
            Self::One(ages) => ages.set(of.slot, true),
            Self::Many(all) => {
                all.insert((of.leases, of.no, of.slot));
            }
        }
    }

    pub(super) fn remove(&mut self, of: Member) {
        match self {
            Self::One(ages) => ages.set(of.slot, false),
            Self::Many(all) => {
                all.remove(&(of.leases, of.no, of.slot));
            }
        }
    }

    /// Whose slot is lent next.
    pub(super) fn first(&self) -> Option<u32> {
        match self {
            Self::One(ages) => ages.first(),
            Self::Many(all) => all.first().map(|(_, _, slot)| *slot),
        }
    }

    /// The youngest of those that hold no request.
    pub(super) fn youngest_idle(&self) -> Option<u32> {
        match self {
            Self::One(ages) => ages.last(),
            Self::Many(all) => all.range(..(1, 0, 0)).next_back().map(|(_, _, slot)| *slot),
        }
    }
}

/// A set of instances in the order of their age.
#[derive(Debug, Default)]
pub(super) struct Ages {
    /// By slot: its place in the order.
    places: Vec<u32>,
    /// By place: its slot, or [`GONE`].
    slots: Vec<u32>,
    living: usize,
    /// By place: whether it is in the set; and which of these words are not zero.
    words: Vec<u64>,
    summary: Vec<u64>,
}

impl Ages {
    fn begin(&mut self, slot: u32) {
        if self.slots.len() > 2 * self.living + WORD {
            self.tidy();
        }
        let at = index(slot);
        if self.places.len() <= at {
            self.places.resize(at + 1, GONE);
        }
        self.places[at] = number(self.slots.len());
        self.slots.push(slot);
        self.living += 1;
        self.fit();
    }

    fn end(&mut self, slot: u32) {
        self.set(slot, false);
        let place = index(self.places[index(slot)]);
        self.slots[place] = GONE;
        self.living -= 1;
    }

    fn set(&mut self, slot: u32, there: bool) {
        let place = index(self.places[index(slot)]);
        let (word, bit) = (place / WORD, 1 << (place % WORD));
        let (above, mark) = (word / WORD, 1 << (word % WORD));
        if there {
            self.words[word] |= bit;
            self.summary[above] |= mark;
        } else {
            self.words[word] &= !bit;
            if self.words[word] == 0 {
                self.summary[above] &= !mark;
            }
        }
    }

    fn first(&self) -> Option<u32> {
        let above = self.summary.iter().position(|word| *word != 0)?;
        let word = above * WORD + low(self.summary[above]);
        Some(self.slots[word * WORD + low(self.words[word])])
    }

    fn last(&self) -> Option<u32> {
        let above = self.summary.iter().rposition(|word| *word != 0)?;
        let word = above * WORD + high(self.summary[above]);
        Some(self.slots[word * WORD + high(self.words[word])])
    }

    fn fit(&mut self) {
        let words = self.slots.len().div_ceil(WORD);
        self.words.resize(words, 0);
        self.summary.resize(words.div_ceil(WORD), 0);
    }

    /// Closes the gaps that those left that are gone.
    fn tidy(&mut self) {
        let before = std::mem::take(&mut self.slots);
        let words = std::mem::take(&mut self.words);
        self.summary.clear();
        for (place, slot) in before.iter().copied().enumerate().filter(|(_, slot)| *slot != GONE) {
            self.places[index(slot)] = number(self.slots.len());
            self.slots.push(slot);
            self.fit();
            if words[place / WORD] >> (place % WORD) & 1 == 1 {
                self.set(slot, true);
            }
        }
    }
}

fn low(word: u64) -> usize {
    index(word.trailing_zeros())
}

fn high(word: u64) -> usize {
    index(63 - word.leading_zeros())
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(GONE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bit_for_each_is_the_ordered_set(steps in prop::collection::vec((0..4_u8, 0..40_u32), 1..800)) {
            let (mut bits, mut set) = (Free::new(1), Free::new(2));
            // By slot: the instance's number.
            let (mut living, mut vacant, mut next) = (Vec::<Option<u32>>::new(), Vec::new(), 0);
            for (what, which) in steps {
                let there: Vec<u32> = (0..)
                    .zip(&living)
                    .filter_map(|(slot, no)| no.map(|_: u32| slot))
                    .collect();
                let chosen = there.get(index(which) % there.len().max(1)).copied();
                if what == 0 {
                    let slot = vacant.pop().unwrap_or_else(|| {
                        living.push(None);
                        number(living.len() - 1)
                    });
                    living[index(slot)] = Some(next);
                    next += 1;
                    bits.begin(slot);
                    set.begin(slot);
                } else if let Some(slot) = chosen {
                    let of = Member { slot, no: living[index(slot)].expect("there"), leases: 0 };
                    if what == 1 {
                        bits.insert(of);
                        set.insert(of);
                    } else {
                        bits.remove(of);
                        set.remove(of);
                    }
                    if what == 3 {
                        bits.end(slot);
                        set.end(slot);
                        living[index(slot)] = None;
                        vacant.push(slot);
                    }
                }
                prop_assert_eq!(bits.first(), set.first());
                prop_assert_eq!(bits.youngest_idle(), set.youngest_idle());
            }
        }
    }
}
