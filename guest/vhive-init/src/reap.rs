//! On the host: `vhive-init reap PID-FILE COMMAND…` looks after a container without an init of ours.
//!
//! ```text
//!   vhive ─► reap ─► the runtime's command ─► first process of the container
//!              ▲                                  │ (the command ends)
//!              └──────── its parent from now on ──┘
//! ```
//!
//! The runtime leaves the container's first process to whoever reaps orphans, and only its parent is
//! ever told how a process ended. So this becomes its parent, and then ends as it did: with its code
//! or by its signal. That the command has succeeded is told by a line with the process' number on
//! standard input, which is a pipe's end for writing: the two outputs are the function's. When nobody
//! has the pipe's other end any more, it ends everything.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Command, ExitCode, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, WaitStatus, getpid, kill_process,
    set_child_subreaper, setrlimit, wait,
};

use vhive_api::inside::CORE;

use crate::supervise::watch_children;

/// Does it; what goes wrong before the command runs is told as the command's own words would be.
pub(crate) fn run(words: impl Iterator<Item = OsString>) -> ExitCode {
    look_after(words).unwrap_or_else(|error| {
        // Without it there is nobody to hear it.
        let _ = writeln!(io::stderr(), "{error}");
        ExitCode::FAILURE
    })
}

fn look_after(mut words: impl Iterator<Item = OsString>) -> io::Result<ExitCode> {
    let missing = || io::Error::other("reap: a file and a command are needed");
    let (Some(file), Some(program)) = (words.next(), words.next()) else { return Err(missing()) };
    let mut report = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    set_child_subreaper(Some(getpid()))?;
    let mut command = Command::new(&program);
    let command = command.args(words).stdin(Stdio::null()).spawn().map_err(|error| {
        io::Error::new(error.kind(), format!("{}: {error}", program.to_string_lossy()))
    })?;
    let command = Pid::from_raw(command.id().cast_signed());
    let outcome = follow(command, &file, &mut report);
    if outcome.is_err() {
        // What it had to look after must not stay behind without it.
        let _ = end_all();
    }
    outcome
}

/// Waits for the command, then for the first process that it has left behind, and ends as that one does.
fn follow(command: Option<Pid>, file: &OsStr, report: &mut File) -> io::Result<ExitCode> {
    // Not earlier: the command would inherit the mask.
    let children = watch_children().map_err(|failure| io::Error::other(failure.reason))?;
    let mut first = None;
    // Those that ended before it was known which of them is the first.
    let mut early: Vec<(Pid, WaitStatus)> = Vec::new();
    loop {
        while let Some((pid, status)) = wait(WaitOptions::NOHANG)? {
            if Some(pid) == command {
                if status.exit_status() != Some(0) {
                    return Ok(end_like(status));
                }
                let text = fs::read_to_string(file)?;
                let number = text.trim().parse().ok().and_then(Pid::from_raw);
                let number = number.ok_or_else(|| io::Error::other("reap: no process number"))?;
                writeln!(report, "{}", number.as_raw_pid())?;
                first = Some(number);
                if let Some((_, status)) = early.iter().find(|(pid, _)| *pid == number) {
                    return Ok(end_like(*status));
                }
            } else if Some(pid) == first {
                return Ok(end_like(status));
            } else if first.is_none() {
                early.push((pid, status));
            }
        }
        // Of a pipe's end for writing only its other end's closing is news.
        let mut sources =
            [PollFd::new(&children, PollFlags::IN), PollFd::new(&*report, PollFlags::empty())];
        match poll(&mut sources, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !sources[1].revents().is_empty() {
            return end_all();
        }
        while let Ok(Some(_)) = children.read_signal() {}
    }
}

/// Nobody is left who wants to know: a container without a host has no purpose.
fn end_all() -> io::Result<ExitCode> {
    let list = format!("/proc/self/task/{}/children", getpid().as_raw_pid());
    loop {
        // Those of one that ends become ours.
        for pid in fs::read_to_string(&list)?.split_whitespace() {
            if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                // It ends by itself in between.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        match wait(WaitOptions::empty()) {
            Err(Errno::CHILD) => return Ok(ExitCode::FAILURE),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends as another process has ended.
fn end_like(status: WaitStatus) -> ExitCode {
    if let Some(code) = status.exit_status() {
        return ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX));
    }
    let number = status.terminating_signal().unwrap_or(0);
    if let Some(signal) = Signal::from_named_raw(number) {
        // The function's crash is none of this program's: no core dump of it on the host.
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(CORE), maximum: Some(CORE) });
        // What this does not end is answered below.
        let _ = kill_process(getpid(), signal);
    }
    ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX))
}
