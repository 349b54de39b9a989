//! The node's part of the configuration file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vhive_api::{Bytes, Cpus, Span};

/// Everything a node can be told. Parsed and validated before the first side effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory of what outlives the node: images, kernels, records. Made if missing, mode 0700.
    pub state_dir: PathBuf,
    /// Below this directory the node keeps what must not outlive it.
    pub run_dir: PathBuf,
    /// Most instances on this node, all revisions together; at least 1.
    pub max_instances: u32,
    /// Most memory of all instances together; absent = 75 % of the host's.
    pub max_memory: Option<Bytes>,
    /// What each instance costs beside its revision's memory (VMM, kernel structures); `sim`
    /// costs nothing.
    pub instance_overhead: Bytes,
    /// The CPUs that all sandboxes run on; absent = any. One that the host does not have keeps the
    /// node from opening.
    pub cpus: Option<Cpus>,
    /// Starts under way at a time: the admission control of cold starts. 0 = one per CPU, at
    /// least 2.
    pub start_threads: u32,
    /// How long a function that has been started may count as under way while it gets ready;
    /// then the next start has its turn.
    pub start_turn: Span,
    /// How long a start may take from its turn to being ready.
    pub start_deadline: Span,
    /// How long a root file system image may take to be made.
    pub image_deadline: Span,
    /// How long an instance may take between its stop signal and being killed.
    pub stop_grace: Span,
    /// Pause after a failed start; doubles with each further failure.
    pub back_off_first: Span,
    /// Longest pause after failed starts.
    pub back_off_most: Span,
    /// How invocation records are kept.
    pub records: RecordsConfig,
    /// How snapshots are taken, used and kept.
    pub snapshots: SnapshotsConfig,
}

/// How snapshots are taken, used and kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotsConfig {
    /// What all snapshots together may take up on the disk; beyond it, those used least recently
    /// are removed.
    pub max_bytes: Bytes,
    /// How long an instance may be withheld for its snapshot.
    pub take_deadline: Span,
    /// How long a snapshot waits for a moment in which the instance holds no request; then another
    /// instance is booted for it.
    pub idle_wait: Span,
    /// How long a start from a snapshot may take, until ready; then it is booted instead.
    pub restore_deadline: Span,
    /// A start that prefetches and still faults on more than this share of the pages prefetched,
    /// in per cent, lets the next one record again.
    pub rerecord_above_percent: u32,
    /// VMMs spawned ahead for starts from snapshots, in all: one per revision, and as many as its
    /// largest burst of starts within ten minutes while there is room. Each takes a network slot and
    /// the memory of a VMM without its guest's. 0 = none.
    pub standby: u32,
}

impl Default for SnapshotsConfig {
    fn default() -> Self {
        Self {
            max_bytes: Bytes(16 << 30),
            take_deadline: Span(Duration::from_secs(30)),
            idle_wait: Span(Duration::from_secs(30)),
            restore_deadline: Span(Duration::from_secs(20)),
            rerecord_above_percent: 25,
            standby: 16,
        }
    }
}

/// How invocation records are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecordsConfig {
    /// Whether they are written to `records/invocations.jsonl` in the state directory.
    pub write: bool,
    /// Size after which a file is closed and the next begun.
    pub file_size: Bytes,
    /// Files kept, the one being written included; at least 1.
    pub files: u32,
    /// Records waiting to be written; beyond it they are dropped and counted. At least 1.
    pub buffer: u32,
    /// Records kept in memory for the API.
    pub recent: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/vhive"),
            run_dir: PathBuf::from("/run/vhive"),
            max_instances: 1000,
            max_memory: None,
            instance_overhead: Bytes::mib(64),
            cpus: None,
            start_threads: 0,
            start_turn: Span(Duration::from_secs(10)),
            start_deadline: Span(Duration::from_secs(60)),
            image_deadline: Span(Duration::from_secs(300)),
            stop_grace: Span(Duration::from_secs(10)),
            back_off_first: Span(Duration::from_secs(1)),
            back_off_most: Span(Duration::from_secs(60)),
            records: RecordsConfig::default(),
            snapshots: SnapshotsConfig::default(),
        }
    }
}

