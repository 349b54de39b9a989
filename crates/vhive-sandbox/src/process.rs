//! A child process as a value: dropping it kills and reaps it.
//!
//! Children are made by `posix_spawn`, so that a start costs the same however large the caller
//! is, and are given exactly the descriptors that were named. What must happen between the spawn
//! and the program (another user, no capabilities, the parent-death signal) is done by util-linux'
//! `setpriv`, which then becomes the program. Why: `docs/decisions/0006-unprivileged-qemu.md`.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::{SigSet, Signal as NixSignal};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, WaitOptions, prlimit,
};
use serde::Deserialize as _;
use vhive_api::inside::CORE;

/// What to run, as whom, and with which descriptors.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The program: a path, or a name that is looked up in `PATH`.
    pub program: &'a Path,
    /// Its arguments, without the program's name.
    pub args: &'a [OsString],
    /// `NAME=value`, besides `PATH`, which is the caller's.
    pub environment: &'a [OsString],
    /// Open in the child under the same numbers; nothing else is inherited.
    pub inherit: &'a [BorrowedFd<'a>],
    /// The child's standard input; `None` = `/dev/null`.
    pub stdin: Option<BorrowedFd<'a>>,
    /// The child's standard output.
    pub stdout: BorrowedFd<'a>,
    /// The child's standard error.
    pub stderr: BorrowedFd<'a>,
    /// Drops all privileges; `None` keeps the caller's.
    pub confinement: Option<Confinement>,
}

/// An unprivileged identity without capabilities. The kernel also kills the child when the
/// *thread* that spawned it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// User and group number.
    pub uid: u32,
    /// One more group, e.g. the one that may open `/dev/kvm`.
    pub extra_group: Option<u32>,
}

/// How many user numbers follow a configured first one: 2^24.
pub const UIDS: u32 = 1 << 24;

/// Reads the first of [`UIDS`] user numbers of which none is anybody's.
///
/// # Errors
/// If the system's own users, or the number that stands for nobody in particular, would be among
/// them.
pub(crate) fn first_uid<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    use serde::de::Error as _;
    let first = u32::deserialize(from)?;
    let most = u32::MAX - UIDS;
    if (1 << 16..=most).contains(&first) {
        return Ok(first);
    }
    let what = format!("first_uid is {first}, and must be from 65536 to {most}");
    Err(D::Error::custom(what))
}

impl Confinement {
    /// The words in front of the program that make it so.
    fn prefix(self) -> Vec<OsString> {
        let Self { uid, extra_group } = self;
        let groups = extra_group.map_or("--clear-groups".into(), |g| format!("--groups={g}"));
        let words = [
            "setpriv".to_owned(),
            "--pdeathsig=KILL".to_owned(),
            "--no-new-privs".to_owned(),
            "--inh-caps=-all".to_owned(),
            "--bounding-set=-all".to_owned(),
            format!("--regid={uid}"),
            groups,
            format!("--reuid={uid}"),
            "--".to_owned(),
        ];
        words.into_iter().map(OsString::from).collect()
    }
}

/// Where a process says how readily the kernel ends it when the host runs out of memory, from -1000
/// to 1000.
///
/// # Source
/// proc_pid_oom_score_adj(5)
const OOM_SCORE_ADJ: &str = "oom_score_adj";

/// What a sandbox's processes say there: that they go before the node. Raising it takes no
/// privilege; below the caller's own value it might.
pub(crate) fn expendable() -> i32 {
    let own = std::fs::read_to_string(Path::new("/proc/self").join(OOM_SCORE_ADJ));
    more_than(own.ok().and_then(|own| own.trim().parse().ok()).unwrap_or(0))
}

fn more_than(own: i32) -> i32 {
    own.saturating_add(500).clamp(-1000, 1000)
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By a signal of this number.
    Signal(i32),
    /// Somebody else reaped it.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::Unknown => f.write_str("ended"),
        }
    }
}

/// Which file a program is: another one once it has been replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProgramFile {
    path: PathBuf,
    /// Device, number on it, and when it was changed, in seconds and nanoseconds.
    identity: (u64, u64, i64, i64),
}

impl ProgramFile {
    /// The file that is run by a path, or by a name that is looked up in `PATH`; none if there is
    /// none.
    pub(crate) fn of(program: &Path) -> Option<Self> {
        Self::within(program, &std::env::var_os("PATH").unwrap_or_default())
    }

    fn within(program: &Path, path: &OsStr) -> Option<Self> {
        let read = |path: PathBuf| {
            let meta = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
            let identity = (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec());
            Some(Self { path, identity })
        };
        if program.components().count() > 1 {
            return read(program.to_owned());
        }
        std::env::split_paths(path).find_map(|dir| read(dir.join(program)))
    }
}

/// A running (or ended, but not yet reaped) child.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    exit: Option<Exit>,
}

