//! How a cold instance starts: the only decision about it in the whole system.

use vhive_api::{MemoryMode, PrefetchPolicy, SnapshotPolicy};

/// How a cold instance starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From the image.
    Boot,
    /// From a snapshot, its memory arriving so.
    Restore(MemoryMode),
}

/// What counts about a snapshot that could be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Working sets that have been recorded.
    pub working_sets: u32,
    /// The last start by prefetching missed too many pages.
    pub missed: bool,
    /// Starts by prefetching that have missed too many since the last recording.
    pub misses: u32,
}

/// Recordings of one snapshot: a function that touches other pages each time is not recorded for
/// ever.
const MOST_RECORDINGS: u32 = 4;

/// Starts that miss too much after the last of these recordings, after which they are all given up and
/// recorded afresh: a set only grows, and what the function does now may have nothing to do with its first
/// inputs. Of so many starts, four record.
const MISSES_BEFORE_ANEW: u32 = 50;

impl Facts {
    fn prefetches(self) -> bool {
        self.working_sets > 0 && !(self.missed && self.working_sets < MOST_RECORDINGS)
    }

    /// Whether all recordings are to be given up, so that the next start records as the first one did.
    #[must_use]
    pub const fn begins_anew(self) -> bool {
        self.working_sets >= MOST_RECORDINGS && self.misses >= MISSES_BEFORE_ANEW
    }
}

/// Chooses. `can` are the memory modes that the runtime offers, none if it restores nothing.
///
/// | policy | start |
/// |---|---|
/// | `off`, or no snapshot | boot |
/// | `vanilla` | `File` |
/// | `lazy` | `Lazy` |
/// | `reap` | `Prefetch` with a working set, else `Record`; also `Record` if prefetching missed too much |
/// | `reap`, `fault-around` | `Prefetch`, which needs no working set |
/// | `reap`, `mincore` | `Prefetch` with a working set, else `File`, which is recorded off the page cache |
/// | not offered | `File`, else boot |
#[must_use]
pub fn choose(
    policy: SnapshotPolicy,
    prefetch: PrefetchPolicy,
    snapshot: Option<Facts>,
    can: &[MemoryMode],
) -> Start {
    let Some(facts) = snapshot else { return Start::Boot };
    let wanted = match (policy, prefetch) {
        (SnapshotPolicy::Off, _) => return Start::Boot,
        (SnapshotPolicy::Vanilla, _) => MemoryMode::File,
        (SnapshotPolicy::Lazy, _) => MemoryMode::Lazy,
        (SnapshotPolicy::Reap, PrefetchPolicy::FaultAround) => MemoryMode::Prefetch,
        (SnapshotPolicy::Reap, _) if facts.prefetches() => MemoryMode::Prefetch,
        (SnapshotPolicy::Reap, PrefetchPolicy::Mincore) => MemoryMode::File,
        (SnapshotPolicy::Reap, PrefetchPolicy::ReapSerial | PrefetchPolicy::ReapPipelined) => {
            MemoryMode::Record
        }
    };
    let offered = [wanted, MemoryMode::File].into_iter().find(|mode| can.contains(mode));
    offered.map_or(Start::Boot, Start::Restore)
}

/// Whether a start in this mode, chosen of those that the runtime `can`, ends in a new working set. One that
/// nothing here could prefetch is not made: with each it would cost the page cache and space on the disk.
#[must_use]
pub fn records(
    policy: SnapshotPolicy,
    prefetch: PrefetchPolicy,
    mode: MemoryMode,
    can: &[MemoryMode],
) -> bool {
    match mode {
        MemoryMode::Record => true,
        MemoryMode::File => {
            let wants = policy == SnapshotPolicy::Reap && prefetch == PrefetchPolicy::Mincore;
            wants && can.contains(&MemoryMode::Prefetch)
        }
        MemoryMode::Lazy | MemoryMode::Prefetch => false,
    }
}

/// Whether a start by prefetching left more faults of pages that its working set does not have than
/// `percent` of those that it has.
#[must_use]
pub fn missed(faults: u64, set_pages: u64, percent: u32) -> bool {
    set_pages > 0 && faults.saturating_mul(100) > set_pages.saturating_mul(percent.into())
}

#[cfg(test)]
mod tests {
    use MemoryMode::{File, Lazy, Prefetch, Record};
    use PrefetchPolicy::{FaultAround, Mincore, ReapPipelined, ReapSerial};
    use SnapshotPolicy::{Off, Reap, Vanilla};

