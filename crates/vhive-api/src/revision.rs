//! The immutable description of one version of a function.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::guest::{Hooks, Volume};
use crate::ids::{Digest, RevisionDigest, RevisionKey};
use crate::runtime::{GuestName, RuntimeName};
use crate::snapshot::{PrefetchPolicy, SnapshotAt, SnapshotPolicy};
use crate::units::Bytes;

/// One immutable version of a function, with every default filled in.
///
/// # Source
/// Knative Serving, `Revision`; field meanings and defaults as there unless said otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revision {
    /// Namespace and name, e.g. `default/hello-00001`.
    pub key: RevisionKey,
    /// Name of the service that it belongs to, in the same namespace; or of its configuration, if no
    /// service makes that.
    pub service: String,
    /// Whether it is such a configuration's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub standalone: bool,
    /// Image reference as the user wrote it.
    pub image: String,
    /// The manifest that the reference meant when the revision was made.
    pub image_digest: Digest,
    /// Which runtime isolates it.
    pub runtime: RuntimeName,
    /// What runs there, below the function or in its place.
    #[serde(default, skip_serializing_if = "GuestName::is_linux")]
    pub guest: GuestName,
    /// Replaces the image's entrypoint if not empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments if not empty.
    pub args: Vec<String>,
    /// Variables added to (and overriding) the image's, in order, without the injected ones
    /// (`PORT`, `K_SERVICE`, `K_CONFIGURATION`, `K_REVISION`).
    pub env: Vec<(String, String)>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// TCP port on which the function listens.
    pub port: u16,
    /// What is spoken on that port.
    pub protocol: Protocol,
    /// How readiness is confirmed once the port accepts.
    pub readiness: Readiness,
    /// When that is tried, and how often.
    #[serde(default, skip_serializing_if = "ProbeTiming::is_default")]
    pub probe: ProbeTiming,
    /// What must hold before readiness is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<TimedProbe>,
    /// What must go on holding; an instance for which it does not is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<TimedProbe>,
    /// CPU limit in thousandths of a CPU; microVMs have whole vCPUs, and a quota besides where it is
    /// not a whole number of them.
    pub cpu_millis: u32,
    /// Memory limit; for microVMs the size of guest memory.
    pub memory: Bytes,
    /// Requests that one instance may hold at a time; 0 = no limit.
    pub container_concurrency: u32,
    /// How long a request may take until the reply is complete.
    pub timeout: Duration,
    /// How long it may take until the reply begins; none = as long as the whole.
    #[serde(default)]
    pub response_start_timeout: Option<Duration>,
    /// How long the function may say nothing while it holds a request; none = as long as the whole.
    #[serde(default)]
    pub idle_timeout: Option<Duration>,
    /// How long a start may take; none = as long as the node lets any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_deadline: Option<Duration>,
    /// How many instances there may be.
    pub scale: Scale,
    /// Whether cold starts come from a snapshot.
    #[serde(default)]
    pub snapshot: SnapshotPolicy,
    /// When the snapshot is taken.
    #[serde(default, skip_serializing_if = "SnapshotAt::is_default")]
    pub snapshot_at: SnapshotAt,
    /// How a snapshot's working set is recorded and prefetched.
    #[serde(default)]
    pub prefetch: PrefetchPolicy,
    /// What the function wants to be told of snapshots.
    #[serde(default)]
    pub hooks: Hooks,
    /// Files that the function finds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// What it calls through its node's gateway; it reaches that only if it calls something.
    #[serde(default, skip_serializing_if = "Calls::is_empty")]
    pub calls: Calls,
    /// What it needs and nobody has given yet, in words; until then it is not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// What a function calls through its node's gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Calls {
    /// `K_SINK`: a URL whose host is one of the names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<String>,
    /// Hosts that it finds under the gateway's address.
    pub names: Vec<String>,
}

impl Calls {
    /// Whether it calls nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Bounds on the number of instances, and how long idle ones are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Kept running even without requests (`autoscaling.knative.dev/min-scale`).
    pub min: u32,
    /// Never exceeded; 0 = no limit (`autoscaling.knative.dev/max-scale`).
    pub max: u32,
    /// Requests in flight per instance that the autoscaler aims at
    /// (`autoscaling.knative.dev/target`, before utilisation).
    pub target: f64,
    /// Over which time the demand is averaged (`autoscaling.knative.dev/window`).
    pub window: Duration,
    /// How long the last instance outlives the last request beyond the window
    /// (`autoscaling.knative.dev/scale-to-zero-pod-retention-period`).
    pub retention: Duration,
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            min: 0,
            max: 0,
            target: 100.0,
            window: Duration::from_secs(60),
            retention: Duration::ZERO,
        }
    }
}

