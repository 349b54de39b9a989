//! The network interface: a virtio-mmio device, its buffers, and the network stack's view of it.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering};

use heapless::Vec;
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, Transport as _};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::cpu;
use super::transport::StepByStep;

/// Descriptors of a queue, and buffers for receiving. Firecracker hands over no frame while all
/// buffers together hold less than the longest packet that there could be.
const QUEUE: usize = 32;

/// Buffers for sending.
const SENT: usize = 8;

/// Bytes of a buffer: more than the longest frame and virtio's header.
const BUFFER: usize = 2304;

const _: () = assert!(QUEUE * BUFFER >= 65562);

/// Longest frame, with its Ethernet header.
const FRAME: usize = 1514;

/// Pages that the queues take: two each.
const POOL: usize = 4;

#[repr(C, align(4096))]
struct Pool([[u8; PAGE_SIZE]; POOL]);

static mut PAGES: Pool = Pool([[0; PAGE_SIZE]; POOL]);
static USED: AtomicUsize = AtomicUsize::new(0);

/// Addresses are physical ones here, and memory is never given back.
#[derive(Debug)]
pub(crate) struct Flat;

// SAFETY: pages are handed out once, aligned, and are zero since the image was loaded; memory is
// mapped as it is, so a device needs no other address than the driver.
unsafe impl Hal for Flat {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let first = USED.fetch_add(pages, Ordering::Relaxed);
        if first.saturating_add(pages) > POOL {
            return (0, NonNull::dangling());
        }
        let page = (&raw mut PAGES).cast::<[u8; PAGE_SIZE]>().wrapping_add(first).cast::<u8>();
        (page.expose_provenance() as u64, NonNull::new(page).unwrap_or(NonNull::dangling()))
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        // Only PCI needs it.
        let pointer = ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap_or(0));
        NonNull::new(pointer).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr().expose_provenance() as u64
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Buffers of both directions, and a place for the frame that is being looked at.
#[derive(Debug)]
pub(crate) struct Buffers {
    receive: [[u8; BUFFER]; QUEUE],
    send: [[u8; BUFFER]; SENT],
    frame: [u8; FRAME],
}

impl Buffers {
    pub(crate) const EMPTY: Self =
        Self { receive: [[0; BUFFER]; QUEUE], send: [[0; BUFFER]; SENT], frame: [0; FRAME] };
}

type Net = VirtIONetRaw<Flat, StepByStep, QUEUE>;

/// The interface.
pub(crate) struct Nic {
    /// The frame that is being looked at.
    frame: &'static mut [u8; FRAME],
    sender: Sender,
}

/// What sending needs, which is the device.
struct Sender {
    net: Net,
    receive: &'static mut [[u8; BUFFER]; QUEUE],
    send: &'static mut [[u8; BUFFER]; SENT],
    /// Buffers for sending that are free.
    free: Vec<usize, SENT>,
    /// The buffer that went with each descriptor, and how much of it.
    sent: [(usize, usize); QUEUE],
}

/// Whether there is a virtio device at an address.
///
/// # Safety
/// Reading there must be harmless.
pub(crate) unsafe fn is_virtio(address: usize) -> bool {
    // SAFETY: the caller's promise.
    address.is_multiple_of(4) && unsafe { cpu::read_register(address) } == 0x7472_6976
}

impl Nic {
    /// Takes over the device at an address, if it is a network interface.
    ///
    /// # Safety
    /// There must be a virtio-mmio device, that nobody else uses.
    pub(crate) unsafe fn open(
        address: usize,
        size: usize,
        buffers: &mut Option<&'static mut Buffers>,
    ) -> Option<Self> {
        let header = ptr::with_exposed_provenance_mut::<VirtIOHeader>(address);
        // SAFETY: the caller's promise.
        let transport = unsafe { MmioTransport::new(NonNull::new(header)?, size) }.ok()?;
        if transport.device_type() != DeviceType::Network {
            return None;
        }
        let net = Net::new(StepByStep(transport)).ok()?;
        let Buffers { receive, send, frame } = buffers.take()?;
        let free = (0..SENT).collect();
        let mut sender = Sender { net, receive, send, free, sent: [(0, 0); QUEUE] };
        (0..QUEUE).for_each(|number| sender.offer(number));
        Some(Self { frame, sender })
    }

