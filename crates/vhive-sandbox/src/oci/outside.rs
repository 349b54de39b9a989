//! What is done from outside for a function that is its container's first process: noticing that it
//! listens, and stopping it.

use std::io::{self, PipeReader, PipeWriter};
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use vhive_api::SandboxId;

use super::command;
use super::container::{end_first, pid_file};
use super::sandbox::OciSandbox;
use super::tool::Tool;
use crate::contract::{Subject, grace};
use crate::deadline::Deadline;
use crate::journal::{Journal, Milestone};
use crate::process::{Child, Exit};
use crate::runtime::Sandbox as _;

/// Shortest and longest pause between two looks at the port.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(10));

/// Part of the time passed that a pause takes: so late is the news at the most.
const PART: u32 = 50;

/// A pause is at least so many times the look before it: gVisor answers in the function's time.
const REST: u32 = 5;

/// Time for the first look, and the longest. Who listens, and who does not, is told at once; only
/// an answer that is lost is waited for in vain.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What is needed for that.
#[derive(Debug)]
pub(super) struct Outside {
    tool: Tool,
    id: SandboxId,
    /// The sandbox's directory.
    dir: PathBuf,
    netns: Arc<OwnedFd>,
    stop_signal: i32,
    journal: Arc<Journal>,
    looking: Option<(JoinHandle<()>, PipeWriter)>,
}

impl Outside {
    /// Begins to look whether the function listens; that is told to the journal. To be called when
    /// the runtime's command has ended: before that the sandbox has no interface, and what is sent
    /// to it would be lost and sent again only after a second.
    pub(super) fn look_after(
        tool: &Tool,
        sandbox: &OciSandbox,
        stop_signal: i32,
    ) -> io::Result<Self> {
        let (endpoint, theirs) = (sandbox.endpoint(), Arc::clone(&sandbox.journal));
        let (enough, tell) = io::pipe()?;
        let looking = thread::Builder::new()
            .name("vhive-listening".to_owned())
            .spawn(move || look_until_listening(endpoint, &theirs, &enough))?;
        Ok(Self {
            tool: tool.clone(),
            id: sandbox.id.clone(),
            dir: sandbox.dir.path().to_owned(),
            netns: Arc::clone(&sandbox.netns),
            stop_signal,
            journal: Arc::clone(&sandbox.journal),
            looking: Some((looking, tell)),
        })
    }

    /// Asks the function to end by its stop signal, kills it after a grace period, and waits until
    /// the sandbox has ended or the deadline passed.
    pub(super) fn stop(&self, deadline: Deadline) {
        let asked = Deadline::after(grace(deadline));
        self.signal(self.stop_signal, asked);
        if self.journal.wait_end(asked).is_none() {
            // Not the sandbox, so that the function's own end is told.
            self.signal(KILL, deadline);
            self.journal.wait_end(deadline);
        }
    }

    fn signal(&self, signal: i32, deadline: Deadline) {
        let signal = signal.to_string();
        let words = ["kill", self.id.as_str(), &signal];
        let words = self.tool.words(&self.dir.join("runtime"), &words);
        let sent = command::run_inside(&self.netns, &self.tool, &words, deadline);
        // One that has ended cannot be signalled, and need not be.
        if let Err(reason) = sent
            && self.journal.ended().is_none()
        {
            tracing::warn!(sandbox = %self.id, signal, reason, "function not signalled");
        }
    }
}

const KILL: i32 = 9;

impl Drop for Outside {
    fn drop(&mut self) {
        // The journal has an end by now, so it looks no more, and this ends the look of now. It must not
        // look at whoever gets the address next.
        if let Some((looking, tell)) = self.looking.take() {
            drop(tell);
            if looking.join().is_err() {
                tracing::error!(sandbox = %self.id, "thread that looks at a port panicked");
            }
        }
    }
}

fn look_until_listening(endpoint: SocketAddr, journal: &Journal, enough: &PipeReader) {
    let begun = Instant::now();
    let mut time = LOOKS.0;
    loop {
        let looked = Instant::now();
        match look(endpoint, time, enough) {
            Ok(Look::Listens) => return journal.reach(Milestone::Listening, Instant::now()),
            Ok(Look::Lost) => time = (time * 2).min(LOOKS.1),
            Ok(Look::Enough) => return,
            Ok(Look::Refused) | Err(_) => {}
        }
        let pause = (begun.elapsed() / PART).max(looked.elapsed() * REST);
        let pause = pause.clamp(PAUSES.0, PAUSES.1);
        if journal.wait_end(Deadline::after(pause)).is_some() {
            return;
        }
    }
}

