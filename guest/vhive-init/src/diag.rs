//! Asks the kernel which sockets listen. On a host with room for many connections, reading
//! `/proc/net/tcp` walks through all of it and takes ten milliseconds; this walks through those
//! that listen.
//!
//! # Source
//! `sock_diag(7)`; `include/uapi/linux/{netlink,inet_diag}.h`; `include/linux/netlink.h`
//! (`NLMSG_GOODSIZE`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

const REQUEST_AND_DUMP: u16 = 0x1 | 0x300;
const BY_FAMILY: u16 = 20;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const TCP: u8 = 6;
/// The state `TCP_LISTEN` as a bit.
const LISTENING: u32 = 1 << 10;
/// Bytes of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// The kernel divides a dump into datagrams of a page, or 8 KiB where pages are larger. On the stack,
/// where init has had as much before: what the heap has once been lent stays with it.
const REPLY: usize = 8 << 10;
/// Bytes of a netlink message's header.
const HEADER: usize = 16;

/// A socket to ask with.
#[derive(Debug)]
pub(crate) struct Diag(OwnedFd);

impl Diag {
    pub(crate) fn open() -> io::Result<Self> {
        let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
        let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(SOCK_DIAG))?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self(socket))
    }

    /// The addresses at which something listens on a port.
    #[inline(never)] // Else its caller would have the buffer all the time.
    pub(crate) fn listeners(&self, port: u16) -> io::Result<Vec<IpAddr>> {
        let mut found = Vec::new();
        for family in [IPV4, IPV6] {
            send(&self.0, &request(family), SendFlags::empty())?;
            let mut reply = [0; REPLY];
            loop {
                // The answer is there already, or made when it is read.
                let (length, _) = recv(&self.0, &mut reply[..], RecvFlags::DONTWAIT)?;
                if length == 0 || read(&reply[..length], port, &mut found)? {
                    break;
                }
            }
        }
        Ok(found)
    }
}

fn request(family: u8) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + REQUEST);
    let length = u32::try_from(HEADER + REQUEST).expect("a few dozen bytes");
    message.extend(length.to_ne_bytes());
    message.extend(BY_FAMILY.to_ne_bytes());
    message.extend(REQUEST_AND_DUMP.to_ne_bytes());
    message.extend([0; 8]); // sequence and port: one request at a time
    message.extend([family, TCP, 0, 0]);
    message.extend(LISTENING.to_ne_bytes());
    message.resize(HEADER + REQUEST, 0);
    message
}

/// Reads the messages of one datagram; whether the dump is complete.
fn read(mut datagram: &[u8], port: u16, found: &mut Vec<IpAddr>) -> io::Result<bool> {
    while datagram.len() >= HEADER {
        let length = u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]);
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let body = datagram.get(HEADER..length).ok_or_else(|| io::Error::other("cut off"))?;
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let number = body.get(..4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
                return Err(io::Error::from_raw_os_error(number.unwrap_or(0).wrapping_neg()));
            }
            _ => found.extend(listener(body, port)),
        }
        let next = length.next_multiple_of(4).min(datagram.len());
        datagram = &datagram[next..];
    }
    Ok(false)
}

/// The address of a `struct inet_diag_msg`, if it is one of this port.
fn listener(message: &[u8], port: u16) -> Option<IpAddr> {
    let source = message.get(4..6)?;
    if u16::from_be_bytes([source[0], source[1]]) != port {
        return None;
    }
    let address = message.get(8..24)?;
    match message[0] {
        IPV4 => Some(Ipv4Addr::new(address[0], address[1], address[2], address[3]).into()),
        IPV6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_listens_is_found_with_its_address() {
        let Ok(diag) = Diag::open() else {
            println!("SKIP what_listens_is_found_with_its_address: no NETLINK_SOCK_DIAG");
            return;
        };
        let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = loopback.local_addr().unwrap().port();
        let found = match diag.listeners(port) {
            Ok(found) => found,
            Err(error) => {
                println!("SKIP what_listens_is_found_with_its_address: {error}");
                return;
            }
        };
        assert_eq!(found, [IpAddr::from(Ipv4Addr::LOCALHOST)]);
        drop(loopback);
        assert!(diag.listeners(port).unwrap().is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_survived(datagram: Vec<u8>, port: u16) {
            let _ = read(&datagram, port, &mut Vec::new());
        }
    }
}
