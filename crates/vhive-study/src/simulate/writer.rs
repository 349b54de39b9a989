//! The files of a simulation while it goes on: the facts first, each policy's row as it is done. One that
//! was ended before its time is a result of what it has come to, and goes on from there.

use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::result::{Outcome, SIMULATION, SimFacts, Simulation};
use super::{SimPlan, labels};
use crate::row::{ROWS, ResultError};

/// Why a simulation cannot write into a directory.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// Nothing is left to do.
    #[error(
        "{} already holds a result, of which `vhive report` makes the report; give another --out",
        .0.display()
    )]
    Whole(PathBuf),
    /// Another process writes there.
    #[error("a simulation is writing into {}; wait for its end, or give another --out", .0.display())]
    Busy(PathBuf),
    /// It has begun with something else.
    #[error(
        "{} already holds a result with other {what}, which cannot go on; give another --out",
        dir.display()
    )]
    Other {
        /// Which directory.
        dir: PathBuf,
        /// What differs.
        what: &'static str,
    },
}

/// Writes a simulation's rows as they come. It holds a lock on them, which goes with the process.
#[derive(Debug)]
pub struct SimWriter {
    path: PathBuf,
    rows: File,
}

impl SimWriter {
    /// Begins a simulation, or goes on with one of the same plan, program and inputs that was cut short;
    /// what that had come to is the second value.
    ///
    /// # Errors
    /// When a file cannot be written, another simulation writes there, or the directory holds another result,
    /// or a whole one.
    pub fn begin(dir: &Path, facts: &SimFacts) -> Result<(Self, Vec<Outcome>), BeginError> {
        let (path, told) = (dir.join(ROWS), dir.join(SIMULATION));
        let write = |path: &Path| {
            let path = path.to_owned();
            |source| ResultError::Write { path, source }
        };
        let lock = |rows: &File| match rows.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => Err(BeginError::Busy(dir.to_owned())),
            Err(TryLockError::Error(error)) => Err(write(&path)(error).into()),
        };
        if told.exists() {
            let opened = File::options().create(true).append(true).open(&path);
            let rows = opened.map_err(write(&path))?;
            lock(&rows)?;
            let earlier = Simulation::read(dir)?;
            let other = |what| BeginError::Other { dir: dir.to_owned(), what };
            if let Some(what) = differs(&earlier, facts) {
                return Err(other(what));
            }
            if earlier.missing() == 0 {
                return Err(BeginError::Whole(dir.to_owned()));
            }
            // What follows the last whole line has been cut off.
            let cut = fs::read(&path).and_then(|text| {
                let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                rows.set_len(whole as u64)
            });
            cut.map_err(write(&path))?;
            return Ok((Self { path, rows }, earlier.outcomes));
        }
        if path.exists() {
            return Err(BeginError::Whole(dir.to_owned()));
        }
        fs::create_dir_all(dir).map_err(write(dir))?;
        let mut text = serde_json::to_string_pretty(facts).expect("facts serialise");
        text.push('\n');
        let draft = dir.join("simulation.json.draft");
        let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &told));
        written.map_err(write(&told))?;
        let rows = File::create_new(&path).map_err(write(&path))?;
        lock(&rows)?;
        Ok((Self { path, rows }, Vec::new()))
    }

    /// Adds a row, whole, so that a later kill spoils none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn row(&mut self, outcome: &Outcome) -> Result<(), ResultError> {
        let mut line = serde_json::to_string(outcome).expect("rows serialise");
        line.push('\n');
        let written = self.rows.write_all(line.as_bytes());
        written.map_err(|source| ResultError::Write { path: self.path.clone(), source })
    }
}

/// What keeps one from going on, if anything does. The host and the number of threads do not.
fn differs(earlier: &Simulation, facts: &SimFacts) -> Option<&'static str> {
    let of = &earlier.facts;
    // Numbers come back from JSON as their text says, which is not always to the last bit: the earlier plan has
    // been there once.
    let plan = SimPlan { threads: of.plan.threads, ..facts.plan.clone() };
    let text = serde_json::to_string(&plan).expect("plans serialise");
    let plan: Option<SimPlan> = serde_json::from_str(&text).ok();
    let whole = labels(&of.plan);
    let done: Vec<String> = earlier.outcomes.iter().map(Outcome::label).collect();
    match () {
        () if plan.as_ref() != Some(&of.plan) => Some("plan"),
        () if (of.version, &of.vhive) != (facts.version, &facts.vhive) => Some("program"),
        () if inputs(of) != inputs(facts) => Some("trace or starts"),
        () if !whole.starts_with(&done) => Some("rows"),
        () => None,
    }
}

