//! Which invocations come: per function, one minute in memory at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vhive_api::InvocationId;
use vhive_load::rng::Rng;
use vhive_load::trace::day::{self, Day};
use vhive_load::trace::draw::{MEMORY_QUANTILES, Percentiles, RUNTIME_QUANTILES, Stats};
use vhive_load::trace::{Distribution, Function, Source, TraceError, Unit, azure2019, azure2021};

use super::cell::Ns;
use super::counts::Counts;
use super::plan::{Memory, SimPlan, TraceKind};
use super::starts::{Profile, Starts};
use crate::stats::median;

const MINUTE: Ns = Unit::Minute.ns();
const MIB: u64 = 1 << 20;

/// Why there is nothing to simulate.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The trace cannot be used.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A file of sent requests cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A line is no row of `vhive load`.
    #[error("{}:{line}: no row of `vhive load`", path.display())]
    Row {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// Nothing comes.
    #[error("the trace has no invocation in its first {0} minutes")]
    Empty(usize),
}

/// One function's invocations.
#[derive(Clone, Debug)]
pub(super) enum Invocations {
    /// So many in each minute, as a published trace tells them.
    Counted(Counts, Stats),
    /// At known times.
    Exact(Vec<vhive_load::trace::Invocation>),
    /// Drawn in the shape of a day.
    Day(day::One),
}

impl From<Function> for Invocations {
    fn from(function: Function) -> Self {
        match function.source {
            Source::Counts { counts, stats } => Self::Counted(Counts::new(&counts), stats),
            Source::Exact(all) => Self::Exact(all),
        }
    }
}

/// A request of a recorded run: what it was called, and when it was sent.
type Called = (InvocationId, Ns);

/// The functions of a run.
#[derive(Clone, Debug)]
pub struct Workload {
    pub(super) functions: Vec<Invocations>,
    pub(super) minutes: usize,
    distribution: Distribution,
    seed: u64,
    /// Requests of a recorded run: what they were called, and when they were sent.
    sent: Vec<Called>,
    /// What of the trace is not as it is written there, for people.
    pub(super) notes: Vec<String>,
}

/// One invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Invocation {
    pub(super) at: Ns,
    pub(super) runtime: Ns,
}

impl Workload {
    /// Functions whose invocations are known.
    #[must_use]
    pub fn of(
        functions: Vec<Function>,
        minutes: usize,
        distribution: Distribution,
        seed: u64,
    ) -> Self {
        let functions = functions.into_iter().map(Invocations::from).collect();
        Self { functions, minutes, distribution, seed, sent: Vec::new(), notes: Vec::new() }
    }

    /// What a plan says.
    ///
    /// # Errors
    /// When a trace cannot be read or has nothing.
    pub fn load(plan: &SimPlan) -> Result<Self, WorkloadError> {
        let trace = &plan.trace;
        let minutes = trace.minutes;
        let path = trace.path.clone().unwrap_or_default();
        let shift =
            Distribution { shape: vhive_load::trace::gaps::Shape::Exponential, shift: false };
        let distribution = trace.distribution.parse().unwrap_or(shift);
        let traced = |functions| Self::of(functions, minutes, distribution, plan.seed);
        let workload = match trace.kind {
            TraceKind::Azure2019 => {
                let mut functions = Vec::new();
                azure2019::each(&path, minutes, |function| functions.push(function.into()))?;
                Self {
                    functions,
                    minutes,
                    distribution,
                    seed: plan.seed,
                    sent: Vec::new(),
                    notes: Vec::new(),
                }
            }
            TraceKind::Azure2021 => {
                let exact = azure2021::read(&path, minutes as u64, false)?;
                let notes = exact.notes();
                Self { notes, ..traced(exact.functions) }
            }
            TraceKind::Rows => {
                // Where the records of the very requests are among the measured starts, what each took is
                // known. Whoever simulates is told of files that cannot be read.
                let records = Starts::read(&plan.starts).unwrap_or_default();
                let (functions, sent) = sent(&path, minutes, &records)?;
                Self { sent, ..traced(functions) }
            }
            TraceKind::Steady => traced(steady(plan)),
            TraceKind::Day => {
                let day = Day::new(trace.functions, trace.invocations, plan.seed);
                let functions = (0..trace.functions).map(|n| Invocations::Day(day.function(n)));
                Self {
                    functions: functions.collect(),
                    minutes,
                    distribution,
                    seed: plan.seed,
                    sent: Vec::new(),
                    notes: Vec::new(),
                }
            }
        };
        let comes = workload.functions.iter().any(|function| match function {
            Invocations::Day(_) => true,
            Invocations::Counted(counts, _) => !counts.is_zero(),
            Invocations::Exact(all) => !all.is_empty(),
        });
        if comes { Ok(workload) } else { Err(WorkloadError::Empty(minutes)) }
    }

