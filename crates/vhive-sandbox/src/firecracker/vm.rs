//! From "what is wanted" to a running Firecracker whose API answers.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use vhive_api::Bytes;

use super::api::Api;
use super::config::FirecrackerConfig;
use super::ground::Ground;
use super::jail::Jail;
use crate::cgroup::{Cgroup, Limits};
use crate::contract::{self, Conversation, Outputs, Supervised, Words, chain, own_words};
use crate::deadline::Deadline;
use crate::network::NetworkSlot;
use crate::process::{self, Child, Confinement, Launch};
use crate::runtime::{BootError, SandboxSpec};

/// Name of the API's socket in the root directory.
const API: &str = "api.sock";
/// Name of the file that metrics are written to.
pub(super) const METRICS: &str = "metrics";
/// Name of the socket to which Firecracker sends its userfaultfd.
pub(super) const UFFD: &str = "uffd.sock";

/// Threads that one Firecracker may have besides its virtual CPUs.
const THREADS: u32 = 16;

/// Between Firecracker's `bind` and its `listen`, how long is waited before the next try.
const LISTEN_PAUSE: Duration = Duration::from_micros(500);

/// A running Firecracker. The fields are dropped in this order: first the process, then what it
/// used.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) supervised: Supervised,
    pub(super) api: Api,
    pub(super) jail: Arc<Jail>,
    _cgroup: Arc<Cgroup>,
}

/// What a Firecracker is to be spawned with.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) spec: &'a SandboxSpec,
    pub(super) network: &'a NetworkSlot,
    pub(super) ground: &'a Ground,
    pub(super) config: &'a FirecrackerConfig,
    /// The sandbox's directory.
    pub(super) dir: &'a Path,
    /// Files that it may read, by name.
    pub(super) lent: &'a [(&'static str, PathBuf)],
    /// Whether memory is handed to us.
    pub(super) served: bool,
}

impl Vm {
    /// Spawns a Firecracker without a guest and waits until its API answers. With
    /// [`Wanted::served`] there is a listener for its memory.
    ///
    /// # Errors
    /// [`BootError`]; nothing is left behind.
    pub(super) fn spawn(
        wanted: &Wanted<'_>,
        deadline: Deadline,
    ) -> Result<(Self, Option<UnixListener>), BootError> {
        let Wanted { spec, ground, config, .. } = wanted;
        let limits = Limits {
            memory: Some(Bytes(guest_memory(spec).0.saturating_add(config.overhead.0))),
            tasks: Some(vcpus(spec).saturating_add(THREADS)),
            cpu_millis: Some(vcpus(spec).saturating_add(1).saturating_mul(1000)),
        };
        let cgroup = resource("create the sandbox's cgroup", || {
            Cgroup::create(&spec.run_root, &spec.id, &limits)
        })?;
        let (cgroup, uid) = (Arc::new(cgroup), config.uid_of(&spec.id));
        let jailed = ground.jailer.as_ref().and_then(|_| ground.binary.file_name());
        let jail = || Jail::build(wanted.dir, &spec.id, jailed, uid);
        let mut jail = resource("make Firecracker's root directory", jail)?;
        for (name, file) in wanted.lent {
            resource(&format!("lend {} to Firecracker", file.display()), || jail.lend(name, file))?;
        }
        if config.metrics {
            resource("make the metrics file", || jail.own(METRICS))?;
        }
        let listener = wanted.served.then(|| {
            resource("make the pager's socket", || {
                let listener = bind(&jail.host(UFFD))?;
                jail.own(UFFD)?;
                Ok(listener)
            })
        });
        let listener = listener.transpose()?;
        // It opens the tap by itself, and that must not be open twice.
        wanted.network.release_tap();
        let watch = resource("watch for the API's socket", || watch(&jail.host("")))?;

        let jail = Arc::new(jail);
        let launch = Program::of(wanted, Arc::clone(&jail), uid, Arc::clone(&cgroup));
        let supervised = resource("start Firecracker", || launch.start(spec, &cgroup))?;
        let connected = connect(&jail.host(API), &watch, &supervised, deadline);
        let failed = |error: String| {
            let reason = own_words(&supervised, &spec.journal, &error);
            BootError::Spawn { program: ground.binary.display().to_string(), reason }
        };
        let stream =
            connected.map_err(|error| failed(format!("its API does not answer: {error}")))?;
        let mut api = Api::new(stream);
        let instance = api.instance(deadline).map_err(|error| failed(chain(&error)))?;
        let version = ground.version.to_string();
        if instance.state != "Not started" || !instance.vmm_version.starts_with(&version) {
            let (state, its) = (instance.state, instance.vmm_version);
            let error = format!("it is {its} ({state}), and was {version}: restart vhive");
            return Err(failed(error));
        }
        Ok((Self { supervised, api, jail, _cgroup: cgroup }, listener))
    }
}

/// Firecracker takes whole MiB.
pub(super) fn guest_memory(spec: &SandboxSpec) -> Bytes {
    Bytes::mib(spec.memory.mib_ceil())
}

pub(super) fn vcpus(spec: &SandboxSpec) -> u32 {
    spec.cpu_millis.div_ceil(1000).max(1)
}

pub(super) fn resource<T>(
    step: &str,
    make: impl FnOnce() -> io::Result<T>,
) -> Result<T, BootError> {
    make().map_err(|source| BootError::Resource { step: step.to_owned(), source })
}

/// What is spawned, and how.
struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    confinement: Option<Confinement>,
    jail: Arc<Jail>,
    netns: PathBuf,
    cgroup: Arc<Cgroup>,
}

