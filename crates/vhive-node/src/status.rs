//! What a node tells about a revision.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rustix::process::Pid;
use vhive_api::{Bytes, HostCounters, MemoryFigures, Revision, SandboxId};
use vhive_sandbox::RunRoot;

use crate::counters::{self, Counting, Watch, Whose};
use crate::footprint::Footprint;
use crate::pool::{Counts, InstanceState, PoolView};
use crate::snapshots::NotTaken;
use crate::start::{StartFailure, StartReport};

/// A revision's instances and queue at the time of asking.
#[derive(Clone, Debug)]
pub struct RevisionStatus {
    /// What is run.
    pub revision: Arc<Revision>,
    /// Instances that serve or could.
    pub ready: u32,
    /// Instances being started.
    pub starting: u32,
    /// Ready instances that hold at least one request.
    pub busy: u32,
    /// Requests that wait for a slot.
    pub queued: u32,
    /// Requests that hold a slot.
    pub in_flight: u32,
    /// The last successful start.
    pub last_start: Option<Arc<StartReport>>,
    /// The last failed start, with its console's tail.
    pub last_failure: Option<Arc<StartFailure>>,
    /// Why it has no snapshot, if one has been tried to take.
    pub not_taken: Option<NotTaken>,
    /// Every instance, oldest first.
    pub instances: Vec<InstanceStatus>,
}

/// The figures of [`RevisionStatus`] alone: cheap enough for every tick of an autoscaler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RevisionCounts {
    /// Instances that serve or could.
    pub ready: u32,
    /// Instances being started.
    pub starting: u32,
    /// Ready instances that hold at least one request.
    pub busy: u32,
    /// Ready instances that go once they hold no request.
    pub leaving: u32,
    /// Requests that wait for a slot.
    pub queued: u32,
    /// Requests that hold a slot.
    pub in_flight: u32,
}

impl From<Counts> for RevisionCounts {
    fn from(counts: Counts) -> Self {
        Self {
            ready: counts.ready,
            starting: counts.starting,
            busy: counts.busy,
            leaving: counts.leaving,
            queued: counts.queued,
            in_flight: counts.leases,
        }
    }
}

/// How a revision does: its figures, and how its last starts ended.
#[derive(Clone, Debug, Default)]
pub struct RevisionStanding {
    /// The figures.
    pub counts: RevisionCounts,
    /// The last successful start.
    pub last_start: Option<Arc<StartReport>>,
    /// The last failed start.
    pub last_failure: Option<Arc<StartFailure>>,
}

impl RevisionStanding {
    /// The failure that is the present state: nothing is ready, and no start has succeeded since.
    #[must_use]
    pub fn failure(&self) -> Option<&Arc<StartFailure>> {
        let failure = self.last_failure.as_ref().filter(|_| self.counts.ready == 0)?;
        let healed = self.last_start.as_ref().is_some_and(|start| start.at >= failure.at);
        (!healed).then_some(failure)
    }
}

/// One instance, as far as the node itself knows.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its sandbox.
    pub id: SandboxId,
    /// What it is doing.
    pub state: InstanceState,
    /// Requests that it holds.
    pub leases: u32,
    /// Since when it exists, its start included.
    pub since: Timestamp,
    /// Where its function listens, once known.
    pub endpoint: Option<SocketAddr>,
}

/// One instance.
#[derive(Clone, Debug)]
pub struct InstanceStatus {
    /// Its sandbox.
    pub id: SandboxId,
    /// What it is doing.
    pub state: InstanceState,
    /// Requests that it holds.
    pub leases: u32,
    /// Since when it exists, its start included.
    pub since: Timestamp,
    /// Where its function listens, once known.
    pub endpoint: Option<SocketAddr>,
    /// Resident memory of its processes on the host, if it has any.
    pub memory: Option<Bytes>,
    /// How its memory has arrived up to now, if it came from a snapshot.
    pub paging: Option<MemoryFigures>,
    processes: Vec<Pid>,
    watch: Arc<Watch>,
    root: RunRoot,
}

impl InstanceStatus {
    /// Memory of its processes on the host, if it has any that still run. The kernel looks at each
    /// of their pages: milliseconds, in which they may wait when they change their mappings.
    #[must_use]
    pub fn footprint(&self) -> Option<Footprint> {
        Footprint::of(&self.processes)
    }

    /// What its processes have used of the host since they were started, as far as the host counts
    /// it; empty if it has none. Perf events count from when they are first asked for until the
    /// instance ends.
    #[must_use]
    pub fn counters(&self, counting: Counting) -> HostCounters {
        let (root, id, processes) = (&self.root, &self.id, self.processes.as_slice());
        counters::take(Whose { root, id, processes, watch: &self.watch }, counting)
    }
}

impl RevisionStatus {
    pub(crate) fn of(view: PoolView, root: &RunRoot) -> Self {
        let instances = view.instances.into_iter().map(|instance| {
            let group = instance.group.as_deref();
            let processes = group.map(members).unwrap_or(instance.processes);
            InstanceStatus {
                id: instance.id,
                state: instance.state,
                leases: instance.leases,
                since: instance.since,
                endpoint: instance.endpoint,
                memory: resident(&processes),
                paging: instance.paging,
                processes,
                watch: instance.watch,
                root: root.clone(),
            }
        });
        Self {
            revision: view.revision,
            ready: view.counts.ready,
            starting: view.counts.starting,
            busy: view.counts.busy,
            queued: view.counts.queued,
            in_flight: view.counts.leases,
            last_start: view.last_start,
            last_failure: view.last_failure,
            not_taken: None,
            instances: instances.collect(),
        }
    }
}

/// The processes of a control group; none if it is gone.
fn members(group: &Path) -> Vec<Pid> {
    let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

/// Resident memory of these processes together; none if none of them can be read.
///
/// # Source
/// `Documentation/filesystems/proc.rst`, `statm`: the second field, in pages.
fn resident(processes: &[Pid]) -> Option<Bytes> {
    let pages = |pid: &Pid| -> Option<u64> {
        let path = format!("/proc/{}/statm", pid.as_raw_nonzero());
        let text = std::fs::read_to_string(path).ok()?;
        text.split(' ').nth(1)?.parse().ok()
    };
    let read: Vec<u64> = processes.iter().filter_map(pages).collect();
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(u64::MAX);
    (!read.is_empty()).then(|| Bytes(read.iter().sum::<u64>().saturating_mul(page)))
}
