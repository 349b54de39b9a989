//! On which of several nodes an instance starts.
//!
//! A node of ours is one machine and places nothing; the simulator asks for many.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What is known of a node when an instance is placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeRoom {
    /// Memory that no instance has, in bytes.
    pub free: u64,
    /// Memory of instances that hold no request, in bytes: what could be evicted.
    pub idle: u64,
}

impl NodeRoom {
    const fn takes(self, need: u64, evict: bool) -> bool {
        let idle = if evict { self.idle } else { 0 };
        self.free.saturating_add(idle) >= need
    }
}

/// What is to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Memory of the instance in bytes.
    pub need: u64,
    /// Stands for its function.
    pub key: u64,
    /// Instances that were placed before.
    pub turn: u64,
    /// Whether idle instances may be evicted for it.
    pub evict: bool,
}

/// How a node is chosen. Each takes a node with free memory first, and one that would have to
/// evict only if there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// The first that has room: nodes fill one after the other.
    FirstFit,
    /// The one with the most free memory.
    LeastLoaded,
    /// The next one in turn.
    RoundRobin,
    /// The function's own one, else the next behind it: instances of a function stay together,
    /// where its snapshot is.
    ConsistentHash,
}

impl Placement {
    /// Every placement.
    pub const ALL: [Self; 4] =
        [Self::FirstFit, Self::LeastLoaded, Self::RoundRobin, Self::ConsistentHash];

    /// As written in plans and rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FirstFit => "first-fit",
            Self::LeastLoaded => "least-loaded",
            Self::RoundRobin => "round-robin",
            Self::ConsistentHash => "consistent-hash",
        }
    }

    /// Chooses a node, or none if no node has room.
    #[must_use]
    pub fn choose(self, nodes: &[NodeRoom], ask: Ask) -> Option<usize> {
        let Ask { need, key, turn, .. } = ask;
        let find = |evict: bool| match self {
            Self::FirstFit => nodes.iter().position(|node| node.takes(need, evict)),
            Self::LeastLoaded => {
                let fits = nodes.iter().enumerate().filter(|(_, node)| node.takes(need, evict));
                // Of equals the first.
                let most = fits.max_by_key(|(at, node)| (node.free, std::cmp::Reverse(*at)));
                most.map(|(at, _)| at)
            }
            Self::RoundRobin => from(nodes, remainder(turn, nodes.len()), need, evict),
            Self::ConsistentHash => from(nodes, jump(key, nodes.len()), need, evict),
        };
        find(false).or_else(|| if ask.evict { find(true) } else { None })
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Placement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        let found = Self::ALL.into_iter().find(|one| one.as_str() == text);
        found.ok_or_else(|| format!("unknown placement {text:?}; known: {}", known()))
    }
}

/// The first node from `begin` on, all round, that has room.
fn from(nodes: &[NodeRoom], begin: usize, need: u64, evict: bool) -> Option<usize> {
    let (before, after) = nodes.split_at_checked(begin)?;
    let fits = |node: &NodeRoom| node.takes(need, evict);
    let behind = after.iter().position(fits).map(|at| at + begin);
    behind.or_else(|| before.iter().position(fits))
}

fn remainder(turn: u64, nodes: usize) -> usize {
    usize::try_from(turn.checked_rem(nodes as u64).unwrap_or(0)).unwrap_or(0)
}

/// The bucket of a key such that few keys move when buckets are added.
///
/// # Source
/// Lamping and Veach, "A Fast, Minimal Memory, Consistent Hash Algorithm", 2014.
fn jump(key: u64, buckets: usize) -> usize {
    let (mut key, buckets) = (key, buckets as u64);
    let (mut bucket, mut next) = (0_u64, 0_u64);
    while next < buckets {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let step = (1_u64 << 31) as f64 / ((key >> 33) + 1) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates"
        )]
        let jumped = ((bucket + 1) as f64 * step) as u64;
        next = jumped.max(bucket + 1);
    }
    usize::try_from(bucket).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(need: u64, key: u64, turn: u64) -> Ask {
        Ask { need, key, turn, evict: true }
    }

    fn nodes(rooms: &[(u64, u64)]) -> Vec<NodeRoom> {
        rooms.iter().map(|(free, idle)| NodeRoom { free: *free, idle: *idle }).collect()
    }

    #[test]
    fn each_placement_chooses_as_it_says() {
        use Placement::{ConsistentHash, FirstFit, LeastLoaded, RoundRobin};
        let three = nodes(&[(1, 9), (5, 0), (7, 0)]);
        for (placement, need, turn, chosen) in [
            (FirstFit, 1, 0, Some(0)),
            (FirstFit, 2, 0, Some(1)),
            // Free memory first, though the first node could evict.
            (FirstFit, 6, 0, Some(2)),
            (FirstFit, 8, 0, Some(0)),
            (FirstFit, 11, 0, None),
            (LeastLoaded, 1, 0, Some(2)),
            (LeastLoaded, 10, 0, Some(0)),
            (RoundRobin, 1, 0, Some(0)),
            (RoundRobin, 1, 4, Some(1)),
            (RoundRobin, 6, 0, Some(2)),
            (RoundRobin, 5, 5, Some(2)),
            (RoundRobin, 1, 3, Some(0)),
        ] {
            let got = placement.choose(&three, ask(need, 7, turn));
            assert_eq!(got, chosen, "{placement} {need} {turn}");
        }
        let home = ConsistentHash.choose(&three, ask(1, 7, 0));
        assert_eq!(ConsistentHash.choose(&three, ask(1, 7, 99)), home, "whatever came before");
        assert_eq!(ConsistentHash.choose(&[], ask(1, 7, 0)), None);
        let gently = Ask { evict: false, ..ask(8, 7, 0) };
        assert_eq!(FirstFit.choose(&three, gently), None, "nothing is evicted for it");
        for placement in Placement::ALL {
            assert_eq!(placement.as_str().parse(), Ok(placement));
        }
    }

    #[test]
    fn a_node_more_moves_few_functions_and_none_between_old_nodes() {
        let mut moved = 0;
        for key in 0..10_000_u64 {
            let (before, after) = (jump(key, 10), jump(key, 11));
            assert!(before == after || after == 10);
            moved += u32::from(before != after);
        }
        assert!((700..1100).contains(&moved), "a share of 1/11: {moved}");
    }

    proptest! {
        #[test]
        fn what_is_chosen_has_room_and_what_has_room_is_found(
            rooms in prop::collection::vec((0..20_u64, 0..20_u64), 0..12),
            need in 0..40_u64,
            key: u64,
            turn: u64,
            which in 0_usize..4,
        ) {
            let nodes = nodes(&rooms);
            let chosen = Placement::ALL[which].choose(&nodes, ask(need, key, turn));
            prop_assert_eq!(chosen.is_some(), nodes.iter().any(|node| node.takes(need, true)));
            if let Some(at) = chosen {
                prop_assert!(nodes[at].takes(need, true));
                let free = nodes.iter().any(|node| node.takes(need, false));
                prop_assert!(!free || nodes[at].takes(need, false), "evicts without need");
            }
        }
    }
}
