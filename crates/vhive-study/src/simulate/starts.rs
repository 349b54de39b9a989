//! How long starts take, and how much memory an instance has: from measured records.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vhive_api::{
    InvocationId, InvocationRecord, MemoryMode, Outcome, Phase, PhaseSpan, PrefetchPolicy,
    RuntimeName, StartKind,
};
use vhive_load::rng::Rng;

use super::cell::Ns;
use super::tally::index;
use crate::row::Row;
use crate::stats::median;

/// Why measured starts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StartsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A line is neither a record nor a row of a study.
    #[error("{}:{line}: neither an invocation record nor a row of a study", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Why it is no record.
        #[source]
        source: serde_json::Error,
    },
    /// None is of the runtime that is wanted.
    #[error("no start in {wanted} was measured, but in {}", known.join(", "))]
    NoRuntime {
        /// The one that is wanted.
        wanted: RuntimeName,
        /// Those of the records.
        known: Vec<&'static str>,
    },
    /// Nothing can start.
    #[error("no function has a boot among the records; the first start of a function is one")]
    NoBoot,
}

/// What was measured of one function.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    name: String,
    /// By kind.
    kinds: [Vec<One>; 6],
    /// Starts that prefetched, by [`PrefetchPolicy::ALL`].
    prefetched: [Vec<One>; 4],
    can: Vec<MemoryMode>,
    memory: Option<u64>,
}

/// A measured start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct One {
    /// Until ready, without waiting for a turn.
    pub(super) ready: Ns,
    /// Of it, what is before a start asks for its turn: its image is made.
    pub(super) before: Ns,
    /// Of it, from the function's process having been started to its being ready.
    pub(super) probed: Ns,
    /// By how much the first request took longer than a warm one.
    pub(super) extra: Ns,
    /// Faults of pages that were not in its working set, and pages that were.
    pub(super) faults: u64,
    pub(super) pages: u64,
}

impl One {
    /// How long it holds a turn, if a function that is not ready after `most` of probing gives it back.
    pub(super) fn turn(&self, most: Ns) -> Ns {
        let beyond = self.probed.saturating_sub(most);
        self.ready.saturating_sub(self.before).saturating_sub(beyond)
    }
}

/// How often what was measured, for reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The function.
    pub function: String,
    /// How an instance started.
    pub start: StartKind,
    /// Starts.
    pub n: usize,
    /// Median time until ready without waiting for a turn, in milliseconds.
    pub ready_ms: f64,
    /// Median of what the first request took longer than a warm one, in milliseconds.
    pub extra_ms: f64,
}

/// What was measured, by function.
#[derive(Clone, Debug, Default)]
pub struct Starts {
    profiles: Vec<Profile>,
    warnings: Vec<String>,
    /// When invocations of the records began, in nanoseconds of the wall clock; sorted.
    began: Vec<(InvocationId, i64)>,
    /// How long those took that an instance served which was there, in nanoseconds; sorted.
    took: Vec<(InvocationId, Ns)>,
}

impl Profile {
    /// A function whose starts take exactly so long.
    #[must_use]
    pub fn exact(name: &str, starts: &[(StartKind, Ns, Ns)], memory: Option<u64>) -> Self {
        let mut profile = Self { name: name.to_owned(), memory, ..Self::default() };
        for (kind, ready, extra) in starts {
            let one = One { ready: *ready, extra: *extra, ..One::default() };
            profile.kinds[index(*kind)].push(one);
        }
        profile.offer();
        profile
    }

    /// Likewise, with all that was drawn.
    #[cfg(test)]
    pub(super) fn only(name: &str, kind: StartKind, one: One) -> Self {
        let mut profile = Self { name: name.to_owned(), ..Self::default() };
        profile.add(kind, None, one);
        profile.offer();
        profile
    }

