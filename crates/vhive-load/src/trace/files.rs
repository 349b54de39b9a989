//! The original's files: `iat<i>.json`, and the CSV file of durations.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::whole::{Whole, name_all};
use super::{Function, Invocation, Plan, Source, TraceError};
use crate::arrivals::whole_nanos;
use crate::call::Work;
use crate::clock::Clock;
use crate::flow::Flow;
use crate::output::{Also, field};
use crate::row::{Outcome, Row};

/// One function's invocations.
///
/// # Source
/// invitro `pkg/common/specification_types.go`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Specification {
    /// From one invocation to the next, in µs; the first from the beginning.
    #[serde(rename = "IAT")]
    pub iat: Vec<f64>,
    /// Invocations per minute.
    #[serde(default)]
    pub per_minute_count: Vec<u64>,
    /// What each does.
    pub runtime_specification: Vec<Requested>,
}

/// What an invocation does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Requested {
    /// Milliseconds.
    pub runtime: u32,
    /// Mebibytes.
    pub memory: u32,
}

/// Writes `iat<i>.json` of every function into `dir`.
///
/// # Errors
/// When a file cannot be written.
pub fn write_iat(plan: &Plan, dir: &Path) -> io::Result<usize> {
    std::fs::create_dir_all(dir)?;
    let mut all: Vec<(u64, Specification)> = (0..plan.functions.len())
        .map(|function| {
            let (iat, runtime_specification) = (Vec::new(), Vec::new());
            let per_minute_count = plan.counts(function);
            (0, Specification { iat, per_minute_count, runtime_specification })
        })
        .collect();
    for shot in plan.shots() {
        let index = usize::try_from(shot.target).unwrap_or(usize::MAX);
        let (Some((last, one)), Some(work)) = (all.get_mut(index), shot.work) else { continue };
        one.iat.push((shot.at_ns - *last) as f64 / 1e3);
        one.runtime_specification
            .push(Requested { runtime: work.runtime_ms, memory: work.memory_mib });
        *last = shot.at_ns;
    }
    let mut drafts = Vec::with_capacity(all.len());
    for (index, (_, one)) in all.iter().enumerate() {
        let mut file = Whole::begin(&dir.join(format!("iat{index}.json")))?;
        serde_json::to_writer(&mut file, one)?;
        drafts.push(file.written()?);
    }
    let mut drafts = drafts.into_iter();
    // Without the first, the others are not read.
    if let Some(first) = drafts.next() {
        name_all(drafts, first)?;
    }
    Ok(all.len())
}

/// Replaces a plan's functions' invocations by those in `iat<i>.json`, in the same order. Returns how
/// many are after the plan's end, and so are not sent.
///
/// # Errors
/// When a file is missing or is no such file.
pub fn read_iat(plan: &mut Plan, dir: &Path) -> Result<u64, TraceError> {
    let end = plan.unit.ns().saturating_mul(plan.units as u64);
    let mut behind = 0;
    for (index, function) in plan.functions.iter_mut().enumerate() {
        let all = read_one(&dir.join(format!("iat{index}.json")))?;
        behind += (all.len() - all.partition_point(|one| one.at_ns < end)) as u64;
        *function = Function { name: function.name.clone(), source: Source::Exact(all) };
    }
    plan.first = 0;
    Ok(behind)
}

fn read_one(path: &Path) -> Result<Vec<Invocation>, TraceError> {
    let bad = |problem: String| TraceError::File { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path)
        .map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
    let one: Specification = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let (times, works) = (one.iat.len(), one.runtime_specification.len());
    if times != works {
        return Err(bad(format!("{times} arrivals, but {works} specifications")));
    }
    let mut at_us = 0.0;
    let mut all = Vec::with_capacity(times);
    for (iat, requested) in one.iat.iter().zip(&one.runtime_specification) {
        if !(*iat >= 0.0 && iat.is_finite()) {
            return Err(bad(format!("{iat} µs is no time between arrivals")));
        }
        at_us += iat;
        let work = Work { runtime_ms: requested.runtime, memory_mib: requested.memory };
        all.push(Invocation { at_ns: whole_nanos(at_us * 1e3), work });
    }
    Ok(all)
}

