//! What the VMM says about the machine: PVH's start information.
//!
//! # Source
//! `xen/include/public/arch-x86/hvm/start_info.h`.

use core::ops::Range;
use core::{ptr, slice};

const MAGIC: u32 = 0x336e_c578;

/// Longest command line that is read, in bytes.
const MOST_LINE: usize = 4096;

/// Most entries of the memory map that are read.
const MOST_ENTRIES: usize = 64;

const RAM: u32 = 1;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    /// From here on: since version 1.
    memory_map: u64,
    memory_map_entries: u32,
    _reserved: u32,
}

#[repr(C)]
struct MapEntry {
    address: u64,
    size: u64,
    kind: u32,
    _reserved: u32,
}

/// What is of interest of it.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) command_line: &'static str,
    /// The RAM that holds `inside`, as far as it is mapped.
    pub(crate) ram: Option<Range<u64>>,
}

/// First address that is not mapped.
const MAPPED: u64 = 1 << 32;

/// Reads the start information at a physical address.
///
/// # Safety
/// It must be what the VMM passed at the entry, and nobody may have written there since.
pub(crate) unsafe fn read(address: u64, inside: u64) -> Option<Machine> {
    // SAFETY: the caller's promise; everything that it names lies in the first 4 GiB.
    let info = unsafe { &*at::<StartInfo>(address)? };
    if info.magic != MAGIC {
        return None;
    }
    let command_line = match at::<u8>(info.command_line) {
        // SAFETY: the VMM put a text with a zero at its end there.
        Some(line) => unsafe { text(line) },
        None => "",
    };
    let entries = usize::try_from(info.memory_map_entries).unwrap_or(0).min(MOST_ENTRIES);
    let map = match at::<MapEntry>(info.memory_map) {
        // SAFETY: the VMM put so many entries there.
        Some(map) if info.version >= 1 => unsafe { slice::from_raw_parts(map, entries) },
        _ => &[],
    };
    let mut ranges = map.iter().filter(|entry| entry.kind == RAM).map(|entry| {
        let end = entry.address.saturating_add(entry.size);
        entry.address.min(MAPPED)..end.min(MAPPED)
    });
    Some(Machine { command_line, ram: ranges.find(|range| range.contains(&inside)) })
}

/// A pointer to a physical address; none to 0 and to what is not mapped.
fn at<T>(address: u64) -> Option<*const T> {
    let fits = address > 0 && address < MAPPED && address.is_multiple_of(align_of::<T>() as u64);
    fits.then(|| ptr::with_exposed_provenance(usize::try_from(address).unwrap_or(0)))
}

/// # Safety
/// There must be a text that ends with a zero.
unsafe fn text(begin: *const u8) -> &'static str {
    // SAFETY: each byte up to the zero is there.
    let is_end = |at: usize| unsafe { begin.wrapping_add(at).read() } == 0;
    let length = (0..MOST_LINE).find(|at| is_end(*at)).unwrap_or(0);
    // SAFETY: likewise, and nobody writes there.
    let bytes = unsafe { slice::from_raw_parts(begin, length) };
    core::str::from_utf8(bytes).unwrap_or("")
}
