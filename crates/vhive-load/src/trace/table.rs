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
    as_they_are: csv::StringRecord,
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
        let as_they_are = reader.headers().map_err(|error| refused(path, &[], &error))?.clone();
        // Some of the published files begin with a byte order mark.
        let heading = |name: &str| name.trim_start_matches('\u{feff}').trim().to_ascii_lowercase();
        let headings = as_they_are.iter().map(heading).collect();
        Ok(Self { path: path.to_owned(), reader, headings, as_they_are })
    }

    /// The column with this heading, whatever its case; two of them are a mistake.
    pub(super) fn column(&self, name: &str) -> Result<usize, TraceError> {
        let column = self.optional(name).ok_or_else(|| {
            let problem = format!("there is no column {name:?} in its first line");
            TraceError::File { path: self.path.clone(), problem }
        })?;
        self.once(column)?;
        Ok(column)
    }

    /// Refuses a heading that a later column has as well: one of the two would not count.
    pub(super) fn once(&self, column: usize) -> Result<(), TraceError> {
        let heading = &self.headings[column];
        match self.headings[column + 1..].iter().position(|other| other == heading) {
            None => Ok(()),
            Some(behind) => {
                let problem = format!(
                    "column {} ({heading:?}): is column {} as well",
                    column + 2 + behind,
                    column + 1
                );
                Err(TraceError::Line { path: self.path.clone(), line: 1, problem })
            }
        }
    }

    pub(super) fn optional(&self, name: &str) -> Option<usize> {
        self.headings.iter().position(|heading| heading.eq_ignore_ascii_case(name))
    }

    /// All headings, in small letters.
    pub(super) fn headings(&self) -> &[String] {
        &self.headings
    }

    /// All headings, as they are written.
    pub(super) const fn as_they_are(&self) -> &csv::StringRecord {
        &self.as_they_are
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
                Err(error) => return Err(refused(&self.path, &self.headings, &error)),
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

    pub(super) const fn fields(&self) -> &csv::StringRecord {
        &self.record
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

fn refused(path: &Path, headings: &[String], error: &csv::Error) -> TraceError {
    let line = error.position().map_or(0, csv::Position::line);
    let place = |column: usize| match headings.get(column) {
        Some(heading) => format!("column {} ({heading:?})", column + 1),
        None => format!("column {}", column + 1),
    };
    let problem = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let [wanted, there] = [expected_len, len].map(|len| usize::try_from(*len).unwrap_or(0));
            if there < wanted {
                format!("{}: missing; {there} of {wanted} columns are there", place(there))
            } else {
                format!("column {}: one too many; {wanted} have headings", wanted + 1)
            }
        }
        csv::ErrorKind::Utf8 { err, .. } => format!("{}: no UTF-8", place(err.field())),
        _ => error.to_string(),
    };
    TraceError::Line { path: path.to_owned(), line, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<(), TraceError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv");
        std::fs::write(&path, bytes).unwrap();
        let table = Table::open(&path)?;
        table.column("b")?;
        table.each(|_| Ok(()))
    }

    #[test]
    fn what_is_no_table_has_a_line_and_a_column() {
        assert!(read(b"a,B,c\n1,2,3\n").is_ok());
        for (bytes, said) in [
            (&b"a,b,c\n1,2,3\n1\n"[..], "t.csv:3: column 2 (\"b\"): missing; 1 of 3"),
            (b"a,b\n1,2,3\n", "t.csv:2: column 3: one too many; 2 have headings"),
            (b"a,b,c\n1,2,\xff\n", "t.csv:2: column 3 (\"c\"): no UTF-8"),
            (b"a,\xff,c\n", "t.csv:1: column 2: no UTF-8"),
            (b"a,b,B\n1,2,3\n", "t.csv:1: column 3 (\"b\"): is column 2 as well"),
            (b"a,c\n", "no column \"b\""),
        ] {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.contains(said), "{error} for {said}");
        }
    }
}
