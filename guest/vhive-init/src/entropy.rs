//! The kernel's random numbers after a restore: clones of one snapshot have the same state, and the
//! cloud kernel has no driver for a VM generation id that would tell it so.
//!
//! # Source
//! `random(4)`: RNDADDENTROPY credits bytes to the pool, RNDRESEEDCRNG makes every generator take
//! a new key from it at once. (Writing to `/dev/urandom` alone would leave the old key in use for
//! up to a minute.)
#![expect(unsafe_code, reason = "these two ioctls have no safe wrapper")]

use std::fs::File;

use rustix::ioctl::{NoArg, Setter, ioctl, opcode};

use crate::failure::{Failure, Step as _};

/// Bytes credited: the strength of the kernel's generator twice over.
const BYTES: usize = 64;

/// The argument of RNDADDENTROPY.
#[repr(C)]
struct Pool {
    entropy_bits: i32,
    size: i32,
    bytes: [u8; BYTES],
}

const ADD_ENTROPY: u32 = opcode::write::<[i32; 2]>(b'R', 0x03);
const RESEED: u32 = opcode::none(b'R', 0x07);
const _: () = assert!(ADD_ENTROPY == 0x4008_5203 && RESEED == 0x5207);

/// Adds the host's bytes and makes the kernel's generators forget what they were.
pub(crate) fn reseed(hexadecimal: &str) -> Result<(), Failure> {
    let step = "reseed the kernel's random numbers";
    let bytes = hex::decode(hexadecimal).step(step)?;
    let bytes: [u8; BYTES] = bytes.try_into().map_err(|_| "not 64 bytes").step(step)?;
    let device = File::open("/dev/urandom").step(step)?;
    let pool = Pool { entropy_bits: BITS, size: SIZE, bytes };
    // SAFETY: the kernel reads a rand_pool_info: two ints, then `size` bytes; Pool is that.
    unsafe { ioctl(&device, Setter::<ADD_ENTROPY, Pool>::new(pool)) }.step(step)?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    unsafe { ioctl(&device, NoArg::<RESEED>::new()) }.step(step)
}

const SIZE: i32 = 64;
const BITS: i32 = 8 * SIZE;
const _: () = assert!(BYTES == 64);
