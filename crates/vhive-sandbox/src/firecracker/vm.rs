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
use rustix::io::ioctl_fionbio;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use vhive_api::Bytes;
use vhive_api::guest::GuestConfig;

use super::api::Api;
use super::config::FirecrackerConfig;
use super::ground::Ground;
use super::jail::Jail;
use crate::cgroup::{Cgroup, Limits, MachineShare};
use crate::contract::{self, Conversation, Outputs, Supervised, Words, chain, own_words};
use crate::deadline::Deadline;
use crate::journal::Journal;
use crate::network::NetworkSlot;
use crate::process::{self, Child, Confinement, Launch};
use crate::runtime::{BootError, SandboxSpec};

/// Name of the API's socket in the root directory.
const API: &str = "api.sock";
/// Name of the file that metrics are written to.
pub(super) const METRICS: &str = "metrics";
/// Name of the socket to which Firecracker sends its userfaultfd.
pub(super) const UFFD: &str = "uffd.sock";

/// Name of the pipe that it logs to when its standard output is the guest's.
const LOG: &str = "log";

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
    /// Our end of what it writes the serial port's bytes to.
    serial: Option<OwnedFd>,
    /// Its CPU time; with it goes its control group.
    pub(super) share: MachineShare,
}

/// What the guest's serial port is connected to, which is Firecracker's standard input and output.
#[derive(Clone, Copy, Debug)]
pub(super) enum Port<'a> {
    /// Nobody speaks to the guest; what it prints is kept.
    Console,
    /// A guest's init that is to start this; none = it is only waited for.
    Init(Option<&'a GuestConfig>),
    /// The init of a clone.
    Clone,
}

impl Port<'_> {
    fn conversation(self, journal: &Arc<Journal>) -> Conversation {
        let journal = Arc::clone(journal);
        match self {
            Self::Init(config) => Conversation::new(journal, config.cloned()),
            // A guest without our init has no channel: it ends before it has begun.
            Self::Console | Self::Clone => Conversation::with_clone(journal),
        }
    }
}

/// What a Firecracker is to be spawned with.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) spec: &'a SandboxSpec,
    /// None only to find out whether it boots at all.
    pub(super) network: Option<&'a NetworkSlot>,
    pub(super) ground: &'a Ground,
    pub(super) config: &'a FirecrackerConfig,
    /// The sandbox's directory.
    pub(super) dir: &'a Path,
    /// Files that it may read, by name.
    pub(super) lent: &'a [(&'static str, PathBuf)],
    /// Whether memory is handed to us.
    pub(super) served: bool,
    pub(super) port: Port<'a>,
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
            cpu_millis: Some(MachineShare::at_work(spec.cpu_millis)),
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
        if let Some(network) = wanted.network {
            network.release_tap();
        }
        let watch = resource("watch for the API's socket", || watch(&jail.host("")))?;

        let streams = resource("make its streams", || Streams::new(wanted.port, &jail))?;
        let jail = Arc::new(jail);
        let launch = Program::of(wanted, Arc::clone(&jail), uid, Arc::clone(&cgroup));
        let conversation = wanted.port.conversation(&spec.journal);
        let started = || launch.start(streams, conversation, spec, &cgroup);
        let (supervised, serial) = resource("start Firecracker", started)?;
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
        let (state, its) = (instance.state, instance.vmm_version);
        if !its.starts_with(&version) {
            let what = "it has just been replaced; try again, which finds the new one";
            return Err(failed(format!("it is {its}, and was {version}: {what}")));
        }
        if state != "Not started" {
            return Err(failed(format!("it has a guest before it was given one ({state})")));
        }
        let share = MachineShare::new(cgroup, spec.cpu_millis);
        Ok((Self { supervised, api, jail, serial, share }, listener))
    }

    /// From now on it has the CPU time that was asked for.
    ///
    /// # Errors
    /// [`BootError::Resource`].
    pub(super) fn serve(&self) -> Result<(), BootError> {
        resource("limit the microVM's CPU time", || self.share.serve())
    }

    /// Has every byte of the serial port's wait until there is room for it. Firecracker drops those
    /// for which there is none at once: it makes its standard output non-blocking when it starts or
    /// loads a guest. That is a property of the pipe's end, which we have as well.
    ///
    /// # Errors
    /// Any I/O error.
    pub(super) fn keep_every_byte(&mut self) -> io::Result<()> {
        self.serial.take().map_or(Ok(()), |end| Ok(ioctl_fionbio(end, false)?))
    }
}

