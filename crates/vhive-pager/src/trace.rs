//! Which pages were touched first, in the order of first touch.

use crate::pages::{PageNumber, PageSet, Run};

/// Fewer neighbours in a row are a cluster, not a streak.
const LEAST_STREAK: u32 = 4;

/// The order in which pages were touched for the first time; each page once.
///
/// ```
/// let mut trace = vhive_pager::FaultTrace::below(100);
/// assert!(trace.record(7));
/// assert!(trace.record(3));
/// assert!(!trace.record(7));
/// assert_eq!(trace.pages(), [7, 3]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultTrace {
    bound: u32,
    seen: PageSet,
    order: Vec<PageNumber>,
}

impl FaultTrace {
    /// An empty trace of a memory file of so many pages.
    #[must_use]
    pub fn below(pages: u32) -> Self {
        Self { bound: pages, seen: PageSet::below(pages), order: Vec::new() }
    }

    /// Notes a touch; whether it was the page's first. A page beyond the memory is not noted.
    pub fn record(&mut self, page: PageNumber) -> bool {
        let first = page < self.bound && self.seen.insert(page);
        if first {
            self.order.push(page);
        }
        first
    }

    /// The pages in the order of their first touch.
    #[must_use]
    pub fn pages(&self) -> &[PageNumber] {
        &self.order
    }

    /// Whether the page was touched.
    #[must_use]
    pub fn holds(&self, page: PageNumber) -> bool {
        self.seen.holds(page)
    }

    /// If at least four noted pages lead up to `page` without a gap, the page and those after it that are not noted:
    /// as many as lead there, at most `most`. Likewise downwards.
    pub(crate) fn streak(&self, page: PageNumber, most: u32) -> Option<Run> {
        let up = |by: u32| page.checked_add(by).filter(|page| *page < self.bound);
        let down = |by: u32| page.checked_sub(by);
        let length = |step: &dyn Fn(u32) -> Option<PageNumber>| {
            let noted = |by: &u32| step(*by).is_some_and(|page| self.holds(page));
            (1..=most).take_while(noted).zip(1..).last().map_or(0, |(_, count)| count)
        };
        let room = |step: &dyn Fn(u32) -> Option<PageNumber>, most: u32| {
            let free = |by: &u32| step(*by).is_some_and(|page| !self.holds(page));
            1 + (1..most).take_while(free).zip(1..).last().map_or(0, |(_, count)| count)
        };
        let (below, above) = (length(&down), length(&up));
        if below.max(above) < LEAST_STREAK {
            None
        } else if below >= above {
            Some(Run { first: page, pages: room(&up, below) })
        } else {
            let pages = room(&down, above);
            Some(Run { first: page - (pages - 1), pages })
        }
    }

    /// The number of pages that the memory file has.
    #[must_use]
    pub const fn bound(&self) -> u32 {
        self.bound
    }

    /// The first trace's pages in its order, then what each later one adds, in that one's order.
    #[must_use]
    pub fn merge<'a>(traces: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let mut traces = traces.into_iter();
        let mut merged = traces.next()?.clone();
        for trace in traces {
            for page in trace.pages() {
                merged.record(*page);
            }
        }
        Some(merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(pages: &[u32]) -> FaultTrace {
        let mut trace = FaultTrace::below(10);
        for page in pages {
            trace.record(*page);
        }
        trace
    }

    #[test]
    fn merging_keeps_the_first_order_and_adds() {
        let merged = FaultTrace::merge([&trace(&[5, 1]), &trace(&[1, 9, 5]), &trace(&[0])]);
        assert_eq!(merged.expect("three").pages(), [5, 1, 9, 0]);
        assert_eq!(FaultTrace::merge([]), None);
    }

    #[test]
    fn a_streak_leads_on_as_far_as_it_came() {
        fn note(trace: &mut FaultTrace, pages: impl Iterator<Item = u32>) {
            for page in pages {
                trace.record(page);
            }
        }
        let run = |first, pages| Some(Run { first, pages });
        let mut trace = FaultTrace::below(100);
        note(&mut trace, 20..24);
        assert_eq!(trace.streak(24, 64), run(24, 4), "up");
        assert_eq!(trace.streak(19, 64), run(16, 4), "down");
        assert_eq!(trace.streak(25, 64), None, "after a gap");
        trace.record(26);
        assert_eq!(trace.streak(24, 64), run(24, 2), "as far as nothing is noted");
        note(&mut trace, (0..3).chain(96..99));
        assert_eq!(trace.streak(3, 64), None, "three are a cluster");
        trace.record(95);
        assert_eq!(trace.streak(99, 64), run(99, 1), "the memory ends");
        let mut trace = FaultTrace::below(100);
        note(&mut trace, 1..50);
        assert_eq!(trace.streak(50, 16), run(50, 16), "at most");
        assert_eq!(trace.streak(0, 16), run(0, 1));
        assert_eq!(trace.streak(u32::MAX, 16), None);
    }

    #[test]
    fn a_page_beyond_the_memory_is_not_noted() {
        assert_eq!(trace(&[3, 10, u32::MAX]).pages(), [3]);
    }
}