/// Where files tell nothing of what they were, the number of what was read in them does.
fn inputs(facts: &SimFacts) -> impl PartialEq + '_ {
    let measured = facts.measured.iter().map(|one| (one.function.as_str(), one.start, one.n));
    (&facts.inputs, facts.functions, measured.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Starts, TracePlan, Workload, simulate, simulate_rest};

    #[test]
    fn a_simulation_that_was_cut_short_goes_on_with_what_is_missing() {
        let dir = tempfile::tempdir().expect("made");
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cold-start/rows.jsonl");
        let given = dir.path().join("starts.jsonl");
        fs::copy(from, &given).expect("copied");
        let plan = SimPlan {
            trace: TracePlan { functions: 20, minutes: 5, ..TracePlan::default() },
            starts: vec![given.clone()],
            ..SimPlan::default()
        };
        let starts = Starts::read(&plan.starts).expect("measured");
        let workload = Workload::load(&plan).expect("a day");
        let facts = |plan: &SimPlan| SimFacts::new(plan, &workload, &starts, None);
        let whole = simulate(&plan, (&workload, &starts), |_| ());

        let out = dir.path().join("out");
        let (mut writer, _) = SimWriter::begin(&out, &facts(&plan)).expect("new");
        // The disk is full after the second row.
        let mut told = 0;
        let ended = simulate_rest(&plan, (&workload, &starts), 0, |outcome| {
            told += 1;
            if told > 2 { Err("full") } else { writer.row(&outcome).map_err(|_| "unwritten") }
        });
        assert_eq!((ended, told), (Err("full"), 3), "what follows is not begun");
        let error = SimWriter::begin(&out, &facts(&plan)).expect_err("it still has the rows");
        assert!(matches!(error, BeginError::Busy(_)), "{error}");
        drop(writer);
        let path = out.join(ROWS);
        let rows = fs::read_to_string(&path).expect("rows");
        fs::write(&path, format!("{rows}{{\"policy\":\"cut")).expect("written");
        let read = Simulation::read(&out).expect("reads what is there");
        assert_eq!((read.outcomes.len(), read.missing()), (2, 4));

        let other = SimPlan { seed: 2, ..plan.clone() };
        let error = SimWriter::begin(&out, &facts(&other)).expect_err("another plan");
        assert!(error.to_string().contains("other plan"), "{error}");
        fs::write(&given, fs::read_to_string(&given).expect("text") + "\n").expect("written");
        let error = SimWriter::begin(&out, &facts(&plan)).expect_err("another input");
        assert!(error.to_string().contains("other trace or starts"), "{error}");
        let text = fs::read_to_string(&given).expect("text");
        fs::write(&given, text.strip_suffix('\n').expect("one more")).expect("as before");

        let fewer = SimPlan { threads: 1, ..plan.clone() };
        let (mut writer, done) = SimWriter::begin(&out, &facts(&fewer)).expect("goes on");
        let labels = |all: &[Outcome]| all.iter().map(Outcome::label).collect::<Vec<_>>();
        assert_eq!(labels(&done), labels(&whole[..2]));
        let mut row = |outcome: Outcome| writer.row(&outcome);
        simulate_rest(&plan, (&workload, &starts), done.len(), &mut row).expect("written");
        assert_eq!(Simulation::read(&out).expect("whole").missing(), 0);
        let line = |one: &Outcome| serde_json::to_string(one).expect("serialises") + "\n";
        let wanted: String = whole.iter().map(line).collect();
        assert_eq!(fs::read_to_string(&path).expect("rows"), wanted);
        drop(writer);
        let error = SimWriter::begin(&out, &facts(&plan)).expect_err("whole");
        assert!(matches!(error, BeginError::Whole(_)), "{error}");
    }
}
