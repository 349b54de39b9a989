//! A node within a program: the brain, the gateway and the API of `vhive node`, without its command line.
//! A service is applied through the API's socket, asked through the gateway, and what the node has noted of
//! each invocation is printed: one cold start and two warm ones, with where their time went.
//! `cargo run --package vhive --example embed_node`
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::ensure;
use vhive_api::RuntimeName;
use vhive_node::{Config, Node, Runtimes};
use vhive_sandbox::Deadline;
use vhive_sandbox::sim::{Sim, SimConfig};
use vhive_serving::Serving;

const SERVICE: &str = r#"{"apiVersion": "serving.knative.dev/v1", "kind": "Service",
    "metadata": {"name": "hello"},
    "spec": {"template": {"spec": {"containers": [{"image": "dev.local/hello"}]}}}}"#;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("vhive-embed-node-{}", std::process::id()));
    // Sandboxes that isolate nothing and say when they would have booted. A real node has more:
    // `.with(Qemu::new(…))`, `.with(Oci::new(…))`.
    let sim = SimConfig { boot: Duration::from_millis(20).into(), ..SimConfig::default() };
    let runtimes = Runtimes::new().with(Sim::new(sim));
    let images = vhive_image::ImageStore::open(dir.join("images"))?;
    let node = Node::open(Config::below(&dir), runtimes, images, None).await?;

    let mut config = vhive_serving::Config::default();
    config.defaults.runtime = RuntimeName::Sim;
    // Any free ports, and a socket of our own.
    config.gateway.listen.set_port(0);
    config.api.listen.set_port(0);
    config.api.socket = Some(dir.join("api.sock"));
    let serving = Serving::run(config, node.clone()).await?;

    let addresses = serving.addresses().clone();
    tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        let services = "/apis/serving.knative.dev/v1/namespaces/default/services";
        let made = http(UnixStream::connect(&addresses.socket)?, "POST", services, SERVICE)?;
        ensure!(made.starts_with("HTTP/1.1 201"), "not made: {made}");
        for _ in 0..3 {
            let reply = http(TcpStream::connect(addresses.gateway)?, "GET", "/", "")?;
            println!("{}", reply.lines().last().unwrap_or_default());
        }
        Ok(())
    })
    .await??;

    let drained = serving.shutdown(Deadline::after(Duration::from_secs(5))).await;
    for record in node.records().recent(3) {
        println!("{}", record.start.map_or("no start", |start| start.as_str()));
        for span in &record.phases {
            println!("  {:14} {:6} us", span.phase.as_str(), span.length_us);
        }
    }
    println!("{drained:?}");
    Ok(std::fs::remove_dir_all(dir)?)
}

/// One request over a connection of its own, and its reply as text.
fn http(mut to: impl Read + Write, verb: &str, path: &str, body: &str) -> anyhow::Result<String> {
    let length = body.len();
    write!(
        to,
        "{verb} {path} HTTP/1.1\r\nHost: hello.default.example.com\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut reply = String::new();
    to.read_to_string(&mut reply)?;
    Ok(reply)
}
