//! What has changed of the objects that the API shows, for those who watch.
//!
//! Every change has a version of its own, greater than all before it, also across restarts of the
//! node. The last changes are kept, so that a client that has listed at one version can watch from
//! there; one who has seen too old a version must list again.
//!
//! # Source
//! Kubernetes, "API concepts", efficient detection of changes.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use crate::document::Document;
use crate::kind::Kind;

/// Changes kept, and bytes of their objects.
const KEPT: usize = 4096;
const KEPT_BYTES: usize = 16 << 20;

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Added,
    Modified,
    Deleted,
}

impl What {
    /// The word of a watch event.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) kind: Kind,
    pub(crate) what: What,
    /// As it is now; as it was last if it is gone.
    pub(crate) object: Document,
}

impl Change {
    pub(crate) fn new(version: u64, kind: Kind, what: What, object: &Value) -> Self {
        Self { version, kind, what, object: Document::of(object) }
    }
}

/// Nothing can be told from a version on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Expired {
    /// It is older than what is kept.
    #[error("too old resource version: {given} ({oldest})")]
    Old { given: u64, oldest: u64 },
    /// It has not been given out yet: it is from another state of the node.
    #[error("too large resource version: {given}, the newest is {newest}; list again")]
    Ahead { given: u64, newest: u64 },
}

/// The log of changes.
#[derive(Debug)]
pub(crate) struct Changes {
    log: Mutex<Log>,
    newest: watch::Sender<u64>,
    watchers: [AtomicUsize; Kind::ALL.len()],
}

#[derive(Debug)]
struct Log {
    /// The last version given out; only one who makes changes at a time asks for them.
    issued: u64,
    /// The last version that watchers have been told of, or need not be.
    version: u64,
    kept: VecDeque<Arc<Change>>,
    /// Of the objects in `kept`.
    bytes: usize,
    /// Versions up to which changes of a kind may be missing.
    horizons: [u64; Kind::ALL.len()],
}

impl Log {
    fn expect_known(&self, kind: Kind, given: u64) -> Result<(), Expired> {
        let (oldest, newest) = (self.horizons[kind.index()], self.version);
        match given {
            _ if given < oldest => Err(Expired::Old { given, oldest }),
            _ if given > newest => Err(Expired::Ahead { given, newest }),
            _ => Ok(()),
        }
    }
}

impl Changes {
    /// An empty log; the next version is the one after `version`.
    pub(crate) fn new(version: u64) -> Self {
        let horizons = [version; Kind::ALL.len()];
        let log = Log { issued: version, version, kept: VecDeque::new(), bytes: 0, horizons };
        Self {
            log: Mutex::new(log),
            newest: watch::Sender::new(version),
            watchers: Default::default(),
        }
    }

    /// The version of the last change.
    pub(crate) fn version(&self) -> u64 {
        self.log().version
    }

    /// A version that no other change has. Whoever makes a change holds the lock of
    /// [`Services`](crate::services::Services) from here to [`Changes::publish`], so that versions
    /// are published in their order.
    pub(crate) fn next_version(&self) -> u64 {
        let mut log = self.log();
        log.issued += 1;
        log.issued
    }

    /// Whether all that has changed of a kind since a version can be told.
    ///
    /// # Errors
    /// [`Expired`].
    pub(crate) fn expect_known(&self, kind: Kind, given: u64) -> Result<(), Expired> {
        self.log().expect_known(kind, given)
    }

    /// Whether anybody watches objects of a kind. If nobody does, a change that nobody made by
    /// hand need not be logged: [`Changes::skip`] it.
    pub(crate) fn is_watched(&self, kind: Kind) -> bool {
        self.watchers[kind.index()].load(Ordering::Acquire) > 0
    }

    /// Counts a change of a kind without keeping it.
    pub(crate) fn skip(&self, kind: Kind) {
        let mut log = self.log();
        log.issued += 1;
        log.version = log.issued;
        let version = log.version;
        log.horizons[kind.index()] = version;
    }

    /// Keeps changes and tells the watchers.
    pub(crate) fn publish(&self, changes: impl IntoIterator<Item = Change>) {
        let mut log = self.log();
        for change in changes {
            debug_assert!(change.version >= log.version, "changes are published in their order");
            log.version = change.version;
            log.bytes += change.object.size();
            log.kept.push_back(Arc::new(change));
            while (log.kept.len() > KEPT || log.bytes > KEPT_BYTES)
                && let Some(gone) = log.kept.pop_front()
            {
                log.bytes -= gone.object.size();
                let horizon = &mut log.horizons[gone.kind.index()];
                *horizon = (*horizon).max(gone.version);
            }
        }
        let version = log.version;
        drop(log);
        self.newest.send_replace(version);
    }

