//! Which addresses a node, its slots and its guests use.
//!
//! ```text
//!   198.18.0.0/15          set aside by RFC 2544 for tests; no LAN, VPN or internet host has them
//!   ├── 198.18.0.0/22 …    127 ranges, one per node on a host, chosen by its tag
//!   │     .0.1             the node's own address, the same on every slot's host side
//!   │     .0.2 … .3.254    clone addresses: what the host dials, one per slot
//!   └── 198.19.252.0/22    not a range:
//!         198.19.255.1/30  gateway, as every guest sees it
//!         198.19.255.2/30  every guest
//! ```

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Every guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 2);
/// Every guest's gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 1);
/// Port at [`GATEWAY`] under which a guest that may finds its node's ingress.
pub const INGRESS_PORT: u16 = 80;
/// Length of the guest network's prefix: just the two of them.
pub const GUEST_PREFIX: u8 = 30;
/// Every guest's hardware address.
pub const GUEST_MAC: Mac = Mac([0x06, 0x00, 0xc6, 0x13, 0xff, 0x02]);

pub(super) const GATEWAY_MAC: Mac = Mac([0x06, 0x00, 0xc6, 0x13, 0xff, 0x01]);
pub(super) const UPLINK_MAC: Mac = Mac([0x06, 0x00, 0xc6, 0x12, 0x00, 0x02]);
pub(super) const HOST_MAC: Mac = Mac([0x06, 0x00, 0xc6, 0x12, 0x00, 0x01]);

const POOL: u32 = 0xc612_0000;
const RANGE_PREFIX: u8 = 22;
/// Ranges in the pool without the last, which holds the guests' own network.
const RANGES: u32 = (1 << (RANGE_PREFIX - 15)) - 1;

/// A hardware address; displayed as `06:00:c6:13:ff:02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The addresses of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range(Ipv4Net);

impl Range {
    /// A configured range; `None` if it is too small to hold a slot.
    pub(super) fn new(net: Ipv4Net) -> Option<Self> {
        (net.prefix_len() <= 29 && net.prefix_len() >= 8).then(|| Self(net.trunc()))
    }

    pub(super) const fn net(self) -> Ipv4Net {
        self.0
    }

    /// The node's own address on every slot's host side.
    pub(super) fn node(self) -> Ipv4Addr {
        self.at(1)
    }

    /// The clone address of a slot.
    pub(super) fn slot(self, number: u32) -> Ipv4Addr {
        self.at(2 + number)
    }

    /// How many slots have an address: all but network, node and broadcast address.
    pub(super) fn capacity(self) -> u32 {
        // Interface names have room for four hexadecimal digits.
        ((1 << (32 - self.0.prefix_len())) - 3).min(0xffff)
    }

    fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.0.network().to_bits() + offset)
    }
}

/// All ranges, in the order in which the node with this number should try them.
pub(super) fn candidates(tag: u32) -> impl Iterator<Item = Range> {
    (0..RANGES).filter_map(move |n| {
        let number = (tag % RANGES + n) % RANGES;
        let network = POOL + (number << (32 - RANGE_PREFIX));
        Ipv4Net::new(Ipv4Addr::from_bits(network), RANGE_PREFIX).ok().map(Range)
    })
}

/// Whether two networks share an address.
pub(super) fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_disjoint_and_keep_off_the_guests_network() {
        let guest = Ipv4Net::new(GUEST, GUEST_PREFIX).expect("a network");
        assert!(guest.contains(&GATEWAY));
        let all: Vec<Range> = candidates(0xdead_beef).collect();
        assert_eq!(all.len(), 127);
        for (n, range) in all.iter().enumerate() {
            assert!(!overlap(range.net(), guest));
            assert!(all[n + 1..].iter().all(|other| !overlap(range.net(), other.net())));
            assert!(range.net().contains(&range.node()));
            let last = range.slot(range.capacity() - 1);
            assert_eq!(Ipv4Addr::from_bits(last.to_bits() + 1), range.net().broadcast());
        }
    }

    #[test]
    fn a_range_too_small_for_one_slot_is_refused() {
        let net = |text: &str| text.parse().expect("a network");
        assert_eq!(Range::new(net("10.9.8.0/30")), None);
        assert_eq!(Range::new(net("10.9.8.9/29")).map(Range::capacity), Some(5));
    }

    #[test]
    fn a_hardware_address_reads_as_usual() {
        assert_eq!(GUEST_MAC.to_string(), "06:00:c6:13:ff:02");
    }
}
