//! `sweep.json` while a sweep goes on: one that is killed is a result of the rates that it has tried.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vhive_load::output::{OutputError, write_json};
use vhive_load::sweep::{Step, Verdict};
use vhive_study::run::RunFacts;

use crate::output;

/// The file, without what is known at the end only.
#[derive(Debug, Serialize)]
pub(super) struct SoFar {
    #[serde(skip)]
    path: PathBuf,
    within: f64,
    /// The highest rate that has held.
    knee: Option<f64>,
    steps: Vec<Step>,
    stopped: bool,
    #[serde(flatten)]
    facts: RunFacts,
}

impl SoFar {
    /// Writes it for a sweep that is about to begin.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn begin(path: &Path, within: f64, facts: RunFacts) -> Result<Self, OutputError> {
        let (path, steps) = (path.to_owned(), Vec::new());
        let so_far = Self { path, within, knee: None, steps, stopped: true, facts };
        write_json(&so_far.path, &so_far)?;
        Ok(so_far)
    }

    /// A rate has been tried.
    pub(super) fn add(&mut self, step: &Step) {
        if step.verdict == Verdict::Held {
            self.knee = Some(self.knee.map_or(step.rate, |knee| knee.max(step.rate)));
        }
        self.steps.push(step.clone());
        // The end of the sweep writes it once more, and fails if it cannot.
        if let Err(error) = write_json(&self.path, self) {
            output::note(format!("{:#}", anyhow::Error::new(error)));
        }
    }

    /// The sweep could not go on; one that has tried no rate came to nothing.
    pub(super) fn failed(&self) {
        if self.steps.is_empty() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_that_could_not_go_on_keeps_what_it_has_tried() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sweep.json");
        let facts = RunFacts::begin(Vec::new(), None, None).expect("no CPUs are asked for");
        let mut so_far = SoFar::begin(&path, 3.0, facts).expect("written");
        let step = Step {
            rate: 10.0,
            sent: 30,
            failed: 0,
            p50_us: None,
            p99_us: None,
            late_p99_us: None,
            verdict: Verdict::Held,
        };
        so_far.add(&step);
        so_far.failed();
        let text = std::fs::read_to_string(&path).expect("it is there");
        assert!(text.contains("\"held\""), "{text}");
        so_far.steps.clear();
        so_far.failed();
        assert!(!path.exists(), "it came to nothing");
    }
}