    fn offer(&mut self) {
        let modes = [MemoryMode::File, MemoryMode::Lazy, MemoryMode::Record, MemoryMode::Prefetch];
        let prefetched = self.prefetched.iter().any(|all| !all.is_empty());
        let measured = |mode: &MemoryMode| {
            let prefetched = prefetched && *mode == MemoryMode::Prefetch;
            prefetched || !self.of(StartKind::restored(*mode)).is_empty()
        };
        self.can = modes.into_iter().filter(measured).collect();
    }

    fn of(&self, kind: StartKind) -> &[One] {
        &self.kinds[index(kind)]
    }

    fn by(&self, policy: PrefetchPolicy) -> &[One] {
        let at = PrefetchPolicy::ALL.iter().position(|one| *one == policy);
        at.and_then(|at| self.prefetched.get(at)).map_or(&[], Vec::as_slice)
    }

    fn add(&mut self, kind: StartKind, prefetch: Option<PrefetchPolicy>, one: One) {
        // Fault-around has no working set: its starts prefetch, whatever their kind is called.
        let around = prefetch == Some(PrefetchPolicy::FaultAround);
        if !around {
            self.kinds[index(kind)].push(one);
        }
        let at = PrefetchPolicy::ALL.iter().position(|policy| Some(*policy) == prefetch);
        if let Some(at) = at.filter(|_| around || kind == StartKind::Reap) {
            self.prefetched[at].push(one);
        }
    }

    /// Memory modes of which there are measured starts.
    pub(super) fn can(&self) -> &[MemoryMode] {
        &self.can
    }

    /// Memory of an instance in bytes, if it was measured.
    pub(super) fn memory(&self) -> Option<u64> {
        self.memory
    }

    /// One of the measured starts of a kind; of those that prefetch one by this policy, where there
    /// are any.
    pub(super) fn draw(&self, kind: StartKind, policy: PrefetchPolicy, rng: &mut Rng) -> One {
        let by_policy = if kind == StartKind::Reap { self.by(policy) } else { &[] };
        let all = match (by_policy, self.of(kind)) {
            // Whichever policy was measured stands for the others.
            ([], []) => {
                self.prefetched.iter().find(|all| !all.is_empty()).map_or(&[][..], Vec::as_slice)
            }
            ([], all) => all,
            (all, _) => all,
        };
        let at = rng.between(0, all.len() as u64);
        all.get(usize::try_from(at).unwrap_or(0)).copied().unwrap_or_default()
    }
}

/// Whose starts are alike: a function's in one sandbox and namespace. What another runtime starts, or a
/// function of the same name that is somebody else's, is not drawn for it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Whose {
    function: String,
    runtime: &'static str,
    namespace: String,
}

/// One measured invocation.
struct Invoked {
    function: String,
    record: InvocationRecord,
    memory: Option<u64>,
}

impl Starts {
    /// Starts that are known.
    ///
    /// # Errors
    /// [`StartsError::NoBoot`].
    pub fn new(profiles: Vec<Profile>) -> Result<Self, StartsError> {
        let boots = |profile: &Profile| !profile.of(StartKind::Boot).is_empty();
        let mut warnings = Vec::new();
        for left_out in profiles.iter().filter(|profile| !boots(profile)) {
            warnings.push(format!("{} has no measured boot and stands for nothing", left_out.name));
        }
        let profiles: Vec<Profile> = profiles.into_iter().filter(boots).collect();
        if profiles.is_empty() {
            Err(StartsError::NoBoot)
        } else {
            Ok(Self { profiles, warnings, began: Vec::new(), took: Vec::new() })
        }
    }

    /// Reads files of JSON lines: records as the node writes them, or rows of studies. Each function is one
    /// by itself in each runtime and namespace.
    ///
    /// # Errors
    /// The first file or line that cannot be used. A last line that was cut off is left out.
    pub fn read(paths: &[PathBuf]) -> Result<Self, StartsError> {
        Self::read_of(paths, None)
    }

