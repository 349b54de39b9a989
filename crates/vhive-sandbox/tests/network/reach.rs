//! What a guest reaches, and what it does not.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use vhive_sandbox::network::{GATEWAY, INGRESS_PORT, NetworkConfig, NetworkPool};

use super::guest::{Guest, PORT};
use super::lab::{HOST_LAN, HOST_WAN, LAN, Lab, METADATA, OUTSIDE, serve, soon};
use super::{pool, server, start};

const PATIENCE: Duration = Duration::from_secs(10);
/// How long a guest waits for an answer that must not come.
const IMPATIENCE: Duration = Duration::from_millis(1500);

/// Servers at every place that a guest must not reach unless allowed.
struct Forbidden {
    metadata: SocketAddrV4,
    lan: SocketAddrV4,
    host_wan: SocketAddrV4,
    host_lan: SocketAddrV4,
}

fn forbidden(lab: &Lab) -> Forbidden {
    let outside = |ip: Ipv4Addr| serve(lab.outside(|| TcpListener::bind((ip, 0)).unwrap()));
    let here = |ip: Ipv4Addr| serve(TcpListener::bind((ip, 0)).unwrap());
    Forbidden {
        metadata: outside(METADATA),
        lan: outside(LAN),
        host_wan: here(HOST_WAN),
        host_lan: here(HOST_LAN),
    }
}

#[test]
fn a_guest_reaches_out_under_the_hosts_address() {
    let Some(lab) = Lab::new("a_guest_reaches_out_under_the_hosts_address") else { return };
    let outside = serve(lab.outside(|| TcpListener::bind((OUTSIDE, 0)).unwrap()));
    let pool = pool(&lab, "node", NetworkConfig::default());
    let slot = pool.take(soon()).unwrap();
    let guest = start("guest", &slot);
    let heard = guest.call(outside, PATIENCE).recv().unwrap();
    assert_eq!(heard, Ok(format!("{HOST_WAN} said hello")));
}

