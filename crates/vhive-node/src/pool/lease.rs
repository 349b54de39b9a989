//! A slot of an instance, lent to one request.

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use vhive_api::{MemoryFigures, SandboxId};
use vhive_sandbox::{Arrival, End, Journal};

use super::core::InstanceNo;
use super::{Back, Instance, Pool};
use crate::start::StartReport;

/// One concurrency slot of a ready instance. It goes back to the pool on drop.
pub struct Lease {
    pool: Arc<Pool>,
    no: InstanceNo,
    instance: Arc<Instance>,
    cold: bool,
    back: Back,
    /// Where it waits for the instance's end.
    place: Option<usize>,
}

impl Lease {
    pub(super) fn new(
        pool: Arc<Pool>,
        no: InstanceNo,
        instance: Arc<Instance>,
        asked: Instant,
    ) -> Self {
        let cold = instance.ready_at > asked;
        Self { pool, no, instance, cold, back: Back::Unused, place: None }
    }

    /// Where the function listens.
    #[must_use]
    pub fn endpoint(&self) -> SocketAddr {
        self.instance.endpoint
    }

    /// The connection that has shown that the function listens, for the first that asks: blocking, and
    /// nothing has been said on it. None once somebody has asked, or a lease of the instance has been
    /// given back.
    #[must_use]
    pub fn connection(&self) -> Option<TcpStream> {
        self.instance.connection()
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

    /// Ready once the sandbox has ended; until then the task is woken when it does. Whoever waits for the
    /// instance must ask: a guest that is gone does not close its connections.
    pub fn poll_ended(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.instance.users.poll_ended(&mut self.place, cx)
    }

    /// The sandbox's journal.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.instance.journal
    }

    /// Returns the slot and says that the instance is broken: it gets no more requests and is
    /// stopped as soon as nothing else holds it; demand will start another.
    pub fn failed(mut self) {
        self.back = Back::Broken;
    }

    /// Returns the slot after a whole reply: the first one of an instance may let a snapshot be
    /// taken or a recording end.
    pub fn replied(mut self) {
        self.back = Back::Replied;
    }

    /// How the instance's memory has arrived up to now: present if this request waited for its
    /// start from a snapshot.
    #[must_use]
    pub fn memory(&self) -> Option<MemoryFigures> {
        let paging = self.instance.paging.as_ref().filter(|_| self.cold)?;
        Some(paging.figures())
    }

    /// The same with its faults, whose times count from `began`.
    #[must_use]
    pub fn arrival(&self, began: Instant) -> Option<Arrival> {
        let paging = self.instance.paging.as_ref().filter(|_| self.cold)?;
        Some(paging.arrival(began))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.instance.users.leave(place);
        }
        self.pool.release(self.no, &self.instance, self.back);
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
