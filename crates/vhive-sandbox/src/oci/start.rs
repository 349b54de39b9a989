//! Starting a container: for a function, from a snapshot, or for a probe.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Resource, getrlimit};
use vhive_api::guest::{GuestConfig, Volume};
use vhive_api::{RuntimeName, SandboxId};

use super::bundle::{self, Limits};
use super::container::{Start, Verb};
use super::criu::{self, Changes, Criu};
use super::gvisor::shape;
use super::image::{Images, Mounted};
use super::layer::Layer;
use super::probe::Found;
use super::sandbox::OciSandbox;
use super::tool::Tool;
use crate::cgroup::{self, Cgroup};
use crate::contract::{self, Conversation, Outputs, Supervised, Words, chain, entropy, own_words};
use crate::deadline::Deadline;
use crate::journal::{End, Journal, Milestone};
use crate::network::NetworkSlot;
use crate::run_dir::{SandboxDir, SandboxRecord};
use crate::runtime::{BootError, Guest, HostLacks, SandboxSpec};

/// Processes and threads that a container may have.
const TASKS: u32 = 4096;

/// One container to be started.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) tool: &'a Tool,
    pub(super) layer: &'a Layer,
    pub(super) id: &'a SandboxId,
    pub(super) bundle: &'a Path,
    pub(super) journal: &'a Arc<Journal>,
    pub(super) image: Option<&'a Mounted>,
    pub(super) netns: Option<OwnedFd>,
    pub(super) verb: Verb,
    /// Its control groups, and what a runtime calls them.
    pub(super) cgroup: (String, &'a Cgroup),
    pub(super) limits: Option<Limits>,
    /// Where its files are to be.
    pub(super) volumes: &'a [Volume],
    pub(super) conversation: Conversation,
}

/// A container that is on its way.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) supervised: Supervised,
    /// Its first process, once there is one.
    pub(super) pid: Receiver<Pid>,
    /// What it writes to; nothing for gVisor, which keeps that itself.
    pub(super) changes: Changes,
}

impl Wanted<'_> {
    /// Writes the bundle and runs the runtime's command.
    ///
    /// # Errors
    /// [`BootError`]; whatever is in the bundle is the caller's to remove.
    pub(super) fn start(self) -> Result<Started, BootError> {
        let Self { tool, layer, id, bundle, journal, image, netns, verb, .. } = self;
        let (cgroup, limits, conversation) = (self.cgroup, self.limits, self.conversation);
        let name = id.as_str();
        let (cgroup, group) = cgroup;
        let options = bundle.join(criu::OPTIONS);
        let container = bundle::Container {
            criu: (tool.name == RuntimeName::Runc).then_some(&*options),
            hostname: name,
            cgroup: &cgroup,
            limits,
            open_files: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            gvisor: tool.is_gvisor(),
            volumes: self.volumes,
        };
        resource("write the bundle", || write_bundle(bundle, &container))?;
        let (stdin, to_guest) = resource("make the guest channel", io::pipe)?;
        let (from_guest, stdout) = resource("make the guest channel", io::pipe)?;
        let (errors, stderr) = resource("make the error pipe", io::pipe)?;
        let (tell, pid) = mpsc::channel();
        let changes = Changes::default();
        let start = Start {
            tool: tool.clone(),
            layer: layer.clone(),
            changes: Arc::clone(&changes),
            bundle: bundle.to_owned(),
            image: image.map(|image| image.dir().to_owned()),
            netns,
            verb,
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
        let conversation = conversation.limited_by(limit.clone());
        let words = Words {
            name: tool.name.as_str(),
            out_of_memory: "the container used more memory than its limit and was killed (OOM)",
            silent: "the container ended without saying why",
            limit: Some(limit),
        };
        // One that is only made waits for somebody to ask for it.
        let asked_for = !matches!(start.verb, Verb::Create);
        let theirs = Arc::clone(journal);
        let launch = move || {
            let container = start.launch()?;
            if asked_for {
                theirs.reach(Milestone::Spawned, Instant::now());
            }
            Ok(container)
        };
        let journal = Arc::clone(journal);
        let start = || contract::start(launch, outputs, conversation, journal, words);
        let supervised = resource(&format!("run {}", tool.binary.display()), start)?;
        Ok(Started { supervised, pid, changes })
    }
}