/// What comes of connecting once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Listens,
    Refused,
    /// No answer in that time.
    Lost,
    /// Nobody wants to know any more.
    Enough,
}

/// Tries to connect for so long at the most, until the other end of `enough` is closed.
fn look(endpoint: SocketAddr, time: Duration, enough: &PipeReader) -> io::Result<Look> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = if endpoint.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &endpoint) {
        Ok(()) => return Ok(Look::Listens),
        Err(Errno::INPROGRESS) => {}
        Err(Errno::CONNREFUSED) => return Ok(Look::Refused),
        Err(error) => return Err(error.into()),
    }
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    let mut fds = [PollFd::new(&socket, PollFlags::OUT), PollFd::new(enough, PollFlags::IN)];
    poll(&mut fds, Some(&time))?;
    Ok(match fds.map(|fd| !fd.revents().is_empty()) {
        [_, true] => Look::Enough,
        [false, false] => Look::Lost,
        [true, false] => match sockopt::socket_error(&socket)? {
            Ok(()) => Look::Listens,
            Err(_) => Look::Refused,
        },
    })
}

/// The parent of a container's first process: see `guest/vhive-init/src/reap.rs`.
#[derive(Debug)]
pub(super) struct Reaper {
    pub(super) child: Child,
    pub(super) bundle: PathBuf,
}

impl Subject for Reaper {
    fn pid(&self) -> Pid {
        self.child.pid()
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }

    fn ended(&mut self) -> Option<Exit> {
        // Somebody may have killed it, and the command go on. As long as nobody has reaped it, the
        // number of its group is its own.
        let only_look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let _ = retry_on_intr(|| waitid(WaitId::PidFd(self.child.pidfd()), only_look));
        let _ = kill_process_group(self.child.pid(), Signal::KILL);
        Some(self.child.wait())
    }

