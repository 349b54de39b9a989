//! The part of a start that runs on a blocking thread.

use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use vhive_api::{
    MemoryMode, Readiness, Revision, RuntimeName, SandboxId, SnapshotPolicy, StartKind,
};
use vhive_image::ImageConfig;
use vhive_sandbox::snapshot::Blame;
use vhive_sandbox::{
    Deadline, Journal, Memory, NetworkSlot, Paging, Prespawned, Restore, RestoreError, Sandbox,
    SandboxSpec, Uses,
};

use super::way::Way;
use super::{StartError, Took, panic_text};
use crate::guest;
use crate::node::Shared;
use crate::probe::{self, Passed, Probe, ProbeError};
use crate::process;
use crate::snapshots::{CloneToken, Doubt, Hold, StoredSnapshot, chain};
use crate::standby::Standby;
use crate::take::AfterReply;

/// What is needed to bring a sandbox up.
pub(super) struct Work {
    pub(super) shared: Arc<Shared>,
    pub(super) id: SandboxId,
    pub(super) revision: Arc<Revision>,
    pub(super) journal: Arc<Journal>,
    pub(super) rootfs: PathBuf,
    pub(super) config: ImageConfig,
    /// It must not come from a snapshot.
    pub(super) boots: bool,
    /// A VMM that waits, with this identity and journal.
    pub(super) standby: Option<Standby>,
    /// Taken before it runs.
    pub(super) turn: Option<OwnedSemaphorePermit>,
    /// Whether it has waited for its snapshot's reader already.
    pub(super) has_waited: bool,
}

/// A sandbox whose function is ready.
pub(super) struct Brought {
    pub(super) sandbox: Box<dyn Sandbox>,
    pub(super) kind: StartKind,
    pub(super) times: Times,
    pub(super) fallback: Option<String>,
    /// The snapshot that it came from.
    pub(super) clone_of: Option<CloneToken>,
    /// What is to be done after its first reply.
    pub(super) after: Option<AfterReply>,
    /// A connection to it on which nothing has been said.
    pub(super) connection: Option<TcpStream>,
    /// Its snapshot may be wanted, and can be taken.
    pub(super) saves: bool,
}

/// Times of a successful start that are not in the journal.
pub(super) struct Times {
    /// When the blocking thread began.
    pub(super) began: Instant,
    pub(super) network: Option<Took>,
    /// When the attempt that succeeded began.
    pub(super) attempt: Instant,
    pub(super) ready: Instant,
}

/// A sandbox, and how long it took to get a network slot and when the runtime was asked.
struct Up {
    sandbox: Box<dyn Sandbox>,
    network: Option<Took>,
    attempt: Instant,
    ready: Passed,
}

