//! vHive's gateway over a node whose one function is the upstream: the whole way from the client's
//! head through lease and record to the reply.
#![expect(clippy::print_stdout, reason = "it tells its parent where it listens")]

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use vhive_api::{RuntimeName, SandboxId};
use vhive_node::{Node, Runtimes};
use vhive_sandbox::{BootError, Deadline, HostLacks, Milestone, Runtime, Sandbox, SandboxSpec};
use vhive_serving::Serving;

const SERVICE: &str = r#"{"apiVersion": "serving.knative.dev/v1", "kind": "Service",
    "metadata": {"name": "bench"},
    "spec": {"template": {"metadata": {"annotations": {"autoscaling.knative.dev/min-scale": "1"}},
    "spec": {"containers": [{"image": "dev.local/bench"}]}}}}"#;

/// Serves until killed.
pub(crate) fn run(upstream: &str) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut config = vhive_node::Config::below(dir.path());
    // As nginx is measured without its access log. Records are made and kept in memory.
    config.records.write = false;
    let mut serving = vhive_serving::Config::default();
    serving.gateway.listen.set_port(0);
    serving.api.listen.set_port(0);
    serving.api.socket = Some(dir.path().join("api.sock"));
    serving.defaults.runtime = RuntimeName::Sim;
    let runtimes = Runtimes::new().with(Elsewhere(upstream.parse()?));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async move {
        let images = vhive_image::ImageStore::open(dir.path().join("images"))?;
        let node = Node::open(config, runtimes, images, None).await?;
        let door = Serving::run(serving, node).await?;
        let socket = door.addresses().socket.clone();
        tokio::task::spawn_blocking(move || apply(&socket)).await??;
        println!("{}", door.addresses().gateway);
        std::future::pending::<()>().await;
        Ok(())
    })
}

fn apply(socket: &std::path::Path) -> anyhow::Result<()> {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).context("the API")?;
    write!(
        stream,
        "POST /apis/serving.knative.dev/v1/namespaces/default/services HTTP/1.1\r\nHost: node\r\n\
         Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{SERVICE}",
        SERVICE.len()
    )?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    ensure!(reply.starts_with("HTTP/1.1 201"), "not applied: {reply}");
    Ok(())
}

/// A runtime whose every sandbox is a server that runs already.
#[derive(Debug)]
struct Elsewhere(SocketAddr);

impl Runtime for Elsewhere {
    fn name(&self) -> RuntimeName {
        RuntimeName::Sim
    }

    fn check_host(&self) -> Result<(), HostLacks> {
        Ok(())
    }

    fn boot(&self, spec: &SandboxSpec, _: Deadline) -> Result<Box<dyn Sandbox>, BootError> {
        for milestone in [Milestone::Spawned, Milestone::Started, Milestone::Listening] {
            spec.journal.reach(milestone, Instant::now());
        }
        Ok(Box::new(Server { id: spec.id.clone(), endpoint: self.0 }))
    }
}

#[derive(Debug)]
struct Server {
    id: SandboxId,
    endpoint: SocketAddr,
}

impl Sandbox for Server {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    fn processes(&self) -> &[rustix::process::Pid] {
        &[]
    }

    fn stop(&mut self, _: Deadline) {}
}
