//! Opening and closing a node's place in the host's network: addresses, names, firewall table,
//! forwarding.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use super::addresses::{Range, candidates};
use super::claim::{self, Claim, Record, Registry};
use super::firewall::{self, HostRules, Nft};
use super::host::{self, Surroundings};
use super::netlink::Netlink;
use super::slot::Site;
use super::{NetworkConfig, OpenError, SweepError, links, namespace};
use crate::run_dir::RunRoot;

/// Connections that guests may have begun before the node takes them.
const BACKLOG: i32 = 1024;

/// The names of a node's things on the host.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) tag: String,
    /// `vh<tag>-`: how its interfaces begin.
    pub(super) prefix: String,
    /// `vhive_<tag>`: its firewall table.
    pub(super) table: String,
    /// Where its namespaces are pinned.
    pub(super) pins: PathBuf,
    /// The tag as a number: the group of its interfaces, and where its search for a range starts.
    pub(super) number: u32,
}

impl Names {
    pub(super) fn of(root: &RunRoot) -> Self {
        let tag = root.tag().to_owned();
        Self {
            prefix: format!("vh{tag}-"),
            table: format!("vhive_{tag}"),
            pins: root.dir().join("netns"),
            // Group 0 is where all other interfaces are.
            number: u32::from_str_radix(&tag, 16).unwrap_or(0).max(1),
            tag,
        }
    }
}

/// A node's place, open. Dropping it removes everything of the node from the host.
#[derive(Debug)]
pub(super) struct Place {
    names: Names,
    nft: Nft,
    /// The namespace that it is in; dropping it may happen elsewhere.
    host: OwnedFd,
    claims: PathBuf,
    claim: Option<Claim>,
}

/// Claims addresses and makes the firewall table, after removing what an earlier node of the same
/// tag left.
pub(super) fn open(
    config: &NetworkConfig,
    root: &RunRoot,
    dns: &[Ipv4Addr],
) -> Result<(Place, Site), OpenError> {
    host::check_host().map_err(OpenError::Host)?;
    let names = Names::of(root);
    let step = OpenError::step;
    let nft = Nft::find().ok_or_else(|| step("find nft", missing()))?;
    let home = namespace::current().map_err(|e| step("find the own namespace", e))?;
    let ours = home.try_clone().map_err(|e| step("find the own namespace", e))?;
    let claims = claim::directory().map_err(|e| step("find claims", e))?;
    let registry = Registry::lock(&claims).map_err(|e| step("lock claims", e))?;
    let claim = registry.claim(&names.tag).map_err(|e| step("claim addresses", e))?;
    let Some(claim) = claim else { return Err(OpenError::InUse { tag: names.tag }) };
    // From here on, whatever fails, dropping the place undoes it.
    let mut place = Place { names, nft, host: ours, claims, claim: None };
    let settled = settle(&place.names, place.claim.insert(claim), config, &registry);
    drop(registry);
    let record = settled?;

    let range = Range::new(record.range).ok_or(OpenError::BadRange { net: record.range })?;
    let ingress = listen(range.node()).map_err(|e| step("open the ingress", e))?;
    let ingress_port = ingress.local_addr().map_err(|e| step("open the ingress", e))?.port();
    let rules = HostRules {
        table: &place.names.table,
        links: &place.names.prefix,
        range,
        ingress: ingress_port,
        uplink: record.uplink.as_deref(),
        opened: &record.opened,
        allow: &config.allow,
        dns,
    };
    place.nft.run(&rules.script()).map_err(|e| step("load the firewall table", e))?;
    for link in &record.opened {
        host::set_forwards(link, true).map_err(|e| step("turn forwarding on", e))?;
    }
    fs::create_dir_all(&place.names.pins).map_err(|e| step("make the run directory", e))?;
    let site = Site {
        prefix: place.names.prefix.clone(),
        group: place.names.number,
        pins: place.names.pins.clone(),
        range,
        ingress,
        ingress_port,
        nft: place.nft.clone(),
        host: home,
        ipv6: host::has_ipv6(),
    };
    Ok((place, site))
}

