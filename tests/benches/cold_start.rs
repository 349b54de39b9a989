//! Cold starts of the demo functions in real microVMs: by boot, from a snapshot, recorded and
//! prefetched. `faults-same`, `faults-other`, `record-cost`, `reap-memory-speedup`, `reap-speedup`,
//! `snapshot-vs-boot`; of `hello` alone `restore-vmm`, of `sleep` alone `restore-x16`.
//!
//! The product's binary runs as a node of its own, with the kernel and images that `make demo` has
//! left. Every time is taken from the node's records; every start must have been of the kind asked
//! for. Before a measured start the service has no instance and the snapshots' files are dropped
//! from the page cache. `sleep` is in no other row: its time is a parameter.
//!
//! `VHIVE_BENCH_FUNCTIONS=hello,pyaes` measures only these, and says so.

#[path = "cold_start/account.rs"]
mod account;
#[path = "cold_start/ground.rs"]
mod ground;
#[path = "cold_start/measure.rs"]
mod measure;
#[path = "cold_start/restore.rs"]
mod restore;
#[path = "cold_start/rows.rs"]
mod rows;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use vhive_tests::bench::{Bound, Row};

use ground::Ground;
use rows::{Measured, ROWS};

const FUNCTIONS: [&str; 6] =
    ["hello", "big-memory", "pyaes", "json_serdes", "chameleon", "image_rotate"];
const REPETITIONS: u32 = 3;

fn main() -> ExitCode {
    let wanted = std::env::var("VHIVE_BENCH").unwrap_or_default();
    let whole = "cold_start".contains(&wanted);
    let wants = |id: &str| whole || id.contains(&wanted);
    let functions = ROWS.iter().any(|(id, ..)| wants(id));
    let (vmm, x16) = (wants("restore-vmm"), wants("restore-x16"));
    let ground = match Ground::find() {
        Ok(ground) => ground,
        Err(missing) => {
            let reason = format!("{missing:#}");
            let all = ROWS.map(|(id, unit, bound)| (functions, id, unit, bound));
            let hello = [
                (vmm, "restore-vmm", "ms", restore::VMM),
                (x16, "restore-x16", "ms", restore::X16),
            ];
            for (_, id, unit, bound) in all.into_iter().chain(hello).filter(|(wanted, ..)| *wanted)
            {
                Row::new(id, unit).unmeasured(bound, reason.clone()).emit();
            }
            return ExitCode::SUCCESS;
        }
    };
    if vmm {
        let row = restore::prepare(&ground).and_then(|()| restore::vmm(&ground));
        emit(row, "restore-vmm", restore::VMM);
    }
    if x16 {
        emit(restore::at_once(&ground), "restore-x16", restore::X16);
    }
    if functions {
        every_function(&ground);
    }
    ExitCode::SUCCESS
}

fn emit(row: Result<Row>, id: &str, bound: Bound) {
    let row =
        row.unwrap_or_else(|error| Row::new(id, "ms").unmeasured(bound, format!("{error:#}")));
    row.emit();
}

/// The rows over all functions; a function that cannot be measured leaves them without a figure.
fn every_function(ground: &Ground) {
    let chosen = std::env::var("VHIVE_BENCH_FUNCTIONS").ok();
    let chosen = |name: &str| chosen.as_ref().is_none_or(|list| list.split(',').any(|n| n == name));
    let mut measured = Measured { ground, functions: BTreeMap::new(), repetitions: REPETITIONS };
    for function in FUNCTIONS.into_iter().filter(|name| chosen(name)) {
        let begun = std::time::Instant::now();
        match measure::function(ground, function, REPETITIONS) {
            Ok(samples) => measured.functions.insert(function, samples),
            Err(error) => {
                for (id, unit, bound) in ROWS {
                    let reason = format!("{function}: {error:#}");
                    Row::new(id, unit).unmeasured(bound, reason).emit();
                }
                return;
            }
        };
        eprintln!("{function}: {:.0} s", begun.elapsed().as_secs_f64());
    }
    measured.emit();
}