    fn kill(&mut self) {
        // What this does not find is the control group's to end.
        end_first(&pid_file(&self.bundle), self.child.pid());
        // With the command, which may still run: it is in the same process group.
        if kill_process_group(self.child.pid(), Signal::KILL).is_err() {
            self.child.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::net::TcpListener;
    use std::os::fd::AsFd as _;
    use std::path::Path;

    use rustix::process::{PidfdFlags, pidfd_open};

    use super::*;
    use crate::journal::End;
    use crate::oci::container::reaper;
    use crate::oci::layer::Layer;
    use crate::process::{self, Launch};

    #[test]
    fn what_listens_late_is_noticed_and_the_end_ends_the_looking() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let endpoint = listener.local_addr().expect("an address");
        drop(listener);
        let journal = Journal::new();
        let theirs = Arc::clone(&journal);
        let (enough, _tell) = io::pipe().expect("a pipe");
        let again = enough.try_clone().expect("duplicated");
        let looking = thread::spawn(move || look_until_listening(endpoint, &theirs, &enough));
        assert_eq!(journal.wait_end(Deadline::after(Duration::from_millis(30))), None);
        assert_eq!(journal.reached(Milestone::Listening), None);
        let _listener = TcpListener::bind(endpoint).expect("bound again");
        let soon = Deadline::after(Duration::from_secs(10));
        journal.wait(Milestone::Listening, soon).expect("noticed");
        looking.join().expect("no panic");

        let ended = Journal::new();
        ended.end(End::Exited(1));
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        look_until_listening(socket.local_addr().expect("an address"), &ended, &again);
        assert_eq!(ended.reached(Milestone::Listening), None);
    }

    #[test]
    fn a_look_without_an_answer_ends_when_nobody_wants_to_know() {
        // Whose queue is full answers nobody.
        let family = AddressFamily::INET;
        let deaf = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let deaf = deaf.expect("a socket");
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        rustix::net::bind(&deaf, &anywhere).expect("bound");
        rustix::net::listen(&deaf, 0).expect("listens");
        let endpoint = TcpListener::from(deaf.try_clone().expect("duplicated")).local_addr();
        let endpoint = endpoint.expect("an address");
        let (enough, tell) = io::pipe().expect("a pipe");
        let mut held = Vec::new();
        let short = Duration::from_millis(100);
        while look(endpoint, short, &enough).expect("looked") == Look::Listens {
            held.push(std::net::TcpStream::connect_timeout(&endpoint, short));
        }
        let begun = Instant::now();
        let looking = thread::spawn(move || look(endpoint, Duration::from_secs(60), &enough));
        drop(tell);
        assert_eq!(looking.join().expect("no panic").expect("looked"), Look::Enough);
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    /// The parent of what a script leaves behind, which writes that one's number to a file; and the
    /// pipe by which it reports.
    fn reaped(dir: &Path, script: &str) -> (Reaper, PipeReader) {
        let layer = Layer::make(&dir.join("cache")).expect("made");
        let (reader, writer) = io::pipe().expect("a pipe");
        let null = fs::File::options().write(true).open("/dev/null").expect("opened");
        let script = format!("cd {}; {script}", dir.display());
        let file = pid_file(dir);
        let words = ["reap", &file.to_string_lossy(), "sh", "-c", &script];
        let child = process::spawn(&Launch {
            program: &reaper(&layer),
            args: &words.map(std::ffi::OsString::from),
            environment: &[],
            inherit: &[],
            stdin: Some(writer.as_fd()),
            stdout: null.as_fd(),
            stderr: null.as_fd(),
            confinement: None,
        });
        (Reaper { child: child.expect("spawned"), bundle: dir.to_owned() }, reader)
    }

    fn report(mut reader: PipeReader) -> String {
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        text
    }

    #[test]
    fn an_orphans_end_is_told_as_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        for (script, end, runs) in [
            ("(sleep 0.1; exit 7) & echo $! > pid", Exit::Code(7), true),
            // The shell itself takes note of what ends before it does.
            ("true & wait; (sleep 0.1; exit 3) & echo $! > pid", Exit::Code(3), true),
            ("sh -c 'sleep 0.1; kill -9 $$' & echo $! > pid", Exit::Signal(9), true),
            ("exit 5", Exit::Code(5), false),
        ] {
            let (mut reaper, reader) = reaped(dir.path(), script);
            assert_eq!(reaper.ended(), Some(end), "{script}");
            assert_eq!(!report(reader).is_empty(), runs, "{script}");
        }
    }

    #[test]
    fn what_nobody_asks_for_any_more_is_ended() {
        let dir = tempfile::tempdir().expect("a directory");
        // One whose command runs, and one whose command has ended.
        for script in ["sleep 1000 & sleep 1000", "sleep 1000 & echo $! > pid"] {
            let (mut reaper, mut reader) = reaped(dir.path(), script);
            if script.contains("pid") {
                assert!(reader.read(&mut [0; 16]).expect("read") > 0, "it runs");
            }
            drop(reader);
            assert_eq!(reaper.ended(), Some(Exit::Code(1)), "{script}");
        }
    }

    #[test]
    fn one_that_is_killed_takes_the_command_along() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut reaper, reader) = reaped(dir.path(), "mkfifo hold; echo $$ > command; cat hold");
        let number = || fs::read_to_string(dir.path().join("command")).ok()?.trim().parse().ok();
        let until = Deadline::after(Duration::from_secs(10));
        let number = loop {
            match number() {
                Some(number) => break number,
                None => assert!(!until.passed(), "it does not run"),
            }
            let pause = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
            poll(&mut [], Some(&pause)).expect("waited");
        };
        let command = pidfd_open(Pid::from_raw(number).expect("one"), PidfdFlags::empty());
        process::kill(reaper.pidfd());
        assert_eq!(reaper.ended(), Some(Exit::Signal(9)));
        let command = command.expect("it lived");
        let mut fds = [PollFd::new(&command, PollFlags::IN)];
        let most = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&most)), Ok(1), "it lives on");
        drop(reader);
    }

    #[test]
    fn who_is_killed_takes_the_orphan_along() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut reaper, mut reader) = reaped(dir.path(), "sleep 1000 & echo $! > pid");
        let mut number = [0; 16];
        let got = reader.read(&mut number).expect("read");
        let number = std::str::from_utf8(&number[..got]).expect("text").trim();
        let pid = Pid::from_raw(number.parse().expect("a number")).expect("one");
        let orphan = pidfd_open(pid, PidfdFlags::empty()).expect("it lives");
        reaper.kill();
        assert_eq!(reaper.ended(), Some(Exit::Signal(9)));
        let mut fds = [PollFd::new(&orphan, PollFlags::IN)];
        let most = Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&most)), Ok(1), "it lives on");
    }
}
