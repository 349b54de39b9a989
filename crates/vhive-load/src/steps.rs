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
}

/// A row, as it is written.
#[derive(Debug, Serialize)]
struct OfRate<'a> {
    /// Requests a second that were planned; none of the client alone.
    rate: Option<f64>,
    /// Which try of any rate, or round of the client alone, from 0: each numbers its requests anew.
    r#try: u64,
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
        csv.put(|out| writeln!(out, "rate,try,{HEADINGS}"))?;
        Ok(Self { json: Out::new(dir.join("rows.jsonl"))?, csv, targets })
    }

    /// Writes rows that were sent at a rate, or by one client alone. Each file is tried; what is
    /// missing in one is counted.
    pub(crate) fn add(&mut self, (rate, nth): (Option<f64>, u64), rows: &[Row]) {
        for row in rows {
            let row = Written::of(row, &self.targets, None);
            self.csv.row(|out| {
                rate.map_or(Ok(()), |rate| write!(out, "{rate}"))?;
                write!(out, ",{nth},")?;
                row.csv(out)
            });
            self.json.row(|out| {
                serde_json::to_writer(&mut *out, &OfRate { rate, r#try: nth, row })?;
                out.write_all(b"\n")
            });
        }
        self.json.batch(rows.len());
        self.csv.batch(rows.len());
    }

    /// The file of rows as JSON Lines.
    #[must_use]
    pub fn json(&self) -> PathBuf {
        self.json.path.clone()
    }

    /// How many rows are missing in a file, and the first reason; of each file that lacks some.
    #[must_use]
    pub fn lost(mut self) -> Vec<(u64, OutputError)> {
        [&mut self.json, &mut self.csv].into_iter().filter_map(Out::lost).collect()
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
        steps.add((None, 0), &[row(0, Outcome::Ok)]);
        steps.add((Some(12.5), 3), &[row(0, Outcome::Ok), row(1, Outcome::Error)]);
        assert!(steps.lost().is_empty());
        let json = std::fs::read_to_string(dir.path().join("rows.jsonl")).unwrap();
        let rates: Vec<serde_json::Value> = json
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["rate"].clone())
            .collect();
        assert_eq!(rates, [serde_json::Value::Null, 12.5.into(), 12.5.into()]);
        let mut csv = csv::Reader::from_path(dir.path().join("rows.csv")).unwrap();
        let lines: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
        assert_eq!((&lines[0][0], &lines[1][0], &lines[2][3]), ("", "12.5", "f"));
        assert_eq!((&lines[0][1], &lines[1][1]), ("0", "3"));
        assert!(json.contains("\"rate\":12.5,\"try\":3,"), "{json}");
        assert_eq!(lines[2].len(), 2 + HEADINGS.split(',').count());
    }

    #[test]
    fn rows_that_are_lost_count_once_and_by_file() {
        if !Path::new("/dev/full").exists() {
            eprintln!("SKIP rows_that_are_lost_count_once_and_by_file: /dev/full");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("rows.jsonl")).unwrap();
        let mut steps = StepRows::begin(dir.path(), vec!["f".to_owned()]).unwrap();
        // More than is buffered, so that rows fail too, and the flush of what is left.
        let rows: Vec<Row> = (0..1000).map(|n| row(n, Outcome::Ok)).collect();
        steps.add((Some(1.0), 0), &rows);
        let lost = steps.lost();
        assert!(matches!(lost.as_slice(), [(1000, _)]), "{lost:?}");
        assert!(lost[0].1.to_string().contains("rows.jsonl"), "{lost:?}");
    }
}
