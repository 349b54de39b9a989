//! The process of a container: first the runtime's command, then what it has started.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::criu::{Changes, mount_memory, unpack_changes};
use super::layer::Layer;
use super::tool::Tool;
use crate::contract::Subject;
use crate::process::{self, Child, Exit, Launch};

/// Name of the file in a bundle that the runtime writes the first process' number to.
const PID_FILE: &str = "pid";

/// What the runtime is asked to do.
#[derive(Clone, Debug)]
pub(super) enum Verb {
    /// To start a container.
    Run,
    /// To make one that waits for what it shall be (gVisor only).
    Create,
    /// To start one from the checkpoint in a directory.
    Restore(PathBuf),
}

/// Everything that a container is started from.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) tool: Tool,
    pub(super) layer: Layer,
    /// Where its written layer's directory is put.
    pub(super) changes: Changes,
    /// With `config.json` in it; the runtime's own files are put there as well.
    pub(super) bundle: PathBuf,
    /// The function's root; none for a probe.
    pub(super) image: Option<PathBuf>,
    /// The network namespace; none = an empty one.
    pub(super) netns: Option<OwnedFd>,
    pub(super) verb: Verb,
    pub(super) name: String,
    /// The guest channel's two ends.
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// Told the first process once there is one.
    pub(super) tell: Sender<Pid>,
}

/// A container that is being started, or runs.
#[derive(Debug)]
pub(super) struct Container {
    command: Option<Child>,
    running: Option<(Pid, OwnedFd)>,
    pid_file: PathBuf,
    tell: Sender<Pid>,
    /// It was to be ended while the command ran.
    doomed: bool,
}

impl Start {
    /// Runs the command from a thread that is in the container's namespaces; they go with the last
    /// process that is in them.
    pub(super) fn launch(self) -> io::Result<Container> {
        let command = thread::scope(|scope| {
            let spawning = thread::Builder::new().name("vhive-container".to_owned());
            let handle = spawning.spawn_scoped(scope, || {
                self.enter()?;
                self.spawn()
            })?;
            handle.join().unwrap_or_else(|_| Err(io::Error::other("spawning thread panicked")))
        })?;
        Ok(Container {
            command: Some(command),
            running: None,
            pid_file: self.bundle.join(PID_FILE),
            tell: self.tell,
            doomed: false,
        })
    }

    fn enter(&self) -> io::Result<()> {
        part_from_mounts()?;
        self.mount_root().map_err(|error| naming("mount the container's root", &error))?;
        match &self.netns {
            Some(netns) => {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            }
            None => unshare(CloneFlags::CLONE_NEWNET)?,
        }
        if self.tool.is_gvisor() { hide_from_gvisor() } else { Ok(()) }
    }

