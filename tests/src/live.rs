//! A recorded live run against its simulation: load on a node with the runtime `sim`, then the very
//! same requests in virtual time.
//!
//! The node's instances are counted while it serves, from the first request until the last instance
//! is gone; cold starts are those of its records. The simulator gets the requests as they were sent,
//! the start times that the node recorded and the number of its starts' turns, nothing else. Sums are
//! compared, and instances second by second.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::bench::median;
use crate::node::{TestNode, ask};

/// Services; each gets every so many-th request.
const SERVICES: usize = 16;
/// Requests a second, and for how long.
const RATE: &str = "20";
const LENGTH: &str = "20s";
/// How often instances are counted.
const LOOK: Duration = Duration::from_millis(20);
/// Until the last instance is gone, at most.
const PATIENCE: Duration = Duration::from_secs(30);
const SERVICES_PATH: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";

/// What services of a run are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Of scaling: `kpa`, `fixed` or `histogram`.
    pub kind: &'static str,
    /// For how long it keeps instances.
    pub keep: &'static str,
    /// Of snapshots: `off`, `vanilla`, `lazy` or `reap`.
    pub snapshot: &'static str,
}

/// How a run came out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Requests.
    pub invocations: u64,
    /// Those that waited for a start.
    pub cold: u64,
    /// The same by how the instance started.
    pub by_start: BTreeMap<String, u64>,
    /// Instances, from the beginning of their start to their end, times seconds.
    pub instance_s: f64,
    /// Time that starts waited for their turn, of those that a request waited for in the live run and of
    /// all in the simulation.
    pub turn_wait_s: f64,
    /// Instances on the average of each second.
    pub seconds: Vec<f64>,
}

/// A run and its simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct Replayed {
    /// On the node.
    pub live: Figures,
    /// In virtual time.
    pub simulated: Figures,
}

impl Replayed {
    /// The larger of the two differences, of instance-seconds and of cold starts, in per cent of
    /// the live run's.
    #[must_use]
    pub fn worse(&self) -> f64 {
        let off = |live: f64, simulated: f64| 100.0 * (simulated - live).abs() / live;
        let cold = off(self.live.cold as f64, self.simulated.cold as f64);
        cold.max(off(self.live.instance_s, self.simulated.instance_s))
    }

    /// How far the number of instances is off in a second, on the average, in per cent of the live run's
    /// average.
    #[must_use]
    pub fn off_over_time(&self) -> f64 {
        let (live, simulated) = (&self.live.seconds, &self.simulated.seconds);
        let at = |all: &[f64], second: usize| all.get(second).copied().unwrap_or(0.0);
        let length = live.len().max(simulated.len());
        let off: f64 = (0..length).map(|s| (at(live, s) - at(simulated, s)).abs()).sum();
        100.0 * off / live.iter().sum::<f64>()
    }
}

/// How many starts of the node are under way at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turns {
    /// The node's default: one per CPU, at least 2, so that many starts wait.
    Default,
    /// One for each service: hardly any start waits.
    Plenty,
}

impl Turns {
    /// For notes.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Default => "by default",
            Self::Plenty => "enough",
        }
    }
}

/// The configuration that a node needs for [`replay`]; its socket is in `dir`. Starts from snapshots take
/// long enough to be told from starts at once.
#[must_use]
pub fn config(dir: &Path, turns: Turns) -> String {
    let socket = dir.join("api.sock");
    let threads = match turns {
        Turns::Default => 0,
        Turns::Plenty => SERVICES,
    };
    format!(
        "[node]\nstart_threads = {threads}\n[node.records]\nrecent = 4000\n[serving.api]\nsocket = {socket:?}\n\
         [sim.snapshot]\nrestore_file = \"200ms\"\nrestore_lazy = \"200ms\"\n\
         restore_record = \"250ms\"\nrestore_prefetch = \"80ms\"\n"
    )
}

