//! `vhive node`: runs a node until a signal, or cleans up after one.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use vhive_api::Span;
use vhive_image::ImageStore;
use vhive_node::{Ground, Node, Runtimes, Tools, raise_open_files};
use vhive_sandbox::Deadline;
use vhive_sandbox::cgroup::check_cpus;
use vhive_sandbox::firecracker::Firecracker;
use vhive_sandbox::kernel::KernelStore;
use vhive_sandbox::network::{NetworkPool, check_host};
use vhive_sandbox::oci::Oci;
use vhive_sandbox::qemu::Qemu;
use vhive_sandbox::sim::Sim;
use vhive_serving::{Addresses, Serving};

use crate::cli::{Format, Global};
use crate::config::{self, Config};
use crate::output;

/// Arguments of `vhive node`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where requests to functions arrive; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT")]
    gateway: Option<SocketAddr>,
    /// Where the API listens besides its unix socket; loopback only.
    #[arg(long, value_name = "ADDRESS:PORT")]
    api: Option<SocketAddr>,
    /// Most instances, all services together.
    #[arg(long)]
    max_instances: Option<u32>,
    /// Most memory of all instances, e.g. 8GiB.
    #[arg(long)]
    max_memory: Option<vhive_api::Bytes>,
    /// CPUs that all sandboxes run on, e.g. 1 or 2-5,8; any unless given.
    #[arg(long, value_name = "LIST")]
    cpus: Option<vhive_api::Cpus>,
    /// How long requests under way may take after a signal.
    #[arg(long, default_value = "30s", value_name = "TIME")]
    drain: Span,
    /// Print the commented default configuration and do nothing else.
    #[arg(long)]
    print_config: bool,
    /// Only remove what a killed node left on the host.
    #[arg(long, conflicts_with = "purge")]
    sweep: bool,
    /// Remove that, and everything in the state directory.
    #[arg(long)]
    purge: bool,
}

/// Runs the node. With `-o json` its addresses are one line of JSON.
///
/// # Errors
/// What could not be opened; nothing is left behind.
pub(crate) fn run(global: &Global, mut config: Config, args: &Args) -> anyhow::Result<ExitCode> {
    if args.print_config {
        output::line(config::DEFAULT_TEXT.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    if args.purge {
        return purge(&config);
    }
    if args.sweep {
        return sweep(&config);
    }
    if let Some(gateway) = args.gateway {
        config.serving.gateway.listen = gateway;
    }
    if let Some(api) = args.api {
        config.serving.api.listen = api;
    }
    if let Some(most) = args.max_instances {
        config.node.max_instances = most;
    }
    config.node.max_memory = args.max_memory.or(config.node.max_memory);
    config.node.cpus = args.cpus.clone().or(config.node.cpus);
    config.node.validate()?;
    config.serving.validate()?;
    if let Some(cpus) = &config.node.cpus {
        // Before anything is on the host.
        check_cpus(cpus).with_context(|| format!("cannot keep sandboxes to CPUs {cpus}"))?;
    }
    if let Err(error) = raise_open_files() {
        tracing::warn!(%error, "the number of open files cannot be raised; `ulimit -n` says what it is");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(global.output, config, args.drain))
}

async fn serve(format: Format, config: Config, drain: Span) -> anyhow::Result<ExitCode> {
    // Before anything is opened, so that an early signal also ends in order.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let open = config.clone();
    let (ground, tools) = tokio::task::spawn_blocking(move || prepare(&open)).await??;
    let node = Node::open_on(ground, config.node, tools)?;
    look_at_runtimes(&node);
    let serving = match Serving::run(config.serving, node.clone()).await {
        Ok(serving) => serving,
        Err(error) => {
            node.shutdown(Deadline::after(drain.0)).await?;
            return Err(error.into());
        }
    };
    announce(format, serving.addresses())?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
    }
    let deadline = Deadline::after(drain.0);
    serving.shutdown(deadline).await;
    // Instances get their own time to stop, even if requests used up the drain.
    node.shutdown(deadline.max(Deadline::after(std::time::Duration::from_secs(15)))).await?;
    Ok(ExitCode::SUCCESS)
}

/// Takes the state directory, then makes what stands on it. Blocks.
fn prepare(config: &Config) -> anyhow::Result<(Ground, Tools)> {
    let ground = Ground::take(&config.node.state_dir, &config.node.run_dir)?;
    let images = ImageStore::open(config.images_dir())?;
    let kernels = KernelStore::open(config.kernels_dir())?;
    let cache = config.node.state_dir.join("host");
    let firecracker = Firecracker::new(config.firecracker.clone());
    let firecracker = firecracker.with_kernels(kernels.clone(), &cache);
    let qemu = Qemu::new(config.qemu.clone(), kernels, &cache);
    let runtimes = Runtimes::new()
        .with(qemu)
        .with(firecracker)
        .with(Oci::runsc(config.runsc.clone(), &cache))
        .with(Oci::runc(config.runc.clone(), &cache))
        .with(Oci::crun(config.crun.clone(), &cache))
        .with(Sim::new(config.sim.clone()));
    let network = match check_host() {
        Ok(()) => Some(NetworkPool::open(&config.network, ground.run_root())?),
        Err(lacks) => {
            tracing::warn!(%lacks, "no network slots: only sim can run");
            None
        }
    };
    Ok((ground, Tools { runtimes, images, network }))
}

/// Finds out meanwhile what the first start would otherwise wait for: which accelerator is fit,
/// whether the guest kernel is whole.
fn look_at_runtimes(node: &Node) {
    let runtimes: Vec<_> =
        node.runtimes().names().filter_map(|name| node.runtimes().get(name).cloned()).collect();
    tokio::task::spawn_blocking(move || {
        for runtime in runtimes {
            match runtime.check_host() {
                Ok(()) => tracing::info!(runtime = %runtime.name(), "runtime available"),
                Err(lacks) => {
                    tracing::warn!(runtime = %runtime.name(), %lacks, "runtime not available");
                }
            }
        }
    });
}

fn announce(format: Format, addresses: &Addresses) -> anyhow::Result<()> {
    let Addresses { gateway, gateway_tls, api, socket, token } = addresses;
    match format {
        Format::Json => output::line(serde_json::to_string(&json!({
            "gateway": gateway,
            "gateway_tls": gateway_tls,
            "api": api,
            "socket": socket,
            "token": token,
        }))?),
        Format::Table => {
            output::line(format!("gateway     http://{gateway}"));
            if let Some(tls) = gateway_tls {
                output::line(format!("            https://{tls}"));
            }
            output::line(format!("API         {} (and http://{api})", socket.display()));
            output::line(format!("API token   {}", token.display()));
            output::line(
                "next        vhive apply -f functions/hello/service.yaml; vhive dashboard",
            );
        }
    }
    Ok(())
}

fn sweep(config: &Config) -> anyhow::Result<ExitCode> {
    if !config.node.state_dir.exists() {
        output::line("nothing to sweep");
        return Ok(ExitCode::SUCCESS);
    }
    let ground = Ground::take(&config.node.state_dir, &config.node.run_dir)
        .context("cannot sweep while a node runs")?;
    output::line(format!("swept: {} sandbox(es) of an earlier node", ground.swept()));
    Ok(ExitCode::SUCCESS)
}

fn purge(config: &Config) -> anyhow::Result<ExitCode> {
    let purged = vhive_node::purge(&config.node.state_dir, &config.node.run_dir)?;
    for path in &purged.removed {
        output::line(format!("removed {}", path.display()));
    }
    for path in &purged.left {
        output::note(format!("left {}, which is not vHive's", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}