    /// Likewise, of one runtime only, if it is named.
    ///
    /// # Errors
    /// Likewise, and when there are none of that runtime.
    pub fn read_of(paths: &[PathBuf], runtime: Option<RuntimeName>) -> Result<Self, StartsError> {
        let (mut all, mut warnings) = (Vec::new(), Vec::new());
        for path in paths {
            if read(path, &mut all)? {
                let shown = path.display();
                warnings.push(format!("The last line of {shown} was cut off and is left out."));
            }
        }
        if let Some(wanted) = runtime {
            let known: BTreeSet<&str> = all.iter().map(|one| one.record.runtime.as_str()).collect();
            all.retain(|one| one.record.runtime == wanted);
            if all.is_empty() && !known.is_empty() {
                return Err(StartsError::NoRuntime { wanted, known: known.into_iter().collect() });
            }
        }
        let mut starts = Self::of(all)?;
        starts.warnings.extend(warnings);
        Ok(starts)
    }

    fn of(all: Vec<Invoked>) -> Result<Self, StartsError> {
        let mut functions: BTreeMap<Whose, Vec<Invoked>> = BTreeMap::new();
        let began = |one: &Invoked| {
            let at = i64::try_from(one.record.at.as_nanosecond()).ok();
            at.map(|at| (one.record.id, at))
        };
        let mut began: Vec<_> = all.iter().filter_map(began).collect();
        began.sort_unstable();
        let warm = |one: &&Invoked| one.record.start == Some(StartKind::Warm);
        let took = |one: &Invoked| {
            Some((one.record.id, phase(&one.record, Phase::Request)?.saturating_mul(1000)))
        };
        let mut took: Vec<_> = all.iter().filter(warm).filter_map(took).collect();
        took.sort_unstable();
        for one in all {
            let whose = Whose {
                function: one.function.clone(),
                runtime: one.record.runtime.as_str(),
                namespace: one.record.namespace.clone(),
            };
            functions.entry(whose).or_default().push(one);
        }
        let names = names(functions.keys());
        let mut named: Vec<_> = functions.keys().cloned().zip(names.iter().cloned()).collect();
        let (mut profiles, mut warnings) = (Vec::new(), Vec::new());
        for (name, all) in names.into_iter().zip(functions.into_values()) {
            let warm: Vec<f64> = all
                .iter()
                .filter(|one| one.record.start == Some(StartKind::Warm))
                .filter_map(|one| phase(&one.record, Phase::Request))
                .map(|us| us as f64)
                .collect();
            let warm = median(&warm);
            if warm.is_none() {
                warnings.push(format!(
                    "{name} has no warm invocation: that the first request after a start takes \
                     longer is not simulated for it"
                ));
            }
            let mut profile = Profile { name, ..Profile::default() };
            for Invoked { record, .. } in &all {
                let Some(kind) = record.start.filter(|kind| *kind != StartKind::Warm) else {
                    continue;
                };
                let (Some(start), Some(request)) =
                    (span(record, Phase::Start), phase(record, Phase::Request))
                else {
                    continue;
                };
                let extra = warm.map_or(0.0, |warm| (request as f64 - warm).max(0.0));
                let memory = record.memory;
                let (missed, pages) = of_set(record);
                let one = One {
                    extra: ns(extra * 1e3),
                    faults: missed,
                    pages,
                    ..by_itself(record, start)
                };
                profile.add(kind, memory.and_then(|memory| memory.prefetch), one);
            }
            let memory: Vec<f64> =
                all.iter().filter_map(|one| one.memory).map(|bytes| bytes as f64).collect();
            profile.memory = median(&memory).map(ns);
            profile.offer();
            profiles.push(profile);
        }
        let mut starts = Self { began, took, ..Self::new(profiles)? };
        named.retain(|(_, name)| starts.profiles.iter().any(|profile| profile.name == *name));
        starts.warnings.extend(several(&named));
        starts.warnings.extend(warnings);
        Ok(starts)
    }

    /// What a simulated function is taken to be: the same one for the same number.
    #[must_use]
    pub fn profile(&self, number: u64) -> &Profile {
        let at = number.checked_rem(self.profiles.len() as u64).unwrap_or(0);
        &self.profiles[usize::try_from(at).unwrap_or(0)]
    }

