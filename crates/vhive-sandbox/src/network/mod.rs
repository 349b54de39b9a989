//! Network slots: not there yet.

use std::net::Ipv4Addr;

use vhive_api::guest::GuestNetwork;

/// One ready-made network for one sandbox. Dropping it gives it back to its pool.
#[derive(Debug)]
pub struct NetworkSlot {
    address: Ipv4Addr,
    guest: GuestNetwork,
}

impl NetworkSlot {
    /// The address at which the host reaches the guest.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The addresses inside, the same for every guest so that snapshots fit any slot.
    #[must_use]
    pub fn guest(&self) -> &GuestNetwork {
        &self.guest
    }
}
