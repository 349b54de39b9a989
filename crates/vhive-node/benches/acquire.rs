//! What the pool itself costs: cold starts on `sim` that take no time, and warm slots.
//!
//! `cargo bench -p vhive-node`; prints wall time and CPU time of this process.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark reports and may stop")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use vhive_api::{Bytes, Digest, Revision, RevisionKey, RuntimeName};
use vhive_image::ImageStore;
use vhive_node::{Config, Node, Runtimes};
use vhive_sandbox::sim::{Sim, SimConfig};

const WORKERS: usize = 16;
const COLD: usize = 20_000;
const WARM: usize = 1_000_000;

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let runtimes = Runtimes::new().with(Sim::new(SimConfig::default()));
        let images = ImageStore::open(dir.path().join("images")).unwrap();
        let node = Node::open(Config::below(dir.path()), runtimes, images, None).await.unwrap();
        let key = RevisionKey::new("default", "bench");
        node.register(Arc::new(revision(&key)));
        cold(&node, &key).await;
        warm(&node, &key).await;
    });
}

/// Every acquisition needs a start of its own, because each lease is returned as broken.
async fn cold(node: &Node, key: &RevisionKey) {
    let (began, cpu) = (Instant::now(), cpu_time());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..WORKERS {
        let (node, key) = (node.clone(), key.clone());
        tasks.spawn(async move {
            for _ in 0..COLD / WORKERS {
                let lease = node.acquire(&key).await.unwrap();
                assert!(lease.start().is_some());
                lease.failed();
            }
        });
    }
    tasks.join_all().await;
    say("cold start", COLD, began.elapsed(), cpu_time() - cpu);
}

async fn warm(node: &Node, key: &RevisionKey) {
    drop(node.acquire(key).await.unwrap());
    let (began, cpu) = (Instant::now(), cpu_time());
    for _ in 0..WARM {
        drop(node.acquire(key).await.unwrap());
    }
    say("warm slot", WARM, began.elapsed(), cpu_time() - cpu);
}

fn say(what: &str, count: usize, wall: Duration, cpu: Duration) {
    let each = |span: Duration| span.as_secs_f64() * 1e6 / count as f64;
    let rate = count as f64 / wall.as_secs_f64();
    println!("{what}: {rate:.0}/s, {:.2} us wall, {:.2} us CPU each", each(wall), each(cpu));
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap()
}

fn revision(key: &RevisionKey) -> Revision {
    let digest = Digest::of(b"");
    let revision = Revision::new(key.clone(), "dev.local/bench:latest", digest, RuntimeName::Sim);
    Revision { memory: Bytes::mib(1), container_concurrency: 1, ..revision }
}
