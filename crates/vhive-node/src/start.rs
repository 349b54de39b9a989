//! A cold start: root file system, turn, network slot, boot or restore, probe; and its opposite, a
//! stop.
//!
//! How it starts is decided by [`vhive_policy::start::choose`]; a restore that fails is followed by a boot within
//! the same start.
//!
//! A start is a plain function on a blocking thread. How many run at a time is limited; that limit
//! is the admission control of cold starts.

mod stop;
mod way;
mod work;

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use vhive_api::{
    Digest, Phase, PhaseSpan, Revision, RevisionKey, RuntimeName, SandboxId, StartKind,
};
use vhive_image::{ImageConfig, RootFsError};
use vhive_sandbox::network::TakeError;
use vhive_sandbox::{BootError, Journal, Milestone};

pub(crate) use vhive_policy::start::{Facts, missed};

pub(crate) use self::stop::spawn_stop;
pub(crate) use self::way::wanted_mode;
use self::work::{Brought, Work};
pub(crate) use self::work::{network, uses};
use crate::limits::Reservation;
use crate::node::Shared;
use crate::pool::{Pool, Running, StartJob};
use crate::probe::ProbeError;
use crate::process::ProcessError;
use crate::standby::Standby;

/// Lines of console that a failure keeps.
const TAIL: usize = 50;

/// One phase of a start on the host's monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartPhase {
    /// Which.
    pub phase: Phase,
    /// When it began.
    pub begin: Instant,
    /// How long it took.
    pub length: Duration,
}

/// How an instance came to be running.
#[derive(Clone, Debug)]
pub struct StartReport {
    /// By which means.
    pub kind: StartKind,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// When the start was decided.
    pub began: Instant,
    /// Likewise by the wall clock.
    pub at: Timestamp,
    /// From the decision to ready.
    pub length: Duration,
    /// Time in it spent waiting for a turn among the node's starts.
    pub waited: Duration,
    /// The parts, in order; `Start` itself is not among them.
    pub phases: Vec<StartPhase>,
    /// By how much times taken in the guest may be off; absent without an init of ours.
    pub guest_clock_error: Option<Duration>,
    /// Attempts that it needed, at least 1.
    pub attempts: u32,
    /// Why it did not go the way that the revision's policy wanted.
    pub fallback: Option<String>,
}

impl StartReport {
    /// `Start` and its parts relative to `origin` (usually when the request came), as an
    /// invocation record has them.
    #[must_use]
    pub fn spans(&self, origin: Instant) -> Vec<PhaseSpan> {
        let whole = StartPhase { phase: Phase::Start, begin: self.began, length: self.length };
        let parts = self.phases.iter().copied();
        std::iter::once(whole).chain(parts).map(|part| part.span(origin)).collect()
    }
}

impl StartPhase {
    fn span(self, origin: Instant) -> PhaseSpan {
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let signed = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        let begin_us = match self.begin.checked_duration_since(origin) {
            Some(after) => signed(after),
            None => -signed(origin.duration_since(self.begin)),
        };
        PhaseSpan { phase: self.phase, begin_us, length_us: micros(self.length) }
    }
}

