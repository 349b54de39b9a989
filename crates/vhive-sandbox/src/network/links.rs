//! The few rtnetlink requests that slots are made of.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use ipnet::Ipv4Net;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::addresses::Mac;
use super::netlink::Netlink;
use crate::deadline::Deadline;

/// A request with its extra flags.
pub(super) type Request = (u16, Message);

const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct End<'a> {
    pub(super) name: &'a str,
    pub(super) mac: Mac,
}

impl End<'_> {
    /// What both ends of a pair are given. Unasked, the kernel makes as many queues as the host may
    /// ever have processors, 7 KiB for each of them and pair, and a directory of each; they are for
    /// XDP, which nobody uses here. Without it any processor sends without a lock and receives on
    /// its own.
    ///
    /// # Source
    /// `drivers/net/veth.c` (`veth_get_num_queues`, `veth_xmit`).
    fn attributes(&self) -> [LinkAttribute; 4] {
        [
            LinkAttribute::IfName(self.name.to_owned()),
            LinkAttribute::Address(self.mac.0.to_vec()),
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::NumRxQueues(1),
        ]
    }
}

/// Makes a veth pair: `here` in the socket's namespace, `there` in that one, in a link group.
pub(super) fn new_veth(here: End<'_>, there: End<'_>, to: BorrowedFd<'_>, group: u32) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = there.attributes().to_vec();
    peer.attributes.extend([LinkAttribute::Group(group), LinkAttribute::NetNsFd(to.as_raw_fd())]);
    let mut link = LinkMessage::default();
    link.attributes = here.attributes().to_vec();
    link.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    (NEW, Message::NewLink(link))
}

/// Sets an interface's hardware address.
pub(super) fn set_mac(index: u32, mac: Mac) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![LinkAttribute::Address(mac.0.to_vec())];
    (0, Message::SetLink(link))
}

/// Lets an interface's packets be forwarded (IPv4), whatever the host's default.
pub(super) fn set_forwarding(index: u32) -> Request {
    const IFLA_INET_CONF: u16 = 1;
    const IPV4_DEVCONF_FORWARDING: u16 = 1;
    let mut setting = 8_u16.to_ne_bytes().to_vec();
    setting.extend(IPV4_DEVCONF_FORWARDING.to_ne_bytes());
    setting.extend(1_u32.to_ne_bytes());
    let conf = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF, setting));
    with_af_spec(index, AfSpecUnspec::Inet(vec![conf]))
}

/// Keeps an interface from giving itself an IPv6 address.
pub(super) fn no_ipv6_address(index: u32) -> Request {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    with_af_spec(index, AfSpecUnspec::Inet6(vec![mode]))
}

fn with_af_spec(index: u32, spec: AfSpecUnspec) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![LinkAttribute::AfSpecUnspec(vec![spec])];
    (0, Message::SetLink(link))
}

/// Puts an interface into a group, which rules can tell.
pub(super) fn set_group(index: u32, group: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes = vec![LinkAttribute::Group(group)];
    (0, Message::SetLink(link))
}

/// Brings an interface up.
pub(super) fn up(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    (0, Message::SetLink(link))
}

/// Gives an interface an address that is of use on its own link only.
pub(super) fn add_address(index: u32, address: Ipv4Addr, prefix: u8) -> Request {
    address_of_scope(index, address, prefix, AddressScope::Link)
}

/// Gives an interface the address that who is behind it sends from, wherever to. The kernel picks none
/// of a narrower scope for what goes by the default route, and sends datagrams from nowhere then.
pub(super) fn add_own_address(index: u32, address: Ipv4Addr, prefix: u8) -> Request {
    address_of_scope(index, address, prefix, AddressScope::Universe)
}

fn address_of_scope(index: u32, address: Ipv4Addr, prefix: u8, scope: AddressScope) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.scope = scope;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address)),
        AddressAttribute::Address(IpAddr::V4(address)),
    ];
    (NEW, Message::NewAddress(message))
}

/// Says once and for all which hardware address a neighbour has, so that nobody need ask.
pub(super) fn add_neighbour(index: u32, address: Ipv4Addr, mac: Mac) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    (NEW, Message::NewNeighbour(message))
}

/// Sends everything that has no other route through `gateway`, which need not be on a network of
/// the interface.
pub(super) fn add_default_route(index: u32, gateway: Ipv4Addr) -> Request {
    let mut message = route(0, RouteScope::Universe);
    message.header.flags = RouteFlags::Onlink;
    message.attributes =
        vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(index)];
    (NEW, Message::NewRoute(message))
}

