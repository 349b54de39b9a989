//! Reading CSV files such that every mistake has a line and a column.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::TraceError;

/// A CSV file with headings.
pub(super) struct Table {
    path: PathBuf,
    reader: csv::Reader<BufReader<File>>,
    headings: Vec<String>,
}

/// One line of it.
pub(super) struct Line<'a> {
    table: &'a Table,
    record: csv::StringRecord,
    number: u64,
}

impl Table {
    pub(super) fn open(path: &Path) -> Result<Self, TraceError> {
        let failed = |source| TraceError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mut reader = csv::ReaderBuilder::new().from_reader(BufReader::new(file));
        let headings = reader.headers().map_err(|error| refused(path, &error))?;
        // Some of the published files begin with a byte order mark.
        let heading = |name: &str| name.trim_start_matches('\u{feff}').trim().to_ascii_lowercase();
        let headings = headings.iter().map(heading).collect();
        Ok(Self { path: path.to_owned(), reader, headings })
    }

    /// The column with this heading, whatever its case.
    pub(super) fn column(&self, name: &str) -> Result<usize, TraceError> {
        self.optional(name).ok_or_else(|| {
            let problem = format!("there is no column {name:?} in its first line");
            TraceError::File { path: self.path.clone(), problem }
        })
    }

    pub(super) fn optional(&self, name: &str) -> Option<usize> {
        self.headings.iter().position(|heading| heading.eq_ignore_ascii_case(name))
    }

    /// All headings, in small letters.
    pub(super) fn headings(&self) -> &[String] {
        &self.headings
    }

    pub(super) const fn width(&self) -> usize {
        self.headings.len()
    }

    /// Gives each line to `take`.
    pub(super) fn each(
        mut self,
        mut take: impl FnMut(&Line<'_>) -> Result<(), TraceError>,
    ) -> Result<(), TraceError> {
        loop {
            let mut record = csv::StringRecord::new();
            match self.reader.read_record(&mut record) {
                Ok(false) => return Ok(()),
                Err(error) => return Err(refused(&self.path, &error)),
                Ok(true) => {}
            }
            let number = record.position().map_or(0, csv::Position::line);
            take(&Line { table: &self, record, number })?;
        }
    }
}

impl Line<'_> {
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn text(&self, column: usize) -> &str {
        self.record.get(column).unwrap_or_default().trim()
    }

    pub(super) fn parse<T: FromStr>(&self, column: usize, what: &str) -> Result<T, TraceError> {
        let text = self.text(column);
        text.parse().map_err(|_| self.wrong(column, &format!("{text:?} is no {what}")))
    }

    /// A finite number that is not negative.
    pub(super) fn amount(&self, column: usize) -> Result<f64, TraceError> {
        let value: f64 = self.parse(column, "number")?;
        if value.is_finite() && value >= 0.0 {
            Ok(value)
        } else {
            Err(self.wrong(column, &format!("{value} is not a number from 0 on")))
        }
    }

    /// A mistake in a column.
    pub(super) fn wrong(&self, column: usize, problem: &str) -> TraceError {
        let heading = self.table.headings.get(column).map_or("", String::as_str);
        let problem = format!("column {} ({heading:?}): {problem}", column + 1);
        TraceError::Line { path: self.table.path.clone(), line: self.number, problem }
    }
}

fn refused(path: &Path, error: &csv::Error) -> TraceError {
    let line = error.position().map_or(0, csv::Position::line);
    TraceError::Line { path: path.to_owned(), line, problem: error.to_string() }
}
