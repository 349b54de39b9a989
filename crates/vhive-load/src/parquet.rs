//! Rows as a Parquet file, made of their JSON Lines when a run is over.
//!
//! # Source
//! Apache Parquet, `Encodings.md` and `LogicalTypes.md`, by way of the `parquet` crate.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::basic::{ConvertedType, Repetition, Type as Physical};
use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use ::parquet::errors::ParquetError as CrateError;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::types::{Type, TypePtr};
use serde_json::{Map, Value};

use crate::stop::Steps;

/// Rows that are in memory at a time.
const GROUP: usize = 5_000;

/// Why there is no Parquet file.
#[derive(Debug, thiserror::Error)]
pub enum ParquetError {
    /// The rows cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: CrateError,
    },
    /// It cannot be begun, or be given its name.
    #[error("cannot write {}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It was to take no more steps.
    #[error("stopped before {} was whole", path.display())]
    Stopped {
        /// Which file.
        path: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Integer,
    Number,
    Text,
}

/// A row's fields. What is not of its kind is absent.
const COLUMNS: [(&str, Kind); 23] = [
    ("rate", Kind::Number),
    ("try", Kind::Integer),
    ("number", Kind::Integer),
    ("endpoint", Kind::Text),
    ("intended_us", Kind::Number),
    ("late_us", Kind::Number),
    ("connect_us", Kind::Number),
    ("first_byte_us", Kind::Number),
    ("latency_us", Kind::Number),
    ("total_us", Kind::Number),
    ("outcome", Kind::Text),
    ("start", Kind::Text),
    ("status", Kind::Integer),
    ("grpc_status", Kind::Integer),
    ("error", Kind::Text),
    ("id", Kind::Text),
    ("body_bytes", Kind::Integer),
    ("requested_runtime_ms", Kind::Integer),
    ("requested_memory_mib", Kind::Integer),
    ("function_us", Kind::Integer),
    ("function_memory_kib", Kind::Integer),
    ("flow_us", Kind::Number),
    ("function_drift_percent", Kind::Number),
];

/// A column of a row group: its values, and 1 or 0 for each row that has one or none.
enum Column {
    Integer(Vec<i64>, Vec<i16>),
    Number(Vec<f64>, Vec<i16>),
    Text(Vec<ByteArray>, Vec<i16>),
}

impl Column {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Integer => Self::Integer(Vec::new(), Vec::new()),
            Kind::Number => Self::Number(Vec::new(), Vec::new()),
            Kind::Text => Self::Text(Vec::new(), Vec::new()),
        }
    }

    fn push(&mut self, value: Option<&Value>) {
        fn put<T>(value: Option<T>, values: &mut Vec<T>, levels: &mut Vec<i16>) {
            levels.push(i16::from(value.is_some()));
            values.extend(value);
        }
        match self {
            Self::Integer(values, levels) => put(value.and_then(Value::as_i64), values, levels),
            Self::Number(values, levels) => put(value.and_then(Value::as_f64), values, levels),
            Self::Text(values, levels) => {
                put(value.and_then(Value::as_str).map(ByteArray::from), values, levels);
            }
        }
    }
}

/// Writes `rows.parquet` beside `rows.jsonl`; returns its path. A last line that is cut off is left out.
/// A file of an earlier run is replaced once this one is whole. Whoever ends the steps removes the
/// [`draft`].
///
/// # Errors
/// When the rows cannot be read, the file not be written, or there are to be no more steps.
pub fn write(rows: &Path, steps: &Steps) -> Result<PathBuf, ParquetError> {
    let (path, draft) = (rows.with_extension("parquet"), draft(rows));
    let done = write_as(rows, (&path, &draft), steps);
    if done.is_err() {
        let _ = steps.take(|| std::fs::remove_file(&draft));
    }
    done.map(|()| path)
}

/// What is written until the file of some rows is whole.
#[must_use]
pub fn draft(rows: &Path) -> PathBuf {
    rows.with_extension("parquet.part")
}

