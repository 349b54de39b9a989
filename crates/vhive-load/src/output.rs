//! The files of a run, written by a thread of its own while it goes on.
//!
//! | file | what |
//! |---|---|
//! | `rows.jsonl`, `rows.csv` | every request with everything known of it |
//! | `rps<X>_lat.csv` | the original's: latency in µs per line, in the order of completion; `X` = completed per second |
//! | `dur.csv` | the original's: what functions say they took, in µs per line |
//! | `summary.json` | the figures on standard output |

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use serde::Serialize;

use crate::row::{Outcome, Row};
use crate::summary::{Figures, Tally, Times};

/// Why a run's files cannot be begun or finished.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct OutputError {
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

/// Where a run's files go.
#[derive(Clone, Debug)]
pub struct Files {
    /// The directory; made if it is not there.
    pub dir: PathBuf,
    /// End of the name of the latencies' file: `lat.csv`.
    pub latencies: String,
    /// Name of the durations' file, if functions tell any.
    pub durations: Option<String>,
    /// Names of the targets, by index.
    pub targets: Vec<String>,
}

/// A row as it is written: for people and spreadsheets, in microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Written<'a> {
    number: u64,
    endpoint: &'a str,
    intended_us: f64,
    late_us: Option<f64>,
    connect_us: Option<f64>,
    first_byte_us: Option<f64>,
    latency_us: Option<f64>,
    total_us: f64,
    outcome: Outcome,
    start: Option<&'a str>,
    status: Option<u16>,
    grpc_status: Option<i32>,
    error: Option<&'a str>,
    id: Option<&'a str>,
    body_bytes: u64,
    requested_runtime_ms: Option<u32>,
    requested_memory_mib: Option<u32>,
    function_us: Option<u64>,
    function_memory_kib: Option<u64>,
    flow_us: Option<f64>,
    function_drift_percent: Option<f64>,
}

pub(crate) const HEADINGS: &str = "number,endpoint,intended_us,late_us,connect_us,first_byte_us,latency_us,\
    total_us,outcome,start,status,grpc_status,error,id,body_bytes,requested_runtime_ms,\
    requested_memory_mib,function_us,function_memory_kib,flow_us,\
    function_drift_percent";

impl<'a> Written<'a> {
    pub(crate) fn of(row: &'a Row, targets: &'a [String], start: Option<&'a str>) -> Self {
        let us = |ns: u64| ns as f64 / 1e3;
        let index = usize::try_from(row.target).unwrap_or(usize::MAX);
        Self {
            number: row.number,
            endpoint: targets.get(index).map_or("", String::as_str),
            intended_us: us(row.intended_ns),
            late_us: row.sent.then(|| us(row.late_ns())),
            connect_us: row.connect_ns.map(us),
            first_byte_us: row.first_byte_ns.map(|at| us(at.saturating_sub(row.sent_ns))),
            latency_us: row.sent.then(|| us(row.latency_ns())),
            total_us: us(row.total_ns()),
            outcome: row.outcome,
            start,
            status: row.status,
            grpc_status: row.grpc_status,
            error: row.error.as_deref(),
            id: row.id.as_deref(),
            body_bytes: row.body_bytes,
            requested_runtime_ms: row.work.map(|work| work.runtime_ms),
            requested_memory_mib: row.work.map(|work| work.memory_mib),
            function_us: row.function_us,
            function_memory_kib: row.function_memory_kib,
            flow_us: row.flow_ns.map(us),
            function_drift_percent: row.function_drift_percent,
        }
    }

