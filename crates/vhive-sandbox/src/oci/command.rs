//! Running a command to its end: one of the runtime's on a sandbox that is there, or another.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::container::{hide_from_gvisor, part_from_mounts};
use super::tool::Tool;
use crate::deadline::Deadline;
use crate::process::{self, Exit, Launch};

/// Runs it in the sandbox's network namespace, where gVisor's control socket is and which CRIU takes
/// for its own, and waits until it has ended. At the deadline it is killed.
///
/// # Errors
/// The command's own words, or the system's.
pub(super) fn run_inside(
    netns: &OwnedFd,
    tool: &Tool,
    words: &[OsString],
    deadline: Deadline,
) -> Result<(), String> {
    let ran = thread::scope(|scope| {
        let runner = thread::Builder::new().name("vhive-command".to_owned());
        let handle = runner.spawn_scoped(scope, || {
            part_from_mounts()?;
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            if tool.is_gvisor() {
                hide_from_gvisor()?;
            }
            to_end(&tool.binary, words, None, deadline)
        })?;
        handle.join().unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
    });
    judged(&tool.binary, ran)
}

/// Runs a program with such a standard input and waits until it has ended well. At the deadline it
/// is killed.
///
/// # Errors
/// The program's own words if it ends otherwise, or the system's.
pub(super) fn succeed(
    program: &Path,
    words: &[OsString],
    stdin: Option<BorrowedFd<'_>>,
    deadline: Deadline,
) -> Result<(), String> {
    judged(program, to_end(program, words, stdin, deadline))
}

fn judged(program: &Path, ran: io::Result<(Exit, String)>) -> Result<(), String> {
    match ran {
        Ok((Exit::Code(0), _)) => Ok(()),
        Ok((exit, text)) => Err(format!("{} {exit}: {text}", program.display())),
        Err(error) => Err(format!("{}: {error}", program.display())),
    }
}

/// Runs a command and returns how it ended and what it said, of which there may be 64 KiB.
///
/// # Errors
/// `TimedOut` at the deadline, when it is killed; the system's otherwise.
pub(super) fn run(
    binary: &Path,
    words: &[OsString],
    deadline: Deadline,
) -> io::Result<(Exit, String)> {
    to_end(binary, words, None, deadline)
}

fn to_end(
    binary: &Path,
    words: &[OsString],
    stdin: Option<BorrowedFd<'_>>,
    deadline: Deadline,
) -> io::Result<(Exit, String)> {
    let (mut said, output) = io::pipe()?;
    rustix::io::ioctl_fionbio(&said, true)?;
    let mut child = process::spawn(&Launch {
        program: binary,
        args: words,
        environment: &[],
        inherit: &[],
        stdin,
        stdout: output.as_fd(),
        stderr: output.as_fd(),
        confinement: None,
    })?;
    drop(output);
    let left = Timespec::try_from(deadline.left()).map_err(io::Error::other)?;
    let pidfd = child.pidfd();
    if retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)))? == 0 {
        // With what it has started, e.g. CRIU: its group is its own.
        let _ = rustix::process::kill_process_group(child.pid(), rustix::process::Signal::KILL);
        return Err(io::ErrorKind::TimedOut.into());
    }
    let exit = child.wait();
    let mut text = Vec::new();
    // Whatever it left behind may still hold the pipe: what is there by now is enough.
    let _ = said.read_to_end(&mut text);
    Ok((exit, String::from_utf8_lossy(&text).trim().to_owned()))
}
