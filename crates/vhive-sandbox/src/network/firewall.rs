//! The firewall: one table per node in the host's namespace, one small table per slot in its own.
//!
//! The host's rules match the slots by the prefix of their interfaces' names, so a packet meets
//! the same few rules however many slots there are.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use ipnet::Ipv4Net;

use super::addresses::{GATEWAY, GUEST, INGRESS_PORT, Range};
use super::slot::{OPEN_GROUP, UPLINK};
use super::{inner, tap};

/// Connections that one guest may have open at a time, so that none fills the host's table.
const MOST_FLOWS: u32 = 4096;

/// Never reachable from a guest, however the host routes it, unless allowed.
const NEVER: &str = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0-255.255.255.255";

/// The `nft` program.
#[derive(Clone, Debug)]
pub(super) struct Nft {
    program: PathBuf,
}

impl Nft {
    /// Looks it up where administrators' programs are; a daemon's `PATH` may lack those.
    pub(super) fn find() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let known = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
        std::env::split_paths(&path)
            .chain(known)
            .map(|dir| dir.join("nft"))
            .find(|program| program.is_file())
            .map(|program| Self { program })
    }

    /// Applies a script in the calling thread's network namespace: all of it, or nothing.
    pub(super) fn run(&self, script: &str) -> io::Result<()> {
        self.output(&["-f", "-"], script).map(drop)
    }

    /// What `nft` prints for these arguments.
    pub(super) fn list(&self, arguments: &[&str]) -> io::Result<String> {
        self.output(arguments, "")
    }

    fn output(&self, arguments: &[&str], input: &str) -> io::Result<String> {
        let mut child = Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input has failed, and says why below.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let first = words.lines().next().unwrap_or("no reason given");
        Err(io::Error::other(format!("nft: {first}")))
    }
}

/// What the host's rules depend on.
#[derive(Clone, Debug)]
pub(super) struct HostRules<'a> {
    /// The table's name.
    pub(super) table: &'a str,
    /// How the slots' interfaces begin.
    pub(super) links: &'a str,
    pub(super) range: Range,
    /// Port of the ingress at the node's own address.
    pub(super) ingress: u16,
    /// Interface through which guests may leave for anywhere.
    pub(super) uplink: Option<&'a str>,
    /// Interfaces that forward packets only because we said so.
    pub(super) opened: &'a [String],
    pub(super) allow: &'a [Ipv4Net],
    pub(super) dns: &'a [Ipv4Addr],
}

impl HostRules<'_> {
    /// The script that makes (or remakes) the table.
    pub(super) fn script(&self) -> String {
        let Self { table, links, range, ingress, .. } = self;
        let (node, range) = (range.node(), range.net());
        let slots = format!("\"{links}*\"");
        let allow = match_list("ip daddr", self.allow, "accept");
        let dns = match_list("ip daddr", self.dns, "meta l4proto { tcp, udp } th dport 53 accept");
        let uplink = match_list("oifname", &quoted(self.uplink), "accept");
        let guard = match_list(
            "iifname",
            &quoted(self.opened.iter().map(String::as_str)),
            "ct state new ct status and dnat == 0 drop",
        );
        format!(
            "table inet {table} {{}}
delete table inet {table}
table inet {table} {{
  # Before any address translation of the host's own.
  chain arriving {{
    type filter hook prerouting priority raw; policy accept;
    iifname {slots} jump first_slot
  }}
  chain first_slot {{
    meta nfproto != ipv4 drop
    fib saddr . iif oif missing drop
    {dns}
    {allow}
    ip daddr {{ {NEVER} }} drop
  }}
  # Guest to host: answers, and the ingress, whose rule in the slot says who may.
  chain to_host {{
    type filter hook input priority filter; policy accept;
    iifname {slots} jump host_slot
    iifname != \"lo\" ip daddr {node} drop
  }}
  chain host_slot {{
    ct state established,related accept
    ip daddr {node} tcp dport {ingress} accept
    {dns}
    {allow}
    drop
  }}
  # Host to where no slot is any more: to nobody, instead of out into the world.
  chain from_host {{
    type filter hook output priority filter; policy accept;
    ip daddr {range} oifname != \"lo\" oifname != {slots} reject with icmp type host-unreachable
  }}
  # Guest to elsewhere, and elsewhere to guest.
  chain passing {{
    type filter hook forward priority filter; policy accept;
    iifname {slots} jump pass_out
    oifname {slots} jump pass_in
    {guard}
  }}
  chain pass_out {{
    oifname {slots} drop
    ct state invalid drop
    tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    ct state established,related accept
    {dns}
    {allow}
    {uplink}
    drop
  }}
  chain pass_in {{
    tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    ct state established,related accept
    drop
  }}
  chain leaving {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {range} oifname != {slots} masquerade
  }}
}}
"
        )
    }
}

