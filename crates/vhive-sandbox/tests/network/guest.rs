//! A guest without a VM: a small TCP/IP stack behind a slot's tap device.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    HardwareAddress, IpAddress, IpCidr, IpProtocol, Ipv4Packet, TcpPacket, UdpPacket,
};
use vhive_sandbox::network::{GATEWAY, GUEST, GUEST_MAC, GUEST_PREFIX};

/// Where every guest serves.
pub(crate) const PORT: u16 = 8080;
const SERVERS: usize = 4;
/// Length of the virtio-net header that a tap device puts before each frame.
const HEADER: usize = 10;

/// An IPv4 packet that reached the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) from: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
    pub(crate) protocol: IpProtocol,
}

/// A running guest; it ends (and closes its tap device) when dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    wake: Arc<OwnedFd>,
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// What was said back, or why nothing was.
pub(crate) type Answer = Result<String, &'static str>;

enum Command {
    Call(Call),
    Send(Vec<u8>),
}

struct Call {
    to: SocketAddrV4,
    /// What is still to be said.
    line: String,
    socket: Option<SocketHandle>,
    heard: String,
    until: Instant,
    answer: Sender<Answer>,
}

impl Guest {
    /// Starts a guest that answers a line of text on [`PORT`] with `<name> heard <line>`.
    pub(crate) fn start(name: &str, tap: OwnedFd) -> Self {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let seen = Arc::default();
        let (commands, orders) = channel();
        let wire = Wire { tap, received: VecDeque::new(), seen: Arc::clone(&seen) };
        rustix::io::ioctl_fionbio(&wire.tap, true).unwrap();
        let (name, alarm) = (name.to_owned(), Arc::clone(&wake));
        let (ready, on_air) = channel();
        let thread = std::thread::spawn(move || run(&name, wire, &alarm, &orders, Some(ready)));
        // Ends when the other side is dropped.
        let _ = on_air.recv_timeout(Duration::from_secs(5));
        Self { wake, commands: Some(commands), thread: Some(thread), seen }
    }

    /// Connects from the guest, says `hello`, and returns what is said back; or why nothing is.
    pub(crate) fn call(&self, to: SocketAddrV4, within: Duration) -> Receiver<Answer> {
        self.say(to, "hello", within)
    }

    /// Likewise with another line.
    pub(crate) fn say(&self, to: SocketAddrV4, line: &str, within: Duration) -> Receiver<Answer> {
        let (answer, result) = channel();
        let call = Call {
            to,
            line: format!("{line}\n"),
            socket: None,
            heard: String::new(),
            until: Instant::now() + within,
            answer,
        };
        self.order(Command::Call(call));
        result
    }

    /// Sends a datagram with any source address.
    pub(crate) fn send_udp(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
        self.order(Command::Send(udp_frame(from, to, payload)));
    }

    /// The packets that reached the guest so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn order(&self, command: Command) {
        self.commands.as_ref().unwrap().send(command).unwrap();
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.commands = None;
        rustix::io::write(&self.wake, &1_u64.to_ne_bytes()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn run(
    name: &str,
    mut wire: Wire,
    wake: &OwnedFd,
    orders: &Receiver<Command>,
    mut ready: Option<Sender<()>>,
) {
    let started = Instant::now();
    let now = || smoltcp::time::Instant::from_micros(started.elapsed().as_micros() as i64);
    let mac = HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC.0));
    let mut config = Config::new(mac);
    // Different local ports for different guests.
    config.random_seed = u64::from(std::process::id()) ^ started_nanos();
    let mut iface = Interface::new(config, &mut wire, now());
    iface.update_ip_addrs(|all| {
        all.push(IpCidr::new(IpAddress::Ipv4(GUEST), GUEST_PREFIX)).unwrap();
    });
    iface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
    let mut sockets = SocketSet::new(Vec::new());
    let servers: Vec<SocketHandle> = (0..SERVERS).map(|_| sockets.add(socket())).collect();
    let mut calls: Vec<Call> = Vec::new();
    let mut port = 40_000;
    // The stack drops what it sends to a neighbour that it does not know yet, and the host would
    // have to ask twice.
    wire.send(&arp_frame());
    loop {
        loop {
            match orders.try_recv() {
                Ok(Command::Send(frame)) => wire.send(&frame),
                Ok(Command::Call(mut call)) => {
                    port += 1;
                    let mut socket = socket();
                    socket.connect(iface.context(), call.to, port).unwrap();
                    call.socket = Some(sockets.add(socket));
                    calls.push(call);
                }
                Err(std::sync::mpsc::TryRecvError::Empty) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
            }
        }
        wire.read();
        if !wire.received.is_empty() {
            ready.take();
        }
        iface.poll(now(), &mut wire, &mut sockets);
        for server in &servers {
            serve(name, sockets.get_mut::<tcp::Socket>(*server));
        }
        calls.retain_mut(|call| {
            let socket = call.socket.expect("given when the call began");
            !advance(call, sockets.get_mut::<tcp::Socket>(socket))
        });
        iface.poll(now(), &mut wire, &mut sockets);
        let timer = iface.poll_delay(now(), &sockets).map(Duration::from);
        let expiry = calls.iter().map(|c| c.until.saturating_duration_since(Instant::now())).min();
        let pause = timer.into_iter().chain(expiry).min();
        let pause = pause.map(|pause| pause.try_into().unwrap());
        let mut fds = [
            PollFd::from_borrowed_fd(wire.tap.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN),
        ];
        poll(&mut fds, pause.as_ref()).unwrap();
        if fds[1].revents().contains(PollFlags::IN) {
            rustix::io::read(wake, &mut [0_u8; 8]).unwrap();
        }
    }
}

