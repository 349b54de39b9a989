//! `prefetch-8m`, `prefetch-24m`, `prefetch-99m`: bringing a working set from the disk into guest memory, beside
//! reading the same file past the page cache into memory that is there already. `prefetch-vs-reap`: beside
//! REAP as published (fresh buffer, one read, then copies), which is the policy `reap-serial`.
//!
//! The guest has 256 MiB; its working set is scattered runs of 2 and 3 pages in random order, too far apart to be
//! merged. A time begins before the working set is opened and ends with its last page in place; making the
//! userfaultfd and registering the memory is in it. Kinds take turns; medians are compared. The file is read by the
//! first, unmeasured round whole and found right, as by a node's first start from it.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use vhive_api::Digest;
use vhive_pager::regions::{Region, Regions};
use vhive_pager::sys::{self, Buffer, Mapping, PAGE};
use vhive_pager::{
    FaultTrace, Handoff, Mode, Pager, PagerConfig, PrefetchPolicy, PreparedMemory, working_set,
};
use vhive_tests::bench::{Bound, Row, median, spread};

const GUEST_PAGES: u32 = 65_536;
const MIB: usize = 1 << 20;
const ROUNDS: usize = 31;
const DEPTH: usize = 8;
/// Until the pager takes a file for one that can be told from a changed one.
const AGE: Duration = Duration::from_millis(2100);

/// Rows: working set in MiB, must, goal.
const SIZES: [(&str, u32, f64, f64); 3] = [
    ("prefetch-8m", 8, 1.65, 1.35),
    ("prefetch-24m", 24, 1.35, 1.15),
    ("prefetch-99m", 99, 1.2, 1.1),
];
const VS_REAP: Bound = Bound::AtLeast { must: 2.3, goal: 3.0 };

fn main() -> Result<()> {
    let wanted = std::env::var("VHIVE_BENCH").unwrap_or_default();
    let ids = SIZES.map(|(id, ..)| id);
    let one = ids.into_iter().chain(["prefetch-vs-reap"]).find(|id| *id == wanted);
    if let Err(error) = sys::open_device() {
        let reason = format!("/dev/userfaultfd: {error}");
        for (id, _, must, goal) in SIZES {
            let bound = Bound::AtMost { must, goal };
            Row::new(id, "ms").unmeasured(bound, reason.clone()).emit();
        }
        Row::new("prefetch-vs-reap", "ms").unmeasured(VS_REAP, reason).emit();
        return Ok(());
    }
    let ground = Ground::new()?;
    for (id, mib, must, goal) in SIZES {
        let is_vs_reap = mib == 8;
        if one.is_some_and(|one| one != id && !(is_vs_reap && one == "prefetch-vs-reap")) {
            continue;
        }
        let times = ground.measure(mib)?;
        let floor = median(&times.whole).min(median(&times.deep));
        let note = format!(
            "{}; one read {}; 1 MiB x {DEPTH} {}; reap-serial {}",
            spread(&times.ours, "ms"),
            spread(&times.whole, "ms"),
            spread(&times.deep, "ms"),
            spread(&times.reap, "ms"),
        );
        Row::new(id, "ms")
            .ratio(Bound::AtMost { must, goal }, median(&times.ours), floor)
            .peer(format!("reading the file O_DIRECT, the faster of two ways: {floor:.3} ms"))
            .note(note)
            .emit();
        if is_vs_reap {
            let (ours, reap) = (median(&times.ours), median(&times.reap));
            let mut row = Row::new("prefetch-vs-reap", "ms").ratio(VS_REAP, reap, ours);
            row.value = Some(ours);
            row.peer(format!("reap-serial, 8 MiB: {reap:.3} ms"))
                .note("either checks the checksums of a changed file once, REAP as published none")
                .emit();
        }
    }
    Ok(())
}

struct Ground {
    directory: tempfile::TempDir,
    memory: File,
    digest: Digest,
    pager: Pager,
    readers: Readers,
}

/// Milliseconds of each kind.
#[derive(Default)]
struct Times {
    ours: Vec<f64>,
    reap: Vec<f64>,
    whole: Vec<f64>,
    deep: Vec<f64>,
}

