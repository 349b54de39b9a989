//! A blocking netlink conversation: requests in one send, their answers in order.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::constants::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;

use crate::deadline::Deadline;

/// One socket; it belongs for ever to the network namespace in which it was opened, whatever
/// namespace the thread that uses it is in.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Links, addresses, routes, neighbours.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(NETLINK_ROUTE)
    }

    /// Firewall and connection tracking.
    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(NETLINK_NETFILTER)
    }

    /// Hears of every change of a link.
    pub(super) fn link_changes() -> io::Result<Self> {
        const RTNLGRP_LINK: u32 = 1;
        let listener = Self::open(NETLINK_ROUTE)?;
        listener.socket.add_membership(RTNLGRP_LINK)?;
        Ok(listener)
    }

    /// The next messages that nobody asked for; none once the deadline has passed.
    pub(super) fn hear<M>(&mut self, deadline: Deadline) -> io::Result<Vec<M>>
    where
        M: NetlinkDeserializable,
    {
        let left = Timespec::try_from(deadline.left()).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut fds, Some(&left)))? == 0 {
            return Ok(Vec::new());
        }
        let inner = |message: NetlinkMessage<M>| match message.payload {
            NetlinkPayload::InnerMessage(message) => Some(message),
            _ => None,
        };
        Ok(self.receive()?.into_iter().filter_map(inner).collect())
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends requests (with their extra flags) at once and waits until the kernel has answered
    /// all of them.
    ///
    /// # Errors
    /// The first refusal, with the number of its request; later requests were tried all the same.
    pub(super) fn apply<M>(&mut self, requests: Vec<(u16, M)>) -> Result<(), (usize, io::Error)>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let first = self.sequence.wrapping_add(1);
        let count = requests.len();
        let mut wire = Vec::new();
        for (flags, message) in requests {
            self.append(&mut wire, NLM_F_ACK | flags, message);
        }
        self.socket.send(&wire, 0).map_err(|e| (0, e))?;
        let mut refused = None;
        let mut answered = 0;
        while answered < count {
            for answer in self.receive::<M>().map_err(|e| (answered, e))? {
                let NetlinkPayload::Error(error) = answer.payload else { continue };
                let number = answer.header.sequence_number.wrapping_sub(first) as usize;
                if number >= count {
                    continue;
                }
                answered += 1;
                if error.code.is_some() {
                    refused.get_or_insert((number, error.to_io()));
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Asks for one object.
    pub(super) fn get<M>(&mut self, request: M) -> io::Result<M>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.query(0, request)?.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Asks for all objects of a kind.
    pub(super) fn dump<M>(&mut self, request: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        self.query(NLM_F_DUMP, request)
    }

    fn query<M>(&mut self, flags: u16, request: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut wire = Vec::new();
        self.append(&mut wire, flags, request);
        self.socket.send(&wire, 0)?;
        let mut found = Vec::new();
        loop {
            for answer in self.receive::<M>()? {
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) if flags == 0 => {
                        return Ok(vec![message]);
                    }
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    _ => {}
                }
            }
        }
    }

    fn append<M: NetlinkSerializable>(&mut self, wire: &mut Vec<u8>, flags: u16, message: M) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = wire.len();
        wire.resize(start + message.buffer_len(), 0);
        message.serialize(&mut wire[start..]);
    }

    fn receive<M: NetlinkDeserializable>(&mut self) -> io::Result<Vec<NetlinkMessage<M>>> {
        let (datagram, _) = self.socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        let mut messages = Vec::new();
        while rest.len() >= 16 {
            let message = NetlinkMessage::<M>::deserialize(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            // A length is at least a header's, so this always gets on.
            let length = (message.header.length as usize).next_multiple_of(4).max(16);
            messages.push(message);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(messages)
    }
}
