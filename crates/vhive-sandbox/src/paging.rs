//! How a clone's memory arrives: from the host's kernel, or from our pager.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhive_api::{Digest, FaultAt, FaultTimeline, MemoryFigures, MemoryMode, PrefetchPolicy};
use vhive_pager::{
    FaultTrace, Handoff, Mode, Pager, PagerStats, Prepared, PreparedMemory, ServeError, Session,
    WaitError, handshake, policy, working_set,
};

use crate::contract::Supervised;
use crate::deadline::Deadline;
use crate::journal::{End, Journal};
use crate::process;
use crate::runtime::{Arrival, Memory, Paging, RecordingError, Replay, RestoreError};
use crate::snapshot::{MEMORY, OpenError, Snapshot};

/// A snapshot's memory on its way. With a working set, reading has begun.
#[derive(Debug)]
pub(crate) struct Preparing {
    /// None where the kernel pages.
    prepared: Option<Prepared>,
    paging: ClonePaging,
}

/// What is known of a clone's memory.
pub(crate) struct ClonePaging {
    memory: Memory,
    /// None where the kernel pages.
    session: Option<Session>,
    /// Why it is not prefetched although that was asked for.
    shortfall: Option<String>,
    /// How many pages the working set has, if one is prefetched.
    set_pages: Option<u64>,
    /// When it was attached.
    attached: Instant,
    /// The snapshot's directory, its memory, and that memory's digest.
    dir: PathBuf,
    file: File,
    digest: Digest,
}

impl fmt::Debug for ClonePaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClonePaging").field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl ClonePaging {
    fn of(from: &Snapshot, memory: Memory) -> Result<Self, RestoreError> {
        let missing = || OpenError::Damaged {
            path: from.dir().to_owned(),
            what: "its manifest names no memory".to_owned(),
        };
        let digest = from.memory_digest().ok_or_else(missing).map_err(RestoreError::Snapshot)?;
        let file = from.file(MEMORY).map_err(RestoreError::Snapshot)?;
        let (session, shortfall, set_pages) = (None, None, None);
        let (dir, attached) = (from.dir().to_owned(), Instant::now());
        Ok(Self { memory, session, shortfall, set_pages, attached, dir, file, digest })
    }
}

impl Preparing {
    /// Begins; `pagers` serves the modes that need it.
    pub(crate) fn begin(
        from: &Snapshot,
        memory: Memory,
        pagers: Option<&Pager>,
    ) -> Result<Self, RestoreError> {
        let mut paging = ClonePaging::of(from, memory)?;
        let Some(pagers) = pagers else {
            if memory.from_page_cache {
                // Whatever is in the cache afterwards is there because of this clone.
                let advice = rustix::fs::Advice::DontNeed;
                rustix::fs::fadvise(&paging.file, 0, None, advice).map_err(pager)?;
            }
            return Ok(Self { prepared: None, paging });
        };
        let (file, digest) = (paging.file.try_clone().map_err(pager)?, paging.digest);
        let mode = mode(&mut paging).map_err(pager)?;
        let prepared = pagers.prepare(PreparedMemory { file, digest, mode }).map_err(pager)?;
        Ok(Self { prepared: Some(prepared), paging })
    }

    /// Whether the guest had better wait for what is being read.
    pub(crate) fn is_prefetched(&self) -> bool {
        self.paging.memory.mode == MemoryMode::Prefetch
    }

    /// Takes over the memory of a VMM; from now on its faults are served.
    pub(crate) fn attach(
        self,
        handed: Option<Handoff>,
        supervised: &Supervised,
        journal: &Arc<Journal>,
    ) -> Result<Arc<ClonePaging>, RestoreError> {
        let Self { prepared, mut paging } = self;
        if let (Some(prepared), Some(handed)) = (prepared, handed) {
            let (pidfd, journal) = (supervised.pidfd().map_err(pager)?, Arc::clone(journal));
            let on_death = Box::new(move |failure: &ServeError| {
                let (step, reason) = ("serve guest memory", crate::contract::chain(failure));
                tracing::warn!(reason, "guest memory cannot be served; its VMM is killed");
                // First, since only the first end counts, and that by the signal says nothing.
                journal.end(End::Failed { step: step.to_owned(), reason });
                process::kill(std::os::fd::AsFd::as_fd(&pidfd));
            });
            paging.attached = Instant::now();
            paging.session = Some(prepared.attach(handed, on_death).map_err(pager)?);
        }
        Ok(Arc::new(paging))
    }
}