impl Work {
    pub(super) fn run(mut self) -> Result<Brought, StartError> {
        let began = Instant::now();
        let shared = Arc::clone(&self.shared);
        let name = self.revision.runtime;
        let runtime = shared.tools.runtimes.get(name).ok_or(StartError::NoRuntime(name))?;
        let deadline = self.deadline();
        let Way { restore, mut fallback } = self.way(runtime.as_ref(), deadline);
        let mut suspicion = None;
        let waiting = self.standby.take().and_then(|standby| {
            let fits =
                restore.as_ref().and_then(|(hold, memory)| standby.fitting(hold, memory.mode));
            if fits.is_none() {
                // It has ended, and with it its journal's first attempt.
                self.journal.retry();
            }
            fits
        });
        if let (Some((hold, memory)), Some(restorer)) = (restore, runtime.restores()) {
            let limit = shared.config.snapshots.restore_deadline.0.min(deadline.left() / 2);
            let mode = memory.mode;
            let (from, limits) = ((&hold, memory), (deadline.or_after(limit), limit));
            let (attempt, newest) = (Instant::now(), hold.stored().newest());
            match self.restore(restorer, from, waiting, limits.0) {
                Ok(up) => return Ok(self.restored(up, hold, (memory, newest), (began, fallback))),
                Err(failed) => {
                    let late = limits.0.passed().then_some(limits.1);
                    let (why, may_be_at_fault) = self.fall_back(&failed, &hold, mode);
                    let of_pager = matches!(failed, Failed::Restore(RestoreError::Pager(_)));
                    let sets = newest.filter(|_| of_pager && mode == MemoryMode::Prefetch);
                    suspicion = may_be_at_fault.then(|| Suspicion {
                        stored: Arc::clone(hold.stored()),
                        why: why.clone(),
                        attempt,
                        late,
                        sets,
                    });
                    fallback = Some(why);
                    self.journal.retry();
                }
            }
        }
        let booting = Instant::now();
        let up = self.bring_up(deadline, |spec| {
            runtime.boot(spec, deadline).map_err(StartError::Boot).map_err(Failed::Start)
        });
        let up = up.map_err(|failed| match failed {
            Failed::Start(error) => error,
            Failed::Restore(_) | Failed::Panic(_) => unreachable!("a boot restores nothing"),
        })?;
        if let Some(suspicion) = suspicion {
            suspicion.count(&shared, booting.elapsed());
        }
        Ok(Brought {
            sandbox: up.sandbox,
            kind: StartKind::Boot,
            times: Times { began, network: up.network, attempt: up.attempt, ready: up.ready.at },
            fallback,
            clone_of: None,
            after: None,
            connection: up.ready.connection,
            // To ask may take seconds: here nobody else waits for it.
            saves: self.revision.snapshot != SnapshotPolicy::Off && runtime.restores().is_some(),
        })
    }

    /// When a start that begins now has to be done.
    pub(super) fn deadline(&self) -> Deadline {
        let configured = self.shared.config.start_deadline.0;
        Deadline::after(self.revision.start_deadline.unwrap_or(configured))
    }

    /// How long it waits for its snapshot's reader: a boot must still be possible after that.
    pub(super) fn read_by(&self, deadline: Deadline) -> Deadline {
        let most = self.shared.config.snapshots.restore_deadline.0.min(deadline.left() / 4);
        deadline.or_after(most)
    }

    /// Waits until somebody has read the snapshot that an earlier node has left, or for as long as there is
    /// time. Without a turn: who can start meanwhile, does.
    pub(super) async fn wait_for_reader(&mut self) {
        if self.boots || self.revision.snapshot == SnapshotPolicy::Off {
            return;
        }
        let Some(read) = self.shared.snapshots.reading(&self.revision) else { return };
        self.has_waited = true;
        let by = self.read_by(self.deadline());
        // If it is late, it is found unread.
        let _in_time = tokio::time::timeout_at(by.instant().into(), read).await;
    }

    fn restore(
        &mut self,
        restorer: &dyn Restore,
        (hold, memory): (&Hold, Memory),
        waiting: Option<Box<dyn Prespawned>>,
        deadline: Deadline,
    ) -> Result<Up, Failed> {
        let restored = catch_unwind(AssertUnwindSafe(|| {
            if let Some(waiting) = waiting {
                let attempt = Instant::now();
                let sandbox = waiting.restore(memory, deadline).map_err(Failed::Restore)?;
                return self.until_ready(sandbox, None, attempt, deadline);
            }
            self.bring_up(deadline, |spec| {
                let restored = restorer.restore(spec, hold.snapshot(), memory, deadline);
                restored.map_err(Failed::Restore)
            })
        }));
        restored.unwrap_or_else(|panic| Err(Failed::Panic(panic_text(&*panic))))
    }

    /// A restore failed: says why, and whether the snapshot may be at fault. One that certainly is goes.
    fn fall_back(&self, failed: &Failed, hold: &Hold, mode: MemoryMode) -> (String, bool) {
        let (blame, why) = match failed {
            Failed::Restore(error) => (error.blame(), chain(error)),
            Failed::Start(error) => (blame_of_start(error), chain(error)),
            Failed::Panic(text) => (Blame::Either, format!("the restore panicked: {text}")),
        };
        let stored = hold.stored();
        let revision = &self.revision.key;
        tracing::warn!(%revision, sandbox = %self.id, %mode, why, "restore failed; booting instead");
        self.shared.metrics.fell_back(self.revision.runtime);
        if let Failed::Restore(RestoreError::Mismatch(mismatch)) = failed {
            stored.refuse(mismatch.clone());
        }
        if blame == Blame::Snapshot {
            self.shared.snapshots.retire(stored, &why);
        }
        (why, blame == Blame::Either)
    }

