//! Single instructions.

use core::arch::asm;
use core::ptr;

/// Writes a byte to a port.
pub(crate) fn write_port(port: u16, value: u8) {
    // SAFETY: a port is no memory; the devices behind the ports in use here cannot reach memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Reads a byte from a port.
pub(crate) fn read_port(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as for writing.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// The time stamp counter.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every processor of 64 bits has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Writes a register of a device.
///
/// # Safety
/// There must be such a register, and writing this to it must leave memory alone.
pub(crate) unsafe fn write_register(address: usize, value: u32) {
    // SAFETY: the caller's promise; devices lie in the first 4 GiB, which are mapped as they are.
    unsafe { ptr::with_exposed_provenance_mut::<u32>(address).write_volatile(value) };
}

/// Reads a register of a device.
///
/// # Safety
/// The address must be mapped and aligned, and reading it must leave memory alone.
pub(crate) unsafe fn read_register(address: usize) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { ptr::with_exposed_provenance::<u32>(address).read_volatile() }
}

/// Waits until an interrupt comes, or has come since they were off; they are off before and after.
pub(crate) fn wait() {
    // SAFETY: what interrupts is `nano_wake`, which changes nothing; it needs some stack, so
    // `nostack` is not claimed. `sti` lets nothing in before `hlt`, so none is missed.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Loads the table of interrupts: its limit and its address.
///
/// # Safety
/// The table must be complete and stay where it is.
pub(crate) unsafe fn load_idt(limit: u16, address: u64) {
    let pointer = Pointer { limit, address };
    // SAFETY: the pointer is as the instruction wants it; the rest is the caller's promise.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack)) };
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    address: u64,
}

/// Ends the machine: asks the keyboard controller, where there is one, then lets the processor
/// fail beyond repair, which VMMs take for a shutdown.
pub(crate) fn end() -> ! {
    write_port(0x64, 0xfe);
    // SAFETY: nothing is meant to survive it.
    unsafe { load_idt(0, 0) };
    loop {
        // SAFETY: it never returns.
        unsafe { asm!("ud2", options(nomem, nostack)) };
    }
}
