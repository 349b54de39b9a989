//! Where guest memory lies: addresses of the VMM ↔ pages of the memory file.

use crate::pages::{MOST_PAGES, PageNumber, Run};
use crate::sys::PAGE;

const PAGE_BYTES: u64 = PAGE as u64;

/// The most regions that one guest may have.
pub const MOST_REGIONS: usize = 64;

/// A piece of guest memory: mapped at `address` in the VMM, its content at `offset` of the memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins in the VMM's address space, in bytes.
    pub address: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Where it begins in the memory file, in bytes.
    pub offset: u64,
}

/// Why regions are not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionsError {
    /// None at all.
    #[error("guest memory has no region")]
    None,
    /// More than [`MOST_REGIONS`].
    #[error("guest memory has {0} regions; at most {MOST_REGIONS} are accepted")]
    TooMany(usize),
    /// An address, a length or an offset is not a multiple of 4 KiB.
    #[error("{0:x?} is not aligned to pages of 4 KiB")]
    Unaligned(Region),
    /// A region without a byte.
    #[error("{0:x?} is empty")]
    Empty(Region),
    /// An end beyond 64 bits.
    #[error("{0:x?} ends beyond the address space")]
    Overflow(Region),
    /// A region that reaches beyond the memory file.
    #[error("{0:x?} reaches beyond the memory file of {1} bytes")]
    BeyondFile(Region, u64),
    /// Two regions share addresses or bytes of the file.
    #[error("{0:x?} and {1:x?} overlap")]
    Overlap(Region, Region),
    /// A memory file that page numbers cannot count, or no whole number of pages.
    #[error("a memory file of {0} bytes is not a whole number of at most {MOST_PAGES} pages")]
    FileSize(u64),
}

/// A run of pages and where it is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The pages.
    pub run: Run,
    /// The address of the first.
    pub address: u64,
}

/// All regions of one guest: aligned, disjoint, within the memory file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    by_address: Vec<Region>,
    by_offset: Vec<Region>,
}

/// Counts the pages of a memory file.
///
/// # Errors
/// [`RegionsError::FileSize`].
pub fn page_count(memory_bytes: u64) -> Result<u32, RegionsError> {
    let pages = memory_bytes / PAGE_BYTES;
    if !memory_bytes.is_multiple_of(PAGE_BYTES) || memory_bytes == 0 {
        return Err(RegionsError::FileSize(memory_bytes));
    }
    u32::try_from(pages).map_err(|_| RegionsError::FileSize(memory_bytes))
}

impl Regions {
    /// Checks what a VMM says of its memory.
    ///
    /// # Errors
    /// What is wrong with it, by name.
    pub fn new(regions: &[Region], memory_bytes: u64) -> Result<Self, RegionsError> {
        page_count(memory_bytes)?;
        match regions.len() {
            0 => return Err(RegionsError::None),
            1..=MOST_REGIONS => {}
            count => return Err(RegionsError::TooMany(count)),
        }
        for region in regions {
            check(*region, memory_bytes)?;
        }
        let (mut by_address, mut by_offset) = (regions.to_vec(), regions.to_vec());
        by_address.sort_by_key(|region| region.address);
        by_offset.sort_by_key(|region| region.offset);
        for pair in by_address.windows(2) {
            if pair[0].address + pair[0].bytes > pair[1].address {
                return Err(RegionsError::Overlap(pair[0], pair[1]));
            }
        }
        for pair in by_offset.windows(2) {
            if pair[0].offset + pair[0].bytes > pair[1].offset {
                return Err(RegionsError::Overlap(pair[0], pair[1]));
            }
        }
        Ok(Self { by_address, by_offset })
    }

    /// The regions, by address.
    #[must_use]
    pub fn as_slice(&self) -> &[Region] {
        &self.by_address
    }

    /// The page that is mapped at `address`.
    #[must_use]
    pub fn page_at(&self, address: u64) -> Option<PageNumber> {
        let after = self.by_address.partition_point(|region| region.address <= address);
        let region = self.by_address.get(after.checked_sub(1)?)?;
        let inside = address - region.address;
        let page = (region.offset + inside) / PAGE_BYTES;
        if inside < region.bytes { PageNumber::try_from(page).ok() } else { None }
    }

    /// Where a run of pages is mapped: in pieces where regions end, without what is mapped nowhere.
    pub fn place(&self, run: Run) -> impl Iterator<Item = Placed> + '_ {
        let (start, end) = (run.offset(), run.end() * PAGE_BYTES);
        let first = self.by_offset.partition_point(|r| r.offset + r.bytes <= start);
        self.by_offset[first..].iter().take_while(move |r| r.offset < end).filter_map(move |r| {
            let from = start.max(r.offset);
            let to = end.min(r.offset + r.bytes);
            let first = PageNumber::try_from(from / PAGE_BYTES).ok()?;
            let pages = u32::try_from((to - from) / PAGE_BYTES).ok()?;
            Some(Placed { run: Run { first, pages }, address: r.address + (from - r.offset) })
        })
    }

    /// The pages that are mapped between two addresses, as runs.
    pub fn pages_between(&self, start: u64, end: u64) -> impl Iterator<Item = Run> + '_ {
        self.by_address.iter().filter_map(move |region| {
            let from = start.max(region.address);
            let to = end.min(region.address + region.bytes);
            let bytes = to.checked_sub(from).filter(|bytes| *bytes > 0)?;
            let first = (region.offset + (from - region.address)) / PAGE_BYTES;
            let pages = u32::try_from(bytes.div_ceil(PAGE_BYTES)).ok()?;
            Some(Run { first: PageNumber::try_from(first).ok()?, pages })
        })
    }
}

