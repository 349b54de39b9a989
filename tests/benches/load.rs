//! The load generator against known servers: `send-lateness-1k-p50` and `-p99` (how late requests
//! leave), `sent-vs-scheduled`, `latency-truth` (a server that answers after a known time), and
//! `load-rps-core` (the highest open-loop rate of one CPU, against `wrk`'s closed loop).
//!
//! The generator has one CPU, the server another; where there is only one they share it, and the
//! rows say so.
#![expect(clippy::print_stdout, reason = "it tells how it measured")]

#[path = "load/bare.rs"]
mod bare;
#[path = "gateway/client.rs"]
mod client;
#[path = "load/delay.rs"]
mod delay;
#[path = "load/generator.rs"]
mod generator;
#[path = "gateway/parts.rs"]
#[expect(dead_code, reason = "the gateway's benchmark needs more of it")]
mod parts;

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use vhive_tests::bench::{Bound, Row, median, spread};

use crate::generator::{Measured, Way};
use crate::parts::{Part, cpus, nginx, on_cpu, role};

const LATE_P50: Bound = Bound::AtMost { must: 50.0, goal: 5.0 };
const LATE_P99: Bound = Bound::AtMost { must: 500.0, goal: 250.0 };
const RPS: Bound = Bound::AtLeast { must: 0.5, goal: 0.7 };
const SENT: Bound = Bound::AtMost { must: 0.1, goal: 0.0 };
const TRUTH: Bound = Bound::AtMost { must: 0.2, goal: 0.05 };

/// Runs at 1,000 requests a second, and the length of each.
const ROUNDS: usize = 7;
const ROUND: &str = "3000";
/// Rates tried between 0 and 1.5 × `wrk`'s.
const HALVINGS: usize = 8;
/// How often each; what else the machine does fails some.
const TRIES: usize = 3;
/// Share of sends that may be more than 1 ms late at a sustained rate.
const MOST_LATE: f64 = 0.01;
/// The known times, in milliseconds.
const DELAYS: [u64; 4] = [1, 10, 40, 100];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let texts: Vec<&str> = args.iter().map(String::as_str).collect();
    match texts.as_slice() {
        ["role", "client", address, connections, millis] => {
            let time = Duration::from_millis(millis.parse()?);
            client::run(address, connections.parse()?, move |_, took| took > time)
        }
        ["role", "delay", millis] => delay::run(Duration::from_millis(millis.parse()?)),
        ["role", how @ ("open" | "busy"), address, rate, millis] => {
            generator::run(address, Way::Open(rate.parse()?), *how == "busy", millis.parse()?)
        }
        ["role", "bare", address, rate, millis] => {
            bare::run(address, rate.parse()?, millis.parse()?)
        }
        ["role", "closed", address, clients, millis] => {
            generator::run(address, Way::Closed(clients.parse()?), false, millis.parse()?)
        }
        ["role", "all"] => all(),
        _ => measure(),
    }
}

fn measure() -> anyhow::Result<()> {
    // Other processes of the machine are to disturb as little as they would on one that is idle;
    // servers, peer and generator alike inherit it.
    let real_time = Command::new("chrt")
        .args(["--fifo", "10"])
        .arg(std::env::current_exe()?)
        .args(["role", "all"])
        .status();
    match real_time {
        Ok(status) if status.success() => return Ok(()),
        _ => println!("no real-time priority (chrt of util-linux, as root)"),
    }
    all()
}

fn all() -> anyhow::Result<()> {
    let cpus = cpus()?;
    let (first, last) = (*cpus.first().context("no CPU")?, *cpus.last().context("no CPU")?);
    latency_truth(first, last)?;
    if Command::new("nginx").arg("-v").output().is_err() {
        let reason = "nginx is not installed (Debian package nginx-light)";
        Row::new("send-lateness-1k-p50", "us").unmeasured(LATE_P50, reason).emit();
        Row::new("send-lateness-1k-p99", "us").unmeasured(LATE_P99, reason).emit();
        Row::new("sent-vs-scheduled", "%").unmeasured(SENT, reason).emit();
        Row::new("load-rps-core", "1/s").unmeasured(RPS, reason).emit();
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    on_cpu(first)?;
    let reply = "return 200 \"Hello, vHive\\n\";\n".to_owned();
    let server = nginx(dir.path(), &[String::new(), reply]).context("nginx")?;
    on_cpu(last)?;
    lateness(&server, first == last)?;
    rate_of_a_core(&server)
}

fn send(how: &str, address: &str, amount: &str, millis: &str) -> anyhow::Result<Measured> {
    Ok(serde_json::from_slice(&output(how, address, amount, millis)?)?)
}

/// What a process of this program prints that sends.
fn output(how: &str, address: &str, amount: &str, millis: &str) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["role", how, address, amount, millis]).stderr(Stdio::inherit());
    let output = command.output()?;
    if !output.status.success() {
        bail!("{how} load of {address} failed: {}", output.status);
    }
    Ok(output.stdout)
}

