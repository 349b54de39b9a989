//! Simulated paging: what was touched, faulted and prefetched follows from the configuration.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;

use rustix::fs::RenameFlags;
use vhive_api::{Digest, MemoryFigures, MemoryMode, PrefetchPolicy, SandboxId};

use super::SimSnapshot;
use crate::runtime::{Memory, Paging, RecordingError, Replay};
use crate::snapshot::Snapshot;

/// Beginning of a working set's name.
const WORKING_SET: &str = "working-set.";

/// Pages that one fault brings with fault-around.
const AROUND: u64 = 16;

/// How one restored sandbox's memory arrives.
#[derive(Debug)]
pub(super) struct SimPaging {
    figures: MemoryFigures,
    replay: Option<Replay>,
    /// Where to write how many pages of which memory, while it records.
    recording: Mutex<Option<Recording>>,
}

#[derive(Debug)]
struct Recording {
    dir: PathBuf,
    memory: Option<Digest>,
    pages: u64,
    /// Whether it is to become a working set.
    writes: bool,
}

impl SimPaging {
    /// Reads the newest working set if the mode wants one.
    pub(super) fn new(
        config: &SimSnapshot,
        from: &Snapshot,
        memory: Memory,
    ) -> Result<Self, String> {
        let Memory { mode, policy, from_page_cache } = memory;
        let touched = config.touched_pages;
        let (mut figures, mut replay) = (MemoryFigures::new(mode, None), None);
        match (mode, policy) {
            (MemoryMode::File, _) => {}
            (MemoryMode::Lazy | MemoryMode::Record, _) => {
                figures.faults = Some(touched);
                figures.fault_pages = touched;
            }
            (MemoryMode::Prefetch, PrefetchPolicy::FaultAround) => {
                figures.faults = Some(touched.div_ceil(AROUND));
                figures.fault_pages = touched;
            }
            (MemoryMode::Prefetch, _) => {
                let pages = newest(from)?;
                let awaited = config.awaited_pages.min(pages);
                figures.prefetched_pages = pages - awaited;
                figures.prefetched_bytes = pages * 4096;
                let missed = config.missed_pages + touched.saturating_sub(pages);
                figures.faults = Some(missed + awaited);
                figures.fault_pages = missed + awaited;
                replay = Some(Replay { pages, missed });
                let micros = config.restore_prefetch.0.as_micros();
                figures.prefetch_us = u64::try_from(micros).unwrap_or(u64::MAX);
            }
        }
        if matches!(mode, MemoryMode::Record | MemoryMode::Prefetch) {
            figures.prefetch = Some(policy);
        }
        // As the pager: whoever is served by windows is served as one that records.
        let around = (mode, policy) == (MemoryMode::Prefetch, PrefetchPolicy::FaultAround);
        let writes = mode == MemoryMode::Record || (mode == MemoryMode::File && from_page_cache);
        let recording = (writes || around).then(|| Recording {
            dir: from.dir().to_owned(),
            memory: from.memory_digest(),
            pages: touched,
            writes,
        });
        Ok(Self { figures, replay, recording: Mutex::new(recording) })
    }
}

impl Paging for SimPaging {
    fn figures(&self) -> MemoryFigures {
        self.figures
    }

    fn replay(&self) -> Option<Replay> {
        self.replay
    }

    fn finish_recording(&self) -> Result<Option<u32>, RecordingError> {
        let mut recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(recording) = recording.take_if(|recording| recording.writes) else {
            return Ok(None);
        };
        let written = recording.write().map(Some);
        written.map_err(|error| RecordingError(error.to_string()))
    }

    fn discard_recording(&self) -> bool {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }
}

impl Recording {
    /// Writes the next working set, which appears by rename.
    fn write(&self) -> io::Result<u32> {
        let draft = self.dir.join(format!("draft-{}", SandboxId::random().as_str()));
        let mut file = File::create_new(&draft)?;
        let of = self.memory.map_or_else(String::new, |digest| digest.to_string());
        writeln!(file, "{} pages of {of}", self.pages)?;
        file.sync_all()?;
        let mut number = numbers(&self.dir)?.max().unwrap_or(0);
        loop {
            number += 1;
            let to = self.dir.join(format!("{WORKING_SET}{number}"));
            let here = rustix::fs::CWD;
            match rustix::fs::renameat_with(here, &draft, here, &to, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(number),
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => {
                    fs::remove_file(&draft)?;
                    return Err(error.into());
                }
            }
        }
    }
}

/// Numbers of the working sets in a snapshot's directory.
fn numbers(dir: &Path) -> io::Result<impl Iterator<Item = u32>> {
    let names = fs::read_dir(dir)?.flatten();
    Ok(names.filter_map(|entry| {
        entry.file_name().to_str()?.strip_prefix(WORKING_SET)?.parse::<u32>().ok()
    }))
}

/// How many pages the newest working set has.
fn newest(from: &Snapshot) -> Result<u64, String> {
    let number = numbers(from.dir()).map_err(|error| error.to_string())?.max();
    let number = number.ok_or("there is no working set")?;
    let path = from.dir().join(format!("{WORKING_SET}{number}"));
    let text = fs::read_to_string(&path).map_err(|error| error.to_string())?;
    let damaged = || format!("{} is damaged", path.display());
    let (pages, of) = text.trim_end().split_once(" pages of ").ok_or_else(damaged)?;
    if Some(of) != from.memory_digest().map(|digest| digest.to_string()).as_deref() {
        return Err(format!("{} belongs to another memory", path.display()));
    }
    pages.parse().map_err(|_| damaged())
}