fn write_as(rows: &Path, (path, draft): (&Path, &Path), steps: &Steps) -> Result<(), ParquetError> {
    let stopped = || ParquetError::Stopped { path: path.to_owned() };
    let read = |source| ParquetError::Read { path: rows.to_owned(), source };
    let made = |source| ParquetError::File { path: path.to_owned(), source };
    let failed = |source| ParquetError::Write { path: path.to_owned(), source };
    let mut lines = BufReader::new(File::open(rows).map_err(read)?).split(b'\n');
    let file = steps.take(|| File::create(draft)).ok_or_else(stopped)?.map_err(made)?;
    let (mut columns, mut writer) = (&COLUMNS[..], None);
    loop {
        let (mut group, mut count) = (Vec::new(), 0);
        for line in lines.by_ref().take(GROUP) {
            let line = line.map_err(read)?;
            count += 1;
            group.extend(serde_json::from_slice::<Map<String, Value>>(&line));
        }
        let is_first = writer.is_none();
        if is_first {
            // Only a sweep's rows have a rate and a try.
            let has_rate = group.first().is_some_and(|row| row.contains_key("rate"));
            columns = &COLUMNS[if has_rate { 0 } else { 2 }..];
        }
        let writer = match &mut writer {
            Some(writer) => writer,
            empty => empty.insert(begin(file.try_clone().map_err(made)?, columns).map_err(failed)?),
        };
        if count == 0 {
            break;
        }
        put(writer.next_row_group().map_err(failed)?, columns, &group).map_err(failed)?;
    }
    if let Some(writer) = writer {
        writer.close().map_err(failed)?;
    }
    steps.take(|| std::fs::rename(draft, path)).ok_or_else(stopped)?.map_err(made)
}

