//! How many idle instances fit into a given amount of memory.
//!
//! ```text
//!   snapshot ahead of time, where the runtime restores
//!   limit on the group of all the node's sandboxes
//!     ─► min-scale of a few ─► what they cost ─► min-scale of a few more than should fit ─┐
//!     ┌───────────── all there: more ◄────────────────────────────────────────────────────┤
//!     └──────────────────────────────►  the first failed start, or the first that is killed
//! ```
//!
//! Not at once more than any host could hold: starts that wait for their turn are not called off.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vhive_api::{Bytes, RuntimeName};

use crate::deadline::Deadline;
use crate::function::{Function, Shape};
use crate::host::HostError;
use crate::http::ApiError;
use crate::memory_group::{Charged, MemoryGroup};
use crate::plan::Kind;
use crate::target::Target;

/// Between two looks at the instances.
const PAUSE: Duration = Duration::from_millis(200);
/// Without a further instance for so long, no more will come.
const STALLED: Duration = Duration::from_secs(60);
/// How long the node may take to answer or to take a service.
const ANSWER: Duration = Duration::from_secs(120);
/// More instances than any host has room for; the API's own bound.
const MOST: u64 = 100_000;
/// Instances in the first round.
const FIRST: u64 = 16;

/// One filling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Density {
    /// Name of the function.
    pub function: String,
    /// In which sandbox.
    pub runtime: RuntimeName,
    /// The memory that was filled, in bytes.
    pub limit_bytes: u64,
    /// Whether the instances came from a snapshot.
    pub restored: bool,
    /// Most instances that were ready at the same time.
    pub instances: u64,
    /// Mean proportional set size of an instance, in bytes.
    pub pss_bytes: Option<u64>,
    /// Mean resident memory of one, in bytes.
    pub rss_bytes: Option<u64>,
    /// What the kernel charged all of them with, in bytes.
    pub charged_bytes: Option<u64>,
    /// Of that, the kernel's own objects.
    pub kernel_bytes: Option<u64>,
    /// Of that, pages of files that could be taken back.
    pub file_bytes: Option<u64>,
    /// How long filling took.
    pub seconds: f64,
    /// What ended it.
    pub ended: End,
    /// The same in words.
    pub why: String,
    /// The host's one-minute load average before it.
    pub load: Option<f64>,
}

/// What ended a filling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// A start failed.
    StartFailed,
    /// An instance that was ready ended.
    InstanceLost,
    /// The node has as many instances as it may have.
    NodeFull,
    /// No further instance came for a minute, or in all the time that there was.
    Stalled,
}

impl Density {
    /// The part of the memory that is the instances' own.
    #[must_use]
    pub fn filled(&self) -> Option<f64> {
        let all = self.instances as f64 * self.pss_bytes? as f64;
        (self.limit_bytes > 0).then(|| all / self.limit_bytes as f64)
    }

    /// Whether it was the memory that ended it: whatever the node was asked for, it was charged with
    /// all but a twentieth.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let failed = matches!(self.ended, End::StartFailed | End::InstanceLost);
        failed && self.charged_bytes.is_some_and(|all| all >= self.limit_bytes / 20 * 19)
    }
}

/// What is filled, and with what.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The function.
    pub function: &'a Function,
    /// In which sandbox.
    pub runtime: RuntimeName,
    /// The memory.
    pub limit: Bytes,
    /// How long it may take.
    pub patience: Duration,
    /// Different in each run.
    pub edition: &'a str,
}

