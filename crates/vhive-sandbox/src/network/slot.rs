//! Building and retiring the devices of slots.
//!
//! ```text
//!   host                        │ the slot's namespace              │ guest
//!   vh<tag>-<number>  ──────────┼── up0         tap0  ──────────────┼── eth0
//!   node address .1 of range    │   clone address  198.19.255.1     │   198.19.255.2
//! ```

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::addresses::{
    GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, GUEST_PREFIX, HOST_MAC, Range, UPLINK_MAC,
};
use super::firewall::{self, Nft};
use super::netlink::Netlink;
use super::{conntrack, inner, links, namespace, tap};
use crate::deadline::Deadline;

/// The slot's way to the host, inside its namespace.
pub(super) const UPLINK: &str = "up0";

/// The group of the uplink of a slot whose guest may reach the node's ingress; others are in group 0.
pub(super) const OPEN_GROUP: u32 = 1;

/// The kernel's work queue has its own pace; a busy machine needs milliseconds.
const UP_WITHIN: Duration = Duration::from_secs(10);

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
    /// Where guests that may find the node, at its own address.
    pub(super) ingress: TcpListener,
    /// Its port.
    pub(super) ingress_port: u16,
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
    /// Opened beforehand for the guest.
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
        self.undo(tools, number);
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
        let mut inner = Netlink::route().map_err(|e| ("open netlink", e))?;
        let tap = new_tap(&mut inner).map_err(|e| ("make a tap device", e))?;

        let name = self.link(number);
        let here = links::End { name: UPLINK, mac: UPLINK_MAC };
        let there = links::End { name: &name, mac: HOST_MAC };
        let pair = links::new_veth(here, there, self.host.as_fd(), self.group);
        inner.apply(vec![pair]).map_err(|(_, e)| ("make a veth pair", e))?;

        let find = |netlink: &mut Netlink, name: &str| {
            links::index_of(netlink, name).map_err(|e| ("find an interface", e))
        };
        let up = find(&mut inner, UPLINK)?;
        let inside = vec![
            links::up(up),
            links::add_address(up, address, 32),
            links::add_neighbour(up, node, HOST_MAC),
            links::add_default_route(up, node),
        ];
        inner.apply(inside).map_err(|(_, e)| ("configure the slot's uplink", e))?;

        let mut changes = Netlink::link_changes().map_err(|e| ("open netlink", e))?;
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

        let script = firewall::slot_script(node, address, self.ingress_port);
        self.nft.run(&script).map_err(|e| ("load the slot's firewall", e))?;
        links::wait_running(&mut changes, up, Deadline::after(UP_WITHIN))
            .map_err(|e| ("wait for the uplink", e))?;
        Ok(Devices { number, address, pin, namespace, tap: Some(tap) })
    }

    /// Removes slots whose guests are gone, all at once, and makes the host forget their
    /// connections.
    pub(super) fn retire(&self, tools: &mut Tools, slots: Vec<Devices>) {
        let addresses: Vec<Ipv4Addr> = slots.iter().map(|slot| slot.address).collect();
        let numbers: Vec<u32> = slots.iter().map(|slot| slot.number).collect();
        drop(slots);
        for number in &numbers {
            if let Err(error) = namespace::unpin(&self.pin(*number)) {
                tracing::warn!(slot = number, %error, "network namespace not removed");
            }
        }
        // The kernel removes a namespace's interfaces only when nobody holds it any more, say a
        // VMM that is slow to die. Deleting this end now cuts such a one off.
        let doomed: Vec<u32> = numbers
            .iter()
            .filter_map(|number| links::index_of(&mut tools.netlink, &self.link(*number)).ok())
            .collect();
        if let Err((_, error)) = tools.netlink.apply(links::delete_all(&doomed, self.group)) {
            tracing::debug!(?numbers, %error, "interfaces not deleted, or gone in the meantime");
        }
        if let Err(error) = conntrack::forget(&mut tools.conntrack, &addresses) {
            tracing::warn!(?addresses, %error, "connections of past guests not forgotten");
        }
    }

    /// Removes what was built of a slot.
    fn undo(&self, tools: &mut Tools, number: u32) {
        if let Err(error) = namespace::unpin(&self.pin(number)) {
            tracing::warn!(slot = number, %error, "network namespace not removed");
        }
        if let Ok(index) = links::index_of(&mut tools.netlink, &self.link(number)) {
            // It may go with its namespace in the meantime.
            let _ = tools.netlink.apply(vec![links::delete(index)]);
        }
    }
}

impl Devices {
    /// Makes a namespace of the sandbox's own, in the tap device's place.
    pub(super) fn make_inner(&self) -> io::Result<OwnedFd> {
        inner::make(&self.namespace)
    }

    /// Lets the guest reach the node's ingress, on a thread of its own.
    pub(super) fn open_ingress(&self) -> io::Result<()> {
        namespace::inside(&self.namespace, || {
            let mut netlink = Netlink::route()?;
            let up = links::index_of(&mut netlink, UPLINK)?;
            netlink.apply(vec![links::set_group(up, OPEN_GROUP)]).map_err(|(_, error)| error)
        })
    }

    /// Opens the tap device once more, on a thread of its own. If it is still open somewhere, it
    /// is replaced by a new one.
    pub(super) fn open_tap(&self) -> io::Result<OwnedFd> {
        namespace::inside(&self.namespace, || match tap::open() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                let mut netlink = Netlink::route()?;
                let index = links::index_of(&mut netlink, tap::NAME)?;
                netlink.apply(vec![links::delete(index)]).map_err(|(_, error)| error)?;
                new_tap(&mut netlink)
            }
            result => result,
        })
    }
}

/// Makes the tap device of the calling thread's namespace and configures it.
fn new_tap(netlink: &mut Netlink) -> io::Result<OwnedFd> {
    let tap = tap::open()?;
    let index = links::index_of(netlink, tap::NAME)?;
    let requests = vec![
        links::set_mac(index, GATEWAY_MAC),
        links::up(index),
        links::add_address(index, GATEWAY, GUEST_PREFIX),
        links::add_neighbour(index, GUEST, GUEST_MAC),
    ];
    netlink.apply(requests).map_err(|(_, error)| error)?;
    Ok(tap)
}

/// Kernel parameters of the calling thread's new namespace: forward IPv4, no IPv6 at all.
fn settle() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    no_ipv6()
}

/// No IPv6 in the calling thread's namespace.
pub(super) fn no_ipv6() -> io::Result<()> {
    for scope in ["all", "default"] {
        match fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1") {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}