    /// The image with init on top; above it memory for what is written, except for gVisor, which
    /// keeps that itself.
    fn mount_root(&self) -> io::Result<()> {
        let Layer { init, empty } = &self.layer;
        let image = self.image.as_deref().unwrap_or(empty);
        let root = self.bundle.join("rootfs");
        let mut layers = format!("lowerdir={}:{}", plain(init)?, plain(image)?);
        let mut flags = MountFlags::NODEV;
        if self.tool.is_gvisor() {
            flags |= MountFlags::RDONLY;
        } else {
            let changes = self.bundle.join("changes");
            mount("tmpfs", &changes, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))?;
            let (upper, work) = (changes.join("upper"), changes.join("work"));
            fs::create_dir(&upper)?;
            fs::create_dir(&work)?;
            if let Verb::Restore(from) = &self.verb {
                mount_memory(from).map_err(|error| naming("find the saved memory", &error))?;
                unpack_changes(from, &upper)
                    .map_err(|error| naming("unpack the saved layer", &error))?;
            }
            // Nobody has put one there before.
            let _ = self.changes.set(fs::File::open(&upper)?.into());
            layers += &format!(",upperdir={},workdir={},volatile", plain(&upper)?, plain(&work)?);
        }
        let layers = std::ffi::CString::new(layers)?;
        mount("overlay", &root, "overlay", flags, Some(layers.as_c_str()))?;
        Ok(())
    }

    fn spawn(&self) -> io::Result<Child> {
        let bundle = self.bundle.to_string_lossy();
        let pid_file = self.bundle.join(PID_FILE);
        let pid_file = pid_file.to_string_lossy();
        let (from, work);
        let mut command = match &self.verb {
            Verb::Run => vec!["run", "--detach"],
            Verb::Create => vec!["create"],
            Verb::Restore(dir) => {
                from = dir.to_string_lossy();
                work = self.bundle.join("criu").to_string_lossy().into_owned();
                let mut words = vec!["restore", "--detach", "--image-path", &from];
                if !self.tool.is_gvisor() {
                    words.extend(["--file-locks", "--work-path", &work]);
                }
                words
            }
        };
        command.extend(["--bundle", &bundle, "--pid-file", &pid_file, &self.name]);
        let arguments = self.tool.words(&self.bundle.join("runtime"), &command);
        process::spawn(&Launch {
            program: &self.tool.binary,
            args: &arguments,
            environment: &[],
            inherit: &[],
            stdin: Some(self.stdin.as_fd()),
            stdout: self.stdout.as_fd(),
            stderr: self.stderr.as_fd(),
            confinement: None,
        })
    }
}

/// Gives the calling thread a mount namespace of its own, whose mounts nobody else sees.
pub(super) fn part_from_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    Ok(())
}

/// gVisor takes a network namespace with this directory for the host's own and refuses to use it;
/// since Linux 6.9 every namespace has it. To be called in the namespace.
pub(super) fn hide_from_gvisor() -> io::Result<()> {
    mount("none", "/proc/sys/net/core", "tmpfs", MountFlags::RDONLY, None)
        .map_err(|error| naming("hide /proc/sys/net/core", &error.into()))
}

/// A path that overlayfs does not take for several.
fn plain(path: &Path) -> io::Result<&str> {
    let text = path.to_str().filter(|text| !text.contains([':', ',', '\\']));
    text.ok_or_else(|| {
        let what = format!("{} has a character that cannot be mounted", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, what)
    })
}

fn naming(step: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{step}: {error}"))
}

impl Container {
    /// The first process, as the runtime's command has written it down.
    fn first_process(&self) -> io::Result<(Pid, OwnedFd)> {
        let text = fs::read_to_string(&self.pid_file)?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the runtime wrote no process number"))?;
        Ok((pid, pidfd_open(pid, PidfdFlags::empty())?))
    }
}

impl Subject for Container {
    fn pid(&self) -> Pid {
        let command = self.command.as_ref().map(Child::pid);
        let running = || self.running.as_ref().map(|(pid, _)| *pid);
        command.or_else(running).unwrap_or(Pid::INIT)
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        match (&self.command, &self.running) {
            (Some(command), _) => command.pidfd(),
            (None, Some((_, pidfd))) => pidfd.as_fd(),
            (None, None) => unreachable!("one follows the other"),
        }
    }

    fn ended(&mut self) -> Option<Exit> {
        let Some(mut command) = self.command.take() else { return Some(Exit::Unknown) };
        let exit = command.wait();
        match self.first_process() {
            Ok((pid, pidfd)) if exit == Exit::Code(0) => {
                // Nobody listens any more when a start has been given up.
                let _ = self.tell.send(pid);
                if self.doomed {
                    process::kill(pidfd.as_fd());
                }
                self.running = Some((pid, pidfd));
                None
            }
            Ok(_) => Some(exit),
            // A container that has ended by now has told what there is to tell.
            Err(_) => Some(if exit == Exit::Code(0) { Exit::Unknown } else { exit }),
        }
    }

    fn kill(&mut self) {
        self.doomed = true;
        if let Some((_, pidfd)) = &self.running {
            process::kill(pidfd.as_fd());
        }
        if let Some(command) = &self.command {
            command.kill();
        }
    }
}
