//! The raw rows of a result, and the facts beside them: all that a report is made from.
//!
//! ```text
//!   DIR/study.json   plan, host, node, begin and end, notes
//!       rows.jsonl   one line per measured invocation, written as it is measured
//!       rows.csv     the same, flat; made by the report
//!       loads.jsonl, densities.jsonl   likewise, of `vhive study runtimes`
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vhive_api::{HostCounters, InvocationRecord, Phase, RuntimeName, StartKind};

use crate::density::Density;
use crate::host::Host;
use crate::load::Load;
use crate::plan::{Kind, Plan};
use crate::working_set::WorkingSet;

/// Name of the file with the facts.
pub const STUDY: &str = "study.json";
/// Name of the file with the rows.
pub const ROWS: &str = "rows.jsonl";
/// Name of the file with throughputs, if any were measured.
pub const LOADS: &str = "loads.jsonl";
/// Name of the file with densities, if any were measured.
pub const DENSITIES: &str = "densities.jsonl";

/// Which question a result answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StudyName {
    /// One cold start at a time.
    ColdStart,
    /// Several at a time.
    Parallel,
    /// Which pages are touched.
    Pages,
    /// The same functions in every sandbox.
    Runtimes,
}

impl StudyName {
    /// The name as written in rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ColdStart => "cold-start",
            Self::Parallel => "parallel",
            Self::Pages => "pages",
            Self::Runtimes => "runtimes",
        }
    }
}

/// One measured invocation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Which study.
    pub study: StudyName,
    /// Name of the function.
    pub function: String,
    /// In which sandbox it was to run, where the study varies it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeName>,
    /// How it was to start.
    pub kind: Kind,
    /// Counts from 1.
    pub repetition: u32,
    /// Position of the measurement in the study, from 1.
    pub order: u32,
    /// Counts from 1; above that, an earlier one was served another way than asked for.
    pub attempt: u32,
    /// Name of the request that was sent.
    pub input: String,
    /// Name of the request whose pages were recorded, for kinds that prefetch.
    pub recorded: Option<String>,
    /// What was done to the page cache before: `drop`, `advise` or `keep`.
    pub cache: String,
    /// Invocations under way at the same time, this one included.
    pub level: u32,
    /// The host's one-minute load average before it.
    pub load: Option<f64>,
    /// What the client waited, connection set-up excluded, in microseconds.
    pub client_us: Option<u64>,
    /// Resident memory per instance afterwards, in bytes.
    pub rss_bytes: Option<u64>,
    /// Proportional set size likewise, in bytes.
    pub pss_bytes: Option<u64>,
    /// Memory of the guest as configured, in bytes.
    pub guest_bytes: Option<u64>,
    /// What the sandbox's processes used of the host: of a warm invocation, during it; of others,
    /// since they were started. Absent if it was not asked for, or is not of this invocation alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<HostCounters>,
    /// What went wrong: no reply, an error status, another reply than expected.
    pub error: Option<String>,
    /// The node's record of it.
    pub record: Option<InvocationRecord>,
}

impl Row {
    /// Length of a phase in microseconds.
    #[must_use]
    pub fn phase(&self, phase: Phase) -> Option<u64> {
        let record = self.record.as_ref()?;
        Some(record.phases.iter().find(|span| span.phase == phase)?.length_us)
    }

    /// How it was started, by the node's account.
    #[must_use]
    pub fn start(&self) -> Option<StartKind> {
        self.record.as_ref()?.start
    }

    /// Why the row is in no statistic, if it is not.
    #[must_use]
    pub fn left_out(&self) -> Option<String> {
        if let Some(error) = &self.error {
            return Some(error.clone());
        }
        let Some(record) = &self.record else {
            return Some("the node has no record of it".to_owned());
        };
        if !self.kind.is_how(record) {
            let how = record.start.map_or("nothing", StartKind::as_str);
            let prefetch = record.memory.and_then(|memory| memory.prefetch);
            let prefetch = prefetch.map(|p| format!(" ({p})")).unwrap_or_default();
            return Some(format!("served by {how}{prefetch} instead"));
        }
        let began = record.phases.iter().find(|span| span.phase == Phase::Start);
        if self.level == 1 && began.is_some_and(|span| span.begin_us < 0) {
            return Some("joined a start that was under way".to_owned());
        }
        None
    }

    /// The time that it took by the node's account, in microseconds.
    #[must_use]
    pub fn total_us(&self) -> Option<u64> {
        self.phase(Phase::Total)
    }
}

/// The facts beside the rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Version of this schema: 1.
    pub version: u32,
    /// Which study.
    pub study: StudyName,
    /// Version of the program.
    pub vhive: String,
    /// What was asked for.
    pub plan: Plan,
    /// The host.
    pub host: Host,
    /// What the node told of itself.
    pub node: Value,
    /// When it began, wall clock, UTC.
    pub began: jiff::Timestamp,
    /// When it ended; absent if it was cut short.
    pub ended: Option<jiff::Timestamp>,
    /// The one-minute load average before it began.
    pub load_before: Option<f64>,
    /// And after it ended.
    pub load_after: Option<f64>,
    /// The device whose readahead was set, and to what, e.g. `vda: 0 KiB`.
    pub readahead_set: Option<String>,
    /// What a reader must know and no row says: kinds that could not be prepared, and why.
    pub notes: Vec<String>,
    /// The working sets that were prefetched, where a study looks at them.
    #[serde(default)]
    pub working_sets: Vec<Recorded>,
    /// The runtimes that are compared, where a study varies them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runtimes: Vec<RuntimeName>,
}

