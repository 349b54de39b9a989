//! When which page was missing.

use crate::pages::PageNumber;

/// The most entries of a session's fault timeline; with more faults it is thinned.
pub const MOST_TIMELINE: usize = 4096;

/// One fault: when, and of which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultAt {
    /// Microseconds since the memory was attached; an hour and more reads as `u32::MAX`.
    pub micros: u32,
    /// The page of the memory file.
    pub page: PageNumber,
    /// Whether no prefetch was going to bring the page.
    pub residual: bool,
}

/// The faults of a session in their order, thinned evenly so that they are never more than
/// [`MOST_TIMELINE`]: cut off instead, a long one would show only its beginning.
///
/// ```
/// use vhive_pager::{FaultAt, MOST_TIMELINE, Timeline};
/// let mut timeline = Timeline::default();
/// for page in 0..4097 {
///     timeline.note(FaultAt { micros: page * 10, page, residual: true });
/// }
/// assert_eq!((timeline.every(), timeline.faults().len()), (2, MOST_TIMELINE / 2 + 1));
/// assert!(timeline.faults().iter().all(|fault| fault.page % 2 == 0));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    faults: Vec<FaultAt>,
    seen: u64,
    /// How often it has been thinned.
    thinned: u32,
}

impl Timeline {
    /// Adds the next fault.
    pub fn note(&mut self, fault: FaultAt) {
        if self.seen.is_multiple_of(u64::from(self.every())) {
            if self.faults.len() == MOST_TIMELINE {
                let mut number = 0_usize;
                self.faults.retain(|_| {
                    number += 1;
                    number % 2 == 1
                });
                // The bound is even, so that this fault is one of those kept.
                self.thinned += 1;
            }
            self.faults.push(fault);
        }
        self.seen += 1;
    }

    /// Of every so many faults the first one is here; 1 if it is whole.
    #[must_use]
    pub fn every(&self) -> u32 {
        1_u32.checked_shl(self.thinned).unwrap_or(u32::MAX)
    }

    /// The faults that are kept, in their order.
    #[must_use]
    pub fn faults(&self) -> &[FaultAt] {
        &self.faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(faults: u32) -> Timeline {
        let mut timeline = Timeline::default();
        for page in 0..faults {
            timeline.note(FaultAt { micros: page, page, residual: false });
        }
        timeline
    }

    proptest::proptest! {
        #[test]
        fn any_number_of_faults_leaves_an_even_sample(faults in 0_u32..40_000) {
            let timeline = of(faults);
            let every = timeline.every();
            let kept: Vec<u32> = timeline.faults().iter().map(|fault| fault.page).collect();
            let even: Vec<u32> = (0..faults).step_by(every as usize).collect();
            proptest::prop_assert_eq!(&kept, &even);
            proptest::prop_assert!(kept.len() <= MOST_TIMELINE);
            // No thinner than it must be.
            proptest::prop_assert!(every == 1 || faults as usize > MOST_TIMELINE * every as usize / 2);
        }
    }

    #[test]
    fn up_to_the_bound_it_is_whole() {
        let most = u32::try_from(MOST_TIMELINE).expect("small");
        assert_eq!((of(most).every(), of(most).faults().len()), (1, MOST_TIMELINE));
        assert_eq!((of(most + 1).every(), of(most + 1).faults().len()), (2, MOST_TIMELINE / 2 + 1));
    }
}
