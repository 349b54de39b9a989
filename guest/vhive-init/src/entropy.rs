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

/// Most bytes credited: the strength of the kernel's generator twice over.
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

/// The kernel's random numbers. Kept open: in an emulated clone, looking up the device costs as
/// much as all the rest.
#[derive(Debug)]
pub(crate) struct Entropy(File);

impl Entropy {
    pub(crate) fn open() -> Result<Self, Failure> {
        File::open("/dev/urandom").map(Self).step("open /dev/urandom")
    }

    /// Adds the host's bytes and makes the kernel's generators forget what they were.
    pub(crate) fn reseed(&self, hexadecimal: &str) -> Result<(), Failure> {
        reseed(&self.0, hexadecimal).step("reseed the kernel's random numbers")
    }
}

fn reseed(device: &File, hexadecimal: &str) -> Result<(), String> {
    let given = hex::decode(hexadecimal).map_err(|error| error.to_string())?;
    let mut bytes = [0; BYTES];
    let used = given.len().min(BYTES);
    bytes[..used].copy_from_slice(&given[..used]);
    let size = i32::try_from(used).unwrap_or(0);
    let pool = Pool { entropy_bits: 8 * size, size, bytes };
    // SAFETY: the kernel reads a rand_pool_info: two ints, then `size` bytes; Pool is that.
    let add = unsafe { Setter::<ADD_ENTROPY, Pool>::new(pool) };
    // SAFETY: the operation fits its argument, as above.
    unsafe { ioctl(device, add) }.map_err(|error| error.to_string())?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    let reseed = unsafe { NoArg::<RESEED>::new() };
    // SAFETY: likewise.
    unsafe { ioctl(device, reseed) }.map_err(|error| error.to_string())
}
