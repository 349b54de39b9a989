//! The one thread of a running sandbox: starts its process, listens to everything that it and the
//! guest's init say, and reaps it.
//!
//! ```text
//!   console ──────────┐
//!   errors ───────────┤                     ┌─► Journal: milestones, lines, end
//!   channel ◄─────────┼─► poll ─► run() ────┤
//!   pidfd ────────────┤                     └─► kill, reap
//!   commands (Stop) ──┘
//! ```
//!
//! A process may be born in the thread's namespaces and die with the thread, so the thread lives
//! exactly as long as the sandbox.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::Pid;
use vhive_api::guest::{Stream, ToGuest, write_frame};

use super::alone::Alone;
use super::conversation::{Answer, Conversation, KILLED_ONE, Next, end_of};
use super::streams::{Frames, Lines};
use crate::cgroup::{Kills, OutOfMemory};
use crate::deadline::Deadline;
use crate::journal::{End, Journal};
use crate::process::{Child, Exit};

/// How long a killed process may take to end: one that takes longer hangs in the kernel.
const KILLED: Duration = Duration::from_secs(10);

/// What is supervised: one process, or several that take each other's place. Dropping it reaps
/// what is left of it.
pub(crate) trait Subject {
    /// The process of now.
    fn pid(&self) -> Pid;

    /// Becomes readable when that process has ended.
    fn pidfd(&self) -> BorrowedFd<'_>;

    /// Called when it has. `None` if another one has taken its place.
    fn ended(&mut self) -> Option<Exit>;

    /// Ends it, whichever it is. Called more than once.
    fn kill(&mut self);
}

impl Subject for Child {
    fn pid(&self) -> Pid {
        Self::pid(self)
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        Self::pidfd(self)
    }

    fn ended(&mut self) -> Option<Exit> {
        Some(self.wait())
    }

    fn kill(&mut self) {
        Self::kill(self);
    }
}

/// How the end of a sandbox is put into words.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    /// What its process is called, e.g. `QEMU`.
    pub(crate) name: &'static str,
    /// When the host's memory limit has killed it.
    pub(crate) out_of_memory: &'static str,
    /// When it has ended in good order without having said why.
    pub(crate) silent: &'static str,
    /// Tells whether the limit has killed something.
    pub(crate) limit: Option<OutOfMemory>,
}

/// The host's ends of what a sandbox writes to.
#[derive(Debug)]
pub(crate) struct Outputs {
    /// What is printed before init speaks: a guest's console. Without an init, what the function's
    /// parent says.
    pub(crate) console: Option<io::PipeReader>,
    /// The runtime's own messages; without an init, the function's standard error as well.
    pub(crate) errors: io::PipeReader,
    /// From the guest's init; without one, the function's standard output.
    pub(crate) from_guest: File,
    /// To the guest's init, if there is one.
    pub(crate) to_guest: Option<File>,
    /// What tells that the limit on the function's memory has killed one of its processes, where the
    /// others go on then.
    pub(crate) kills: Option<Kills>,
}

/// Who speaks out of a sandbox.
#[derive(Debug)]
pub(crate) enum Voice {
    /// An init of ours.
    Init(Conversation),
    /// The function itself.
    Function(Alone),
}

impl From<Conversation> for Voice {
    fn from(conversation: Conversation) -> Self {
        Self::Init(conversation)
    }
}

/// A running sandbox under supervision. Dropping it kills and reaps it, then returns.
#[derive(Debug)]
pub(crate) struct Supervised {
    pid: Pid,
    pidfd: OwnedFd,
    name: &'static str,
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
    /// It is to be ended.
    doomed: AtomicBool,
    /// Its end is not the sandbox's.
    abandoned: AtomicBool,
    /// It was ended by SIGKILL.
    killed: AtomicBool,
}

