//! Which pages an invocation needs, and how many of them the next one.

use std::collections::BTreeSet;

use crate::function::Variant;
use crate::plan::Kind;
use crate::row::{Recorded, Row, StudyResult};
use crate::stats::Summary;
use crate::working_set::WorkingSet;

use super::series::Series;

/// Page statistics of one function.
///
/// # Source
/// vHive `memory/manager/manager.go`, `pageStats.csv`; REAP §4.
#[derive(Clone, Debug)]
pub struct PageStats {
    /// Name of the function.
    pub function: String,
    /// Pages in the working set.
    pub recorded: u64,
    /// Those that are zero.
    pub zero: u64,
    /// Its runs of neighbouring pages.
    pub runs: usize,
    /// Their mean length, in pages.
    pub mean_run: f64,
    /// Pages that another input needs: those that a lazy start faulted in.
    pub needed: Option<Summary>,
    /// Of these, the ones that were recorded.
    pub same: Option<f64>,
    /// Of these, the ones that were not.
    pub unique: Option<Summary>,
    /// By what the two are told apart.
    pub by: Compared,
    /// Pages faulted in after prefetching with the recorded input.
    pub unique_same: Option<Summary>,
}

/// By what the pages that another input needs are compared with the recorded ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Compared {
    /// Page by page: all that a lazy start of the recorded snapshot faulted in.
    Pages,
    /// Page by page, those that a thinned timeline has, taken for all.
    Sample,
    /// By their numbers alone: what is still faulted in after prefetching is not recorded. What prefetching was
    /// about to bring counts as that, so there are too many of these.
    Counts,
}

impl Compared {
    /// The word for it in tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pages => "pages",
            Self::Sample => "sample",
            Self::Counts => "counts",
        }
    }
}

/// A lazy start beside the recorded set.
struct Start {
    same: f64,
    unique: f64,
    by: Compared,
}

pub(super) fn all(result: &StudyResult, series: &[Series]) -> Vec<PageStats> {
    let (inputs, seed) = (&result.facts.plan.inputs, result.facts.plan.seed);
    let of = |Recorded { function, set, .. }: &Recorded| {
        let pages = |kind: Kind, same: bool| {
            let found = series.iter().find(|s| {
                s.key.function == *function
                    && s.key.kind == kind
                    && (s.key.input == inputs.prepare) == same
            });
            Some(found?.measure("fault pages")?.summary)
        };
        // The pages of another boot's snapshot have the same numbers, and nothing else in common.
        let home = Variant { function, kind: Kind::Reap, runtime: None }.service();
        let is_other = |row: &&Row| {
            row.function == *function
                && row.kind == Kind::Lazy
                && row.input != inputs.prepare
                && row.left_out().is_none()
                && row.record.as_ref().is_some_and(|record| record.service == home)
        };
        let lazy: Vec<&Row> = result.rows.iter().filter(is_other).collect();
        let known = pages_of(set);
        let starts: Option<Vec<Start>> = lazy.iter().map(|row| start(row, &known)).collect();
        let starts = starts.unwrap_or_default();
        let summary = |get: &dyn Fn(&Start) -> f64| {
            Summary::of(&starts.iter().map(get).collect::<Vec<_>>(), seed)
        };
        let by_pages = summary(&|one| one.same).zip(summary(&|one| one.unique));
        let by = starts.iter().map(|one| one.by).max().unwrap_or(Compared::Counts);
        let needed = match by_pages {
            Some(_) => summary(&|one| one.same + one.unique),
            None => pages(Kind::Lazy, false),
        };
        let unique = by_pages.map_or_else(|| pages(Kind::Reap, false), |(_, unique)| Some(unique));
        let same = by_pages.map_or_else(
            || Some((needed?.median - unique?.median).max(0.0)),
            |(same, _)| Some(same.median),
        );
        let runs = set.runs();
        let mean_run = if runs.is_empty() { 0.0 } else { set.pages() as f64 / runs.len() as f64 };
        PageStats {
            function: function.clone(),
            recorded: set.pages(),
            zero: set.zero_pages(),
            runs: runs.len(),
            mean_run,
            needed,
            same,
            unique,
            by,
            unique_same: pages(Kind::Reap, true),
        }
    };
    result.facts.working_sets.iter().map(of).collect()
}

