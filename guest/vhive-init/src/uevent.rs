//! Waits for devices by the kernel's own announcements, never by looking again and again.
//!
//! # Source
//! `Documentation/driver-api/…/kobject` (uevents over `NETLINK_KOBJECT_UEVENT`, group 1).

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::failure::{Failure, Step as _};

/// The kernel's announcements from the moment of opening on.
#[derive(Debug)]
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    /// Starts to listen.
    pub(crate) fn open() -> Result<Self, Failure> {
        let step = "listen for devices";
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(KOBJECT_UEVENT),
        )
        .step(step)?;
        bind(&socket, &SocketAddrNetlink::new(0, 1)).step(step)?;
        Ok(Self(socket))
    }

    /// Looks for something, once now and once after every announcement, until it is there. The
    /// host bounds the wait: it ends a guest that does not come up.
    pub(crate) fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> Result<T, Failure> {
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            // What was announced is of no interest, nor whether some announcements got lost:
            // each is only a reason to look.
            let mut announcement = [0; 4096];
            match recv(&self.0, &mut announcement[..], RecvFlags::empty()) {
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(error) => return Err(error).step("wait for a device"),
            }
        }
    }
}
