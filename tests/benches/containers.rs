//! `runc-overhead`, `runsc-overhead`: `hello` in a container from the start to the first reply,
//! against the runtime's own `run` of the same bundle with everything around it made beforehand.
//!
//! `gvisor-restore`: a heavy Python function's first reply after a restore, against a cold start.
//!
//! `density-hello-qemu`, `density-hello-firecracker`, `density-hello-runsc`, `density-hello-runc`,
//! `density-hello-crun`: idle instances of `hello` in a given memory until no more fit. Which is the
//! worst is said behind them.
#![expect(clippy::print_stdout, reason = "it tells which row is the worst")]

#[path = "containers/alone.rs"]
mod alone;
#[path = "containers/density.rs"]
mod density;
#[path = "containers/ground.rs"]
mod ground;
#[path = "boot/hello.rs"]
mod hello;
#[path = "containers/restore.rs"]
mod restore;

use std::process::ExitCode;

use anyhow::Result;
use vhive_tests::bench::{Bound, Row, median, spread};

use ground::Ground;

const ROUNDS: usize = 25;

/// Milliseconds above the peer.
const OVERHEADS: [(&str, &str, Bound); 2] = [
    ("runc-overhead", "runc", Bound::AtMost { must: 15.0, goal: 5.0 }),
    ("runsc-overhead", "runsc", Bound::AtMost { must: 20.0, goal: 5.0 }),
];

fn main() -> ExitCode {
    let wanted = std::env::var("VHIVE_BENCH").unwrap_or_default();
    let is_wanted = |id: &str| id.contains(&wanted) || "containers".contains(&wanted);
    for (id, runtime, bound) in OVERHEADS {
        if is_wanted(id) {
            row(id, "ms", bound, overhead(id, runtime, bound));
        }
    }
    if is_wanted(restore::ID) {
        row(restore::ID, "ms", restore::BOUND, restore::measure());
    }
    let mut densities = Vec::new();
    for (id, runtime, limit) in density::ALL {
        if is_wanted(id) {
            let bound = density::BOUND;
            densities.push(row(id, "part", bound, density::measure(id, (runtime, limit), bound)));
        }
    }
    if let Some(worst) = density::worst(&densities) {
        println!("density-hello: {worst}");
    }
    ExitCode::SUCCESS
}

fn row(id: &str, unit: &str, bound: Bound, measured: Result<Row>) -> Row {
    let row = measured
        .unwrap_or_else(|missing| Row::new(id, unit).unmeasured(bound, format!("{missing:#}")));
    row.emit();
    row
}

/// Interleaved, so that both meet the same machine; the first round warms the page cache.
fn overhead(id: &str, runtime: &str, bound: Bound) -> Result<Row> {
    let ground = Ground::find(runtime)?;
    let (mut ours, mut bare, mut above) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let peer = ground.bare_start()?.as_secs_f64() * 1e3;
        let own = ground.start()?.as_secs_f64() * 1e3;
        if round > 0 {
            bare.push(peer);
            ours.push(own);
            above.push(own - peer);
        }
    }
    let note = format!(
        "{} of {} against {}; the median of the differences, which spread: {}",
        spread(&ours, "ms"),
        runtime,
        spread(&bare, "ms"),
        spread(&above, "ms"),
    );
    let peer = format!("bare {runtime} run to the reply: {:.1} ms", median(&bare));
    Ok(Row::new(id, "ms").value(bound, median(&above)).peer(peer).note(note))
}
