//! How many clients are connected, and who makes room when there are too many.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::flight::Client;

/// Clients looked at in one search for one that can go.
const SEARCHED: usize = 64;

/// How long after a search that found nobody the next one begins, if nobody leaves.
const AGAIN: Duration = Duration::from_millis(20);

/// The connections of all ports from outside together, or those of functions.
#[derive(Debug)]
pub(super) struct Crowd {
    room: Arc<Semaphore>,
    most: usize,
    /// Those that came first are in front, and those that were looked at are behind. Some have
    /// left.
    clients: Mutex<VecDeque<Weak<Client>>>,
}

impl Crowd {
    pub(super) fn new(most: usize) -> Self {
        let room = Arc::new(Semaphore::new(most));
        Self { room, most, clients: Mutex::default() }
    }

    /// Room for one more client. When there is none, one that has not asked for anything for a
    /// while is let go.
    pub(super) async fn enter(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() {
                return permit;
            }
            self.make_room();
            let freed = tokio::time::timeout(AGAIN, Arc::clone(&self.room).acquire_owned());
            if let Ok(Ok(permit)) = freed.await {
                return permit;
            }
        }
    }

    /// A client has come in.
    pub(super) fn add(&self, client: &Arc<Client>) {
        let there = self.most - self.room.available_permits().min(self.most);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() > 2 * there + SEARCHED {
            clients.retain(|client| client.strong_count() > 0);
        }
        clients.push_back(Arc::downgrade(client));
    }

    fn make_room(&self) {
        let now = Instant::now();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..clients.len().min(SEARCHED) {
            let Some(one) = clients.pop_front() else { return };
            let Some(client) = one.upgrade() else { continue };
            clients.push_back(one);
            if client.dismiss(now) {
                return;
            }
        }
    }
}