/// `<prefix>_duration_<minutes>.csv`: the original's columns, then ours.
///
/// # Source
/// invitro `pkg/metric/record.go`, `ExecutionRecord`.
#[derive(Debug)]
pub struct Durations {
    path: PathBuf,
    out: BufWriter<File>,
    clock: Arc<OnceLock<Clock>>,
    unit_ns: u64,
    execution_from_ns: u64,
    names: Vec<String>,
    /// Rows are flushed when this many came, so that a kill loses few.
    unflushed: u32,
}

const HEADINGS: &str = "phase,instance,invocationID,startTime,requestedDuration,grpcConnEstablish,\
    responseTime,actualDuration,connectionTimeout,functionTimeout,actualMemoryUsage,\
    memoryAllocationTimeout,timeToSubmitMs,userCodeExecutionMs,timeToGetResponseMs,lateUs,outcome,\
    httpStatusCode,requestedMemory,error,actualMemoryKib";

impl Durations {
    /// Begins the file. `execution_from_ns` is the end of the warm-up.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(
        path: &Path,
        plan: &Plan,
        execution_from_ns: u64,
        clock: Arc<OnceLock<Clock>>,
    ) -> io::Result<Self> {
        let mut out = BufWriter::new(File::create(path)?);
        writeln!(out, "{HEADINGS}")?;
        let names = plan.functions.iter().map(|function| function.name.clone()).collect();
        let unit_ns = plan.unit.ns();
        let path = path.to_owned();
        Ok(Self { path, out, clock, unit_ns, execution_from_ns, names, unflushed: 0 })
    }

    /// Puts the workflow before the name of each function that is part of one, as the original
    /// does.
    #[must_use]
    pub fn of_flows(mut self, flows: &[Flow]) -> Self {
        for (number, flow) in flows.iter().enumerate() {
            for step in flow.steps() {
                let index = usize::try_from(step.target).unwrap_or(usize::MAX);
                if let Some(name) = self.names.get_mut(index) {
                    *name = field(&format!("DAG {number},{name}"));
                }
            }
        }
        self
    }

    fn line(&self, row: &Row) -> String {
        let clock = self.clock.get();
        // The original's times are from before it connects: all that there is of what was never sent.
        let (start_ns, response_ns, late) = match row.sent {
            true => (row.sent_ns, row.latency_ns(), (row.late_ns() / 1000).to_string()),
            false => (row.intended_ns, row.total_ns(), String::new()),
        };
        let start = clock.map_or(0, |clock| clock.epoch_us(start_ns));
        let index = usize::try_from(row.target).unwrap_or(usize::MAX);
        // What follows has the identity of what it follows.
        let intended_ns = row.flow_ns.unwrap_or(row.intended_ns);
        let phase = if intended_ns < self.execution_from_ns { 1 } else { 2 };
        let unreachable = row.outcome == Outcome::Error && row.status.is_none();
        let head = format!(
            "{phase},{},min{}.inv{},{start}",
            self.names.get(index).map_or("", String::as_str),
            intended_ns / self.unit_ns,
            row.nth,
        );
        let work = row.work.unwrap_or(Work { runtime_ms: 0, memory_mib: 0 });
        // The three of asynchronous calls are empty: there are none.
        format!(
            "{head},{},{},{},{},{unreachable},{},{},false,,,,{},{},{},{},{},{}",
            u64::from(work.runtime_ms) * 1000,
            row.connect_ns.map_or(0, |ns| ns / 1000),
            response_ns / 1000,
            row.function_us.map_or_else(String::new, |us| us.to_string()),
            row.outcome == Outcome::Timeout,
            row.function_memory_kib.map_or_else(String::new, |kib| (kib >> 10).to_string()),
            late,
            row.outcome.as_str(),
            row.status.map_or_else(String::new, |status| status.to_string()),
            work.memory_mib,
            field(row.error.as_deref().unwrap_or_default()),
            row.function_memory_kib.map_or_else(String::new, |kib| kib.to_string()),
        )
    }
}

impl Also for Durations {
    fn path(&self) -> &Path {
        &self.path
    }

