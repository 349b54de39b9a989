//! Starting a container, for a function or for a probe.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Instant;

use rustix::process::{Pid, Resource, getrlimit};
use vhive_api::SandboxId;
use vhive_api::guest::GuestConfig;

use super::bundle::{self, Limits};
use super::container::Start;
use super::image::{Images, Mounted};
use super::probe::Found;
use super::sandbox::OciSandbox;
use super::tool::Tool;
use crate::cgroup::{self, Cgroup};
use crate::contract::{self, Conversation, Outputs, Supervised, Words, chain, entropy, own_words};
use crate::deadline::Deadline;
use crate::journal::{End, Journal, Milestone};
use crate::run_dir::{SandboxDir, SandboxRecord};
use crate::runtime::{BootError, Guest, HostLacks, Sandbox, SandboxSpec};

/// Processes and threads that a container may have.
const TASKS: u32 = 4096;

/// One container to be started.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) tool: &'a Tool,
    pub(super) found: &'a Found,
    pub(super) id: &'a SandboxId,
    pub(super) bundle: &'a Path,
    pub(super) journal: &'a Arc<Journal>,
    pub(super) image: Option<&'a Mounted>,
    pub(super) netns: Option<OwnedFd>,
    /// Its control groups, and what a runtime calls them.
    pub(super) cgroup: (String, &'a Cgroup),
    pub(super) limits: Option<Limits>,
    pub(super) config: Option<GuestConfig>,
}

/// A container that is on its way.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) supervised: Supervised,
    /// Its first process, once there is one.
    pub(super) pid: Receiver<Pid>,
}

impl Wanted<'_> {
    /// Writes the bundle and runs the runtime's command.
    ///
    /// # Errors
    /// [`BootError`]; whatever is in the bundle is the caller's to remove.
    pub(super) fn start(self) -> Result<Started, BootError> {
        let Self { tool, found, id, bundle, journal, image, netns, cgroup, limits, config } = self;
        let name = id.as_str();
        let (cgroup, group) = cgroup;
        let container = bundle::Container {
            hostname: name,
            cgroup: &cgroup,
            limits,
            open_files: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            gvisor: tool.is_gvisor(),
        };
        resource("write the bundle", || write_bundle(bundle, &container))?;
        let (stdin, to_guest) = resource("make the guest channel", io::pipe)?;
        let (from_guest, stdout) = resource("make the guest channel", io::pipe)?;
        let (errors, stderr) = resource("make the error pipe", io::pipe)?;
        let (tell, pid) = mpsc::channel();
        let start = Start {
            tool: tool.clone(),
            layer: found.layer.clone(),
            bundle: bundle.to_owned(),
            image: image.map(|image| image.dir().to_owned()),
            netns,
            from: None,
            name: name.to_owned(),
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
            tell,
        };
        let outputs = Outputs {
            console: None,
            errors,
            from_guest: OwnedFd::from(from_guest).into(),
            to_guest: OwnedFd::from(to_guest).into(),
        };
        let limit = group.out_of_memory();
        let conversation = Conversation::new(Arc::clone(journal), config).limited_by(limit.clone());
        let words = Words {
            name: tool.name.as_str(),
            out_of_memory: "the container used more memory than its limit and was killed (OOM)",
            silent: "the container ended without saying why",
            limit: Some(limit),
        };
        let theirs = Arc::clone(journal);
        let launch = move || {
            let container = start.launch()?;
            theirs.reach(Milestone::Spawned, Instant::now());
            Ok(container)
        };
        let journal = Arc::clone(journal);
        let start = || contract::start(launch, outputs, conversation, journal, words);
        let supervised = resource(&format!("run {}", tool.binary.display()), start)?;
        Ok(Started { supervised, pid })
    }
}

fn write_bundle(bundle: &Path, container: &bundle::Container<'_>) -> io::Result<()> {
    for dir in ["rootfs", "changes", "runtime"] {
        fs::create_dir(bundle.join(dir))?;
    }
    fs::write(bundle.join("config.json"), serde_json::to_vec(&bundle::config(container))?)
}

