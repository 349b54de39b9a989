//! What a pool needs of the host, finds on it, and changes on it.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;
use rustix::thread::CapabilitySet;

use super::firewall::Nft;
use super::links::{self, Link, Route};
use super::netlink::Netlink;
use crate::runtime::HostLacks;

/// Says whether this host can carry network slots.
///
/// # Errors
/// [`HostLacks`]: privileges, the tun driver, `nft`, or nf_tables in the kernel.
pub fn check_host() -> Result<(), HostLacks> {
    let lacks = |what: String, fix: &str| Err(HostLacks { what, fix: fix.to_owned() });
    let wanted = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN;
    let held = rustix::thread::capabilities(None).map(|sets| sets.effective);
    if !held.is_ok_and(|held| held.contains(wanted)) {
        return lacks(
            "network slots need the capabilities NET_ADMIN and SYS_ADMIN".to_owned(),
            "run as root",
        );
    }
    if let Err(error) = fs::File::open("/dev/net/tun") {
        return lacks(format!("cannot open /dev/net/tun ({error})"), "run `modprobe tun`");
    }
    let Some(nft) = Nft::find() else {
        return lacks("program nft not found".to_owned(), "run `apt-get install nftables`");
    };
    if let Err(error) = nft.list(&["list", "tables"]) {
        return lacks(format!("nf_tables does not work ({error})"), "run `modprobe nf_tables`");
    }
    Ok(())
}

/// Says whether another firewall of this host stops guests from reaching out, as Docker's does.
/// The host reaches its guests all the same.
///
/// # Errors
/// [`HostLacks`] with the rule that lets guests through.
pub fn check_forwarding() -> Result<(), HostLacks> {
    let Some(nft) = Nft::find() else { return Ok(()) };
    let Ok(chains) = nft.list(&["list", "chains"]) else { return Ok(()) };
    let Some(chain) = dropping_forward_chain(&chains) else { return Ok(()) };
    Err(HostLacks {
        what: format!(
            "firewall chain {chain} drops forwarded packets, so guests may not reach out"
        ),
        fix: "run `iptables -I FORWARD -i vh+ -j ACCEPT; iptables -I FORWARD -o vh+ -j ACCEPT` \
              (with Docker, use the chain DOCKER-USER), or allow vh* in your firewall"
            .to_owned(),
    })
}

/// The first chain of `nft list chains` that hooks into forwarding with the policy drop.
fn dropping_forward_chain(chains: &str) -> Option<String> {
    let (mut table, mut chain) = ("", "");
    for line in chains.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {");
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        } else if line.contains("hook forward") && line.contains("policy drop") {
            return Some(format!("`{chain}` of table `{table}`"));
        }
    }
    None
}

/// Name servers that guests can use: the host's, without those on its loopback.
pub(super) fn name_servers() -> Vec<Ipv4Addr> {
    // systemd-resolved puts its own loopback address into the first and the real ones here.
    ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| parse_name_servers(&text))
        .find(|servers| !servers.is_empty())
        .unwrap_or_default()
}

fn parse_name_servers(text: &str) -> Vec<Ipv4Addr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    });
    let usable = |server: &Ipv4Addr| !server.is_loopback() && !server.is_unspecified();
    // More than three are ignored by resolvers.
    servers.filter(usable).take(3).collect()
}

/// The host's network as a pool found it.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) links: Vec<Link>,
    pub(super) routes: Vec<Route>,
}

impl Surroundings {
    pub(super) fn look(netlink: &mut Netlink) -> io::Result<Self> {
        Ok(Self { links: links::list(netlink)?, routes: links::routes(netlink)? })
    }

    /// The interface of the best default route.
    pub(super) fn default_uplink(&self) -> Option<&str> {
        self.routes
            .iter()
            .filter(|route| route.main && route.to.prefix_len() == 0)
            .min_by_key(|route| route.metric)
            .and_then(|route| self.link_name(route.link?))
    }

    /// A route that has addresses of this network, other than a default route (or half a one).
    pub(super) fn clash(&self, net: Ipv4Net) -> Option<&Route> {
        self.routes
            .iter()
            .find(|route| route.to.prefix_len() > 1 && super::addresses::overlap(route.to, net))
    }

    pub(super) fn link_name(&self, index: u32) -> Option<&str> {
        self.links.iter().find(|link| link.index == index).map(|link| link.name.as_str())
    }

    /// Whether interfaces begin with this.
    pub(super) fn has_links(&self, prefix: &str) -> bool {
        self.links.iter().any(|link| link.name.starts_with(prefix))
    }
}

/// Whether the kernel has IPv6.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Whether the host forwards packets by default.
pub(super) fn forwards_by_default() -> io::Result<bool> {
    Ok(fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim() != "0")
}

/// Whether packets that come in on an interface are forwarded.
pub(super) fn forwards(link: &str) -> io::Result<bool> {
    Ok(fs::read_to_string(forwarding_path(link))?.trim() != "0")
}

/// Turns forwarding of what comes in on an interface on or off.
pub(super) fn set_forwards(link: &str, on: bool) -> io::Result<()> {
    fs::write(forwarding_path(link), if on { "1" } else { "0" })
}

fn forwarding_path(link: &str) -> String {
    // The kernel writes a dot in an interface's name as a slash in this tree, as sysctl does.
    format!("/proc/sys/net/ipv4/conf/{link}/forwarding")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_on_the_loopback_are_no_use_to_a_guest() {
        let text = "# made by hand\nsearch lan\nnameserver 127.0.0.53\nnameserver 10.1.2.3\n\
                    nameserver fe80::1\nnameserver\noptions edns0\n nameserver 10.1.2.4 # two\n";
        let servers = parse_name_servers(text);
        assert_eq!(servers, [Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(10, 1, 2, 4)]);
    }

    #[test]
    fn a_dropping_forward_chain_is_named() {
        let docker = "table ip nat {\n\tchain PREROUTING {\n\t\ttype nat hook prerouting \
                      priority dstnat; policy accept;\n\t}\n}\ntable ip filter {\n\tchain FORWARD \
                      {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n";
        let found = dropping_forward_chain(docker);
        assert_eq!(found.as_deref(), Some("`FORWARD` of table `ip filter`"));
        assert_eq!(dropping_forward_chain(&docker.replace("policy drop", "policy accept")), None);
    }
}
