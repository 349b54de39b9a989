//! The first serial port, for one line at the start and for last words.

use core::fmt;
use core::panic::PanicInfo;

use super::cpu;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = DATA + 5;
const CAN_TAKE: u8 = 0x20;

/// How often a port that takes nothing is asked again: one that is not there never does.
const PATIENCE: u32 = 10_000;

/// Writes go to the serial port.
#[derive(Debug)]
pub(crate) struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let mut tries = (0..PATIENCE).map(|_| cpu::read_port(LINE_STATUS));
            if !tries.any(|status| status & CAN_TAKE != 0) {
                return Err(fmt::Error);
            }
            cpu::write_port(DATA, byte);
        }
        Ok(())
    }
}

/// Says why and ends the machine.
pub(crate) fn give_up(why: fmt::Arguments<'_>) -> ! {
    // Nobody is left to be told of a failure.
    let _ = fmt::Write::write_fmt(&mut Console, format_args!("nano: {why}\n"));
    cpu::end()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    give_up(format_args!("{info}"))
}

/// An exception that nothing here provokes. Called by the stubs with the stack: its number, then
/// what the processor pushed.
///
/// # Safety
/// `stack` must be that.
#[unsafe(no_mangle)]
unsafe extern "C" fn nano_fault(stack: *const [u64; 5]) -> ! {
    // SAFETY: number, perhaps an error code, and three more words are there.
    let words = unsafe { stack.read() };
    give_up(format_args!("exception {words:x?}"))
}
