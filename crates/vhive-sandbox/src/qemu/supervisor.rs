//! The one thread of a running microVM: spawns QEMU, listens to everything it and the guest say,
//! and reaps it.
//!
//! ```text
//!   stdout (console) ─┐
//!   stderr ───────────┤                     ┌─► Journal: milestones, lines, end
//!   vhive.0 ◄─────────┼─► poll ─► run() ────┤
//!   pidfd ────────────┤                     └─► kill, reap
//!   commands (Stop) ──┘
//! ```
//!
//! QEMU is born in the thread's network namespace and dies with the thread, so the thread lives
//! exactly as long as QEMU.

use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use vhive_api::guest::{Stream, ToGuest, write_frame};

use super::conversation::{Answer, Conversation, Next};
use super::streams::{Frames, Lines};
use crate::cgroup::{Cgroup, OutOfMemory};
use crate::deadline::Deadline;
use crate::journal::{End, Journal};
use crate::process::{self, Child, Confinement, Exit, Launch};

/// How long a killed QEMU may take to end: one that takes longer hangs in the kernel.
const KILLED: Duration = Duration::from_secs(10);

/// What to run, and everything that becomes the child's.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<std::ffi::OsString>,
    /// `NAME=value`; nothing else but `PATH` is in its environment.
    pub(super) environment: Vec<std::ffi::OsString>,
    pub(super) inherit: Vec<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) confinement: Confinement,
    /// The network namespace in which it runs; `None` = the caller's.
    pub(super) netns: Option<PathBuf>,
    /// Where its limits are; it is moved there right after it has been spawned.
    pub(super) cgroup: Option<Arc<Cgroup>>,
}

/// The host's ends of what QEMU and the guest write to.
#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) console: io::PipeReader,
    pub(super) errors: io::PipeReader,
    pub(super) channel: UnixStream,
}

/// A running QEMU under supervision. Dropping it kills and reaps it, then returns.
#[derive(Debug)]
pub(super) struct Supervised {
    pid: Pid,
    pidfd: OwnedFd,
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
    /// Ends with the thread.
    ended: mpsc::Receiver<()>,
    /// What the guest answers. Ends with the thread.
    answers: mpsc::Receiver<Answer>,
}

#[derive(Debug)]
struct Control {
    wake: OwnedFd,
    commands: Mutex<Vec<ToGuest>>,
    /// Its end is not the sandbox's.
    abandoned: AtomicBool,
    /// It was ended by SIGKILL.
    killed: AtomicBool,
}