    pub(crate) fn csv(&self, out: &mut impl Write) -> io::Result<()> {
        write!(
            out,
            "{},{},{},{},",
            self.number,
            field(self.endpoint),
            self.intended_us,
            shown(self.late_us)
        )?;
        write!(out, "{},{},", shown(self.connect_us), shown(self.first_byte_us))?;
        write!(out, "{},{},", shown(self.latency_us), self.total_us)?;
        write!(out, "{},", self.outcome.as_str())?;
        write!(out, "{},{},", self.start.unwrap_or_default(), shown(self.status))?;
        write!(out, "{},{},", shown(self.grpc_status), field(self.error.unwrap_or_default()))?;
        write!(out, "{},{},", field(self.id.unwrap_or_default()), self.body_bytes)?;
        write!(out, "{},{},", shown(self.requested_runtime_ms), shown(self.requested_memory_mib))?;
        write!(out, "{},{},", shown(self.function_us), shown(self.function_memory_kib))?;
        writeln!(out, "{},{}", shown(self.flow_us), shown(self.function_drift_percent))
    }
}

fn shown<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// A text as a field of a CSV file.
///
/// # Source
/// RFC 4180.
pub(crate) fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// The thread that writes.
#[derive(Debug)]
pub struct Writer(JoinHandle<Rows>);

/// What was written.
#[derive(Debug)]
pub struct Rows {
    /// All rows, whether written or not.
    pub tally: Tally,
    /// How many rows are missing in a file, and the first reason; of each file that lacks some.
    pub lost: Vec<(u64, OutputError)>,
    open: Open,
}

/// Something that sees every row, as the original's own outputs do.
pub trait Also: Send + 'static {
    /// Where it writes.
    fn path(&self) -> &Path;

    /// Takes a row.
    ///
    /// # Errors
    /// When it cannot be written.
    fn row(&mut self, row: &Row) -> io::Result<()>;

    /// The last row has come.
    ///
    /// # Errors
    /// When what is left cannot be written.
    fn end(&mut self) -> io::Result<()>;
}

impl Writer {
    /// Begins the files of a run and the thread that writes them.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn begin(
        files: Files,
        also: Option<Box<dyn Also>>,
    ) -> Result<(Self, Sender<Vec<Row>>), OutputError> {
        let open = Open::new(files)?;
        let (rows, receiver) = channel();
        Ok((Self(std::thread::spawn(move || write(open, also, &receiver))), rows))
    }

    /// Returns when all rows are written, which the end of the run brings about.
    #[must_use]
    pub fn end(self) -> Rows {
        self.0.join().expect("the writer does not panic")
    }
}

#[derive(Debug)]
pub(crate) struct Out {
    pub(crate) path: PathBuf,
    file: BufWriter<File>,
    lost: Lost,
}

/// What a file lacks. The others go on without it.
#[derive(Debug, Default)]
struct Lost {
    rows: u64,
    /// Of them, those of the batch that is being written.
    of_batch: u64,
    why: Option<io::Error>,
}

impl Lost {
    /// A row of the batch is written, or not.
    fn row(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            self.of_batch += 1;
            self.why.get_or_insert(error);
        }
    }

    /// The batch has come to the file, or not all of it.
    fn batch(&mut self, rows: u64, done: io::Result<()>) {
        if let Err(error) = done {
            self.of_batch = rows;
            self.why.get_or_insert(error);
        }
        self.rows += std::mem::take(&mut self.of_batch);
    }

    fn told(self, path: &Path) -> Option<(u64, OutputError)> {
        Some((self.rows, OutputError { path: path.to_owned(), source: self.why? }))
    }
}

impl Out {
    pub(crate) fn new(path: PathBuf) -> Result<Self, OutputError> {
        match File::create(&path) {
            Ok(file) => {
                let file = BufWriter::with_capacity(64 << 10, file);
                Ok(Self { path, file, lost: Lost::default() })
            }
            Err(source) => Err(OutputError { path, source }),
        }
    }

    /// Writes a row, or counts it as lost.
    pub(crate) fn row(&mut self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        self.lost.row(write(&mut self.file));
    }

    /// So many rows come to the file now, or are lost: a kill loses what came since the last batch.
    pub(crate) fn batch(&mut self, rows: usize) {
        let done = self.file.flush();
        self.lost.batch(rows as u64, done);
    }

    /// How many rows it lacks, and the first reason, if it lacks any.
    pub(crate) fn lost(&mut self) -> Option<(u64, OutputError)> {
        std::mem::take(&mut self.lost).told(&self.path)
    }

