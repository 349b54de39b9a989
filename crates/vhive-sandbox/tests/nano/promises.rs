//! What the nano guest shows of any runtime that boots bare guests: one body each, over a runtime
//! that it does not know.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use vhive_api::{Bytes, Digest, MemoryMode, PrefetchPolicy, RevisionKey};
use vhive_pager::working_set;
use vhive_sandbox::snapshot::{Blame, Owner};
use vhive_sandbox::{
    Arrival, BootError, Guest, Memory, Milestone, RestoreError, SandboxSpec, Snapshot,
    SnapshotDraft, nano,
};

use crate::pattern;
use crate::site::{Booted, Site, get, soon};

/// Not the guest's default, so that it must have been told.
pub(crate) const PORT: u16 = 9000;

const FILLED: u64 = 2000;
const TOUCHED: u64 = 600;
const SEED: u64 = 42;

/// A file of the guest, in a directory that lives as long as the test.
pub(crate) struct Kernel {
    pub(crate) path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Kernel {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = nano::write_to(dir.path()).expect("written");
        Self { path, _dir: dir }
    }

    pub(crate) fn spec(&self, site: &Site) -> SandboxSpec {
        let mut spec = site.spec("never run");
        spec.guest = Guest::Bare { kernel: self.path.clone() };
        (spec.port, spec.memory) = (PORT, Bytes::mib(64));
        spec
    }
}

/// It boots, is ready when that is said, and does with memory what its page says.
pub(crate) fn it_answers_with_the_checksum_of_its_pattern(site: &Site) {
    let kernel = Kernel::new();
    let booted = site.boot(&kernel.spec(site));
    let told = booted.journal.milestones();
    let steps: Vec<_> = told.iter().map(|(milestone, _)| *milestone).collect();
    assert_eq!(steps, [Milestone::Spawned, Milestone::Started, Milestone::Listening]);
    assert!(told.is_sorted_by_key(|(_, at)| *at), "{told:?}");
    assert_eq!(ask(&booted, "/"), "hello from nano");
    let memory = Memo::of(&booted);
    assert!(memory.pages > 15_000 && memory.filled == 0, "{memory:?}");
    assert_eq!(ask(&booted, &format!("/fill?pages={FILLED}")), format!("pages {FILLED}"));
    assert_eq!(Memo::of(&booted), Memo { filled: FILLED, ..memory });
    assert_eq!(touch(&booted, 0), expected(None));
    assert_eq!(touch(&booted, 1), expected(None));
    assert_eq!(touch(&booted, 0), expected(Some(SEED)));
    let lines = booted.journal.tail(50);
    assert!(lines.iter().any(|line| line.contains("nano: ") && line.contains("port 9000")));
    assert_eq!(booted.journal.ended(), None);
}

/// A clone touches what the original filled, by whichever way its memory arrives; what it writes is
/// its own; a recording holds what was touched, and prefetching it leaves next to no faults.
pub(crate) fn a_clone_touches_what_the_original_filled(site: &Site) {
    let (kernel, dir) = (Kernel::new(), tempfile::tempdir().expect("a temporary directory"));
    let mut original = site.boot(&kernel.spec(site));
    ask(&original, &format!("/fill?pages={FILLED}"));
    assert_eq!(touch(&original, 0), expected(None));
    let memory = Memo::of(&original);
    let snapshot = snapshot(&mut original, dir.path());
    snapshot.verify().expect("sound");
    fits(site, &kernel, &snapshot);
    assert_eq!(touch(&original, 1), expected(None), "the original goes on");
    drop(original);
    for mode in modes(site) {
        // Twice: the second sees nothing of the first.
        for write in [1, 0] {
            let spec = kernel.spec(site);
            let began = Instant::now();
            let clone = clone(site, &spec, &snapshot, mode);
            let told = clone.journal.milestones();
            let steps: Vec<_> = told.iter().map(|(milestone, _)| *milestone).collect();
            let [spawned, restored, resumed, listening] = steps[..] else { panic!("{told:?}") };
            assert_eq!((spawned, restored), (Milestone::Spawned, Milestone::Restored), "{mode}");
            assert_eq!((resumed, listening), (Milestone::Resumed, Milestone::Listening), "{mode}");
            assert_eq!(touch(&clone, write), expected(None), "{mode}");
            arrived(&clone, mode, began);
            let paging = clone.sandbox.paging().expect("memory arrives somehow");
            paging.finish_recording().expect("written");
        }
        if mode == MemoryMode::Record {
            recorded(&snapshot, memory);
        }
    }
    snapshot.verify().expect("clones change nothing");
}