fn check(region: Region, memory_bytes: u64) -> Result<(), RegionsError> {
    let Region { address, bytes, offset } = region;
    if [address, bytes, offset].iter().any(|figure| !figure.is_multiple_of(PAGE_BYTES)) {
        return Err(RegionsError::Unaligned(region));
    }
    if bytes == 0 {
        return Err(RegionsError::Empty(region));
    }
    if address.checked_add(bytes).is_none() {
        return Err(RegionsError::Overflow(region));
    }
    match offset.checked_add(bytes) {
        Some(end) if end <= memory_bytes => Ok(()),
        Some(_) => Err(RegionsError::BeyondFile(region, memory_bytes)),
        None => Err(RegionsError::Overflow(region)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn region(address: u64, pages: u64, offset_pages: u64) -> Region {
        Region { address, bytes: pages * PAGE_BYTES, offset: offset_pages * PAGE_BYTES }
    }

    /// Disjoint regions: lengths, holes between addresses, and an order of their content in the file.
    fn layouts() -> impl Strategy<Value = (Vec<Region>, u64)> {
        let sizes = proptest::collection::vec((1u64..20, 0u64..5), 1..8);
        sizes.prop_flat_map(|sizes| {
            let order: Vec<usize> = (0..sizes.len()).collect();
            (Just(sizes), Just(order).prop_shuffle()).prop_map(|(sizes, order)| {
                let mut regions = vec![region(0, 0, 0); sizes.len()];
                let mut address = 0x7f00_0000_0000;
                for (at, (pages, hole)) in sizes.iter().enumerate() {
                    regions[at] = region(address, *pages, 0);
                    address += (pages + hole) * PAGE_BYTES;
                }
                let mut offset = 0;
                for at in order {
                    regions[at].offset = offset;
                    offset += regions[at].bytes;
                }
                (regions, offset)
            })
        })
    }

    proptest! {
        #[test]
        fn addresses_and_pages_are_inverse((regions, bytes) in layouts()) {
            let all = Regions::new(&regions, bytes).expect("disjoint");
            let mut seen = 0;
            for page in 0..page_count(bytes).expect("small") {
                let placed: Vec<Placed> = all.place(Run { first: page, pages: 1 }).collect();
                prop_assert_eq!(placed.len(), 1);
                prop_assert_eq!(all.page_at(placed[0].address), Some(page));
                prop_assert_eq!(all.page_at(placed[0].address + PAGE_BYTES - 1), Some(page));
                seen += 1;
            }
            prop_assert_eq!(seen * PAGE_BYTES, bytes);
            let last = regions.iter().map(|r| r.address + r.bytes).max().expect("one");
            prop_assert_eq!(all.page_at(last), None);
            prop_assert_eq!(all.page_at(0x7eff_ffff_ffff), None);
        }

        #[test]
        fn a_long_run_is_placed_as_its_pages_are(
            (regions, bytes) in layouts(), first in 0u32..160, pages in 0u32..160,
        ) {
            let all = Regions::new(&regions, bytes).expect("disjoint");
            let single: Vec<(u32, u64)> = Run { first, pages }.iter()
                .flat_map(|p| all.place(Run { first: p, pages: 1 }).collect::<Vec<_>>())
                .map(|placed| (placed.run.first, placed.address)).collect();
            let long: Vec<(u32, u64)> = all.place(Run { first, pages })
                .flat_map(|placed| placed.run.iter().zip((placed.address..).step_by(PAGE)).collect::<Vec<_>>())
                .collect();
            prop_assert_eq!(single, long);
            let across: u32 = all.pages_between(0, u64::MAX).map(|run| run.pages).sum();
            prop_assert_eq!(u64::from(across) * PAGE_BYTES, bytes);
        }

        #[test]
        fn nothing_a_vmm_says_makes_us_panic(
            figures in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..70),
            memory in any::<u64>(), address in any::<u64>(),
        ) {
            let regions: Vec<Region> = figures.into_iter()
                .map(|(address, bytes, offset)| Region { address, bytes, offset }).collect();
            if let Ok(all) = Regions::new(&regions, memory) {
                let _ = all.page_at(address);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let new = |regions: &[Region]| Regions::new(regions, 8 * PAGE_BYTES).expect_err("refused");
        assert_eq!(new(&[]), RegionsError::None);
        assert_eq!(new(&vec![region(0, 1, 0); 65]), RegionsError::TooMany(65));
        let odd = Region { address: 1, ..region(0, 1, 0) };
        assert_eq!(new(&[odd]), RegionsError::Unaligned(odd));
        assert_eq!(new(&[region(0, 0, 0)]), RegionsError::Empty(region(0, 0, 0)));
        let high = region(u64::MAX - PAGE_BYTES + 1, 1, 0);
        assert_eq!(new(&[high]), RegionsError::Overflow(high));
        assert_eq!(
            new(&[region(0, 8, 1)]),
            RegionsError::BeyondFile(region(0, 8, 1), 8 * PAGE_BYTES)
        );
        let (a, b) = (region(0, 2, 0), region(PAGE_BYTES, 2, 4));
        assert_eq!(new(&[b, a]), RegionsError::Overlap(a, b));
        let (a, b) = (region(0, 2, 0), region(4 * PAGE_BYTES, 2, 1));
        assert_eq!(new(&[b, a]), RegionsError::Overlap(a, b));
        assert_eq!(page_count(4097), Err(RegionsError::FileSize(4097)));
    }
}
