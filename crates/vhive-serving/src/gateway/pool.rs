//! Idle connections to the instances of one revision.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::http2::SendRequest;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use vhive_api::SandboxId;

use super::upload::RequestBody;
use super::upstream::Connection;

/// Connections by instance; the one used last is used first.
#[derive(Debug)]
pub(crate) struct Upstreams {
    most: usize,
    #[expect(clippy::vec_box, reason = "a connection is moved around as a pointer")]
    idle: Mutex<ByInstance<Vec<Box<Connection>>>>,
    shared: Mutex<ByInstance<Shared>>,
}

type ByInstance<T> = HashMap<SandboxId, T, BuildHasherDefault<NameHasher>>;

/// Names of instances are random digits of this node's own making: they need no strong hash.
#[derive(Debug, Default)]
struct NameHasher(u64);

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let mixed = self.0.rotate_left(5) ^ u64::from_le_bytes(word);
            self.0 = mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// An HTTP/2 connection, and the task that carries it: the connection is closed when that ends,
/// which it does once nobody can send any more.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) sender: SendRequest<RequestBody>,
    pub(super) carrier: JoinHandle<()>,
}

/// How long a connection may take to be closed.
const CLOSING: Duration = Duration::from_secs(1);

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
        let shared = lock(&self.shared);
        let sender = &shared.get(instance)?.sender;
        (!sender.is_closed()).then(|| sender.clone())
    }

    /// Keeps an HTTP/2 connection, in place of an earlier one.
    pub(super) fn share(&self, instance: &SandboxId, connection: Shared) {
        lock(&self.shared).insert(instance.clone(), connection);
    }

    /// Closes every connection to an instance that holds no request, and returns when they are
    /// closed on this side. Blocks; not for a thread of the async runtime.
    pub(crate) fn quiesce(&self, instance: &SandboxId, runtime: &Handle) {
        let idle = lock(&self.idle).remove(instance);
        let shared = lock(&self.shared).remove(instance);
        // Closed here, not under the locks.
        drop(idle);
        if let Some(Shared { sender, carrier }) = shared {
            drop(sender);
            let stop = carrier.abort_handle();
            let ended = runtime.block_on(async { tokio::time::timeout(CLOSING, carrier).await });
            if ended.is_err() {
                tracing::warn!(%instance, "connection to an instance cut off for its snapshot");
                stop.abort();
            }
        }
    }

    /// Drops the connections to instances that are gone, and dead ones.
    pub(crate) fn retain(&self, living: impl Fn(&SandboxId) -> bool) {
        lock(&self.idle).retain(|instance, connections| {
            connections.retain(|connection| !connection.is_stale());
            living(instance) && !connections.is_empty()
        });
        lock(&self.shared)
            .retain(|instance, shared| living(instance) && !shared.sender.is_closed());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks, so a poisoned map is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
