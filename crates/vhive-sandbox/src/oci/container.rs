//! The process of a container: first the runtime's command, then what it has started.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::retry_on_intr;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use vhive_api::RuntimeName;
use vhive_api::guest::Volume;

use super::criu::{Changes, mount_memory, unpack_changes};
use super::form::FirstProcess;
use super::layer::{INIT, Layer};
use super::outside::Reaper;
use super::tool::Tool;
use super::volumes;
use crate::cgroup;
use crate::contract::Subject;
use crate::process::{self, Child, Exit, Launch};

/// Directory of a bundle: the layer of a container without init.
pub(super) const OWN_LAYER: &str = "own";

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
    /// Who is the container's first process.
    pub(super) first: FirstProcess,
    /// Where its written layer's directory is put.
    pub(super) changes: Changes,
    /// With `config.json` in it; the runtime's own files are put there as well.
    pub(super) bundle: PathBuf,
    /// The function's root; none for a probe.
    pub(super) image: Option<PathBuf>,
    /// The network namespace; none = an empty one.
    pub(super) netns: Option<OwnedFd>,
    /// The function's files that are to be there before the container is.
    pub(super) volumes: Vec<Volume>,
    pub(super) verb: Verb,
    pub(super) name: String,
    /// The guest channel's two ends; without init, where its parent reports, and its output.
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// A container that is being started, or runs.
#[derive(Debug)]
pub(super) struct Container {
    command: Option<Child>,
    /// What follows once the command has made the container.
    then: Option<Next>,
    running: Option<(Pid, OwnedFd)>,
    /// Readable once the second command or the first process has ended; while both are there.
    either: Option<OwnedFd>,
    pid_file: PathBuf,
    /// The sandbox's identifier, which is the name of its groups.
    name: String,
    tell: Sender<Pid>,
    /// It was to be ended while the command ran.
    doomed: bool,
}

/// A second command, which starts what the first has made.
#[derive(Debug)]
struct Next {
    program: PathBuf,
    words: Vec<OsString>,
    stderr: OwnedFd,
}

impl Next {
    /// None if it cannot be run, of which the standard error is told.
    fn spawn(self) -> Option<Child> {
        let spawned = process::spawn(&Launch {
            program: &self.program,
            args: &self.words,
            environment: &[],
            inherit: &[],
            stdin: None,
            stdout: self.stderr.as_fd(),
            stderr: self.stderr.as_fd(),
            confinement: None,
        });
        let mut stderr = fs::File::from(self.stderr);
        // Who does not read it any more has given the start up.
        spawned.map_err(|error| writeln!(stderr, "{}: {error}", self.program.display())).ok()
    }
}

impl Start {
    /// Runs the command from a thread that is in the container's namespaces; they go with the last
    /// process that is in them.
    fn run(&self) -> io::Result<Child> {
        thread::scope(|scope| {
            let spawning = thread::Builder::new().name("vhive-container".to_owned());
            let handle = spawning.spawn_scoped(scope, || {
                self.enter()?;
                self.spawn()
            })?;
            handle.join().unwrap_or_else(|_| Err(io::Error::other("spawning thread panicked")))
        })
    }

    /// Starts one with init in it; `tell` is told its first process once there is one.
    pub(super) fn launch(self, tell: Sender<Pid>) -> io::Result<Container> {
        Ok(Container {
            command: Some(self.run()?),
            then: self.second()?,
            running: None,
            either: None,
            pid_file: pid_file(&self.bundle),
            name: self.name,
            tell,
            doomed: false,
        })
    }

    /// crun's `run --detach` goes on in a session of its own, where nobody who gives a start up finds
    /// it: it would write on into the sandbox's directory. `create` does all of that itself, and
    /// whoever kills it has killed the start.
    fn in_two(&self) -> bool {
        self.tool.name == RuntimeName::Crun && matches!(self.verb, Verb::Run)
    }

    fn second(&self) -> io::Result<Option<Next>> {
        if !self.in_two() {
            return Ok(None);
        }
        let words = self.tool.words(&self.bundle.join("runtime"), &["start", &self.name]);
        let (program, stderr) = (self.tool.binary.clone(), self.stderr.try_clone()?);
        Ok(Some(Next { program, words, stderr }))
    }

    /// Starts one whose first process is the function.
    pub(super) fn launch_reaped(self) -> io::Result<Reaper> {
        Ok(Reaper { child: self.run()?, bundle: self.bundle })
    }

    fn enter(&self) -> io::Result<()> {
        part_from_mounts()?;
        self.mount_root().map_err(|error| naming("mount the container's root", &error))?;
        volumes::make(&self.volumes, &self.bundle)
            .map_err(|error| naming("make the function's volumes", &error))?;
        match &self.netns {
            Some(netns) => {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            }
            None => unshare(CloneFlags::CLONE_NEWNET)?,
        }
        hide_from(&self.tool)
    }

