//! The machine below: everything here touches it, and everything that does is here.
#![expect(unsafe_code, reason = "there is nobody below to ask")]

pub(crate) mod area;
pub(crate) mod bytes;
pub(crate) mod clock;
pub(crate) mod console;
pub(crate) mod cpu;
pub(crate) mod interrupts;
pub(crate) mod nic;
pub(crate) mod once;
pub(crate) mod start;
pub(crate) mod start_info;
mod transport;