/// Starts a child.
///
/// # Errors
/// The system's error. A program that is missing behind a [`Confinement`] shows as exit code 127
/// of the child instead.
pub fn spawn(launch: &Launch<'_>) -> io::Result<Child> {
    let mut words = launch.confinement.map_or_else(Vec::new, Confinement::prefix);
    words.push(launch.program.into());
    words.extend_from_slice(launch.args);
    let words = words.iter().map(|word| c_string(word)).collect::<io::Result<Vec<_>>>()?;
    // setpriv looks the program up in PATH; nothing else of our environment is the child's business.
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let mut variable = OsString::from("PATH=");
    variable.push(path);
    let mut environment = vec![c_string(&variable)?];
    for variable in launch.environment {
        environment.push(c_string(variable)?);
    }

    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK,
    )?;
    // Its own process group: Ctrl-C in the node's terminal is the node's to handle.
    attributes.set_pgroup(nix::unistd::Pid::from_raw(0))?;
    let mut default = SigSet::empty();
    default.add(NixSignal::SIGPIPE);
    attributes.set_sigdefault(&default)?;
    attributes.set_sigmask(&SigSet::empty())?;

    let null = File::open("/dev/null")?;
    let descriptors = descriptors(launch, launch.stdin.unwrap_or(null.as_fd()))?;
    let pid = posix_spawnp(&words[0], &descriptors, &attributes, &words, &environment)?;
    let pid = Pid::from_raw(pid.as_raw()).expect("posix_spawn gives a positive number");
    // Nobody but us reaps it, so the number still means our child.
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => {
            let child = Child { pid, pidfd, exit: None };
            child.dump_nothing();
            Ok(child)
        }
        Err(error) => {
            rustix::process::kill_process(pid, Signal::KILL)?;
            rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
            Err(error.into())
        }
    }
}

fn descriptors(launch: &Launch<'_>, stdin: BorrowedFd<'_>) -> io::Result<PosixSpawnFileActions> {
    let mut actions = PosixSpawnFileActions::init()?;
    actions.add_dup2(stdin.as_raw_fd(), 0)?;
    actions.add_dup2(launch.stdout.as_raw_fd(), 1)?;
    actions.add_dup2(launch.stderr.as_raw_fd(), 2)?;
    for fd in launch.inherit {
        // Onto itself: the one thing that this does is to keep it open across the exec.
        actions.add_dup2(fd.as_raw_fd(), fd.as_raw_fd())?;
    }
    Ok(actions)
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(io::Error::from)
}

impl Child {
    /// Its process id; not reused before it is reaped, which only this value does.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Becomes readable when the child has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Lets it leave no core dump: a VMM's memory is its guest's.
    fn dump_nothing(&self) {
        let none = Rlimit { current: Some(CORE), maximum: Some(CORE) };
        if let Err(error) = prlimit(Some(self.pid), Resource::Core, none) {
            tracing::debug!(pid = self.pid.as_raw_nonzero().get(), %error, "may leave a core dump");
        }
    }

    /// Has it end before the caller when the host runs out of memory. Where that cannot be said,
    /// the kernel chooses by size alone.
    pub(crate) fn make_expendable(&self) {
        let file = Path::new("/proc").join(self.pid.as_raw_nonzero().to_string());
        if let Err(error) = std::fs::write(file.join(OOM_SCORE_ADJ), expendable().to_string()) {
            tracing::debug!(pid = self.pid.as_raw_nonzero().get(), %error, "not made expendable");
        }
    }

    /// Kills it; no error if it has ended already.
    pub fn kill(&self) {
        kill(self.pidfd());
    }

    /// Waits until it has ended, reaps it, and says how it ended.
    pub fn wait(&mut self) -> Exit {
        if let Some(exit) = self.exit {
            return exit;
        }
        let exit = loop {
            match rustix::process::waitid(WaitId::PidFd(self.pidfd()), WaitIdOptions::EXITED) {
                Ok(Some(status)) => {
                    let code = status.exit_status().map(Exit::Code);
                    let signal = || status.terminating_signal().map(Exit::Signal);
                    break code.or_else(signal).unwrap_or(Exit::Unknown);
                }
                Err(rustix::io::Errno::INTR) | Ok(None) => {}
                Err(_) => break Exit::Unknown,
            }
        };
        *self.exit.insert(exit)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        self.wait();
    }
}

