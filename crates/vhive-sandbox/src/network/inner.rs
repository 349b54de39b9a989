//! A slot's network for a sandbox that has no tap: a container's own namespace, joined to the
//! slot's by a veth pair in the tap's place.
//!
//! ```text
//!   the slot's namespace             │ the sandbox's namespace
//!   up0  (tap0 idle)  guest0  ───────┼── eth0
//!        198.19.255.1 is answered for│   198.19.255.2/30, default via 198.19.255.1
//! ```
//!
//! What the container sees is what a microVM's guest sees, and the slot's rules hold for both. The
//! namespace is nameless: it goes when its last process and descriptor go.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::addresses::{GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, GUEST_PREFIX};
use super::netlink::Netlink;
use super::{links, namespace};
use crate::deadline::Deadline;

/// The end in the slot's namespace.
pub(super) const OUTER: &str = "guest0";

/// The end in the sandbox's.
const INNER: &str = "eth0";

/// As long as an uplink may take.
const UP_WITHIN: Duration = Duration::from_secs(10);

/// Makes the namespace, on a thread of its own.
pub(super) fn make(slot: &OwnedFd) -> io::Result<OwnedFd> {
    namespace::inside(slot, || {
        let mut outside = Netlink::route()?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let inner = namespace::current()?;
        super::slot::no_ipv6()?;
        low_ports_for_all()?;
        let mut inside = Netlink::route()?;
        let mut changes = Netlink::link_changes()?;
        let here = links::End { name: OUTER, mac: GATEWAY_MAC };
        let there = links::End { name: INNER, mac: GUEST_MAC };
        let plain = |(_, error): (usize, io::Error)| error;
        outside.apply(vec![links::new_veth(here, there, inner.as_fd(), 0)]).map_err(plain)?;
        let outer = links::index_of(&mut outside, OUTER)?;
        let eth0 = links::index_of(&mut inside, INNER)?;
        let loopback = links::index_of(&mut inside, "lo")?;
        outside
            .apply(vec![
                links::up(outer),
                links::add_host_route(outer, GUEST, GATEWAY),
                links::add_neighbour(outer, GUEST, GUEST_MAC),
            ])
            .map_err(plain)?;
        inside
            .apply(vec![
                links::up(loopback),
                links::up(eth0),
                links::add_own_address(eth0, GUEST, GUEST_PREFIX),
                links::add_default_route(eth0, GATEWAY),
                links::add_neighbour(eth0, GATEWAY, GATEWAY_MAC),
            ])
            .map_err(plain)?;
        links::wait_running(&mut changes, eth0, Deadline::after(UP_WITHIN))?;
        Ok(inner)
    })
}

/// Lets whoever is not root listen on ports below 1024: there is nobody else's to be taken for. Other
/// container engines do so too, and images count on it.
fn low_ports_for_all() -> io::Result<()> {
    std::fs::write(LEAST_FREE_PORT, "0")
}

/// Of the network namespace of who writes it.
///
/// # Source
/// Linux, `Documentation/networking/ip-sysctl.rst`.
const LEAST_FREE_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Makes a namespace that has a loopback interface and nothing else, for containers that are only
/// tried out.
///
/// # Errors
/// Any I/O error.
pub(crate) fn loopback_alone() -> io::Result<OwnedFd> {
    namespace::inside(namespace::current()?, || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let mut inside = Netlink::route()?;
        let loopback = links::index_of(&mut inside, "lo")?;
        inside.apply(vec![links::up(loopback)]).map_err(|(_, error)| error)?;
        namespace::current()
    })
}
