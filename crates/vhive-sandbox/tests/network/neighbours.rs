//! Nodes side by side, and what else uses the host's addresses.

use vhive_sandbox::network::{NetworkConfig, NetworkPool, OpenError};

use super::lab::{Lab, ip, run, soon};
use super::{forwarding, pool, traces};

#[test]
fn two_nodes_have_different_addresses_and_one_state_directory_has_one_node() {
    let Some(lab) =
        Lab::new("two_nodes_have_different_addresses_and_one_state_directory_has_one_node")
    else {
        return;
    };
    let one = pool(&lab, "one", NetworkConfig::default());
    let two = pool(&lab, "two", NetworkConfig::default());
    let (first, second) = (one.take(soon()).unwrap(), two.take(soon()).unwrap());
    let range = |bits: u32| bits >> 10;
    assert_ne!(range(first.address().to_bits()), range(second.address().to_bits()));
    let root = lab.root("one");
    let again = NetworkPool::open(&NetworkConfig::default(), &root).unwrap_err();
    assert!(matches!(&again, OpenError::InUse { tag } if tag == root.tag()), "{again}");
    let sweep = vhive_sandbox::network::sweep(&root).unwrap_err();
    assert!(sweep.to_string().contains("is running"), "{sweep}");
    assert!(first.netns().exists());
}

#[test]
fn addresses_that_the_host_routes_are_left_alone() {
    let Some(lab) = Lab::new("addresses_that_the_host_routes_are_left_alone") else { return };
    ip("route add 198.18.0.0/16 dev lan0");
    let slot = pool(&lab, "node", NetworkConfig::default()).take(soon()).unwrap();
    assert_eq!(slot.address().octets()[..2], [198, 19]);
    drop(slot);
    ip("route add 198.19.0.0/16 dev lan0 table 77");
    let before = traces();
    let error = NetworkPool::open(&NetworkConfig::default(), &lab.root("node")).unwrap_err();
    assert!(matches!(error, OpenError::NoRange), "{error}");
    assert!(error.to_string().contains("set `network.range`"), "{error}");
    assert_eq!(traces(), before, "nothing half-made stays");

    let range = |text: &str| NetworkConfig {
        range: Some(text.parse().unwrap()),
        ready: 1,
        max: 3,
        ..NetworkConfig::default()
    };
    let error = NetworkPool::open(&range("10.66.0.0/28"), &lab.root("node")).unwrap_err();
    assert!(matches!(error, OpenError::RangeTaken { .. }), "{error}");
    let error = NetworkPool::open(&range("10.77.0.0/30"), &lab.root("node")).unwrap_err();
    assert!(matches!(error, OpenError::BadRange { .. }), "{error}");
    let many = NetworkConfig { max: 6, ..range("10.77.0.0/29") };
    let error = NetworkPool::open(&many, &lab.root("node")).unwrap_err();
    assert!(matches!(error, OpenError::TooMany { max: 6, capacity: 5, .. }), "{error}");
    assert_eq!(traces(), before, "nothing half-made stays");
    let slot = pool(&lab, "node", range("10.77.0.0/29")).take(soon()).unwrap();
    assert_eq!(slot.address().octets()[..3], [10, 77, 0]);
}

#[test]
fn forwarding_is_as_before_when_the_last_node_ends() {
    let Some(lab) = Lab::new("forwarding_is_as_before_when_the_last_node_ends") else { return };
    let one = pool(&lab, "one", NetworkConfig::default());
    assert_eq!(forwarding("wan0"), "1");
    assert_eq!(forwarding("lan0"), "0", "only the uplink forwards");
    assert_eq!(forwarding("all"), "0");
    let two = pool(&lab, "two", NetworkConfig::default());
    drop(one);
    assert_eq!(forwarding("wan0"), "1", "the other node needs it");
    drop(two);
    assert_eq!(forwarding("wan0"), "0");

    // Somebody else turned it on: it stays.
    run("sysctl", "-qw net.ipv4.ip_forward=1");
    drop(pool(&lab, "one", NetworkConfig::default()));
    assert_eq!(forwarding("wan0"), "1");
    run("sysctl", "-qw net.ipv4.ip_forward=0");
    let one = pool(&lab, "one", NetworkConfig::default());
    run("sysctl", "-qw net.ipv4.ip_forward=1");
    drop(one);
    assert_eq!(forwarding("wan0"), "1", "turned on by somebody else meanwhile");
}
