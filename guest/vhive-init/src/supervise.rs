//! Init's life while the function runs: one thread, one `poll`, no sleeping.
//!
//! ```text
//!   host ──Stop──►┐                      ┌──► stop signal, later SIGKILL
//!   SIGCHLD ─────►├─ poll ─ supervise ───┼──► Exited, then power off
//!   stdout/err ──►│                      ├──► Output lines (back-pressure: pipes wait while the
//!   port listens ►┤                      ├──► Listening      host does not take what is queued)
//!   hook is over ►┘                      └──► Prepared, Resumed
//! ```

use std::io::{self, PipeReader, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitOptions, WaitStatus, kill_process, wait};
use vhive_api::guest::{FromGuest, Hooks, Identity, Process, Stream, ToGuest};
use vhive_api::inside::Lines;

use crate::World;
use crate::channel::Channel;
use crate::clock;
use crate::entropy::Entropy;
use crate::failure::{Failure, Step as _};
use crate::hook::{self, Call};
use crate::listen::{Looks, Watch};
use crate::network::Names;
use crate::process::{self, Child};

/// Bytes queued for the host above which the function's output has to wait in its pipes.
const BACKLOG: usize = 64 << 10;

/// How long the host may take to accept the last messages.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How long the kernel is given to finish what it has put off, before a snapshot.
const SETTLE: Duration = Duration::from_millis(100);

/// The function's process and all that is watched.
#[derive(Debug)]
pub(crate) struct Supervisor<'a> {
    channel: &'a mut Channel,
    children: SignalFd,
    pid: Pid,
    function: Function,
    /// Between being ready for a snapshot and going on: nothing may be on its way to the host.
    quiet: bool,
    kill_at: Option<Instant>,
    /// A command of the host's, or one that is a hook.
    beside: Option<Beside>,
    /// A hook that is under way.
    hook: Option<Hook>,
    /// What tells that the function listens; none once that has been told.
    listening: Option<Watch>,
    outputs: Vec<Output>,
    /// What the guest's kernel had killed before this life began: a clone is told nothing of its
    /// original's.
    killed_before: u64,
}

/// What there is to know about the function.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) stop_signal: rustix::process::Signal,
    pub(crate) port: u16,
    pub(crate) hooks: Hooks,
    pub(crate) names: Names,
    /// Of the guest's own kernel, whose clock is ours to set as well; none in a container.
    pub(crate) entropy: Option<Entropy>,
    /// As whom commands of the host's are run.
    pub(crate) process: Process,
    pub(crate) world: World,
}

/// A command that runs beside the function.
#[derive(Debug)]
struct Beside {
    pid: Pid,
    kill_at: Instant,
    killed: bool,
}

/// What the function is being told.
#[derive(Debug)]
struct Hook {
    /// As it was configured.
    name: String,
    /// The POST that it is; a command is run beside the function.
    call: Option<Call>,
    /// Whether a snapshot follows; otherwise, the life of a clone.
    before_snapshot: bool,
}

/// One output stream of the function until it is closed.
struct Output {
    stream: Stream,
    pipe: PipeReader,
    lines: Lines,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// Makes the death of children readable; to be called before the first one is started.
pub(crate) fn watch_children() -> Result<SignalFd, Failure> {
    let step = "watch for exiting processes";
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block().step(step)?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).step(step)
}

impl<'a> Supervisor<'a> {
    pub(crate) fn new(
        channel: &'a mut Channel,
        children: SignalFd,
        child: Child,
        listening: Watch,
        function: Function,
    ) -> Self {
        let Child { pid, outputs: pipes } = child;
        let streams = [Stream::Stdout, Stream::Stderr].into_iter();
        let outputs = streams.zip(pipes.into_iter().flatten()).map(|(stream, pipe)| Output {
            stream,
            pipe,
            lines: Lines::default(),
        });
        let outputs = outputs.collect();
        let listening = Some(listening);
        Self {
            channel,
            children,
            pid,
            function,
            quiet: false,
            kill_at: None,
            beside: None,
            hook: None,
            listening,
            outputs,
            killed_before: 0,
        }
    }