/// Starts a function's container and waits until its process has been started.
pub(super) fn boot(
    tool: &Tool,
    found: &Found,
    images: &Images,
    spec: &SandboxSpec,
    deadline: Deadline,
) -> Result<Box<dyn Sandbox>, BootError> {
    let host = |what: &str, fix: &str| BootError::Host {
        runtime: tool.name,
        lacks: HostLacks { what: what.to_owned(), fix: fix.to_owned() },
    };
    if matches!(spec.guest, Guest::Bare { .. }) {
        return Err(host("a container cannot boot a bare guest", "use qemu or firecracker"));
    }
    let network = spec.network.clone().ok_or_else(|| {
        host(
            "a container without a network slot cannot be reached",
            "open the node with a network pool",
        )
    })?;
    if spec.memory < tool.least_memory {
        let reason = format!("{} needs at least {}", tool.name, tool.least_memory);
        let step = format!("start a container with {} of memory", spec.memory);
        let source = io::Error::new(io::ErrorKind::InvalidInput, reason);
        return Err(BootError::Resource { step, source });
    }
    let record = SandboxRecord { id: spec.id.clone(), runtime: tool.name };
    let make = || SandboxDir::create(&spec.run_root, &record);
    let dir = resource(&format!("create the directory of sandbox {}", spec.id), make)?;
    let limits = Limits { memory: spec.memory, cpu_millis: spec.cpu_millis, tasks: TASKS };
    let group = cgroup::Limits {
        memory: Some(limits.memory),
        tasks: Some(limits.tasks),
        cpu_millis: Some(limits.cpu_millis),
    };
    let make = || Cgroup::create_everywhere(&spec.run_root, &spec.id, &group);
    let group = resource("create the sandbox's cgroups", make)?;
    let mount = || images.mount(&spec.rootfs, &spec.run_root);
    let image = resource(&format!("mount {}", spec.rootfs.display()), mount)?;
    let netns = resource("make the container's network", || network.make_namespace())?;
    let wanted = Wanted {
        tool,
        found,
        id: &spec.id,
        bundle: dir.path(),
        journal: &spec.journal,
        image: Some(&image),
        netns: Some(netns),
        cgroup: (Cgroup::name(&spec.run_root, &spec.id), &group),
        limits: Some(limits),
        config: Some(GuestConfig {
            process: spec.process.clone(),
            hostname: spec.id.to_string(),
            port: spec.port,
            network: Some(network.guest().clone()),
            now_unix_ns: 0,
            entropy: entropy(),
            hooks: spec.hooks.clone(),
        }),
    };
    let started = wanted.start().and_then(|started| {
        let pid = wait_started(&started, &spec.journal, tool, deadline)?;
        Ok((started.supervised, pid))
    });
    let (supervised, pid) = started.inspect_err(|error| {
        let (step, reason) = ("boot".to_owned(), chain(error));
        spec.journal.end(End::Failed { step, reason });
    })?;
    Ok(Box::new(OciSandbox {
        supervised,
        pid,
        id: spec.id.clone(),
        port: spec.port,
        journal: Arc::clone(&spec.journal),
        _cgroup: group,
        _image: image,
        _dir: dir,
        network,
    }))
}

/// Waits until the function's process has been started, and until it is known which is the
/// container's first.
fn wait_started(
    started: &Started,
    journal: &Journal,
    tool: &Tool,
    deadline: Deadline,
) -> Result<Option<Pid>, BootError> {
    let supervised = &started.supervised;
    journal.wait(Milestone::Started, deadline).map_err(|error| {
        supervised.abandon();
        let spoke = journal.milestones().iter().any(|(m, _)| *m >= Milestone::KernelUp);
        if spoke || deadline.passed() {
            let reason = error.to_string();
            return BootError::Guest { wanted: Milestone::Started, attempts: 1, reason };
        }
        BootError::Spawn { program: tool.binary.display().to_string(), reason: error.to_string() }
    })?;
    match started.pid.recv_timeout(deadline.left()) {
        Ok(pid) => Ok(Some(pid)),
        // It has ended, which the journal tells.
        Err(RecvTimeoutError::Disconnected) => Ok(None),
        Err(RecvTimeoutError::Timeout) => {
            let reason = own_words(supervised, journal, "it does not end");
            Err(BootError::Spawn { program: tool.binary.display().to_string(), reason })
        }
    }
}

pub(super) fn resource<T>(
    step: &str,
    make: impl FnOnce() -> io::Result<T>,
) -> Result<T, BootError> {
    make().map_err(|source| BootError::Resource { step: step.to_owned(), source })
}