/// Serves a short load under a policy, and simulates it. Needs the image `dev.local/tiny:latest`.
///
/// # Errors
/// When anything fails on the way.
pub fn replay(node: &TestNode, dir: &Path, policy: Policy) -> anyhow::Result<Replayed> {
    let socket = dir.join("api.sock");
    let Policy { kind, snapshot, .. } = policy;
    let out = (1..)
        .map(|time| dir.join(format!("run-{kind}-{snapshot}-{time}")))
        .find(|path| !path.exists())
        .context("a name that is free")?;
    let label = out.file_name().context("it was named above")?.to_string_lossy().into_owned();
    let names: Vec<String> = (0..SERVICES).map(|nth| format!("{label}-{nth}")).collect();
    for name in &names {
        let reply = ask(&socket, "POST", SERVICES_PATH, &service(name, policy))?;
        ensure!(reply.starts_with("HTTP/1.1 201"), "not applied: {reply}");
    }
    let endpoints = dir.join("endpoints.json");
    let list: Vec<Value> = names
        .iter()
        .map(|name| {
            json!({"hostname": format!("{name}.default.example.com"),
                   "address": node.gateway, "protocol": "http1"})
        })
        .collect();
    fs::write(&endpoints, Value::from(list).to_string())?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (endpoints, run) = (text(&endpoints), text(&out));
    let args = ["load", "rps", "--endpoints", &endpoints, "--rps", RATE, "--time", LENGTH];
    let more = ["--arrivals", "poisson", "--protocol", "http1", "--records", "--out", &run];
    let args = [&args[..], &more].concat();
    let done = AtomicBool::new(false);
    let (sent, counted) = std::thread::scope(|scope| {
        let counter = scope.spawn(|| count(&socket, &done));
        let sent = node.ok(&args);
        done.store(true, Ordering::Release);
        (sent, counter.join())
    });
    sent?;
    let counted = counted.map_err(|_| anyhow::anyhow!("the counter broke"))??;
    let (recorded, began) = recorded(&socket, dir, (&names, &out))?;
    for name in &names {
        ask(&socket, "DELETE", &format!("{SERVICES_PATH}/{name}"), "")?;
    }
    let seconds = seconds(&counted, began);
    let live = Figures { instance_s: seconds.iter().sum(), seconds, ..recorded };
    let simulated = simulated(node, dir, &out, policy)?;
    Ok(Replayed { live, simulated })
}

fn service(name: &str, Policy { kind, keep, snapshot }: Policy) -> String {
    let mut annotations = json!({
        "vhive.dev/scaling-policy": kind,
        "vhive.dev/snapshot-policy": snapshot,
    });
    let key = if kind == "kpa" { "autoscaling.knative.dev/window" } else { "vhive.dev/keep-alive" };
    annotations[key] = keep.into();
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": annotations},
            "spec": {
                "containerConcurrency": 1,
                "runtimeClassName": "sim",
                "containers": [{
                    "image": "dev.local/tiny:latest",
                    "env": [
                        {"name": "VHIVE_SIM_BOOT_MS", "value": "300"},
                        {"name": "VHIVE_SIM_REPLY_MS", "value": "150"},
                    ],
                }],
            },
        }},
    })
    .to_string()
}

/// Instances between two looks: when the stretch began and ended, in seconds since 1970, and how many
/// there were on the average.
type Stretch = (f64, f64, f64);

/// Counts instances until there are none any more after `done`.
fn count(socket: &Path, done: &AtomicBool) -> anyhow::Result<Vec<Stretch>> {
    let (_hold, ticks) = channel::<()>();
    let begun = Instant::now();
    let origin = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let (mut all, mut before) = (Vec::new(), (origin, 0));
    let mut since_done: Option<Instant> = None;
    loop {
        let asked = begun.elapsed();
        let overview = get(socket, "/vhive/v1/overview")?;
        // It was counted somewhere between question and answer.
        let now = origin + (asked + begun.elapsed()).as_secs_f64() / 2.0;
        let number = |name: &str| overview[name].as_u64().unwrap_or(0);
        let instances = number("instances_ready") + number("instances_starting");
        // What changed in between did so somewhere in between.
        all.push((before.0, now, (before.1 + instances) as f64 / 2.0));
        before = (now, instances);
        if done.load(Ordering::Acquire) {
            let since = *since_done.get_or_insert_with(Instant::now);
            if instances == 0 {
                return Ok(all);
            }
            ensure!(since.elapsed() < PATIENCE, "{instances} instances stay");
        }
        let _ = ticks.recv_timeout(LOOK);
    }
}

/// Instances on the average of each second after a moment.
fn seconds(stretches: &[Stretch], began: f64) -> Vec<f64> {
    let mut all = Vec::new();
    for (from, to, instances) in stretches {
        let (from, to) = (from - began, to - began);
        for second in 0..3600_u16 {
            let second_from = f64::from(second);
            if second_from >= to {
                break;
            }
            let within = (to.min(second_from + 1.0) - from.max(second_from)).max(0.0);
            let at = usize::from(second);
            if within * instances > 0.0 {
                all.resize(all.len().max(at + 1), 0.0);
                all[at] += within * instances;
            }
        }
    }
    all
}

