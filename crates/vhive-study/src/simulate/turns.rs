//! Starts of a node take turns, first come first served: as the node's semaphore of `start_threads`
//! permits lets them.

use std::collections::VecDeque;

/// A start: its function, and its slot there.
pub(super) type Start = (u32, u32);

/// The turns of all nodes. It holds one entry for each start that waits.
#[derive(Debug, Default)]
pub(super) struct Turns {
    each: u32,
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    taken: u32,
    waiting: VecDeque<Start>,
}

impl Turns {
    /// So many turns on each node; 0 = no start waits.
    pub(super) fn new(nodes: usize, each: u32) -> Self {
        Self { each, nodes: vec![Node::default(); if each == 0 { 0 } else { nodes }] }
    }

    /// Whether starts take turns at all.
    pub(super) fn limited(&self) -> bool {
        self.each > 0
    }

    /// A start asks for its turn. True if it has it; else it waits behind all others that do.
    pub(super) fn ask(&mut self, node: u32, start: Start) -> bool {
        let each = self.each;
        let Some(node) = self.node(node) else { return true };
        let free = node.taken < each;
        if free {
            node.taken += 1;
        } else {
            node.waiting.push_back(start);
        }
        free
    }

    /// A turn is given back. Returns whose it is now.
    pub(super) fn give_back(&mut self, node: u32) -> Option<Start> {
        let node = self.node(node)?;
        let next = node.waiting.pop_front();
        if next.is_none() {
            node.taken = node.taken.saturating_sub(1);
        }
        next
    }

    fn node(&mut self, node: u32) -> Option<&mut Node> {
        self.nodes.get_mut(usize::try_from(node).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn turns_go_round_in_the_order_of_asking(
            each in 1..5_u32,
            steps in prop::collection::vec((0..2_u32, any::<bool>()), 0..200),
        ) {
            let mut turns = Turns::new(2, each);
            // By node: whoever has a turn, and whoever waits.
            let (mut have, mut wait) = ([0_u32; 2], [const { VecDeque::new() }; 2]);
            for (nth, (node, asks)) in (0_u32..).zip(steps) {
                let at = usize::try_from(node).expect("0 or 1");
                if asks {
                    let has = turns.ask(node, (nth, node));
                    prop_assert_eq!(has, have[at] < each);
                    if has { have[at] += 1 } else { wait[at].push_back((nth, node)) }
                } else if have[at] > 0 {
                    let next = turns.give_back(node);
                    prop_assert_eq!(next, wait[at].pop_front());
                    if next.is_none() { have[at] -= 1 }
                }
                prop_assert!(have[at] <= each && (wait[at].is_empty() || have[at] == each));
            }
        }
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let mut turns = Turns::new(1000, 0);
        assert!(!turns.limited() && (0..100).all(|nth| turns.ask(7, (nth, 0))));
        assert_eq!(turns.give_back(7), None);
    }
}