/// Waits for a VMM to hand over its memory, of so many bytes.
pub(crate) fn receive(
    socket: &UnixStream,
    bytes: u64,
    deadline: Deadline,
) -> Result<Handoff, RestoreError> {
    handshake::receive(socket, bytes, deadline.instant()).map_err(pager)
}

/// What the pager is asked to do. Where a working set is wanted and none can be used, what is touched
/// is recorded, so that the next start has one.
fn mode(paging: &mut ClonePaging) -> io::Result<Mode> {
    let policy = paging.memory.policy;
    let record = Mode::Record { policy };
    match paging.memory.mode {
        MemoryMode::File | MemoryMode::Lazy => return Ok(Mode::Lazy),
        MemoryMode::Record => return Ok(record),
        MemoryMode::Prefetch if policy == PrefetchPolicy::FaultAround => return Ok(record),
        MemoryMode::Prefetch => {}
    }
    let found = working_set::newest_valid(&paging.dir, paging.digest)?;
    if let Some((working_set, set)) = found {
        paging.set_pages = Some(set.pages());
        return Ok(Mode::Prefetch { working_set, policy });
    }
    paging.shortfall = Some("no working set can be used".to_owned());
    if !policy::records_faults(policy) {
        return Ok(Mode::Lazy);
    }
    paging.memory.mode = MemoryMode::Record;
    Ok(record)
}

fn pager<E: std::error::Error + 'static>(error: E) -> RestoreError {
    RestoreError::Pager(crate::contract::chain(&error))
}

impl ClonePaging {
    /// Waits until enough of the working set is in place.
    pub(crate) fn may_resume(&self, deadline: Deadline) -> Result<(), RestoreError> {
        let Some(session) = &self.session else { return Ok(()) };
        match session.may_resume(deadline.instant()) {
            Ok(()) => Ok(()),
            // The rest comes by faults.
            Err(WaitError::Deadline) => Ok(()),
            Err(error @ WaitError::Dead(_)) => Err(pager(error)),
        }
    }
}

impl ClonePaging {
    /// `stats` are those of the pager, if one serves it.
    fn figures_of(&self, stats: Option<&PagerStats>) -> MemoryFigures {
        let Memory { mode, policy, .. } = self.memory;
        let prefetch = match mode {
            MemoryMode::Record | MemoryMode::Prefetch => Some(policy),
            MemoryMode::File | MemoryMode::Lazy => None,
        };
        let Some(stats) = stats else { return MemoryFigures::new(mode, prefetch) };
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        MemoryFigures {
            mode,
            prefetch,
            faults: Some(stats.faults),
            fault_pages: stats.fault_pages,
            zero_pages: stats.zero_pages,
            prefetched_pages: stats.prefetched_pages,
            prefetched_bytes: stats.prefetched_bytes,
            wait_us: micros(stats.wait),
            prefetch_us: stats.prefetch_done.map_or(0, micros),
        }
    }

    fn timeline_of(&self, stats: &PagerStats, began: Instant) -> FaultTimeline {
        let faults = stats.timeline.faults();
        let of = |residual: bool| -> Vec<FaultAt> {
            let wanted = faults.iter().filter(|fault| fault.residual == residual);
            wanted.map(|fault| FaultAt(fault.micros, fault.page)).collect()
        };
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        FaultTimeline {
            attached_us: match self.attached.checked_duration_since(began) {
                Some(after) => micros(after),
                None => -micros(began.saturating_duration_since(self.attached)),
            },
            every: stats.timeline.every(),
            residual: of(true),
            awaited: of(false),
        }
    }
}

impl Paging for ClonePaging {
    fn figures(&self) -> MemoryFigures {
        self.figures_of(self.session.as_ref().map(Session::stats).as_ref())
    }

    fn arrival(&self, began: Instant) -> Arrival {
        let stats = self.session.as_ref().map(Session::stats);
        let figures = self.figures_of(stats.as_ref());
        Arrival { figures, timeline: stats.map(|stats| self.timeline_of(&stats, began)) }
    }

    fn replay(&self) -> Option<Replay> {
        let (pages, session) = self.set_pages.zip(self.session.as_ref())?;
        Some(Replay { pages, missed: session.stats().residual_faults })
    }

