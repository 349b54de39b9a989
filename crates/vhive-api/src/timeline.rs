//! When the guest of a restored sandbox missed which page, as a record keeps it.

use serde::{Deserialize, Serialize};

/// One fault, written as `[us, page]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultAt(
    /// Microseconds since the memory was attached.
    pub u32,
    /// Number of the page in the snapshot's memory file, in pages of 4 KiB.
    pub u32,
);

/// The faults of one start from a snapshot, up to the reply of the invocation that waited for it.
///
/// The pager keeps at most 4096 and thins them evenly beyond, so that a long start is seen to its
/// end; how many there were is in
/// [`MemoryFigures::faults`](crate::MemoryFigures::faults).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultTimeline {
    /// When the memory was attached, from which the faults' times count: in microseconds after
    /// the invocation began (negative when the start was under way before this request joined
    /// it).
    pub attached_us: i64,
    /// Of every so many faults, the first one is here: 1 if all of them are.
    pub every: u32,
    /// Faults of pages that no prefetch was going to bring: without a working set, all of them.
    pub residual: Vec<FaultAt>,
    /// Faults of pages that prefetching was about to bring when the guest wanted them.
    pub awaited: Vec<FaultAt>,
}

impl FaultTimeline {
    /// Faults that are here.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.residual.len() + self.awaited.len()
    }

    /// Whether there was no fault.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there were more faults than are here.
    #[must_use]
    pub const fn is_thinned(&self) -> bool {
        self.every > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_a_pair() {
        let timeline = FaultTimeline {
            attached_us: 9_120,
            every: 1,
            residual: vec![FaultAt(3, 77), FaultAt(41, 5)],
            awaited: vec![FaultAt(9, 78)],
        };
        let json =
            r#"{"attached_us":9120,"every":1,"residual":[[3,77],[41,5]],"awaited":[[9,78]]}"#;
        assert_eq!(serde_json::to_string(&timeline).expect("serialises"), json);
        assert_eq!(serde_json::from_str::<FaultTimeline>(json).expect("parses"), timeline);
        assert_eq!((timeline.len(), timeline.is_thinned()), (3, false));
        assert!(serde_json::from_str::<FaultTimeline>(&json.replace("77", "-1")).is_err());
    }
}
