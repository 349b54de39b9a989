//! Which pages an invocation needs, and how many of them the next one.

use crate::plan::Kind;
use crate::row::{Recorded, StudyResult};
use crate::stats::Summary;

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
    /// Of these, the ones that were not recorded: faulted in after prefetching.
    pub unique: Option<Summary>,
    /// Pages faulted in after prefetching with the recorded input.
    pub unique_same: Option<Summary>,
}

impl PageStats {
    /// Pages that the other input needs and that were recorded: median of needed less median of
    /// unique.
    #[must_use]
    pub fn same(&self) -> Option<f64> {
        Some((self.needed?.median - self.unique?.median).max(0.0))
    }
}

pub(super) fn all(result: &StudyResult, series: &[Series]) -> Vec<PageStats> {
    let inputs = &result.facts.plan.inputs;
    let of = |Recorded { function, set, .. }: &Recorded| {
        let pages = |kind: Kind, same: bool| {
            let found = series.iter().find(|s| {
                s.key.function == *function
                    && s.key.kind == kind
                    && (s.key.input == inputs.prepare) == same
            });
            Some(found?.measure("fault pages")?.summary)
        };
        let runs = set.runs();
        let mean_run = if runs.is_empty() { 0.0 } else { set.pages() as f64 / runs.len() as f64 };
        PageStats {
            function: function.clone(),
            recorded: set.pages(),
            zero: set.zero_pages(),
            runs: runs.len(),
            mean_run,
            needed: pages(Kind::Lazy, false),
            unique: pages(Kind::Reap, false),
            unique_same: pages(Kind::Reap, true),
        }
    };
    result.facts.working_sets.iter().map(of).collect()
}