impl Control {
    fn commands(&self) -> MutexGuard<'_, Vec<ToGuest>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // An event counter takes any number of ones.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// Starts a thread that launches the process and looks after it. `launch` may move the thread into
/// other namespaces.
///
/// # Errors
/// Whatever kept it from being launched; nothing is left behind.
pub(crate) fn start<S: Subject>(
    launch: impl FnOnce() -> io::Result<S> + Send + 'static,
    outputs: Outputs,
    voice: impl Into<Voice>,
    journal: Arc<Journal>,
    words: Words,
) -> io::Result<Supervised> {
    let voice = voice.into();
    rustix::io::ioctl_fionbio(&outputs.from_guest, true)?;
    if let Some(to_guest) = &outputs.to_guest {
        rustix::io::ioctl_fionbio(to_guest, true)?;
    }
    if let Some(console) = &outputs.console {
        rustix::io::ioctl_fionbio(console, true)?;
    }
    rustix::io::ioctl_fionbio(&outputs.errors, true)?;
    let control = Arc::new(Control {
        wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        commands: Mutex::default(),
        doomed: AtomicBool::new(false),
        abandoned: AtomicBool::new(false),
        killed: AtomicBool::new(false),
    });
    let (tell, told) = mpsc::sync_channel(1);
    let theirs = Arc::clone(&control);
    let (alive, ended) = mpsc::channel::<()>();
    // A guest that answers what nobody has asked fills the one place and is not heard.
    let (answer, answers) = mpsc::sync_channel(1);
    let name = words.name;
    let thread = std::thread::Builder::new().name(name.to_ascii_lowercase()).spawn(move || {
        let launched = launch().and_then(|subject| {
            let pidfd = subject.pidfd().try_clone_to_owned()?;
            Ok((subject.pid(), pidfd, subject))
        });
        let subject = match launched {
            Ok((pid, pidfd, subject)) => {
                // The receiver waits for exactly this.
                let _ = tell.send(Ok((pid, pidfd)));
                subject
            }
            Err(error) => {
                let _ = tell.send(Err(error));
                return;
            }
        };
        let mut session = Session::new(outputs, voice, journal, theirs);
        session.answer = Some(answer);
        session.run(subject, &words);
        drop(alive);
    })?;
    let told = told.recv().unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
    match told {
        Ok((pid, pidfd)) => {
            Ok(Supervised { pid, pidfd, name, control, thread: Some(thread), ended, answers })
        }
        Err(error) => {
            // It ends right after an error.
            let _ = thread.join();
            Err(error)
        }
    }
}

impl Supervised {
    /// The process that was launched first.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// A descriptor of that process, for whoever must be able to kill it.
    pub(crate) fn pidfd(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// Sends a message to the guest; it is lost if the sandbox ends first.
    pub(crate) fn send(&self, message: ToGuest) {
        self.control.commands().push(message);
        self.control.wake();
    }

    /// Sends a message and waits for the guest's answer; none if the guest ends or the deadline
    /// passes first.
    pub(crate) fn ask(&self, message: ToGuest, deadline: Deadline) -> Option<Answer> {
        // An answer that came too late for an earlier question.
        while self.answers.try_recv().is_ok() {}
        self.send(message);
        self.answers.recv_timeout(deadline.left()).ok()
    }

    /// Ends it, without waiting until it has ended.
    pub(crate) fn kill(&self) {
        self.control.doomed.store(true, Ordering::SeqCst);
        self.control.wake();
    }

    /// From now on its end says nothing about the sandbox: it is not written to the journal.
    pub(crate) fn abandon(&self) {
        self.control.abandoned.store(true, Ordering::SeqCst);
    }

    /// Whether it has ended by SIGKILL, which no state of a guest's makes it do.
    pub(crate) fn was_killed(&self) -> bool {
        self.control.killed.load(Ordering::SeqCst)
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.kill();
        // Nothing is ever sent; what is waited for is the other end's disappearance.
        if self.ended.recv_timeout(KILLED) == Err(mpsc::RecvTimeoutError::Timeout) {
            let (pid, name) = (self.pid, self.name);
            tracing::error!(%pid, name, "it survives SIGKILL and is left to the next sweep");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(pid = %self.pid, "thread of a sandbox panicked");
        }
    }
}

/// What the thread works with.
struct Session {
    outputs: Outputs,
    voice: Voice,
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
    /// Whether the guest takes messages.
    takes: bool,
}

impl Session {
    fn new(outputs: Outputs, voice: Voice, journal: Arc<Journal>, control: Arc<Control>) -> Self {
        let open = [outputs.console.is_some(), true, true];
        let takes = outputs.to_guest.is_some();
        Self {
            outputs,
            voice,
            journal,
            control,
            answer: None,
            console: Lines::default(),
            errors: Lines::default(),
            last_error: None,
            frames: Frames::default(),
            unsent: Vec::new(),
            open,
            takes,
        }
    }