impl Default for RecordsConfig {
    fn default() -> Self {
        Self { write: true, file_size: Bytes::mib(64), files: 8, buffer: 8192, recent: 1024 }
    }
}

/// A value that a node cannot work with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A path must be absolute.
    #[error("{name} = {} is not absolute; write the whole path", path.display())]
    Relative {
        /// The option.
        name: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// A number or span must not be zero.
    #[error("{name} is 0; it must be at least {least}")]
    Zero {
        /// The option.
        name: &'static str,
        /// Its least value.
        least: &'static str,
    },
    /// The longest pause is shorter than the first.
    #[error("back_off_most = {most} is shorter than back_off_first = {first}")]
    BackOff {
        /// The first pause.
        first: Span,
        /// The longest pause.
        most: Span,
    },
}

impl Config {
    /// A configuration with both directories below `dir`: for tests, demos and side-by-side nodes.
    #[must_use]
    pub fn below(dir: &Path) -> Self {
        Self { state_dir: dir.join("state"), run_dir: dir.join("run"), ..Self::default() }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`ConfigError`] for the first unfit one.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (name, path) in [("state_dir", &self.state_dir), ("run_dir", &self.run_dir)] {
            if !path.is_absolute() {
                return Err(ConfigError::Relative { name, path: path.clone() });
            }
        }
        let zero = |name, least| Err(ConfigError::Zero { name, least });
        if self.max_instances == 0 {
            return zero("max_instances", "1");
        }
        if self.records.files == 0 {
            return zero("records.files", "1");
        }
        if self.records.buffer == 0 {
            return zero("records.buffer", "1");
        }
        let spans = [
            ("start_deadline", self.start_deadline),
            ("image_deadline", self.image_deadline),
            ("back_off_first", self.back_off_first),
            ("snapshots.take_deadline", self.snapshots.take_deadline),
            ("snapshots.idle_wait", self.snapshots.idle_wait),
            ("snapshots.restore_deadline", self.snapshots.restore_deadline),
        ];
        for (name, span) in spans {
            if span.0.is_zero() {
                return zero(name, "1us");
            }
        }
        if self.back_off_most < self.back_off_first {
            let (first, most) = (self.back_off_first, self.back_off_most);
            return Err(ConfigError::BackOff { first, most });
        }
        Ok(())
    }

    /// Starts under way at a time, with the default filled in.
    #[must_use]
    pub fn start_threads(&self) -> usize {
        match self.start_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from).max(2),
            n => n as usize,
        }
    }

    /// Most memory of all instances, with the default filled in.
    #[must_use]
    pub fn max_memory(&self) -> Bytes {
        self.max_memory.unwrap_or_else(|| Bytes(host_memory().0 / 4 * 3))
    }
}

fn host_memory() -> Bytes {
    let info = rustix::system::sysinfo();
    Bytes(info.totalram.saturating_mul(u64::from(info.mem_unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_survives_a_round_trip() {
        let config = Config::default();
        assert_eq!(config.validate(), Ok(()));
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
        assert_eq!(toml::from_str::<Config>("").unwrap(), config);
        assert!(config.max_memory() > Bytes::mib(64));
        assert!(config.start_threads() >= 2);
    }

    #[test]
    fn unfit_values_are_named() {
        let bad = [
            ("state_dir = \"var/lib\"", "state_dir"),
            ("max_instances = 0", "max_instances"),
            ("start_deadline = \"0s\"", "start_deadline"),
            ("[records]\nfiles = 0", "records.files"),
            ("[records]\nbuffer = 0", "records.buffer"),
            ("back_off_first = \"2m\"", "back_off_most"),
            ("[snapshots]\nrestore_deadline = \"0s\"", "snapshots.restore_deadline"),
        ];
        for (text, name) in bad {
            let config: Config = toml::from_str(text).unwrap();
            let error = config.validate().expect_err(text).to_string();
            assert!(error.contains(name), "{error}");
        }
        let unknown = toml::from_str::<Config>("max_instance = 3").expect_err("unknown field");
        assert!(unknown.to_string().contains("max_instance"));
        let list = toml::from_str::<Config>("cpus = \"1-\"").expect_err("no list");
        assert!(list.to_string().contains("cpus"), "{list}");
    }
}
