//! The load generator in a process of its own, so that it has a CPU of its own.
#![expect(clippy::print_stdout, reason = "it tells its parent what it measured")]

use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use vhive_load::arrivals::at_rate;
use vhive_load::summary::Tally;
use vhive_load::sweep::round_robin;
use vhive_load::{Arrivals, Load, Outcome, Protocol, Stop, Target, closed_loop, open_loop};

/// What a run measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) planned: u64,
    pub(crate) rows: u64,
    pub(crate) ok: u64,
    /// Sends more than 1 ms late.
    pub(crate) late: u64,
    pub(crate) late_p50_us: f64,
    pub(crate) late_p99_us: f64,
    pub(crate) latency_p50_us: f64,
    pub(crate) per_second: f64,
}

/// How a run sends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// So many a second.
    Open(f64),
    /// So many at a time.
    Closed(usize),
}

/// Sends and prints the figures.
pub(crate) fn run(address: &str, way: Way, busy: bool, millis: u64) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let hostname = "bench.default.example.com".to_owned();
    let target = Target { hostname, address: address.to_owned(), protocol: Protocol::Http1 };
    let mut load = Load::to(vec![target]);
    load.connections = if busy { 1 } else { 64 };
    load.most_connections = 256;
    load.busy = busy;
    let time = Duration::from_millis(millis);
    let (out, rows) = std::sync::mpsc::channel::<Vec<vhive_load::Row>>();
    let adds = std::thread::spawn(move || {
        let (mut tally, mut late) = (Tally::default(), 0);
        for row in rows.iter().flatten() {
            late += u64::from(row.late_ns() > 1_000_000);
            tally.add(&row);
        }
        (tally, late)
    });
    let stop = Stop::default();
    let ran = match way {
        Way::Open(rate) => {
            let shots = round_robin(&at_rate(Arrivals::Fixed, rate, time, 0)?, 1);
            runtime.block_on(open_loop(&load, shots, out, &stop))?
        }
        Way::Closed(clients) => {
            load.connections = clients;
            runtime.block_on(closed_loop(&load, clients, time, out, &stop))?
        }
    };
    let (tally, late) = adds.join().ok().context("the counting thread panicked")?;
    let quantile = |times: &vhive_load::summary::Times, q| times.quantile_us(q).unwrap_or(f64::NAN);
    let latency = tally.latency(Outcome::Ok).cloned().unwrap_or_default();
    let measured = Measured {
        planned: ran.sent + ran.unsent,
        rows: Outcome::ALL.iter().map(|outcome| tally.count(*outcome)).sum(),
        ok: tally.count(Outcome::Ok),
        late,
        late_p50_us: quantile(tally.late(), 0.5),
        late_p99_us: quantile(tally.late(), 0.99),
        latency_p50_us: quantile(&latency, 0.5),
        per_second: tally.completed_per_second(),
    };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}