    /// Runs until the function has ended and the host knows.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let code = loop {
            let beside = self.beside.as_ref().filter(|one| !one.killed).map(|one| one.kill_at);
            let look = self.looks().map(Looks::at);
            self.turn([self.kill_at, beside, look].into_iter().flatten().min())?;
            if let Some(code) = self.reap()? {
                break code;
            }
            self.hook_is_over()?;
            for message in self.channel.receive()? {
                self.obey(message)?;
            }
            if self.kill_at.is_some_and(|at| at <= Instant::now()) {
                self.kill_at = None;
                signal(self.pid, Signal::SIGKILL);
            }
            if let Some(beside) = &mut self.beside
                && !beside.killed
                && beside.kill_at <= Instant::now()
            {
                beside.killed = true;
                // With what it has started: it has a process group of its own.
                signal(Pid::from_raw(-beside.pid.as_raw()), Signal::SIGKILL);
            }
        };
        // Whatever the function left behind ends with it, which also closes the pipes.
        signal(Pid::from_raw(-1), Signal::SIGKILL);
        self.last_words(code)
    }

    /// Waits for something to happen, forwards output, sends what is queued.
    fn turn(&mut self, wake: Option<Instant>) -> Result<(), Failure> {
        let left = wake.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let taking = self.channel.backlog() < BACKLOG && !self.quiet;
        let children = self.children.as_fd();
        // What is not waited for has its place taken by something that is watched anyway.
        let listening = match &self.listening {
            Some(Watch::Thread(listening)) => listening.as_fd(),
            Some(Watch::Turns(_)) | None => children,
        };
        let call = self.hook.as_ref().and_then(|hook| hook.call.as_ref());
        let call = call.map_or(children, AsFd::as_fd);
        let mut sources = vec![
            PollFd::from_borrowed_fd(self.channel.input(), PollFlags::IN),
            PollFd::from_borrowed_fd(children, PollFlags::IN),
            PollFd::from_borrowed_fd(listening, PollFlags::IN),
            PollFd::from_borrowed_fd(call, PollFlags::IN),
        ];
        if taking {
            let pipes = self.outputs.iter().map(|o| PollFd::new(o, PollFlags::IN));
            sources.extend(pipes);
        }
        let pipes = 4..sources.len();
        if self.channel.backlog() > 0 {
            sources.push(PollFd::from_borrowed_fd(self.channel.output(), PollFlags::OUT));
        }
        match poll(&mut sources, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).step("wait for events"),
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let told = ready(&sources[2]);
        let pipes: Vec<bool> = sources[pipes].iter().map(ready).collect();
        let listens = match &mut self.listening {
            Some(Watch::Thread(_)) => told,
            Some(Watch::Turns(looks)) => looks.at() <= Instant::now() && looks.is_there(),
            None => false,
        };
        if listens {
            self.listening = None;
            self.channel.queue(&FromGuest::Listening { at_ns: clock::now_ns() });
        }
        self.forward(&pipes);
        self.channel.flush()
    }

    /// Looking whether the function listens, where that is ours to do.
    const fn looks(&self) -> Option<&Looks> {
        match &self.listening {
            Some(Watch::Turns(looks)) => Some(looks),
            Some(Watch::Thread(_)) | None => None,
        }
    }

    /// Reads once from each ready stream; a closed one is dropped.
    fn forward(&mut self, ready: &[bool]) {
        let mut ready = ready.iter().copied().chain(std::iter::repeat(false));
        let channel = &mut *self.channel;
        self.outputs.retain_mut(|output| {
            if !ready.next().unwrap_or(false) {
                return true;
            }
            let stream = output.stream;
            let mut send = |line| {
                channel.queue(&FromGuest::Output { at_ns: clock::now_ns(), stream, line });
            };
            let mut bytes = [0; 16 << 10];
            match output.pipe.read(&mut bytes) {
                Ok(got) if got > 0 => output.lines.push(&bytes[..got], send),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    output.lines.finish().into_iter().for_each(&mut send);
                    return false;
                }
            }
            true
        });
    }

    fn obey(&mut self, message: ToGuest) -> Result<(), Failure> {
        match message {
            ToGuest::PrepareSnapshot | ToGuest::Resume(_) if self.hook.is_some() => {
                Err("it does not wait for the function's hook").step("obey the host")
            }
            ToGuest::PrepareSnapshot => {
                let hook = self.function.hooks.before_snapshot.clone();
                let begun = hook.map_or(Ok(()), |hook| self.begin(hook, true));
                if self.hook.is_none() {
                    self.prepared(begun);
                }
                Ok(())
            }
            ToGuest::Resume(identity) => self.resume(&identity),
            ToGuest::Stop { grace_ms } => {
                let at = Instant::now().checked_add(Duration::from_millis(grace_ms));
                self.kill_at = [self.kill_at, at].into_iter().flatten().min();
                if let Some(pid) = rustix::process::Pid::from_raw(self.pid.as_raw()) {
                    // It has just died.
                    let _ = kill_process(pid, self.function.stop_signal);
                }
                Ok(())
            }
            ToGuest::Run { command, timeout_ms } => {
                self.run_beside(&command, Duration::from_millis(timeout_ms));
                Ok(())
            }
            ToGuest::Start(_) => Err("it said start twice").step("obey the host"),
        }
    }

    /// Runs a command of the host's.
    fn run_beside(&mut self, command: &[String], timeout: Duration) {
        let Function { process, world, .. } = &self.function;
        let started = match &self.beside {
            Some(_) => Err("another command runs".to_owned()),
            None => process::beside(process, command, *world)
                .map_err(|Failure { step, reason }| format!("{step}: {reason}")),
        };
        match started {
            Ok(child) => {
                let pid = child.pid;
                let kill_at = Instant::now() + timeout.min(LONGEST_COMMAND);
                self.beside = Some(Beside { pid, kill_at, killed: false });
            }
            Err(reason) => self.told(None, Some(reason)),
        }
    }

    /// Begins to tell the function of a snapshot: [`Supervisor::hook_ended`] follows.
    fn begin(&mut self, name: String, before_snapshot: bool) -> Result<(), Failure> {
        let call = match hook::command(&name) {
            Some(_) if self.beside.is_some() => {
                return Err("another command runs").step(format!("run the hook {name}"));
            }
            Some(command) => {
                let child = process::beside(&self.function.process, &command, self.function.world)?;
                let pid = child.pid;
                let kill_at = Instant::now() + hook::PATIENCE;
                self.beside = Some(Beside { pid, kill_at, killed: false });
                None
            }
            None => Some(Call::begin(self.function.port, &name)?),
        };
        self.hook = Some(Hook { name, call, before_snapshot });
        Ok(())
    }

    /// Goes on if a POST that was under way is over.
    fn hook_is_over(&mut self) -> Result<(), Failure> {
        let is_over = |hook: &mut Hook| hook.call.as_ref().is_some_and(Call::is_over);
        match self.hook.take_if(is_over) {
            Some(Hook { call: Some(call), before_snapshot, .. }) => {
                self.hook_ended(before_snapshot, call.finish())
            }
            _ => Ok(()),
        }
    }

    fn hook_ended(
        &mut self,
        before_snapshot: bool,
        outcome: Result<(), Failure>,
    ) -> Result<(), Failure> {
        if before_snapshot {
            self.prepared(outcome);
            return Ok(());
        }
        outcome?;
        self.resumed();
        Ok(())
    }

    fn told(&mut self, code: Option<i32>, reason: Option<String>) {
        self.channel.queue(&FromGuest::Ran { at_ns: clock::now_ns(), code, reason });
    }

    /// The function has been told of the snapshot: falls silent.
    #[expect(clippy::disallowed_methods, reason = "nothing tells when the kernel is done")]
    fn prepared(&mut self, called: Result<(), Failure>) {
        // Connections that have just been closed and memory that has just been freed keep the
        // kernel busy for a few ticks; in the snapshot that work would be every clone's.
        thread::sleep(SETTLE);
        let at_ns = clock::now_ns();
        self.quiet = called.is_ok();
        self.channel.queue(&match called {
            Ok(()) => FromGuest::Prepared { at_ns },
            Err(Failure { step, reason }) => {
                FromGuest::Unprepared { at_ns, reason: format!("{step}: {reason}") }
            }
        });
    }

    /// Goes on after a snapshot; a clone becomes somebody of its own first.
    fn resume(&mut self, identity: &Identity) -> Result<(), Failure> {
        if self.function.entropy.is_some() {
            clock::set_wall(identity.now_unix_ns)?;
        }
        // What the function prints from now on is the clone's.
        self.quiet = false;
        if identity.clone {
            self.killed_before = kernel_has_killed();
            if let Some(entropy) = &self.function.entropy {
                entropy.reseed(&identity.entropy)?;
            }
            let names = &mut self.function.names;
            names.rename(&identity.hostname, identity.network.as_ref())?;
            if let Some(hook) = self.function.hooks.after_restore.clone() {
                return self.begin(hook, false);
            }
        }
        self.resumed();
        Ok(())
    }

    fn resumed(&mut self) {
        self.channel.queue(&FromGuest::Resumed { at_ns: clock::now_ns() });
    }

    /// Collects every dead process; says how the function ended if it is among them.
    fn reap(&mut self) -> Result<Option<i32>, Failure> {
        while let Ok(Some(_)) = self.children.read_signal() {}
        let mut code = None;
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid.as_raw_pid() == self.pid.as_raw() => {
                    code = Some(exit_code(status));
                }
                Ok(Some((pid, status))) => {
                    let mine = |one: &mut Beside| pid.as_raw_pid() == one.pid.as_raw();
                    let Some(beside) = self.beside.take_if(mine) else { continue };
                    let of_hook = |hook: &mut Hook| hook.call.is_none();
                    if let Some(hook) = self.hook.take_if(of_hook) {
                        let ran = hook::ran(&hook.name, exit_code(status), beside.killed);
                        self.hook_ended(hook.before_snapshot, ran)?;
                    } else {
                        let late = beside.killed.then(|| "it took too long".to_owned());
                        self.told(Some(exit_code(status)), late);
                    }
                }
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(code),
                Err(error) => return Err(error).step("wait for processes"),
            }
        }
    }

    /// Forwards what is left in the pipes, says how it ended, and waits until the host has it.
    fn last_words(mut self, code: i32) -> Result<(), Failure> {
        let until = Instant::now() + LAST_WORDS;
        self.quiet = false;
        self.hook = None;
        while !self.outputs.is_empty() && Instant::now() < until {
            self.turn(Some(until))?;
            self.reap()?;
            self.channel.receive()?;
        }
        let killed = kernel_has_killed() > self.killed_before;
        let out_of_memory = self.function.entropy.is_some() && killed;
        self.channel.queue(&FromGuest::Exited { at_ns: clock::now_ns(), code, out_of_memory });
        self.channel.finish(until)
    }
}

/// Longest that a command of the host's may run.
const LONGEST_COMMAND: Duration = Duration::from_secs(3600);

/// How many processes the guest's kernel has killed for want of memory.
fn kernel_has_killed() -> u64 {
    let counters = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let kills = counters.lines().find_map(|line| line.strip_prefix("oom_kill "));
    kills.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Exit code as a shell gives it.
fn exit_code(status: WaitStatus) -> i32 {
    let signalled = || status.terminating_signal().map(|signal| 128 + signal);
    status.exit_status().or_else(signalled).unwrap_or(1)
}

/// A process that has just died cannot be signalled, and need not be.
fn signal(pid: Pid, signal: Signal) {
    let _ = kill(pid, signal);
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
