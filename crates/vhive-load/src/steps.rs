//! The raw rows of a sweep: those of any run, and the rate that each belongs to.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::output::{HEADINGS, Out, OutputError, Written};
use crate::row::Row;

/// `rows.jsonl` and `rows.csv` of a sweep, under way.
#[derive(Debug)]
pub struct StepRows {
    json: Out,
    csv: Out,
    targets: Vec<String>,
    lost: Option<(u64, OutputError)>,
}

/// A row, as it is written.
#[derive(Debug, Serialize)]
struct OfRate<'a> {
    /// Requests a second that were planned; none of the client alone.
    rate: Option<f64>,
    #[serde(flatten)]
    row: Written<'a>,
}

impl StepRows {
    /// Begins the files in a directory, which is made; `targets` are their names, by index.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn begin(dir: &Path, targets: Vec<String>) -> Result<Self, OutputError> {
        let made = std::fs::create_dir_all(dir);
        made.map_err(|source| OutputError { path: dir.to_owned(), source })?;
        let mut csv = Out::new(dir.join("rows.csv"))?;
        csv.put(|out| writeln!(out, "rate,{HEADINGS}"))?;
        Ok(Self { json: Out::new(dir.join("rows.jsonl"))?, csv, targets, lost: None })
    }

    /// Writes rows that were sent at a rate, or by one client alone. Each file is tried; what is
    /// missing in one is counted.
    pub(crate) fn add(&mut self, rate: Option<f64>, rows: &[Row]) {
        for row in rows {
            let row = Written::of(row, &self.targets, None);
            let csv = self.csv.put(|out| {
                rate.map_or(Ok(()), |rate| write!(out, "{rate}"))?;
                out.write_all(b",")?;
                row.csv(out)
            });
            let json = self.json.put(|out| {
                serde_json::to_writer(&mut *out, &OfRate { rate, row })?;
                out.write_all(b"\n")
            });
            self.lose(1, json.and(csv));
        }
        // A kill loses what came since the last batch.
        let flushed = [&mut self.json, &mut self.csv].map(|out| out.put(|out| out.flush()));
        let [json, csv] = flushed;
        self.lose(rows.len() as u64, json.and(csv));
    }

    fn lose(&mut self, count: u64, done: Result<(), OutputError>) {
        let Err(error) = done else { return };
        match &mut self.lost {
            Some((so_far, _)) => *so_far += count,
            None => self.lost = Some((count, error)),
        }
    }

    /// The file of rows as JSON Lines.
    #[must_use]
    pub fn json(&self) -> PathBuf {
        self.json.path.clone()
    }

    /// How many rows are missing in a file, and the first reason.
    #[must_use]
    pub fn lost(self) -> Option<(u64, OutputError)> {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Outcome;
    use crate::summary::tests::row;

    #[test]
    fn rows_of_a_sweep_have_their_rate() {
        let dir = tempfile::tempdir().unwrap();
        let mut steps = StepRows::begin(dir.path(), vec!["f".to_owned()]).unwrap();
        steps.add(None, &[row(0, Outcome::Ok)]);
        steps.add(Some(12.5), &[row(0, Outcome::Ok), row(1, Outcome::Error)]);
        assert!(steps.lost().is_none());
        let json = std::fs::read_to_string(dir.path().join("rows.jsonl")).unwrap();
        let rates: Vec<serde_json::Value> = json
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["rate"].clone())
            .collect();
        assert_eq!(rates, [serde_json::Value::Null, 12.5.into(), 12.5.into()]);
        let mut csv = csv::Reader::from_path(dir.path().join("rows.csv")).unwrap();
        let lines: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
        assert_eq!((&lines[0][0], &lines[1][0], &lines[2][2]), ("", "12.5", "f"));
        assert_eq!(lines[2].len(), 1 + HEADINGS.split(',').count());
    }
}
