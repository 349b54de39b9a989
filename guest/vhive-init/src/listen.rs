//! Notices that something listens on the function's port.

use std::fs;
use std::time::{Duration, Instant};

/// How soon to look first, and how rarely at most.
const FIRST: Duration = Duration::from_millis(1);
const RAREST: Duration = Duration::from_millis(20);

/// Waits for the port.
#[derive(Debug)]
pub(crate) struct Watch {
    port: u16,
    next: Instant,
    pause: Duration,
}

impl Watch {
    pub(crate) fn new(port: u16) -> Self {
        Self { port, next: Instant::now() + FIRST, pause: FIRST }
    }

    /// When to look next.
    pub(crate) const fn due(&self) -> Instant {
        self.next
    }

    /// Looks, if it is time to.
    pub(crate) fn look(&mut self) -> bool {
        let now = Instant::now();
        if now < self.next {
            return false;
        }
        self.pause = (self.pause * 2).min(RAREST);
        self.next = now + self.pause;
        ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .any(|table| fs::read_to_string(table).is_ok_and(|text| listens(&text, self.port)))
    }
}

/// Whether a table in the form of `/proc/net/tcp` has a listening socket on the port that can be
/// reached from outside.
fn listens(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = fields.next().and_then(|local| local.split_once(':'));
        let state = fields.nth(1);
        local.is_some_and(|(address, hex)| {
            state == Some(LISTEN)
                && u16::from_str_radix(hex, 16) == Ok(port)
                && !is_loopback(address)
        })
    })
}

/// Whether an address of the tables, native-endian words in hexadecimal, is 127.0.0.0/8, ::1 or
/// a v4-mapped 127.0.0.0/8.
fn is_loopback(address: &str) -> bool {
    match address.len() {
        8 => address.ends_with("7F"),
        32 => {
            address == "00000000000000000000000001000000"
                || (address.starts_with("0000000000000000FFFF0000") && address.ends_with("7F"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n\
        \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1\n\
        \x20  1: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 2\n\
        \x20  2: 0200000A:1F92 0100000A:C350 01 00000000:00000000 00:00000000 00000000 0 0 3\n";
    const TCP6: &str = "  sl  local_address                         remote_address  st\n\
        \x20  0: 00000000000000000000000000000000:1F93 00000000000000000000000000000000:0000 0A\n\
        \x20  1: 00000000000000000000000001000000:1F94 00000000000000000000000000000000:0000 0A\n\
        \x20  2: 0000000000000000FFFF00000100007F:1F95 00000000000000000000000000000000:0000 0A\n";

    #[test]
    fn only_reachable_listeners_count() {
        let on = |table, port| listens(table, port);
        assert!(!on(TCP, 8080), "loopback");
        assert!(on(TCP, 8081), "any address");
        assert!(!on(TCP, 8082), "a connection");
        assert!(!on(TCP, 80), "nothing there");
        assert!(on(TCP6, 8083), "any address, IPv6");
        assert!(!on(TCP6, 8084) && !on(TCP6, 8085), "loopback, IPv6");
    }

    proptest::proptest! {
        #[test]
        fn any_table_is_survived(table: String, port: u16) {
            let _ = listens(&table, port);
        }
    }
}