fn write_bundle(bundle: &Path, container: &bundle::Container<'_>) -> io::Result<()> {
    for dir in ["rootfs", "changes", "runtime"] {
        fs::create_dir(bundle.join(dir))?;
    }
    if container.criu.is_some() {
        criu::write_options(bundle)?;
    }
    fs::write(bundle.join("config.json"), serde_json::to_vec(&bundle::config(container))?)
}

/// Everything on the host that a function's container needs. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Ground {
    dir: SandboxDir,
    cgroup: Cgroup,
    image: Arc<Mounted>,
    /// The container's network namespace, which the runtime's later commands must be in as well.
    pub(super) netns: Arc<OwnedFd>,
    network: Arc<NetworkSlot>,
    limits: Limits,
}

impl Ground {
    /// Makes it.
    ///
    /// # Errors
    /// [`BootError`]; nothing is left behind.
    pub(super) fn make(
        tool: &Tool,
        images: &Images,
        spec: &SandboxSpec,
    ) -> Result<Self, BootError> {
        let network = check(tool, spec)?;
        // The kernel takes milliseconds for the network and as many for the control groups.
        let (rest, netns) = thread::scope(|scope| {
            let netns = scope.spawn(|| network.make_namespace());
            (Self::beside_network(tool, images, spec), netns.join())
        });
        let (dir, cgroup, image, limits) = rest?;
        let ended = |_| Err(io::Error::other("the thread that makes it ended"));
        let netns = resource("make the container's network", || netns.unwrap_or_else(ended))?;
        Ok(Self { dir, cgroup, image, netns: Arc::new(netns), network, limits })
    }

    fn beside_network(
        tool: &Tool,
        images: &Images,
        spec: &SandboxSpec,
    ) -> Result<(SandboxDir, Cgroup, Arc<Mounted>, Limits), BootError> {
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
        let cgroup = resource("create the sandbox's cgroups", make)?;
        let mount = || images.mount(&spec.rootfs, &spec.run_root);
        let image = resource(&format!("mount {}", spec.rootfs.display()), mount)?;
        Ok((dir, cgroup, image, limits))
    }

    /// The sandbox's directory.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its network slot.
    pub(super) fn network(&self) -> &NetworkSlot {
        &self.network
    }

    /// Starts a container on it.
    pub(super) fn start(
        &self,
        tool: &Tool,
        found: &Found,
        spec: &SandboxSpec,
        (verb, conversation): (Verb, Conversation),
    ) -> Result<Started, BootError> {
        let netns = resource("share the network namespace", || self.netns.try_clone())?;
        Wanted {
            tool,
            layer: &found.layer,
            id: &spec.id,
            bundle: self.dir(),
            journal: &spec.journal,
            image: Some(&self.image),
            netns: Some(netns),
            verb,
            cgroup: (Cgroup::name(&spec.run_root, &spec.id), &self.cgroup),
            limits: Some(self.limits),
            volumes: &spec.process.volumes,
            conversation,
        }
        .start()
    }

    /// What the node sees of a container that runs on it.
    pub(super) fn sandbox(
        self,
        (supervised, pid): (Supervised, Option<Pid>),
        spec: &SandboxSpec,
    ) -> OciSandbox {
        OciSandbox {
            supervised,
            pid,
            id: spec.id.clone(),
            port: spec.port,
            journal: Arc::clone(&spec.journal),
            gvisor: None,
            criu: None,
            clone: false,
            cgroup: self.cgroup,
            _image: self.image,
            dir: self.dir,
            netns: self.netns,
            network: self.network,
        }
    }
}

