//! Running a command to its end: one of the runtime's on a sandbox that is there, or another.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::container::{hide_from, part_from_mounts};
use super::tool::Tool;
use crate::command::to_end;
use crate::deadline::Deadline;
use crate::process::Exit;

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
            hide_from(tool)?;
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