/// Removes a table that may not be there.
pub(super) fn removal(table: &str) -> String {
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

/// `matcher { items } verdict`, or nothing without items: an empty set is a syntax error.
fn match_list<T: std::fmt::Display>(matcher: &str, items: &[T], verdict: &str) -> String {
    let mut list = String::new();
    for item in items {
        let comma = if list.is_empty() { "" } else { ", " };
        let _ = write!(list, "{comma}{item}");
    }
    if list.is_empty() { String::new() } else { format!("{matcher} {{ {list} }} {verdict}") }
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    names.into_iter().map(|name| format!("\"{name}\"")).collect()
}

/// The script for a slot's own namespace: its clone address stands for the guest, only the node
/// itself may connect, and only as who the guest is may it send. The node's ingress (its port at the
/// node's address) is found at the gateway's address, the same in every slot, and refused at once
/// while the slot's uplink is not in the group that says so.
pub(super) fn slot_script(node: Ipv4Addr, clone: Ipv4Addr, ingress: u16) -> String {
    let guest = format!("{{ \"{}\", \"{}\" }}", tap::NAME, inner::OUTER);
    let syn_only = "tcp flags & (fin | syn | rst | ack) != syn";
    format!(
        "table ip slot {{
  chain to_guest {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname \"{UPLINK}\" ip saddr {node} ip daddr {clone} dnat to {GUEST}
    iifname {guest} ip daddr {GATEWAY} tcp dport {INGRESS_PORT} dnat to {node}:{ingress}
  }}
  chain from_guest {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{UPLINK}\" ip saddr {GUEST} snat to {clone}
  }}
  chain gateway {{
    type filter hook input priority filter; policy drop;
    iifname {guest} ip saddr {GUEST} icmp type echo-request accept
  }}
  chain passing {{
    type filter hook forward priority filter; policy drop;
    iifname {guest} ip saddr != {GUEST} drop
    ct state established,related accept
    iifname \"{UPLINK}\" {syn_only} reject with tcp reset
    ct state != new drop
    iifname \"{UPLINK}\" ct status dnat accept
    ct count over {MOST_FLOWS} drop
    ip daddr {node} tcp dport {ingress} oifgroup != {OPEN_GROUP} reject with tcp reset
    iifname {guest} oifname \"{UPLINK}\" accept
  }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_without_items_leave_no_rule() {
        let range = super::super::addresses::candidates(0).next().expect("some");
        let bare = HostRules {
            table: "vhive_0",
            links: "vh0-",
            range,
            ingress: 1,
            uplink: None,
            opened: &[],
            allow: &[],
            dns: &[],
        };
        let script = bare.script();
        assert!(!script.contains("{  }") && !script.contains("dport 53"), "{script}");
        let allow = ["10.0.0.0/8".parse().expect("a network")];
        let opened = ["eth0".to_owned()];
        let full = HostRules { uplink: Some("eth0"), opened: &opened, allow: &allow, ..bare };
        let script = full.script();
        assert_eq!(script.matches("ip daddr { 10.0.0.0/8 } accept").count(), 3);
        assert!(script.contains("oifname { \"eth0\" } accept"));
        assert!(script.contains("iifname { \"eth0\" } ct state new"));
    }
}
