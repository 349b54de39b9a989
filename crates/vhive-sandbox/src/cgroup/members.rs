//! Ending the processes of a group and removing it.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};

use crate::deadline::Deadline;
use crate::process;

/// How often a group may turn out to have new members before we give up on it.
const ROUNDS: usize = 50;

/// Kills every process in a group and in the groups below it, waits until they have ended, and
/// removes the groups. One that is not there is fine.
pub(super) fn remove(dir: &Path, deadline: Deadline) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path(), deadline)?;
        }
    }
    for _ in 0..ROUNDS {
        end_members(dir, deadline)?;
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            done => return done,
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "new processes keep appearing in it"))
}

/// Has no process born in a group any more, which whoever ends its processes would otherwise have to outrun. A
/// group that is gone, or counts none, is fine.
///
/// # Source
/// Linux, `Documentation/admin-guide/cgroup-v1/pids.rst`: a limit below what is there refuses new ones.
pub(super) fn close(dir: &Path) {
    if let Ok(mut file) = fs::File::options().write(true).open(dir.join("pids.max")) {
        // Its processes are ended anyway, if with more rounds.
        let _ = file.write_all(b"0");
    }
}

/// Lets the processes of a group run that somebody has frozen: in version 1 not even SIGKILL reaches
/// them else. A group that is gone, or cannot be frozen, is fine.
pub(super) fn thaw(dir: &Path) {
    for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        let opened = fs::File::options().write(true).open(dir.join(file));
        if let Ok(mut file) = opened {
            // What it could not be told now shows when its processes do not end.
            let _ = file.write_all(word.as_bytes());
        }
    }
}

fn end_members(dir: &Path, deadline: Deadline) -> io::Result<()> {
    let open = |pid: Pid| {
        rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok().map(|pidfd| (pid, pidfd))
    };
    let mut dying: Vec<(Pid, OwnedFd)> = members(dir)?.into_iter().filter_map(open).collect();
    if dying.is_empty() {
        return Ok(());
    }
    // A number may have been given to somebody else since it was read; the descriptor cannot be, so
    // look again before using it. Once for all: there may be thousands.
    let still: HashSet<Pid> = members(dir)?.into_iter().collect();
    dying.retain(|(pid, _)| still.contains(pid));
    for (_, pidfd) in &dying {
        process::kill(pidfd.as_fd());
    }
    dying.iter().try_for_each(|(_, pidfd)| wait_ended(pidfd, deadline))
}

fn members(dir: &Path) -> io::Result<Vec<Pid>> {
    let text = fs::read_to_string(dir.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect())
}

fn wait_ended(pidfd: &OwnedFd, deadline: Deadline) -> io::Result<()> {
    loop {
        let timeout = Timespec::try_from(deadline.left()).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a process survives SIGKILL"));
            }
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
