//! A runtime by hand: what a node asks of whatever isolates a function. Here a sandbox is a thread of this
//! program that greets whoever connects, and the pool does with it what it does with a microVM: a start when
//! nobody is there, the same one again while it lives, and its end with the node. Prints who served what:
//! `cargo run --package vhive --example custom_runtime`
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vhive_api::{Digest, Revision, RevisionKey, RuntimeName, SandboxId};
use vhive_node::{Config, Node, Runtimes};
use vhive_sandbox::{BootError, Deadline, HostLacks, Milestone, Runtime, Sandbox, SandboxSpec};

/// The runtime. It stands in the place of `sim`, whose sandboxes need neither image nor network slot.
#[derive(Debug)]
struct Threads;

impl Runtime for Threads {
    fn name(&self) -> RuntimeName {
        RuntimeName::Sim
    }

    fn check_host(&self) -> Result<(), HostLacks> {
        Ok(())
    }

    fn boot(&self, spec: &SandboxSpec, _: Deadline) -> Result<Box<dyn Sandbox>, BootError> {
        let unfit = |source| BootError::Resource { step: "open a port".to_owned(), source };
        let listener = TcpListener::bind("127.0.0.1:0").map_err(unfit)?;
        let endpoint = listener.local_addr().map_err(unfit)?;
        let (id, is_over) = (spec.id.clone(), Arc::new(AtomicBool::new(false)));
        let (greeting, over) = (format!("hello from {id}"), Arc::clone(&is_over));
        let server = thread::spawn(move || {
            let clients = listener.incoming().take_while(|_| !over.load(Ordering::Acquire));
            for mut client in clients.flatten() {
                let _a_probe_does_not_listen = client.write_all(greeting.as_bytes());
            }
        });
        // What was reached when: the node makes the phases of a start from it.
        for milestone in [Milestone::Spawned, Milestone::Started, Milestone::Listening] {
            spec.journal.reach(milestone, Instant::now());
        }
        Ok(Box::new(Greeter { id, endpoint, is_over, server: Some(server) }))
    }
}

#[derive(Debug)]
struct Greeter {
    id: SandboxId,
    endpoint: SocketAddr,
    is_over: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Sandbox for Greeter {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    fn processes(&self) -> &[rustix::process::Pid] {
        &[]
    }

    fn stop(&mut self, _: Deadline) {
        self.is_over.store(true, Ordering::Release);
        let woken = TcpStream::connect(self.endpoint).is_ok();
        if let Some(server) = self.server.take_if(|_| woken) {
            println!("{} has ended: {}", self.id, server.join().is_ok());
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("vhive-custom-runtime-{}", std::process::id()));
    let images = vhive_image::ImageStore::open(dir.join("images"))?;
    let runtimes = Runtimes::new().with(Threads);
    let node = Node::open(Config::below(&dir), runtimes, images, None).await?;
    let key = RevisionKey::new("default", "greeter-00001");
    node.register(Arc::new(Revision::new(key.clone(), "none", Digest::of(b""), RuntimeName::Sim)));
    for who in ["first", "second"] {
        let lease = node.acquire(&key).await?;
        let kind = if lease.start().is_some() { "cold" } else { "warm" };
        let mut reply = String::new();
        TcpStream::connect(lease.endpoint())?.read_to_string(&mut reply)?;
        println!("{who} request, {kind}: {reply}");
        lease.replied();
    }
    node.shutdown(Deadline::after(Duration::from_secs(5))).await?;
    Ok(std::fs::remove_dir_all(dir)?)
}
