//! The guest: no operating system, one thread, one interface, one server.
//!
//! ```text
//!   VMM ─► boot.s ─► nano_main ─► command line, memory map, device
//!                        └─► loop: acknowledge → poll TCP/IP → serve → wait for an interrupt
//! ```
#![no_std]
#![no_main]

mod machine;

use core::fmt::Write as _;
use core::ops::Range;

use smoltcp::iface::{Config, Interface, SocketSet, SocketStorage};
use smoltcp::time::Duration;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use machine::area::Ram;
use machine::clock::Clock;
use machine::console::{Console, give_up};
use machine::nic::{Buffers, Nic};
use machine::once::Once;
use machine::{cpu, interrupts, start};
use nano::announce::announce;
use nano::command_line::Options;
use nano::pages::Area as _;
use nano::server::{CONNECTIONS, Server, WINDOW};

/// Where QEMU's `microvm` has virtio-mmio devices.
const QEMU_DEVICES: Range<usize> = 0xfeb0_0000..0xfeb0_4000;
const QEMU_DEVICE: usize = 0x200;

/// Bytes of the devices that a command line names: Firecracker's have a page each.
const NAMED_DEVICE: usize = 0x1000;

/// Longest sleep: an interrupt that were lost would cost no more.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// TCP's buffers, for receiving and for sending.
type Windows = [[[u8; WINDOW]; 2]; CONNECTIONS];

static BUFFERS: Once<Buffers> = Once::new(Buffers::EMPTY);
static WINDOWS: Once<Windows> = Once::new([[[0; WINDOW]; 2]; CONNECTIONS]);
static STORAGE: Once<[SocketStorage<'static>; CONNECTIONS]> =
    Once::new([SocketStorage::EMPTY; CONNECTIONS]);
static SERVER: Once<Server> = Once::new(Server::new());

/// Everything, once it has been found.
struct Guest {
    clock: Clock,
    nic: Nic,
    interface: Interface,
    sockets: SocketSet<'static>,
    server: &'static mut Server,
    ram: Ram,
}

/// What [`machine::start`] goes on with; the machine is as the VMM left it.
fn run(options: &Options, ram: Ram) -> ! {
    interrupts::set_up();
    let mut clock = Clock::start();
    let Some(mut nic) = find_nic(options) else {
        give_up(format_args!("no virtio network interface"));
    };
    let hardware = EthernetAddress(nic.mac());
    let mut config = Config::new(HardwareAddress::Ethernet(hardware));
    config.random_seed = cpu::time_stamp();
    let mut interface = Interface::new(config, &mut nic, clock.now());
    let Options { address, prefix, gateway, port, .. } = options;
    let own = IpCidr::new(IpAddress::Ipv4(*address), *prefix);
    interface.update_ip_addrs(|all| {
        // There is room for two.
        let _ = all.push(own);
    });
    // Likewise.
    let _ = interface.routes_mut().add_default_ipv4_route(*gateway);
    let taken = (STORAGE.take(), SERVER.take(), WINDOWS.take());
    let (Some(storage), Some(server), Some(windows)) = taken else {
        give_up(format_args!("started twice"));
    };
    let mut sockets = SocketSet::new(&mut storage[..]);
    server.listen(*port);
    for [receive, send] in windows {
        server.add(&mut sockets, receive, send);
    }
    let pages = ram.pages();
    // Nobody may be listening.
    let _ = writeln!(Console, "nano: {hardware} {own} port {port}, {pages} pages");
    let mut guest = Guest { clock, nic, interface, sockets, server, ram };
    // Sockets listen before the first frame is looked at: it may be for them.
    guest.server.serve(&mut guest.sockets, &mut guest.ram, guest.clock.now());
    announce(&mut guest.nic, (hardware, *address), *gateway);
    loop {
        guest.turn();
    }
}

/// The network interface: among the devices that the command line names, or else where QEMU has
/// its own.
fn find_nic(options: &Options) -> Option<Nic> {
    let mut buffers = BUFFERS.take();
    let mut named = options.devices.iter().map(|address| (*address, NAMED_DEVICE));
    if !options.devices.is_empty() {
        return named.find_map(|place| start::open_nic(place, false, &mut buffers));
    }
    let mut usual = QEMU_DEVICES.step_by(QEMU_DEVICE).map(|address| (address, QEMU_DEVICE));
    usual.find_map(|place| start::open_nic(place, true, &mut buffers))
}

impl Guest {
    /// Does what there is to do, and waits if that was nothing.
    fn turn(&mut self) {
        let Self { clock, nic, interface, sockets, server, ram } = self;
        let now = clock.now();
        nic.acknowledge();
        interface.poll(now, nic, sockets);
        if server.serve(sockets, ram, now) {
            return;
        }
        let wait = match interface.poll_delay(now, sockets) {
            Some(Duration::ZERO) => return,
            Some(delay) => delay.min(LONGEST_WAIT),
            None => LONGEST_WAIT,
        };
        self.wait(wait);
    }

    fn wait(&self, most: Duration) {
        let nanos = most.total_micros().saturating_mul(1000);
        interrupts::set_timer(u32::try_from(nanos).unwrap_or(u32::MAX));
        // Whatever comes after this ends the wait.
        if !self.nic.has_frame() {
            cpu::wait();
        }
    }
}
