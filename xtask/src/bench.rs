//! `make bench`: runs the benchmarks, prints one table, merges rows into `summary.json`.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};
use vhive_tests::bench::{MARK, Row};

use crate::shell::{self, cargo};

/// Every benchmark program and the rows that it prints.
const BENCHES: &[(&str, &[&str])] = &[
    ("gateway", &["gateway-p50-c1", "gateway-rps-c64", "gateway-cpu-vs-hop"]),
    ("sim_cold_starts", &["sim-cold-starts"]),
    (
        "serving",
        &["watch-fanout", "zero-to-start", "restart-1k", "node-rss", "service-rss", "services-10k"],
    ),
    ("simulate", &["sim-invocations", "sim-1k-nodes", "sim-1k-nodes-rss", "sim-vs-live"]),
    ("boot", &["boot-overhead", "boot-reliability"]),
    ("network_slot", &["network-slot-pop"]),
    ("image_rootfs", &["image-rootfs"]),
    ("firecracker_load", &["firecracker-load"]),
    (
        "load",
        &[
            "send-lateness-1k-p50",
            "send-lateness-1k-p99",
            "load-rps-core",
            "sent-vs-scheduled",
            "latency-truth",
        ],
    ),
    ("load_trace", &["trace-arrivals", "loader-rss-10k"]),
    (
        "containers",
        &[
            "runc-overhead",
            "runsc-overhead",
            "gvisor-restore",
            "density-hello-qemu",
            "density-hello-firecracker",
            "density-hello-runsc",
            "density-hello-runc",
            "density-hello-crun",
        ],
    ),
    ("prefetch", &["prefetch-8m", "prefetch-24m", "prefetch-99m", "prefetch-vs-reap"]),
    (
        "cold_start",
        &[
            "restore-vmm",
            "restore-x16",
            "faults-same",
            "faults-other",
            "record-cost",
            "reap-memory-speedup",
            "reap-speedup",
            "snapshot-vs-boot",
        ],
    ),
];

/// Benchmarks that drive the product's binary, which is built first.
const DRIVES_BINARY: &[&str] = &["cold_start", "containers", "load_trace", "serving", "simulate"];

pub(crate) fn run(substring: &str) -> anyhow::Result<()> {
    let chosen: Vec<&(&str, &[&str])> = BENCHES
        .iter()
        .filter(|(name, ids)| {
            name.contains(substring) || ids.iter().any(|id| id.contains(substring))
        })
        .collect();
    if chosen.is_empty() {
        bail!("no benchmark and no row contains {substring:?}");
    }
    let git = git_revision();
    let mut rows = Vec::new();
    for (name, ids) in chosen {
        println!("bench: {name} ({})", ids.join(", "));
        let found = measure(name, substring)?;
        for id in *ids {
            let wanted = name.contains(substring) || id.contains(substring);
            if wanted && !found.iter().any(|row| row.id == *id) {
                println!("bench: {name} printed no row {id}");
            }
        }
        rows.extend(found);
    }
    print_table(&rows);
    merge(&rows, &git)
}

/// Builds and runs one benchmark; its other output goes to the terminal.
fn measure(name: &str, substring: &str) -> anyhow::Result<Vec<Row>> {
    if DRIVES_BINARY.contains(&name) {
        shell::run(&mut cargo(&["build", "--quiet", "--release", "--package", "vhive"]))?;
    }
    let mut command = cargo(&["bench", "--quiet", "--package", "vhive-tests", "--bench", name]);
    command.env("VHIVE_BENCH", substring).stdin(Stdio::null()).stdout(Stdio::piped());
    let shown = shell::shown(&command);
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    let stdout = child.stdout.take().context("the benchmark's output was piped")?;
    let mut rows = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        match line.strip_prefix(MARK) {
            Some(json) => rows.push(serde_json::from_str(json).context("a row is not understood")?),
            None => println!("  {line}"),
        }
    }
    let status = child.wait()?;
    if !status.success() {
        println!("bench: {name} broke off ({status})");
    }
    Ok(rows)
}

fn print_table(rows: &[Row]) {
    println!(
        "\n{:<20} {:>12} {:<6} {:>8} {:>9} {:>9}  ok",
        "ID", "VALUE", "UNIT", "RATIO", "MUST", "GOAL"
    );
    for row in rows {
        let figure = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.3}"));
        let sign = if row.bound == "at_least" { ">=" } else { "<=" };
        let ok = row.ok.map_or("-", |ok| if ok { "yes" } else { "NO" });
        println!(
            "{:<20} {:>12} {:<6} {:>8} {:>9} {:>9}  {ok}",
            row.id,
            figure(row.value),
            row.unit,
            figure(row.ratio),
            format!("{sign} {}", row.must),
            format!("{sign} {}", row.goal),
        );
        for (label, text) in [("peer", &row.peer), ("note", &row.reason)] {
            if let Some(text) = text {
                println!("{:<20}   {label}: {text}", "");
            }
        }
    }
}

/// Replaces rows of the same id in `target/bench/summary.json` and keeps the others.
fn merge(rows: &[Row], git: &str) -> anyhow::Result<()> {
    let dir = shell::root().join("target/bench");
    fs::create_dir_all(&dir)?;
    let path = dir.join("summary.json");
    let old: Vec<Map<String, Value>> = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is damaged; delete it", path.display()))?,
        Err(_) => Vec::new(),
    };
    let at = jiff::Timestamp::now().to_string();
    let fresh = |id: &Value| rows.iter().any(|row| *id == row.id.as_str());
    let mut all: Vec<Value> =
        old.into_iter().filter(|row| !fresh(&row["id"])).map(Value::Object).collect();
    for row in rows {
        let mut value = serde_json::to_value(row)?;
        value["git"] = json!(git);
        value["at"] = json!(at);
        all.push(value);
    }
    let draft = dir.join("summary.json.draft");
    fs::write(&draft, serde_json::to_vec_pretty(&all)?)?;
    fs::rename(&draft, &path)?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

fn git_revision() -> String {
    let git = |args: &[&str]| {
        shell::output(Command::new("git").arg("-C").arg(shell::root()).args(args)).ok()
    };
    let Some(head) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let clean = git(&["status", "--porcelain"]).is_some_and(|changes| changes.trim().is_empty());
    format!("{}{}", head.trim(), if clean { "" } else { "-dirty" })
}
