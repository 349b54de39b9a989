//! The four netlink requests that give the guest its address, built by hand: a library for all of
//! rtnetlink would be half of this program.
//!
//! # Source
//! `netlink(7)`, `rtnetlink(7)`; `include/uapi/linux/{netlink,rtnetlink,if_addr}.h`.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

const REQUEST_AND_ACK: u16 = 0x1 | 0x4;
const CREATE: u16 = 0x400;
const ERROR: u16 = 2;
const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const IPV4: u8 = 2;

/// A socket to the kernel's network configuration.
#[derive(Debug)]
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let (kind, flags) = (SocketType::RAW, SocketFlags::CLOEXEC);
        // Protocol 0 of this family is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, kind, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Brings an interface up.
    pub(crate) fn up(&self, interface: u32) -> io::Result<()> {
        let up = 1_u32.to_ne_bytes();
        let body = [&[0; 4][..], &interface.to_ne_bytes(), &up, &up].concat();
        self.ask(&request(NEW_LINK, 0, &body, &[]))
    }

    /// Gives an interface its address.
    pub(crate) fn address(&self, interface: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let body = [&[IPV4, prefix, 0, 0][..], &interface.to_ne_bytes()].concat();
        let (local, own) = (2, 1);
        let attributes = [(local, address.octets()), (own, address.octets())];
        self.ask(&request(NEW_ADDRESS, CREATE, &body, &attributes))
    }

    /// Sends everything else to the gateway.
    pub(crate) fn default_route(&self, interface: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let (main_table, boot, universe, unicast) = (254, 3, 0, 1);
        let body = [IPV4, 0, 0, 0, main_table, boot, universe, unicast, 0, 0, 0, 0];
        let (to_gateway, through) = (5, 4);
        let attributes = [(to_gateway, gateway.octets()), (through, interface.to_ne_bytes())];
        self.ask(&request(NEW_ROUTE, CREATE, &body, &attributes))
    }

    fn ask(&self, request: &[u8]) -> io::Result<()> {
        send(&self.0, request, SendFlags::empty())?;
        let mut reply = [0; 1024];
        let (length, _) = recv(&self.0, &mut reply[..], RecvFlags::empty())?;
        answer(&reply[..length])
    }
}

/// One message: header, fixed body, attributes of four bytes each.
fn request(kind: u16, flags: u16, body: &[u8], attributes: &[(u16, [u8; 4])]) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST_AND_ACK | flags).to_ne_bytes());
    message.extend([0; 8]); // sequence and port: one request at a time
    message.extend(body);
    for (kind, value) in attributes {
        message.extend(8_u16.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(value);
    }
    let length = u32::try_from(message.len()).expect("a few dozen bytes");
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// The kernel's answer: an error message whose number is zero for success.
fn answer(reply: &[u8]) -> io::Result<()> {
    let kind = reply.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    let number = reply.get(16..20).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    match (kind, number) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(number)) => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
        _ => Err(io::Error::other("the kernel gave no answer to a netlink request")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_length_and_attributes() {
        let message = request(NEW_ROUTE, CREATE, &[7; 12], &[(5, [10, 0, 0, 1])]);
        assert_eq!(message.len(), 16 + 12 + 8);
        assert_eq!(message[..4], 36_u32.to_ne_bytes());
        assert_eq!(message[6..8], 0x405_u16.to_ne_bytes());
        assert_eq!(message[28..], [8, 0, 5, 0, 10, 0, 0, 1]);
    }

    #[test]
    fn answers_are_told_apart() {
        let reply = |number: i32| {
            let header = [&20_u32.to_ne_bytes()[..], &ERROR.to_ne_bytes(), &[0; 10]].concat();
            [&header[..], &number.to_ne_bytes()].concat()
        };
        assert!(answer(&reply(0)).is_ok());
        let exists = rustix::io::Errno::EXIST.raw_os_error();
        assert_eq!(answer(&reply(-exists)).unwrap_err().raw_os_error(), Some(exists));
        assert!(answer(&[0; 3]).is_err());
        assert!(answer(&reply(i32::MIN)).is_err());
    }
}
