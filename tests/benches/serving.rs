//! What many services, a restart and many watchers cost a node: `services-10k`, `zero-to-start`, `restart-1k`, `node-rss`,
//! `service-rss`, `watch-fanout`.
//!
//! The product's binary with `sim`, whose instances answer at once and take nothing, so that what is measured is the
//! node's own. Services are made through the API, one durable change each. One thread sends, one request at a time.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use vhive_tests::bench::{Bound, Row, median, spread};
use vhive_tests::node::{TestNode, ask};

const SERVICES: usize = 10_000;
const ACTIVE: usize = 100;
const RESTARTED: usize = 1_000;
const WATCHERS: usize = 1_000;
/// Requests in a block, and blocks of each kind, interleaved.
const BLOCK: usize = 2_000;
const BLOCKS: usize = 7;
const PATH: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";
const CONFIG: &str = "[node]\nmax_instances = 5000\nmax_memory = \"4TiB\"\n\
                      [node.records]\nrecent = 5000\n\
                      [serving.defaults]\nruntime = \"sim\"\nmemory = \"1MiB\"\n\
                      [serving.autoscale]\nstable_window = \"1h\"\n";

fn main() -> anyhow::Result<()> {
    let wanted = std::env::var("VHIVE_BENCH").unwrap_or_default();
    let is_wanted =
        |id: &str| wanted.is_empty() || id.contains(&wanted) || "serving".contains(&wanted);
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    if is_wanted("watch-fanout") {
        watch_fanout()?;
    }
    if is_wanted("restart-1k") || is_wanted("zero-to-start") {
        zero_and_restart()?;
    }
    if ["services-10k", "node-rss", "service-rss"].iter().any(|id| is_wanted(id)) {
        many_services()?;
    }
    Ok(())
}

/// A node in a directory of its own.
struct Ground {
    node: TestNode,
    dir: tempfile::TempDir,
    socket: PathBuf,
}

impl Ground {
    fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let node = TestNode::start(dir.path(), &config(dir.path()))?;
        let socket = dir.path().join("api.sock");
        Ok(Self { node, dir, socket })
    }

    fn make(&self, name: &str) -> anyhow::Result<()> {
        let document = json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {"name": name, "labels": {"app": "bench"}},
            "spec": {"template": {"spec": {"containers": [{
                "image": "dev.local/bench",
                "env": [{"name": "SIZE", "value": "small"}, {"name": "WHERE", "value": "here"}],
            }]}}},
        });
        let reply = self.api("POST", PATH, &document.to_string())?;
        ensure!(reply.starts_with("HTTP/1.1 201"), "not made: {reply}");
        Ok(())
    }

    fn api(&self, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
        Ok(ask(&self.socket, method, path, body)?)
    }

    fn json(&self, path: &str) -> anyhow::Result<Value> {
        let reply = self.api("GET", path, "")?;
        let (head, body) = reply.split_once("\r\n\r\n").context("no body")?;
        if !head.to_ascii_lowercase().contains("transfer-encoding") {
            return Ok(serde_json::from_str(body)?);
        }
        bail!("{path}: chunks were not expected");
    }

    /// Resident memory of the node's process, in bytes.
    fn rss(&self) -> anyhow::Result<f64> {
        let pid = self.json("/vhive/v1/node")?["process"].as_u64().context("no process")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024.0)
    }
}

fn config(dir: &Path) -> String {
    format!("{CONFIG}[serving.api]\nsocket = {:?}\n", dir.join("api.sock"))
}

/// A kept connection that sends one GET at a time.
struct Caller {
    stream: BufReader<TcpStream>,
}

impl Caller {
    fn new(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The time from the request's first byte to the reply's last.
    fn get(&mut self, host: &str) -> anyhow::Result<Duration> {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let begun = Instant::now();
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut length, mut line) = (0, String::new());
        let mut good = None;
        loop {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "it closed");
            good.get_or_insert_with(|| line.starts_with("HTTP/1.1 200"));
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        ensure!(good == Some(true), "{host}: {}", String::from_utf8_lossy(&body));
        Ok(begun.elapsed())
    }

    /// The median over a block, in microseconds.
    fn block(&mut self, hosts: &[String]) -> anyhow::Result<f64> {
        let times = hosts.iter().cycle().take(BLOCK).map(|host| self.get(host));
        let times: anyhow::Result<Vec<f64>> =
            times.map(|time| Ok(time?.as_secs_f64() * 1e6)).collect();
        Ok(median(&times?))
    }
}

fn host(name: &str) -> String {
    format!("{name}.default.example.com")
}