/// A VMM that was spawned ahead becomes a clone like any other.
pub(crate) fn a_waiting_vmm_goes_on(site: &Site) {
    let (kernel, dir) = (Kernel::new(), tempfile::tempdir().expect("a temporary directory"));
    let mut original = site.boot(&kernel.spec(site));
    ask(&original, &format!("/fill?pages={FILLED}"));
    let snapshot = snapshot(&mut original, dir.path());
    drop(original);
    let restores = site.runtime.restores().expect("it restores");
    for mode in modes(site) {
        let spec = kernel.spec(site);
        let waiting = restores.prespawn(&spec, &snapshot, mode, soon()).expect("spawned");
        let Some(waiting) = waiting else { return };
        let sandbox = waiting.restore(memory_by(mode), soon()).expect("restored");
        let clone = Booted { sandbox, journal: Arc::clone(&spec.journal) };
        assert_eq!(touch(&clone, 0), expected(None), "{mode}");
        let paging = clone.sandbox.paging().expect("memory arrives somehow");
        paging.finish_recording().expect("written");
    }
}

/// What is no such guest, or not the one that was snapshotted, is refused in so many words.
pub(crate) fn another_program_is_refused(site: &Site) {
    let (kernel, dir) = (Kernel::new(), tempfile::tempdir().expect("a temporary directory"));
    let mut original = site.boot(&kernel.spec(site));
    let snapshot = snapshot(&mut original, dir.path());
    drop(original);
    let other = dir.path().join("other.elf");
    fs::copy(&kernel.path, &other).expect("copied");
    let mut bytes = fs::read(&other).expect("read");
    bytes.push(0);
    fs::remove_file(&other).expect("removed");
    fs::write(&other, &bytes).expect("written");
    let mut spec = kernel.spec(site);
    spec.guest = Guest::Bare { kernel: other.clone() };
    let restores = site.runtime.restores().expect("it restores");
    let refused = restores.restore(&spec, &snapshot, memory_by(MemoryMode::File), soon());
    let error = refused.expect_err("another program");
    let RestoreError::Mismatch(mismatch) = &error else { panic!("{error:?}") };
    assert_eq!(mismatch.field, "platform.kernel");
    assert_ne!(error.blame(), Blame::Snapshot);

    let mut spec = kernel.spec(site);
    spec.guest = Guest::Bare { kernel: "/no/such/guest".into() };
    let error = site.runtime.boot(&spec, soon()).expect_err("no file");
    assert_eq!(error.to_string(), "cannot read the bare guest /no/such/guest");
    fs::write(&other, "no program at all").expect("written");
    let mut spec = kernel.spec(site);
    spec.guest = Guest::Bare { kernel: other };
    let error = site.runtime.boot(&spec, soon()).expect_err("no program");
    assert!(matches!(error, BootError::Spawn { .. }), "{error:?}");
}

/// Asked to stop it ends at once, and says that it was stopped.
pub(crate) fn it_stops(site: &Site) {
    let mut booted = site.boot(&Kernel::new().spec(site));
    booted.sandbox.stop(soon());
    let end = booted.journal.ended().expect("ended");
    assert_eq!(end.to_string(), "the sandbox was stopped");
}

/// The reply to `/memory`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Memo {
    pages: u64,
    filled: u64,
    /// The first page's number in the guest's memory.
    first: u64,
}

impl Memo {
    fn of(booted: &Booted) -> Self {
        let reply = ask(booted, "/memory");
        let words: Vec<&str> = reply.split(' ').collect();
        let ["pages", pages, "filled", filled, "begin", begin] = words[..] else {
            panic!("{reply}")
        };
        let number = |text: &str| text.parse().expect("a number");
        let begin = begin.strip_prefix("0x").expect("hexadecimal");
        let first = u64::from_str_radix(begin, 16).expect("an address") / 4096;
        Self { pages: number(pages), filled: number(filled), first }
    }
}

fn ask(booted: &Booted, path: &str) -> String {
    get(booted.endpoint(), path).trim_end().to_owned()
}