    fn shortfall(&self) -> Option<String> {
        let failure = || self.session.as_ref()?.prefetch_failure();
        let failed = || failure().map(|error| crate::contract::chain(&*error));
        self.shortfall.clone().or_else(failed)
    }

    fn finish_recording(&self) -> Result<Option<u32>, RecordingError> {
        let lost = |error: &dyn std::error::Error| RecordingError(crate::contract::chain(error));
        let mut trace = match (&self.session, self.memory) {
            (Some(session), Memory { mode: MemoryMode::Record, .. }) => {
                match session.finish_recording() {
                    Some(trace) => trace,
                    None => return Ok(None),
                }
            }
            (None, Memory { from_page_cache: true, .. }) => {
                working_set::from_page_cache(&self.file).map_err(|error| lost(&error))?
            }
            _ => return Ok(None),
        };
        // What earlier recordings touched is likely to be touched again.
        let earlier = working_set::newest_valid(&self.dir, self.digest);
        if let Some((_, earlier)) = earlier.map_err(|error| lost(&error))? {
            trace = FaultTrace::merge([&earlier.trace(), &trace]).unwrap_or(trace);
        }
        let bytes = working_set::create(&trace, &self.file, self.digest);
        let bytes = bytes.map_err(|error| lost(&error))?;
        let path = working_set::publish(&self.dir, &bytes).map_err(|error| lost(&error))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(working_set::number_of(&name))
    }

    fn discard_recording(&self) -> bool {
        // The kernel's page cache is there whether anybody records or not.
        self.session.as_ref().is_some_and(Session::discard_recording)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;

    use vhive_api::{Bytes, RevisionKey, RuntimeName};

    use super::*;
    use crate::snapshot::{MemoryShape, Owner, Platform, SnapshotDraft};

    const PAGES: usize = 64;

    /// A snapshot whose memory is written, and so in the page cache.
    fn published(beside: &Path) -> Snapshot {
        let digest = Digest::of(b"revision");
        let owner = Owner {
            revision: RevisionKey::new("default", "hello-00001"),
            digest,
            image: Digest::of(b"image"),
        };
        let mut draft = SnapshotDraft::begin(beside, owner).expect("begun");
        let mut memory = draft.file(MEMORY).expect("made");
        memory.write_all(&[1; PAGES * 4096]).expect("written");
        let platform = Platform {
            runtime: RuntimeName::Sim,
            version: "1".to_owned(),
            cpu: "any".to_owned(),
            kernel: None,
            page_size: 4096,
        };
        let shape = MemoryShape { memory: Bytes((PAGES * 4096) as u64), vcpus: 1 };
        draft.describe(platform, shape, None, 0);
        draft.publish(&beside.join("final")).expect("published")
    }

    #[test]
    fn only_who_records_off_the_page_cache_empties_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let from = published(dir.path());
        let memory = from.file(MEMORY).expect("there");
        // What has not been written back stays.
        memory.sync_all().expect("synced");
        let cached = || working_set::from_page_cache(&memory).expect("mapped").pages().len();
        let begin = |policy, from_page_cache| {
            std::fs::read(from.dir().join(MEMORY)).expect("read");
            let memory = Memory { mode: MemoryMode::File, policy, from_page_cache };
            let preparing = Preparing::begin(&from, memory, None).expect("prepared");
            (cached(), preparing.paging.finish_recording())
        };
        for policy in [PrefetchPolicy::Mincore, PrefetchPolicy::ReapPipelined] {
            let (pages, recorded) = begin(policy, false);
            assert_eq!(pages, PAGES, "{policy}");
            assert!(matches!(recorded, Ok(None)), "{policy}: {recorded:?}");
        }
        let (pages, recorded) = begin(PrefetchPolicy::Mincore, true);
        assert!(matches!(recorded, Ok(Some(1))), "{recorded:?}");
        let kind = rustix::fs::fstatfs(&memory).expect("a file system").f_type;
        // Of `linux/magic.h`: what lies in memory only cannot be dropped from it.
        if kind == 0x0102_1994 {
            eprintln!("SKIP only_who_records_off_the_page_cache_empties_it: a disk for TMPDIR");
            return;
        }
        assert_eq!(pages, 0);
    }
}
