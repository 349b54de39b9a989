//! The guest's network: loopback, the one interface, and the files that name hosts.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use vhive_api::guest::GuestNetwork;
use vhive_api::inside::{hosts, resolv_conf};

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
    no_ipv6("eth0").step(step)?;
    low_ports_for_all().step(step)?;
    netlink.address(interface, network.address, network.prefix).step(step)?;
    netlink.up(interface).step(step)?;
    netlink.default_route(interface, network.gateway).step(step)
}

/// Gives an interface no address of IPv6, which leads nowhere from here. Its making goes on for a second after
/// the interface is up, and so after a snapshot, in every clone: a fifth of all code that the kernel of an
/// emulated clone runs until the reply. Sockets of IPv6 take IPv4's connections as ever.
fn no_ipv6(interface: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    match fs::write(path, "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

/// Lets whoever is not root listen on ports below 1024, as container engines do: there is nobody else's
/// to be taken for.
fn low_ports_for_all() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
}

fn index_of(interface: &str) -> Option<u32> {
    let path = format!("/sys/class/net/{interface}/ifindex");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The files of the function's root that name hosts, kept open so that a clone can rename itself
/// at the cost of a few writes. What the function has put in their place stays.
#[derive(Debug)]
pub(crate) struct Names {
    /// Names of the gateway, as hosts has them.
    gateway: Vec<String>,
    hostname: Kept,
    hosts: Kept,
    resolv_conf: Kept,
}

#[derive(Debug)]
struct Kept {
    path: &'static str,
    file: File,
    text: String,
}

/// Sets the host name, and writes `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` of the
/// function's root. `gateway` are names under which the gateway is to be found.
pub(crate) fn name(
    hostname: &str,
    network: Option<&GuestNetwork>,
    gateway: &[String],
) -> Result<Names, Failure> {
    fs::create_dir_all("/etc").step("make /etc")?;
    let mut names = Names {
        gateway: gateway.to_vec(),
        hostname: Kept::make("/etc/hostname")?,
        hosts: Kept::make("/etc/hosts")?,
        resolv_conf: Kept::make("/etc/resolv.conf")?,
    };
    names.rename(hostname, network)?;
    Ok(names)
}

impl Names {
    /// Sets the host name anew, in the kernel and in the files.
    pub(crate) fn rename(
        &mut self,
        hostname: &str,
        network: Option<&GuestNetwork>,
    ) -> Result<(), Failure> {
        // A container's runtime has set it.
        if rustix::system::uname().nodename().to_bytes() != hostname.as_bytes() {
            rustix::system::sethostname(hostname.as_bytes()).step("set the host name")?;
        }
        let servers = network.map_or(&[][..], |network| &network.dns);
        self.hostname.set(format!("{hostname}\n"))?;
        self.hosts.set(hosts(hostname, network, &self.gateway))?;
        self.resolv_conf.set(resolv_conf(servers))
    }
}

impl Kept {
    fn make(path: &'static str) -> Result<Self, Failure> {
        let file = replace(path).step(format!("make {path}"))?;
        Ok(Self { path, file, text: String::new() })
    }

    fn set(&mut self, text: String) -> Result<(), Failure> {
        if text != self.text {
            let step = || format!("write {}", self.path);
            self.file.write_all_at(text.as_bytes(), 0).step(step())?;
            if text.len() < self.text.len() {
                self.file.set_len(text.len() as u64).step(step())?;
            }
            self.text = text;
        }
        Ok(())
    }
}

/// Puts a new file in the place of whatever the image has there: a link, a fifo, a device.
fn replace(path: &str) -> io::Result<File> {
    let path = Path::new(path);
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    fs::OpenOptions::new().write(true).create_new(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_replaced_and_its_target_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("resolv.conf"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let path: &'static str = link.to_str().unwrap().to_owned().leak();
        let mut kept = Kept::make(path).unwrap();
        for text in ["a longer text", "new"] {
            kept.set(text.to_owned()).unwrap();
            assert_eq!(fs::read_to_string(&link).unwrap(), text);
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(fs::read_to_string(&link).unwrap(), "new");
        assert!(!link.is_symlink());
    }
}