    /// The image with init, or what stands for it, on top and the usual directories below; above
    /// all memory for what is written, except for gVisor, which keeps that itself.
    fn mount_root(&self) -> io::Result<()> {
        let Layer { init, empty, usual, .. } = &self.layer;
        let image = self.image.as_deref().unwrap_or(empty);
        let own = self.bundle.join(OWN_LAYER);
        let top = if self.first == FirstProcess::Init { init } else { &own };
        let root = self.bundle.join("rootfs");
        let mut layers = format!("lowerdir={}:{}:{}", plain(top)?, plain(image)?, plain(usual)?);
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
        let pid_file = pid_file(&self.bundle);
        let pid_file = pid_file.to_string_lossy();
        let (from, work);
        let mut command = match &self.verb {
            Verb::Run if self.in_two() => vec!["create"],
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
        if let Verb::Restore(_) = self.verb {
            command.extend(self.tool.restore_options());
        }
        command.extend(["--bundle", &bundle, "--pid-file", &pid_file, &self.name]);
        let mut arguments = self.tool.words(&self.bundle.join("runtime"), &command);
        let reaper = reaper(&self.layer);
        let mut program = &self.tool.binary;
        if self.first == FirstProcess::Function {
            let words = ["reap".into(), (*pid_file).into(), program.into()];
            arguments.splice(0..0, words);
            program = &reaper;
        }
        process::spawn(&Launch {
            program,
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

/// The program that is the parent of a container without init: init itself, as a file of the host's.
pub(super) fn reaper(layer: &Layer) -> PathBuf {
    layer.init.join(INIT.trim_start_matches('/'))
}

/// The file in a bundle that the runtime writes the first process' number to.
pub(super) fn pid_file(bundle: &Path) -> PathBuf {
    bundle.join(PID_FILE)
}

/// The first process, as the runtime's command has written it down.
fn first_process(pid_file: &Path) -> io::Result<(Pid, OwnedFd)> {
    let text = fs::read_to_string(pid_file)?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the runtime wrote no process number"))?;
    Ok((pid, pidfd_open(pid, PidfdFlags::empty())?))
}

/// Kills the first process, if it is there and a child of `parent`'s. Before that it is nobody's to
/// kill: its number may be somebody else's by now.
pub(super) fn end_first(pid_file: &Path, parent: Pid) {
    if let Ok((pid, pidfd)) = first_process(pid_file)
        && parent_of(pid) == Some(parent)
    {
        process::kill(pidfd.as_fd());
    }
}

/// # Source
/// proc_pid_stat(5): the fourth field; the second may have anything in it but ends with the last
/// parenthesis.
fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    Pid::from_raw(rest.split_whitespace().nth(1)?.parse().ok()?)
}

/// Gives the calling thread a mount namespace of its own, whose mounts nobody else sees.
pub(super) fn part_from_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    Ok(())
}

/// Hides what a runtime would refuse to run beside, from the calling thread, which is in the
/// container's network namespace and in a mount namespace of its own.
pub(super) fn hide_from(tool: &Tool) -> io::Result<()> {
    match tool.name {
        RuntimeName::Runsc => hide_from_gvisor(),
        RuntimeName::Crun => hide_from_crun(),
        _ => Ok(()),
    }
}

/// gVisor takes a network namespace with this directory for the host's own and refuses to use it;
/// since Linux 6.9 every namespace has it.
fn hide_from_gvisor() -> io::Result<()> {
    mount("none", "/proc/sys/net/core", "tmpfs", MountFlags::RDONLY, None)
        .map_err(|error| naming("hide /proc/sys/net/core", &error.into()))
}

/// crun refuses a host that has a version 2 hierarchy beside version 1's. Without it the host is one
/// with version 1 only, whose groups hold all limits in any case.
fn hide_from_crun() -> io::Result<()> {
    let Some(place) = cgroup::beside_version_one()? else { return Ok(()) };
    // It makes a group there all the same.
    mount("none", &place, "tmpfs", MountFlags::empty(), None)
        .map_err(|error| naming(&format!("hide {}", place.display()), &error.into()))
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
    /// The first process; an error once it has ended.
    fn first_process(&self) -> io::Result<(Pid, OwnedFd)> {
        let (pid, pidfd) = first_process(&self.pid_file)?;
        // Nobody of ours reaps it: it may have ended, and the number be somebody else's.
        if !is_in_group(pid, &self.name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok((pid, pidfd))
    }
}

/// Whether a process is in a sandbox's groups. One that has ended is in none.
///
/// # Source
/// cgroups(7), `/proc/[pid]/cgroup`.
fn is_in_group(pid: Pid, sandbox: &str) -> bool {
    let file = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
    let groups = fs::read_to_string(file).unwrap_or_default();
    groups.lines().any(|line| line.split('/').any(|part| part == sandbox))
}

impl Subject for Container {
    fn pid(&self) -> Pid {
        let command = self.command.as_ref().map(Child::pid);
        let running = || self.running.as_ref().map(|(pid, _)| *pid);
        command.or_else(running).unwrap_or(Pid::INIT)
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        match (&self.command, &self.running) {
            // A command that starts what has ended waits for it for ever.
            (Some(command), Some(_)) => {
                self.either.as_ref().map_or_else(|| command.pidfd(), OwnedFd::as_fd)
            }
            (Some(command), None) => command.pidfd(),
            (None, Some((_, pidfd))) => pidfd.as_fd(),
            (None, None) => unreachable!("one follows the other"),
        }
    }

    fn ended(&mut self) -> Option<Exit> {
        let Some(mut command) = self.command.take() else { return Some(Exit::Unknown) };
        if let Some((_, pidfd)) = self.running.as_ref().filter(|_| self.either.take().is_some())
            && !has_ended(command.pidfd())
            && has_ended(pidfd.as_fd())
        {
            end_command(&command);
            command.wait();
            return Some(Exit::Unknown);
        }
        let exit = command.wait();
        match self.first_process() {
            Ok(made) if exit == Exit::Code(0) && self.then.is_some() && !self.doomed => {
                self.command = self.then.take().and_then(Next::spawn);
                let both = self.command.as_ref().map(|it| either(it.pidfd(), made.1.as_fd()));
                self.either = both.and_then(Result::ok);
                self.running = Some(made);
                if self.either.is_none() {
                    // It waits, and nobody will start it, or nobody would notice its end.
                    self.kill();
                }
                None
            }
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
            end_command(command);
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(command) = &self.command {
            end_command(command);
        }
    }
}

/// A descriptor that is readable once one of two processes has ended.
///
/// # Source
/// epoll(7): such a descriptor can itself be waited for.
fn either(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (number, pidfd) in [(1, one), (2, other)] {
        epoll::add(&both, pidfd, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
    }
    Ok(both)
}

/// Whether a process has.
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let fds = &mut [PollFd::new(&pidfd, PollFlags::IN)];
    retry_on_intr(|| poll(fds, Some(&at_once))).is_ok_and(|ready| ready > 0)
}

/// Ends the command with its children: crun starts the container from one, which would go on.
fn end_command(command: &Child) {
    // Nobody has reaped it, so its group's number is still its own.
    let _ = kill_process_group(command.pid(), Signal::KILL);
    command.kill();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command that has ended well and says that the first process is this test.
    fn written(name: &str, dir: &Path) -> Container {
        let pid_file = dir.join(PID_FILE);
        fs::write(&pid_file, std::process::id().to_string()).expect("written");
        let (tell, _) = std::sync::mpsc::channel();
        let name = name.to_owned();
        let (command, then, running, either) = (None, None, None, None);
        Container { command, then, running, either, pid_file, name, tell, doomed: false }
    }

    #[test]
    fn a_number_that_is_somebody_elses_by_now_is_not_taken() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let id = vhive_api::SandboxId::random();
        let error = written(id.as_str(), dir.path()).first_process().expect_err("not its own");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_command_that_starts_what_has_ended_is_ended() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let spawn = |words: &[&str]| {
            let null = fs::File::options().write(true).open("/dev/null").expect("opened");
            let child = process::spawn(&Launch {
                program: Path::new(words[0]),
                args: &words[1..].iter().map(OsString::from).collect::<Vec<_>>(),
                environment: &[],
                inherit: &[],
                stdin: None,
                stdout: null.as_fd(),
                stderr: null.as_fd(),
                confinement: None,
            });
            child.expect("spawned")
        };
        let mut made = spawn(&["sleep", "1000"]);
        let mut container = written("none", dir.path());
        let command = spawn(&["sleep", "1000"]);
        let pidfd = made.pidfd().try_clone_to_owned().expect("duplicated");
        container.either = Some(either(command.pidfd(), pidfd.as_fd()).expect("made"));
        container.running = Some((made.pid(), pidfd));
        container.command = Some(command);
        let readable = |container: &Container, millis: i64| {
            let pidfd = container.pidfd();
            let most = Timespec { tv_sec: millis / 1000, tv_nsec: millis % 1000 * 1_000_000 };
            poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&most)).expect("polled") > 0
        };
        assert!(!readable(&container, 50), "both run");
        process::kill(made.pidfd());
        assert!(readable(&container, 10_000), "nobody notices");
        assert_eq!(container.ended(), Some(Exit::Unknown));
        assert_eq!(made.wait(), Exit::Signal(9));
    }

    #[test]
    fn a_process_is_known_by_its_group() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = crate::run_dir::RunRoot::below(dir.path(), dir.path());
        let id = vhive_api::SandboxId::random();
        let made = cgroup::Cgroup::create_everywhere(&root, &id, &cgroup::Limits::default());
        let group = match made {
            Ok(group) => group,
            Err(error) => return eprintln!("SKIP a_process_is_known_by_its_group: {error}"),
        };
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("spawned");
        let pid = Pid::from_child(&child);
        assert!(!is_in_group(pid, id.as_str()));
        group.add(pid).expect("added");
        assert!(is_in_group(pid, id.as_str()));
        assert!(!is_in_group(pid, &id.as_str()[1..]));
        drop(group);
        child.wait().expect("reaped");
        assert!(!is_in_group(pid, id.as_str()));
    }
}
