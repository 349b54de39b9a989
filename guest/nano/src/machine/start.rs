//! Where the assembly goes on in Rust, and what only the start may promise.

use core::arch::global_asm;

use nano::command_line::Options;

use super::area::{self, Ram};
use super::console::give_up;
use super::interrupts::{self, IO_APIC, SECOND_IO_APIC};
use super::nic::{self, Buffers, Nic};
use super::start_info;

global_asm!(include_str!("boot.s"), options(att_syntax));

/// Called by the entry with the start information's address.
///
/// # Safety
/// Only by the entry, once.
#[unsafe(no_mangle)]
unsafe extern "C" fn nano_main(start_info: u64) -> ! {
    // SAFETY: it is what the VMM passed; the image is all that has been written to.
    let Some(found) = (unsafe { start_info::read(start_info, area::image_end()) }) else {
        give_up(format_args!("no PVH start information at {start_info:#x}"));
    };
    let options = Options::parse(found.command_line);
    let Some(range) = found.ram else {
        give_up(format_args!("the memory map does not have the image"));
    };
    // SAFETY: the VMM says that it is RAM; what it has there itself lies below the image.
    let ram = unsafe { Ram::new(&range) };
    crate::run(&options, ram)
}

/// The network interface at a place, with its size, if it is one; its interrupts end waits. On
/// QEMU's machine they may come by a second way.
pub(crate) fn open_nic(
    (address, size): (usize, usize),
    from_qemu: bool,
    buffers: &mut Option<&'static mut Buffers>,
) -> Option<Nic> {
    // SAFETY: the VMM named the place, or it is where QEMU has nothing but such devices; reading
    // what is not there does nothing.
    if !unsafe { nic::is_virtio(address) } {
        return None;
    }
    // SAFETY: it answered; nobody else is here to use it.
    let nic = unsafe { Nic::open(address, size, buffers) }?;
    // SAFETY: every PC has it there.
    unsafe { interrupts::route(IO_APIC) };
    // SAFETY: looked for only on QEMU's machine, where nothing else can be there.
    if from_qemu && unsafe { interrupts::is_io_apic(SECOND_IO_APIC) } {
        // SAFETY: it answered.
        unsafe { interrupts::route(SECOND_IO_APIC) };
    }
    Some(nic)
}