#[test]
fn a_guest_reaches_neither_neighbours_nor_the_host_nor_metadata() {
    let Some(lab) = Lab::new("a_guest_reaches_neither_neighbours_nor_the_host_nor_metadata") else {
        return;
    };
    let outside = serve(lab.outside(|| TcpListener::bind((OUTSIDE, 0)).unwrap()));
    let places = forbidden(&lab);
    let any = serve(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    let pool = pool(&lab, "node", NetworkConfig::default());
    let other_node = super::pool(&lab, "other", NetworkConfig::default());
    let slots = [pool.take(soon()).unwrap(), pool.take(soon()).unwrap()];
    let stranger = other_node.take(soon()).unwrap();
    let guests = [start("one", &slots[0]), start("two", &slots[1])];
    let strange = start("stranger", &stranger);

    let node = Ipv4Addr::from_bits(slots[0].address().to_bits() & !0x3ff | 1);
    let own = |ip: Ipv4Addr| SocketAddrV4::new(ip, any.port());
    let denied = [
        ("another guest", server(&slots[1])),
        ("another node's guest", server(&stranger)),
        ("the host's uplink", places.host_wan),
        ("the host's other interface", places.host_lan),
        ("the node's own address", own(node)),
        ("the host's loopback", own(Ipv4Addr::LOCALHOST)),
        ("its gateway", own(slots[0].guest().gateway)),
        ("metadata", places.metadata),
        ("a network behind another interface", places.lan),
    ];
    let calls: Vec<_> =
        denied.iter().map(|(what, to)| (what, guests[0].call(*to, IMPATIENCE))).collect();
    for (what, call) in calls {
        assert_eq!(call.recv().unwrap(), Err("no answer"), "{what}");
    }
    assert_eq!(guests[1].seen(), [], "nothing got as far as the neighbour");
    assert_eq!(strange.seen(), [], "nor to the other node's guest");
    // The wire works all the same.
    assert!(guests[0].call(outside, PATIENCE).recv().unwrap().is_ok());
    // It is the host's rules that deny: without them, the guest reaches what is outside its slot.
    super::lab::run("nft", "flush ruleset");
    for place in [places.metadata, places.lan, places.host_wan, places.host_lan, own(node)] {
        let heard = guests[0].call(place, PATIENCE).recv().unwrap();
        assert!(heard.as_ref().is_ok_and(|line| line.ends_with("said hello")), "{place} {heard:?}");
    }
}

#[test]
fn nobody_but_the_host_reaches_a_guest() {
    let Some(lab) = Lab::new("nobody_but_the_host_reaches_a_guest") else { return };
    let pool = pool(&lab, "node", NetworkConfig::default());
    let slot = pool.take(soon()).unwrap();
    let guest = start("guest", &slot);
    let connect = || TcpStream::connect_timeout(&server(&slot).into(), IMPATIENCE);
    assert!(lab.outside(connect).is_err());
    assert_eq!(guest.seen(), []);
    connect().unwrap();
    assert_ne!(guest.seen(), []);
}

#[test]
fn a_guest_reaches_what_is_allowed() {
    let Some(lab) = Lab::new("a_guest_reaches_what_is_allowed") else { return };
    let places = forbidden(&lab);
    let denied = serve(lab.outside(|| TcpListener::bind((LAN, 0)).unwrap()));
    let allow = [METADATA, LAN, HOST_WAN, HOST_LAN].map(|ip| format!("{ip}/32").parse().unwrap());
    let config = NetworkConfig { allow: allow.to_vec(), ..NetworkConfig::default() };
    let pool = pool(&lab, "node", config);
    let slot = pool.take(soon()).unwrap();
    let guest = start("guest", &slot);
    for place in [places.metadata, places.lan, places.host_wan, places.host_lan, denied] {
        let heard = guest.call(place, PATIENCE).recv().unwrap();
        assert!(heard.as_ref().is_ok_and(|line| line.ends_with("said hello")), "{place} {heard:?}");
    }
    // Allowing one address behind an interface does not allow what else is there.
    lab.outside(|| super::lab::ip("address add 10.66.0.3/24 dev lan0p"));
    let beside = lab.outside(|| TcpListener::bind((Ipv4Addr::new(10, 66, 0, 3), 0)).unwrap());
    let heard = guest.call(serve(beside), IMPATIENCE).recv().unwrap();
    assert_eq!(heard, Err("no answer"));
}

#[test]
fn a_guest_reaches_the_nodes_ingress_only_if_its_slot_is_opened() {
    let Some(lab) = Lab::new("a_guest_reaches_the_nodes_ingress_only_if_its_slot_is_opened") else {
        return;
    };
    let pool = pool(&lab, "node", NetworkConfig::default());
    let ingress = serve(pool.ingress().unwrap());
    let beside = serve(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    let (slot, closed) = (pool.take(soon()).unwrap(), pool.take(soon()).unwrap());
    slot.open_ingress().unwrap();
    let (guest, other) = (start("guest", &slot), start("other", &closed));
    let at = SocketAddrV4::new(GATEWAY, INGRESS_PORT);
    let heard = |guest: &Guest, to, within| guest.call(to, within).recv().unwrap();
    // Under the same address in every slot, and the node sees whose call it is.
    assert_eq!(heard(&guest, at, PATIENCE), Ok(format!("{} said hello", slot.address())));
    assert_eq!(heard(&other, at, PATIENCE), Err("refused"), "at once");
    assert_eq!(heard(&other, ingress, PATIENCE), Err("refused"), "by its real address as well");
    // Nothing else of the host, for either.
    let calls: Vec<_> = [(&guest, "opened"), (&other, "closed")]
        .into_iter()
        .flat_map(|(guest, name)| {
            [GATEWAY, *ingress.ip(), HOST_WAN, HOST_LAN, Ipv4Addr::LOCALHOST].map(|ip| {
                let to = SocketAddrV4::new(ip, beside.port());
                (guest.call(to, IMPATIENCE), format!("{name}: {to}"))
            })
        })
        .collect();
    for (call, what) in calls {
        assert_eq!(call.recv().unwrap(), Err("no answer"), "{what}");
    }
    assert_eq!(heard(&guest, server(&closed), IMPATIENCE), Err("no answer"), "a neighbour");
    assert_eq!(other.seen().iter().filter(|packet| packet.to.port() == PORT).count(), 0);
    // A device that is opened anew, for another attempt, is let through as well.
    drop(guest);
    let again = start("again", &slot);
    assert!(heard(&again, at, PATIENCE).is_ok());
    // Without the slot's rules the closed one would reach it: it is they that refuse.
    let netns = std::fs::File::open(closed.netns()).unwrap();
    std::thread::scope(|scope| {
        let flush = scope.spawn(|| {
            nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            for command in ["flush", "delete"] {
                super::lab::run("nft", &format!("{command} chain ip slot passing"));
            }
        });
        flush.join().unwrap();
    });
    assert!(heard(&other, at, PATIENCE).is_ok());
}

#[test]
fn nobody_but_guests_and_the_host_reaches_the_ingress() {
    let Some(lab) = Lab::new("nobody_but_guests_and_the_host_reaches_the_ingress") else { return };
    let pool = pool(&lab, "node", NetworkConfig::default());
    let other_node = super::pool(&lab, "other", NetworkConfig::default());
    let ingress = serve(pool.ingress().unwrap());
    let theirs = serve(other_node.ingress().unwrap());
    let (slot, stranger) = (pool.take(soon()).unwrap(), other_node.take(soon()).unwrap());
    for slot in [&slot, &stranger] {
        slot.open_ingress().unwrap();
    }
    let connect = || TcpStream::connect_timeout(&ingress.into(), IMPATIENCE);
    assert!(lab.outside(connect).is_err(), "outsiders route the node's addresses to the host");
    connect().unwrap();
    let (guest, strange) = (start("guest", &slot), start("strange", &stranger));
    let at = SocketAddrV4::new(GATEWAY, INGRESS_PORT);
    for (guest, slot) in [(&guest, &slot), (&strange, &stranger)] {
        let heard = guest.call(at, PATIENCE).recv().unwrap();
        assert_eq!(heard, Ok(format!("{} said hello", slot.address())), "its own node's");
    }
    assert_eq!(guest.call(theirs, IMPATIENCE).recv().unwrap(), Err("no answer"));
    assert_eq!(strange.call(ingress, IMPATIENCE).recv().unwrap(), Err("no answer"));
}

#[test]
fn a_guest_reaches_name_servers_and_only_their_port() {
    let Some(lab) = Lab::new("a_guest_reaches_name_servers_and_only_their_port") else { return };
    let dns = serve(TcpListener::bind((HOST_LAN, 53)).unwrap());
    let beside = serve(TcpListener::bind((HOST_LAN, 0)).unwrap());
    let config = NetworkConfig { dns: Some(vec![HOST_LAN]), ..NetworkConfig::default() };
    let pool = pool(&lab, "node", config);
    let slot = pool.take(soon()).unwrap();
    assert_eq!(slot.guest().dns, [HOST_LAN]);
    let guest = start("guest", &slot);
    let denied = guest.call(beside, IMPATIENCE);
    assert!(guest.call(dns, PATIENCE).recv().unwrap().is_ok());
    assert_eq!(denied.recv().unwrap(), Err("no answer"));
}

#[test]
fn a_spoofed_source_address_does_not_leave_the_slot() {
    let Some(lab) = Lab::new("a_spoofed_source_address_does_not_leave_the_slot") else { return };
    let (outside, here) = (
        lab.outside(|| UdpSocket::bind((OUTSIDE, 0)).unwrap()),
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap(),
    );
    for socket in [&outside, &here] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let std::net::SocketAddr::V4(to) = outside.local_addr().unwrap() else { panic!("IPv4") };
    let pool = pool(&lab, "node", NetworkConfig::default());
    let (slot, other) = (pool.take(soon()).unwrap(), pool.take(soon()).unwrap());
    let guest = start("guest", &slot);
    let sources = [
        other.address(),
        slot.address(),
        slot.guest().gateway,
        OUTSIDE,
        HOST_LAN,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
    ];
    for source in sources {
        guest.send_udp(SocketAddrV4::new(source, 1000), to, b"spoofed");
    }
    guest.send_udp(SocketAddrV4::new(slot.guest().address, 1000), to, b"honest");
    let mut buffer = [0; 64];
    let (length, from) = outside.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"honest", "frames keep their order, so none came before");
    assert_eq!(from.ip(), HOST_WAN);
}

#[test]
fn a_long_transfer_fits_through_a_narrow_uplink() {
    let Some(lab) = Lab::new("a_long_transfer_fits_through_a_narrow_uplink") else { return };
    let outside = serve(lab.outside(|| TcpListener::bind((OUTSIDE, 0)).unwrap()));
    super::lab::ip("link set wan0 mtu 1300");
    lab.outside(|| super::lab::ip("link set wan0p mtu 1300"));
    let pool = pool(&lab, "node", NetworkConfig::default());
    let slot = pool.take(soon()).unwrap();
    let guest = start("guest", &slot);
    let line = "x".repeat(3000);
    let heard = guest.say(outside, &line, PATIENCE).recv().unwrap();
    assert_eq!(heard, Ok(format!("{HOST_WAN} said {line}")));
}

#[test]
fn without_a_default_route_the_host_still_reaches_its_guests() {
    let Some(lab) = Lab::new("without_a_default_route_the_host_still_reaches_its_guests") else {
        return;
    };
    super::lab::ip("route del default");
    let pool: NetworkPool = pool(&lab, "node", NetworkConfig::default());
    let slot = pool.take(soon()).unwrap();
    let guest: Guest = start("guest", &slot);
    let mut stream = super::connect(server(&slot)).unwrap();
    assert_eq!(super::ask(&mut stream, "x").unwrap(), "guest heard x");
    assert_eq!(slot.address().octets()[0], 198);
    assert!(guest.seen().iter().all(|packet| packet.to.port() == PORT));
}

#[test]
fn what_is_sent_to_where_no_slot_is_leaves_for_nowhere() {
    let Some(lab) = Lab::new("what_is_sent_to_where_no_slot_is_leaves_for_nowhere") else { return };
    let pool = pool(&lab, "node", NetworkConfig::default());
    let slot = pool.take(soon()).unwrap();
    // Of the node's range, and far beyond the slots that there are.
    let nobody = Ipv4Addr::from(u32::from(slot.address()) + 900);
    let error = TcpStream::connect_timeout(&(nobody, PORT).into(), PATIENCE).unwrap_err();
    let at_once = [std::io::ErrorKind::HostUnreachable, std::io::ErrorKind::ConnectionRefused];
    assert!(at_once.contains(&error.kind()), "{error:?}");
    // The node still reaches who is there.
    let _guest = start("guest", &slot);
    TcpStream::connect_timeout(&(slot.address(), PORT).into(), PATIENCE).unwrap();
}
