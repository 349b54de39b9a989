//! From rows to figures: series, ratios, warnings. Pure.

pub(crate) mod counters;
mod pages;
mod ratios;
mod runtimes;
mod series;
mod timelines;
mod warnings;

#[cfg(test)]
pub(crate) mod tests;

pub use pages::{Compared, PageStats};
pub use ratios::{Comparison, FaultsLeft};
pub use runtimes::{Against, Group, Runtimes, Throughput};
pub use series::{Key, LeftOut, Measure, Series, Slice};
pub use timelines::{FaultPoint, StartFaults};

use crate::row::StudyResult;

/// Everything that a report says in figures.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// One per function, start kind, input and level, in the plan's order; those without a row too.
    pub series: Vec<Series>,
    /// Kinds against each other, over all functions.
    pub comparisons: Vec<Comparison>,
    /// What prefetching left to be faulted in, by input.
    pub faults_left: Vec<FaultsLeft>,
    /// Page statistics of the working sets that were looked at.
    pub pages: Vec<PageStats>,
    /// Faults over time, of one start of each series.
    pub timelines: Vec<StartFaults>,
    /// Sandboxes against each other.
    pub runtimes: Runtimes,
    /// What a reader should mind.
    pub warnings: Vec<String>,
}

impl Analysis {
    /// Analyses a result.
    #[must_use]
    pub fn of(result: &StudyResult) -> Self {
        let series = series::all(result);
        let comparisons = ratios::comparisons(&series, &result.facts.plan);
        let faults_left = ratios::faults_left(&series, &result.facts.plan);
        let pages = pages::all(result, &series);
        let timelines = timelines::all(result, &series);
        let runtimes = runtimes::all(result, &series);
        let warnings = warnings::all(result, &series);
        Self { series, comparisons, faults_left, pages, timelines, runtimes, warnings }
    }

    /// The series of a key.
    #[must_use]
    pub fn find(&self, key: &Key) -> Option<&Series> {
        self.series.iter().find(|series| series.key == *key)
    }
}
