//! Cold starts per second with `sim`, through gateway and pool: `sim-cold-starts`.
//!
//! Each round applies as many services as it sends requests, and each request is the first of its
//! service: host → revision → queue → decision to start → blocking start thread → sandbox →
//! readiness probe → lease → request → reply → record. `sim` itself takes no time, so what is
//! measured is everything around a sandbox. Client and node share the host's first two CPUs; the
//! records prove afterwards that every request was a cold start.
#![expect(clippy::print_stdout, reason = "the node tells its parent where it listens")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use vhive_api::RuntimeName;
use vhive_node::{Node, Runtimes};
use vhive_sandbox::sim::{Sim, SimConfig};
use vhive_serving::Serving;
use vhive_tests::bench::{Bound, Row, median, spread};

const ROUNDS: usize = 5;
/// Services, and so cold starts, per round.
const SERVICES: usize = 1000;
/// Connections that send at a time.
const CONNECTIONS: usize = 64;
const BOUND: Bound = Bound::AtLeast { must: 2500.0, goal: 10_000.0 };
const PATH: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("role") => node(Path::new(args.get(1).context("a directory")?)),
        _ => measure(),
    }
}

fn measure() -> anyhow::Result<()> {
    on_two_cpus()?;
    let dir = tempfile::tempdir()?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("role")
        .arg(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut gateway = String::new();
    BufReader::new(child.stdout.take().context("piped")?).read_line(&mut gateway)?;
    let figures = rounds(dir.path(), gateway.trim());
    // The node ends when its standard input does.
    drop(child.stdin.take());
    child.wait()?;
    let figures = figures?;
    Row::new("sim-cold-starts", "1/s")
        .value(BOUND, median(&figures))
        .note(format!(
            "{} ; {CONNECTIONS} connections, {SERVICES} services per round, every request a first",
            spread(&figures, "1/s")
        ))
        .emit();
    Ok(())
}

fn rounds(dir: &Path, gateway: &str) -> anyhow::Result<Vec<f64>> {
    ensure!(!gateway.is_empty(), "the node did not start");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut figures = Vec::new();
    for round in 0..ROUNDS {
        for n in 0..SERVICES {
            let reply = api(dir, "POST", PATH, &service(&name(round, n)))?;
            ensure!(reply.starts_with("HTTP/1.1 201"), "not applied: {reply}");
        }
        let seconds = runtime.block_on(fire(gateway, round))?;
        figures.push(SERVICES as f64 / seconds);
        check(dir, round)?;
        for n in 0..SERVICES {
            api(dir, "DELETE", &format!("{PATH}/{}", name(round, n)), "")?;
        }
    }
    Ok(figures)
}

/// Sends one request to each service; says how long all of them took.
async fn fire(gateway: &str, round: usize) -> anyhow::Result<f64> {
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(gateway).await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let next = Arc::new(AtomicUsize::new(0));
    let mut clients = tokio::task::JoinSet::new();
    let begun = Instant::now();
    for stream in streams {
        clients.spawn(client(stream, Arc::clone(&next), round));
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(begun.elapsed().as_secs_f64())
}

async fn client(mut stream: TcpStream, next: Arc<AtomicUsize>, round: usize) -> anyhow::Result<()> {
    let mut reply = Vec::with_capacity(4096);
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= SERVICES {
            return Ok(());
        }
        let name = name(round, n);
        let request = format!("GET / HTTP/1.1\r\nHost: {name}.default.example.com\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        reply.clear();
        loop {
            if stream.read_buf(&mut reply).await? == 0 {
                bail!("the gateway hung up");
            }
            if is_whole(&reply) {
                break;
            }
        }
        if !reply.starts_with(b"HTTP/1.1 200") {
            bail!("{name}: {}", String::from_utf8_lossy(&reply));
        }
    }
}

/// Whether head and body have come; `sim` replies with a length.
fn is_whole(reply: &[u8]) -> bool {
    let Some(end) = reply.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&reply[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    reply.len() >= end + 4 + length
}

/// Every request of the round was the first of its service.
fn check(dir: &Path, round: usize) -> anyhow::Result<()> {
    let reply = api(dir, "GET", &format!("/vhive/v1/records?limit={SERVICES}"), "")?;
    let body = reply.split_once("\r\n\r\n").context("no body")?.1;
    let records: Vec<vhive_api::InvocationRecord> = serde_json::from_str(body)?;
    ensure!(records.len() == SERVICES, "{} records in round {round}", records.len());
    let cold = |record: &&vhive_api::InvocationRecord| {
        record.start == Some(vhive_api::StartKind::Boot) && record.revision.ends_with("-00001")
    };
    let cold = records.iter().filter(cold).count();
    ensure!(cold == SERVICES, "only {cold} of {SERVICES} requests were cold starts");
    Ok(())
}

fn name(round: usize, n: usize) -> String {
    format!("cold-{round}-{n}")
}

fn service(name: &str) -> String {
    serde_json::json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": {"spec": {
            "containerConcurrency": 1,
            "containers": [{"image": "dev.local/cold"}],
        }}},
    })
    .to_string()
}

fn api(dir: &Path, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
    Ok(vhive_tests::node::ask(&dir.join("api.sock"), method, path, body)?)
}

/// Puts this process, and with it the node, on two CPUs.
fn on_two_cpus() -> anyhow::Result<()> {
    let may = rustix::thread::sched_getaffinity(None)?;
    let mut two = rustix::thread::CpuSet::new();
    for cpu in (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| may.is_set(*cpu)).take(2) {
        two.set(cpu);
    }
    rustix::thread::sched_setaffinity(None, &two)?;
    Ok(())
}

/// The node; serves until its standard input ends.
fn node(dir: &Path) -> anyhow::Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    let mut config = vhive_node::Config::below(dir);
    config.max_instances = 100_000;
    config.max_memory = Some(vhive_api::Bytes(1 << 50));
    config.records.recent = u32::try_from(SERVICES)?;
    let mut serving = vhive_serving::Config::default();
    serving.gateway.listen.set_port(0);
    serving.api.listen.set_port(0);
    serving.api.socket = Some(dir.join("api.sock"));
    serving.defaults.runtime = RuntimeName::Sim;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let images = vhive_image::ImageStore::open(dir.join("images"))?;
        let runtimes = Runtimes::new().with(Sim::new(SimConfig::default()));
        let node = Node::open(config, runtimes, images, None).await?;
        let door = Serving::run(serving, node.clone()).await?;
        println!("{}", door.addresses().gateway);
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        let deadline = vhive_sandbox::Deadline::after(std::time::Duration::from_secs(10));
        door.shutdown(deadline).await;
        node.shutdown(deadline).await?;
        Ok(())
    })
}
