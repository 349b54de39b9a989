//! The kernel command line: `nano.ip=198.19.255.2/30 nano.gw=198.19.255.1 nano.port=8080`, and
//! what VMMs add to it, `virtio_mmio.device=4K@0xc0001000:5`.

use core::net::Ipv4Addr;

use heapless::Vec;

/// Most devices that are looked at.
pub const MOST_DEVICES: usize = 32;

/// What the command line says; where it says nothing, or nonsense, the defaults of all guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Length of its network's prefix.
    pub prefix: u8,
    /// Through whom everything else is reached.
    pub gateway: Ipv4Addr,
    /// The function's TCP port.
    pub port: u16,
    /// Physical addresses of virtio-mmio devices.
    pub devices: Vec<usize, MOST_DEVICES>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::new(198, 19, 255, 2),
            prefix: 30,
            gateway: Ipv4Addr::new(198, 19, 255, 1),
            port: 8080,
            devices: Vec::new(),
        }
    }
}

impl Options {
    /// Reads a command line. Words that are unknown or do not parse are passed over.
    #[must_use]
    pub fn parse(line: &str) -> Self {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            let Some((name, value)) = word.split_once('=') else { continue };
            match name {
                "nano.ip" => options.set_address(value),
                "nano.gw" => set(&mut options.gateway, value.parse().ok()),
                "nano.port" => set(&mut options.port, value.parse().ok().filter(|port| *port > 0)),
                "virtio_mmio.device" => {
                    // One too many is one that is not looked at.
                    device(value).map(|at| options.devices.push(at));
                }
                _ => {}
            }
        }
        options
    }

    fn set_address(&mut self, value: &str) {
        let (address, prefix) = value.split_once('/').unwrap_or((value, "30"));
        let (Ok(address), Ok(prefix)) = (address.parse(), prefix.parse::<u8>()) else { return };
        if prefix <= 32 {
            (self.address, self.prefix) = (address, prefix);
        }
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

/// The address in `<size>@<address>:<irq>[:<id>]`.
fn device(value: &str) -> Option<usize> {
    let (_, rest) = value.split_once('@')?;
    let (address, _) = rest.split_once(':')?;
    match address.strip_prefix("0x") {
        Some(digits) => usize::from_str_radix(digits, 16).ok(),
        None => address.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::mix;

    #[test]
    fn what_is_said_replaces_the_defaults() {
        let line = "console=ttyS0 nano.ip=10.0.0.2/24 nano.gw=10.0.0.1 nano.port=9000 \
            virtio_mmio.device=4K@0xc0001000:5 virtio_mmio.device=512@4273995776:6:1";
        let options = Options::parse(line);
        assert_eq!(options.address, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!((options.prefix, options.port), (24, 9000));
        assert_eq!(options.gateway, Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(options.devices, [0xc000_1000, 0xfec0_0000]);
    }

    #[test]
    fn nonsense_is_passed_over() {
        let line = "nano.ip=1.2.3/8 nano.ip=1.2.3.4/33 nano.gw= nano.port=0 nano.port=70000 \
            virtio_mmio.device=4K virtio_mmio.device=4K@0xg:1 nano.ip nano. =";
        assert_eq!(Options::parse(line), Options::default());
    }

    #[test]
    fn any_line_is_survived() {
        let pieces =
            ["nano.ip=", "nano.gw", "=", "virtio_mmio.device=", "@", ":", "/", " ", "9", "0x"];
        for seed in 0..5000_u64 {
            let piece = |at| pieces[usize::try_from(mix(seed * 31 + at) % 10).unwrap()];
            let line: String = (0..seed % 23).map(piece).collect();
            assert!(Options::parse(&line).prefix <= 32, "{line}");
        }
        let many = "virtio_mmio.device=4K@0x1:5 ".repeat(MOST_DEVICES + 1);
        assert_eq!(Options::parse(&many).devices.len(), MOST_DEVICES);
    }
}
