//! Running one of gVisor's commands on a sandbox that is there.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::container::{hide_from_gvisor, part_from_mounts};
use crate::deadline::Deadline;
use crate::process::{self, Exit, Launch};

/// Runs it in the sandbox's network namespace, where its control socket is, and waits until
/// it has ended. At the deadline it is killed.
///
/// # Errors
/// The command's own words, or the system's.
pub(super) fn run_inside(
    netns: &OwnedFd,
    binary: &Path,
    words: &[OsString],
    deadline: Deadline,
) -> Result<(), String> {
    let ran = thread::scope(|scope| {
        let runner = thread::Builder::new().name("vhive-command".to_owned());
        let handle = runner.spawn_scoped(scope, || {
            part_from_mounts()?;
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            hide_from_gvisor()?;
            run(binary, words, deadline)
        })?;
        handle.join().unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
    });
    match ran {
        Ok((Exit::Code(0), _)) => Ok(()),
        Ok((exit, text)) => Err(format!("{} {exit}: {text}", binary.display())),
        Err(error) => Err(format!("{}: {error}", binary.display())),
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
    let (mut said, output) = io::pipe()?;
    rustix::io::ioctl_fionbio(&said, true)?;
    let mut child = process::spawn(&Launch {
        program: binary,
        args: words,
        environment: &[],
        inherit: &[],
        stdin: None,
        stdout: output.as_fd(),
        stderr: output.as_fd(),
        confinement: None,
    })?;
    drop(output);
    let left = Timespec::try_from(deadline.left()).map_err(io::Error::other)?;
    let pidfd = child.pidfd();
    if retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let exit = child.wait();
    let mut text = Vec::new();
    // Whatever it left behind may still hold the pipe: what is there by now is enough.
    let _ = said.read_to_end(&mut text);
    Ok((exit, String::from_utf8_lossy(&text).trim().to_owned()))
}