    /// When it begins, after a whole minute of the wall clock: the node's ticks fall on whole seconds
    /// of that. It is known of a recorded run whose records are among the measured starts, and else
    /// nothing.
    pub(super) fn begins(&self, starts: &Starts) -> Ns {
        let begun = |(id, sent): &Called| {
            let at = i128::from(starts.began(*id)?) - i128::from(*sent);
            Some(at.rem_euclid(i128::from(MINUTE)))
        };
        let mut all: Vec<i128> = self.sent.iter().filter_map(begun).collect();
        all.sort_unstable();
        let middle = all.get(all.len() / 2).copied().unwrap_or(0);
        Ns::try_from(middle).unwrap_or(0)
    }

    /// How long it is.
    pub(super) fn horizon(&self) -> Ns {
        MINUTE.saturating_mul(self.minutes as u64)
    }

    /// The invocations of one function.
    pub(super) fn arrivals(&self, function: usize) -> Arrivals<'_> {
        let part = 2 * function as u64;
        Arrivals {
            workload: self,
            function,
            gaps: Rng::of_part(self.seed, part),
            work: Rng::of_part(self.seed, part + 1),
            counts: day::counts_rng(self.seed, function),
            room: Vec::new(),
            minute: 0,
            next: 0,
        }
    }

    /// Memory of an instance in bytes.
    pub(super) fn memory(&self, function: usize, memory: Memory, profile: &Profile) -> u64 {
        let traced = || match self.functions.get(function) {
            None => 0,
            Some(Invocations::Day(day::One { stats, .. }) | Invocations::Counted(_, stats)) => {
                stats.memory.median() * MIB
            }
            Some(Invocations::Exact(all)) => {
                let most = all.iter().map(|one| one.work.memory_mib).max();
                u64::from(most.unwrap_or(0)) * MIB
            }
        };
        let bytes = match memory {
            Memory::Trace => traced(),
            Memory::Measured => profile.memory().unwrap_or_else(traced),
            Memory::Fixed(bytes) => bytes.0,
        };
        bytes.max(1)
    }
}

/// The invocations of one function, minute by minute.
#[derive(Debug)]
pub(super) struct Arrivals<'a> {
    workload: &'a Workload,
    function: usize,
    gaps: Rng,
    work: Rng,
    counts: Rng,
    /// To draw a minute's gaps in.
    room: Vec<f64>,
    minute: usize,
    next: usize,
}

impl Arrivals<'_> {
    /// Appends the next minute's, in order.
    pub(super) fn minute(&mut self, into: &mut Vec<Invocation>) {
        let workload = self.workload;
        let begin = MINUTE * self.minute as u64;
        let minute = self.minute;
        self.minute += 1;
        let (count, stats) =
            match workload.functions.get(self.function) {
                None => return,
                Some(Invocations::Day(one)) => {
                    let (count, at) = one.count(minute, &mut self.counts);
                    if let Some(at) = at {
                        let runtime = millis(one.stats.draw_runtime(&mut self.work));
                        into.push(Invocation { at: begin + at, runtime });
                        return;
                    }
                    (count, &one.stats)
                }
                Some(Invocations::Counted(counts, stats)) => (counts.of(minute), stats),
                Some(Invocations::Exact(all)) => {
                    let rest = all.get(self.next..).unwrap_or_default();
                    let within = rest.partition_point(|one| one.at_ns < begin + MINUTE);
                    self.next += within;
                    into.extend(rest[..within].iter().map(|one| Invocation {
                        at: one.at_ns,
                        runtime: millis(one.work.runtime_ms),
                    }));
                    return;
                }
            };
        let Self { gaps, work, room, .. } = self;
        workload.distribution.each_moment((count, MINUTE), gaps, room, |at| {
            into.push(Invocation { at: begin + at, runtime: millis(stats.draw_runtime(work)) });
        });
    }
}

fn millis(millis: u32) -> Ns {
    u64::from(millis) * 1_000_000
}

fn steady(plan: &SimPlan) -> Vec<Function> {
    let trace = &plan.trace;
    let runtime = trace.runtime.0.as_secs_f64() * 1e3;
    let memory = trace.memory.mib_ceil() as f64;
    let all = |quantiles: &'static [f64], value: f64| {
        let values = vec![value; quantiles.len()];
        Percentiles::new(quantiles, &values).expect("equal values do not fall")
    };
    let stats = Stats {
        runtime: all(RUNTIME_QUANTILES, runtime),
        memory: all(MEMORY_QUANTILES, memory),
        mean_runtime_ms: runtime,
    };
    let counts = vec![trace.per_minute; trace.minutes];
    let function = |n: usize| Function {
        name: format!("steady-{n}"),
        source: Source::Counts { counts: counts.clone(), stats: stats.clone() },
    };
    (0..trace.functions).map(function).collect()
}

