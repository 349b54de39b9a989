//! Changes that instances make: revisions that become ready, fail, or run more or fewer instances.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use vhive_api::RevisionKey;

use super::Services;
use super::change::mark_idle;
use super::events::Tone;
use crate::catalog::Entry;
use crate::changes::{Change, What};
use crate::kind::Kind;
use crate::objects;
use crate::standing::{Readiness, Standing, has_begun};
use crate::store::{StoredRevision, StoredService};

/// Least time between two looks of the task, however many instances come and go.
const BREATH: Duration = Duration::from_millis(20);

/// Pause before a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Revisions whose instances have changed since the last look.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    keys: Mutex<BTreeSet<RevisionKey>>,
    /// Something has been added and not yet been looked at to the end.
    any: AtomicBool,
    told: Notify,
}

impl Pending {
    /// Asks for a look; quick, from any thread.
    pub(super) fn add(&self, key: &RevisionKey) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(key.clone());
        self.any.store(true, Ordering::Release);
        drop(keys);
        self.told.notify_one();
    }

    fn take(&self) -> BTreeSet<RevisionKey> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn looked(&self) {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        self.any.store(!keys.is_empty(), Ordering::Release);
    }
}

impl Services {
    /// Looks at what instances do, whenever that changes, until the task is aborted.
    pub(crate) async fn follow(self: Arc<Self>) {
        loop {
            self.pending.told.notified().await;
            self.settle().await;
            tokio::time::sleep(BREATH).await;
        }
    }

    /// Sees to it that what is shown is true now. Nothing to wait for unless instances have come
    /// or gone a moment ago.
    pub(crate) async fn settle(self: &Arc<Self>) {
        if !self.pending.any.load(Ordering::Acquire) {
            return;
        }
        let services = Arc::clone(self);
        // To the end, even if who reads hangs up.
        let settled = tokio::spawn(async move {
            let _changing = services.changing.lock().await;
            services.settle_all().await;
        });
        if settled.await.is_err() {
            tracing::error!("what instances do was not looked at to the end");
        }
    }

    /// As [`Services::settle`]; the lock for changes is held.
    pub(super) async fn settle_all(self: &Arc<Self>) {
        let now = Timestamp::now();
        for key in self.pending.take() {
            if let Some(entry) = self.catalog.of_revision(&key)
                && self.look_at(&entry, &key, now).await
            {
                self.lead_after(&entry.stored, now).await;
            }
            self.tell_pods(&key);
        }
        self.pending.looked();
    }

    /// Says whether the revision has got ready for the first time.
    async fn look_at(self: &Arc<Self>, entry: &Entry, key: &RevisionKey, now: Timestamp) -> bool {
        let known = entry.revisions().enumerate().find(|(_, (one, _))| one.revision.key == *key);
        let Some((at, (stored, standing))) = known else { return false };
        // One that the node has forgotten runs nothing.
        let node = self.node.standing(key).unwrap_or_default();
        let missing = self.missing(stored);
        let mut next = standing.next(stored, &node, missing.as_deref(), now);
        let mut entry = entry.clone();
        let got_ready = !stored.ready && missing.is_none() && has_begun(stored, &node);
        if got_ready {
            match self.set_ready(&entry, stored, now).await {
                Some(changed) => entry = changed,
                None => return false,
            }
        } else if next == *standing {
            return false;
        }
        let Some(standing) = entry.standings.get(at).cloned() else { return got_ready };
        let was = standing.readiness.clone();
        let in_words = next.differs_in_words(&standing);
        if !in_words && !self.changes.is_watched(Kind::Revision) {
            self.changes.skip(Kind::Revision);
            next.version = self.changes.version();
            self.show(&mut entry, at, next);
            return got_ready;
        }
        next.version = self.next_version();
        self.show(&mut entry, at, next);
        let mut told = Vec::new();
        if let Some((revision, standing)) = entry.revisions().nth(at) {
            let object = objects::revision(&entry, revision, standing);
            let (version, kind) = (standing.version, Kind::Revision);
            told.push(Change::new(version, kind, What::Modified, &object));
        }
        let turned = entry.standings.get(at).is_some_and(|standing| standing.readiness != was);
        if turned && at + 1 == entry.standings.len() {
            // The service's own conditions follow its latest revision.
            entry.version = self.next_version();
            entry.changed = now;
            self.catalog.update(&entry);
            told.extend(self.tell_service(&entry, What::Modified));
        }
        self.changes.publish(told);
        if turned {
            self.note_readiness(&entry, at);
        }
        got_ready
    }

    fn note_readiness(&self, entry: &Entry, at: usize) {
        let Some((revision, standing)) = entry.revisions().nth(at) else { return };
        let object = objects::revision(entry, revision, standing);
        let name = revision.name();
        let (tone, reason, message) = match (&standing.readiness, standing.failure()) {
            (Readiness::Failed(_) | Readiness::Unconfigured(_), Some(why)) => {
                (Tone::Warning, standing.reason(), why)
            }
            (Readiness::Ready, _) => {
                (Tone::Normal, "RevisionReady", format!("Revision {name:?} is ready"))
            }
            _ => return,
        };
        self.note(Kind::Revision, &object, tone, (reason, &message));
        let kind = entry.stored.kind();
        if let Some(owner) = objects::of_service(kind, &self.catalog, entry) {
            self.note(kind, &owner, tone, (reason, &message));
        }
    }

    fn show(&self, entry: &mut Entry, at: usize, standing: Standing) {
        let mut standings = entry.standings.to_vec();
        standings[at] = standing;
        entry.standings = standings.into();
        self.catalog.update(entry);
    }

    /// A revision is ready for the first time: traffic may move. None if that could not be written;
    /// the next change tries again.
    async fn set_ready(
        self: &Arc<Self>,
        entry: &Entry,
        ready: &StoredRevision,
        now: Timestamp,
    ) -> Option<Entry> {
        let mut stored = StoredService::clone(&entry.stored);
        let revision = stored.revisions.iter_mut().find(|one| one.uid == ready.uid)?;
        revision.ready = true;
        if let Ok(routed) = stored.assign() {
            stored.routed = routed;
        }
        mark_idle(&mut stored, now);
        stored.resource_version = self.next_version();
        match self.write(stored).await {
            Ok(stored) => {
                tracing::info!(revision = %ready.revision.key, "revision ready");
                Some(self.install(stored, Some(entry), now))
            }
            Err(error) => {
                let key = ready.revision.key.clone();
                tracing::error!(%error, revision = %key, "cannot be noted as ready yet");
                let pending = Arc::clone(&self.pending);
                tokio::spawn(async move {
                    tokio::time::sleep(AGAIN).await;
                    pending.add(&key);
                });
                None
            }
        }
    }
}
