//! The guest's network: loopback, the one interface, and the files that name hosts.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use vhive_api::guest::GuestNetwork;

use crate::failure::{Failure, Step as _};
use crate::netlink::Netlink;
use crate::uevent::Uevents;

/// Sets addresses and routes; needs `/sys`.
pub(crate) fn configure(network: Option<&GuestNetwork>, uevents: &Uevents) -> Result<(), Failure> {
    let step = "set up the network";
    let netlink = Netlink::open().step(step)?;
    netlink.up(index_of("lo").ok_or("no loopback interface").step(step)?).step(step)?;
    let Some(network) = network else {
        return Ok(());
    };
    let interface = uevents.until(|| index_of("eth0"))?;
    netlink.address(interface, network.address, network.prefix).step(step)?;
    netlink.up(interface).step(step)?;
    netlink.default_route(interface, network.gateway).step(step)
}

fn index_of(interface: &str) -> Option<u32> {
    let path = format!("/sys/class/net/{interface}/ifindex");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Sets the host name, and writes `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` of the
/// function's root.
pub(crate) fn name(hostname: &str, network: Option<&GuestNetwork>) -> Result<(), Failure> {
    rustix::system::sethostname(hostname.as_bytes()).step("set the host name")?;
    fs::create_dir_all("/etc").step("make /etc")?;
    let address = network.map(|network| network.address);
    let servers = network.map_or(&[][..], |network| &network.dns);
    replace("/etc/hostname", &format!("{hostname}\n")).step("write /etc/hostname")?;
    replace("/etc/hosts", &hosts(hostname, address)).step("write /etc/hosts")?;
    replace("/etc/resolv.conf", &resolv_conf(servers)).step("write /etc/resolv.conf")
}

fn hosts(hostname: &str, address: Option<Ipv4Addr>) -> String {
    let own = address.unwrap_or(Ipv4Addr::LOCALHOST);
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{hostname}\n")
}

fn resolv_conf(servers: &[Ipv4Addr]) -> String {
    servers.iter().fold(String::new(), |mut text, server| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "nameserver {server}");
        text
    })
}

/// Puts a new file in the place of whatever the image has there: a link, a fifo, a device.
fn replace(path: &str, text: &str) -> io::Result<()> {
    let path = Path::new(path);
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_name_the_guest_and_its_servers() {
        let text = hosts("hello-1", Some(Ipv4Addr::new(10, 0, 0, 2)));
        assert!(text.contains("127.0.0.1\tlocalhost\n") && text.ends_with("10.0.0.2\thello-1\n"));
        assert!(hosts("x", None).ends_with("127.0.0.1\tx\n"));
        let servers = [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)];
        assert_eq!(resolv_conf(&servers), "nameserver 1.1.1.1\nnameserver 8.8.8.8\n");
    }

    #[test]
    fn a_link_is_replaced_and_its_target_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("resolv.conf"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        replace(link.to_str().unwrap(), "new").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(fs::read_to_string(&link).unwrap(), "new");
        assert!(!link.is_symlink());
    }
}
