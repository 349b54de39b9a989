//! Working-set files that were read whole and found right: as long as nobody changes one, its checksums are not
//! computed again. Computing them is a fifth of the processor time of a prefetch (`docs/decisions/0016-the-pager.md`).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

/// Files that are remembered; beyond that the one that was found right first is checked again.
const MOST: usize = 1024;

/// A file changed so recently may be changed again without its time of change telling: a kernel's clock for it ticks
/// every few milliseconds, a network's file system every second.
const SETTLED: Duration = Duration::from_secs(2);

/// A file as it is now: whoever writes to it, or puts another one in its place, makes it another.
///
/// # Source
/// `inode(7)`: the time of the last status change is set by writing, and cannot be set by anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds since 1970, and nanoseconds.
    changed: (i64, i64),
}

impl Identity {
    /// None if a change of the file could go unnoticed at `now`.
    ///
    /// # Errors
    /// If the file cannot be asked.
    pub(super) fn of(file: &File, now: SystemTime) -> io::Result<Option<Self>> {
        let found = file.metadata()?;
        let identity = Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            changed: (found.ctime(), found.ctime_nsec()),
        };
        Ok(identity.is_settled(now).then_some(identity))
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanos) = self.changed;
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else {
            return false;
        };
        let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos));
        let age = changed.and_then(|changed| now.duration_since(changed).ok());
        age.is_some_and(|age| age >= SETTLED)
    }
}

/// The files, the one that was found right last at the end.
#[derive(Debug, Default)]
pub(super) struct Verified(VecDeque<Identity>);

impl Verified {
    pub(super) fn holds(&self, identity: Identity) -> bool {
        self.0.contains(&identity)
    }

    pub(super) fn add(&mut self, identity: Identity) {
        if self.holds(identity) {
            return;
        }
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(identity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed_at(seconds: i64) -> Identity {
        Identity { device: 1, inode: 2, bytes: 3, changed: (seconds, 0) }
    }

    #[test]
    fn only_what_has_not_been_changed_for_a_while_is_told_apart() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let settled = [998, 900, 0].map(|at| changed_at(at).is_settled(now));
        assert_eq!(settled, [true; 3]);
        // Just now, in the future, and at no time at all.
        let unsettled = [999, 1000, 1001, -1, i64::MAX].map(|at| changed_at(at).is_settled(now));
        assert_eq!(unsettled, [false; 5]);
    }

    #[test]
    fn the_first_is_forgotten_when_there_are_too_many() {
        let mut verified = Verified::default();
        for at in 0..=MOST as i64 {
            verified.add(changed_at(at));
            verified.add(changed_at(at));
        }
        assert_eq!(verified.0.len(), MOST);
        assert!(!verified.holds(changed_at(0)));
        assert!(verified.holds(changed_at(1)) && verified.holds(changed_at(MOST as i64)));
    }
}