    fn restored(
        &self,
        up: Up,
        hold: Hold,
        (memory, newest): (Memory, Option<u32>),
        (began, fallback): (Instant, Option<String>),
    ) -> Brought {
        let stored = Arc::clone(hold.stored());
        stored.succeeded();
        let paging = up.sandbox.paging();
        let (mode, shortfall) = paging.as_deref().map_or((memory.mode, None), served);
        let records = mode == MemoryMode::Record || memory.from_page_cache;
        let after = paging.map(|paging| AfterReply {
            runtime: self.revision.runtime,
            revision: Arc::clone(&self.revision),
            paging,
            stored: Arc::clone(&stored),
            newest,
            records,
        });
        drop(hold);
        Brought {
            sandbox: up.sandbox,
            kind: StartKind::restored(mode),
            times: Times { began, network: up.network, attempt: up.attempt, ready: up.ready.at },
            fallback: fallback.or(shortfall),
            clone_of: Some(stored.clone_token()),
            after,
            connection: up.ready.connection,
            saves: false,
        }
    }

    /// One attempt: a network slot, the sandbox, and its function ready.
    fn bring_up(
        &mut self,
        deadline: Deadline,
        start: impl FnOnce(&SandboxSpec) -> Result<Box<dyn Sandbox>, Failed>,
    ) -> Result<Up, Failed> {
        let revision = Arc::clone(&self.revision);
        let process = process::process(&self.config, &revision).map_err(StartError::Process)?;
        let (network, network_took) = match revision.runtime {
            RuntimeName::Sim => (None, None),
            _ => {
                let begin = Instant::now();
                let slot = network(&self.shared, &revision, deadline)?;
                (Some(Arc::new(slot)), Some(Took { begin, end: Instant::now() }))
            }
        };
        let guest = guest::of(&revision, self.shared.ground.state_dir());
        let spec = SandboxSpec {
            guest: guest.map_err(StartError::Guest)?,
            id: self.id.clone(),
            rootfs: self.rootfs.clone(),
            process,
            hooks: revision.hooks.clone(),
            uses: uses(&revision, self.boots),
            port: revision.port,
            cpu_millis: revision.cpu_millis,
            memory: revision.memory,
            network,
            run_root: self.shared.ground.run_root().clone(),
            journal: Arc::clone(&self.journal),
        };
        let attempt = Instant::now();
        let sandbox = start(&spec)?;
        drop(spec);
        self.until_ready(sandbox, network_took, attempt, deadline)
    }

    /// Waits until the function is ready.
    fn until_ready(
        &mut self,
        mut sandbox: Box<dyn Sandbox>,
        network: Option<Took>,
        attempt: Instant,
        deadline: Deadline,
    ) -> Result<Up, Failed> {
        let revision = Arc::clone(&self.revision);
        let endpoint = sandbox.endpoint();
        let began = Instant::now();
        let journal = Arc::clone(&self.journal);
        let turn_ends = deadline.or_after(self.shared.config.start_turn.0);
        let mut wait = |until| {
            let probe = Probe {
                endpoint,
                port: revision.port,
                readiness: &revision.readiness,
                timing: revision.probe,
                startup: revision.startup.as_ref(),
                sandbox: Some(sandbox.as_mut()),
            };
            probe::wait(probe, &journal, began, until)
        };
        let mut ready = wait(turn_ends);
        if ready.as_ref().is_err_and(ProbeError::may_pass) && !deadline.passed() {
            // A function that takes its time to get ready, or never does, must not hold up the
            // others.
            self.turn = None;
            ready = wait(deadline);
        }
        let ready = ready.map_err(StartError::Probe)?;
        Ok(Up { sandbox, network, attempt, ready })
    }
}