/// `services-10k`, `node-rss`, `service-rss`.
fn many_services() -> anyhow::Result<()> {
    let (few, many) = (Ground::new()?, Ground::new()?);
    let idle = many.rss()?;
    Row::new("node-rss", "MB")
        .value(Bound::AtMost { must: 40.0, goal: 20.0 }, idle / 1e6)
        .note("a node without services, after its start")
        .emit();
    few.make("s0")?;
    for n in 0..SERVICES {
        many.make(&format!("s{n}"))?;
    }
    let full = many.rss()?;
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let each = (full - idle) / SERVICES as f64;
    Row::new("service-rss", "kB")
        .value(Bound::AtMost { must: 20.0, goal: 5.0 }, each / 1e3)
        .note(format!("{SERVICES} services, {:.1} MB more than without", (full - idle) / 1e6))
        .emit();

    let one = [host("s0")];
    // Spread over the whole table.
    let hosts: Vec<String> =
        (0..ACTIVE).map(|n| host(&format!("s{}", n * (SERVICES / ACTIVE)))).collect();
    let (mut to_few, mut to_many) =
        (Caller::new(&few.node.gateway)?, Caller::new(&many.node.gateway)?);
    to_few.get(&one[0])?;
    for host in &hosts {
        to_many.get(host)?;
    }
    let endpoint = few.json("/vhive/v1/namespaces/default/services/s0/describe")?;
    let endpoint = endpoint["instances"][0]["endpoint"].as_str().context("no endpoint")?.to_owned();
    let mut direct = Caller::new(&endpoint)?;
    let (mut bare, mut with_one, mut with_all) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..BLOCKS {
        bare.push(direct.block(&one)?);
        with_one.push(to_few.block(&one)?);
        with_all.push(to_many.block(&hosts)?);
    }
    let added = |through: &[f64]| median(through) - median(&bare);
    Row::new("services-10k", "us")
        .ratio(Bound::AtMost { must: 1.1, goal: 1.0 }, added(&with_all), added(&with_one))
        .peer(format!("one service, {:.1} us added", added(&with_one)))
        .note(format!(
            "{SERVICES} services, {ACTIVE} active; whole: {} ; with one {} ; without the gateway {}",
            spread(&with_all, "us"),
            spread(&with_one, "us"),
            spread(&bare, "us")
        ))
        .emit();
    Ok(())
}

/// `zero-to-start` and `restart-1k`.
fn zero_and_restart() -> anyhow::Result<()> {
    let ground = Ground::new()?;
    for n in 0..RESTARTED {
        ground.make(&format!("s{n}"))?;
    }
    let mut caller = Caller::new(&ground.node.gateway)?;
    for n in 0..RESTARTED {
        caller.get(&host(&format!("s{n}")))?;
    }
    let records = ground.json(&format!("/vhive/v1/records?limit={RESTARTED}"))?;
    let begins = records.as_array().context("a list")?.iter().filter_map(|record| {
        let phases = record["phases"].as_array()?;
        let start = phases.iter().find(|phase| phase["phase"] == "start")?;
        start["begin_us"].as_f64()
    });
    let mut begins: Vec<f64> = begins.collect();
    ensure!(begins.len() == RESTARTED, "{} cold starts", begins.len());
    begins.sort_by(f64::total_cmp);
    Row::new("zero-to-start", "us")
        .value(Bound::AtMost { must: 1000.0, goal: 200.0 }, begins[RESTARTED * 99 / 100])
        .note(format!(
            "p99 of {RESTARTED}, each the first request to its service; {}",
            spread(&begins, "us")
        ))
        .emit();

    let Ground { node, dir, .. } = ground;
    node.kill()?;
    let mut times = Vec::new();
    for n in 0..5 {
        let begun = Instant::now();
        let node = TestNode::start(dir.path(), &config(dir.path()))?;
        Caller::new(&node.gateway)?.get(&host(&format!("s{}", n * 100 + 99)))?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        node.kill()?;
    }
    Row::new("restart-1k", "ms")
        .value(Bound::AtMost { must: 1000.0, goal: 200.0 }, median(&times))
        .note(format!(
            "kill -9, then from the spawn to the reply of a function; {}",
            spread(&times, "ms")
        ))
        .emit();
    // What the last one left on the host.
    drop(TestNode::start(dir.path(), &config(dir.path()))?);
    Ok(())
}

/// `watch-fanout`.
fn watch_fanout() -> anyhow::Result<()> {
    let ground = Ground::new()?;
    ground.make("watched")?;
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let mut stream = UnixStream::connect(&ground.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(stream, "GET {PATH}?watch=true HTTP/1.0\r\n\r\n")?;
        let mut stream = BufReader::new(stream);
        // The head, and what there is.
        until(&mut stream, "\"ADDED\"")?;
        watchers.push(stream);
    }
    let mut times = Vec::new();
    for round in 0..10 {
        let patch = json!({"metadata": {"labels": {"round": round.to_string()}}}).to_string();
        let mut changer = UnixStream::connect(&ground.socket)?;
        write!(
            changer,
            "PATCH {PATH}/watched HTTP/1.1\r\nHost: node\r\nContent-Type: application/merge-patch+json\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            patch.len()
        )?;
        let begun = Instant::now();
        changer.write_all(patch.as_bytes())?;
        for watcher in &mut watchers {
            until(watcher, "\"MODIFIED\"")?;
        }
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        changer.read_to_end(&mut Vec::new())?;
    }
    Row::new("watch-fanout", "ms")
        .value(Bound::AtMost { must: 200.0, goal: 50.0 }, median(&times))
        .note(format!(
            "from a patch to the last of {WATCHERS} watchers, the patch's own write to disk included; {}",
            spread(&times, "ms")
        ))
        .emit();
    Ok(())
}

fn until(stream: &mut BufReader<UnixStream>, word: &str) -> anyhow::Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        ensure!(stream.read_line(&mut line)? > 0, "the watch ended");
        if line.contains(word) {
            return Ok(());
        }
    }
}
