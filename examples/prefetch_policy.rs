//! A prefetch policy by hand. What is prefetched, and in which order, is a function from recordings to a
//! trace: `core` below keeps the pages that every recording touched and leaves to faults what differs
//! from input to input. How it is read and installed stays with a policy that is there.
//!
//! The program is its own guest, touches memory as a function would that works on an input, and prints what
//! a start on a further input costs with nothing prefetched, with all that was ever touched (what a node
//! does), and with the core. It needs userfaultfd, and so mostly root:
//! `cargo run --package vhive-pager --example prefetch_policy`
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use vhive_api::Digest;
use vhive_pager::regions::{Region, Regions};
use vhive_pager::sys::{self, Mapping, PAGE};
use vhive_pager::{FaultTrace, Handoff, Mode, Pager, PagerConfig, PagerStats, PreparedMemory};
use vhive_pager::{PrefetchPolicy, working_set};

const PAGES: usize = 8192;

/// The policy: the first recording's order, without what another did not touch.
fn core(recordings: &[FaultTrace]) -> Option<FaultTrace> {
    let (first, others) = recordings.split_first()?;
    let mut kept = FaultTrace::below(first.bound());
    for page in first.pages() {
        if others.iter().all(|other| other.holds(*page)) {
            kept.record(*page);
        }
    }
    Some(kept)
}

/// The function's work: the pages that it touches with any input, and those with this one.
fn touched(input: usize) -> impl Iterator<Item = usize> {
    (0..600).map(|i| i * 13).chain((0..200).map(move |i| (i * 31 + input * 1013) % PAGES))
}

/// Starts the guest and lets it work on the input; tells what that cost and, recorded, touched.
fn start(
    pager: &Pager,
    (file, digest): (&File, Digest),
    mode: Mode,
    input: usize,
) -> Result<(PagerStats, Option<FaultTrace>), Box<dyn Error>> {
    let uffd = sys::create()?;
    sys::handshake(uffd.as_fd(), 0)?;
    let memory = Mapping::reserve(PAGES * PAGE)?;
    let region = Region { address: memory.address(), bytes: memory.len() as u64, offset: 0 };
    sys::register(uffd.as_fd(), region.address, region.bytes)?;
    let handoff = Handoff { uffd, regions: Regions::new(&[region], region.bytes)? };
    let prepared = pager.prepare(PreparedMemory { file: file.try_clone()?, digest, mode })?;
    // Memory that cannot be served any more must not be used: here, the guest is this process.
    let session = prepared.attach(handoff, Box::new(|_| std::process::abort()))?;
    session.may_resume(Instant::now() + Duration::from_secs(10))?;
    for page in touched(input) {
        assert_eq!(memory[page * PAGE], page.to_le_bytes()[0], "page {page} is the file's");
    }
    session.wait_installed(Instant::now() + Duration::from_secs(10))?;
    Ok((session.stats(), session.finish_recording()))
}

fn main() -> Result<(), Box<dyn Error>> {
    if let Err(error) = sys::create() {
        println!("SKIP prefetch_policy: userfaultfd, which is not to be had here ({error})");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let bytes: Vec<u8> = (0..PAGES).flat_map(|page| [page.to_le_bytes()[0]; PAGE]).collect();
    std::fs::write(dir.path().join("memory"), &bytes)?;
    let file = File::open(dir.path().join("memory"))?;
    let (pager, digest) = (Pager::start(&PagerConfig::default())?, Digest::of(&bytes));
    let run = |mode, input| start(&pager, (&file, digest), mode, input);
    let policy = PrefetchPolicy::ReapPipelined;
    let record = |input| run(Mode::Record { policy }, input);
    let recordings = [record(1)?, record(2)?, record(3)?].map(|(_, trace)| trace);
    let recordings: Vec<FaultTrace> = recordings.into_iter().flatten().collect();
    println!("{:<10} {:>6} {:>12} {:>9}", "prefetched", "pages", "faults left", "waited");
    let all = FaultTrace::merge(&recordings);
    for (name, trace) in [("nothing", None), ("all", all), ("core", core(&recordings))] {
        let mut mode = Mode::Lazy;
        if let Some(trace) = trace {
            let set = working_set::create(&trace, &file, digest)?;
            mode = Mode::Prefetch { working_set: working_set::publish(dir.path(), &set)?, policy };
        }
        let (PagerStats { residual_faults, wait, prefetched_pages, fault_pages, .. }, _) =
            run(mode, 4)?;
        let pages = prefetched_pages + fault_pages;
        println!("{name:<10} {pages:>6} {residual_faults:>12} {wait:>9.1?}");
    }
    Ok(())
}

#[test]
fn the_example_of_a_prefetch_policy_runs() -> Result<(), Box<dyn Error>> {
    main()
}