fn pages_of(set: &WorkingSet) -> BTreeSet<u32> {
    set.extents.iter().flat_map(|e| e.first..e.first.saturating_add(e.pages)).collect()
}

/// None if the record does not tell which pages were faulted in.
fn start(row: &Row, known: &BTreeSet<u32>) -> Option<Start> {
    let record = row.record.as_ref()?;
    let timeline = record.fault_timeline.as_ref()?;
    let faults = timeline.residual.iter().chain(&timeline.awaited);
    let needed: BTreeSet<u32> = faults.map(|fault| fault.1).collect();
    let same = needed.intersection(known).count() as f64;
    let unique = needed.len() as f64 - same;
    if !timeline.is_thinned() {
        return Some(Start { same, unique, by: Compared::Pages });
    }
    // Of every so many faults the first one is kept: as good as drawn at random.
    let whole = record.memory?.fault_pages as f64;
    let share = if needed.is_empty() { 0.0 } else { same / needed.len() as f64 };
    Some(Start { same: whole * share, unique: whole * (1.0 - share), by: Compared::Sample })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vhive_api::{FaultAt, FaultTimeline};

    use super::*;
    use crate::analysis::Analysis;
    use crate::analysis::tests::fixture;
    use crate::working_set::Extent;

    /// The fixture with a recorded set, and lazy starts that have faulted in `pages` of that snapshot.
    fn result(pages: &[u32], every: u32) -> StudyResult {
        let mut result = fixture();
        let extent = |first, pages, zero| Extent { first, pages, zero };
        let extents = vec![extent(100, 10, false), extent(200, 2, true)];
        let set = WorkingSet { memory_pages: 32768, extents };
        result.facts.working_sets =
            vec![Recorded { function: "hello".to_owned(), input: "record".to_owned(), set }];
        for row in result.rows.iter_mut().filter(|row| row.kind == Kind::Lazy) {
            let Some(record) = row.record.as_mut() else { continue };
            record.service = "hello-reap".to_owned();
            record.fault_timeline = Some(Arc::new(FaultTimeline {
                attached_us: 0,
                every,
                residual: pages.iter().map(|page| FaultAt(*page, *page)).collect(),
                awaited: Vec::new(),
            }));
        }
        result
    }

    fn stats(result: &StudyResult) -> PageStats {
        Analysis::of(result).pages.into_iter().next().expect("of the one function")
    }

    #[test]
    fn what_another_input_needs_is_compared_page_by_page() {
        // As many as the fixture says, of which only three are recorded; one was faulted in twice.
        let one = stats(&result(&[100, 109, 110, 201, 99, 300, 300], 1));
        assert_eq!((one.by, one.same), (Compared::Pages, Some(3.0)));
        assert_eq!(one.unique.map(|unique| unique.median), Some(3.0), "110, 99 and 300");
        assert_eq!(one.needed.map(|needed| needed.median), Some(6.0));
        assert_eq!((one.recorded, one.zero, one.runs), (12, 2, 2));
    }

    #[test]
    fn a_thinned_timeline_stands_for_all_pages() {
        let one = stats(&result(&[100, 101, 102, 300], 16));
        assert_eq!((one.by, one.same), (Compared::Sample, Some(48.0)), "of 64 fault pages");
        assert_eq!(one.unique.map(|unique| unique.median), Some(16.0));
    }

    #[test]
    fn pages_of_another_snapshot_are_not_compared() {
        let mut other = result(&[100, 101, 102, 300], 1);
        for row in &mut other.rows {
            if let Some(record) = row.record.as_mut().filter(|_| row.kind == Kind::Lazy) {
                record.service = "hello-lazy".to_owned();
            }
        }
        let one = stats(&other);
        let needed = one.needed.expect("lazy starts were counted").median;
        let unique = one.unique.expect("prefetching ones too").median;
        assert_eq!((one.by, one.same), (Compared::Counts, Some(needed - unique)));
    }
}