/// What a function speaks on its port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 (port name `http1`, and the default).
    #[default]
    Http1,
    /// HTTP/2 without TLS by prior knowledge (port name `h2c`); gRPC needs it.
    H2c,
}

/// How a started function is confirmed to be ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Readiness {
    /// A TCP connection is accepted.
    #[default]
    Tcp,
    /// A GET is answered with a status from 200 to 399.
    Http(HttpProbe),
    /// `grpc.health.v1.Health/Check` of this service is answered by `SERVING`.
    Grpc(String),
    /// This command, run in the sandbox as the function's user, ends with 0.
    Exec(Vec<String>),
}

/// When a probe is tried, and what its outcomes mean. Zero is "not said".
///
/// # Source
/// Kubernetes API reference, Probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProbeTiming {
    /// From the start of the function to the first try.
    pub initial_delay: Duration,
    /// Most time between two tries.
    pub period: Duration,
    /// Most time for one try.
    pub timeout: Duration,
    /// Successes in a row that count as one; 0 and 1 are the same.
    pub successes: u32,
    /// Periods after which a startup probe gives the instance up, and failures in a row after
    /// which a liveness probe does.
    pub failures: u32,
}

impl ProbeTiming {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A probe with its times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimedProbe {
    /// What is tried.
    pub check: Readiness,
    /// When.
    pub timing: ProbeTiming,
}

/// The request of an HTTP readiness probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    /// Path and query, beginning with a slash.
    pub path: String,
    /// Extra headers.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
}

impl Revision {
    /// One of which nothing is said but its name, its image and where it runs. It belongs to a service
    /// of its own name; the rest is what Knative takes when a manifest says nothing, with one CPU and
    /// 256 MiB.
    #[must_use]
    pub fn new(key: RevisionKey, image: &str, image_digest: Digest, runtime: RuntimeName) -> Self {
        Self {
            service: key.name.clone(),
            key,
            image: image.to_owned(),
            image_digest,
            runtime,
            guest: GuestName::default(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            port: 8080,
            protocol: Protocol::default(),
            readiness: Readiness::default(),
            probe: ProbeTiming::default(),
            startup: None,
            liveness: None,
            cpu_millis: 1000,
            memory: Bytes::mib(256),
            container_concurrency: 0,
            timeout: Duration::from_secs(300),
            response_start_timeout: None,
            idle_timeout: None,
            start_deadline: None,
            scale: Scale::default(),
            snapshot: SnapshotPolicy::default(),
            snapshot_at: SnapshotAt::default(),
            prefetch: PrefetchPolicy::default(),
            hooks: Hooks::default(),
            volumes: Vec::new(),
            calls: Calls::default(),
            standalone: false,
            missing: None,
        }
    }

    /// Digest of everything that decides what the function's memory will hold once it is ready.
    ///
    /// The names enter because the function sees them (`K_SERVICE`, `K_REVISION`), and so does every
    /// value of a variable or file, wherever it came from; scaling bounds, timeouts, concurrency
    /// and the namespace do not. Whose memory it is, the namespace decides too.
    #[must_use]
    pub fn digest(&self) -> RevisionDigest {
        let parts = (
            (&self.image_digest, self.runtime, &self.command, &self.args, &self.env),
            (&self.working_dir, self.port, self.protocol, &self.readiness),
            (self.cpu_millis, self.memory, &self.key.name, &self.service, &self.hooks),
        );
        let mut text = serde_json::to_vec(&parts).expect("plain strings and numbers serialise");
        // Without these it is as it was before there were any: snapshots are found by it.
        if self.standalone {
            text.extend(b"standalone");
        }
        if !self.volumes.is_empty() {
            text.extend(serde_json::to_vec(&self.volumes).expect("plain strings serialise"));
        }
        if !self.calls.is_empty() {
            text.extend(serde_json::to_vec(&self.calls).expect("plain strings serialise"));
        }
        if !self.guest.is_linux() {
            text.extend(serde_json::to_vec(&self.guest).expect("a plain string serialises"));
        }
        Digest::of(&text)
    }

    /// Name of the service that it belongs to, empty if it is a configuration's alone.
    #[must_use]
    pub fn service_label(&self) -> &str {
        if self.standalone { "" } else { &self.service }
    }

    /// Whole vCPUs for a microVM: the CPU limit rounded up, at least one.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.cpu_millis.div_ceil(1000).max(1)
    }
}