/// Kills the process behind a pidfd; no error if it has ended already.
pub fn kill(pidfd: BorrowedFd<'_>) {
    if let Err(error) = rustix::process::pidfd_send_signal(pidfd, Signal::KILL)
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!(%error, "process not killed");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn run(program: &str, args: &[&str], inherit: &[BorrowedFd<'_>]) -> (Exit, String) {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let launch = Launch {
            program: Path::new(program),
            args: &args,
            environment: &[],
            inherit,
            stdin: None,
            stdout: writer.as_fd(),
            stderr: writer.as_fd(),
            confinement: None,
        };
        let mut child = spawn(&launch).expect("spawned");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("UTF-8");
        (child.wait(), text)
    }

    #[test]
    fn the_exit_is_told() {
        assert_eq!(run("sh", &["-c", "exit 7"], &[]).0, Exit::Code(7));
        assert_eq!(run("sh", &["-c", "kill -9 $$"], &[]).0, Exit::Signal(9));
    }

    #[test]
    fn only_the_named_descriptors_are_inherited() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"inherited").expect("written");
        let other = tempfile::NamedTempFile::new().expect("a file");
        let script = format!("cat /proc/self/fd/{}; ls -l /proc/self/fd", file.as_raw_fd());
        let (_, text) = run("sh", &["-c", &script], &[file.as_fd()]);
        assert!(text.starts_with("inherited"), "{text}");
        let name = other.path().file_name().and_then(OsStr::to_str).expect("UTF-8");
        assert!(!text.contains(name), "{text}");
    }

    #[test]
    fn a_sandbox_is_never_dearer_than_its_node() {
        assert_eq!((more_than(0), more_than(-1000), more_than(985)), (500, -500, 1000));
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").expect("readable");
        let own: i32 = own.trim().parse().expect("a number");
        assert!(expendable() > own || own == 1000);
    }

    #[test]
    fn a_program_that_has_been_replaced_is_another_file() {
        let [first, second] = [(), ()].map(|()| tempfile::tempdir().expect("a directory"));
        let path = std::env::join_paths([first.path(), second.path()]).expect("joined");
        let look = |program: &str| ProgramFile::within(Path::new(program), &path);
        assert_eq!(look("runtime"), None);
        let write = |dir: &Path, text: &str| {
            std::fs::write(dir.join("draft"), text).expect("written");
            std::fs::rename(dir.join("draft"), dir.join("runtime")).expect("renamed");
        };
        write(second.path(), "1");
        let one = look("runtime");
        assert!(one.is_some() && one == look("runtime"));
        write(second.path(), "2");
        let two = look("runtime");
        assert_ne!(one, two);
        write(first.path(), "2");
        assert_ne!(two, look("runtime"), "that one is run now");
        assert!(look(&second.path().join("runtime").to_string_lossy()) == two);
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let (_, writer) = io::pipe().expect("a pipe");
        let launch = Launch {
            program: Path::new("/nonexistent/program"),
            args: &[],
            environment: &[],
            inherit: &[],
            stdin: None,
            stdout: writer.as_fd(),
            stderr: writer.as_fd(),
            confinement: None,
        };
        assert_eq!(spawn(&launch).expect_err("missing").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn dropping_kills_and_nothing_is_dumped() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let args = [OsString::from("1000")];
        let launch = Launch {
            program: Path::new("sleep"),
            args: &args,
            environment: &[],
            inherit: &[],
            stdin: None,
            stdout: writer.as_fd(),
            stderr: writer.as_fd(),
            confinement: None,
        };
        let child = spawn(&launch).expect("spawned");
        drop(writer);
        let limits = format!("/proc/{}/limits", child.pid().as_raw_nonzero());
        let limits = std::fs::read_to_string(limits).expect("it runs");
        let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
        let mut core = core.expect("listed").split_whitespace();
        assert_eq!((core.next(), core.next()), (Some("1"), Some("1")), "no core dump");
        drop(child);
        // The pipe ends only when the child has gone.
        assert_eq!(reader.read(&mut [0]).expect("read"), 0);
    }

    #[test]
    fn a_confined_child_dies_with_its_thread() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP a_confined_child_dies_with_its_thread: root");
            return;
        }
        let thread = std::thread::spawn(|| {
            let (mut reader, writer) = io::pipe().expect("a pipe");
            let script = "id -u; grep CapBnd /proc/self/status; exec sleep 1000";
            let args = ["-c", script].map(OsString::from);
            let launch = Launch {
                program: Path::new("sh"),
                args: &args,
                environment: &[],
                inherit: &[],
                stdin: None,
                stdout: writer.as_fd(),
                stderr: writer.as_fd(),
                confinement: Some(Confinement { uid: 1_900_000_007, extra_group: None }),
            };
            let child = spawn(&launch).expect("spawned");
            drop(writer);
            let mut told = [0; 64];
            let mut have = 0;
            while told[..have].iter().filter(|b| **b == b'\n').count() < 2 {
                have += reader.read(&mut told[have..]).expect("read");
            }
            assert_eq!(&told[..have], b"1900000007\nCapBnd:\t0000000000000000\n");
            child
        });
        let mut child = thread.join().expect("no panic");
        assert_eq!(child.wait(), Exit::Signal(9));
    }

    #[test]
    fn confinement_names_no_capability_and_no_privilege() {
        let words = Confinement { uid: 1_900_000_001, extra_group: Some(106) }.prefix();
        let words: Vec<&str> = words.iter().filter_map(|w| w.to_str()).collect();
        assert!(words.contains(&"--reuid=1900000001") && words.contains(&"--groups=106"));
        assert!(words.contains(&"--bounding-set=-all") && words.contains(&"--no-new-privs"));
    }
}
