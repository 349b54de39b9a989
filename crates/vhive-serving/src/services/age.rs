//! Revisions that are collected because their time is over, although nothing changes. One timer, for the
//! first of them; without any there is none.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;

use super::Services;
use super::change::{candidates, retain};
use crate::retention::next_expiry;
use crate::store::StoredService;

/// Pause before a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// When to look at the ages of revisions.
#[derive(Debug, Default)]
pub(super) struct Aging {
    due: Mutex<Option<Timestamp>>,
    told: Notify,
}

impl Aging {
    /// Sees to it that ages are looked at then, or before.
    fn look_at(&self, at: Timestamp) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if due.is_none_or(|due| at < due) {
            *due = Some(at);
            drop(due);
            self.told.notify_one();
        }
    }

    fn due(&self) -> Option<Timestamp> {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the moment that has come; false if the clock was set back meanwhile.
    fn take(&self, now: Timestamp) -> bool {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        due.take_if(|due| *due <= now).is_some()
    }
}

impl Services {
    /// Notes when the first revision of a service has to go, if nothing changes.
    pub(super) fn note_ages(&self, stored: &StoredService) {
        if let Some(at) = next_expiry(&candidates(stored), &self.config.retention) {
            self.aging.look_at(at);
        }
    }

    /// Collects revisions when their time is over, until the task is aborted.
    pub(crate) async fn follow_ages(self: Arc<Self>) {
        loop {
            let told = self.aging.told.notified();
            let Some(due) = self.aging.due() else {
                told.await;
                continue;
            };
            let left = due.duration_since(Timestamp::now());
            let left = Duration::try_from(left).unwrap_or_default();
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = told => continue,
            }
            if self.aging.take(Timestamp::now()) {
                let services = Arc::clone(&self);
                // To the end, even if the door is being closed.
                if tokio::spawn(async move { services.collect().await }).await.is_err() {
                    tracing::error!("revisions were not collected to the end");
                }
            }
        }
    }

    async fn collect(&self) {
        let _changing = self.changing.lock().await;
        let now = Timestamp::now();
        for entry in self.catalog.list(None) {
            let mut stored = StoredService::clone(&entry.stored);
            retain(&mut stored, now, &self.config.retention);
            if stored.revisions.len() == entry.stored.revisions.len() {
                self.note_ages(&stored);
                continue;
            }
            let (namespace, name) = (stored.namespace.clone(), stored.name.clone());
            stored.resource_version = self.next_version();
            match self.write(stored).await {
                Ok(stored) => {
                    tracing::info!(%namespace, %name, "old revisions collected");
                    self.install(stored, Some(&entry), now);
                }
                Err(error) => {
                    tracing::error!(%error, %namespace, %name, "old revisions stay for now");
                    self.aging.look_at(now + AGAIN);
                }
            }
        }
    }
}
