//! Idle connections to the instances of one revision.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hyper::client::conn::http2::SendRequest;
use vhive_api::SandboxId;

use super::upload::RequestBody;
use super::upstream::Connection;

/// Connections by instance; the one used last is used first.
#[derive(Debug)]
pub(crate) struct Upstreams {
    most: usize,
    #[expect(clippy::vec_box, reason = "a connection is moved around as a pointer")]
    idle: Mutex<HashMap<SandboxId, Vec<Box<Connection>>>>,
    shared: Mutex<HashMap<SandboxId, SendRequest<RequestBody>>>,
}

impl Upstreams {
    /// Keeps at most so many idle connections per instance.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, idle: Mutex::default(), shared: Mutex::default() }
    }

    /// A living idle connection, if there is one.
    pub(super) fn take(&self, instance: &SandboxId) -> Option<Box<Connection>> {
        let mut idle = lock(&self.idle);
        let connections = idle.get_mut(instance)?;
        while let Some(connection) = connections.pop() {
            if !connection.is_stale() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for later.
    pub(super) fn put(&self, instance: &SandboxId, connection: Box<Connection>) {
        let mut idle = lock(&self.idle);
        if let Some(connections) = idle.get_mut(instance) {
            if connections.len() < self.most {
                connections.push(connection);
            }
        } else if self.most > 0 {
            idle.insert(instance.clone(), vec![connection]);
        }
    }

    /// The HTTP/2 connection to an instance, if it lives.
    pub(super) fn shared(&self, instance: &SandboxId) -> Option<SendRequest<RequestBody>> {
        lock(&self.shared).get(instance).filter(|sender| !sender.is_closed()).cloned()
    }

    /// Keeps an HTTP/2 connection, in place of an earlier one.
    pub(super) fn share(&self, instance: &SandboxId, sender: SendRequest<RequestBody>) {
        lock(&self.shared).insert(instance.clone(), sender);
    }

    /// Closes every connection to an instance that holds no request.
    pub(crate) fn quiesce(&self, instance: &SandboxId) {
        let idle = lock(&self.idle).remove(instance);
        let shared = lock(&self.shared).remove(instance);
        // Closed here, not under the locks.
        drop((idle, shared));
    }

    /// Drops the connections to instances that are gone, and dead ones.
    pub(crate) fn retain(&self, living: impl Fn(&SandboxId) -> bool) {
        lock(&self.idle).retain(|instance, connections| {
            connections.retain(|connection| !connection.is_stale());
            living(instance) && !connections.is_empty()
        });
        lock(&self.shared).retain(|instance, sender| living(instance) && !sender.is_closed());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks, so a poisoned map is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