impl Control {
    fn commands(&self) -> MutexGuard<'_, Vec<ToGuest>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts QEMU and the thread that looks after it.
///
/// # Errors
/// Whatever kept QEMU from being spawned; nothing is left behind.
pub(super) fn start(
    program: Program,
    outputs: Outputs,
    conversation: Conversation,
    journal: Arc<Journal>,
) -> io::Result<Supervised> {
    outputs.channel.set_nonblocking(true)?;
    rustix::io::ioctl_fionbio(&outputs.console, true)?;
    rustix::io::ioctl_fionbio(&outputs.errors, true)?;
    let control = Arc::new(Control {
        wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        commands: Mutex::default(),
        abandoned: AtomicBool::new(false),
        killed: AtomicBool::new(false),
    });
    let (tell, told) = mpsc::sync_channel(1);
    let theirs = Arc::clone(&control);
    let (alive, ended) = mpsc::channel::<()>();
    // A guest that answers what nobody has asked fills the one place and is not heard.
    let (answer, answers) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("qemu".to_owned()).spawn(move || {
        let spawned = spawn(&program);
        let out_of_memory = program.cgroup.as_ref().map(|cgroup| cgroup.out_of_memory());
        // QEMU has its own copies now; ours would hide its end from the readers.
        drop(program);
        let spawned = spawned.and_then(|child| {
            let pidfd = child.pidfd().try_clone_to_owned()?;
            Ok((child.pid(), pidfd, child))
        });
        let child = match spawned {
            Ok((pid, pidfd, child)) => {
                // The receiver waits for exactly this.
                let _ = tell.send(Ok((pid, pidfd)));
                child
            }
            Err(error) => {
                let _ = tell.send(Err(error));
                return;
            }
        };
        let mut session = Session::new(outputs, conversation, journal, theirs);
        session.answer = Some(answer);
        session.run(child, out_of_memory.as_ref());
        drop(alive);
    })?;
    let told = told.recv().unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
    match told {
        Ok((pid, pidfd)) => {
            Ok(Supervised { pid, pidfd, control, thread: Some(thread), ended, answers })
        }
        Err(error) => {
            // It ends right after an error.
            let _ = thread.join();
            Err(error)
        }
    }
}

fn spawn(program: &Program) -> io::Result<Child> {
    if let Some(netns) = &program.netns {
        enter(netns)?;
    }
    let inherit: Vec<_> = program.inherit.iter().map(AsFd::as_fd).collect();
    let child = process::spawn(&Launch {
        program: &program.path,
        args: &program.arguments,
        environment: &program.environment,
        inherit: &inherit,
        stdout: program.stdout.as_fd(),
        stderr: program.stderr.as_fd(),
        confinement: Some(program.confinement),
    })?;
    if let Some(cgroup) = &program.cgroup {
        // Here, where nobody can have reaped it: its number is still its own.
        cgroup.add(child.pid())?;
    }
    Ok(child)
}

fn enter(netns: &Path) -> io::Result<()> {
    let file = std::fs::File::open(netns)?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

impl Supervised {
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// A descriptor of the process, for whoever must be able to kill it.
    pub(super) fn pidfd(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// Sends a message to the guest; it is lost if QEMU ends first.
    pub(super) fn send(&self, message: ToGuest) {
        self.control.commands().push(message);
        // An event counter takes any number of ones.
        let _ = rustix::io::write(&self.control.wake, &1_u64.to_ne_bytes());
    }

    /// Sends a message and waits for the guest's answer; none if the guest ends or the deadline
    /// passes first.
    pub(super) fn ask(&self, message: ToGuest, deadline: Deadline) -> Option<Answer> {
        // An answer that came too late for an earlier question.
        while self.answers.try_recv().is_ok() {}
        self.send(message);
        self.answers.recv_timeout(deadline.left()).ok()
    }

    /// From now on its end says nothing about the sandbox: it is not written to the journal.
    pub(super) fn abandon(&self) {
        self.control.abandoned.store(true, Ordering::SeqCst);
    }

    /// Whether it has ended by SIGKILL, which no state of a guest's makes it do.
    pub(super) fn was_killed(&self) -> bool {
        self.control.killed.load(Ordering::SeqCst)
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        process::kill(self.pidfd.as_fd());
        // Nothing is ever sent; what is waited for is the other end's disappearance.
        if self.ended.recv_timeout(KILLED) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::error!(pid = %self.pid, "QEMU survives SIGKILL and is left to the next sweep");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(pid = %self.pid, "thread of a microVM panicked");
        }
    }
}

/// What the thread works with.
struct Session {
    outputs: Outputs,
    conversation: Conversation,
    journal: Arc<Journal>,
    control: Arc<Control>,
    answer: Option<mpsc::SyncSender<Answer>>,
    console: Lines,
    errors: Lines,
    last_error: Option<String>,
    frames: Frames,
    /// Bytes that the guest has not yet taken.
    unsent: Vec<u8>,
    /// Console, errors, channel: whether more can come.
    open: [bool; 3],
}

impl Session {
    fn new(
        outputs: Outputs,
        conversation: Conversation,
        journal: Arc<Journal>,
        control: Arc<Control>,
    ) -> Self {
        Self {
            outputs,
            conversation,
            journal,
            control,
            answer: None,
            console: Lines::default(),
            errors: Lines::default(),
            last_error: None,
            frames: Frames::default(),
            unsent: Vec::new(),
            open: [true; 3],
        }
    }

    fn run(mut self, mut child: Child, out_of_memory: Option<&OutOfMemory>) {
        loop {
            let ready = match self.wait(&child) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "microVM cannot be supervised and is ended");
                    child.kill();
                    break;
                }
            };
            if ready.woken {
                self.take_commands();
            }
            self.flush();
            if self.read(ready.readable) == Fate::End {
                child.kill();
            }
            if ready.ended {
                break;
            }
        }
        let exit = child.wait();
        self.drain();
        self.finish(exit, out_of_memory.is_some_and(OutOfMemory::happened));
    }

    /// Waits until there is something to do.
    fn wait(&self, child: &Child) -> io::Result<Ready> {
        let channel =
            if self.unsent.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let Outputs { console, errors, channel: port } = &self.outputs;
        let pidfd = child.pidfd();
        let mut fds = vec![
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::new(&self.control.wake, PollFlags::IN),
        ];
        let sources = [
            PollFd::new(console, PollFlags::IN),
            PollFd::new(errors, PollFlags::IN),
            PollFd::new(port, channel),
        ];
        let open = (0..3).filter(|at| self.open[*at]);
        let polled: Vec<usize> = open.collect();
        fds.extend(sources.into_iter().zip(self.open).filter_map(|(fd, open)| open.then_some(fd)));
        loop {
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        let mut readable = [false; 3];
        for (at, fd) in polled.into_iter().zip(&fds[2..]) {
            let news = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
            readable[at] = fd.revents().intersects(news);
        }
        let ended = !fds[0].revents().is_empty();
        Ok(Ready { ended, woken: !fds[1].revents().is_empty(), readable })
    }

    fn take_commands(&mut self) {
        let _ = rustix::io::read(&self.control.wake, &mut [0; 8]);
        let commands = std::mem::take(&mut *self.control.commands());
        commands.iter().for_each(|message| self.queue(message));
    }

    fn queue(&mut self, message: &ToGuest) {
        if let Err(error) = write_frame(&mut self.unsent, message) {
            let step = "tell the guest what to start".to_owned();
            self.journal.end(End::Failed { step, reason: error.to_string() });
        }
    }

    /// Hands the guest as much as it takes now.
    fn flush(&mut self) {
        while self.open[CHANNEL] && !self.unsent.is_empty() {
            match self.outputs.channel.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.open[CHANNEL] = false,
            }
        }
    }

    /// Reads once from each of the sources that have something.
    fn read(&mut self, readable: [bool; 3]) -> Fate {
        let mut piece = [0; 16 << 10];
        let mut total = 0;
        if readable[CONSOLE] {
            let got = read_some(&mut self.outputs.console, &mut piece, &mut self.open[CONSOLE]);
            let journal = &self.journal;
            total += got;
            self.console.take(&piece[..got], |line| journal.line(Stream::Console, line));
        }
        if readable[ERRORS] {
            let got = read_some(&mut self.outputs.errors, &mut piece, &mut self.open[ERRORS]);
            let (journal, last) = (&self.journal, &mut self.last_error);
            total += got;
            self.errors.take(&piece[..got], |line| note(journal, last, line));
        }
        if readable[CHANNEL] {
            let got = read_some(&mut self.outputs.channel, &mut piece, &mut self.open[CHANNEL]);
            total += got;
            if self.listen(&piece[..got]) == Fate::End {
                return Fate::End;
            }
        }
        if total == 0 { Fate::Pause } else { Fate::GoOn }
    }

    /// Takes a piece of what the guest's init says.
    fn listen(&mut self, piece: &[u8]) -> Fate {
        let now = Instant::now();
        self.frames.take(piece);
        loop {
            let next = match self.frames.next() {
                Ok(None) => return Fate::GoOn,
                Ok(Some(message)) => {
                    self.conversation.receive(message, now).map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            match next {
                Ok(Next::Listen) => {}
                Ok(Next::Send(message)) => {
                    self.queue(&message);
                    self.flush();
                }
                Ok(Next::Answer(answer)) => {
                    if let Some(asked) = &self.answer {
                        // Full, if nobody has asked; gone, if nobody will.
                        let _ = asked.try_send(answer);
                    }
                }
                Ok(Next::Over) => return Fate::End,
                Err(reason) => {
                    self.open[CHANNEL] = false;
                    let step = "talk to the guest's init".to_owned();
                    self.journal.end(End::Failed { step, reason });
                    return Fate::End;
                }
            }
        }
    }

    /// Reads what an ended QEMU left in its pipes. That is finite, and all there already.
    fn drain(&mut self) {
        for source in [CONSOLE, ERRORS, CHANNEL] {
            let mut only = [false; 3];
            only[source] = true;
            while self.open[source] && self.read(only) == Fate::GoOn {}
        }
    }

    fn finish(mut self, exit: Exit, out_of_memory: bool) {
        self.control.killed.store(exit == Exit::Signal(9), Ordering::SeqCst);
        let journal = &self.journal;
        self.console.finish(|line| journal.line(Stream::Console, line));
        let last = &mut self.last_error;
        self.errors.finish(|line| note(journal, last, line));
        if self.control.abandoned.load(Ordering::SeqCst) {
            return;
        }
        self.journal.end(End::Vanished(match (exit, self.last_error) {
            (Exit::Signal(9), _) if out_of_memory => {
                "QEMU exceeded its memory limit and was killed; raise qemu.overhead".to_owned()
            }
            (Exit::Code(0), _) => "the guest powered off without saying why".to_owned(),
            (exit, None) => format!("QEMU {exit}"),
            (exit, Some(words)) => format!("QEMU {exit}: {words}"),
        }));
    }
}

const CONSOLE: usize = 0;
const ERRORS: usize = 1;
const CHANNEL: usize = 2;

/// What [`Session::wait`] found.
struct Ready {
    ended: bool,
    woken: bool,
    readable: [bool; 3],
}

/// What follows from reading.
#[derive(PartialEq)]
enum Fate {
    /// There may be more.
    GoOn,
    /// There is nothing for now.
    Pause,
    /// The virtual machine has no purpose any more.
    End,
}

fn note(journal: &Journal, last: &mut Option<String>, line: String) {
    journal.line(Stream::Console, line.clone());
    *last = Some(line);
}

/// Reads what is there; closes the source when it has ended.
fn read_some(source: &mut impl Read, piece: &mut [u8], open: &mut bool) -> usize {
    match source.read(piece) {
        Ok(0) => {
            *open = false;
            0
        }
        Ok(got) => got,
        Err(error) => {
            let again = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
            *open = again.contains(&error.kind());
            0
        }
    }
}