    /// Watches objects of a kind from the version on that the client has seen, or from now on.
    ///
    /// # Errors
    /// [`Expired`].
    pub(crate) fn watch(
        self: &Arc<Self>,
        kind: Kind,
        from: Option<u64>,
    ) -> Result<Watcher, Expired> {
        let log = self.log();
        let seen = from.unwrap_or(log.version);
        log.expect_known(kind, seen)?;
        self.watchers[kind.index()].fetch_add(1, Ordering::AcqRel);
        let newest = self.newest.subscribe();
        drop(log);
        Ok(Watcher { changes: Arc::clone(self), kind, seen, newest })
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // Nothing panics while it holds the lock, so a poisoned log is still whole.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who watches. Counted until dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    changes: Arc<Changes>,
    kind: Kind,
    seen: u64,
    newest: watch::Receiver<u64>,
}

impl Watcher {
    /// The version up to which everything has been told.
    pub(crate) const fn seen(&self) -> u64 {
        self.seen
    }

    /// The next changes, at least one; waits for them.
    ///
    /// # Errors
    /// [`Expired`] if it was so slow that some are gone.
    pub(crate) async fn next(&mut self) -> Result<Vec<Arc<Change>>, Expired> {
        loop {
            self.newest.borrow_and_update();
            let new = self.take()?;
            if !new.is_empty() {
                return Ok(new);
            }
            // The sender lives as long as self.changes.
            let _ = self.newest.changed().await;
        }
    }

    fn take(&mut self) -> Result<Vec<Arc<Change>>, Expired> {
        let log = self.changes.log();
        log.expect_known(self.kind, self.seen)?;
        let after = log.kept.partition_point(|change| change.version <= self.seen);
        let new = log.kept.range(after..).filter(|change| change.kind == self.kind);
        let new: Vec<_> = new.cloned().collect();
        self.seen = log.version;
        Ok(new)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.changes.watchers[self.kind.index()].fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn change(changes: &Changes, kind: Kind) -> u64 {
        let version = changes.next_version();
        changes.publish([Change::new(version, kind, What::Added, &Value::Null)]);
        version
    }

    fn now(watcher: &mut Watcher) -> Option<Result<Vec<u64>, Expired>> {
        let next = watcher.next().now_or_never()?;
        Some(next.map(|all| all.iter().map(|change| change.version).collect()))
    }

    #[tokio::test]
    async fn a_watcher_sees_each_change_of_its_kind_once() {
        let changes = Arc::new(Changes::new(100));
        let first = change(&changes, Kind::Service);
        assert_eq!(first, 101);
        let mut late = changes.watch(Kind::Service, None).unwrap();
        let mut early = changes.watch(Kind::Service, Some(100)).unwrap();
        assert_eq!((now(&mut late), now(&mut early)), (None, Some(Ok(vec![101]))));
        let other = change(&changes, Kind::Revision);
        let second = change(&changes, Kind::Service);
        assert_eq!((other, second), (102, 103));
        assert_eq!(now(&mut late), Some(Ok(vec![103])));
        assert_eq!((now(&mut early), early.seen()), (Some(Ok(vec![103])), 103));
        assert_eq!(now(&mut early), None);
    }

    #[tokio::test]
    async fn what_is_no_longer_kept_is_not_passed_over_in_silence() {
        let changes = Arc::new(Changes::new(0));
        let too_old = changes.watch(Kind::Service, None).unwrap().seen();
        let mut slow = changes.watch(Kind::Service, None).unwrap();
        for _ in 0..=KEPT {
            change(&changes, Kind::Service);
        }
        let expired = Expired::Old { given: 0, oldest: 1 };
        assert_eq!(now(&mut slow), Some(Err(expired)));
        assert_eq!(changes.watch(Kind::Service, Some(too_old)).unwrap_err(), expired);
        assert!(changes.watch(Kind::Pod, Some(0)).is_ok(), "nothing of that kind is gone");
        changes.skip(Kind::Pod);
        assert!(changes.watch(Kind::Pod, Some(0)).is_err());
    }

    #[tokio::test]
    async fn a_version_that_was_never_given_out_is_not_waited_for() {
        let changes = Arc::new(Changes::new(5));
        let ahead = Expired::Ahead { given: 6, newest: 5 };
        assert_eq!(changes.watch(Kind::Service, Some(6)).unwrap_err(), ahead);
        assert_eq!(changes.expect_known(Kind::Service, 6), Err(ahead));
        let mut newest = changes.watch(Kind::Service, Some(5)).unwrap();
        assert_eq!((change(&changes, Kind::Service), now(&mut newest)), (6, Some(Ok(vec![6]))));
    }

    #[test]
    fn watchers_are_counted_by_kind() {
        let changes = Arc::new(Changes::new(0));
        let one = changes.watch(Kind::Pod, None).unwrap();
        assert!(changes.is_watched(Kind::Pod) && !changes.is_watched(Kind::Service));
        drop(one);
        assert!(!changes.is_watched(Kind::Pod));
    }
}
