//! Building, cleaning and removing the devices of one slot.
//!
//! ```text
//!   host                        │ the slot's namespace              │ guest
//!   vh<tag>-<number>  ──────────┼── up0         tap0  ──────────────┼── eth0
//!   node address .1 of range    │   clone address  198.19.255.1     │   198.19.255.2
//! ```

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use super::addresses::{
    GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, GUEST_PREFIX, HOST_MAC, Range, UPLINK_MAC,
};
use super::firewall::{self, Nft};
use super::netlink::Netlink;
use super::{conntrack, links, namespace, tap};

/// The slot's way to the host, inside its namespace.
pub(super) const UPLINK: &str = "up0";

/// What all slots of a pool have in common.
#[derive(Debug)]
pub(super) struct Site {
    /// How the names of its interfaces begin: `vh<tag>-`.
    pub(super) prefix: String,
    /// The group that its interfaces are in.
    pub(super) group: u32,
    /// Where namespaces are pinned.
    pub(super) pins: PathBuf,
    pub(super) range: Range,
    pub(super) nft: Nft,
    /// The network namespace of the node.
    pub(super) host: OwnedFd,
    /// Whether the host's kernel has IPv6.
    pub(super) ipv6: bool,
}

/// The step of building a slot that failed, and why. Nothing of the slot is left behind.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} for network slot {slot}")]
pub struct BuildError {
    /// What was being done.
    pub step: &'static str,
    /// Number of the slot.
    pub slot: u32,
    /// Why that failed.
    #[source]
    pub source: io::Error,
}

/// The devices of a slot, up and configured.
#[derive(Debug)]
pub(super) struct Devices {
    pub(super) number: u32,
    pub(super) address: Ipv4Addr,
    pub(super) pin: PathBuf,
    namespace: OwnedFd,
    /// Opened beforehand for the next guest.
    pub(super) tap: Option<OwnedFd>,
}

/// A thread's tools for working on slots: conversations in the host's namespace.
#[derive(Debug)]
pub(super) struct Tools {
    netlink: Netlink,
    conntrack: Netlink,
}

impl Tools {
    /// Call it in the host's namespace.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::route()?, conntrack: Netlink::netfilter()? })
    }
}

impl Site {
    fn link(&self, number: u32) -> String {
        format!("{}{number:x}", self.prefix)
    }

    fn pin(&self, number: u32) -> PathBuf {
        self.pins.join(format!("{number:x}"))
    }

    /// Builds a slot; the calling thread is in the host's namespace afterwards.
    pub(super) fn build(&self, tools: &mut Tools, number: u32) -> Result<Devices, BuildError> {
        let built = self.assemble(tools, number);
        let back = namespace::enter(&self.host);
        let failure = match (built, back) {
            (Ok(devices), Ok(())) => return Ok(devices),
            (Ok(_), Err(source)) => ("return to the host's namespace", source),
            (Err(failure), _) => failure,
        };
        self.remove(tools, number);
        let (step, source) = failure;
        Err(BuildError { step, slot: number, source })
    }

    fn assemble(
        &self,
        tools: &mut Tools,
        number: u32,
    ) -> Result<Devices, (&'static str, io::Error)> {
        let (address, node) = (self.range.slot(number), self.range.node());
        let pin = self.pin(number);
        let namespace = namespace::create(&pin).map_err(|e| ("make a network namespace", e))?;
        settle().map_err(|e| ("set kernel parameters", e))?;
        let tap = tap::open().map_err(|e| ("make a tap device", e))?;
        let mut inner = Netlink::route().map_err(|e| ("open netlink", e))?;

        let name = self.link(number);
        let here = links::End { name: UPLINK, mac: UPLINK_MAC };
        let there = links::End { name: &name, mac: HOST_MAC };
        let pair = links::new_veth(here, there, self.host.as_fd(), self.group);
        inner.apply(vec![pair]).map_err(|(_, e)| ("make a veth pair", e))?;

        let find = |netlink: &mut Netlink, name: &str| {
            links::index_of(netlink, name).map_err(|e| ("find an interface", e))
        };
        let (guest_side, up) = (find(&mut inner, tap::NAME)?, find(&mut inner, UPLINK)?);
        let inside = vec![
            links::set_mac(guest_side, GATEWAY_MAC),
            links::up(guest_side),
            links::add_address(guest_side, GATEWAY, GUEST_PREFIX),
            links::add_neighbour(guest_side, GUEST, GUEST_MAC),
            links::up(up),
            links::add_address(up, address, 32),
            links::add_neighbour(up, node, HOST_MAC),
            links::add_default_route(up, node),
        ];
        inner.apply(inside).map_err(|(n, e)| (INSIDE[n.min(INSIDE.len() - 1)], e))?;

        let host_side = find(&mut tools.netlink, &name)?;
        let mut outside = vec![
            links::set_forwarding(host_side),
            links::up(host_side),
            links::add_address(host_side, node, 32),
            links::add_neighbour(host_side, address, UPLINK_MAC),
            links::add_host_route(host_side, address, node),
        ];
        if self.ipv6 {
            outside.insert(0, links::no_ipv6_address(host_side));
        }
        tools.netlink.apply(outside).map_err(|(_, e)| ("configure the host's interface", e))?;

        let script = firewall::slot_script(node, address);
        self.nft.run(&script).map_err(|e| ("load the slot's firewall", e))?;
        Ok(Devices { number, address, pin, namespace, tap: Some(tap) })
    }

    /// Removes what the last guest left: frames on their way, connections, translations.
    ///
    /// # Errors
    /// Any; the slot must then be removed.
    pub(super) fn clean(&self, tools: &mut Tools, devices: &mut Devices) -> io::Result<()> {
        devices.tap = None;
        namespace::enter(&devices.namespace)?;
        let cleaned = tap::open().and_then(|tap| {
            devices.tap = Some(tap);
            conntrack::flush_own()
        });
        namespace::enter(&self.host)?;
        cleaned?;
        conntrack::forget(&mut tools.conntrack, devices.address)
    }

    /// Removes a slot, complete or not.
    pub(super) fn remove(&self, tools: &mut Tools, number: u32) {
        if let Err(error) = namespace::unpin(&self.pin(number)) {
            tracing::warn!(slot = number, %error, "network namespace not removed");
        }
        // Deleting the interface cuts the slot off even if something holds its namespace.
        let Ok(index) = links::index_of(&mut tools.netlink, &self.link(number)) else { return };
        if let Err((_, error)) = tools.netlink.apply(vec![links::delete(index)]) {
            // Gone with its namespace in the meantime is as good.
            tracing::debug!(slot = number, %error, "interface not deleted");
        }
    }
}

impl Devices {
    /// Opens the tap device on a thread of its own.
    pub(super) fn open_tap(&self) -> io::Result<OwnedFd> {
        namespace::inside(&self.namespace, tap::open)
    }
}

/// What [`Site::assemble`] asks for inside the namespace, in its order.
const INSIDE: [&str; 8] = [
    "set the tap device's address",
    "bring the tap device up",
    "address the tap device",
    "name the guest a neighbour",
    "bring the uplink up",
    "address the uplink",
    "name the host a neighbour",
    "route to the host",
];

/// Kernel parameters of the calling thread's new namespace: forward IPv4, no IPv6 at all.
fn settle() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    for scope in ["all", "default"] {
        match fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1") {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}
