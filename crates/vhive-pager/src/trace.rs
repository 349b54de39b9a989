//! Which pages were touched first, in the order of first touch.

use crate::pages::{PageNumber, PageSet};

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
    fn a_page_beyond_the_memory_is_not_noted() {
        assert_eq!(trace(&[3, 10, u32::MAX]).pages(), [3]);
    }
}
