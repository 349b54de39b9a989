//! Starting a container: for a function, from a snapshot, or for a probe.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Instant;

use rustix::process::Pid;
use vhive_api::SandboxId;
use vhive_api::guest::{GuestConfig, Volume};

use super::bundle::{self, Groups, Most};
use super::container::{OWN_LAYER, Start, Verb, reaper};
use super::criu::{self, Changes, Criu};
use super::form::{self, FirstProcess};
use super::function::{self, Function, Unfit};
use super::gvisor::shape;
use super::image::{Images, Mounted};
use super::outside::Outside;
use super::probe::Found;
use super::root::Root;
use super::sandbox::OciSandbox;
use super::tool::Tool;
use crate::cgroup::{Cgroup, Limits};
use crate::contract::{
    self, Alone, Conversation, Outputs, Supervised, Voice, Words, chain, entropy, own_words,
};
use crate::deadline::Deadline;
use crate::journal::{End, Journal, Milestone};
use crate::network::NetworkSlot;
use crate::process;
use crate::run_dir::{SandboxDir, SandboxRecord};
use crate::runtime::{BootError, Guest, HostLacks, SandboxSpec};

/// What gVisor says of a container whose first process cannot be started.
const REFUSED: &str = "creating process:";
const NOT_FOUND: &str = "no such file or directory";

/// Processes and threads that a container may have.
const TASKS: u32 = 4096;

/// One container to be started.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) found: &'a Found,
    pub(super) id: &'a SandboxId,
    pub(super) bundle: &'a Path,
    pub(super) journal: &'a Arc<Journal>,
    pub(super) image: Option<&'a Mounted>,
    pub(super) netns: Option<OwnedFd>,
    pub(super) verb: Verb,
    /// Its control groups, and what a runtime calls them.
    pub(super) cgroup: (String, &'a Cgroup),
    pub(super) limits: Limits,
    pub(super) first: First<'a>,
}