fn begin(file: File, columns: &[(&str, Kind)]) -> Result<SerializedFileWriter<File>, CrateError> {
    let field = |(name, kind): &(&str, Kind)| -> Result<TypePtr, CrateError> {
        let (physical, converted) = match kind {
            Kind::Integer => (Physical::INT64, ConvertedType::NONE),
            Kind::Number => (Physical::DOUBLE, ConvertedType::NONE),
            Kind::Text => (Physical::BYTE_ARRAY, ConvertedType::UTF8),
        };
        let field = Type::primitive_type_builder(name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_converted_type(converted);
        Ok(Arc::new(field.build()?))
    };
    let fields: Result<Vec<TypePtr>, CrateError> = columns.iter().map(field).collect();
    let schema = Type::group_type_builder("row").with_fields(fields?).build()?;
    SerializedFileWriter::new(file, Arc::new(schema), Arc::new(WriterProperties::builder().build()))
}

fn put(
    mut group: SerializedRowGroupWriter<'_, File>,
    columns: &[(&str, Kind)],
    rows: &[Map<String, Value>],
) -> Result<(), CrateError> {
    for (name, kind) in columns {
        let mut column = Column::new(*kind);
        rows.iter().for_each(|row| column.push(row.get(*name)));
        let Some(mut out) = group.next_column()? else { break };
        match &column {
            Column::Integer(values, levels) => {
                out.typed::<Int64Type>().write_batch(values, Some(levels), None)?;
            }
            Column::Number(values, levels) => {
                out.typed::<DoubleType>().write_batch(values, Some(levels), None)?;
            }
            Column::Text(values, levels) => {
                out.typed::<ByteArrayType>().write_batch(values, Some(levels), None)?;
            }
        }
        out.close()?;
    }
    group.close()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use ::parquet::file::reader::{FileReader as _, SerializedFileReader};
    use ::parquet::record::Field;

    use super::*;
    use crate::output::{Files, HEADINGS, Writer};
    use crate::row::Outcome;
    use crate::summary::tests::row;

    fn read(path: &Path) -> (Vec<Vec<(String, Field)>>, usize) {
        let reader = SerializedFileReader::new(File::open(path).unwrap()).unwrap();
        let groups = reader.metadata().num_row_groups();
        let rows = reader.get_row_iter(None).unwrap();
        let fields = |row: ::parquet::record::Row| {
            row.get_column_iter().map(|(name, field)| (name.clone(), field.clone())).collect()
        };
        (rows.map(|row| fields(row.unwrap())).collect(), groups)
    }

    #[test]
    fn every_row_is_there_as_it_was_sent() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files {
            dir: dir.path().to_owned(),
            latencies: "lat.csv".to_owned(),
            durations: None,
            targets: vec!["f".to_owned()],
        };
        let (writer, rows) = Writer::begin(files, None).unwrap();
        let count = GROUP as u64 + 3;
        let of = |n| row(n, if n == 1 { Outcome::Error } else { Outcome::Ok });
        rows.send((0..count).map(of).collect()).unwrap();
        drop(rows);
        drop(writer.end());
        let path = write(&dir.path().join("rows.jsonl"), &Steps::default()).unwrap();
        assert_eq!(path, dir.path().join("rows.parquet"));
        let (read, groups) = read(&path);
        assert_eq!((read.len() as u64, groups), (count, 2));
        let names: Vec<&str> = read[0].iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, HEADINGS.split(',').collect::<Vec<_>>(), "the columns of the CSV file");
        let field = |nth: usize, name: &str| {
            read[nth].iter().find(|(own, _)| own == name).map(|(_, field)| field.clone()).unwrap()
        };
        for nth in [0, 2, GROUP + 2] {
            assert_eq!(field(nth, "number"), Field::Long(i64::try_from(nth).unwrap()));
            assert_eq!(field(nth, "latency_us"), Field::Double(0.59));
            assert_eq!(field(nth, "endpoint"), Field::Str("f".to_owned()));
            assert_eq!((field(nth, "error"), field(nth, "start")), (Field::Null, Field::Null));
        }
        assert_eq!(field(1, "error"), Field::Str("status 503".to_owned()));
        assert!(!dir.path().join("rows.parquet.part").exists());
    }

    #[test]
    fn nothing_is_written_once_there_are_to_be_no_more_steps() {
        let dir = tempfile::tempdir().unwrap();
        let rows = dir.path().join("rows.jsonl");
        std::fs::write(&rows, "{\"number\":7}\n").unwrap();
        let steps = Steps::default();
        steps.end();
        assert!(matches!(write(&rows, &steps), Err(ParquetError::Stopped { .. })));
        assert!(!draft(&rows).exists() && !rows.with_extension("parquet").exists());
        // Nor is anything removed: that is left to whoever ended them.
        std::fs::write(draft(&rows), "begun").unwrap();
        assert!(matches!(write(&rows, &steps), Err(ParquetError::Stopped { .. })));
        assert_eq!(std::fs::read_to_string(draft(&rows)).unwrap(), "begun");
    }

    #[test]
    fn a_cut_line_is_left_out_and_no_rows_are_a_file_too() {
        let make = |rows: &Path| write(rows, &Steps::default());
        let dir = tempfile::tempdir().unwrap();
        let rows = dir.path().join("rows.jsonl");
        std::fs::write(&rows, "{\"rate\":2.5,\"number\":0,\"status\":\"odd\"}\n{\"rate\":2")
            .unwrap();
        let (one, _) = read(&make(&rows).unwrap());
        assert_eq!((one.len(), &one[0][0].1), (1, &Field::Double(2.5)));
        // Within a character, too.
        std::fs::write(&rows, b"{\"number\":7}\n{\"error\":\"\xe2\x82").unwrap();
        let (one, _) = read(&make(&rows).unwrap());
        assert_eq!((one.len(), &one[0][0].1), (1, &Field::Long(7)));
        std::fs::write(&rows, "").unwrap();
        assert_eq!(read(&make(&rows).unwrap()).0.len(), 0);
        assert!(make(&dir.path().join("absent")).is_err());
        // What cannot be read makes no file, nor half of one.
        let unreadable = dir.path().join("dir.jsonl");
        std::fs::create_dir(&unreadable).unwrap();
        assert!(make(&unreadable).is_err() && !draft(&unreadable).exists());
    }
}