/// What of a row of `vhive load` matters.
#[derive(Debug, Deserialize)]
struct Sent {
    id: Option<String>,
    endpoint: String,
    intended_us: f64,
    late_us: Option<f64>,
    latency_us: Option<f64>,
    start: Option<String>,
    requested_runtime_ms: Option<u32>,
    requested_memory_mib: Option<u32>,
    function_us: Option<u64>,
}

impl Sent {
    /// When it was sent, or was to be, in microseconds.
    fn at_us(&self) -> f64 {
        self.intended_us + self.late_us.unwrap_or_default()
    }

    /// The same in nanoseconds.
    fn at(&self) -> Ns {
        whole(self.at_us() * 1e3)
    }
}

/// Requests as `vhive load` has sent them. How long one runs is what its record says, else what the
/// function said, else what was asked for, else the usual latency of a warm one.
fn sent(
    path: &Path,
    minutes: usize,
    records: &Starts,
) -> Result<(Vec<Function>, Vec<Called>), WorkloadError> {
    let failed = |source| WorkloadError::Read { path: path.to_owned(), source };
    let file = BufReader::new(File::open(path).map_err(failed)?);
    let mut endpoints: BTreeMap<String, Vec<Sent>> = BTreeMap::new();
    let mut ids = Vec::new();
    for (number, line) in file.lines().enumerate() {
        let line = line.map_err(failed)?;
        if line.trim().is_empty() {
            continue;
        }
        let parsed = serde_json::from_str::<Sent>(&line);
        let row = parsed.map_err(|source| WorkloadError::Row {
            path: path.to_owned(),
            line: number + 1,
            source,
        })?;
        let id = row.id.as_deref().and_then(|id| id.parse().ok());
        ids.extend(id.map(|id: InvocationId| (id, row.at())));
        endpoints.entry(row.endpoint.clone()).or_default().push(row);
    }
    let most = MINUTE.saturating_mul(minutes as u64);
    let warm = |rows: &[Sent]| -> Vec<f64> {
        let warm = rows.iter().filter(|row| row.start.as_deref() == Some("warm"));
        warm.filter_map(|row| row.latency_us).collect()
    };
    let of_all: Vec<f64> = endpoints.values().flat_map(|rows| warm(rows)).collect();
    let of_all = median(&of_all).unwrap_or(1000.0);
    let function = |(name, mut rows): (String, Vec<Sent>)| {
        rows.sort_by(|a, b| a.at_us().total_cmp(&b.at_us()));
        let usual = median(&warm(&rows)).unwrap_or(of_all);
        let one = |row: &Sent| {
            let id = row.id.as_deref().and_then(|id| id.parse().ok());
            let recorded = id.and_then(|id| records.took(id)).map(|ns| ns as f64 / 1e6);
            let ms = recorded.or(row.function_us.map(|us| us as f64 / 1e3));
            let ms = ms.or(row.requested_runtime_ms.map(f64::from)).unwrap_or(usual / 1e3);
            vhive_load::trace::Invocation {
                at_ns: row.at(),
                work: vhive_load::Work {
                    runtime_ms: u32::try_from(whole(ms)).unwrap_or(u32::MAX).max(1),
                    memory_mib: row.requested_memory_mib.unwrap_or(128),
                },
            }
        };
        let all = rows.iter().map(one).filter(|one| one.at_ns < most).collect();
        Function { name, source: Source::Exact(all) }
    };
    Ok((endpoints.into_iter().map(function).collect(), ids))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use vhive_load::trace::Plan;

    use super::*;

    fn counted(counts: &[u32]) -> Function {
        let runtime = [1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0];
        let memory = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0];
        let stats = Stats {
            runtime: Percentiles::new(RUNTIME_QUANTILES, &runtime).expect("rise"),
            memory: Percentiles::new(MEMORY_QUANTILES, &memory).expect("rise"),
            mean_runtime_ms: 30.0,
        };
        let source = Source::Counts { counts: counts.to_vec(), stats };
        Function { name: "f".to_owned(), source }
    }

    #[test]
    fn invocations_are_those_that_the_load_generator_sends() {
        let functions = vec![counted(&[5, 0, 90]), counted(&[1, 1, 1])];
        for name in ["exponential", "uniform_shift", "equidistant"] {
            let distribution = name.parse().expect("a distribution");
            let plan = Plan {
                functions: functions.clone(),
                unit: Unit::Minute,
                first: 0,
                units: 3,
                distribution,
                seed: 7,
                notes: Vec::new(),
            };
            let workload = Workload::of(functions.clone(), 3, distribution, 7);
            for (index, target) in (0..2).zip(0_u32..) {
                let sent: Vec<Invocation> = plan
                    .shots()
                    .filter(|shot| shot.target == target)
                    .map(|shot| Invocation {
                        at: shot.at_ns,
                        runtime: millis(shot.work.expect("work").runtime_ms),
                    })
                    .collect();
                let (mut arrivals, mut mine) = (workload.arrivals(index), Vec::new());
                for _ in 0..3 {
                    arrivals.minute(&mut mine);
                }
                assert_eq!(mine, sent, "{name}");
            }
        }
    }

    #[test]
    fn rows_of_a_run_become_its_requests() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("rows.jsonl");
        let row = |at: u32, latency: u32, start: &str, more: &str| {
            format!(
                "{{\"endpoint\":\"a\",\"intended_us\":{at},\"late_us\":5,\"latency_us\":{latency},\
                 \"start\":\"{start}\"{more}}}\n"
            )
        };
        let text = row(2000, 9_000, "boot", "")
            + &row(1000, 4_000, "warm", "")
            + &row(3000, 1, "warm", ",\"function_us\":7000");
        std::fs::write(&path, text).expect("written");
        let (functions, ids) = sent(&path, 1, &Starts::default()).expect("read");
        assert!(ids.is_empty(), "nothing is called anything");
        let Source::Exact(all) = &functions[0].source else { panic!("exact") };
        let seen: Vec<(u64, u32)> =
            all.iter().map(|one| (one.at_ns, one.work.runtime_ms)).collect();
        // The median of the warm ones, 2000.5 µs, stands for the cold one.
        assert_eq!(seen, [(1_005_000, 2), (2_005_000, 2), (3_005_000, 7)]);
        std::fs::write(&path, "{}\n").expect("written");
        assert!(
            sent(&path, 1, &Starts::default())
                .expect_err("no row")
                .to_string()
                .contains("rows.jsonl:1")
        );
    }

    #[test]
    fn what_of_a_trace_is_not_simulated_as_written_is_a_warning() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("trace.csv");
        let text = "app,func,end_timestamp,duration\na,f,5,9\na,f,5,1\na,f,5,1\n";
        std::fs::write(&path, text).expect("written");
        let trace = super::super::TracePlan {
            kind: TraceKind::Azure2021,
            path: Some(path),
            minutes: 1,
            ..super::super::TracePlan::default()
        };
        let plan = SimPlan { trace, ..SimPlan::default() };
        let workload = Workload::load(&plan).expect("two invocations");
        let facts = super::super::SimFacts::new(&plan, &workload, &Starts::default(), None);
        for said in ["1 invocations are left out", "1 invocations are some microseconds later"] {
            assert!(facts.warnings.iter().any(|one| one.contains(said)), "{:?}", facts.warnings);
        }
    }

    #[test]
    fn a_recorded_run_tells_when_it_began() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cold-start/rows.jsonl");
        let text = std::fs::read_to_string(sample).expect("rows");
        let rows = text.lines().map(|line| serde_json::from_str(line).expect("a row"));
        let record = rows
            .filter_map(|row: crate::row::Row| row.record.filter(|_| row.error.is_none()))
            .find(|record| record.start.is_some())
            .expect("a record");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("rows.jsonl");
        let row = format!(
            "{{\"id\":\"{}\",\"endpoint\":\"a\",\"intended_us\":1000,\"late_us\":5,\
             \"latency_us\":9}}\n",
            record.id
        );
        std::fs::write(&path, &row).expect("written");
        let trace = super::super::TracePlan {
            kind: TraceKind::Rows,
            path: Some(path.clone()),
            minutes: 1,
            ..super::super::TracePlan::default()
        };
        let plan = SimPlan { trace, ..SimPlan::default() };
        let starts = Starts::read(&[sample.into()]).expect("starts");
        let begins = Workload::load(&plan).expect("a request").begins(&starts);
        let want = (record.at.as_nanosecond() - 1_005_000).rem_euclid(i128::from(MINUTE));
        assert_eq!(i128::from(begins), want);
        std::fs::write(&path, row.replace(&record.id.to_string(), "00000000000000aa"))
            .expect("written");
        let workload = Workload::load(&plan).expect("a request");
        assert_eq!(workload.begins(&starts), 0, "no record of it");
    }
}