/// What Firecracker's three standard streams are connected to.
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
    outputs: Outputs,
    serial: Option<OwnedFd>,
}

impl Streams {
    fn new(port: Port<'_>, jail: &Jail) -> io::Result<Self> {
        let (errors, stderr) = io::pipe()?;
        let (from_guest, stdout) = io::pipe()?;
        let (stdin, to_guest) = io::pipe()?;
        if let Port::Console = port {
            let outputs = Outputs {
                console: Some(from_guest),
                errors,
                from_guest: OwnedFd::from(io::pipe()?.0).into(),
                to_guest: Some(OwnedFd::from(to_guest).into()),
                kills: None,
            };
            let (stdout, stderr) = (stdout.into(), stderr.into());
            return Ok(Self { stdin: None, stdout, stderr, outputs, serial: None });
        }
        // Firecracker looks for input also when it has not been told that there is some.
        ioctl_fionbio(&stdin, true)?;
        let outputs = Outputs {
            console: Some(jail.pipe(LOG)?),
            errors,
            from_guest: OwnedFd::from(from_guest).into(),
            to_guest: Some(OwnedFd::from(to_guest).into()),
            kills: None,
        };
        let serial = Some(stdout.try_clone()?.into());
        let (stdin, stdout) = (Some(stdin.into()), stdout.into());
        Ok(Self { stdin, stdout, stderr: stderr.into(), outputs, serial })
    }
}

/// Firecracker takes whole MiB.
pub(super) fn guest_memory(spec: &SandboxSpec) -> Bytes {
    Bytes::mib(spec.memory.mib_ceil())
}

pub(super) fn vcpus(spec: &SandboxSpec) -> u32 {
    MachineShare::vcpus(spec.cpu_millis)
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
    netns: Option<PathBuf>,
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
        // Else it logs to its standard output.
        let is_console = matches!(wanted.port, Port::Console);
        let log = (!is_console).then_some(("--log-path", LOG));
        for (name, value) in [("--api-sock", API)].into_iter().chain(metrics).chain(log) {
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
        let netns = wanted.network.map(|network| network.netns().to_owned());
        Self { path, arguments, confinement, jail, netns, cgroup }
    }

    fn start(
        self,
        streams: Streams,
        conversation: Conversation,
        spec: &SandboxSpec,
        cgroup: &Cgroup,
    ) -> io::Result<(Supervised, Option<OwnedFd>)> {
        let Streams { stdin, stdout, stderr, outputs, serial } = streams;
        let words = Words {
            name: "Firecracker",
            out_of_memory: "Firecracker exceeded its memory limit and was killed; raise \
                            firecracker.overhead",
            silent: "the guest powered off without saying why",
            limit: Some(cgroup.out_of_memory()),
        };
        let launch = move || self.spawn(stdin.as_ref(), &stdout, &stderr);
        let journal = Arc::clone(&spec.journal);
        let supervised = contract::start(launch, outputs, conversation, journal, words)?;
        Ok((supervised, serial))
    }

    /// On the thread that looks after it, which moves into its namespaces.
    fn spawn(
        &self,
        stdin: Option<&OwnedFd>,
        stdout: &OwnedFd,
        stderr: &OwnedFd,
    ) -> io::Result<Child> {
        if let Some(netns) = &self.netns {
            let netns = File::open(netns)?;
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        let spawn = || {
            process::spawn(&Launch {
                program: &self.path,
                args: &self.arguments,
                environment: &[],
                inherit: &[],
                stdin: stdin.map(OwnedFd::as_fd),
                stdout: stdout.as_fd(),
                stderr: stderr.as_fd(),
                confinement: self.confinement,
            })
        };
        let child = self.jail.within(spawn)?;
        // Here, where nobody can have reaped it: its number is still its own.
        self.cgroup.add(child.pid())?;
        child.make_expendable();
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