    /// When an invocation of the records began, in nanoseconds of the wall clock.
    pub(super) fn began(&self, id: InvocationId) -> Option<i64> {
        let found = self.began.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.began.get(found).map(|(_, at)| *at)
    }

    /// How long an invocation of the records took, in nanoseconds, if an instance served it that was
    /// there.
    pub(super) fn took(&self, id: InvocationId) -> Option<Ns> {
        let found = self.took.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.took.get(found).map(|(_, took)| *took)
    }

    /// What was measured, for a report.
    #[must_use]
    pub fn measured(&self) -> Vec<Measured> {
        let mut all = Vec::new();
        for profile in &self.profiles {
            for start in StartKind::ALL {
                let of = profile.of(start);
                let ms = |ns: Ns| ns as f64 / 1e6;
                let ready: Vec<f64> = of.iter().map(|one| ms(one.ready)).collect();
                let extra: Vec<f64> = of.iter().map(|one| ms(one.extra)).collect();
                if let (Some(ready_ms), Some(extra_ms)) = (median(&ready), median(&extra)) {
                    let function = profile.name.clone();
                    all.push(Measured { function, start, n: of.len(), ready_ms, extra_ms });
                }
            }
        }
        all
    }

    /// Functions of which no start that prefetches by this policy was measured, but one by another.
    #[must_use]
    pub fn without(&self, policy: PrefetchPolicy) -> Vec<&str> {
        let without = |profile: &&Profile| {
            profile.can.contains(&MemoryMode::Prefetch) && profile.by(policy).is_empty()
        };
        self.profiles.iter().filter(without).map(|profile| profile.name.as_str()).collect()
    }

    /// What a reader should mind.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// What each is called: its function, and what tells it from others of that name.
fn names<'a>(all: impl Iterator<Item = &'a Whose> + Clone) -> Vec<String> {
    let mut by_function: BTreeMap<&str, Vec<&Whose>> = BTreeMap::new();
    for whose in all.clone() {
        by_function.entry(&whose.function).or_default().push(whose);
    }
    let differ = |alike: &[&Whose]| {
        let runtimes: BTreeSet<&str> = alike.iter().map(|one| one.runtime).collect();
        let namespaces: BTreeSet<&str> = alike.iter().map(|one| one.namespace.as_str()).collect();
        [runtimes, namespaces].map(|of| of.len() > 1)
    };
    let name = |whose: &Whose| {
        let [runtimes, namespaces] = differ(&by_function[whose.function.as_str()]);
        let words = [(runtimes, whose.runtime), (namespaces, whose.namespace.as_str())];
        let words = words.iter().filter(|(told, _)| *told).map(|(_, word)| *word);
        let words: Vec<&str> = words.collect();
        if words.is_empty() {
            whose.function.clone()
        } else {
            format!("{} ({})", whose.function, words.join(", "))
        }
    };
    all.map(name).collect()
}

/// A warning about each function that there is more than once, of those that are simulated.
fn several(named: &[(Whose, String)]) -> Vec<String> {
    let mut by_function: BTreeMap<&str, Vec<&(Whose, String)>> = BTreeMap::new();
    for one in named {
        by_function.entry(&one.0.function).or_default().push(one);
    }
    let warning = |(function, alike): (&str, Vec<&(Whose, String)>)| {
        let names: Vec<&str> = alike.iter().map(|one| one.1.as_str()).collect();
        let runtimes: BTreeSet<&str> = alike.iter().map(|one| one.0.runtime).collect();
        let choose = if runtimes.len() > 1 { " --runtime chooses one runtime." } else { "" };
        (names.len() > 1).then(|| {
            format!(
                "{function} was measured in several sandboxes or namespaces: simulated functions are \
                 {}, each by itself.{choose}",
                names.join(", ")
            )
        })
    };
    by_function.into_iter().filter_map(warning).collect()
}

