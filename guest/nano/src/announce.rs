//! The first frame that the guest sends: it asks for its gateway's hardware address and thereby
//! tells its own. A gateway that had a packet for it before it was there has asked in vain, and would
//! ask again only after a second.

use core::net::Ipv4Addr;

use smoltcp::phy::{Device, TxToken as _};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr,
};

/// Sends it; says whether the device took it.
pub fn announce(
    device: &mut impl Device,
    (mac, address): (EthernetAddress, Ipv4Addr),
    gateway: Ipv4Addr,
) -> bool {
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: mac,
        source_protocol_addr: address,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: gateway,
    };
    let ethernet = EthernetRepr {
        src_addr: mac,
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Arp,
    };
    let Some(token) = device.transmit(Instant::ZERO) else { return false };
    token.consume(ethernet.buffer_len() + request.buffer_len(), |bytes| {
        let mut frame = EthernetFrame::new_unchecked(bytes);
        ethernet.emit(&mut frame);
        request.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    });
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::phy::{DeviceCapabilities, RxToken, TxToken};

    /// Keeps what is sent.
    struct Wire(Vec<u8>);

    struct Nothing;

    impl RxToken for Nothing {
        fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
            read(&[])
        }
    }

    impl TxToken for &mut Wire {
        fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
            self.0 = vec![0; length];
            write(&mut self.0)
        }
    }

    impl Device for Wire {
        type RxToken<'a> = Nothing;
        type TxToken<'a> = &'a mut Self;

        fn receive(&mut self, _: Instant) -> Option<(Nothing, &mut Self)> {
            None
        }

        fn transmit(&mut self, _: Instant) -> Option<&mut Self> {
            Some(self)
        }

        fn capabilities(&self) -> DeviceCapabilities {
            DeviceCapabilities::default()
        }
    }

    #[test]
    fn everybody_is_told_who_has_the_address() {
        let (mac, mut wire) = (EthernetAddress([6, 0, 1, 2, 3, 4]), Wire(Vec::new()));
        let [own, gateway] = [2, 1].map(|last| Ipv4Addr::new(198, 19, 255, last));
        assert!(announce(&mut wire, (mac, own), gateway));
        let frame = EthernetFrame::new_checked(&wire.0).unwrap();
        assert_eq!((frame.src_addr(), frame.dst_addr()), (mac, EthernetAddress::BROADCAST));
        let packet = ArpPacket::new_checked(frame.payload()).unwrap();
        assert_eq!(packet.operation(), ArpOperation::Request);
        assert_eq!(packet.source_protocol_addr(), own.octets());
        assert_eq!(packet.target_protocol_addr(), gateway.octets());
    }
}