/// Why a density cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum DensityError {
    /// The node refuses its part.
    #[error("the node does not fill the memory")]
    Node(#[from] ApiError),
    /// The host has no such limit, or does not let us set it.
    #[error("the memory cannot be limited")]
    Host(#[from] HostError),
    /// Nothing was ready at all.
    #[error("no instance was ready: {0}")]
    Nothing(String),
    /// The node is not on this host, or not as we know it.
    #[error("the node does not say where its sandboxes are limited")]
    NoTag,
    /// Other sandboxes would be counted.
    #[error("other sandboxes run on this node; delete their services first")]
    Others,
}

/// Fills the memory. Every sandbox of the node's counts, so nothing else should run on it.
///
/// # Errors
/// [`DensityError`]; the services that were made are deleted, the limit is taken away.
pub async fn fill(target: &Target, wanted: &Wanted<'_>) -> Result<Density, DensityError> {
    let load = crate::host::load_average();
    let tag = target.tag().ok_or(DensityError::NoTag)?;
    let (name, service) = service(wanted, 0);
    target.apply(&service, Deadline::after(ANSWER)).await?;
    let restored = match target.create_snapshot(&name, Deadline::after(ANSWER)).await {
        Ok(()) => Ok(true),
        Err(ApiError::Refused { status, .. }) if status == 422 => Ok(false),
        Err(error) => Err(error),
    };
    // Removed and made again it is the same revision, which the snapshot belongs to; its scale is
    // no part of that.
    target.delete(&name, Deadline::after(ANSWER)).await?;
    let restored = restored?;
    let group = MemoryGroup::limit(tag, wanted.limit)?;
    gone(&group).await?;
    group.hold()?;
    let node = target.facts.get("max_instances").and_then(Value::as_u64);
    let most = node.unwrap_or(MOST).min(MOST);
    let deadline = Deadline::after(wanted.patience);
    let mut room = FIRST.min(most);
    let filled = loop {
        group.hold()?;
        target.apply(&self::service(wanted, room).1, Deadline::after(ANSWER)).await?;
        let filled = watch(target, &name, (&group, room), deadline).await;
        let deleted = target.delete(&name, Deadline::after(ANSWER)).await;
        let left = gone(&group).await;
        let filled = filled?;
        deleted?;
        left?;
        if filled.ended != End::NodeFull || room >= most {
            break filled;
        }
        room = next(&filled, wanted.limit).min(most);
    };
    if filled.most == 0 {
        return Err(DensityError::Nothing(filled.why));
    }
    Ok(Density {
        function: wanted.function.name.clone(),
        runtime: wanted.runtime,
        limit_bytes: wanted.limit.0,
        restored,
        instances: filled.most,
        pss_bytes: filled.pss,
        rss_bytes: filled.rss,
        charged_bytes: filled.charged.all,
        kernel_bytes: filled.charged.kernel,
        file_bytes: filled.charged.files,
        seconds: filled.took.as_secs_f64(),
        ended: filled.ended,
        why: filled.why,
        load,
    })
}

/// How many instances to ask for when so many are there: an eighth more than should fit, by what
/// those cost.
fn next(filled: &Filled, limit: Bytes) -> u64 {
    let each = filled.charged.all.and_then(|all| all.checked_div(filled.most));
    let fit = each.and_then(|each| limit.0.checked_div(each)).unwrap_or(0);
    (fit + fit / 8 + 1).max(filled.most + filled.most / 4 + 1).min(filled.most.saturating_mul(32))
}

/// The function's service with at least `least` instances, and its name.
fn service(wanted: &Wanted<'_>, least: u64) -> (String, Value) {
    let shape = Shape {
        kind: Kind::Snapshot,
        runtime: Some(wanted.runtime),
        named: true,
        most_instances: 1,
        edition: wanted.edition,
    };
    let mut service = wanted.function.service(&shape);
    let base = service.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let name = format!("{base}-density");
    service["metadata"]["name"] = json!(name);
    let annotations = &mut service["spec"]["template"]["metadata"]["annotations"];
    annotations["autoscaling.knative.dev/min-scale"] = json!(least.to_string());
    annotations["autoscaling.knative.dev/max-scale"] = json!("0");
    (name, service)
}

/// Waits until no sandbox has a group.
async fn gone(group: &MemoryGroup) -> Result<(), DensityError> {
    let deadline = Deadline::after(ANSWER);
    while group.is_used() {
        if deadline.passed() {
            return Err(DensityError::Others);
        }
        deadline.pause(PAUSE).await;
    }
    Ok(())
}

struct Filled {
    most: u64,
    pss: Option<u64>,
    rss: Option<u64>,
    charged: Charged,
    took: Duration,
    ended: End,
    why: String,
}

async fn watch(
    target: &Target,
    name: &str,
    (group, room): (&MemoryGroup, u64),
    deadline: Deadline,
) -> Result<Filled, DensityError> {
    let begun = tokio::time::Instant::now();
    let (mut ready, mut charged) = (BTreeSet::new(), Charged::default());
    let mut grown = begun;
    let (ended, why) = loop {
        let now = target.described(name, false, Deadline::after(ANSWER)).await?;
        let present = ready_ones(&now);
        let at = group.charged();
        if at.all > charged.all {
            charged = at;
        }
        if let Some(lost) = ready.iter().find(|id| !present.contains(*id)) {
            break (End::InstanceLost, format!("instance {lost} ended"));
        }
        if present.len() > ready.len() {
            (ready, grown) = (present, tokio::time::Instant::now());
        }
        if let Some(error) = now.pointer("/last_failure/error").and_then(Value::as_str) {
            break (End::StartFailed, error.chars().take(400).collect());
        }
        if ready.len() as u64 >= room {
            break (End::NodeFull, format!("as many as the node may have, {room}, are there"));
        }
        if grown.elapsed() > STALLED || deadline.passed() {
            let why = "no further instance came; the node's max_memory, or its turns, or the time";
            break (End::Stalled, why.to_owned());
        }
        deadline.pause(PAUSE).await;
    };
    let took = begun.elapsed();
    let now = target.described(name, true, Deadline::after(ANSWER)).await?;
    let alive = now["instances"].as_array().cloned().unwrap_or_default();
    let mean = |field: &str| {
        let idle = alive.iter().filter(|one| one["state"] == "ready");
        let known: Vec<u64> = idle.filter_map(|one| one[field].as_u64()).collect();
        known.iter().sum::<u64>().checked_div(known.len() as u64)
    };
    let (pss, rss) = (mean("pss_bytes"), mean("memory_bytes"));
    Ok(Filled { most: ready.len() as u64, pss, rss, charged, took, ended, why })
}

/// Sandboxes that are ready.
fn ready_ones(description: &Value) -> BTreeSet<String> {
    let all = description["instances"].as_array().into_iter().flatten();
    let ready = all.filter(|one| one["state"] == "ready");
    ready.filter_map(|one| one["sandbox"].as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn density(instances: u64, pss: u64) -> Density {
        Density {
            function: "hello".to_owned(),
            runtime: RuntimeName::Runc,
            limit_bytes: 1000,
            restored: false,
            instances,
            pss_bytes: Some(pss),
            rss_bytes: None,
            charged_bytes: Some(990),
            kernel_bytes: None,
            file_bytes: None,
            seconds: 1.0,
            ended: End::InstanceLost,
            why: String::new(),
            load: None,
        }
    }

    #[test]
    fn what_is_filled_is_what_the_instances_have() {
        let one = density(9, 100);
        assert_eq!((one.filled(), one.is_full()), (Some(0.9), true));
        assert!(!Density { charged_bytes: Some(400), ..one.clone() }.is_full());
        assert!(!Density { ended: End::Stalled, ..one.clone() }.is_full());
        assert_eq!(Density { pss_bytes: None, ..one }.filled(), None);
    }

    #[test]
    fn a_round_asks_for_a_few_more_than_should_fit() {
        let filled = |most, all| Filled {
            most,
            pss: None,
            rss: None,
            charged: Charged { all, ..Charged::default() },
            took: Duration::ZERO,
            ended: End::NodeFull,
            why: String::new(),
        };
        assert_eq!(next(&filled(16, Some(160)), Bytes(800)), 80 + 10 + 1);
        assert_eq!(
            next(&filled(16, Some(1000)), Bytes(800)),
            16 + 4 + 1,
            "never fewer than before"
        );
        assert_eq!(next(&filled(16, Some(16)), Bytes(1 << 40)), 16 * 32, "in steps");
        assert_eq!(next(&filled(16, None), Bytes(800)), 21);
    }

    #[test]
    fn only_ready_instances_count() {
        let described = json!({"instances": [
            {"sandbox": "a", "state": "ready"}, {"sandbox": "b", "state": "starting"},
        ]});
        assert_eq!(ready_ones(&described), BTreeSet::from(["a".to_owned()]));
        assert!(ready_ones(&Value::Null).is_empty());
    }
}
