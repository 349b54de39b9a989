//! What will happen, the earliest first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::cell::{Event, Ns};

/// Bits of a slot, and of what happens in it.
const SLOT: u32 = 32;
const KIND: u32 = 3;

/// Things that will happen to functions. Of those at the same time the function with the lower
/// number is first, of one function's the order is that of [`Event`].
///
/// An entry is one number, such that the heap compares nothing else.
#[derive(Debug, Default)]
pub(super) struct Events(BinaryHeap<Reverse<u128>>);

impl Events {
    pub(super) fn push(&mut self, at: Ns, cell: u32, event: Event) {
        let (kind, slot) = match event {
            Event::Done(slot) => (0, slot),
            Event::Yields(slot) => (1, slot),
            Event::Ready(slot) => (2, slot),
            Event::Asks(slot) => (3, slot),
            Event::Look => (4, 0),
        };
        let low = (u64::from(cell) << KIND | kind) << SLOT | u64::from(slot);
        self.0.push(Reverse(u128::from(at) << 64 | u128::from(low)));
    }

    /// When the first one is.
    pub(super) fn first(&self) -> Option<Ns> {
        self.0.peek().map(|Reverse(first)| high(*first))
    }

    pub(super) fn pop(&mut self) -> Option<(Ns, u32, Event)> {
        let Reverse(first) = self.0.pop()?;
        let low = low(first);
        let slot = half(low);
        let event = match low >> SLOT & 7 {
            0 => Event::Done(slot),
            1 => Event::Yields(slot),
            2 => Event::Ready(slot),
            3 => Event::Asks(slot),
            _ => Event::Look,
        };
        Some((high(first), half(low >> (SLOT + KIND)), event))
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

fn high(both: u128) -> u64 {
    (both >> 64) as u64
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
fn low(both: u128) -> u64 {
    both as u64
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
fn half(both: u64) -> u32 {
    both as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            any::<u32>().prop_map(Event::Done),
            any::<u32>().prop_map(Event::Ready),
            any::<u32>().prop_map(Event::Asks),
            any::<u32>().prop_map(Event::Yields),
            Just(Event::Look),
        ]
    }

    proptest! {
        #[test]
        fn what_happens_comes_in_order(
            all in prop::collection::vec((0..5_u64, 0..1_u32 << 29, event()), 0..60),
        ) {
            let mut events = Events::default();
            for (at, cell, event) in &all {
                events.push(*at, *cell, *event);
            }
            let mut sorted = all;
            sorted.sort_unstable();
            let mut got = Vec::new();
            while let Some(first) = events.first() {
                let one = events.pop().expect("there is a first one");
                assert_eq!(one.0, first);
                got.push(one);
            }
            prop_assert_eq!(got, sorted);
        }
    }
}
