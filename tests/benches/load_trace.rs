//! The trace-driven load generator with a trace of 10,000 functions and 60 columns: `trace-arrivals` (arrivals per
//! column and function that differ from the trace) and `loader-rss-10k` (the most memory that it had).
//!
//! The product's binary replays the trace a column a second, so that an hour of it takes a minute: what is read, planned
//! and held is that of an hour, and sixty times as much is under way. What arrives is counted twice, per function and
//! column: by when the generator says that it sent, and by when a server of the benchmark's own saw the request, on its own
//! clock. So what is sent or arrives too late for its column counts as two cells that differ, wherever it was meant to be.
#![expect(clippy::print_stdout, reason = "it tells how it measured")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};
use vhive_load::rng::Rng;
use vhive_tests::bench::{Bound, Row};
use vhive_tests::node::command;

const ARRIVALS: Bound = Bound::AtMost { must: 0.0, goal: 0.0 };
const RSS: Bound = Bound::AtMost { must: 500.0, goal: 100.0 };

const FUNCTIONS: usize = 10_000;
const COLUMNS: usize = 60;
/// About how many invocations there are in all.
const INVOCATIONS: f64 = 120_000.0;
/// How often it is looked whether the run takes too long.
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
    let own_kib = high_water().context("no VmHWM")?;
    let (most_kib, took) = replay(dir.path())?;
    let arrived = arrived.lock().expect("nobody panics");
    let differ = differing(dir.path(), &counts, &arrived)?;
    println!("{total} invocations of {FUNCTIONS} functions in {took:.1} s");
    let conditions =
        format!("{FUNCTIONS} functions, {COLUMNS} columns sent a second each, {total} invocations");
    Row::new("trace-arrivals", "1")
        .value(ARRIVALS, differ.either as f64)
        .note(format!(
            "{conditions}; cells that differ by the time of the send {}, by that of the arrival {}; \
             functions whose sums differ at the server {}",
            differ.sent, differ.arrived, differ.sums
        ))
        .emit();
    Row::new("loader-rss-10k", "MB")
        .value(RSS, most_kib as f64 * 1024.0 / 1e6)
        .note(format!(
            "{conditions}; the kernel's maximum of the ended process, in which that of this benchmark \
             before it ({:.1} MB) would be, if it were greater",
            own_kib as f64 * 1024.0 / 1e6
        ))
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

/// When requests came, in microseconds since 1970, by host.
type Arrivals = HashMap<String, Vec<u64>>;
type Arrived = Arc<Mutex<Arrivals>>;

/// A server that notes requests by host.
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
fn answer(stream: TcpStream, counted: &Mutex<Arrivals>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut out = stream.try_clone().ok()?;
    let mut lines = BufReader::new(stream);
    loop {
        let (mut host, mut length, mut came) = (String::new(), 0, None);
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).ok()? == 0 {
                return Some(());
            }
            came.get_or_insert_with(now_us);
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
        counted.lock().ok()?.entry(host).or_default().push(came?);
        out.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").ok()?;
    }
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Runs the generator; gives the most memory that it had, in KiB, and how long it took.
fn replay(dir: &Path) -> anyhow::Result<(u64, f64)> {
    let mut command = command(dir)?;
    command.args(["load", "trace", "--experiment"]).arg(dir.join("config.json"));
    command.arg("--endpoints").arg(dir.join("endpoints.json")).args(["--connections", "32"]);
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let (_hold, ticks) = channel::<()>();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("the generator takes too long");
        }
        let _ = ticks.recv_timeout(LOOK);
    };
    ensure!(status.success(), "the generator failed: {status}");
    // It is the only child that there was.
    let most = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    Ok((u64::try_from(most)?, begun.elapsed().as_secs_f64()))
}

/// The most memory that this process has had, in KiB.
///
/// # Source
/// Linux, `Documentation/filesystems/proc.rst`.
fn high_water() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// What is not as the trace has it.
struct Differing {
    /// Cells of a function and a column, by when the generator sent.
    sent: usize,
    /// By when the server saw the request.
    arrived: usize,
    /// By one of them at least.
    either: usize,
    /// Functions of which the server saw more or fewer requests in all.
    sums: usize,
}

fn differing(dir: &Path, counts: &Counts, arrived: &Arrivals) -> anyhow::Result<Differing> {
    let path = dir.join(format!("out/run_duration_{COLUMNS}.csv"));
    let mut lines = BufReader::new(std::fs::File::open(path)?).lines().skip(1).peekable();
    let first =
        lines.peek().context("no row")?.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let began = start_of(first)?.1 - first_offset_us(&dir.join("out/run_rows_60"))?;
    let mut sent: Counts = vec![[0; COLUMNS]; FUNCTIONS];
    for line in lines {
        let (function, at) = start_of(&line?)?;
        count(&mut sent, function, (began, at));
    }
    let mut seen: Counts = vec![[0; COLUMNS]; FUNCTIONS];
    let mut sums = 0;
    for (index, columns) in counts.iter().enumerate() {
        let times = arrived.get(&format!("f{index}")).map_or(&[][..], Vec::as_slice);
        times.iter().for_each(|at| count(&mut seen, index, (began, *at)));
        let wanted: u64 = columns.iter().map(|count| u64::from(*count)).sum();
        sums += usize::from(times.len() as u64 != wanted);
    }
    let mut differ = Differing { sent: 0, arrived: 0, either: 0, sums };
    let cells = |of: &Counts| of.iter().flatten().copied().collect::<Vec<u32>>();
    for (wanted, (sent, seen)) in
        cells(counts).into_iter().zip(cells(&sent).into_iter().zip(cells(&seen)))
    {
        differ.sent += usize::from(sent != wanted);
        differ.arrived += usize::from(seen != wanted);
        differ.either += usize::from(sent != wanted || seen != wanted);
    }
    // What came before the first column or after the last is in no cell.
    differ.either = differ.either.max(sums);
    Ok(differ)
}

/// One more in its column; what is in none is missing in the one where it belongs.
fn count(cells: &mut Counts, function: usize, (began, at): (u64, u64)) {
    let column = at.checked_sub(began).and_then(|since| usize::try_from(since / 1_000_000).ok());
    let cell = column.and_then(|column| cells.get_mut(function)?.get_mut(column));
    if let Some(cell) = cell {
        *cell += 1;
    }
}

/// Function and start of a row, in microseconds since 1970.
fn start_of(line: &str) -> anyhow::Result<(usize, u64)> {
    let cell = || {
        let mut fields = line.split(',').skip(1);
        let function = fields.next()?.strip_prefix("trace-func-")?.split('-').next()?;
        Some((function.parse().ok()?, fields.nth(1)?.parse().ok()?))
    };
    cell().with_context(|| format!("a row is not understood: {line}"))
}

/// When the first row's request was sent, in microseconds from the run's beginning.
fn first_offset_us(dir: &Path) -> anyhow::Result<u64> {
    let mut line = String::new();
    BufReader::new(std::fs::File::open(dir.join("rows.jsonl"))?).read_line(&mut line)?;
    let row: Value = serde_json::from_str(&line)?;
    let us = |name: &str| row[name].as_f64().with_context(|| format!("no {name}"));
    let since = Duration::try_from_secs_f64((us("intended_us")? + us("late_us")?) / 1e6)?;
    Ok(u64::try_from(since.as_micros())?)
}
