//! Network slots on the real kernel, each test in a host of its own (see `lab`).
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "what a test's own helpers cannot do fails the test"
)]

mod guest;
mod killed;
mod lab;
mod neighbours;
mod reach;
mod reuse;

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use guest::{Guest, PORT};
use lab::{Lab, ask, connect, run, soon};
use vhive_sandbox::Deadline;
use vhive_sandbox::network::{NetworkConfig, NetworkPool, NetworkSlot, TakeError};

/// A pool of few slots.
fn pool(lab: &Lab, node: &str, config: NetworkConfig) -> NetworkPool {
    let config = NetworkConfig { ready: config.ready.min(2), ..config };
    NetworkPool::open(&config, &lab.root(node)).unwrap()
}

fn start(name: &str, slot: &NetworkSlot) -> Guest {
    Guest::start(name, slot.open_tap().unwrap())
}

fn server(slot: &NetworkSlot) -> SocketAddrV4 {
    SocketAddrV4::new(slot.address(), PORT)
}

#[test]
fn the_host_reaches_two_guests_that_have_the_same_address() {
    let Some(lab) = Lab::new("the_host_reaches_two_guests_that_have_the_same_address") else {
        return;
    };
    let pool = pool(&lab, "node", NetworkConfig::default());
    let (one, two) = (pool.take(soon()).unwrap(), pool.take(soon()).unwrap());
    assert_eq!(one.guest(), two.guest());
    assert_ne!(one.address(), two.address());
    assert!(one.netns().exists());
    let _guests = [start("one", &one), start("two", &two)];
    let mut first = connect(server(&one)).unwrap();
    let mut second = connect(server(&two)).unwrap();
    assert_eq!(ask(&mut first, "a").unwrap(), "one heard a");
    assert_eq!(ask(&mut second, "b").unwrap(), "two heard b");
    assert_eq!(ask(&mut first, "c").unwrap(), "one heard c");
}

#[test]
fn a_slot_has_no_queue_for_each_processor() {
    let Some(lab) = Lab::new("a_slot_has_no_queue_for_each_processor") else { return };
    let pool = pool(&lab, "node", NetworkConfig::default());
    let slot = pool.take(soon()).unwrap();
    let list = "ip -details -oneline link show type veth";
    let inside = run("nsenter", &format!("--net={} {list}", slot.netns().display()));
    let outside = lab::ip(list.trim_start_matches("ip "));
    let ours = outside.lines().filter(|line| line.contains(lab.root("node").tag()));
    let pairs: Vec<&str> = inside.lines().chain(ours).collect();
    assert!(pairs.len() >= 2, "{inside}{outside}");
    for end in pairs {
        assert!(end.contains(" numtxqueues 1 ") && end.contains(" numrxqueues 1 "), "{end}");
    }
}

#[test]
fn fifty_take_at_once_and_the_next_is_told_what_to_raise() {
    let Some(lab) = Lab::new("fifty_take_at_once_and_the_next_is_told_what_to_raise") else {
        return;
    };
    let pool = pool(&lab, "node", NetworkConfig { max: 50, ..NetworkConfig::default() });
    let slots: Vec<NetworkSlot> = std::thread::scope(|scope| {
        let takers: Vec<_> = (0..50).map(|_| scope.spawn(|| pool.take(soon()).unwrap())).collect();
        takers.into_iter().map(|taker| taker.join().unwrap()).collect()
    });
    let addresses: BTreeSet<_> = slots.iter().map(NetworkSlot::address).collect();
    assert_eq!(addresses.len(), 50);

    let asked = Instant::now();
    let error = pool.take(soon()).unwrap_err();
    assert!(matches!(error, TakeError::Exhausted { max: 50 }), "{error}");
    assert_eq!(error.to_string(), "all 50 network slots are in use; raise `network.max`");
    assert!(asked.elapsed() < Duration::from_secs(5), "it does not wait for the deadline");

    drop(slots);
    let again = pool.take(soon()).unwrap();
    assert!(!addresses.contains(&again.address()), "addresses come round as late as possible");
}

