//! Which snapshots go when there are too many, without I/O.

use jiff::Timestamp;

use super::SnapshotId;
use super::stored::Stored;

/// What counts about a snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    id: SnapshotId,
    bytes: u64,
    used: Timestamp,
    stale: bool,
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
            held: state.is_held(),
            cloned: state.clones > 0,
        }
    }
}

/// Stale ones go in any case; then, while the rest takes up more than `most`, those without living
/// clones before the others and among equals the one used least recently. What is held or `spared`
/// stays.
pub(super) fn victims(
    mut all: Vec<Candidate>,
    most: u64,
    spared: Option<SnapshotId>,
) -> Vec<SnapshotId> {
    all.sort_by_key(|one| (!one.stale, one.cloned, one.used));
    let mut bytes: u64 = all.iter().map(|one| one.bytes).sum();
    let mut gone = Vec::new();
    for one in all {
        if (one.stale || bytes > most) && !one.held && spared != Some(one.id) {
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
        assert_eq!(victims(all(), 50, None), named(&["stale"]));
        assert_eq!(victims(all(), 30, None), named(&["stale", "old"]));
        assert_eq!(victims(all(), 30, Some(one("old", 0).id)), named(&["stale", "newest"]));
        assert_eq!(victims(all(), 0, None), named(&["stale", "old", "newest", "cloned"]));
    }
}
