//! A slot of an instance, lent to one request.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use vhive_api::SandboxId;
use vhive_sandbox::{End, Journal};

use super::core::InstanceNo;
use super::{Instance, Pool};
use crate::start::StartReport;

/// One concurrency slot of a ready instance. It goes back to the pool on drop.
pub struct Lease {
    pool: Arc<Pool>,
    no: InstanceNo,
    instance: Arc<Instance>,
    cold: bool,
    broken: bool,
}

impl Lease {
    pub(super) fn new(
        pool: Arc<Pool>,
        no: InstanceNo,
        instance: Arc<Instance>,
        asked: Instant,
    ) -> Self {
        let cold = instance.ready_at > asked;
        Self { pool, no, instance, cold, broken: false }
    }

    /// Where the function listens.
    #[must_use]
    pub fn endpoint(&self) -> SocketAddr {
        self.instance.endpoint
    }

    /// The sandbox that will serve.
    #[must_use]
    pub fn sandbox(&self) -> &SandboxId {
        &self.instance.id
    }

    /// The start that this request waited for: present if the instance was not yet ready when the
    /// request came.
    #[must_use]
    pub fn start(&self) -> Option<&StartReport> {
        self.cold.then_some(&*self.instance.report)
    }

    /// How the sandbox ended, if it has: why a reply may have broken off.
    #[must_use]
    pub fn ended(&self) -> Option<End> {
        self.instance.journal.ended()
    }

    /// The sandbox's journal.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.instance.journal
    }

    /// Returns the slot and says that the instance is broken: it gets no more requests and is
    /// stopped as soon as nothing else holds it; demand will start another.
    pub fn failed(mut self) {
        self.broken = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.release(self.no, self.broken);
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("sandbox", &self.instance.id)
            .field("endpoint", &self.instance.endpoint)
            .field("cold", &self.cold)
            .finish_non_exhaustive()
    }
}