    pub(crate) fn put(
        &mut self,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), OutputError> {
        write(&mut self.file).map_err(|source| OutputError { path: self.path.clone(), source })
    }
}

#[derive(Debug)]
struct Open {
    files: Files,
    json: Out,
    csv: Out,
    latencies: Out,
    durations: Option<Out>,
}

impl Open {
    fn new(files: Files) -> Result<Self, OutputError> {
        let dir = &files.dir;
        std::fs::create_dir_all(dir).map_err(|source| OutputError { path: dir.clone(), source })?;
        let mut csv = Out::new(dir.join("rows.csv"))?;
        csv.put(|out| writeln!(out, "{HEADINGS}"))?;
        let durations = files.durations.as_ref().map(|name| Out::new(dir.join(name)));
        Ok(Self {
            json: Out::new(dir.join("rows.jsonl"))?,
            csv,
            latencies: Out::new(dir.join(format!("{}.part", files.latencies)))?,
            durations: durations.transpose()?,
            files,
        })
    }

    fn row(&mut self, row: &Row) {
        let written = Written::of(row, &self.files.targets, None);
        self.json.row(|out| {
            serde_json::to_writer(&mut *out, &written)?;
            out.write_all(b"\n")
        });
        self.csv.row(|out| written.csv(out));
        // The original's latencies have those of failures, and none of what was under way. It counts from
        // before it connects, which is all that there is of what could not be sent.
        if row.outcome != Outcome::Unfinished {
            let ns = if row.sent { row.latency_ns() } else { row.total_ns() };
            self.latencies.row(|out| writeln!(out, "{}", ns / 1000));
        }
        if let (Some(file), Some(us)) = (&mut self.durations, row.function_us) {
            file.row(|out| writeln!(out, "{us}"));
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Out> {
        let all = [&mut self.json, &mut self.csv, &mut self.latencies];
        all.into_iter().chain(self.durations.as_mut())
    }
}

fn write(mut open: Open, mut also: Option<Box<dyn Also>>, rows: &Receiver<Vec<Row>>) -> Rows {
    let (mut tally, mut of_also) = (Tally::default(), Lost::default());
    for batch in rows {
        for row in &batch {
            tally.add(row);
            open.row(row);
            if let Some(also) = &mut also {
                of_also.row(also.row(row));
            }
        }
        // A batch comes four times a second at least.
        open.all().for_each(|out| out.batch(batch.len()));
        of_also.batch(0, Ok(()));
    }
    let mut lost: Vec<_> = open.all().filter_map(Out::lost).collect();
    if let Some(also) = &mut also {
        of_also.batch(1, also.end());
        lost.extend(of_also.told(also.path()));
    }
    Rows { tally, lost, open }
}

impl Rows {
    /// Removes the latencies of a run that has not begun: nothing can be named by its rate.
    pub fn drop_latencies(&self) {
        let _ = std::fs::remove_file(&self.open.latencies.path);
    }

    /// Gives the latencies their name; returns their path.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn name_latencies(&self) -> Result<PathBuf, OutputError> {
        let rate = self.tally.completed_per_second();
        let name = format!("rps{rate:.2}_{}", self.open.files.latencies);
        let path = self.open.files.dir.join(name);
        std::fs::rename(&self.open.latencies.path, &path)
            .map_err(|source| OutputError { path: path.clone(), source })?;
        Ok(path)
    }

    /// Writes how the instance of each request was started into the rows, as far as it is known
    /// by the reply's `X-Request-Id`; returns the latencies of successes by start, and how many
    /// replies' start is not known.
    ///
    /// # Errors
    /// When the files cannot be read or written again.
    pub fn add_starts(
        &self,
        starts: &HashMap<String, String>,
    ) -> Result<(Vec<(String, Figures)>, u64), OutputError> {
        let path = &self.open.json.path;
        let failed = |source| OutputError { path: path.clone(), source };
        let lines = BufReader::new(File::open(path).map_err(failed)?).split(b'\n');
        let mut json = Out::new(path.with_extension("jsonl.part"))?;
        let mut times: HashMap<&str, Times> = HashMap::new();
        let mut kinds: HashMap<u64, &str> = HashMap::new();
        let mut unknown = 0;
        for line in lines {
            let line = line.map_err(failed)?;
            // The last line of a full disk may be cut.
            let Ok(mut row) = serde_json::from_slice::<serde_json::Value>(&line) else { continue };
            let id = row["id"].as_str().and_then(|id| starts.get(id));
            unknown += u64::from(id.is_none() && !row["status"].is_null());
            if let Some(kind) = id {
                row["start"] = kind.as_str().into();
                kinds.insert(row["number"].as_u64().unwrap_or_default(), kind);
                if row["outcome"] == "ok" {
                    let us = row["latency_us"].as_f64().unwrap_or_default();
                    times.entry(kind).or_default().add(crate::arrivals::whole_nanos(us * 1e3));
                }
            }
            json.put(|out| writeln!(out, "{row}"))?;
        }
        replace(json, path)?;
        self.add_starts_to_csv(&kinds)?;
        let mut all: Vec<(String, Figures)> = times
            .into_iter()
            .filter_map(|(kind, times)| Some((kind.to_owned(), times.figures()?)))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok((all, unknown))
    }

    fn add_starts_to_csv(&self, kinds: &HashMap<u64, &str>) -> Result<(), OutputError> {
        let path = &self.open.csv.path;
        let failed = |source| OutputError { path: path.clone(), source };
        let text = BufReader::new(File::open(path).map_err(failed)?);
        let mut csv = Out::new(path.with_extension("csv.part"))?;
        for line in text.split(b'\n') {
            let line = line.map_err(failed)?;
            let line = String::from_utf8_lossy(&line).into_owned();
            let number = line.split(',').next().and_then(|text| text.parse::<u64>().ok());
            let kind = number.and_then(|number| kinds.get(&number));
            // The field behind the outcome is empty so far; no quoted field comes before it but
            // the end point, which has no comma.
            let line = match kind {
                Some(kind) => {
                    let mut fields: Vec<&str> = line.splitn(11, ',').collect();
                    if let Some(start) = fields.get_mut(9) {
                        *start = kind;
                    }
                    fields.join(",")
                }
                None => line,
            };
            csv.put(|out| writeln!(out, "{line}"))?;
        }
        replace(csv, path)
    }
}

fn replace(mut draft: Out, path: &Path) -> Result<(), OutputError> {
    draft.put(Write::flush)?;
    std::fs::rename(&draft.path, path)
        .map_err(|source| OutputError { path: path.to_owned(), source })
}

/// Writes a value as a JSON file.
///
/// # Errors
/// When it cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), OutputError> {
    let draft = path.with_extension("json.part");
    let written = Out::new(draft.clone()).and_then(|mut out| {
        out.put(|out| {
            serde_json::to_writer_pretty(&mut *out, value)?;
            out.write_all(b"\n")?;
            out.flush()
        })
    });
    let renamed = written.and_then(|()| {
        let renamed = std::fs::rename(&draft, path);
        renamed.map_err(|source| OutputError { path: path.to_owned(), source })
    });
    if renamed.is_err() {
        // It is half a file, or none.
        let _ = std::fs::remove_file(&draft);
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::row;

    fn files(dir: &Path) -> Files {
        let targets = vec!["f.default.test".to_owned()];
        let durations = Some("dur.csv".to_owned());
        Files { dir: dir.to_owned(), latencies: "lat.csv".to_owned(), durations, targets }
    }

    #[test]
    fn the_files_hold_every_row_in_the_originals_shapes_and_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, rows) = Writer::begin(files(dir.path()), None).unwrap();
        rows.send(vec![row(0, Outcome::Ok), row(1, Outcome::Error)]).unwrap();
        rows.send(vec![row(2, Outcome::Unfinished)]).unwrap();
        drop(rows);
        let done = writer.end();
        let latencies = done.name_latencies().unwrap();
        let name = latencies.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with("rps") && name.ends_with("_lat.csv"), "{name}");
        assert_eq!(std::fs::read_to_string(latencies).unwrap(), "0\n0\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("dur.csv")).unwrap(), "0\n1\n2\n");
        let starts = HashMap::from([("an,id\"".to_owned(), "reap".to_owned())]);
        let (told, unknown) = done.add_starts(&starts).unwrap();
        assert_eq!((told[0].0.as_str(), told[0].1.count, unknown), ("reap", 1, 0));
        let (told, unknown) = done.add_starts(&HashMap::new()).unwrap();
        assert_eq!((told.len(), unknown), (0, 3), "the node forgot them");
        let json = std::fs::read_to_string(dir.path().join("rows.jsonl")).unwrap();
        let parsed: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((parsed.len(), &parsed[2]["start"]), (3, &"reap".into()));
        let csv = std::fs::read_to_string(dir.path().join("rows.csv")).unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        let columns = HEADINGS.split(',').count();
        assert_eq!(lines[1].replace("\"an,id\"\"\"", "id").split(',').count(), columns);
        assert!(lines[2].contains(",error,reap,200,,status 503,\"an,id\"\"\",3,"), "{}", lines[2]);
    }

    #[test]
    fn a_last_line_that_is_cut_within_a_character_gets_no_start() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, rows) = Writer::begin(files(dir.path()), None).unwrap();
        rows.send(vec![row(0, Outcome::Ok)]).unwrap();
        drop(rows);
        let done = writer.end();
        for name in ["rows.jsonl", "rows.csv"] {
            let mut cut = std::fs::read(dir.path().join(name)).unwrap();
            cut.extend(b"1,\"\xe2\x82");
            std::fs::write(dir.path().join(name), cut).unwrap();
        }
        let starts = HashMap::from([("an,id\"".to_owned(), "reap".to_owned())]);
        assert_eq!(done.add_starts(&starts).unwrap().1, 0);
        let json = std::fs::read_to_string(dir.path().join("rows.jsonl")).unwrap();
        assert!(json.lines().count() == 1 && json.contains("reap"), "{json}");
        done.drop_latencies();
        assert!(!dir.path().join("lat.csv.part").exists());
    }

    #[test]
    fn a_full_disk_loses_rows_and_says_how_many() {
        if !Path::new("/dev/full").exists() {
            eprintln!("SKIP a_full_disk_loses_rows_and_says_how_many: /dev/full");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("rows.jsonl")).unwrap();
        let (writer, rows) = Writer::begin(files(dir.path()), None).unwrap();
        for n in 0..100 {
            rows.send(vec![row(n, Outcome::Ok)]).unwrap();
        }
        drop(rows);
        let done = writer.end();
        assert_eq!(done.tally.count(Outcome::Ok), 100, "the run goes on");
        assert_eq!(done.lost.len(), 1, "{:?}", done.lost);
        let (lost, why) = &done.lost[0];
        assert!(*lost == 100 && why.to_string().contains("rows.jsonl"), "{lost} {why}");
        let lines =
            |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap().lines().count();
        assert_eq!([lines("rows.csv"), lines("lat.csv.part"), lines("dur.csv")], [101, 100, 100]);
    }

    #[test]
    fn what_else_writes_is_named_by_its_own_file() {
        struct Full;
        impl Also for Full {
            fn path(&self) -> &Path {
                Path::new("its/duration.csv")
            }
            fn row(&mut self, row: &Row) -> io::Result<()> {
                if row.number < 2 { Ok(()) } else { Err(io::Error::other("full")) }
            }
            fn end(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let (writer, rows) = Writer::begin(files(dir.path()), Some(Box::new(Full))).unwrap();
        rows.send((0..5).map(|n| row(n, Outcome::Ok)).collect()).unwrap();
        drop(rows);
        let lost = writer.end().lost;
        assert!(matches!(lost.as_slice(), [(3, _)]), "{lost:?}");
        assert!(lost[0].1.to_string().contains("its/duration.csv"), "{lost:?}");
    }
}