    fn run(mut self, mut subject: impl Subject, words: &Words) {
        let exit = loop {
            let ready = match self.wait(&subject) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "sandbox cannot be supervised and is ended");
                    subject.kill();
                    break Exit::Unknown;
                }
            };
            if ready.woken {
                self.take_commands();
                if self.control.doomed.load(Ordering::SeqCst) {
                    subject.kill();
                }
            }
            if self.outputs.kills.as_mut().is_some_and(|kills| kills.look(ready.memory)) {
                self.journal.line(Stream::Console, KILLED_ONE.to_owned());
            }
            self.flush();
            if self.read(ready.readable) == Fate::End {
                subject.kill();
            }
            if ready.ended
                && let Some(exit) = subject.ended()
            {
                break exit;
            }
        };
        drop(subject);
        self.drain();
        self.finish(exit, words);
    }

    /// Waits until there is something to do.
    fn wait(&self, subject: &impl Subject) -> io::Result<Ready> {
        let Outputs { console, errors, from_guest, to_guest, kills } = &self.outputs;
        let pidfd = subject.pidfd();
        let mut fds = vec![
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::new(&self.control.wake, PollFlags::IN),
        ];
        let sources = [
            console.as_ref().map(|pipe| pipe.as_fd()),
            Some(errors.as_fd()),
            Some(from_guest.as_fd()),
        ];
        let mut polled = Vec::new();
        for (at, source) in sources.into_iter().enumerate() {
            if let Some(source) = source.filter(|_| self.open[at] && !self.must_wait(at)) {
                polled.push(at);
                fds.push(PollFd::from_borrowed_fd(source, PollFlags::IN));
            }
        }
        if let Some(to_guest) = to_guest.as_ref().filter(|_| self.takes && !self.unsent.is_empty())
        {
            fds.push(PollFd::new(to_guest, PollFlags::OUT));
        }
        let others = fds.len();
        let notices = kills.iter().flat_map(Kills::sources);
        fds.extend(notices.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let again = kills.as_ref().and_then(Kills::again);
        let again = again.and_then(|again| Timespec::try_from(again).ok());
        loop {
            match poll(&mut fds, again.as_ref()) {
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
        let memory = fds[others..].iter().any(|fd| !fd.revents().is_empty());
        Ok(Ready { ended, woken: !fds[1].revents().is_empty(), memory, readable })
    }

    /// Whether nothing more can be taken from a source for now.
    fn must_wait(&self, source: usize) -> bool {
        matches!(&self.voice, Voice::Function(alone) if source == ERRORS && alone.is_full())
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
        while let Some(to_guest) = &mut self.outputs.to_guest
            && self.takes
            && !self.unsent.is_empty()
        {
            match to_guest.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.takes = false,
            }
        }
    }

    /// Reads once from each of the sources that have something.
    fn read(&mut self, readable: [bool; 3]) -> Fate {
        let mut piece = [0; 16 << 10];
        let mut total = 0;
        if readable[CONSOLE]
            && let Some(console) = &mut self.outputs.console
        {
            let got = read_some(console, &mut piece, &mut self.open[CONSOLE]);
            let journal = &self.journal;
            total += got;
            match &mut self.voice {
                Voice::Init(_) => {
                    self.console.take(&piece[..got], |line| journal.line(Stream::Console, line));
                }
                Voice::Function(alone) => alone.reported(&piece[..got], Instant::now()),
            }
        }
        if readable[ERRORS] {
            let got = read_some(&mut self.outputs.errors, &mut piece, &mut self.open[ERRORS]);
            let (journal, last) = (&self.journal, &mut self.last_error);
            total += got;
            match &mut self.voice {
                Voice::Init(_) => {
                    self.errors.take(&piece[..got], |line| note(journal, last, line));
                }
                Voice::Function(alone) => alone.errors(&piece[..got]),
            }
        }
        if readable[CHANNEL] {
            let got = read_some(&mut self.outputs.from_guest, &mut piece, &mut self.open[CHANNEL]);
            total += got;
            if let Voice::Function(alone) = &mut self.voice {
                alone.output(&piece[..got]);
            } else if self.listen(&piece[..got]) == Fate::End {
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
            let Voice::Init(conversation) = &mut self.voice else { return Fate::GoOn };
            let next = match self.frames.next() {
                Ok(None) => return Fate::GoOn,
                Ok(Some(message)) => {
                    conversation.receive(message, now).map_err(|error| error.to_string())
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

    /// Reads what an ended sandbox left in its pipes. That is all there already, and finite unless
    /// somebody of it still lives to write more.
    fn drain(&mut self) {
        for source in [CONSOLE, ERRORS, CHANNEL] {
            let mut only = [false; 3];
            only[source] = true;
            for _ in 0..LAST_READS {
                if !self.open[source] || self.read(only) != Fate::GoOn {
                    break;
                }
            }
        }
    }

    fn finish(mut self, exit: Exit, words: &Words) {
        self.control.killed.store(exit == Exit::Signal(9), Ordering::SeqCst);
        let journal = &self.journal;
        self.console.finish(|line| journal.line(Stream::Console, line));
        let last = &mut self.last_error;
        let mut ran = false;
        if let Voice::Function(alone) = &mut self.voice {
            ran = alone.is_running();
            let said = alone.finish();
            self.errors.take(&said, |line| note(journal, last, line));
        }
        self.errors.finish(|line| note(journal, last, line));
        if self.control.abandoned.load(Ordering::SeqCst) {
            return;
        }
        let by_limit = words.limit.as_ref().is_some_and(OutOfMemory::happened);
        if let (true, Exit::Code(code)) = (ran, exit) {
            return journal.end(end_of(code, by_limit));
        }
        let name = words.name;
        self.journal.end(End::Vanished(match (exit, self.last_error) {
            (Exit::Signal(9) | Exit::Unknown, _) if by_limit => words.out_of_memory.to_owned(),
            (Exit::Code(0), _) => words.silent.to_owned(),
            (exit, None) => format!("{name} {exit}"),
            (exit, Some(last)) => format!("{name} {exit}: {last}"),
        }));
    }
}

/// Reads from one source after the end, at the most: many times what a pipe holds.
const LAST_READS: usize = 1024;

const CONSOLE: usize = 0;
const ERRORS: usize = 1;
const CHANNEL: usize = 2;

/// What [`Session::wait`] found.
struct Ready {
    ended: bool,
    woken: bool,
    /// There is news of the memory limit.
    memory: bool,
    readable: [bool; 3],
}

/// What follows from reading.
#[derive(PartialEq)]
enum Fate {
    /// There may be more.
    GoOn,
    /// There is nothing for now.
    Pause,
    /// The sandbox has no purpose any more.
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