#[test]
fn closing_removes_everything_and_ends_waiting() {
    let Some(lab) = Lab::new("closing_removes_everything_and_ends_waiting") else { return };
    let before = traces();
    let pool = pool(&lab, "node", NetworkConfig { max: 3, ..NetworkConfig::default() });
    let slot = pool.take(soon()).unwrap();
    let pin = slot.netns().to_owned();
    assert_ne!(traces(), before);
    pool.close();
    assert!(matches!(pool.take(soon()), Err(TakeError::Closed)));
    assert!(pin.exists(), "a slot in use stays");
    drop(pool);
    drop(slot);
    assert!(!pin.exists());
    assert_eq!(traces(), before);
}

#[test]
fn a_tap_device_opens_again_and_cuts_off_who_had_it() {
    let Some(lab) = Lab::new("a_tap_device_opens_again_and_cuts_off_who_had_it") else { return };
    let pool = pool(&lab, "node", NetworkConfig::default());
    let slot = pool.take(soon()).unwrap();
    drop(start("first", &slot));
    let second = start("second", &slot);
    assert_eq!(ask(&mut connect(server(&slot)).unwrap(), "x").unwrap(), "second heard x");
    let _third = start("third", &slot);
    let mut stream = connect(server(&slot)).unwrap();
    assert_eq!(ask(&mut stream, "x").unwrap(), "third heard x");
    let port = stream.local_addr().unwrap().port();
    assert!(second.seen().iter().all(|packet| packet.from.port() != port), "it is cut off");
}

#[test]
fn a_guest_that_outlives_its_slot_is_cut_off() {
    let Some(lab) = Lab::new("a_guest_that_outlives_its_slot_is_cut_off") else { return };
    let config = NetworkConfig { max: 1, range: "10.9.9.0/29".parse().ok(), ..Default::default() };
    let pool = pool(&lab, "node", config);
    let slot = pool.take(soon()).unwrap();
    let old = start("old", &slot);
    let address = slot.address();
    drop(slot);
    // The same address comes round again.
    let slot = loop {
        let slot = pool.take(soon()).unwrap();
        if slot.address() == address {
            break slot;
        }
    };
    let _new = start("new", &slot);
    assert_eq!(ask(&mut connect(server(&slot)).unwrap(), "x").unwrap(), "new heard x");
    assert_eq!(old.seen(), []);
}

#[test]
fn waiting_ends_at_the_deadline() {
    let Some(lab) = Lab::new("waiting_ends_at_the_deadline") else { return };
    let pool = pool(&lab, "node", NetworkConfig { ready: 0, ..NetworkConfig::default() });
    let error = pool.take(Deadline::at(Instant::now())).unwrap_err();
    assert!(matches!(error, TakeError::Deadline), "{error}");
    pool.take(soon()).unwrap();
}

/// What a node may leave on this test's host: interfaces, firewall, kernel parameters, claims.
fn traces() -> Vec<String> {
    let links = lab::ip("-o link");
    let name = |line: &str| line.split(':').nth(1).unwrap().to_owned();
    let mut all: Vec<String> = links.lines().map(name).collect();
    all.push(run("nft", "list ruleset"));
    // Interfaces learn only after a while that the other end is up.
    all.push(lab::ip("route").replace(" linkdown", ""));
    for link in ["wan0", "lan0", "all"] {
        all.push(forwarding(link));
    }
    let namespace = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let number: String = namespace.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    let claims = std::path::Path::new("/run/vhive/network").join(number);
    all.push(format!("claims: {}", claims.exists()));
    all
}

/// Whether an interface forwards packets: `0` or `1`.
fn forwarding(link: &str) -> String {
    let path = format!("/proc/sys/net/ipv4/conf/{link}/forwarding");
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}