/// Why a start failed, by step.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The revision needs what nobody has given yet.
    #[error("the function's configuration is not complete: {0}")]
    Unconfigured(String),
    /// This node was not given the runtime.
    #[error("runtime {0} is not offered by this node; `vhive doctor` says why")]
    NoRuntime(RuntimeName),
    /// The root file system image could not be made.
    #[error("no root file system for {image} ({digest})")]
    Image {
        /// The reference as the user wrote it.
        image: String,
        /// The manifest.
        digest: Digest,
        /// Why not.
        #[source]
        source: Arc<RootFsError>,
    },
    /// Likewise in time.
    #[error("root file system for {image} not made within {limit:?}; raise image_deadline")]
    ImageDeadline {
        /// The reference as the user wrote it.
        image: String,
        /// The configured limit.
        limit: Duration,
    },
    /// There is nothing to run.
    #[error("no process to run")]
    Process(#[source] ProcessError),
    /// The guest that vhive brings could not be put in its place.
    #[error("the guest nano not written to the state directory")]
    Guest(#[source] std::io::Error),
    /// This node has no network pool, and the runtime needs one.
    #[error("runtime {0} needs a network slot and this node was opened without a network pool")]
    NoNetwork(RuntimeName),
    /// No network slot.
    #[error("no network slot")]
    Network(#[source] TakeError),
    /// The function is to reach the node's ingress, and its slot could not be opened for it.
    #[error("network slot not opened for the function's calls")]
    Ingress(#[source] std::io::Error),
    /// The sandbox could not be booted.
    #[error("sandbox not booted")]
    Boot(#[source] BootError),
    /// The function did not become ready.
    #[error("function not ready")]
    Probe(#[source] ProbeError),
    /// The code that should have started it panicked: a defect.
    #[error("the start panicked: {0}; please report this as a defect")]
    Panicked(String),
    /// The node went away first.
    #[error("the node is shutting down")]
    ShutDown,
}

/// A failed start with all that is known of it.
#[derive(Debug, thiserror::Error)]
#[error("start of {revision} in sandbox {sandbox} failed")]
pub struct StartFailure {
    /// Which revision.
    pub revision: RevisionKey,
    /// The sandbox that it would have been.
    pub sandbox: SandboxId,
    /// When it failed.
    pub at: Timestamp,
    /// From the decision to the failure.
    pub length: Duration,
    /// Why.
    #[source]
    pub error: StartError,
    /// The last lines of console and output.
    pub console: Vec<String>,
}

impl StartFailure {
    /// The failure, its causes and the console's tail, for people; several lines.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause: Option<&dyn std::error::Error> = Some(&self.error);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        if !self.console.is_empty() {
            text.push_str("\nlast lines of its console:");
            for line in &self.console {
                text.push_str("\n  ");
                text.push_str(line);
            }
        }
        text
    }
}

/// Starts an instance in the background; the pool hears of the outcome in any case.
pub(crate) fn spawn(shared: Arc<Shared>, pool: Arc<Pool>, job: StartJob) {
    let StartJob { no, id, revision, journal, room, began, boots, standby } = job;
    let room = Some(room);
    let order = Order { shared, pool, no, id, revision, journal, began, boots, standby, room };
    let handle = order.shared.handle.clone();
    handle.spawn(cold(order));
}

/// What a start needs. If it is dropped without an outcome, the start counts as failed.
struct Order {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    no: u64,
    id: SandboxId,
    revision: Arc<Revision>,
    journal: Arc<Journal>,
    began: Instant,
    /// It must not come from a snapshot.
    boots: bool,
    standby: Option<Standby>,
    room: Option<Reservation>,
}

/// A part of a start that is over.
#[derive(Clone, Copy)]
struct Took {
    begin: Instant,
    end: Instant,
}

async fn cold(mut order: Order) {
    if let Some(missing) = &order.revision.missing {
        let error = StartError::Unconfigured(missing.clone());
        return order.fail(error);
    }
    let image = match image(&order).await {
        Ok(image) => image,
        Err(error) => return order.fail(error),
    };
    let mut work = Work {
        shared: Arc::clone(&order.shared),
        id: order.id.clone(),
        revision: Arc::clone(&order.revision),
        journal: Arc::clone(&order.journal),
        rootfs: image.rootfs,
        config: image.config,
        boots: order.boots,
        standby: order.standby.take(),
        turn: None,
        has_waited: false,
    };
    work.wait_for_reader().await;
    let asked = Instant::now();
    let turn = Arc::clone(&order.shared.turns).acquire_owned().await;
    let Ok(turn) = turn else { return order.fail(StartError::ShutDown) };
    let waited = asked.elapsed();
    work.turn = Some(turn);
    let outcome = order.shared.handle.spawn_blocking(move || work.run()).await;
    let brought = match outcome {
        Ok(Ok(brought)) => brought,
        Ok(Err(error)) => return order.fail(error),
        Err(join) => return order.fail(not_run(join)),
    };
    let turn = Took { begin: asked, end: brought.times.began };
    let report = order.report(&brought, (image.took, turn), waited);
    order.succeed(brought, report);
}

/// Why a part of a start came to no end of its own.
fn not_run(join: tokio::task::JoinError) -> StartError {
    match join.try_into_panic() {
        Ok(panic) => StartError::Panicked(panic_text(&*panic)),
        Err(_) => StartError::ShutDown,
    }
}

struct ImageReady {
    rootfs: PathBuf,
    config: ImageConfig,
    took: Option<Took>,
}

/// The root file system; `sim` needs none.
async fn image(order: &Order) -> Result<ImageReady, StartError> {
    let revision = &order.revision;
    if revision.runtime == RuntimeName::Sim {
        let config = ImageConfig { cmd: vec!["sim".to_owned()], ..ImageConfig::default() };
        return Ok(ImageReady { rootfs: PathBuf::new(), config, took: None });
    }
    let begin = Instant::now();
    let limit = order.shared.config.image_deadline.0;
    let rootfs = order.shared.tools.images.rootfs(&revision.image_digest);
    let rootfs = match tokio::time::timeout(limit, rootfs).await {
        Ok(Ok(rootfs)) => rootfs,
        Ok(Err(source)) => {
            let (image, digest) = (revision.image.clone(), revision.image_digest);
            return Err(StartError::Image { image, digest, source });
        }
        Err(_) => return Err(StartError::ImageDeadline { image: revision.image.clone(), limit }),
    };
    let took = Some(Took { begin, end: Instant::now() });
    Ok(ImageReady { rootfs: rootfs.path, config: rootfs.config, took })
}

impl Order {
    fn report(
        &self,
        brought: &Brought,
        (image, turn): (Option<Took>, Took),
        waited: Duration,
    ) -> StartReport {
        let done = &brought.times;
        let mut phases = Vec::with_capacity(8);
        let mut add = |phase, begin: Instant, end: Instant| {
            phases.push(StartPhase { phase, begin, length: end.saturating_duration_since(begin) });
        };
        if let Some(Took { begin, end }) = image {
            add(Phase::Image, begin, end);
        }
        add(Phase::Turn, turn.begin, turn.end);
        if let Some(Took { begin, end }) = done.network {
            add(Phase::NetworkSlot, begin, end);
        }
        // What a runtime does not tell has no phase of its own; the next one begins earlier.
        let mut from = done.attempt;
        let milestones = self.journal.milestones();
        let reached = |wanted| milestones.iter().find(|(m, _)| *m == wanted).map(|(_, at)| *at);
        let parts = [
            (Phase::VmmSpawn, reached(Milestone::Spawned)),
            (Phase::KernelBoot, reached(Milestone::KernelUp)),
            (Phase::Init, reached(Milestone::Started)),
            (Phase::Restore, reached(Milestone::Restored)),
            (Phase::Resume, reached(Milestone::Resumed)),
            (Phase::FunctionReady, Some(done.ready)),
        ];
        for (phase, at) in parts {
            if let Some(at) = at {
                // Guest times are placed with an error; phases never overlap for it.
                let at = at.clamp(from, done.ready.max(from));
                add(phase, from, at);
                from = at;
            }
        }
        let length = done.ready.saturating_duration_since(self.began);
        let now = Timestamp::now();
        let at = jiff::SignedDuration::try_from(self.began.elapsed())
            .ok()
            .and_then(|ago| now.checked_sub(ago).ok());
        StartReport {
            kind: brought.kind,
            sandbox: self.id.clone(),
            began: self.began,
            at: at.unwrap_or(now),
            length,
            waited,
            phases,
            guest_clock_error: self.journal.clock_error(),
            attempts: self.journal.attempts(),
            fallback: brought.fallback.clone(),
        }
    }

    fn succeed(&mut self, brought: Brought, report: StartReport) {
        let Some(room) = self.room.take() else { return };
        let (id, revision) = (&self.id, &self.revision.key);
        let kind = report.kind.as_str();
        tracing::debug!(sandbox = %id, %revision, kind, took = ?report.length, "instance ready");
        self.shared.metrics.started(self.revision.runtime, &report);
        let running = Running {
            sandbox: brought.sandbox,
            revision: Arc::clone(&self.revision),
            room,
            origin: brought.clone_of,
            turn: Arc::default(),
            connection: brought.connection,
            saves: brought.saves,
        };
        self.pool.started(self.no, running, Arc::new(report), brought.after);
    }

    fn fail(&mut self, error: StartError) {
        let Some(room) = self.room.take() else { return };
        let failure = StartFailure {
            revision: self.revision.key.clone(),
            sandbox: self.id.clone(),
            at: Timestamp::now(),
            length: self.began.elapsed(),
            error,
            console: self.journal.tail(TAIL),
        };
        self.shared.metrics.start_failed(self.revision.runtime);
        let report = failure.report();
        tracing::warn!(revision = %self.revision.key, sandbox = %self.id, report, "start failed");
        let gone = self.pool.start_failed(self.no, Arc::new(failure));
        drop(room);
        drop(gone);
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        self.fail(StartError::ShutDown);
    }
}

/// The text of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a text".to_owned())
}
