//! Which snapshots go when there are too many, without I/O.

use jiff::Timestamp;

use super::SnapshotId;
use super::stored::Stored;

/// What counts about a snapshot.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    id: SnapshotId,
    bytes: u64,
    used: Timestamp,
    stale: bool,
    kept: bool,
    held: bool,
    cloned: bool,
}

impl Candidate {
    pub(super) fn of(stored: &Stored) -> Self {
        let state = stored.state();
        Self {
            id: stored.id,
            bytes: state.bytes,
            used: state.used,
            stale: state.stale.is_some(),
            kept: state.kept,
            held: state.is_held(),
            cloned: state.clones > 0,
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sweep {
    /// What is too much. This one, which has just come, stays.
    For(SnapshotId),
    /// What is too much, and what is stale and not marked as kept.
    Stale,
}

/// While all take up more than `most`, the stale ones go first, then those without living clones, and
/// among equals the one used least recently. What is stale may fit again, when a runtime is put back: it
/// goes in any case only if that is asked for. What is held stays.
pub(super) fn victims(mut all: Vec<Candidate>, most: u64, sweep: Sweep) -> Vec<SnapshotId> {
    all.sort_by_key(|one| (!one.stale, one.cloned, one.used));
    let mut bytes: u64 = all.iter().map(|one| one.bytes).sum();
    let mut gone = Vec::new();
    for one in all {
        let swept = sweep == Sweep::Stale && one.stale && !one.kept;
        if (swept || bytes > most) && !one.held && sweep != Sweep::For(one.id) {
            bytes -= one.bytes;
            gone.push(one.id);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use vhive_api::{Digest, RuntimeName};

    use super::*;

    #[test]
    fn the_stale_go_first_then_the_least_used_and_never_what_is_held() {
        let one = |name: &str, used: i64| Candidate {
            id: SnapshotId { digest: Digest::of(name.as_bytes()), runtime: RuntimeName::Sim },
            bytes: 10,
            used: Timestamp::from_second(used).expect("a time"),
            stale: false,
            kept: false,
            held: false,
            cloned: false,
        };
        let all = || {
            vec![
                one("newest", 9),
                Candidate { cloned: true, ..one("cloned", 1) },
                one("old", 2),
                Candidate { stale: true, ..one("stale", 8) },
                Candidate { held: true, ..one("held", 0) },
            ]
        };
        let named = |names: &[&str]| names.iter().map(|name| one(name, 0).id).collect::<Vec<_>>();
        let (excess, old) = (Sweep::For(one("new", 0).id), Sweep::For(one("old", 0).id));
        assert_eq!(victims(all(), 50, excess), named(&[]), "it may fit again");
        assert_eq!(victims(all(), 50, Sweep::Stale), named(&["stale"]));
        assert_eq!(victims(all(), 40, excess), named(&["stale"]));
        assert_eq!(victims(all(), 30, excess), named(&["stale", "old"]));
        assert_eq!(victims(all(), 30, old), named(&["stale", "newest"]));
        assert_eq!(victims(all(), 0, excess), named(&["stale", "old", "newest", "cloned"]));
        let kept = || vec![Candidate { stale: true, kept: true, ..one("kept", 1) }];
        assert_eq!(victims(kept(), 10, Sweep::Stale), named(&[]));
        assert_eq!(victims(kept(), 9, Sweep::Stale), named(&["kept"]));
    }
}
