//! `density-hello-<runtime>`: how much of a given memory idle instances of `hello` have for
//! themselves when no more of them fit, through a node.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use vhive_api::{Bytes, RuntimeName};
use vhive_sandbox::Runtime as _;
use vhive_sandbox::firecracker::{Firecracker, FirecrackerConfig};
use vhive_sandbox::kernel::KernelStore;
use vhive_study::density::{Density, Wanted, fill};
use vhive_study::function::Function;
use vhive_study::{Deadline, Door, Target};
use vhive_tests::bench::{Bound, Row};
use vhive_tests::node::{TestNode, named_firecracker};

/// Of every row.
pub(crate) const BOUND: Bound = Bound::AtLeast { must: 0.85, goal: 0.95 };

/// The rows. A plain container is so small that four gibibytes hold more of them than a row's two
/// minutes can start: it gets less memory, and its row says so.
pub(crate) const ALL: [(&str, RuntimeName, Bytes); 5] = [
    ("density-hello-qemu", RuntimeName::Qemu, Bytes::mib(4096)),
    ("density-hello-firecracker", RuntimeName::Firecracker, Bytes::mib(4096)),
    ("density-hello-runsc", RuntimeName::Runsc, Bytes::mib(4096)),
    ("density-hello-runc", RuntimeName::Runc, Bytes::mib(512)),
    ("density-hello-crun", RuntimeName::Crun, Bytes::mib(512)),
];

const GOAL: Bytes = Bytes::mib(4096);
/// Far beyond any filling that works.
const PATIENCE: Duration = Duration::from_secs(900);

/// Room for more instances than fit, addresses for as many, nothing spawned ahead, no second try
/// after the failure that ends a filling, and patience: a hundred idle microVMs whose CPU is emulated
/// leave the host little time.
const CONFIG: &str = "\
[node]
max_instances = 4000
max_memory = \"100000Gi\"
back_off_first = \"1m\"
start_deadline = \"5m\"
[node.snapshots]
restore_deadline = \"2m\"
standby = 0
[network]
max = 4080
ready = 16
";

/// Room for so many slots; another node may have claimed a part of the first ones.
const RANGES: [&str; 5] =
    ["198.19.192.0/20", "198.18.0.0/20", "198.18.96.0/20", "198.19.0.0/20", "198.19.96.0/20"];

fn start(dir: &Path) -> Result<TestNode> {
    let mut last = None;
    for range in RANGES {
        match TestNode::start(dir, &format!("{CONFIG}range = \"{range}\"\n")) {
            Ok(node) => return Ok(node),
            Err(error) if format!("{error:#}").contains("overlaps") => last = Some(error),
            Err(error) => return Err(error),
        }
        // What it wrote is told once.
        fs::remove_file(dir.join("node.log"))?;
    }
    Err(last.context("no range was tried")?)
}

pub(crate) fn measure(
    id: &str,
    (runtime, limit): (RuntimeName, Bytes),
    bound: Bound,
) -> Result<Row> {
    let found = density(runtime, limit)?;
    if !found.is_full() {
        bail!("it was not the memory that ended it: {} ({} there)", found.why, found.instances);
    }
    let filled = found.filled().context("the node tells no PSS")?;
    let mib = |bytes: Option<u64>| bytes.map_or(f64::NAN, |bytes| bytes as f64 / 1_048_576.0);
    let smaller = if limit < GOAL { " instead of 4 GiB, which takes too long to fill" } else { "" };
    let note = format!(
        "{} instances {} in {} MiB{smaller}, {:.2} MiB of PSS each; besides it the kernel's own \
         {:.0} MiB and files {:.0} MiB; {:.0} s; load {:.1}; ended by: {}",
        found.instances,
        if found.restored { "from a snapshot" } else { "booted" },
        limit.mib_ceil(),
        mib(found.pss_bytes),
        mib(found.kernel_bytes),
        mib(found.file_bytes),
        found.seconds,
        found.load.unwrap_or(f64::NAN),
        found.why.split(": ").last().unwrap_or_default(),
    );
    let functions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions");
    let peer = match crate::alone::part(&functions) {
        Ok(part) => format!("hello by itself, in a group and in no container: {part:.2}"),
        Err(error) => format!("none: {error:#}"),
    };
    Ok(Row::new(id, "part").value(bound, filled).peer(peer).note(note))
}

/// Whether the Firecracker that the node will run boots Linux on this host.
fn fit_firecracker(state: &Path) -> Result<()> {
    let config = named_firecracker().map(|binary| FirecrackerConfig {
        jailer: binary.with_file_name("jailer"),
        binary,
        ..FirecrackerConfig::default()
    });
    let firecracker = Firecracker::new(config.unwrap_or_default());
    firecracker.check_bare()?;
    let kernels = KernelStore::open(state.join("kernels"))?;
    firecracker.with_kernels(kernels, state.join("host")).check_host()?;
    Ok(())
}

/// Which of the rows that have a figure has the worst.
pub(crate) fn worst(rows: &[Row]) -> Option<String> {
    let figures = rows.iter().filter_map(|row| Some((row.value?, &*row.id)));
    let figures: Vec<(f64, &str)> = figures.collect();
    let (value, id) = figures.iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(format!("the worst of {} runtimes: {id}, {value:.3}", figures.len()))
}

fn density(runtime: RuntimeName, limit: Bytes) -> Result<Density> {
    ensure!(rustix::process::geteuid().is_root(), "root is missing");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let made = root.join("target/demo/state");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let state = dir.path().join("state");
    fs::create_dir(&state)?;
    for part in ["kernels", "images"] {
        let there = made.join(part);
        ensure!(there.is_dir(), "no {}: `make demo` makes it", there.display());
        symlink(there.canonicalize()?, state.join(part))?;
    }
    if runtime == RuntimeName::Firecracker {
        // Before a node waits for what it does not offer.
        fit_firecracker(&state)?;
    }
    let node = start(dir.path())?;
    let function = Function::load(&root.join("functions"), "hello")?;
    let api = node.json(&["get", "node"])?;
    let socket = Path::new(api["run_dir"].as_str().context("no run directory")?).join("api.sock");
    let wanted =
        Wanted { function: &function, runtime, limit, patience: PATIENCE, edition: "bench" };
    let here = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    here.block_on(async {
        let door = Door::Socket(socket);
        let target = Target::connect(door, "default", Deadline::after(PATIENCE)).await?;
        Ok(fill(&target, &wanted).await?)
    })
}