fn check(tool: &Tool, spec: &SandboxSpec) -> Result<Arc<NetworkSlot>, BootError> {
    let host = |what: &str, fix: &str| BootError::Host {
        runtime: tool.name,
        lacks: HostLacks { what: what.to_owned(), fix: fix.to_owned() },
    };
    if matches!(spec.guest, Guest::Bare { .. }) {
        return Err(host("a container cannot boot a bare guest", "use qemu or firecracker"));
    }
    if spec.memory < tool.least_memory {
        let reason = format!("{} needs at least {}", tool.name, tool.least_memory);
        let step = format!("start a container with {} of memory", spec.memory);
        let source = io::Error::new(io::ErrorKind::InvalidInput, reason);
        return Err(BootError::Resource { step, source });
    }
    spec.network.clone().ok_or_else(|| {
        let what = "a container without a network slot cannot be reached";
        host(what, "open the node with a network pool")
    })
}

/// Starts a function's container and waits until its process has been started.
pub(super) fn boot(
    tool: &Tool,
    found: &Found,
    images: &Images,
    spec: &SandboxSpec,
    deadline: Deadline,
) -> Result<OciSandbox, BootError> {
    let ground = Ground::make(tool, images, spec)?;
    let config = GuestConfig {
        process: spec.process.clone(),
        hostname: spec.id.to_string(),
        port: spec.port,
        network: Some(ground.network.guest().clone()),
        now_unix_ns: 0,
        entropy: entropy(),
        hooks: spec.hooks.clone(),
    };
    let conversation = Conversation::new(Arc::clone(&spec.journal), Some(config));
    let started = ground.start(tool, found, spec, (Verb::Run, conversation)).and_then(|started| {
        wait_started(&started, &spec.journal, tool, deadline)?;
        let pid = started.wait_pid(&spec.journal, tool, deadline)?;
        Ok((started, pid))
    });
    let running = started.inspect_err(|error| {
        let (step, reason) = ("boot".to_owned(), chain(error));
        spec.journal.end(End::Failed { step, reason });
    })?;
    let (Started { supervised, changes, .. }, pid) = running;
    let mut sandbox = ground.sandbox((supervised, pid), spec);
    sandbox.criu = found.criu.as_ref().ok().map(|version| {
        let platform = criu::platform(tool, &found.version, version);
        Criu { tool: tool.clone(), platform, shape: shape(spec), changes }
    });
    Ok(sandbox)
}

/// Waits until the function's process has been started.
fn wait_started(
    started: &Started,
    journal: &Journal,
    tool: &Tool,
    deadline: Deadline,
) -> Result<(), BootError> {
    journal.wait(Milestone::Started, deadline).map(drop).map_err(|error| {
        started.supervised.abandon();
        let reason = error.to_string();
        let spoke = journal.milestones().iter().any(|(m, _)| *m >= Milestone::KernelUp);
        if spoke || deadline.passed() {
            return BootError::Guest { wanted: Milestone::Started, attempts: 1, reason };
        }
        BootError::Spawn { program: tool.binary.display().to_string(), reason }
    })
}

impl Started {
    /// Waits until it is known which process is the container's first; none if it has ended, which
    /// the journal tells.
    pub(super) fn wait_pid(
        &self,
        journal: &Journal,
        tool: &Tool,
        deadline: Deadline,
    ) -> Result<Option<Pid>, BootError> {
        match self.pid.recv_timeout(deadline.left()) {
            Ok(pid) => Ok(Some(pid)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                let reason = own_words(&self.supervised, journal, "its command does not end");
                Err(BootError::Spawn { program: tool.binary.display().to_string(), reason })
            }
        }
    }
}

pub(super) fn resource<T>(
    step: &str,
    make: impl FnOnce() -> io::Result<T>,
) -> Result<T, BootError> {
    make().map_err(|source| BootError::Resource { step: step.to_owned(), source })
}