/// Sends one address straight out of an interface, from `source`.
pub(super) fn add_host_route(index: u32, to: Ipv4Addr, source: Ipv4Addr) -> Request {
    let mut message = route(32, RouteScope::Link);
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(to)),
        RouteAttribute::PrefSource(RouteAddress::Inet(source)),
        RouteAttribute::Oif(index),
    ];
    (NEW, Message::NewRoute(message))
}

fn route(prefix: u8, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = prefix;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = scope;
    message.header.kind = RouteType::Unicast;
    message
}

/// Deletes one interface.
pub(super) fn delete(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    (0, Message::DelLink(link))
}

/// Deletes these interfaces of a group. Many take about as long as one, since the kernel waits
/// only once for all packets under way: they become a group of their own, which is deleted.
pub(super) fn delete_all(indices: &[u32], group: u32) -> Vec<Request> {
    const DOOMED: u32 = 1 << 31;
    if let [] | [_] = indices {
        return indices.iter().map(|index| delete(*index)).collect();
    }
    let group = group ^ DOOMED;
    let regroup = |index: &u32| set_group(*index, group);
    indices.iter().map(regroup).chain([delete_group(group)]).collect()
}

/// Deletes all interfaces of a group in one go.
pub(super) fn delete_group(group: u32) -> Request {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::Group(group)];
    (0, Message::DelLink(link))
}

/// The number of an interface.
///
/// # Errors
/// `ENODEV` (uncategorised in std) if there is none of that name.
pub(super) fn index_of(netlink: &mut Netlink, name: &str) -> io::Result<u32> {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    match netlink.get(Message::GetLink(link))? {
        Message::NewLink(link) => Ok(link.header.index),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Waits until the kernel lets packets out of an interface that came up, which it does a moment
/// after the other end is up; what is sent before is lost.
pub(super) fn wait_running(
    changes: &mut Netlink,
    index: u32,
    deadline: Deadline,
) -> io::Result<()> {
    while !deadline.passed() {
        for change in changes.hear(deadline)? {
            let Message::NewLink(link) = change else { continue };
            if link.header.index == index && link.header.flags.contains(LinkFlags::Running) {
                return Ok(());
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// An interface as [`list`] shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) group: u32,
}

/// All interfaces.
pub(super) fn list(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let answers = netlink.dump(Message::GetLink(LinkMessage::default()))?;
    let links = answers.into_iter().filter_map(|answer| {
        let Message::NewLink(link) = answer else { return None };
        let mut found = Link { index: link.header.index, name: String::new(), group: 0 };
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => found.name = name,
                LinkAttribute::Group(group) => found.group = group,
                _ => {}
            }
        }
        Some(found)
    });
    Ok(links.collect())
}

/// A route as [`routes`] shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Where to.
    pub(super) to: Ipv4Net,
    /// Out of which interface (the first of several).
    pub(super) link: Option<u32>,
    /// The smaller, the better.
    pub(super) metric: u32,
    /// Whether it is in the main table.
    pub(super) main: bool,
}

/// All IPv4 routes of all tables, those to the host's own addresses included.
pub(super) fn routes(netlink: &mut Netlink) -> io::Result<Vec<Route>> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    let answers = netlink.dump(Message::GetRoute(request))?;
    Ok(answers.into_iter().filter_map(parse_route).collect())
}

/// The interface through which an address is reached now.
pub(super) fn link_towards(netlink: &mut Netlink, to: Ipv4Addr) -> io::Result<Option<u32>> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    request.header.destination_prefix_length = 32;
    request.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(to))];
    Ok(parse_route(netlink.get(Message::GetRoute(request))?).and_then(|route| route.link))
}

fn parse_route(answer: Message) -> Option<Route> {
    let Message::NewRoute(message) = answer else { return None };
    let prefix = message.header.destination_prefix_length;
    let mut to = Ipv4Addr::UNSPECIFIED;
    let (mut link, mut metric) = (None, 0);
    let mut table = u32::from(message.header.table);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = address,
            RouteAttribute::Oif(index) => link = Some(index),
            RouteAttribute::MultiPath(hops) => link = hops.first().map(|hop| hop.interface_index),
            RouteAttribute::Priority(priority) => metric = priority,
            RouteAttribute::Table(number) => table = number,
            _ => {}
        }
    }
    let main = table == u32::from(RouteHeader::RT_TABLE_MAIN);
    Some(Route { to: Ipv4Net::new(to, prefix).ok()?, link, metric, main })
}