fn started_nanos() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    since.as_nanos() as u64
}

fn socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket
}

fn serve(name: &str, socket: &mut tcp::Socket<'_>) {
    if !socket.is_open() {
        socket.listen(PORT).unwrap();
    }
    if socket.can_recv() && socket.can_send() {
        let line = receive(socket);
        let answer = format!("{name} heard {}\n", line.trim_end());
        socket.send_slice(answer.as_bytes()).unwrap();
    }
    if socket.state() == tcp::State::CloseWait {
        socket.close();
    }
}

fn receive(socket: &mut tcp::Socket<'_>) -> String {
    socket.recv(|bytes| (bytes.len(), String::from_utf8_lossy(bytes).into_owned())).unwrap()
}

/// Whether the call is over.
fn advance(call: &mut Call, socket: &mut tcp::Socket<'_>) -> bool {
    if socket.can_send() && !call.line.is_empty() {
        let sent = socket.send_slice(call.line.as_bytes()).unwrap();
        call.line.drain(..sent);
    }
    if socket.can_recv() {
        call.heard += &receive(socket);
    }
    let result = if call.heard.ends_with('\n') {
        Ok(call.heard.trim_end().to_owned())
    } else if !socket.is_active() {
        Err("refused")
    } else if Instant::now() >= call.until {
        Err("no answer")
    } else {
        return false;
    };
    socket.abort();
    // Nobody need be waiting for it.
    let _ = call.answer.send(result);
    true
}

/// The tap device as the stack sees it.
struct Wire {
    tap: OwnedFd,
    received: VecDeque<Vec<u8>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Wire {
    fn read(&mut self) {
        let mut buffer = vec![0; 1 << 17];
        while let Ok(length) = rustix::io::read(&self.tap, &mut buffer) {
            let Some(frame) = buffer.get(HEADER..length) else { continue };
            self.seen.lock().unwrap().extend(look(frame));
            self.received.push_back(frame.to_vec());
        }
    }

    fn send(&self, frame: &[u8]) {
        let mut packet = vec![0; HEADER];
        packet.extend(frame);
        // A full queue loses frames, as on any wire.
        let _ = rustix::io::write(&self.tap, &packet);
    }
}

fn look(frame: &[u8]) -> Option<Seen> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    let protocol = packet.next_header();
    let ports = match protocol {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(packet.payload()).ok()?;
            (tcp.src_port(), tcp.dst_port())
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(packet.payload()).ok()?;
            (udp.src_port(), udp.dst_port())
        }
        _ => (0, 0),
    };
    let from = SocketAddrV4::new(packet.src_addr(), ports.0);
    let to = SocketAddrV4::new(packet.dst_addr(), ports.1);
    Some(Seen { from, to, protocol })
}

/// An Ethernet frame that asks for the gateway's hardware address.
fn arp_frame() -> Vec<u8> {
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(GUEST_MAC.0),
        source_protocol_addr: GUEST,
        target_hardware_addr: EthernetAddress::BROADCAST,
        target_protocol_addr: GATEWAY,
    };
    let mut bytes = vec![0; 14 + request.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_dst_addr(EthernetAddress::BROADCAST);
    frame.set_src_addr(EthernetAddress(GUEST_MAC.0));
    frame.set_ethertype(EthernetProtocol::Arp);
    request.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}

/// An Ethernet frame for the gateway with a UDP datagram.
fn udp_frame(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    // The gateway's hardware address is the guest's with another last byte.
    let [a, b, c, d, e, _] = GUEST_MAC.0;
    let length = 14 + 20 + 8 + payload.len();
    let mut bytes = vec![0; length];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_dst_addr(EthernetAddress([a, b, c, d, e, 1]));
    frame.set_src_addr(EthernetAddress(GUEST_MAC.0));
    frame.set_ethertype(EthernetProtocol::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    packet.set_version(4);
    packet.set_header_len(20);
    packet.set_total_len((length - 14) as u16);
    packet.set_hop_limit(64);
    packet.set_next_header(IpProtocol::Udp);
    packet.set_src_addr(*from.ip());
    packet.set_dst_addr(*to.ip());
    packet.fill_checksum();
    let mut udp = UdpPacket::new_unchecked(packet.payload_mut());
    udp.set_src_port(from.port());
    udp.set_dst_port(to.port());
    udp.set_len((8 + payload.len()) as u16);
    udp.payload_mut().copy_from_slice(payload);
    let address = |ip: &Ipv4Addr| IpAddress::Ipv4(*ip);
    udp.fill_checksum(&address(from.ip()), &address(to.ip()));
    bytes
}

struct Received(Vec<u8>);
struct Transmit<'a>(&'a Wire);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.send(&frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Transmit<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Transmit(self)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Transmit<'_>> {
        Some(Transmit(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        // What comes from the host itself has no checksum yet: the device offers to do without.
        capabilities.checksum.ipv4 = Checksum::Both;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}
