//! Forgetting the connections of a guest that is gone.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLA_TYPE_MASK, Nla as _};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, Tuple};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use super::netlink::Netlink;

/// Number of the attribute with a connection's zone, which belongs to its key.
const CTA_ZONE: u16 = 18;

fn message(inner: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0), inner)
}

/// Forgets the connections that these addresses take part in, in the socket's namespace, and no
/// others: each is deleted by its own key.
pub(super) fn forget(netlink: &mut Netlink, addresses: &[Ipv4Addr]) -> io::Result<()> {
    let known: Vec<NetfilterMessage> = netlink.dump(message(ConntrackMessage::Get(Vec::new())))?;
    let doomed: Vec<_> = known.into_iter().filter_map(|entry| key(entry, addresses)).collect();
    if doomed.is_empty() {
        return Ok(());
    }
    let requests = doomed.into_iter().map(|key| (0, message(ConntrackMessage::Delete(key))));
    // An entry may time out or end before its turn comes; the rest has been tried by then.
    match netlink.apply(requests.collect()) {
        Err((_, error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The key of a connection in which one of the addresses is who began or who was called.
fn key(entry: NetfilterMessage, addresses: &[Ipv4Addr]) -> Option<Vec<ConntrackAttribute>> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = entry.inner else {
        return None;
    };
    let ours = attributes.iter().any(|attribute| {
        let ConntrackAttribute::CtaTupleOrig(tuple) = attribute else { return false };
        tuple.iter().any(|part| matches!(part, Tuple::Ip(ends) if involve(ends, addresses)))
    });
    let identifies = |attribute: &ConntrackAttribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(_) => true,
        ConntrackAttribute::Other(other) => other.kind() & NLA_TYPE_MASK == CTA_ZONE,
        _ => false,
    };
    ours.then(|| attributes.into_iter().filter(identifies).collect())
}

fn involve(ends: &[IPTuple], addresses: &[Ipv4Addr]) -> bool {
    ends.iter().any(|end| match end {
        IPTuple::SourceAddress(IpAddr::V4(ip)) | IPTuple::DestinationAddress(IpAddr::V4(ip)) => {
            addresses.contains(ip)
        }
        _ => false,
    })
}
