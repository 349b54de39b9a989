//! What a study varies and how often: one TOML file.

mod runtimes;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vhive_api::{
    Cpus, InvocationRecord, PrefetchPolicy, RuntimeName, SnapshotPolicy, Span, StartKind,
};

pub use runtimes::Runtimes;

/// The commented default of `vhive study cold-start`; a test proves that it equals
/// [`Plan::default`].
pub const COLD_START: &str = include_str!("../../../studies/cold-start.toml");
/// The commented default of `vhive study parallel`.
pub const PARALLEL: &str = include_str!("../../../studies/parallel.toml");

/// The commented default of `vhive study pages`.
pub const PAGES: &str = include_str!("../../../studies/pages.toml");

/// The commented default of `vhive study runtimes`.
pub const RUNTIMES: &str = include_str!("../../../studies/runtimes.toml");

/// A study's plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// Where each function has its directory with `service.yaml` and `requests.toml`.
    pub functions_dir: PathBuf,
    /// Names of directories there.
    pub functions: Vec<String>,
    /// The ways to start that are compared.
    pub kinds: Vec<Kind>,
    /// How often each is measured.
    pub repetitions: u32,
    /// Which requests are sent.
    pub inputs: Inputs,
    /// What happens to the host's page cache before each measured cold start.
    pub cache: Cache,
    /// Where [`Cache::Advise`] finds the files; absent = `snapshots` of the node's state directory.
    pub advise_dir: Option<PathBuf>,
    /// Set for the time of the study on the device of the node's state directory, in KiB;
    /// absent = left as it is.
    pub readahead_kib: Option<u32>,
    /// Replaces the manifests' `runtimeClassName`.
    pub runtime: Option<RuntimeName>,
    /// What is counted of the sandboxes' processes.
    pub counters: Counters,
    /// The CPUs that the study itself keeps to; absent = any. Those of the sandboxes are the
    /// node's to say.
    pub cpus: Option<Cpus>,
    /// Whether replies are compared with the expected ones (never with the runtime `sim`).
    pub check_replies: bool,
    /// Left out of the means over functions.
    pub not_in_means: Vec<String>,
    /// Most attempts at one measurement, when one is served another way than asked for.
    pub attempts: u32,
    /// The most that one invocation, or one wait for instances to end, may take.
    pub step_deadline: Span,
    /// The most that getting a service ready for its kind may take: snapshot taken, pages recorded.
    pub prepare_deadline: Span,
    /// Of the resampling behind the intervals.
    pub seed: u64,
    /// `vhive study parallel`: most concurrent cold starts; levels are 1, 2, 4 … up to it.
    pub most_parallel: u32,
    /// `vhive study runtimes`.
    pub runtimes: Runtimes,
}

/// Which requests of a function's `requests.toml` are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Inputs {
    /// Before the snapshot is taken, and when the pages are recorded.
    pub prepare: String,
    /// When measured, every kind.
    pub measure: Vec<String>,
    /// Whether kinds that prefetch are also measured with the input that was recorded.
    pub same: bool,
}

impl Default for Inputs {
    fn default() -> Self {
        Self { prepare: "record".to_owned(), measure: vec!["replay".to_owned()], same: true }
    }
}

