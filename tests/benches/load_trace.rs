//! The trace-driven load generator with a trace of 10,000 functions and 60 columns: `trace-arrivals` (arrivals per
//! column and function that differ from the trace) and `loader-rss-10k` (the most memory that it had).
//!
//! The product's binary replays the trace a column a second, so that an hour of it takes a minute: what is read, planned
//! and held is that of an hour, and sixty times as much is under way. What arrives is counted twice: by the
//! generator's rows, per function and column (that of the intended send), and by a server of the benchmark's own,
//! per function. So a send that is late is not seen here; `send-lateness` rows are about that.
#![expect(clippy::print_stdout, reason = "it tells how it measured")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use vhive_load::rng::Rng;
use vhive_tests::bench::{Bound, Row};
use vhive_tests::node::command;

const ARRIVALS: Bound = Bound::AtMost { must: 0.0, goal: 0.0 };
const RSS: Bound = Bound::AtMost { must: 500.0, goal: 100.0 };

const FUNCTIONS: usize = 10_000;
const COLUMNS: usize = 60;
/// About how many invocations there are in all.
const INVOCATIONS: f64 = 120_000.0;
/// How often the generator's memory is read. The figure is the kernel's own maximum up to the last look, so
/// that what its last moments add is not in it.
const LOOK: Duration = Duration::from_millis(100);
/// The most that the run may take.
const PATIENCE: Duration = Duration::from_secs(300);

type Counts = Vec<[u32; COLUMNS]>;

fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let counts = write_trace(dir.path())?;
    let total: u64 = counts.iter().flatten().map(|count| u64::from(*count)).sum();
    let (address, arrived) = serve()?;
    write_inputs(dir.path(), &address)?;
    let (most_kib, took) = replay(dir.path())?;
    let differ = differing(dir.path(), &counts, &arrived.lock().expect("nobody panics"))?;
    println!("{total} invocations of {FUNCTIONS} functions in {took:.1} s");
    let conditions =
        format!("{FUNCTIONS} functions, {COLUMNS} columns sent a second each, {total} invocations");
    Row::new("trace-arrivals", "1")
        .value(ARRIVALS, differ as f64)
        .note(format!("{conditions}; counted by rows and by the server"))
        .emit();
    Row::new("loader-rss-10k", "MB")
        .value(RSS, most_kib as f64 * 1024.0 / 1e6)
        .note(format!("{conditions}; VmHWM of the whole process"))
        .emit();
    Ok(())
}

/// A few functions have most of the invocations, as in the published traces; returns the counts.
fn write_trace(dir: &Path) -> anyhow::Result<Counts> {
    let mut rng = Rng::new(2019);
    // Weights that fall as one over the rank; the sum of them is about the logarithm.
    let harmonic: f64 = (1..=FUNCTIONS).map(|rank| 1.0 / rank as f64).sum();
    let each = INVOCATIONS / harmonic / COLUMNS as f64;
    let mut counts: Counts = Vec::with_capacity(FUNCTIONS);
    for rank in 1..=FUNCTIONS {
        let mean = each / rank as f64;
        counts.push([(); COLUMNS].map(|()| poisson(mean, &mut rng)));
    }
    let [mut invocations, mut durations, mut memory] = [(); 3].map(|()| String::new());
    let key = "HashOwner,HashApp,HashFunction";
    write!(invocations, "{key},Trigger")?;
    (1..=COLUMNS).try_for_each(|column| write!(invocations, ",{column}"))?;
    invocations.push('\n');
    write!(durations, "{key},Average,Count,Minimum,Maximum")?;
    for p in [0, 1, 25, 50, 75, 99, 100] {
        write!(durations, ",percentile_Average_{p}")?;
    }
    durations.push('\n');
    write!(memory, "{key},SampleCount,AverageAllocatedMb")?;
    for p in [1, 5, 25, 50, 75, 95, 99, 100] {
        write!(memory, ",AverageAllocatedMb_pct{p}")?;
    }
    memory.push('\n');
    for (index, columns) in counts.iter().enumerate() {
        write!(invocations, "o,a,f{index},http")?;
        columns.iter().try_for_each(|count| write!(invocations, ",{count}"))?;
        invocations.push('\n');
        writeln!(durations, "o,a,f{index},100,1,1,900,1,2,50,100,200,800,900")?;
        writeln!(memory, "o,a,f{index},1,120,100,101,110,120,130,140,150,160")?;
    }
    for (name, text) in [("invocations", invocations), ("durations", durations), ("memory", memory)]
    {
        std::fs::write(dir.join(format!("{name}.csv")), text)?;
    }
    Ok(counts)
}

