//! What the guest does, without the machine that it does it on: no memory is touched here but
//! through [`pages::Area`], and nothing waits.
//!
//! ```text
//!   command_line ─► addresses, port, places of devices
//!   http ─► Command ─► server::Server ─► pages::Job ─► checksum
//! ```
//!
//! The page is `docs/design/nano-guest.md`.
#![cfg_attr(not(test), no_std)]

pub mod announce;
pub mod command_line;
pub mod http;
pub mod pages;
pub mod server;