/// A way to start, as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The guest boots.
    Boot,
    /// The instance of a boot serves a second request.
    Warm,
    /// From a snapshot, paged by the host's kernel.
    Snapshot,
    /// From a snapshot, every page served on first touch.
    Lazy,
    /// The start whose pages are recorded.
    Record,
    /// Recorded pages prefetched, by the node's default policy.
    Reap,
    /// … read whole, then installed, then run: as published.
    ReapSerial,
    /// … 16 pages around each fault.
    FaultAround,
    /// … the working set taken from the page cache.
    Mincore,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Boot,
        Self::Warm,
        Self::Snapshot,
        Self::Lazy,
        Self::Record,
        Self::Reap,
        Self::ReapSerial,
        Self::FaultAround,
        Self::Mincore,
    ];

    /// The kind as written in plans and rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Warm => "warm",
            Self::Snapshot => "snapshot",
            Self::Lazy => "lazy",
            Self::Record => "record",
            Self::Reap => "reap",
            Self::ReapSerial => "reap-serial",
            Self::FaultAround => "fault-around",
            Self::Mincore => "mincore",
        }
    }

    /// The policies that a service needs for it.
    #[must_use]
    pub const fn policies(self) -> (SnapshotPolicy, Option<PrefetchPolicy>) {
        match self {
            Self::Boot | Self::Warm => (SnapshotPolicy::Off, None),
            Self::Snapshot => (SnapshotPolicy::Vanilla, None),
            Self::Lazy => (SnapshotPolicy::Lazy, None),
            Self::Record | Self::Reap => (SnapshotPolicy::Reap, None),
            Self::ReapSerial => (SnapshotPolicy::Reap, Some(PrefetchPolicy::ReapSerial)),
            Self::FaultAround => (SnapshotPolicy::Reap, Some(PrefetchPolicy::FaultAround)),
            Self::Mincore => (SnapshotPolicy::Reap, Some(PrefetchPolicy::Mincore)),
        }
    }

    /// Whether pages are brought in before they are touched.
    #[must_use]
    pub const fn prefetches(self) -> bool {
        matches!(self, Self::Reap | Self::ReapSerial | Self::FaultAround | Self::Mincore)
    }

    /// Whether it starts from a snapshot.
    #[must_use]
    pub const fn restores(self) -> bool {
        !matches!(self, Self::Boot | Self::Warm)
    }

    /// Whether an invocation was started so.
    #[must_use]
    pub fn is_how(self, record: &InvocationRecord) -> bool {
        let prefetch = record.memory.and_then(|memory| memory.prefetch);
        let wanted = match self {
            Self::Boot => StartKind::Boot,
            Self::Warm => StartKind::Warm,
            Self::Snapshot => StartKind::Snapshot,
            Self::Lazy => StartKind::Lazy,
            Self::Record => StartKind::Record,
            Self::Reap | Self::ReapSerial | Self::Mincore => StartKind::Reap,
            // Has no working set: it is told by its policy alone.
            Self::FaultAround => return prefetch == Some(PrefetchPolicy::FaultAround),
        };
        let policy = self.policies().1;
        record.start == Some(wanted) && (policy.is_none() || policy == prefetch)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        let known = || Self::ALL.map(Self::as_str).join(", ");
        found.ok_or_else(|| format!("unknown start kind {text:?}; known: {}", known()))
    }
}

/// What is counted of the sandboxes' processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counters {
    /// Nothing.
    Off,
    /// CPU time, page faults, I/O: what the kernel counts in any case.
    #[default]
    Basic,
    /// Also perf events, which slow each switch to and from the processes down.
    All,
}

impl FromStr for Counters {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "basic" => Ok(Self::Basic),
            "all" => Ok(Self::All),
            _ => Err(format!("{text:?} is none of off, basic, all")),
        }
    }
}

/// What happens to the host's page cache before a measured cold start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// The whole page cache is written back and dropped (needs root).
    Drop,
    /// Only the files below `advise_dir` are dropped from it.
    Advise,
    /// Nothing.
    Keep,
}

impl Cache {
    /// The word as written in plans and rows.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Advise => "advise",
            Self::Keep => "keep",
        }
    }
}

impl Default for Plan {
    fn default() -> Self {
        let functions =
            ["hello", "big-memory", "pyaes", "json_serdes", "chameleon", "image_rotate", "sleep"];
        Self {
            functions_dir: PathBuf::from("functions"),
            functions: functions.map(str::to_owned).to_vec(),
            kinds: vec![
                Kind::Boot,
                Kind::Warm,
                Kind::Snapshot,
                Kind::Lazy,
                Kind::Record,
                Kind::Reap,
            ],
            repetitions: 10,
            inputs: Inputs::default(),
            cache: Cache::Drop,
            advise_dir: None,
            readahead_kib: None,
            runtime: None,
            counters: Counters::default(),
            cpus: None,
            check_replies: true,
            not_in_means: vec!["sleep".to_owned()],
            attempts: 3,
            step_deadline: Span(Duration::from_secs(120)),
            prepare_deadline: Span(Duration::from_secs(300)),
            seed: 1,
            most_parallel: 1,
            runtimes: Runtimes::default(),
        }
    }
}

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is no plan.
    #[error("{origin} is no plan of a study")]
    Parse {
        /// Where it comes from.
        origin: String,
        /// Why not.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A figure makes no sense.
    #[error("{key}: {why}")]
    Value {
        /// Which key.
        key: &'static str,
        /// Why not.
        why: String,
    },
}

