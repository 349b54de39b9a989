//! A study under way: its services on the node, its rows, its effects on the host.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vhive_api::{InvocationRecord, RuntimeName};

use crate::deadline::Deadline;
use crate::density::Density;
use crate::function::{Function, FunctionError, Shape, Variant};
use crate::host::{Host, Readahead, drop_files, drop_page_cache, load_average};
use crate::http::{ApiError, Reply};
use crate::load::Load;
use crate::plan::{Cache, Kind, Plan};
use crate::row::{Facts, Recorded, ResultError, Row, StudyName, Writer};
use crate::target::{Counted, Target};
use crate::working_set::WorkingSet;

/// Invocations until a service must be started as its kind says: snapshot taken, pages recorded.
const TRIES: u32 = 12;
/// Pause after the first of them; twice as long after each further one, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How the node's reason ends where no further try would help.
const RESTORES_NOTHING: &str = "restores no snapshots";

/// Why a study ended early. What was measured is in its directory.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// A function cannot be used.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// The host refuses what the plan asks for.
    #[error(transparent)]
    Host(#[from] crate::host::HostError),
    /// The study cannot be kept to the CPUs of its plan.
    #[error(transparent)]
    Pin(#[from] vhive_load::pin::PinError),
    /// The result cannot be written.
    #[error(transparent)]
    Result(#[from] ResultError),
    /// The node does not do its part.
    #[error("{doing}")]
    Node {
        /// What was tried.
        doing: String,
        /// Why it failed.
        #[source]
        source: ApiError,
    },
    /// The plan asks for what this study does not do.
    #[error("{0}")]
    Plan(String),
}

/// A study under way. Call [`Session::clean`] at its end, however it ended; dropping it puts the
/// readahead back.
pub struct Session {
    pub(crate) target: Target,
    pub(crate) plan: Plan,
    pub(crate) study: StudyName,
    pub(crate) facts: Facts,
    functions: Vec<Function>,
    writer: Writer,
    /// Those that are on the node, and the kind as which each of them starts now.
    services: BTreeMap<String, Kind>,
    /// Different in each run.
    run: String,
    editions: u32,
    pub(crate) order: u32,
    loads: u32,
    tell: Box<dyn FnMut(&str) + Send>,
    /// Puts the readahead back when dropped.
    _readahead: Option<Readahead>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Session {
    /// Reads the functions, prepares the host, begins the result in `out`, made by a program of this
    /// revision. `tell` gets a line per thing done.
    ///
    /// # Errors
    /// What cannot be used; nothing is on the node yet.
    pub fn begin(
        study: StudyName,
        target: Target,
        plan: Plan,
        (out, revision): (&Path, Option<&str>),
        tell: Box<dyn FnMut(&str) + Send>,
    ) -> Result<Self, StudyError> {
        let mut names = plan.functions.clone();
        if study == StudyName::Runtimes {
            let loaded = plan.runtimes.load.iter().filter(|name| !plan.functions.contains(name));
            names.extend(loaded.cloned());
        }
        let functions: Result<Vec<Function>, FunctionError> =
            names.iter().map(|name| Function::load(&plan.functions_dir, name)).collect();
        let functions = functions?;
        for function in &functions {
            for input in plan.inputs.measure.iter().chain([&plan.inputs.prepare]) {
                function.request(input)?;
            }
        }
        let mut facts = Facts {
            version: 1,
            study,
            vhive: env!("CARGO_PKG_VERSION").to_owned(),
            plan: plan.clone(),
            host: Host::look(revision),
            node: target.facts.clone(),
            began: jiff::Timestamp::now(),
            ended: None,
            load_before: load_average(),
            load_after: None,
            readahead_set: None,
            notes: Vec::new(),
            working_sets: Vec::new(),
            runtimes: Vec::new(),
        };
        if let Some(cpus) = &plan.cpus {
            vhive_load::pin::pin(cpus)?;
            facts.host.kept_to = Some(cpus.clone());
        }
        let place = target.state_dir().unwrap_or(Path::new("/"));
        let readahead = plan.readahead_kib.map(|kib| Readahead::set(place, kib)).transpose()?;
        facts.readahead_set = readahead
            .as_ref()
            .zip(plan.readahead_kib)
            .map(|(readahead, kib)| format!("{}: {kib} KiB", readahead.device));
        let writer = Writer::create(out, &facts)?;
        let run = getrandom::u32().map_or_else(|_| "0".to_owned(), |n| format!("{n:08x}"));
        Ok(Self {
            target,
            plan,
            study,
            facts,
            functions,
            writer,
            services: BTreeMap::new(),
            run,
            editions: 0,
            order: 0,
            loads: 0,
            tell,
            _readahead: readahead,
        })
    }

    pub(crate) fn say(&mut self, what: &str) {
        (self.tell)(what);
    }

    /// Says and keeps what no row will tell.
    pub(crate) fn note(&mut self, note: String) -> Result<(), StudyError> {
        (self.tell)(&note);
        self.facts.notes.push(note);
        Ok(self.writer.facts(&self.facts)?)
    }

    pub(crate) fn function(&self, name: &str) -> Result<&Function, StudyError> {
        let found = self.functions.iter().find(|function| function.name == name);
        found.ok_or_else(|| StudyError::Plan(format!("{name} is no function of the plan")))
    }

    pub(crate) fn step_deadline(&self) -> Deadline {
        Deadline::after(self.plan.step_deadline.0)
    }

    /// What no revision of this or another run has had in its environment.
    pub(crate) fn edition(&mut self) -> String {
        self.editions += 1;
        format!("{}-{}", self.run, self.editions)
    }

    /// Puts the service of a function and kind on the node, as a revision that never was before.
    pub(crate) async fn apply(
        &mut self,
        what: Variant<'_>,
        most_instances: u32,
    ) -> Result<(), ApiError> {
        let service = self.service(what);
        let edition = if self.shares(what.kind) {
            // Who switches policies changes it and nothing else: the revision keeps its name and its snapshot.
            if self.services.get(&service).is_some_and(|kind| *kind != what.kind) {
                self.target.put_aside(&service, self.step_deadline()).await?;
            }
            format!("{}-pages", self.run)
        } else {
            self.edition()
        };
        let shape = Shape {
            kind: what.kind,
            runtime: what.runtime.or(self.plan.runtime),
            named: what.runtime.is_some(),
            most_instances,
            edition: &edition,
        };
        let found = self.functions.iter().find(|f| f.name == what.function);
        let Some(mut manifest) = found.map(|found| found.service(&shape)) else { return Ok(()) };
        manifest["metadata"]["name"] = serde_json::json!(service);
        self.services.insert(service, what.kind);
        self.target.apply(&manifest, self.step_deadline()).await
    }

    /// The name of the service that starts a function so. Where pages are compared, lazy starts come from the very
    /// snapshot whose pages are recorded: in another one, pages of the same numbers hold other things.
    pub(crate) fn service(&self, what: Variant<'_>) -> String {
        let kind = if self.shares(what.kind) { Kind::Reap } else { what.kind };
        Variant { kind, ..what }.service()
    }

    fn shares(&self, kind: Kind) -> bool {
        self.study == StudyName::Pages && matches!(kind, Kind::Lazy | Kind::Reap)
    }

    /// Has a service that several kinds share start as this one.
    pub(crate) async fn switch(&mut self, what: Variant<'_>) -> Result<(), StudyError> {
        let service = self.service(what);
        if !self.shares(what.kind) || self.services.get(&service) == Some(&what.kind) {
            return Ok(());
        }
        let applied = self.apply(what, 1).await;
        let doing = || format!("cannot apply {service}");
        applied.map_err(|source| StudyError::Node { doing: doing(), source })
    }

    /// Sends one input that is not measured.
    async fn send(
        &self,
        what: Variant<'_>,
        input: &str,
    ) -> Result<(Reply, Option<InvocationRecord>), StudyError> {
        let service = self.service(what);
        let request = self.function(what.function)?.request(input)?;
        let deadline = self.step_deadline();
        let failed =
            |source| StudyError::Node { doing: format!("cannot invoke {service}"), source };
        let reply = self.target.invoke(&service, request, deadline).await.map_err(failed)?;
        let record = self.target.record(&service, &reply, deadline).await.map_err(failed)?;
        Ok((reply, record))
    }

    /// Invokes with the input of preparations and says why that is no start to build on.
    pub(crate) async fn rehearse(
        &self,
        what: Variant<'_>,
    ) -> Result<Result<Option<InvocationRecord>, String>, StudyError> {
        let (reply, record) = self.send(what, &self.plan.inputs.prepare).await?;
        if reply.status.is_success() {
            return Ok(Ok(record));
        }
        let said: String = String::from_utf8_lossy(&reply.body).trim().chars().take(400).collect();
        Ok(Err(format!("status {}: {said}", reply.status.as_u16())))
    }

    /// Stops the instances of a function and kind.
    pub(crate) async fn empty(&self, what: Variant<'_>) -> Result<(), StudyError> {
        let service = self.service(what);
        let done = self.target.empty(&service, self.step_deadline()).await;
        done.map_err(|source| StudyError::Node {
            doing: format!("the instances of {service} do not end"),
            source,
        })
    }

    /// Puts a service on the node and invokes it until it starts as its kind says. `Err` says why
    /// the kind cannot be measured.
    pub(crate) async fn prepare(
        &mut self,
        what: Variant<'_>,
        most_instances: u32,
    ) -> Result<Result<(), String>, StudyError> {
        let kind = what.kind;
        self.say(&format!("preparing {what}"));
        match self.apply(what, most_instances).await {
            Ok(()) => {}
            Err(ApiError::Refused { message, .. }) => return Ok(Err(message)),
            Err(source) => {
                let doing = format!("cannot apply {}", self.service(what));
                return Err(StudyError::Node { doing, source });
            }
        }
        let deadline = Deadline::after(self.plan.prepare_deadline.0);
        let mut pause = FIRST_PAUSE;
        let mut seen = Vec::new();
        for _ in 0..TRIES {
            match self.rehearse(what).await? {
                Err(why) => {
                    self.empty(what).await?;
                    return Ok(Err(why));
                }
                Ok(record) => {
                    let ready = record.as_ref().is_some_and(|record| kind.is_how(record));
                    let why = record.as_ref().and_then(|record| record.fallback.clone());
                    let start = record.and_then(|record| record.start);
                    seen.push(start.map_or("none", vhive_api::StartKind::as_str));
                    self.empty(what).await?;
                    if ready || matches!(kind, Kind::Boot | Kind::Warm | Kind::Record) {
                        return Ok(Ok(()));
                    }
                    if let Some(why) = why.filter(|why| why.ends_with(RESTORES_NOTHING)) {
                        return Ok(Err(why));
                    }
                }
            }
            if deadline.passed() {
                break;
            }
            deadline.pause(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(Err(format!("it never started so; it started by {}", seen.join(", "))))
    }

    /// Keeps what the node can tell of its guests' CPU only after a start.
    pub(crate) async fn keep_accelerators(&mut self) -> Result<(), StudyError> {
        let asked = self.target.accelerators(self.step_deadline()).await;
        let doing = || "cannot ask for the node's accelerators".to_owned();
        let found = asked.map_err(|source| StudyError::Node { doing: doing(), source })?;
        if let (Some(node), Some(found)) = (self.facts.node.as_object_mut(), found) {
            node.insert("accelerators".to_owned(), found);
        }
        Ok(self.writer.facts(&self.facts)?)
    }

    /// Keeps what the working set of a function holds.
    pub(crate) async fn keep_working_set(&mut self, function: &str) -> Result<(), StudyError> {
        let service = Variant { function, kind: Kind::Reap, runtime: None }.service();
        let path = self.target.working_set(&service, self.step_deadline()).await;
        let path = path.map_err(|source| StudyError::Node {
            doing: format!("cannot ask for the snapshot of {service}"),
            source,
        })?;
        let read = path.map(|path| WorkingSet::open(&path)).transpose();
        match read {
            Ok(Some(set)) => {
                let (function, input) = (function.to_owned(), self.plan.inputs.prepare.clone());
                // Recorded again, it is another one.
                self.facts.working_sets.retain(|one| one.function != function);
                self.facts.working_sets.push(Recorded { function, input, set });
                Ok(self.writer.facts(&self.facts)?)
            }
            Ok(None) => self.note(format!("{function}: the node tells of no working set.")),
            Err(error) => {
                self.note(format!("{function}: its pages are not counted: {}.", chain(&error)))
            }
        }
    }

    /// What a service's one instance has used of the host, if the plan asks for it.
    pub(crate) async fn counted(&self, service: &str) -> Result<Option<Counted>, StudyError> {
        let asked = self.target.counted(service, self.plan.counters, self.step_deadline()).await;
        let doing = || format!("cannot ask what {service} has used");
        asked.map_err(|source| StudyError::Node { doing: doing(), source })
    }

    /// What each of a service's instances has used likewise.
    pub(crate) async fn counted_each(&self, service: &str) -> Result<Vec<Counted>, StudyError> {
        let (counters, deadline) = (self.plan.counters, self.step_deadline());
        let asked = self.target.counted_each(service, counters, deadline).await;
        let doing = || format!("cannot ask what {service} has used");
        asked.map_err(|source| StudyError::Node { doing: doing(), source })
    }

    /// Does to the page cache what the plan says; returns the word for the rows.
    pub(crate) async fn drop_cache(&mut self) -> Result<&'static str, StudyError> {
        let cache = self.plan.cache;
        let dir = self.plan.advise_dir.clone();
        let default = || self.target.state_dir().map(|dir| dir.join("snapshots"));
        let dir = dir.or_else(default).unwrap_or_else(|| PathBuf::from("snapshots"));
        let work = move || match cache {
            Cache::Keep => Ok(()),
            Cache::Drop => drop_page_cache().map_err(|error| chain(&error)),
            Cache::Advise if !dir.exists() => Ok(()),
            Cache::Advise => {
                let dropped = drop_files(&dir);
                dropped.map(drop).map_err(|error| format!("{}: {error}", dir.display()))
            }
        };
        let done = tokio::task::spawn_blocking(work).await;
        match done.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(()) => Ok(cache.as_str()),
            Err(why) => {
                let note = format!("The page cache could not be dropped: {why}.");
                if !self.facts.notes.contains(&note) {
                    self.note(note)?;
                }
                Ok(Cache::Keep.as_str())
            }
        }
    }

    /// Writes a row and says what it holds.
    pub(crate) fn keep(&mut self, row: &Row) -> Result<(), StudyError> {
        self.writer.row(row)?;
        let time = row
            .total_us()
            .map_or_else(|| "-".to_owned(), |us| format!("{:.1} ms", us as f64 / 1e3));
        let left = row.left_out().map(|why| format!("  left out: {why}")).unwrap_or_default();
        let Row { function, kind, runtime, input, repetition, .. } = row;
        let what = Variant { function, kind: *kind, runtime: *runtime };
        let of = self.plan.repetitions;
        self.say(&format!("{repetition}/{of}  {what} ({input})  {time}{left}"));
        Ok(())
    }

    /// Keeps which runtimes are compared.
    pub(crate) fn keep_runtimes(&mut self, runtimes: &[RuntimeName]) -> Result<(), StudyError> {
        self.facts.runtimes = runtimes.to_vec();
        Ok(self.writer.facts(&self.facts)?)
    }

    /// Writes a throughput and says what it is.
    pub(crate) fn keep_load(&mut self, mut load: Load) -> Result<(), StudyError> {
        self.loads += 1;
        load.order = self.loads;
        self.writer.load(&load)?;
        let Load { function, runtime, repetition, connections, failures, .. } = &load;
        let (of, rate) = (self.plan.repetitions, load.rate());
        let failed = if *failures > 0 { format!("  {failures} failed") } else { String::new() };
        self.say(&format!(
            "{repetition}/{of}  {function} {runtime} ×{connections}  {rate:.0}/s{failed}"
        ));
        Ok(())
    }

    /// Writes a density and says what it is.
    pub(crate) fn keep_density(&mut self, density: &Density) -> Result<(), StudyError> {
        self.writer.density(density)?;
        let Density { runtime, instances, why, .. } = density;
        let part = density.filled().map_or_else(|| "-".to_owned(), |f| format!("{f:.2}"));
        self.say(&format!("{runtime}: {instances} instances, {part} of the memory; {why}"));
        Ok(())
    }

    /// Ends the result: everything planned was measured.
    ///
    /// # Errors
    /// When the facts cannot be written.
    pub(crate) fn finish(&mut self) -> Result<(), StudyError> {
        self.facts.ended = Some(jiff::Timestamp::now());
        self.facts.load_after = load_average();
        Ok(self.writer.facts(&self.facts)?)
    }

    /// Removes the study's services from the node. Goes on past failures and returns the first.
    ///
    /// # Errors
    /// When a service could not be deleted.
    pub async fn clean(&mut self) -> Result<(), StudyError> {
        let mut first = Ok(());
        for (service, _) in std::mem::take(&mut self.services) {
            let deadline = self.step_deadline();
            if let Err(source) = self.target.delete(&service, deadline).await
                && first.is_ok()
            {
                first = Err(StudyError::Node { doing: format!("cannot delete {service}"), source });
            }
        }
        first
    }
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
