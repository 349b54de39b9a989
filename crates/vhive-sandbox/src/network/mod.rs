//! Network slots: every sandbox gets a network of its own, ready-made.
//!
//! ```text
//!   NetworkPool::open ─► workers build slots ─► take() ─► NetworkSlot ─► open_tap() ─► VMM
//!                             ▲                              │
//!                             └── cleaned ◄── given back ◄── Drop
//! ```
//!
//! A slot is a network namespace with a tap device for the guest and a veth pair to the host. All
//! guests have the same addresses, so that a snapshot fits any slot; the host dials the slot's own
//! *clone address*, which the namespace translates. Guests reach out by masquerade through the
//! host's default route, and reach neither each other nor the host, unless allowed. One socket of the
//! node, its *ingress*, is found by those guests whose slots are opened for it. The page is
//! `docs/design/networking.md`.
//!
//! What this module does not do: configure the guest's side (its init does), limit bandwidth, or
//! resolve names.
//!
//! # Source
//! Firecracker `docs/snapshotting/network-for-clones.md`; vHive `networking/networking.go`.

mod addresses;
mod claim;
mod conntrack;
mod error;
mod firewall;
mod host;
mod inner;
mod links;
mod namespace;
mod netlink;
mod pool;
mod site;
mod slot;
mod tap;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub use addresses::{GATEWAY, GUEST, GUEST_MAC, GUEST_PREFIX, INGRESS_PORT, Mac};
pub use error::{OpenError, SweepError, TakeError};
pub use host::{check_forwarding, check_host};
pub(crate) use inner::loopback_alone;
pub use pool::{NetworkPool, NetworkSlot};
pub use site::sweep;
pub use slot::BuildError;
pub use tap::NAME as TAP;

/// How many slots to keep, and what guests may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Slots kept ready beyond those in use, as far as `max` allows. Once fewer than half of them
    /// are left, the others are made.
    pub ready: u32,
    /// Most slots at a time, in use or ready; at most 1021 in a range of the default size.
    pub max: u32,
    /// Name servers for guests; absent = those of the host that are not on its loopback.
    pub dns: Option<Vec<Ipv4Addr>>,
    /// Networks that guests may reach in spite of the rules: addresses of the host, networks
    /// behind its other interfaces, link-local addresses. Never another guest.
    pub allow: Vec<Ipv4Net>,
    /// Addresses of slots, `/29` or larger; absent = a free part of 198.18.0.0/15.
    pub range: Option<Ipv4Net>,
    /// Interface through which guests reach out; absent = that of the default route.
    pub uplink: Option<String>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self { ready: 8, max: 256, dns: None, allow: Vec::new(), range: None, uplink: None }
    }
}
