//! What is done from outside for a function that is its container's first process: noticing that it
//! listens, and stopping it.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
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
    looking: Option<JoinHandle<()>>,
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
        let looking = thread::Builder::new()
            .name("vhive-listening".to_owned())
            .spawn(move || look_until_listening(endpoint, &theirs))?;
        Ok(Self {
            tool: tool.clone(),
            id: sandbox.id.clone(),
            dir: sandbox.dir.path().to_owned(),
            netns: Arc::clone(&sandbox.netns),
            stop_signal,
            journal: Arc::clone(&sandbox.journal),
            looking: Some(looking),
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
        let sent = command::run_inside(&self.netns, &self.tool.binary, &words, deadline);
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
        // The journal has an end by now, so it ends with its next look. It must not look at whoever
        // gets the address next.
        if let Some(looking) = self.looking.take()
            && looking.join().is_err()
        {
            tracing::error!(sandbox = %self.id, "thread that looks at a port panicked");
        }
    }
}

fn look_until_listening(endpoint: SocketAddr, journal: &Journal) {
    let begun = Instant::now();
    let mut time = LOOKS.0;
    loop {
        let looked = Instant::now();
        match TcpStream::connect_timeout(&endpoint, time) {
            Ok(_) => return journal.reach(Milestone::Listening, Instant::now()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => time = (time * 2).min(LOOKS.1),
            Err(_) => {}
        }
        let pause = (begun.elapsed() / PART).max(looked.elapsed() * REST);
        let pause = pause.clamp(PAUSES.0, PAUSES.1);
        if journal.wait_end(Deadline::after(pause)).is_some() {
            return;
        }
    }
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
    use std::net::TcpListener;

    use super::*;
    use crate::journal::End;

    #[test]
    fn what_listens_late_is_noticed_and_the_end_ends_the_looking() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let endpoint = listener.local_addr().expect("an address");
        drop(listener);
        let journal = Journal::new();
        let theirs = Arc::clone(&journal);
        let looking = thread::spawn(move || look_until_listening(endpoint, &theirs));
        assert_eq!(journal.wait_end(Deadline::after(Duration::from_millis(30))), None);
        assert_eq!(journal.reached(Milestone::Listening), None);
        let _listener = TcpListener::bind(endpoint).expect("bound again");
        let soon = Deadline::after(Duration::from_secs(10));
        journal.wait(Milestone::Listening, soon).expect("noticed");
        looking.join().expect("no panic");

        let ended = Journal::new();
        ended.end(End::Exited(1));
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
        look_until_listening(socket.local_addr().expect("an address"), &ended);
        assert_eq!(ended.reached(Milestone::Listening), None);
    }
}
