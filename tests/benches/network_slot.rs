//! `network-slot-pop`: taking a ready network slot, while the pool's workers build the next ones.
//! Building a slot, off the path, is printed beside it.
//!
//! It runs in a network namespace of its own and leaves the host's network alone.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sched::{CloneFlags, unshare};
use vhive_sandbox::network::{self, NetworkConfig, NetworkPool};
use vhive_sandbox::{Deadline, RunRoot};
use vhive_tests::bench::{Bound, Row, median, quantile, spread};

const BOUND: Bound = Bound::AtMost { must: 50.0, goal: 15.0 };
const ROUNDS: usize = 20;
const READY: u16 = 50;

fn main() -> Result<()> {
    if let Err(lacks) = network::check_host() {
        Row::new("network-slot-pop", "us").unmeasured(BOUND, lacks.to_string()).emit();
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNET)?;
    let directory = tempfile::tempdir()?;
    let root = RunRoot::below(directory.path(), directory.path());
    let ready = u32::from(READY);
    let config = NetworkConfig { ready, max: 4 * ready, ..NetworkConfig::default() };
    let pool = NetworkPool::open(&config, &root)?;

    let (mut pops, mut builds, mut taps) = (Vec::new(), Vec::new(), Vec::new());
    let mut opened = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        pool.warm(within())?;
        builds.push(begun.elapsed().as_secs_f64() * 1e3 / f64::from(READY));
        let mut slots = Vec::new();
        for _ in 0..READY {
            let asked = Instant::now();
            let slot = pool.take(within())?;
            pops.push(asked.elapsed().as_secs_f64() * 1e6);
            let asked = Instant::now();
            let tap = slot.open_tap()?;
            taps.push(asked.elapsed().as_secs_f64() * 1e6);
            let asked = Instant::now();
            slot.open_ingress()?;
            opened.push(asked.elapsed().as_secs_f64() * 1e6);
            slots.push((slot, tap));
        }
        // Builds begin while slots are taken, as on a node; these are retired meanwhile, too.
        drop(slots);
    }
    let note = format!(
        "p50 {}; p99 {:.1} us; its tap device {}; its way to the node, for functions that call, {}; off \
         the path, a slot is built every {}",
        spread(&pops, "us"),
        quantile(&pops, 0.99),
        spread(&taps, "us"),
        spread(&opened, "us"),
        spread(&builds, "ms"),
    );
    Row::new("network-slot-pop", "us").value(BOUND, median(&pops)).note(note).emit();
    Ok(())
}

fn within() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}