/// Reads the plan of any study, or takes `default`, the text of an embedded one.
pub(crate) fn read<T: DeserializeOwned>(
    path: Option<&Path>,
    default: &str,
) -> Result<T, PlanError> {
    let (text, origin) = match path {
        None => (default.to_owned(), "the default".to_owned()),
        Some(path) => {
            let read = std::fs::read_to_string(path);
            let text = read.map_err(|source| PlanError::Read { path: path.to_owned(), source })?;
            (text, path.display().to_string())
        }
    };
    toml::from_str(&text).map_err(|source| PlanError::Parse { origin, source: Box::new(source) })
}

impl Plan {
    /// Reads a plan, or takes `default`, the text of an embedded one.
    ///
    /// # Errors
    /// When the file cannot be read or is no plan.
    pub fn load(path: Option<&Path>, default: &str) -> Result<Self, PlanError> {
        read(path, default)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The first key that makes no sense.
    pub fn validate(&self) -> Result<(), PlanError> {
        let bad = |key, why: &str| Err(PlanError::Value { key, why: why.to_owned() });
        if self.functions.is_empty() {
            return bad("functions", "name at least one");
        }
        if let Some(name) = self.functions.iter().find(|name| {
            name.is_empty()
                || name.starts_with('.')
                || name.bytes().any(|b| !(b.is_ascii_alphanumeric() || b"-_.".contains(&b)))
        }) {
            return bad("functions", &format!("{name:?} is no directory's name"));
        }
        if self.kinds.is_empty() {
            return bad("kinds", "name at least one");
        }
        if self.inputs.measure.is_empty() {
            return bad("inputs.measure", "name at least one");
        }
        if !(1..=10_000).contains(&self.repetitions) {
            return bad("repetitions", "must be from 1 to 10000");
        }
        if !(1..=100).contains(&self.attempts) {
            return bad("attempts", "must be from 1 to 100");
        }
        if !(1..=1024).contains(&self.most_parallel) {
            return bad("most_parallel", "must be from 1 to 1024");
        }
        self.runtimes.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_default_is_the_default() {
        let documented = Plan::load(None, COLD_START).expect("the default is TOML");
        assert_eq!(documented, Plan::default());
        documented.validate().expect("the default makes sense");
        for text in [PARALLEL, PAGES, RUNTIMES] {
            Plan::load(None, text).expect("TOML").validate().expect("makes sense");
        }
        let documented = Plan::load(None, RUNTIMES).expect("TOML").runtimes;
        assert_eq!(documented, Runtimes::default());
    }

    #[test]
    fn every_key_is_documented() {
        let text = toml::to_string(&Plan {
            advise_dir: Some("x".into()),
            readahead_kib: Some(0),
            runtime: Some(RuntimeName::Sim),
            cpus: Cpus::of([0]),
            runtimes: Runtimes { density: Some(vhive_api::Bytes::mib(64)), ..Runtimes::default() },
            ..Plan::default()
        });
        for line in text.expect("serialises").lines() {
            let key = line.split(" = ").next().unwrap_or(line);
            let known = COLD_START.contains(key) || RUNTIMES.contains(key);
            assert!(known, "{key} is in neither cold-start.toml nor runtimes.toml");
        }
    }

    #[test]
    fn bad_plans_are_refused_by_key() {
        let error = Plan::load(None, "repetition = 3").expect_err("unknown key");
        assert!(
            std::error::Error::source(&error).expect("says why").to_string().contains("repetition")
        );
        for (text, key) in [
            ("functions = []", "functions"),
            ("functions = [\"../etc\"]", "functions"),
            ("kinds = []", "kinds"),
            ("repetitions = 0", "repetitions"),
            ("most_parallel = 5000", "most_parallel"),
            ("attempts = 0", "attempts"),
            ("[inputs]\nmeasure = []", "inputs.measure"),
            ("[runtimes]\nconnections = 0", "runtimes.connections"),
            ("[runtimes]\nload_for = \"0s\"", "runtimes.load_for"),
            ("[runtimes]\ndensity = \"1Mi\"", "runtimes.density"),
        ] {
            let plan = Plan::load(None, text).expect("TOML");
            let error = plan.validate().expect_err(text).to_string();
            assert!(error.starts_with(key), "{error}");
        }
    }

    #[test]
    fn every_prefetch_policy_can_be_studied() {
        for policy in PrefetchPolicy::ALL {
            let named = Kind::ALL.iter().any(|kind| kind.policies().1 == Some(policy));
            // The default one is what `reap` asks for.
            assert!(named || policy == PrefetchPolicy::default(), "no kind for {policy}");
        }
    }

    #[test]
    fn kinds_are_read_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).expect("serialises"), kind.as_str());
        }
        assert!("hot".parse::<Kind>().expect_err("unknown").contains("warm"));
    }
}