    use super::*;

    const ALL: &[MemoryMode] = &[File, Lazy, Record, Prefetch];
    const BARE: Facts = Facts { working_sets: 0, missed: false, misses: 0 };
    const KNOWN: Facts = Facts { working_sets: 1, ..BARE };
    const MISSED: Facts = Facts { working_sets: 1, missed: true, misses: 1 };
    const TRIED: Facts = Facts { working_sets: 4, missed: true, misses: 1 };

    #[test]
    fn how_a_cold_instance_starts() {
        let lazy = SnapshotPolicy::Lazy;
        let restore = Start::Restore;
        type Case = (SnapshotPolicy, PrefetchPolicy, Option<Facts>, &'static [MemoryMode], Start);
        let table: &[Case] = &[
            // Without a snapshot, or with one that is not to be used.
            (Off, ReapPipelined, Some(KNOWN), ALL, Start::Boot),
            (Vanilla, ReapPipelined, None, ALL, Start::Boot),
            (Reap, FaultAround, None, ALL, Start::Boot),
            // By policy.
            (Vanilla, ReapPipelined, Some(BARE), ALL, restore(File)),
            (Vanilla, Mincore, Some(KNOWN), ALL, restore(File)),
            (lazy, ReapPipelined, Some(KNOWN), ALL, restore(Lazy)),
            (Reap, ReapPipelined, Some(BARE), ALL, restore(Record)),
            (Reap, ReapSerial, Some(BARE), ALL, restore(Record)),
            (Reap, ReapPipelined, Some(KNOWN), ALL, restore(Prefetch)),
            (Reap, ReapSerial, Some(KNOWN), ALL, restore(Prefetch)),
            (Reap, FaultAround, Some(BARE), ALL, restore(Prefetch)),
            (Reap, FaultAround, Some(MISSED), ALL, restore(Prefetch)),
            (Reap, Mincore, Some(BARE), ALL, restore(File)),
            (Reap, Mincore, Some(KNOWN), ALL, restore(Prefetch)),
            // What missed too much is recorded again, but not for ever.
            (Reap, ReapPipelined, Some(MISSED), ALL, restore(Record)),
            (Reap, Mincore, Some(MISSED), ALL, restore(File)),
            (Reap, ReapPipelined, Some(TRIED), ALL, restore(Prefetch)),
            // What is not offered.
            (lazy, ReapPipelined, Some(BARE), &[File], restore(File)),
            (Reap, ReapPipelined, Some(BARE), &[File], restore(File)),
            (Reap, ReapPipelined, Some(KNOWN), &[File, Record], restore(File)),
            (Reap, ReapPipelined, Some(KNOWN), &[], Start::Boot),
        ];
        for (policy, prefetch, snapshot, can, start) in table {
            let case = (policy, prefetch, snapshot, can);
            assert_eq!(choose(*policy, *prefetch, *snapshot, can), *start, "{case:?}");
        }
    }

    #[test]
    fn only_what_can_be_prefetched_is_recorded() {
        let table = [
            (Reap, ReapPipelined, Record, ALL, true),
            (Reap, Mincore, File, ALL, true),
            // The kernel pages, whatever is recorded.
            (Reap, Mincore, File, &[File], false),
            // What is chosen because nothing else is offered, or by another policy.
            (Reap, ReapPipelined, File, ALL, false),
            (Vanilla, Mincore, File, ALL, false),
            (Reap, Mincore, Prefetch, ALL, false),
            (Reap, FaultAround, Prefetch, ALL, false),
            (SnapshotPolicy::Lazy, ReapPipelined, Lazy, ALL, false),
        ];
        for (policy, prefetch, mode, can, wanted) in table {
            let case = (policy, prefetch, mode, can);
            assert_eq!(records(policy, prefetch, mode, can), wanted, "{case:?}");
        }
    }

    #[test]
    fn what_misses_for_long_is_recorded_afresh() {
        let anew =
            |working_sets, misses| Facts { working_sets, missed: true, misses }.begins_anew();
        assert!(!anew(4, 49) && anew(4, 50) && anew(5, 51));
        assert!(!anew(3, 50), "it is recorded again anyway");
    }

    #[test]
    fn too_many_faults_are_a_share_of_what_was_prefetched() {
        assert!(!missed(25, 100, 25) && missed(26, 100, 25));
        assert!(!missed(1000, 0, 25), "nothing was prefetched");
    }
}