impl Program {
    fn of(wanted: &Wanted<'_>, jail: Arc<Jail>, uid: u32, cgroup: Arc<Cgroup>) -> Self {
        let Wanted { ground, config, spec, .. } = wanted;
        let mut arguments: Vec<OsString> = Vec::new();
        let mut path = ground.binary.clone();
        if let Some(jailer) = &ground.jailer {
            let uid = OsString::from(uid.to_string());
            let words: [(&str, OsString); 5] = [
                ("--id", spec.id.as_str().into()),
                ("--exec-file", path.into()),
                ("--uid", uid.clone()),
                ("--gid", uid),
                ("--chroot-base-dir", jail.base().into()),
            ];
            arguments.extend(words.into_iter().flat_map(|(name, value)| [name.into(), value]));
            arguments.push("--".into());
            path = jailer.clone();
        } else {
            arguments.extend(["--id".into(), spec.id.as_str().into()]);
        }
        let metrics = config.metrics.then_some(("--metrics-path", METRICS));
        for (name, value) in [("--api-sock", API)].into_iter().chain(metrics) {
            arguments.extend([name.into(), jail.inside(value).into()]);
        }
        arguments.extend(["--level", "Warn"].map(OsString::from));
        if config.pci {
            arguments.push("--enable-pci".into());
        }
        let confinement = match ground.jailer {
            // It needs privileges, and gives them up itself.
            Some(_) => None,
            None => Some(Confinement { uid, extra_group: None }),
        };
        let netns = wanted.network.netns().to_owned();
        Self { path, arguments, confinement, jail, netns, cgroup }
    }

    fn start(self, spec: &SandboxSpec, cgroup: &Cgroup) -> io::Result<Supervised> {
        let (console, stdout) = io::pipe()?;
        let (errors, stderr) = io::pipe()?;
        // A guest without our init has no channel: it ends before it has begun.
        let (from_guest, to_guest) = (io::pipe()?.0, io::pipe()?.1);
        let outputs = Outputs {
            console: Some(console),
            errors,
            from_guest: OwnedFd::from(from_guest).into(),
            to_guest: OwnedFd::from(to_guest).into(),
        };
        let words = Words {
            name: "Firecracker",
            out_of_memory: "Firecracker exceeded its memory limit and was killed; raise \
                            firecracker.overhead",
            silent: "the guest powered off without saying why",
            limit: Some(cgroup.out_of_memory()),
        };
        let conversation = Conversation::with_clone(Arc::clone(&spec.journal));
        let launch = move || self.spawn(&stdout.into(), &stderr.into());
        contract::start(launch, outputs, conversation, Arc::clone(&spec.journal), words)
    }

    /// On the thread that looks after it, which moves into its namespaces.
    fn spawn(&self, stdout: &OwnedFd, stderr: &OwnedFd) -> io::Result<Child> {
        let netns = File::open(&self.netns)?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        let spawn = || {
            process::spawn(&Launch {
                program: &self.path,
                args: &self.arguments,
                environment: &[],
                inherit: &[],
                stdin: None,
                stdout: stdout.as_fd(),
                stderr: stderr.as_fd(),
                confinement: self.confinement,
            })
        };
        let child = self.jail.within(spawn)?;
        // Here, where nobody can have reaped it: its number is still its own.
        self.cgroup.add(child.pid())?;
        Ok(child)
    }
}

/// Becomes readable when something is made in a directory.
fn watch(dir: &Path) -> io::Result<OwnedFd> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags)?;
    inotify::add_watch(&watch, dir, inotify::WatchFlags::CREATE)?;
    Ok(watch)
}

/// Connects to a socket as soon as it is listened to, if the process does not end first.
fn connect(
    socket: &Path,
    watch: &OwnedFd,
    supervised: &Supervised,
    deadline: Deadline,
) -> io::Result<UnixStream> {
    let pidfd = supervised.pidfd()?;
    loop {
        let error = match dial(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let wait = match error.kind() {
            io::ErrorKind::NotFound => deadline.left(),
            // It has been made, and not been listened to yet: two system calls of Firecracker's.
            io::ErrorKind::ConnectionRefused => LISTEN_PAUSE.min(deadline.left()),
            // Not its own yet: the jailer is still making the directory.
            _ => return Err(error),
        };
        if wait.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec::try_from(wait).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(watch, PollFlags::IN)];
        // Once it is there, only its end is of interest.
        let looked_at = if error.kind() == io::ErrorKind::NotFound { 2 } else { 1 };
        match poll(&mut fds[..looked_at], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[0].revents().is_empty() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "it has ended"));
        }
        // What has been made is seen by dialling.
        let _ = rustix::io::read(watch, &mut [0; 4096]);
    }
}

fn dial(socket: &Path) -> io::Result<UnixStream> {
    let (dir, name) = short(socket)?;
    UnixStream::connect(in_dir(&dir, name))
}

fn bind(socket: &Path) -> io::Result<UnixListener> {
    let (dir, name) = short(socket)?;
    UnixListener::bind(in_dir(&dir, name))
}

/// A socket's directory, opened: an address has room for 107 bytes only, and paths are longer.
fn short(socket: &Path) -> io::Result<(File, &OsStr)> {
    let dir = File::open(socket.parent().unwrap_or(Path::new("/")))?;
    Ok((dir, socket.file_name().unwrap_or_default()))
}

fn in_dir(dir: &File, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name)
}