/// A socket at the node's own address, which the host has only while there are slots.
fn listen(node: Ipv4Addr) -> io::Result<TcpListener> {
    let flags = SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_ip_freebind(&socket, true)?;
    net::bind(&socket, &SocketAddrV4::new(node, 0))?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Removes what an earlier node left, chooses what to use, and writes that down before
/// anything is changed, so that a sweep finds it.
fn settle(
    names: &Names,
    claim: &mut Claim,
    config: &NetworkConfig,
    registry: &Registry,
) -> Result<Record, OpenError> {
    let step = OpenError::step;
    let mut netlink = Netlink::route().map_err(|e| step("open netlink", e))?;
    if let Some(old) = claim.read().map_err(|e| step("read the old claim", e))? {
        give_back(registry, &names.tag, &old).map_err(|e| step("restore forwarding", e))?;
    }
    remove_devices(names, &mut netlink).map_err(|e| step("remove an earlier node's devices", e))?;
    let around = Surroundings::look(&mut netlink).map_err(|e| step("list routes", e))?;
    let range = choose(config, registry, names, &around)?;
    let uplink = config.uplink.as_deref().or_else(|| around.default_uplink());
    if uplink.is_none() {
        tracing::warn!("no default route: guests reach nothing but allowed networks");
    }
    let ways = ways_out(config, uplink, &mut netlink, &around);
    let mut opened = Vec::new();
    for link in &ways {
        if !host::forwards(link).map_err(|e| step("read forwarding", e))? {
            opened.push(link.clone());
        }
    }
    let forwarding = host::forwards_by_default().map_err(|e| step("read forwarding", e))?;
    let uplink = uplink.map(str::to_owned);
    let record = Record { range: range.net(), uplink, ways, opened, forwarding };
    claim.write(&record).map_err(|e| step("write the claim", e))?;
    Ok(record)
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// The first range that neither a route nor another node has.
fn choose(
    config: &NetworkConfig,
    registry: &Registry,
    names: &Names,
    around: &Surroundings,
) -> Result<Range, OpenError> {
    let step = OpenError::step;
    let mut taken: Vec<Ipv4Net> = Vec::new();
    for other in registry.others(&names.tag).map_err(|e| step("read claims", e))? {
        let leftovers = around.has_links(&format!("vh{}-", other.tag));
        if !other.alive && !leftovers {
            if let Some(record) = &other.record {
                give_back(registry, &other.tag, record)
                    .map_err(|e| step("restore forwarding", e))?;
            }
            other.claim.remove().map_err(|e| step("remove a stale claim", e))?;
        } else if let Some(record) = other.record {
            taken.push(record.range);
        }
    }
    let free = |range: &Range| {
        around.clash(range.net()).is_none()
            && !taken.iter().any(|net| super::addresses::overlap(*net, range.net()))
    };
    match config.range {
        None => candidates(names.number).find(free).ok_or(OpenError::NoRange),
        Some(net) => {
            let range = Range::new(net).ok_or(OpenError::BadRange { net })?;
            if free(&range) { Ok(range) } else { Err(OpenError::RangeTaken { net }) }
        }
    }
}

/// The interfaces that guests' packets leave by and answers come in by: the uplink, and those
/// towards the allowed networks.
fn ways_out(
    config: &NetworkConfig,
    uplink: Option<&str>,
    netlink: &mut Netlink,
    around: &Surroundings,
) -> Vec<String> {
    let mut found: Vec<String> = uplink.map(str::to_owned).into_iter().collect();
    for net in &config.allow {
        let host = net.hosts().next().unwrap_or(net.addr());
        let Ok(Some(index)) = links::link_towards(netlink, host) else { continue };
        let Some(name) = around.link_name(index) else { continue };
        if name != "lo" && !found.iter().any(|known| known == name) {
            found.push(name.to_owned());
        }
    }
    found
}

/// Turns forwarding off again where a node had turned it on, or leaves that to a node which needs
/// it still.
fn give_back(registry: &Registry, tag: &str, record: &Record) -> io::Result<()> {
    let mut others = registry.others(tag)?;
    let wanted_by_others = host::forwards_by_default()? && !record.forwarding;
    for link in &record.opened {
        let heir = others.iter_mut().filter(|other| other.alive).find_map(|other| {
            let theirs = other.record.as_mut()?;
            theirs.ways.contains(link).then_some((&mut other.claim, theirs))
        });
        if let Some((claim, theirs)) = heir {
            if !theirs.opened.contains(link) {
                theirs.opened.push(link.clone());
                claim.write(theirs)?;
            }
            continue;
        }
        if wanted_by_others {
            continue;
        }
        match host::set_forwards(link, false) {
            // The interface itself is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

/// Removes all interfaces and namespaces of a node.
fn remove_devices(names: &Names, netlink: &mut Netlink) -> io::Result<()> {
    match fs::read_dir(&names.pins) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(entries) => {
            for entry in entries {
                namespace::unpin(&entry?.path())?;
            }
            fs::remove_dir(&names.pins)?;
        }
    }
    let all = links::list(netlink)?;
    let (ours, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|link| link.name.starts_with(&names.prefix));
    if ours.is_empty() {
        return Ok(());
    }
    // One request for all of them takes as long as one for one of them.
    let grouped = ours.iter().all(|link| link.group == names.number)
        && others.iter().all(|link| link.group != names.number);
    if grouped {
        let _ = netlink.apply(vec![links::delete_group(names.number)]);
    }
    for link in links::list(netlink)? {
        if link.name.starts_with(&names.prefix) {
            // The kernel may be removing it with its namespace right now.
            let _ = netlink.apply(vec![links::delete(link.index)]);
        }
    }
    let left = links::list(netlink)?.into_iter().find(|link| link.name.starts_with(&names.prefix));
    match left {
        Some(link) => Err(io::Error::other(format!("interface {} cannot be deleted", link.name))),
        None => Ok(()),
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(claim) = self.claim.take() else { return };
        let cleared = namespace::inside(&self.host, || {
            clear(&self.names, &self.nft, &self.claims, claim).map_err(io::Error::other)
        });
        if let Err(error) = cleared {
            tracing::warn!(%error, "network not removed completely; the next start sweeps it");
        }
    }
}

/// Removes everything of a node from the calling thread's namespace, the claim last.
fn clear(names: &Names, nft: &Nft, claims: &Path, mut claim: Claim) -> Result<(), SweepError> {
    let step = SweepError::step;
    let mut netlink = Netlink::route().map_err(|e| step("open netlink", e))?;
    remove_devices(names, &mut netlink).map_err(|e| step("remove interfaces", e))?;
    nft.run(&firewall::removal(&names.table)).map_err(|e| step("remove the firewall table", e))?;
    let registry = Registry::lock(claims).map_err(|e| step("lock claims", e))?;
    if let Some(record) = claim.read().map_err(|e| step("read the claim", e))? {
        give_back(&registry, &names.tag, &record).map_err(|e| step("restore forwarding", e))?;
    }
    claim.remove().map_err(|e| step("remove the claim", e))?;
    registry.tidy().map_err(|e| step("remove the last claim's directory", e))
}

/// Removes what a killed node with this run directory left in the host's network, and nothing
/// else. Nothing there is fine.
///
/// # Errors
/// [`SweepError`]; what could not be removed is still there and can be swept again.
pub fn sweep(root: &RunRoot) -> Result<(), SweepError> {
    let names = Names::of(root);
    let step = SweepError::step;
    let mut netlink = Netlink::route().map_err(|e| step("open netlink", e))?;
    let links = links::list(&mut netlink).map_err(|e| step("list interfaces", e))?;
    let claims = claim::directory().map_err(|e| step("find claims", e))?;
    let claimed = claims.join(format!("{}.json", names.tag)).exists();
    if !claimed && !names.pins.exists() && !links.iter().any(|l| l.name.starts_with(&names.prefix))
    {
        return Ok(());
    }
    let registry = Registry::lock(&claims).map_err(|e| step("lock claims", e))?;
    let claim = registry.claim(&names.tag).map_err(|e| step("claim addresses", e))?;
    let Some(claim) = claim else { return Err(SweepError::InUse { tag: names.tag }) };
    drop(registry);
    let nft = Nft::find().ok_or_else(|| step("find nft", missing()))?;
    clear(&names, &nft, &claims, claim)
}