impl Facts {
    /// The runtimes that keys have: none where a study does not vary them.
    #[must_use]
    pub fn varied(&self) -> Vec<Option<RuntimeName>> {
        if self.runtimes.is_empty() {
            return vec![None];
        }
        self.runtimes.iter().copied().map(Some).collect()
    }
}

/// The working set of a function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// Name of the function.
    pub function: String,
    /// Name of the request that was recorded.
    pub input: String,
    /// What was recorded.
    pub set: WorkingSet,
}

/// Why a result cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is no result of a study.
    #[error("{} is no result of a study: line {line}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// A result as read from its directory.
#[derive(Clone, Debug)]
pub struct StudyResult {
    /// The facts.
    pub facts: Facts,
    /// The rows, in the order in which they were measured.
    pub rows: Vec<Row>,
    /// Throughputs, likewise.
    pub loads: Vec<Load>,
    /// Densities, likewise.
    pub densities: Vec<Density>,
    /// Whether the last line was cut off by a crash and left out.
    pub cut: bool,
}

impl StudyResult {
    /// Reads a result.
    ///
    /// # Errors
    /// The first file or line that cannot be used. A last line without its end is left out.
    pub fn read(dir: &Path) -> Result<Self, ResultError> {
        let path = dir.join(STUDY);
        let json = text(&path)?;
        let content = |source| ResultError::Content { path, line: 1, source };
        let facts: Facts = serde_json::from_str(&json).map_err(content)?;
        let (rows, cut) = lines(&dir.join(ROWS))?;
        let (loads, _) = lines_if_there(&dir.join(LOADS))?;
        let (densities, _) = lines_if_there(&dir.join(DENSITIES))?;
        Ok(Self { facts, rows, loads, densities, cut })
    }
}

pub(crate) fn text(path: &Path) -> Result<String, ResultError> {
    let read = fs::read_to_string(path);
    read.map_err(|source| ResultError::Read { path: path.to_owned(), source })
}

/// The lines of a file, and whether the last one was cut off.
pub(crate) fn lines<T: DeserializeOwned>(path: &Path) -> Result<(Vec<T>, bool), ResultError> {
    let lines = text(path)?;
    let cut = !lines.is_empty() && !lines.ends_with('\n');
    let whole = if cut { lines.rfind('\n').map_or("", |end| &lines[..end]) } else { &lines };
    let mut rows = Vec::new();
    for (number, line) in whole.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let parsed = serde_json::from_str(line);
        let content =
            |source| ResultError::Content { path: path.to_owned(), line: number + 1, source };
        rows.push(parsed.map_err(content)?);
    }
    Ok((rows, cut))
}

pub(crate) fn lines_if_there<T: DeserializeOwned>(
    path: &Path,
) -> Result<(Vec<T>, bool), ResultError> {
    if path.exists() { lines(path) } else { Ok((Vec::new(), false)) }
}

/// Writes a result while it is measured.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    rows: File,
}

impl Writer {
    /// Begins a result; the directory is made if need be.
    ///
    /// # Errors
    /// When a file cannot be written, or the directory already holds a result.
    pub fn create(dir: &Path, facts: &Facts) -> Result<Self, ResultError> {
        let path = dir.join(ROWS);
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| ResultError::Write { path, source }
        };
        fs::create_dir_all(dir).map_err(failed(dir))?;
        let rows = File::create_new(&path).map_err(failed(&path))?;
        let writer = Self { dir: dir.to_owned(), rows };
        writer.facts(facts)?;
        Ok(writer)
    }

    /// Replaces the facts, by rename.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn facts(&self, facts: &Facts) -> Result<(), ResultError> {
        let path = self.dir.join(STUDY);
        let mut text = serde_json::to_string_pretty(facts).expect("facts serialise");
        text.push('\n');
        let draft = self.dir.join("study.json.draft");
        let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &path));
        written.map_err(|source| ResultError::Write { path, source })
    }

    /// Adds a row, whole, so that a later kill spoils none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn row(&mut self, row: &Row) -> Result<(), ResultError> {
        let written = self.rows.write_all(line(row).as_bytes());
        written.map_err(|source| ResultError::Write { path: self.dir.join(ROWS), source })
    }

    /// Adds a throughput.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn load(&self, row: &Load) -> Result<(), ResultError> {
        self.append(LOADS, &line(row))
    }

    /// Adds a density.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn density(&self, row: &Density) -> Result<(), ResultError> {
        self.append(DENSITIES, &line(row))
    }

    fn append(&self, name: &str, line: &str) -> Result<(), ResultError> {
        let path = self.dir.join(name);
        let opened = File::options().create(true).append(true).open(&path);
        let written = opened.and_then(|mut file| file.write_all(line.as_bytes()));
        written.map_err(|source| ResultError::Write { path, source })
    }
}

fn line(row: &impl Serialize) -> String {
    let mut line = serde_json::to_string(row).expect("rows serialise");
    line.push('\n');
    line
}