fn poisson(mean: f64, rng: &mut Rng) -> u32 {
    let (mut at, mut count) = (rng.exponential(), 0);
    while at < mean {
        at += rng.exponential();
        count += 1;
    }
    count
}

fn write_inputs(dir: &Path, address: &str) -> anyhow::Result<()> {
    let endpoint =
        |index| json!({"hostname": format!("f{index}"), "address": address, "protocol": "http1"});
    let endpoints: Vec<_> = (0..FUNCTIONS).map(endpoint).collect();
    std::fs::write(dir.join("endpoints.json"), serde_json::to_vec(&endpoints)?)?;
    let config = json!({
        "Seed": 7, "TracePath": dir, "Granularity": "second", "ExperimentDuration": COLUMNS,
        "IATDistribution": "exponential_shift", "OutputPathPrefix": dir.join("out/run"),
    });
    Ok(std::fs::write(dir.join("config.json"), config.to_string())?)
}

type Arrived = Arc<Mutex<HashMap<String, u64>>>;

/// A server that counts requests by host.
fn serve() -> anyhow::Result<(String, Arrived)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let arrived = Arrived::default();
    let counted = Arc::clone(&arrived);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let counted = Arc::clone(&counted);
            std::thread::spawn(move || answer(stream, &counted));
        }
    });
    Ok((address, arrived))
}

/// Every request of the generator has a body, whose length is in its head.
fn answer(stream: TcpStream, counted: &Mutex<HashMap<String, u64>>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut out = stream.try_clone().ok()?;
    let mut lines = BufReader::new(stream);
    loop {
        let (mut host, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).ok()? == 0 {
                return Some(());
            }
            match line.trim_end().split_once(": ") {
                Some(("host", value)) => value.clone_into(&mut host),
                Some(("content-length", value)) => length = value.parse().ok()?,
                Some(_) => {}
                None if line == "\r\n" => break,
                None => {}
            }
        }
        let mut body = vec![0; length];
        lines.read_exact(&mut body).ok()?;
        *counted.lock().ok()?.entry(host).or_default() += 1;
        out.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").ok()?;
    }
}

/// Runs the generator; gives its `VmHWM` in KiB, and how long it took.
fn replay(dir: &Path) -> anyhow::Result<(u64, f64)> {
    let mut command = command(dir)?;
    command.args(["load", "trace", "--experiment"]).arg(dir.join("config.json"));
    command.arg("--endpoints").arg(dir.join("endpoints.json")).args(["--connections", "32"]);
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let (_hold, ticks) = channel::<()>();
    let mut most = 0;
    let status = loop {
        // A process that has ended has none any more.
        if let Some(now) = high_water(child.id()) {
            most = now;
        }
        if let Some(status) = child.try_wait()? {
            break status;
        }
        ensure!(begun.elapsed() < PATIENCE, "the generator takes too long");
        let _ = ticks.recv_timeout(LOOK);
    };
    ensure!(status.success(), "the generator failed: {status}");
    Ok((most, begun.elapsed().as_secs_f64()))
}

/// # Source
/// Linux, `Documentation/filesystems/proc.rst`.
fn high_water(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Cells of the trace that differ from the rows, and functions whose requests the server counted otherwise.
fn differing(dir: &Path, counts: &Counts, arrived: &HashMap<String, u64>) -> anyhow::Result<usize> {
    let mut sent: Counts = vec![[0; COLUMNS]; FUNCTIONS];
    let rows = std::fs::File::open(dir.join(format!("out/run_duration_{COLUMNS}.csv")))?;
    for line in BufReader::new(rows).lines().skip(1) {
        let line = line?;
        let cell = || {
            let mut fields = line.split(',').skip(1);
            let function = fields.next()?.strip_prefix("trace-func-")?.split('-').next()?;
            let column = fields.next()?.strip_prefix("min")?.split('.').next()?;
            Some((function.parse::<usize>().ok()?, column.parse::<usize>().ok()?))
        };
        let (function, column) =
            cell().with_context(|| format!("a row is not understood: {line}"))?;
        let cell = sent.get_mut(function).and_then(|columns| columns.get_mut(column));
        *cell.with_context(|| format!("a row of no cell: {line}"))? += 1;
    }
    let cells = counts.iter().flatten().zip(sent.iter().flatten()).filter(|(a, b)| a != b).count();
    let wrong = |(index, columns): &(usize, &[u32; COLUMNS])| {
        let wanted: u64 = columns.iter().map(|count| u64::from(*count)).sum();
        arrived.get(&format!("f{index}")).copied().unwrap_or(0) != wanted
    };
    Ok(cells + counts.iter().enumerate().filter(wrong).count())
}
