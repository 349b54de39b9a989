//! A recorded live run against its simulation: load on a node with the runtime `sim`, then the very
//! same requests in virtual time.
//!
//! The node's instances are counted while it serves, from the first request until the last instance
//! is gone; cold starts are those of its records. The simulator gets the requests as they were sent
//! and the start times that the node recorded, nothing else.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::node::{TestNode, ask};

/// Services; each gets every so many-th request.
const SERVICES: usize = 8;
/// Requests a second, and for how long.
const RATE: &str = "10";
const LENGTH: &str = "12s";
/// How often instances are counted.
const LOOK: Duration = Duration::from_millis(20);
/// Until the last instance is gone, at most.
const PATIENCE: Duration = Duration::from_secs(30);
const SERVICES_PATH: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";

/// How a run came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Requests.
    pub invocations: u64,
    /// Those that waited for a start.
    pub cold: u64,
    /// Instances, from the beginning of their start to their end, times seconds.
    pub instance_s: f64,
}

/// A run and its simulation.
#[derive(Clone, Copy, Debug, PartialEq)]
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
}

/// The configuration that a node needs for [`replay`]; its socket is in `dir`.
#[must_use]
pub fn config(dir: &Path) -> String {
    let socket = dir.join("api.sock");
    format!("[node.records]\nrecent = 4000\n[serving.api]\nsocket = {socket:?}\n")
}

/// Serves a short load under a policy (`kpa`, `fixed` or `histogram`) that keeps instances for so
/// long, and simulates it. Needs the image `dev.local/tiny:latest`.
///
/// # Errors
/// When anything fails on the way.
pub fn replay(node: &TestNode, dir: &Path, (kind, keep): (&str, &str)) -> anyhow::Result<Replayed> {
    let socket = dir.join("api.sock");
    let names: Vec<String> = (0..SERVICES).map(|nth| format!("{kind}-{nth}")).collect();
    for name in &names {
        let reply = ask(&socket, "POST", SERVICES_PATH, &service(name, (kind, keep)))?;
        ensure!(reply.starts_with("HTTP/1.1 201"), "not applied: {reply}");
    }
    let out = dir.join(format!("run-{kind}"));
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
    let instance_s = counted.map_err(|_| anyhow::anyhow!("the counter broke"))??;
    let live = recorded(&socket, dir, &names)?;
    for name in &names {
        ask(&socket, "DELETE", &format!("{SERVICES_PATH}/{name}"), "")?;
    }
    let live = Figures { instance_s, ..live };
    let simulated = simulated(node, dir, &out, (kind, keep))?;
    Ok(Replayed { live, simulated })
}

fn service(name: &str, (kind, keep): (&str, &str)) -> String {
    let mut annotations = json!({
        "vhive.dev/scaling-policy": kind,
        "vhive.dev/snapshot-policy": "off",
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

/// Instances times seconds, until there are none any more after `done`.
fn count(socket: &Path, done: &AtomicBool) -> anyhow::Result<f64> {
    let (_hold, ticks) = channel::<()>();
    let (mut sum, mut before) = (0.0, (Instant::now(), 0));
    let mut since_done: Option<Instant> = None;
    loop {
        let overview = get(socket, "/vhive/v1/overview")?;
        let now = Instant::now();
        let number = |name: &str| overview[name].as_u64().unwrap_or(0);
        let instances = number("instances_ready") + number("instances_starting");
        // What changed in between did so somewhere in between.
        sum += (now - before.0).as_secs_f64() * (before.1 + instances) as f64 / 2.0;
        before = (now, instances);
        if done.load(Ordering::Acquire) {
            let since = *since_done.get_or_insert(now);
            if instances == 0 {
                return Ok(sum);
            }
            ensure!(now - since < PATIENCE, "{instances} instances stay");
        }
        let _ = ticks.recv_timeout(LOOK);
    }
}

fn get(socket: &Path, path: &str) -> anyhow::Result<Value> {
    let reply = ask(socket, "GET", path, "")?;
    let body = reply.split_once("\r\n\r\n").context("no body")?.1;
    serde_json::from_str(body).with_context(|| format!("no JSON from {path}: {reply}"))
}

/// What the node has recorded; its records are left in `records.jsonl`.
fn recorded(socket: &Path, dir: &Path, names: &[String]) -> anyhow::Result<Figures> {
    let records = get(socket, "/vhive/v1/records?limit=4000")?;
    let of: Vec<&Value> = records
        .as_array()
        .into_iter()
        .flatten()
        .filter(|record| names.iter().any(|name| record["service"] == name.as_str()))
        .collect();
    let lines: String = of.iter().map(|record| format!("{record}\n")).collect();
    fs::write(dir.join("records.jsonl"), lines)?;
    let cold = of.iter().filter(|record| record["start"] == "boot").count() as u64;
    Ok(Figures { invocations: of.len() as u64, cold, instance_s: 0.0 })
}

fn simulated(
    node: &TestNode,
    dir: &Path,
    run: &Path,
    (kind, keep): (&str, &str),
) -> anyhow::Result<Figures> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let plan = dir.join("plan.toml");
    fs::write(&plan, "[function]\nsnapshot = \"off\"\nmemory = \"128MiB\"\n")?;
    let (plan, rows) = (text(&plan), text(&run.join("rows.jsonl")));
    let (starts, out) = (text(&dir.join("records.jsonl")), dir.join(format!("simulated-{kind}")));
    let policy = format!("{kind}:{keep}");
    let to = text(&out);
    let args = ["study", "simulate", &plan, "--trace", &rows, "--minutes", "1"];
    let more = ["--starts", &starts, "--policies", &policy, "--out", &to];
    node.ok(&[&args[..], &more].concat())?;
    let rows = fs::read_to_string(out.join("rows.jsonl"))?;
    let row: Value = serde_json::from_str(rows.lines().next().context("a row")?)?;
    let number = |name: &str| row[name].as_u64().with_context(|| format!("no {name}"));
    Ok(Figures {
        invocations: number("invocations")?,
        cold: number("cold")?,
        instance_s: row["instance_s"].as_f64().context("no instance_s")?,
    })
}