impl Ground {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("memory");
        let mut bytes = vec![0u8; GUEST_PAGES as usize * PAGE];
        let mut random = Random(1);
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        std::fs::write(&path, &bytes)?;
        let memory = File::open(&path)?;
        memory.sync_all()?;
        let pager = Pager::start(&PagerConfig::default())?;
        Ok(Self {
            directory,
            memory,
            digest: Digest::of(b"bench"),
            pager,
            readers: Readers::new()?,
        })
    }

    fn measure(&self, mib: u32) -> Result<Times> {
        let pages = mib * 256;
        let bytes = working_set::create(&scattered(pages)?, &self.memory, self.digest)?;
        let path = working_set::publish(self.directory.path(), &bytes)?;
        drop_cache(&path)?;
        // A file that has just been written is checked each time; one of a snapshot is older.
        let (_hold, never) = channel::<()>();
        let _ = never.recv_timeout(AGE);
        let mut resident = Mapping::resident(bytes.len())?;
        let mut times = Times::default();
        for round in 0..=ROUNDS {
            let ours = self.prefetch(&path, pages, PrefetchPolicy::ReapPipelined)?;
            let reap = self.prefetch(&path, pages, PrefetchPolicy::ReapSerial)?;
            let whole = read_whole(&path, &mut resident)?;
            let deep = self.readers.read(&path)?;
            if round > 0 {
                times.ours.push(ours);
                times.reap.push(reap);
                times.whole.push(whole);
                times.deep.push(deep);
            }
        }
        Ok(times)
    }

    fn prefetch(&self, path: &Path, pages: u32, policy: PrefetchPolicy) -> Result<f64> {
        let guest = Mapping::reserve(GUEST_PAGES as usize * PAGE)?;
        let mode = Mode::Prefetch { working_set: path.to_owned(), policy };
        let file = self.memory.try_clone()?;
        let begun = Instant::now();
        let prepared = self.pager.prepare(PreparedMemory { file, digest: self.digest, mode })?;
        let uffd = sys::create()?;
        sys::handshake(uffd.as_fd(), 0)?;
        sys::register(uffd.as_fd(), guest.address(), guest.len() as u64)?;
        let region = Region { address: guest.address(), bytes: guest.len() as u64, offset: 0 };
        let regions = Regions::new(&[region], prepared.memory_bytes())?;
        let session = prepared.attach(Handoff { uffd, regions }, Box::new(|_| ()))?;
        session.wait_installed(Instant::now() + Duration::from_secs(60))?;
        let took = milliseconds(begun);
        ensure!(session.stats().prefetched_pages == u64::from(pages), "not all pages came");
        Ok(took)
    }
}

/// Runs of 2 and 3 pages, at least 3 apart, in random order.
fn scattered(pages: u32) -> Result<FaultTrace> {
    let mut random = Random(u64::from(pages));
    let mut lengths = Vec::new();
    let mut left = pages;
    while left > 0 {
        let length = if left <= 3 { left } else { 2 + random.below(2) };
        lengths.push(length);
        left -= length;
    }
    let count = u32::try_from(lengths.len())?;
    let spare = GUEST_PAGES.checked_sub(pages + 3 * count).context("they fit")?;
    // Each run gets a share of the spare room before it: the gaps of sorted random points.
    let mut points: Vec<u32> = lengths.iter().map(|_| random.below(spare + 1)).collect();
    points.sort_unstable();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    let mut used = 0;
    for (length, point) in lengths.into_iter().zip(points) {
        runs.push((point + used, length));
        used += length + 3;
    }
    for at in (1..runs.len()).rev() {
        runs.swap(at, random.below(u32::try_from(at)? + 1) as usize);
    }
    let mut trace = FaultTrace::below(GUEST_PAGES);
    for page in runs.into_iter().flat_map(|(first, length)| first..first + length) {
        trace.record(page);
    }
    Ok(trace)
}

fn read_whole(path: &Path, buffer: &mut Mapping) -> Result<f64> {
    let begun = Instant::now();
    let file = open_direct(path)?;
    let length = usize::try_from(file.metadata()?.len())?;
    file.read_exact_at(&mut buffer[..length], 0)?;
    Ok(milliseconds(begun))
}

/// Threads that read 1 MiB at a time, each into a resident buffer of its own.
struct Readers {
    orders: Vec<Sender<Order>>,
    done: Receiver<std::io::Result<()>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Clone)]
struct Order {
    file: Arc<File>,
    length: usize,
    next: Arc<AtomicUsize>,
}

impl Readers {
    fn new() -> Result<Self> {
        let (tell, done) = channel();
        let (mut orders, mut threads) = (Vec::new(), Vec::new());
        for mut buffer in Mapping::resident(DEPTH * MIB)?.split(MIB) {
            let (order, ordered) = channel::<Order>();
            let tell = tell.clone();
            orders.push(order);
            threads.push(thread::spawn(move || {
                for order in ordered {
                    if tell.send(order.read(&mut buffer)).is_err() {
                        return;
                    }
                }
            }));
        }
        Ok(Self { orders, done, threads })
    }

    fn read(&self, path: &Path) -> Result<f64> {
        let begun = Instant::now();
        let file = Arc::new(open_direct(path)?);
        let length = usize::try_from(file.metadata()?.len())?;
        let order = Order { file, length, next: Arc::default() };
        for orders in &self.orders {
            orders.send(order.clone())?;
        }
        for _ in &self.orders {
            self.done.recv()??;
        }
        Ok(milliseconds(begun))
    }
}

impl Order {
    fn read(&self, buffer: &mut Buffer) -> std::io::Result<()> {
        loop {
            let at = self.next.fetch_add(MIB, Ordering::Relaxed);
            if at >= self.length {
                return Ok(());
            }
            let length = MIB.min(self.length - at);
            self.file.read_exact_at(&mut buffer[..length], at as u64)?;
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.orders.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn open_direct(path: &Path) -> std::io::Result<File> {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    File::options().read(true).custom_flags(direct).open(path)
}

fn drop_cache(path: &PathBuf) -> Result<()> {
    let file = File::open(path)?;
    Ok(rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?)
}

fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() % u64::from(bound)).unwrap_or(0)
    }
}