/// A restore that failed in a way that may be the snapshot's fault. It counts against the snapshot only if
/// the boot in the same start succeeds: a host that can do neither is itself the trouble.
struct Suspicion {
    stored: Arc<StoredSnapshot>,
    why: String,
    attempt: Instant,
    /// It failed because this time was over.
    late: Option<Duration>,
    /// Perhaps only working sets are at fault, up to this one.
    sets: Option<u32>,
}

impl Suspicion {
    fn count(self, shared: &Shared, boot: Duration) {
        // Where the boot took as long, the restore may have been no worse.
        let doubt = match self.late {
            Some(given) if boot >= given => Doubt::Weak,
            _ => Doubt::Strong,
        };
        if self.stored.failed(self.attempt, doubt) {
            shared.snapshots.retire(&self.stored, &self.why);
        } else {
            // What is recorded anew will not be damaged.
            self.stored.forget_working_sets(self.sets);
        }
    }
}

/// What an error outside the runtime says of the snapshot.
fn blame_of_start(error: &StartError) -> Blame {
    match error {
        // The clone was there, and not well.
        StartError::Probe(_) => Blame::Either,
        _ => Blame::Host,
    }
}

/// A network slot for one sandbox of the revision, through which it reaches what that may reach.
pub(crate) fn network(
    shared: &Shared,
    revision: &Revision,
    deadline: Deadline,
) -> Result<NetworkSlot, StartError> {
    let pool = shared.tools.network.as_ref();
    let pool = pool.ok_or(StartError::NoNetwork(revision.runtime))?;
    let slot = pool.take(deadline).map_err(StartError::Network)?;
    if !revision.calls.is_empty() {
        slot.open_ingress().map_err(StartError::Ingress)?;
    }
    Ok(slot)
}

/// What the revision's instances are asked for besides serving. One that must not come from a
/// snapshot is there for one to be taken of it, whatever the policy.
pub(crate) fn uses(revision: &Revision, prepares: bool) -> Uses {
    let probes = [revision.startup.as_ref(), revision.liveness.as_ref()];
    let mut checks = probes.into_iter().flatten().map(|probe| &probe.check);
    let runs = |check: &Readiness| matches!(check, Readiness::Exec(_));
    Uses {
        snapshots: prepares || revision.snapshot != SnapshotPolicy::Off,
        commands: runs(&revision.readiness) || checks.any(runs),
    }
}

/// How memory really arrives, and why not as it was asked for.
fn served(paging: &dyn Paging) -> (MemoryMode, Option<String>) {
    let (figures, shortfall) = (paging.figures(), paging.shortfall());
    let in_vain = shortfall.is_some() && figures.prefetched_pages == 0;
    match figures.mode {
        MemoryMode::Prefetch if in_vain => (MemoryMode::Lazy, shortfall),
        mode => (mode, shortfall),
    }
}

/// Why an attempt failed.
enum Failed {
    Restore(RestoreError),
    Start(StartError),
    Panic(String),
}

impl From<StartError> for Failed {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

#[cfg(test)]
mod tests {
    use vhive_api::{ProbeTiming, TimedProbe};

    use super::*;
    use crate::testing::revision;

    #[test]
    fn an_instance_is_made_for_what_its_revision_asks_of_it() {
        let plain = revision("plain");
        let exec = || Readiness::Exec(vec!["true".to_owned()]);
        let probe = || Some(TimedProbe { check: exec(), timing: ProbeTiming::default() });
        let of = |snapshots, commands| Uses { snapshots, commands };
        let kept = Revision { snapshot: SnapshotPolicy::Off, ..plain };
        assert_eq!(uses(&kept, false), of(false, false));
        assert_eq!(uses(&kept, true), of(true, false));
        for snapshot in [SnapshotPolicy::Vanilla, SnapshotPolicy::Lazy, SnapshotPolicy::Reap] {
            assert_eq!(uses(&Revision { snapshot, ..kept.clone() }, false), of(true, false));
        }
        let probed = [
            Revision { readiness: exec(), ..kept.clone() },
            Revision { startup: probe(), ..kept.clone() },
            Revision { liveness: probe(), ..kept },
        ];
        assert!(probed.iter().all(|revision| uses(revision, false) == of(false, true)));
    }
}
