//! Forgetting the connections of a guest that is gone.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, Tuple};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use super::netlink::Netlink;

fn message(inner: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0), inner)
}

/// Forgets all connections of the calling thread's network namespace: call it inside a slot only.
pub(super) fn flush_own() -> io::Result<()> {
    let all = message(ConntrackMessage::Delete(Vec::new()));
    Netlink::netfilter()?.apply(vec![(0, all)]).map_err(|(_, error)| error)
}

/// Forgets the connections that an address takes part in, in the socket's namespace, and no
/// others: each is deleted by its own tuple.
pub(super) fn forget(netlink: &mut Netlink, address: Ipv4Addr) -> io::Result<()> {
    let known: Vec<NetfilterMessage> = netlink.dump(message(ConntrackMessage::Get(Vec::new())))?;
    let doomed: Vec<_> = known.into_iter().filter_map(|entry| originals(entry, address)).collect();
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

/// The key of a connection in which the address is the one who began or was first called.
fn originals(entry: NetfilterMessage, address: Ipv4Addr) -> Option<Vec<ConntrackAttribute>> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = entry.inner else {
        return None;
    };
    let key = attributes
        .into_iter()
        .find(|attribute| matches!(attribute, ConntrackAttribute::CtaTupleOrig(_)))?;
    let ConntrackAttribute::CtaTupleOrig(tuple) = &key else { return None };
    let wanted = IpAddr::V4(address);
    let involved = tuple.iter().any(|part| {
        let Tuple::Ip(ends) = part else { return false };
        ends.iter().any(|end| {
            matches!(end, IPTuple::SourceAddress(ip) | IPTuple::DestinationAddress(ip) if *ip == wanted)
        })
    });
    involved.then(|| vec![key])
}