fn lateness(server: &Part, shared: bool) -> anyhow::Result<()> {
    send("open", &server.address, "1000", "500").context("warm-up")?;
    let (mut p50, mut p99, mut missing, mut planned) = (Vec::new(), Vec::new(), 0, 0);
    for _ in 0..ROUNDS {
        let run = send("open", &server.address, "1000", ROUND)?;
        p50.push(run.late_p50_us);
        p99.push(run.late_p99_us);
        missing += run.planned.abs_diff(run.rows);
        planned += run.planned;
    }
    let with = if shared { "; one CPU for all" } else { "" };
    let others = format!("machine's load average {}{with}", load_average()?);
    let note = |all: &[f64]| format!("{}; {others}", spread(all, "us"));
    Row::new("send-lateness-1k-p50", "us").value(LATE_P50, median(&p50)).note(note(&p50)).emit();
    Row::new("send-lateness-1k-p99", "us").value(LATE_P99, median(&p99)).note(note(&p99)).emit();
    let percent = missing as f64 / planned as f64 * 100.0;
    Row::new("sent-vs-scheduled", "%")
        .value(SENT, percent)
        .note(format!("{missing} of {planned}"))
        .emit();
    Ok(())
}

fn rate_of_a_core(server: &Part) -> anyhow::Result<()> {
    let wrk = wrk(&server.address)?;
    let closed = send("closed", &server.address, "64", "800")?.per_second;
    let (mut low, mut high) = (0.0, wrk.unwrap_or(closed) * 1.5);
    for _ in 0..HALVINGS {
        let rate = (low + high) / 2.0;
        let mut held = false;
        for _ in 0..TRIES {
            // Short: the kernel stops real-time processes after 0.95 s of each second.
            let run = send("open", &server.address, &format!("{rate}"), "600")?;
            held |= run.ok == run.planned && run.late as f64 <= run.planned as f64 * MOST_LATE;
        }
        *(if held { &mut low } else { &mut high }) = rate;
    }
    let row = Row::new("load-rps-core", "1/s");
    let note = format!("our own closed loop of 64 clients: {closed:.0}/s");
    match wrk {
        Some(wrk) => row.ratio(RPS, low, wrk).peer(format!("wrk {wrk:.0}/s")).note(note).emit(),
        None => row
            .unmeasured(RPS, format!("wrk is not installed; open loop {low:.0}/s, {note}"))
            .emit(),
    }
    Ok(())
}

/// Requests per second of `wrk` with one thread and 64 connections; none where it is missing.
fn wrk(address: &str) -> anyhow::Result<Option<f64>> {
    let url = format!("http://{address}/");
    let run = Command::new("wrk").args(["-t1", "-c64", "-d1s"]).arg(url).output();
    let Ok(output) = run else { return Ok(None) };
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    Ok(Some(rate.context("wrk tells no rate")?.trim().parse()?))
}

/// Requests that a median is taken of at the least.
const LEAST: f64 = 31.0;

fn latency_truth(first: usize, last: usize) -> anyhow::Result<()> {
    let (mut worst, mut errors, mut bares, mut sums) = (0.0_f64, vec![], vec![], vec![]);
    for millis in DELAYS {
        on_cpu(first)?;
        let server = role(&["delay", &millis.to_string()])?;
        on_cpu(last)?;
        // Few enough that no two are under way at a time.
        let rate = 400.0 / (millis as f64 + 3.0);
        let long = format!("{:.0}", (LEAST / rate * 1e3).max(1500.0));
        let run = send("busy", &server.address, &rate.to_string(), &long)?;
        let known = delay::taken_us(&server.address)?;
        let bare = output("bare", &server.address, &rate.to_string(), &long)?;
        let bare: f64 = String::from_utf8_lossy(&bare).trim().parse().context("bare client")?;
        let bare = (bare - delay::taken_us(&server.address)?) / 1e3;
        let error = (run.latency_p50_us - known) / 1e3;
        worst = if error.abs() > worst.abs() { error } else { worst };
        errors.push(format!("{millis} ms {error:+.3}"));
        bares.push(format!("{bare:+.3}"));
        sums.push(format!("{:+.3}", run.latency_p50_us / 1e3 - millis as f64));
    }
    Row::new("latency-truth", "ms")
        .value(TRUTH, worst.abs())
        .peer(format!("a client with nothing in it, never asleep: {}", bares.join(", ")))
        .note(format!(
            "recorded p50 less what the server has taken, until its reply was sent, by its own clock, loopback \
             included, `--busy`: {}; less what it was told to take: {}",
            errors.join(", "),
            sums.join(", ")
        ))
        .emit();
    Ok(())
}

fn load_average() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