    pub(crate) fn mac(&self) -> [u8; 6] {
        self.sender.net.mac_address()
    }

    /// Lets the interrupt line fall. To be called before looking whether something has come.
    pub(crate) fn acknowledge(&mut self) {
        self.sender.net.ack_interrupt();
    }

    /// Whether a frame has come.
    pub(crate) fn has_frame(&self) -> bool {
        self.sender.net.poll_receive().is_some()
    }
}

impl Sender {
    /// Gives the device a buffer for a frame that comes.
    fn offer(&mut self, number: usize) {
        let Some(buffer) = self.receive.get_mut(number) else { return };
        // SAFETY: the buffer stays where it is, and is left alone until the device has used it.
        let token = unsafe { self.net.receive_begin(buffer) };
        // Each buffer takes one descriptor, and the one that became free last is taken first: a
        // buffer's number is always its descriptor's.
        assert_eq!(token.ok().map(usize::from), Some(number), "the queue is ours alone");
    }

    /// Copies the next frame that has come, and gives its buffer back to the device. One that is
    /// too short or too long is passed over.
    fn next_frame(&mut self, frame: &mut [u8; FRAME]) -> Option<usize> {
        loop {
            let token = self.net.poll_receive()?;
            let number = usize::from(token);
            let buffer = self.receive.get_mut(number)?;
            // SAFETY: it is the buffer that went with this descriptor.
            let used = unsafe { self.net.receive_complete(token, buffer) };
            let got = used.ok().and_then(|(header, length)| {
                let bytes = buffer.get(header..header.checked_add(length)?)?;
                frame.get_mut(..length)?.copy_from_slice(bytes);
                Some(length)
            });
            self.offer(number);
            if got.is_some() {
                return got;
            }
        }
    }

    /// Takes back the buffers that have been sent; says whether one is free.
    fn reclaim(&mut self) -> bool {
        while let Some(token) = self.net.poll_transmit() {
            let Some((number, end)) = self.sent.get(usize::from(token)).copied() else { break };
            let Some(buffer) = self.send.get(number).and_then(|all| all.get(..end)) else { break };
            // SAFETY: it is the buffer that went with this descriptor.
            if unsafe { self.net.transmit_complete(token, buffer) }.is_err() {
                break;
            }
            // There are no more buffers than places.
            let _ = self.free.push(number);
        }
        !self.free.is_empty()
    }

    fn send<R>(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        // A token is handed out only while a buffer is free, and taking it takes the one.
        let number = self.free.pop().unwrap_or(0);
        let buffer = &mut self.send[number];
        let header = self.net.fill_buffer_header(buffer).unwrap_or(0);
        let end = header + length;
        let written = write(&mut buffer[header..end]);
        // SAFETY: the buffer stays where it is, and is left alone until the device has sent it.
        if let Ok(token) = unsafe { self.net.transmit_begin(&buffer[..end]) } {
            self.sent[usize::from(token)] = (number, end);
        }
        written
    }
}

/// A frame that has come.
#[derive(Debug)]
pub(crate) struct RxToken<'a>(&'a [u8]);

/// Leave to send one frame.
pub(crate) struct TxToken<'a>(&'a mut Sender);

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        self.0.send(length, write)
    }
}

impl phy::Device for Nic {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        if !self.sender.reclaim() {
            return None;
        }
        let length = self.sender.next_frame(self.frame)?;
        Some((RxToken(self.frame.get(..length)?), TxToken(&mut self.sender)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        self.sender.reclaim().then_some(TxToken(&mut self.sender))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}