/// A container's first process, and what is said to it.
#[derive(Debug)]
pub(super) enum First<'a> {
    /// Init, and where the function's files are to be that it writes.
    Init(Conversation, &'a [Volume]),
    /// The function.
    Function(&'a Function),
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
        let Self { found, id, bundle, journal, image, netns, verb, .. } = self;
        let tool = &found.tool;
        let (limits, first) = (self.limits, self.first);
        let name = id.as_str();
        let (cgroup, group) = self.cgroup;
        let options = bundle.join(criu::OPTIONS);
        let shown = if tool.is_gvisor() { Vec::new() } else { group.shown() };
        let container = bundle::Container {
            criu: (!tool.is_gvisor()).then_some(&*options),
            hostname: name,
            cgroup: &cgroup,
            limits,
            most: Most::of_the_node(),
            expendable: process::expendable(),
            gvisor: tool.is_gvisor(),
            groups: match &*shown {
                _ if tool.is_gvisor() => Groups::Hidden,
                [] => Groups::Mounted,
                dirs => Groups::Bound(dirs),
            },
            first: match &first {
                First::Init(_, volumes) => bundle::First::Init(volumes),
                First::Function(function) => bundle::First::Function(function),
            },
            bundle,
        };
        resource("write the bundle", || write_bundle(bundle, &container))?;
        let pipe = || resource("make the container's pipes", io::pipe);
        let ((inner, outer), (from_guest, stdout), (errors, stderr)) = (pipe()?, pipe()?, pipe()?);
        // In gVisor init makes them.
        let volumes = match &first {
            First::Init(_, volumes) if !tool.is_gvisor() => volumes.to_vec(),
            First::Init(..) | First::Function(_) => Vec::new(),
        };
        let limit = group.out_of_memory();
        let (tell, pid) = mpsc::channel();
        let (stdin, console, to_guest, voice): (OwnedFd, _, _, Voice) = match first {
            First::Init(conversation, _) => {
                let conversation = conversation.limited_by(limit.clone());
                (inner.into(), None, Some(OwnedFd::from(outer).into()), conversation.into())
            }
            // Its parent tells by standard input that it runs: the outputs are the function's.
            First::Function(_) => {
                let alone = Alone::new(Arc::clone(journal), tell.clone());
                (outer.into(), Some(inner), None, Voice::Function(alone))
            }
        };
        let is_reaped = to_guest.is_none();
        let changes = Changes::default();
        let start = Start {
            tool: tool.clone(),
            layer: found.layer.clone(),
            first: if is_reaped { FirstProcess::Function } else { FirstProcess::Init },
            changes: Arc::clone(&changes),
            bundle: bundle.to_owned(),
            image: image.map(|image| image.dir().to_owned()),
            netns,
            // gVisor's init fills its own.
            volumes,
            verb,
            name: name.to_owned(),
            stdin,
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        let from_guest = OwnedFd::from(from_guest).into();
        // Of gVisor the whole sandbox is killed.
        let kills = (!tool.is_gvisor()).then(|| limit.watch());
        let outputs = Outputs { console, errors, from_guest, to_guest, kills };
        let words = Words {
            name: tool.name.as_str(),
            out_of_memory: "the container used more memory than its limit and was killed (OOM)",
            silent: "the container ended without saying why",
            limit: Some(limit),
        };
        let supervised = supervise((start, tell), outputs, voice, Arc::clone(journal), words);
        let by = if is_reaped {
            format!(" by {}", reaper(&found.layer).display())
        } else {
            String::new()
        };
        let step = format!("run {}{by}", tool.binary.display());
        let supervised = resource(&step, || supervised)?;
        Ok(Started { supervised, pid, changes })
    }
}

/// Starts it on the thread that looks after it.
fn supervise(
    (start, tell): (Start, Sender<Pid>),
    outputs: Outputs,
    voice: Voice,
    journal: Arc<Journal>,
    words: Words,
) -> io::Result<Supervised> {
    // One that is only made waits for somebody to ask for it.
    let asked_for = !matches!(start.verb, Verb::Create);
    let theirs = Arc::clone(&journal);
    let spawned = move || {
        if asked_for {
            theirs.reach(Milestone::Spawned, Instant::now());
        }
    };
    match start.first {
        FirstProcess::Init => {
            let launch = move || start.launch(tell).inspect(|_| spawned());
            contract::start(launch, outputs, voice, journal, words)
        }
        FirstProcess::Function => {
            let launch = move || start.launch_reaped().inspect(|_| spawned());
            contract::start(launch, outputs, voice, journal, words)
        }
    }
}

fn write_bundle(bundle: &Path, container: &bundle::Container<'_>) -> io::Result<()> {
    for dir in ["rootfs", "changes", "runtime"] {
        fs::create_dir(bundle.join(dir))?;
    }
    if let bundle::First::Function(function) = container.first {
        function.write_layer(&bundle.join(OWN_LAYER))?;
    }
    if container.criu.is_some() {
        criu::write_options(bundle)?;
    }
    fs::write(bundle.join("config.json"), serde_json::to_vec(&bundle::config(container))?)
}

/// Everything on the host that a function's container needs. Dropping it removes it, in this order:
/// what still runs may write into the directory.
#[derive(Debug)]
pub(super) struct Ground {
    cgroup: Cgroup,
    image: Arc<Mounted>,
    dir: SandboxDir,
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
        let limits = Limits {
            memory: Some(spec.memory),
            tasks: Some(TASKS),
            cpu_millis: Some(spec.cpu_millis),
        };
        let make = || Cgroup::create_everywhere(&spec.run_root, &spec.id, &limits);
        let cgroup = resource("create the sandbox's cgroups", make)?;
        let limits = cgroup.of_these(&limits);
        let mount = || images.mount(&spec.rootfs, &spec.run_root);
        let image = resource(&format!("mount {}", spec.rootfs.display()), mount)?;
        Ok((dir, cgroup, image, limits))
    }

    /// The sandbox's directory.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Whether its memory limit has killed somebody.
    pub(super) fn out_of_memory(&self) -> bool {
        self.cgroup.out_of_memory().happened()
    }

    /// Its network slot.
    pub(super) fn network(&self) -> &NetworkSlot {
        &self.network
    }

    /// Starts a container on it.
    pub(super) fn start(
        &self,
        found: &Found,
        spec: &SandboxSpec,
        (verb, first): (Verb, First<'_>),
    ) -> Result<Started, BootError> {
        let netns = resource("share the network namespace", || self.netns.try_clone())?;
        Wanted {
            found,
            id: &spec.id,
            bundle: self.dir(),
            journal: &spec.journal,
            image: Some(&self.image),
            netns: Some(netns),
            verb,
            cgroup: (Cgroup::name(&spec.run_root, &spec.id), &self.cgroup),
            limits: self.limits,
            first,
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
            outside: None,
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
    found: &Found,
    images: &Images,
    spec: &SandboxSpec,
    deadline: Deadline,
) -> Result<OciSandbox, BootError> {
    let tool = &found.tool;
    let ground = Ground::make(tool, images, spec)?;
    let function = match form::first_process(tool.is_gvisor(), spec) {
        FirstProcess::Init => None,
        FirstProcess::Function => ground.prepare(spec)?,
    };
    let first = match &function {
        Some(function) => First::Function(function),
        None => First::Init(ground.conversation(tool, spec), &spec.process.volumes),
    };
    let started = ground.start(found, spec, (Verb::Run, first)).and_then(|started| {
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
        let platform = criu::platform(found, version);
        Criu { tool: tool.clone(), platform, shape: shape(spec), changes }
    });
    if let Some(function) = function {
        let outside = || Outside::look_after(tool, &sandbox, function.stop_signal);
        sandbox.outside = Some(resource("look whether the function listens", outside)?);
    }
    Ok(sandbox)
}

impl Ground {
    /// What a function needs that is to be its container's first process.
    fn prepare(&self, spec: &SandboxSpec) -> Result<Option<Function>, BootError> {
        let root = resource("open the image", || Root::open(self.image.dir()))?;
        let prepared = function::prepare(&root, spec, self.network.guest());
        prepared.map_err(|Unfit { step, reason }| {
            // As init would have told it.
            let end = End::Failed { step, reason };
            let reason = end.to_string();
            spec.journal.end(end);
            BootError::Guest { wanted: Milestone::Started, attempts: 1, reason }
        })
    }

    /// What is said to an init.
    fn conversation(&self, tool: &Tool, spec: &SandboxSpec) -> Conversation {
        let mut process = spec.process.clone();
        if !tool.is_gvisor() {
            // They are in their places before init is.
            process.volumes.clear();
        }
        let config = GuestConfig {
            process,
            hostname: spec.id.to_string(),
            port: spec.port,
            network: Some(self.network.guest().clone()),
            now_unix_ns: 0,
            entropy: entropy(),
            hooks: spec.hooks.clone(),
        };
        Conversation::new(Arc::clone(&spec.journal), Some(config))
    }
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
        let mut reason = error.to_string();
        let spoke = journal.milestones().iter().any(|(m, _)| *m >= Milestone::KernelUp);
        // Without init, this is the function's process.
        let refused = reason.contains(REFUSED);
        if refused && reason.ends_with(NOT_FOUND) {
            reason +=
                ": the program is there, but its interpreter or dynamic loader is not in the image";
        }
        if spoke || refused || deadline.passed() {
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
