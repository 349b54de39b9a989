//! Opening and closing a node's place in the host's network: addresses, names, firewall table,
//! forwarding.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

use super::addresses::{Range, candidates};
use super::claim::{Claim, DIRECTORY, Record, Registry};
use super::firewall::{self, HostRules, Nft};
use super::host::{self, Surroundings};
use super::netlink::Netlink;
use super::slot::Site;
use super::{NetworkConfig, OpenError, SweepError, links, namespace};
use crate::run_dir::RunRoot;

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

/// A node's place, open.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) names: Names,
    nft: Nft,
    claim: Option<Claim>,
}

/// Claims addresses and makes the firewall table, after removing what an earlier node of the same
/// tag left.
pub(super) fn open(
    config: &NetworkConfig,
    root: &RunRoot,
    dns: &[std::net::Ipv4Addr],
) -> Result<(Place, Site), OpenError> {
    host::check_host().map_err(OpenError::Host)?;
    let names = Names::of(root);
    let Some(nft) = Nft::find() else { return Err(OpenError::step("find nft", missing())) };
    let step = OpenError::step;
    let registry = Registry::lock(Path::new(DIRECTORY)).map_err(|e| step("lock claims", e))?;
    let claim = registry.claim(&names.tag).map_err(|e| step("claim addresses", e))?;
    let Some(mut claim) = claim else { return Err(OpenError::InUse { tag: names.tag }) };
    let mut netlink = Netlink::route().map_err(|e| step("open netlink", e))?;

    if let Some(old) = claim.read().map_err(|e| step("read the old claim", e))? {
        give_back(&registry, &names, &old).map_err(|e| step("restore forwarding", e))?;
    }
    remove_devices(&names, &mut netlink)
        .map_err(|e| step("remove an earlier node's devices", e))?;
    let around = Surroundings::look(&mut netlink).map_err(|e| step("list routes", e))?;
    let range = choose(config, &registry, &names, &around)?;
    let uplinks = uplinks(config, &mut netlink, &around)
        .map_err(|e| step("find the way out for guests", e))?;
    let mut record = Record { range: range.net(), uplinks, opened: Vec::new() };
    for link in &record.uplinks {
        if !host::forwards(link).map_err(|e| step("read forwarding", e))? {
            record.opened.push(link.clone());
        }
    }
    // Written before anything is changed, so that a sweep finds it.
    claim.write(&record).map_err(|e| step("write the claim", e))?;
    let place = Place { names, nft: nft.clone(), claim: Some(claim) };
    drop(registry);

    let rules = HostRules {
        table: &place.names.table,
        links: &place.names.prefix,
        range,
        uplinks: &record.uplinks,
        opened: &record.opened,
        allow: &config.allow,
        dns,
    };
    nft.run(&rules.script()).map_err(|e| step("load the firewall table", e))?;
    for link in &record.opened {
        host::set_forwards(link, true).map_err(|e| step("turn forwarding on", e))?;
    }
    fs::create_dir_all(&place.names.pins).map_err(|e| step("make the run directory", e))?;
    let site = Site {
        prefix: place.names.prefix.clone(),
        group: place.names.number,
        pins: place.names.pins.clone(),
        range,
        nft,
        ipv6: host::has_ipv6(),
    };
    Ok((place, site))
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
                let theirs = Names { tag: other.tag.clone(), ..names.clone() };
                give_back(registry, &theirs, record).map_err(|e| step("restore forwarding", e))?;
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

/// The interfaces through which guests leave: that of the default route (or the configured one),
/// and those towards the allowed networks.
fn uplinks(
    config: &NetworkConfig,
    netlink: &mut Netlink,
    around: &Surroundings,
) -> io::Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    match config.uplink.as_deref().or_else(|| around.default_uplink()) {
        Some(link) => found.push(link.to_owned()),
        None => tracing::warn!("no default route: guests reach nothing but allowed networks"),
    }
    for net in &config.allow {
        let Ok(Some(index)) = links::link_towards(netlink, net.addr()) else { continue };
        let Some(name) = around.link_name(index) else { continue };
        if name != "lo" && !found.iter().any(|known| known == name) {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

/// Turns forwarding off again where a node had turned it on, or leaves that to a node which needs
/// it still.
fn give_back(registry: &Registry, names: &Names, record: &Record) -> io::Result<()> {
    let mut others = registry.others(&names.tag)?;
    for link in &record.opened {
        let heir = others.iter_mut().filter(|other| other.alive).find_map(|other| {
            let theirs = other.record.as_mut()?;
            theirs.uplinks.contains(link).then_some((&mut other.claim, theirs))
        });
        if let Some((claim, theirs)) = heir {
            if !theirs.opened.contains(link) {
                theirs.opened.push(link.clone());
                claim.write(theirs)?;
            }
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
        if let Err(error) = clear(&self.names, &self.nft, claim) {
            tracing::warn!(%error, "network not removed completely; the next start sweeps it");
        }
    }
}

/// Removes everything of a node from the host, the claim last.
fn clear(names: &Names, nft: &Nft, mut claim: Claim) -> Result<(), SweepError> {
    let step = SweepError::step;
    let mut netlink = Netlink::route().map_err(|e| step("open netlink", e))?;
    remove_devices(names, &mut netlink).map_err(|e| step("remove interfaces", e))?;
    nft.run(&firewall::removal(&names.table)).map_err(|e| step("remove the firewall table", e))?;
    let registry = Registry::lock(Path::new(DIRECTORY)).map_err(|e| step("lock claims", e))?;
    if let Some(record) = claim.read().map_err(|e| step("read the claim", e))? {
        give_back(&registry, names, &record).map_err(|e| step("restore forwarding", e))?;
    }
    claim.remove().map_err(|e| step("remove the claim", e))
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
    let claimed = Path::new(DIRECTORY).join(format!("{}.json", names.tag)).exists();
    if !claimed && !names.pins.exists() && !links.iter().any(|l| l.name.starts_with(&names.prefix))
    {
        return Ok(());
    }
    let registry = Registry::lock(Path::new(DIRECTORY)).map_err(|e| step("lock claims", e))?;
    let claim = registry.claim(&names.tag).map_err(|e| step("claim addresses", e))?;
    let Some(claim) = claim else { return Err(SweepError::InUse { tag: names.tag }) };
    drop(registry);
    let nft = Nft::find().ok_or_else(|| step("find nft", missing()))?;
    clear(&names, &nft, claim)
}
