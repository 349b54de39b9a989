//! Interrupts, so that a guest with nothing to do costs nothing. They do one thing: end a `hlt`.
//!
//! Every input of the I/O APIC from 5 on, where VMMs put virtio devices, leads to the same handler,
//! so nobody needs to know which one the device has. They are taken for edges: the device's line
//! falls when its status is acknowledged, before its queues are looked at.

use core::sync::atomic::{AtomicBool, Ordering};

use super::cpu;

const LOCAL: usize = 0xfee0_0000;
const SPURIOUS: usize = LOCAL + 0xf0;
const TIMER_ENTRY: usize = LOCAL + 0x320;
const LINT0: usize = LOCAL + 0x350;
const INITIAL_COUNT: usize = LOCAL + 0x380;
const CURRENT_COUNT: usize = LOCAL + 0x390;
const DIVIDE: usize = LOCAL + 0x3e0;

const MASKED: u32 = 1 << 16;
const WAKE: u8 = 0x30;
const SPURIOUS_VECTOR: u8 = 0xff;

/// The I/O APIC that every machine has, and the second one of QEMU's `microvm`.
pub(crate) const IO_APIC: usize = 0xfec0_0000;
pub(crate) const SECOND_IO_APIC: usize = 0xfec1_0000;

/// First input that may be a virtio device's.
const FIRST_INPUT: u32 = 5;

#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u16,
    selector: u16,
    /// Stack 0; an interrupt gate, present.
    attributes: u16,
    middle: u16,
    high: u32,
    _reserved: u32,
}

const EMPTY: Gate = Gate { low: 0, selector: 0, attributes: 0, middle: 0, high: 0, _reserved: 0 };

static mut TABLE: [Gate; 256] = [EMPTY; 256];
static SET_UP: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    /// Stubs of 16 bytes, one for each exception.
    #[link_name = "nano_faults"]
    static FAULTS: [[u8; 16]; 32];
    /// The handler of everything else.
    #[link_name = "nano_wake"]
    static WAKE_HANDLER: u8;
}

/// Sets everything up, with interrupts off; once.
pub(crate) fn set_up() {
    if SET_UP.swap(true, Ordering::Relaxed) {
        return;
    }
    let faults = (&raw const FAULTS).addr();
    for (vector, handler) in (faults..).step_by(16).take(32).enumerate() {
        set_gate(vector, handler);
    }
    let wake = (&raw const WAKE_HANDLER).addr();
    set_gate(WAKE.into(), wake);
    set_gate(SPURIOUS_VECTOR.into(), wake);
    let table = &raw const TABLE;
    // SAFETY: it is a static, and nothing that can happen has no gate.
    unsafe { cpu::load_idt(0xfff, table.addr() as u64) };
    // The old controllers of the PC are not used.
    cpu::write_port(0x21, 0xff);
    cpu::write_port(0xa1, 0xff);
    set_local(LINT0, MASKED);
    set_local(DIVIDE, 0b1011);
    set_local(TIMER_ENTRY, WAKE.into());
    set_local(SPURIOUS, 0x100 | u32::from(SPURIOUS_VECTOR));
}

fn set_gate(vector: usize, handler: usize) {
    let [a, b, c, d, e, f, g, h] = handler.to_le_bytes();
    let gate = Gate {
        low: u16::from_le_bytes([a, b]),
        selector: 8,
        attributes: 0x8e00,
        middle: u16::from_le_bytes([c, d]),
        high: u32::from_le_bytes([e, f, g, h]),
        _reserved: 0,
    };
    let place = (&raw mut TABLE).cast::<Gate>().wrapping_add(vector);
    // SAFETY: the one thread that there is writes it, before it is loaded; `vector` is less than 256.
    unsafe { place.write(gate) };
}

/// Whether there is an I/O APIC at an address.
///
/// # Safety
/// Reading there and writing there must be harmless.
pub(crate) unsafe fn is_io_apic(address: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { cpu::write_register(address, 1) };
    // SAFETY: likewise.
    let version = unsafe { cpu::read_register(address + 0x10) };
    // The versions that there are; nothing answers with none or all of its bits.
    (0x10..0x30).contains(&(version & 0xff))
}

/// Lets the inputs of an I/O APIC end a wait.
///
/// # Safety
/// There must be one at this address.
pub(crate) unsafe fn route(io_apic: usize) {
    let select = |register: u32| {
        // SAFETY: the caller's promise; it selects what the window shows.
        unsafe { cpu::write_register(io_apic, register) };
    };
    select(1);
    // SAFETY: the caller's promise.
    let version = unsafe { cpu::read_register(io_apic + 0x10) };
    let last = (version >> 16) & 0xff;
    let first = if io_apic == IO_APIC { FIRST_INPUT } else { 0 };
    for input in first..=last {
        // To processor 0, as an edge, active high.
        for (register, value) in [(0x11 + 2 * input, 0), (0x10 + 2 * input, u32::from(WAKE))] {
            select(register);
            // SAFETY: the caller's promise; where interrupts lead to is a handler.
            unsafe { cpu::write_register(io_apic + 0x10, value) };
        }
    }
}

/// Lets the timer end a wait in so many nanoseconds; 0 stops it.
pub(crate) fn set_timer(nanos: u32) {
    set_local(INITIAL_COUNT, nanos);
}

/// Nanoseconds until the timer ends a wait.
pub(crate) fn timer() -> u32 {
    // SAFETY: reading the count changes nothing.
    unsafe { cpu::read_register(CURRENT_COUNT) }
}

fn set_local(register: usize, value: u32) {
    // SAFETY: every processor has a local APIC there after a reset, and none of the registers in
    // use here reaches memory.
    unsafe { cpu::write_register(register, value) };
}