fn touch(booted: &Booted, write: u8) -> String {
    ask(booted, &format!("/touch?pages={TOUCHED}&seed={SEED}&write={write}"))
}

fn expected(last: Option<u64>) -> String {
    let sum = pattern::checksum(&pattern::touched(SEED, FILLED, TOUCHED), last);
    format!("pages {TOUCHED} checksum {sum:016x}")
}

fn memory_by(mode: MemoryMode) -> Memory {
    Memory::new(mode, PrefetchPolicy::default())
}

fn modes(site: &Site) -> Vec<MemoryMode> {
    let offered = site.runtime.restores().expect("it restores").memory_modes();
    let order = [MemoryMode::File, MemoryMode::Lazy, MemoryMode::Record, MemoryMode::Prefetch];
    order.into_iter().filter(|mode| offered.contains(mode)).collect()
}

fn owner() -> Owner {
    Owner {
        revision: RevisionKey { namespace: "default".to_owned(), name: "nano-00001".to_owned() },
        digest: Digest::of(b"revision"),
        image: Digest::of(b"image"),
    }
}

fn snapshot(booted: &mut Booted, dir: &Path) -> Snapshot {
    let mut draft = SnapshotDraft::begin(dir, owner()).expect("begun");
    let checkpoint = booted.sandbox.checkpoint().expect("a booted guest can be snapshotted");
    checkpoint.snapshot_into(&mut draft, soon()).expect("snapshotted");
    draft.publish(&dir.join("final")).expect("published")
}

/// The snapshot's manifest agrees with what a restore of this guest needs.
fn fits(site: &Site, kernel: &Kernel, snapshot: &Snapshot) {
    let spec = kernel.spec(site);
    let platform = site.runtime.restores().expect("it restores").platform(&spec.guest);
    let platform = platform.expect("offered");
    let on = spec.guest.platform(platform.clone()).expect("read");
    let shape = snapshot.manifest().shape;
    snapshot.manifest().check(&owner(), &on, shape).expect("fits");
    let mismatch = snapshot.manifest().check(&owner(), &platform, shape).expect_err("not Linux");
    assert_eq!(mismatch.field, "platform.kernel");
}

fn clone(site: &Site, spec: &SandboxSpec, from: &Snapshot, mode: MemoryMode) -> Booted {
    let restores = site.runtime.restores().expect("it restores");
    let sandbox = restores.restore(spec, from, memory_by(mode), soon()).unwrap_or_else(|error| {
        panic!("{mode}: {error:?}; console:\n{}", spec.journal.tail(50).join("\n"))
    });
    Booted { sandbox, journal: Arc::clone(&spec.journal) }
}

/// The pages have come in the way that the mode promises.
fn arrived(clone: &Booted, mode: MemoryMode, began: Instant) {
    let Arrival { figures, timeline } =
        clone.sandbox.paging().expect("memory arrives").arrival(began);
    assert_eq!(figures.mode, mode);
    match mode {
        MemoryMode::File => assert_eq!(figures.faults, None),
        MemoryMode::Lazy | MemoryMode::Record => {
            assert!(figures.fault_pages >= TOUCHED, "{figures:?}");
        }
        MemoryMode::Prefetch => {
            let came = figures.prefetched_pages + figures.fault_pages;
            assert!(figures.prefetched_pages > 0 && came >= TOUCHED, "{figures:?}");
            // What is asked for before it has come is no miss.
            let missed = timeline.expect("a pager serves it").residual.len() as u64;
            assert!(missed < TOUCHED / 20, "{missed} missed: {figures:?}");
        }
    }
}

/// Every page that was touched is in the working set, and few others are.
fn recorded(snapshot: &Snapshot, memory: Memo) {
    let digest = snapshot.memory_digest().expect("it has memory");
    let found = working_set::newest_valid(snapshot.dir(), digest).expect("read");
    let (_, set) = found.expect("a recording was finished");
    let trace = set.trace();
    for page in pattern::touched(SEED, FILLED, TOUCHED) {
        let number = u32::try_from(memory.first + page).expect("a small guest");
        assert!(trace.holds(number), "page {page}");
    }
    let others = set.pages() - TOUCHED;
    assert!(others < TOUCHED, "{others} others");
}