    fn row(&mut self, row: &Row) -> io::Result<()> {
        let line = self.line(row);
        writeln!(self.out, "{line}")?;
        self.unflushed += 1;
        if self.unflushed == 64 {
            self.unflushed = 0;
            self.out.flush()?;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Shot;
    use crate::summary::tests::row;
    use crate::trace::Unit;
    use crate::trace::draw::tests::stats;

    fn plan() -> Plan {
        let source = Source::Counts { counts: vec![3, 0, 4], stats: stats() };
        Plan {
            functions: vec![Function { name: "f".to_owned(), source }],
            unit: Unit::Second,
            first: 0,
            units: 3,
            distribution: "exponential_shift".parse().unwrap(),
            seed: 5,
            notes: Vec::new(),
        }
    }

    #[test]
    fn what_is_dumped_and_loaded_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan();
        assert_eq!(write_iat(&plan, dir.path()).unwrap(), 1);
        let mut loaded = plan.clone();
        assert_eq!(read_iat(&mut loaded, dir.path()).unwrap(), 0);
        let close = |(a, b): (Shot, Shot)| {
            // Microseconds in floating point.
            assert!(a.at_ns.abs_diff(b.at_ns) <= 2, "{a:?} {b:?}");
            assert_eq!((a.work, a.target), (b.work, b.target));
        };
        assert_eq!(loaded.shots().count(), 7);
        plan.shots().zip(loaded.shots()).for_each(close);
        assert_eq!(loaded.counts(0), [3, 0, 4]);
        loaded.units = 2;
        assert_eq!(read_iat(&mut loaded, dir.path()).unwrap(), 4, "those behind the end are told");
        assert_eq!(loaded.shots().count(), 3);
        for (text, said) in [
            ("{", "EOF"),
            (r#"{"IAT":[1],"RuntimeSpecification":[]}"#, "1 arrivals, but 0"),
            (r#"{"IAT":[-1],"RuntimeSpecification":[{"Runtime":1,"Memory":1}]}"#, "-1"),
        ] {
            std::fs::write(dir.path().join("iat0.json"), text).unwrap();
            let error = read_iat(&mut loaded, dir.path()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn arrivals_that_are_not_all_written_mix_with_no_earlier_ones() {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = plan();
        plan.functions = vec![plan.functions[0].clone(); 3];
        for n in 0..3 {
            std::fs::write(dir.path().join(format!("iat{n}.json")), "old").unwrap();
        }
        // The last cannot be begun: nothing has changed.
        std::fs::create_dir(dir.path().join("iat2.json.part")).unwrap();
        assert!(write_iat(&plan, dir.path()).is_err());
        for n in 0..2 {
            let text = std::fs::read_to_string(dir.path().join(format!("iat{n}.json"))).unwrap();
            assert_eq!(text, "old");
        }
        std::fs::remove_dir(dir.path().join("iat2.json.part")).unwrap();
        write_iat(&plan, dir.path()).unwrap();
        assert_eq!(read_iat(&mut plan, dir.path()).unwrap(), 0);
    }

    #[test]
    fn the_originals_columns_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x_duration_1.csv");
        let clock = Arc::new(OnceLock::new());
        clock.set(Clock::start()).unwrap();
        let mut durations = Durations::begin(&path, &plan(), 1_000_000_000, clock).unwrap();
        let mut late = row(0, Outcome::Timeout);
        late.intended_ns = 2_000_000_000;
        (late.sent_ns, late.done_ns) = (late.intended_ns + 5_000, late.intended_ns + 9_000);
        late.work = Some(Work { runtime_ms: 7, memory_mib: 64 });
        (late.nth, late.function_memory_kib) = (3, Some(2050));
        durations.row(&row(1, Outcome::Ok)).unwrap();
        durations.row(&late).unwrap();
        durations.end().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        let originals = "phase,instance,invocationID,startTime,requestedDuration,grpcConnEstablish,\
            responseTime,actualDuration,connectionTimeout,functionTimeout,actualMemoryUsage,\
            memoryAllocationTimeout,timeToSubmitMs,userCodeExecutionMs,timeToGetResponseMs,";
        assert!(text.starts_with(originals), "{text}");
        assert!(lines.iter().all(|line| line.len() == 21), "{text}");
        assert_eq!(lines[1][..3], ["1", "f", "min0.inv0"]);
        assert_eq!(lines[2][..3], ["2", "f", "min2.inv3"]);
        assert_eq!(lines[2][4..12], ["7000", "0", "4", "0", "false", "true", "2", "false"]);
        assert_eq!((&lines[2][12..15], lines[2][20]), (&["", "", ""][..], "2050"));
        assert!(lines[2][3].parse::<u64>().unwrap() > 1_600_000_000_000_000);
    }
}
