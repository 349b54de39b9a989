//! An address that comes round again is as good as new.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::time::Duration;

use vhive_sandbox::network::{NetworkConfig, NetworkPool, NetworkSlot};

use super::lab::{Lab, OUTSIDE, ask, connect, serve, soon};
use super::{pool, server, start};

/// A pool with so few addresses that they come round soon.
fn single(lab: &Lab) -> NetworkPool {
    let range = "10.9.9.0/29".parse().ok();
    pool(lab, "node", NetworkConfig { ready: 1, max: 1, range, ..NetworkConfig::default() })
}

/// A new slot that has an address again.
fn again(pool: &NetworkPool, address: Ipv4Addr) -> NetworkSlot {
    loop {
        let slot = pool.take(soon()).unwrap();
        if slot.address() == address {
            return slot;
        }
    }
}

/// Connections of the host that involve a slot, as the kernel shows them.
fn connections(slot: &NetworkSlot) -> Vec<String> {
    let address = format!("={} ", slot.address());
    let all = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    all.lines().filter(|line| line.contains(&address)).map(str::to_owned).collect()
}

#[test]
fn the_next_guest_hears_nothing_of_the_last_ones_connections() {
    let Some(lab) = Lab::new("the_next_guest_hears_nothing_of_the_last_ones_connections") else {
        return;
    };
    let outside = lab.outside(|| UdpSocket::bind((OUTSIDE, 0)).unwrap());
    outside.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let std::net::SocketAddr::V4(peer) = outside.local_addr().unwrap() else { panic!("IPv4") };
    let web = serve(lab.outside(|| TcpListener::bind((OUTSIDE, 0)).unwrap()));
    let pool = single(&lab);

    let slot = pool.take(soon()).unwrap();
    let address = slot.address();
    let old = start("old", &slot);
    let mut inbound = connect(server(&slot)).unwrap();
    assert_eq!(ask(&mut inbound, "x").unwrap(), "old heard x");
    assert!(old.call(web, Duration::from_secs(10)).recv().unwrap().is_ok());
    old.send_udp(SocketAddrV4::new(slot.guest().address, 999), peer, b"old");
    let mut buffer = [0; 16];
    let (_, back) = outside.recv_from(&mut buffer).unwrap();
    assert!(!connections(&slot).is_empty());
    drop(old);
    // A connection that begins while the guest is gone.
    let late = std::thread::spawn(move || connect(SocketAddrV4::new(address, super::PORT)));
    drop(slot);

    let slot = again(&pool, address);
    let new = start("new", &slot);
    // The host goes on with its old connection; the outside answers the old guest.
    inbound.write_all(b"still there?\n").unwrap();
    let mut rest = Vec::new();
    let end = inbound.read_to_end(&mut rest);
    assert!(end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "{rest:?}");
    outside.send_to(b"late answer", back).unwrap();
    drop(late.join());
    let mut fresh = connect(server(&slot)).unwrap();
    assert_eq!(ask(&mut fresh, "x").unwrap(), "new heard x");
    let strangers: Vec<_> = new
        .seen()
        .into_iter()
        .filter(|packet| packet.from.ip() == peer.ip() || packet.from.port() == port_of(&inbound))
        .collect();
    assert_eq!(strangers, []);
}

fn port_of(stream: &std::net::TcpStream) -> u16 {
    // A connection that was reset may have forgotten its address, but its port is never 0 here.
    stream.local_addr().map_or(0, |address| address.port())
}

#[test]
fn a_slot_in_the_pool_has_no_connections() {
    let Some(lab) = Lab::new("a_slot_in_the_pool_has_no_connections") else { return };
    let web = serve(lab.outside(|| TcpListener::bind((OUTSIDE, 0)).unwrap()));
    let pool = single(&lab);
    for round in 0..8 {
        let slot = pool.take(soon()).unwrap();
        assert_eq!(connections(&slot), Vec::<String>::new(), "round {round}");
        let guest = start("guest", &slot);
        assert!(guest.call(web, Duration::from_secs(10)).recv().unwrap().is_ok());
        let mut stream = connect(server(&slot)).unwrap();
        assert_eq!(ask(&mut stream, "x").unwrap(), "guest heard x");
        assert!(connections(&slot).len() >= 2);
    }
}