/// Adds what a file has; `true` when its last line was cut off.
fn read(path: &Path, all: &mut Vec<Invoked>) -> Result<bool, StartsError> {
    let failed = |source| StartsError::Read { path: path.to_owned(), source };
    let mut file = BufReader::new(fs::File::open(path).map_err(failed)?);
    let (mut line, mut number, mut is_one) = (Vec::new(), 0, false);
    loop {
        line.clear();
        number += 1;
        if file.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            return Ok(false);
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        if let Ok(row) = serde_json::from_slice::<Row>(&line) {
            is_one = true;
            let counts = row.left_out().is_none();
            if let Some(record) = row.record.filter(|_| counts) {
                all.push(Invoked { function: row.function, record, memory: row.pss_bytes });
            }
            continue;
        }
        match serde_json::from_slice::<InvocationRecord>(&line) {
            Ok(record) if record.outcome == Outcome::Replied => {
                all.push(Invoked { function: record.service.clone(), record, memory: None });
            }
            Ok(_) => {}
            // Who writes it was killed, or is about to write the rest; unless it is another kind of file.
            Err(_) if is_one && !line.ends_with(b"\n") => return Ok(true),
            Err(source) => {
                return Err(StartsError::Line { path: path.to_owned(), line: number, source });
            }
        }
        is_one = true;
    }
}

fn span(record: &InvocationRecord, phase: Phase) -> Option<&PhaseSpan> {
    record.phases.iter().find(|span| span.phase == phase)
}

fn phase(record: &InvocationRecord, phase: Phase) -> Option<u64> {
    span(record, phase).map(|span| span.length_us)
}

