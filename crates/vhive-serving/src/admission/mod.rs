//! Knative YAML or JSON in, a checked template of a revision out.
//!
//! Unknown fields are refused by path, fields that Knative knows and vHive does not honour are
//! refused by path with why, and every problem of a document is reported at once.

mod annotations;
mod autoscaling;
mod calls;
mod container;
mod cursor;
mod data;
mod documents;
mod eventing;
mod inputs;
mod marks;
mod metadata;
mod object;
mod probe;
mod quantity;
mod service;
mod traffic;

use std::fmt;

use serde_json::Value;
use vhive_api::guest::Hooks;
use vhive_api::{
    Bytes, Calls, Digest, GuestName, PrefetchPolicy, ProbeTiming, Protocol, Readiness, Revision,
    RevisionKey, RuntimeName, Scale, SnapshotAt, SnapshotPolicy, TimedProbe,
};

use crate::autoscale::Rules;
use crate::config::Config;
use crate::inputs::Inputs;
use crate::kind::Kind;
use crate::traffic::Target;

pub(crate) use cursor::{Passed, UNKNOWN_FIELD};
pub use cursor::{Problem, ProblemKind};
pub(crate) use data::{AdmittedData, admit_data};
pub use documents::{DocumentError, documents};
pub(crate) use eventing::broker_of;
pub(crate) use marks::{CLUSTER_LOCAL, VISIBILITY, is_kept, unchanged};
pub(crate) use metadata::name_in;
pub use metadata::{Head, is_label};
pub(crate) use object::{AdmittedObject, admit_head, admit_object, read_spec};

/// Levels of a document that are accepted: what is stored holds it a few levels down, and is read by
/// a parser that stops at 128.
pub(crate) const DEEPEST: usize = 64;

/// Prefix of vHive's own annotations.
pub const PREFIX: &str = "vhive.dev/";

/// A document that passed.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    /// Which service it is, or which configuration.
    pub head: Head,
    /// Whether it is a configuration that no service makes.
    pub standalone: bool,
    /// The `spec` as it was written: two equal templates in a row make one revision.
    pub spec: Value,
    /// Where requests shall go; never empty.
    pub traffic: Vec<Target>,
    /// The name that the template gives its revision.
    pub revision_name: Option<String>,
    /// What it means.
    pub template: Template,
}

impl Admitted {
    /// What it is.
    pub(crate) fn kind(&self) -> Kind {
        if self.standalone { Kind::Configuration } else { Kind::Service }
    }
}

/// A revision without its name and without the image's digest.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    /// Image reference.
    pub image: String,
    /// Runtime.
    pub runtime: RuntimeName,
    /// What runs there.
    pub guest: GuestName,
    /// Replaces the entrypoint.
    pub command: Vec<String>,
    /// Replaces the arguments.
    pub args: Vec<String>,
    /// Additional variables whose values are in the document.
    pub env: Vec<(String, String)>,
    /// What it takes from config maps and secrets, and then all of its variables.
    pub inputs: Option<Inputs>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// Port of the function.
    pub port: u16,
    /// What it speaks there.
    pub protocol: Protocol,
    /// Readiness probe.
    pub readiness: Readiness,
    /// When it is asked.
    pub probe: ProbeTiming,
    /// What must hold before.
    pub startup: Option<TimedProbe>,
    /// What must go on holding.
    pub liveness: Option<TimedProbe>,
    /// CPU limit.
    pub cpu_millis: u32,
    /// Memory limit.
    pub memory: Bytes,
    /// Requests per instance at a time; 0 = no limit.
    pub container_concurrency: u32,
    /// Time for a request.
    pub timeout: std::time::Duration,
    /// Time until a reply begins, if it is bounded apart.
    pub response_start_timeout: Option<std::time::Duration>,
    /// Time in which the function may say nothing, if it is bounded.
    pub idle_timeout: Option<std::time::Duration>,
    /// How long a start may take, if it is bounded apart.
    pub start_deadline: Option<std::time::Duration>,
    /// Requests that may wait.
    pub queue_depth: u32,
    /// Target before utilisation, as the user gave it or by default.
    pub target: f64,
    /// Scaling rules.
    pub rules: Rules,
    /// Whether cold starts come from a snapshot.
    pub snapshot: SnapshotPolicy,
    /// When the snapshot is taken.
    pub snapshot_at: SnapshotAt,
    /// How its working set is recorded and prefetched.
    pub prefetch: PrefetchPolicy,
    /// What the function wants to be told of snapshots.
    pub hooks: Hooks,
    /// What it calls through the gateway.
    pub calls: Calls,
}

impl Template {
    /// The revision that this template of a service becomes.
    #[must_use]
    pub fn revision(&self, key: RevisionKey, owner: &str, image_digest: Digest) -> Revision {
        Revision {
            key,
            service: owner.to_owned(),
            standalone: false,
            image: self.image.clone(),
            image_digest,
            runtime: self.runtime,
            guest: self.guest,
            command: self.command.clone(),
            args: self.args.clone(),
            env: self.env.clone(),
            working_dir: self.working_dir.clone(),
            port: self.port,
            protocol: self.protocol,
            readiness: self.readiness.clone(),
            probe: self.probe,
            startup: self.startup.clone(),
            liveness: self.liveness.clone(),
            cpu_millis: self.cpu_millis,
            memory: self.memory,
            container_concurrency: self.container_concurrency,
            timeout: self.timeout,
            response_start_timeout: self.response_start_timeout,
            idle_timeout: self.idle_timeout,
            start_deadline: self.start_deadline,
            scale: Scale {
                min: self.rules.min,
                max: self.rules.max,
                target: self.target,
                window: self.rules.window.0,
                retention: self.rules.retention.0,
            },
            snapshot: self.snapshot,
            snapshot_at: self.snapshot_at,
            prefetch: self.prefetch,
            hooks: self.hooks.clone(),
            volumes: Vec::new(),
            calls: self.calls.clone(),
            missing: None,
        }
    }
}

/// Everything that is wrong with a document; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Of which kind it should be.
    pub(crate) kind: Kind,
    /// `namespace/name` as far as known, for messages.
    pub name: String,
    /// The problems, in the order of the document.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_str().to_lowercase();
        write!(f, "{kind} {:?} is not accepted: ", self.name)?;
        for (at, problem) in self.problems.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// Checks the document of a service and fills in every default.
///
/// # Errors
/// [`Invalid`] with every problem found.
pub fn admit(document: &Value, config: &Config) -> Result<Admitted, Invalid> {
    service::admit(Kind::Service, document, config, &Passed::new())
}

/// Checks the document of a service or of a configuration, except at these paths, and fills in every
/// default.
///
/// # Errors
/// [`Invalid`] with every problem found.
pub(crate) fn admit_template(
    kind: Kind,
    document: &Value,
    config: &Config,
    passed: &Passed,
) -> Result<Admitted, Invalid> {
    service::admit(kind, document, config, passed)
}

#[cfg(test)]
mod tests;