fn get(socket: &Path, path: &str) -> anyhow::Result<Value> {
    let reply = ask(socket, "GET", path, "")?;
    let body = reply.split_once("\r\n\r\n").context("no body")?.1;
    serde_json::from_str(body).with_context(|| format!("no JSON from {path}: {reply}"))
}

/// What the node has recorded, and when the run began, in seconds since 1970. The records are left in
/// `records.jsonl`.
fn recorded(
    socket: &Path,
    dir: &Path,
    (names, run): (&[String], &Path),
) -> anyhow::Result<(Figures, f64)> {
    let records = get(socket, "/vhive/v1/records?limit=4000")?;
    let of: Vec<&Value> = records
        .as_array()
        .into_iter()
        .flatten()
        .filter(|record| names.iter().any(|name| record["service"] == name.as_str()))
        .collect();
    let lines: String = of.iter().map(|record| format!("{record}\n")).collect();
    fs::write(dir.join("records.jsonl"), lines)?;
    let mut by_start: BTreeMap<String, u64> = BTreeMap::new();
    for start in of.iter().filter_map(|record| record["start"].as_str()) {
        *by_start.entry(start.to_owned()).or_default() += 1;
    }
    by_start.remove("warm");
    let of_start = of.iter().filter(|record| record["start"] != "warm");
    let waited_us: f64 = of_start
        .filter_map(|record| {
            let phases = record["phases"].as_array()?;
            phases.iter().find(|span| span["phase"] == "turn")?["length_us"].as_f64()
        })
        .sum();
    let figures = Figures {
        turn_wait_s: waited_us / 1e6,
        invocations: of.len() as u64,
        cold: by_start.values().sum(),
        by_start,
        ..Figures::default()
    };
    let at: BTreeMap<&str, f64> = of
        .iter()
        .filter_map(|record| {
            let at: jiff::Timestamp = record["at"].as_str()?.parse().ok()?;
            Some((record["id"].as_str()?, at.as_duration().as_secs_f64()))
        })
        .collect();
    let rows = fs::read_to_string(run.join("rows.jsonl"))?;
    let began = rows.lines().filter_map(|line| {
        let row: Value = serde_json::from_str(line).ok()?;
        let sent = row["intended_us"].as_f64()? + row["late_us"].as_f64()?;
        Some(at.get(row["id"].as_str()?)? - sent / 1e6)
    });
    Ok((figures, median(&began.collect::<Vec<f64>>())))
}

fn simulated(
    node: &TestNode,
    dir: &Path,
    run: &Path,
    Policy { kind, keep, snapshot }: Policy,
) -> anyhow::Result<Figures> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let plan = dir.join("plan.toml");
    fs::write(&plan, format!("[function]\nsnapshot = \"{snapshot}\"\nmemory = \"128MiB\"\n"))?;
    let (plan, rows) = (text(&plan), text(&run.join("rows.jsonl")));
    let starts = text(&dir.join("records.jsonl"));
    let out = run.join("simulated");
    let policy = format!("{kind}:{keep}");
    let to = text(&out);
    let of_node = get(&dir.join("api.sock"), "/vhive/v1/node")?;
    let threads = of_node["start_threads"].as_u64().context("no start_threads")?.to_string();
    let args = ["study", "simulate", &plan, "--trace", &rows, "--minutes", "1"];
    let more = ["--starts", &starts, "--policies", &policy, "--out", &to];
    let turns = ["--start-threads", &threads];
    node.ok(&[&args[..], &more, &turns].concat())?;
    let rows = fs::read_to_string(out.join("rows.jsonl"))?;
    let row: Value = serde_json::from_str(rows.lines().next().context("a row")?)?;
    let number = |name: &str| row[name].as_u64().with_context(|| format!("no {name}"));
    let mut seconds: Vec<f64> = serde_json::from_value(row["seconds"].clone())?;
    while seconds.last() == Some(&0.0) {
        seconds.pop();
    }
    Ok(Figures {
        invocations: number("invocations")?,
        cold: number("cold")?,
        by_start: serde_json::from_value::<Vec<(String, u64)>>(row["cold_by_start"].clone())?
            .into_iter()
            .collect(),
        instance_s: row["instance_s"].as_f64().context("no instance_s")?,
        turn_wait_s: row["turn_wait_s"].as_f64().unwrap_or(0.0),
        seconds,
    })
}