/// How long a recorded start took by itself: how long it waited for others is for the simulation to
/// say.
fn by_itself(record: &InvocationRecord, start: &PhaseSpan) -> One {
    let turn = span(record, Phase::Turn);
    let waited = turn.map_or(0, |turn| turn.length_us);
    let ready = start.length_us.saturating_sub(waited);
    let before = turn.map_or(0, |turn| turn.begin_us.saturating_sub(start.begin_us));
    let before = u64::try_from(before).unwrap_or(0).min(ready);
    let probed = phase(record, Phase::FunctionReady).unwrap_or(0);
    let ns = |us: u64| us.saturating_mul(1000);
    One { ready: ns(ready), before: ns(before), probed: ns(probed), ..One::default() }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn ns(value: f64) -> u64 {
    value.round() as u64
}

/// Faults of pages that the working set did not have, and how many it had: as the node counts them where the faults
/// are listed one by one, else all faults, and what was in place.
fn of_set(record: &InvocationRecord) -> (u64, u64) {
    let (faults, pages) = record
        .memory
        .map_or((0, 0), |memory| (memory.faults.unwrap_or(0), memory.prefetched_pages));
    let Some(timeline) = &record.fault_timeline else { return (faults, pages) };
    let all = |some: usize| (some as u64).saturating_mul(timeline.every.into());
    (all(timeline.residual.len()), pages.saturating_add(all(timeline.awaited.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cold-start/rows.jsonl")
    }

    #[test]
    fn starts_are_those_of_the_rows_that_count() {
        let starts = Starts::read(&[sample()]).expect("rows");
        let measured = starts.measured();
        let n: Vec<(StartKind, usize)> = measured.iter().map(|one| (one.start, one.n)).collect();
        use StartKind::{Boot, Lazy, Reap, Record, Snapshot};
        // One of the seven for REAP was served from a snapshot instead.
        assert_eq!(n, [(Boot, 3), (Snapshot, 3), (Lazy, 3), (Record, 3), (Reap, 6)]);
        let boot = &measured[0];
        assert!((boot.ready_ms - 366.571).abs() < 30.0, "{boot:?}");
        let profile = starts.profile(5);
        assert_eq!(profile.can().len(), 4);
        assert!(profile.memory().is_some_and(|bytes| bytes > 1 << 20));
        let mut rng = Rng::new(1);
        let drawn: Vec<_> =
            (0..50).map(|_| profile.draw(Boot, PrefetchPolicy::Mincore, &mut rng)).collect();
        assert!(drawn.iter().all(|one| profile.of(Boot).contains(one)));
        assert!(profile.of(Boot).iter().all(|one| drawn.contains(one)), "each is drawn");
    }

    #[test]
    fn pages_that_were_on_their_way_are_not_missed() {
        let mut all = Vec::new();
        read(&sample(), &mut all).expect("rows");
        let reap = |one: &Invoked| one.record.start == Some(StartKind::Reap);
        let mut record = all.into_iter().find(reap).expect("one was measured").record;
        let memory = record.memory.as_mut().expect("restored");
        (memory.faults, memory.prefetched_pages) = (Some(44), 24);
        record.fault_timeline = None;
        assert_eq!(of_set(&record), (44, 24));
        let faults = |count| vec![vhive_api::FaultAt(1, 1); count];
        record.fault_timeline = Some(std::sync::Arc::new(vhive_api::FaultTimeline {
            attached_us: 0,
            every: 2,
            residual: faults(2),
            awaited: faults(20),
        }));
        assert_eq!(of_set(&record), (4, 24 + 40));
    }

    #[test]
    fn a_start_holds_its_turn_from_the_image_until_it_is_ready_or_takes_too_long() {
        let rows = fs::read_to_string(sample()).expect("rows");
        let rows = rows.lines().map(|line| serde_json::from_str::<Row>(line).expect("a row"));
        let mut record = rows.filter_map(|row| row.record).next().expect("a record");
        let phases = [
            (Phase::Start, -300, 9_000),
            (Phase::Image, -200, 1_100),
            (Phase::Turn, 1_000, 2_000),
            (Phase::VmmSpawn, 3_100, 1_500),
            (Phase::FunctionReady, 4_600, 4_100),
        ];
        record.phases = phases
            .map(|(phase, begin_us, length_us)| PhaseSpan { phase, begin_us, length_us })
            .to_vec();
        let one = by_itself(&record, span(&record, Phase::Start).expect("a start"));
        let us = |us: Ns| us * 1000;
        assert_eq!((one.ready, one.before, one.probed), (us(7_000), us(1_300), us(4_100)));
        assert_eq!(one.turn(us(4_100)), us(5_700), "until ready");
        assert_eq!(one.turn(us(100)), us(1_700), "until it has been probed for so long");
        record.phases.retain(|span| span.phase != Phase::Turn);
        let one = by_itself(&record, span(&record, Phase::Start).expect("a start"));
        assert_eq!((one.ready, one.before), (us(9_000), 0), "it does not say when its turn began");
    }

    #[test]
    fn starts_that_prefetch_are_those_of_the_policy() {
        let mut profile = Profile::exact("f", &[(StartKind::Boot, 9, 0)], None);
        let one = |ready| One { ready, ..One::default() };
        profile.add(StartKind::Reap, Some(PrefetchPolicy::ReapSerial), one(1));
        profile.add(StartKind::Reap, Some(PrefetchPolicy::Mincore), one(2));
        profile.add(StartKind::Lazy, Some(PrefetchPolicy::FaultAround), one(3));
        profile.offer();
        assert_eq!(profile.can(), [MemoryMode::Prefetch], "fault-around is no lazy start");
        let mut rng = Rng::new(1);
        let mut drawn = |policy| profile.draw(StartKind::Reap, policy, &mut rng).ready;
        assert_eq!(drawn(PrefetchPolicy::ReapSerial), 1);
        assert_eq!(drawn(PrefetchPolicy::Mincore), 2);
        assert_eq!(drawn(PrefetchPolicy::FaultAround), 3);
        let any: Vec<Ns> = (0..50).map(|_| drawn(PrefetchPolicy::ReapPipelined)).collect();
        assert!(any.contains(&1) && any.contains(&2) && !any.contains(&3));
        let starts = Starts::new(vec![profile]).expect("boots");
        assert_eq!(starts.without(PrefetchPolicy::ReapPipelined), ["f"]);
        assert!(starts.without(PrefetchPolicy::Mincore).is_empty());
    }

    #[test]
    fn each_runtime_and_namespace_has_starts_of_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.jsonl");
        let rows = fs::read_to_string(sample()).expect("rows");
        let with = |key: &str, value: &str| -> String {
            let row = |line: &str| {
                let mut row: serde_json::Value = serde_json::from_str(line).expect("a row");
                if row["record"].is_object() {
                    row["record"][key] = value.into();
                }
                format!("{row}\n")
            };
            rows.lines().map(row).collect()
        };
        fs::write(&path, format!("{}{}", with("runtime", "runc"), with("runtime", "qemu")))
            .expect("written");
        let read = |runtime| Starts::read_of(std::slice::from_ref(&path), runtime);
        let both = read(None).expect("starts");
        let alone = Starts::read(&[sample()]).expect("rows");
        let names: Vec<&str> = both.profiles.iter().map(|one| one.name.as_str()).collect();
        let function = &alone.profiles[0].name;
        assert_eq!(names, [format!("{function} (qemu)"), format!("{function} (runc)")]);
        let boots = |starts: &Starts, nth: u64| starts.profile(nth).of(StartKind::Boot).len();
        assert_eq!([boots(&both, 0), boots(&both, 1)], [boots(&alone, 0); 2]);
        assert!(both.warnings().iter().any(|warning| warning.contains("--runtime")));
        let one = read(Some(RuntimeName::Runc)).expect("starts");
        assert_eq!(one.measured(), alone.measured(), "its name has no addition");
        let error = read(Some(RuntimeName::Firecracker)).expect_err("none").to_string();
        assert!(error.contains("firecracker") && error.contains("qemu, runc"), "{error}");
        fs::write(&path, format!("{}{}", with("namespace", "a"), with("namespace", "b")))
            .expect("written");
        let names = read(None).expect("starts").profiles.into_iter().map(|one| one.name);
        assert_eq!(
            names.collect::<Vec<_>>(),
            [format!("{function} (a)"), format!("{function} (b)")]
        );
    }

    #[test]
    fn only_what_can_be_chosen_by_runtime_is_told_to_be() {
        let of = |runtime, namespace: &str| {
            let whose =
                Whose { function: "f".to_owned(), runtime, namespace: namespace.to_owned() };
            (whose, format!("f ({runtime}, {namespace})"))
        };
        assert!(several(&[of("qemu", "a")]).is_empty());
        let told = several(&[of("qemu", "a"), of("qemu", "b")]).concat();
        assert!(told.contains("f (qemu, b)") && !told.contains("--runtime"), "{told}");
        assert!(several(&[of("qemu", "a"), of("runc", "a")]).concat().contains("--runtime"));
    }

    #[test]
    fn what_is_no_record_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.jsonl");
        fs::write(&path, "\n{\"a\":1}\n").expect("written");
        let error = Starts::read(std::slice::from_ref(&path)).expect_err("no record").to_string();
        assert!(error.contains("x.jsonl:2"), "{error}");
        fs::write(&path, "no JSON").expect("written");
        let error = Starts::read(std::slice::from_ref(&path)).expect_err("no record").to_string();
        assert!(error.contains("x.jsonl:1"), "{error}");
        let rows = fs::read_to_string(sample()).expect("rows");
        let whole = Starts::read(&[sample()]).expect("rows").measured();
        let half = rows.lines().next().expect("a row").get(..200).expect("a long one");
        fs::write(&path, format!("{rows}{half}")).expect("written");
        let cut = Starts::read(std::slice::from_ref(&path)).expect("what is whole");
        assert_eq!(cut.measured(), whole);
        assert!(cut.warnings().iter().any(|warning| warning.contains("x.jsonl was cut off")));
        fs::write(&path, format!("{half}\n{rows}")).expect("written");
        let error = Starts::read(std::slice::from_ref(&path)).expect_err("not at the end");
        assert!(error.to_string().contains("x.jsonl:1"), "{error}");
        fs::write(&path, rows.trim_end()).expect("written");
        let unended = Starts::read(std::slice::from_ref(&path)).expect("whole");
        assert_eq!(unended.measured(), whole, "a line that is whole counts");
        fs::write(&path, "").expect("written");
        assert!(matches!(Starts::read(&[path]), Err(StartsError::NoBoot)));
    }
}
