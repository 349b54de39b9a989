//! Which way a start goes: from a snapshot, and how its memory arrives, or by booting.

use std::time::Instant;

use vhive_api::{MemoryMode, Revision, SnapshotPolicy};
use vhive_policy::start::{Start, choose, records};
use vhive_sandbox::{Deadline, Memory, Restore, Runtime};

use super::work::Work;
use crate::guest;
use crate::snapshots::{Hold, chain};

/// What hosts and runtimes offer at best.
const ALL: &[MemoryMode] =
    &[MemoryMode::File, MemoryMode::Lazy, MemoryMode::Record, MemoryMode::Prefetch];

/// How a start shall go, and why not otherwise.
pub(super) struct Way {
    pub(super) restore: Option<(Hold, Memory)>,
    pub(super) fallback: Option<String>,
}

impl Work {
    /// Decides how to start.
    pub(super) fn way(&self, runtime: &dyn Runtime, deadline: Deadline) -> Way {
        let revision = &self.revision;
        let boot = |fallback| Way { restore: None, fallback };
        if self.boots || revision.snapshot == SnapshotPolicy::Off {
            return boot(None);
        }
        let Some(restorer) = runtime.restores() else {
            // How it ends tells a study that no further try would help.
            let nothing = format!("runtime {} restores no snapshots", revision.runtime);
            return boot(Some(match runtime.restores_nothing() {
                Some(lacks) => format!("{}, so {nothing}", lacks.what),
                None => nothing,
            }));
        };
        let guest = match guest::of(revision, self.shared.ground.state_dir()) {
            Ok(guest) => guest,
            Err(error) => return boot(Some(chain(&error))),
        };
        // With a turn, a start that has waited waits no more.
        let now = Deadline::at(Instant::now());
        let read_by = if self.has_waited { now } else { self.read_by(deadline) };
        let hold = match self.shared.snapshots.usable(revision, (restorer, &guest), read_by) {
            Ok(Some(hold)) => hold,
            Ok(None) => {
                // Without a try before this there is nothing to tell.
                let not_taken = self.shared.snapshots.not_taken(revision);
                return boot(not_taken.map(|not_taken| format!("no snapshot: {}", not_taken.why)));
            }
            Err(unfit) => return boot(Some(unfit.0)),
        };
        let (can, wanted) = (restorer.memory_modes(), decide(revision, &hold, ALL));
        let start = decide(revision, &hold, can);
        let lacking = lacking(revision, (wanted, start), can);
        let fallback = lacking.map(|mode| {
            let why = restorer.lacks(mode).map_or_else(String::new, |lacks| format!(": {lacks}"));
            format!("memory mode {mode} is not offered here{why}")
        });
        match start {
            Start::Boot => boot(fallback),
            Start::Restore(mode) => {
                let policy = revision.prefetch;
                let from_page_cache =
                    mode == MemoryMode::File && records(revision.snapshot, policy, mode, can);
                let memory = Memory { mode, policy, from_page_cache };
                Way { restore: Some((hold, memory)), fallback }
            }
        }
    }
}

fn decide(revision: &Revision, hold: &Hold, can: &[MemoryMode]) -> Start {
    choose(revision.snapshot, revision.prefetch, Some(hold.stored().facts()), can)
}

/// The mode that keeps the revision from what it is meant to have: the one that this start should be in, or
/// the one that its recording would be for.
fn lacking(
    revision: &Revision,
    (wanted, start): (Start, Start),
    can: &[MemoryMode],
) -> Option<MemoryMode> {
    let Start::Restore(mode) = wanted else { return None };
    if start != wanted {
        return Some(mode);
    }
    let records = |can| records(revision.snapshot, revision.prefetch, mode, can);
    (records(ALL) && !records(can)).then_some(MemoryMode::Prefetch)
}

/// How the memory of the revision's next start would arrive, if that came from this snapshot.
pub(crate) fn wanted_mode(
    revision: &Revision,
    hold: &Hold,
    restorer: &dyn Restore,
) -> Option<MemoryMode> {
    match decide(revision, hold, restorer.memory_modes()) {
        Start::Boot => None,
        Start::Restore(mode) => Some(mode),
    }
}
