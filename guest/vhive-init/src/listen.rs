//! Notices that something listens on the function's port.
//!
//! The kernel has no event for `listen` that costs nothing: tracing it adds 90 ms to an emulated
//! boot, a system call filter slows the function for the rest of its life. So this looks at
//! `/proc/net/tcp`, in a machine from a thread of the lowest priority: while the function computes,
//! the thread hardly runs; when the function waits, as it does once it listens, the thread looks at
//! once. In a container init looks itself, and asks for what listens ([`crate::diag`]). The pauses
//! grow with the time that has passed, so that the report is late by 2 % at most. In a container,
//! where a look costs the function CPU time (gVisor takes a millisecond for one), they grow with that
//! as well.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, eventfd, poll};

use crate::World;
use crate::diag::Diag;
use crate::failure::{Failure, Step as _};

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(20);

/// Part of the time passed that the next pause takes.
const PART: u32 = 50;

/// A container's pause is at least so many times the look before it, which bounds the part of a
/// processor that looking takes.
const REST: u32 = 5;

/// Bytes asked for at once: the whole of an ordinary table.
const CHUNK: usize = 8 << 10;

/// The lowest of the nice values.
const LOWEST: i32 = 19;

/// What a look at the port has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    Nothing,
    /// Something that only the guest itself can reach.
    Loopback,
    Reachable,
}

/// How init learns of it.
#[derive(Debug)]
pub(crate) enum Watch {
    /// In a machine: a thread looks, and then makes this readable.
    Thread(OwnedFd),
    /// In a container: init itself, between its other events. A thread that has ended leaves its
    /// stack and its heap behind, 60 KiB of each of many containers.
    Turns(Looks),
}

/// Looking again and again, until something is there.
#[derive(Debug)]
pub(crate) struct Looks {
    port: u16,
    world: World,
    diag: Option<Diag>,
    begun: Instant,
    /// When the next look is due.
    at: Instant,
    warned: bool,
}

/// Starts to look.
pub(crate) fn watch(port: u16, world: World) -> Result<Watch, Failure> {
    let mut looks = Looks::new(port, world);
    if world == World::Container {
        return Ok(Watch::Turns(looks));
    }
    let step = "watch the function's port";
    let listening = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).step(step)?;
    let mine = listening.try_clone().step(step)?;
    let thread = thread::Builder::new().name("watch".to_owned());
    thread.spawn(move || look_until_there(&mut looks, &mine)).step(step)?;
    Ok(Watch::Thread(listening))
}

fn look_until_there(looks: &mut Looks, listening: &OwnedFd) {
    let thread = rustix::thread::gettid();
    // At the usual priority it would only be less polite.
    let _ = rustix::process::setpriority_process(Some(thread), LOWEST);
    while !looks.is_there() {
        let pause = looks.at.saturating_duration_since(Instant::now());
        let pause = Timespec::try_from(pause).unwrap_or_default();
        // Woken early it only looks early.
        let _ = poll(&mut [], Some(&pause));
    }
    // An eventfd takes this once without waiting.
    let _ = rustix::io::write(listening, &1_u64.to_ne_bytes());
}

impl Looks {
    fn new(port: u16, world: World) -> Self {
        // In a machine of its own the table is short, and the kernel may lack the other way.
        let diag = match world {
            World::Machine => None,
            World::Container => Diag::open().ok(),
        };
        let begun = Instant::now();
        Self { port, world, diag, begun, at: begun, warned: false }
    }

    /// When the next look is due.
    pub(crate) const fn at(&self) -> Instant {
        self.at
    }

    /// Looks, and says when to do so again.
    pub(crate) fn is_there(&mut self) -> bool {
        let looked = Instant::now();
        let asked = self.diag.as_ref().map(|diag| diag.listeners(self.port).map(|all| best(&all)));
        let found = match asked {
            Some(Ok(found)) => found,
            Some(Err(_)) => {
                self.diag = None;
                look(self.port)
            }
            None => look(self.port),
        };
        if found == Found::Loopback && !self.warned {
            self.warned = true;
            crate::say(&format!(
                "port {} is open on the loopback address only, where the host cannot \
                 reach it; let the function listen on 0.0.0.0 or [::]",
                self.port
            ));
        }
        let least = match self.world {
            World::Machine => SHORTEST,
            World::Container => SHORTEST.max(looked.elapsed() * REST).min(LONGEST),
        };
        self.at = Instant::now() + (self.begun.elapsed() / PART).clamp(least, LONGEST);
        found == Found::Reachable
    }
}

/// The best of the addresses at which something listens.
fn best(addresses: &[IpAddr]) -> Found {
    let found = addresses.iter().map(|address| match address.to_canonical().is_loopback() {
        true => Found::Loopback,
        false => Found::Reachable,
    });
    found.max().unwrap_or(Found::Nothing)
}

fn look(port: u16) -> Found {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let found = tables.map(|table| read(table).map(|text| find(&text, port)));
    found.into_iter().flatten().max().unwrap_or(Found::Nothing)
}

/// A kernel's table, in as few system calls as it takes: under gVisor each costs as much as the
/// table.
fn read(path: &str) -> io::Result<String> {
    let mut table = File::open(path)?;
    let mut bytes = Vec::new();
    loop {
        let there = bytes.len();
        bytes.resize(there + CHUNK, 0);
        let got = table.read(&mut bytes[there..])?;
        bytes.truncate(there + got);
        if got == 0 {
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}

/// The best listening socket on the port in a table in the form of `/proc/net/tcp`.
fn find(table: &str, port: u16) -> Found {
    const LISTEN: &str = "0A";
    let found = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (address, hex) = fields.next()?.split_once(':')?;
        let listens = fields.nth(1) == Some(LISTEN) && u16::from_str_radix(hex, 16) == Ok(port);
        let found = if is_loopback(address) { Found::Loopback } else { Found::Reachable };
        listens.then_some(found)
    });
    found.max().unwrap_or(Found::Nothing)
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
        assert_eq!(find(TCP, 8080), Found::Loopback);
        assert_eq!(find(TCP, 8081), Found::Reachable);
        assert_eq!(find(TCP, 8082), Found::Nothing, "a connection");
        assert_eq!(find(TCP, 80), Found::Nothing);
        assert_eq!(find(TCP6, 8083), Found::Reachable);
        assert_eq!(find(TCP6, 8084), Found::Loopback);
        assert_eq!(find(TCP6, 8085), Found::Loopback, "an IPv4 address");
    }

    #[test]
    fn a_look_finds_what_listens_and_puts_the_next_one_off() {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for world in [World::Machine, World::Container] {
            let mut looks = Looks::new(port, world);
            assert!(looks.at() <= Instant::now(), "the first one is due at once");
            assert!(looks.is_there(), "{world:?}");
            let mut looks = Looks::new(0, world);
            assert!(!looks.is_there(), "{world:?}");
            let pause = looks.at().saturating_duration_since(looks.begun);
            assert!((SHORTEST..LONGEST * 100).contains(&pause), "{pause:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_table_is_survived(table: String, port: u16) {
            let _ = find(&table, port);
        }
    }
}
