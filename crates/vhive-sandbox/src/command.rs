//! Running a program to its end, within a time: what a host's programs are asked, and what is done to
//! containers.

use std::ffi::OsString;
use std::io::{self, PipeReader, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;

use crate::deadline::Deadline;
use crate::process::{self, Exit, Launch};
use crate::runtime::HostLacks;

/// How long a program may take to say of which version it is: one that hangs is broken, not slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// Runs a command and returns how it ended and what it said, of which there may be 64 KiB.
///
/// # Errors
/// `TimedOut` at the deadline, when it is killed with what it has started; the system's otherwise.
pub(crate) fn to_end(
    binary: &Path,
    words: &[OsString],
    stdin: Option<BorrowedFd<'_>>,
    deadline: Deadline,
) -> io::Result<(Exit, String)> {
    let (said, output) = io::pipe()?;
    let exit = wait(binary, words, (stdin, output.as_fd(), output.as_fd()), deadline)?;
    drop(output);
    Ok((exit, there(said)?))
}

/// Runs it with these standard streams.
fn wait(
    binary: &Path,
    words: &[OsString],
    (stdin, stdout, stderr): (Option<BorrowedFd<'_>>, BorrowedFd<'_>, BorrowedFd<'_>),
    deadline: Deadline,
) -> io::Result<Exit> {
    let mut child = process::spawn(&Launch {
        program: binary,
        args: words,
        environment: &[],
        inherit: &[],
        stdin,
        stdout,
        stderr,
        confinement: None,
    })?;
    let left = Timespec::try_from(deadline.left()).map_err(io::Error::other)?;
    let pidfd = child.pidfd();
    if retry_on_intr(|| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)))? == 0 {
        // With what it has started, e.g. CRIU: its group is its own.
        let _ = rustix::process::kill_process_group(child.pid(), rustix::process::Signal::KILL);
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(child.wait())
}

/// What is there by now: whatever the program left behind may still hold the pipe.
fn there(mut said: PipeReader) -> io::Result<String> {
    rustix::io::ioctl_fionbio(&said, true)?;
    let mut text = Vec::new();
    let _ = said.read_to_end(&mut text);
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

/// Asks a program something about itself, e.g. `--version`: what it says on its standard output.
///
/// # Errors
/// [`HostLacks`] with this fix if it cannot be run, does not answer by the deadline, or fails.
pub(crate) fn ask(
    binary: &Path,
    option: &str,
    fix: &str,
    deadline: Deadline,
) -> Result<String, HostLacks> {
    let lacks = |what: String| HostLacks { what, fix: fix.to_owned() };
    let name = binary.display();
    let asked = || -> io::Result<_> {
        let [(said, output), (complaint, errors)] = [io::pipe()?, io::pipe()?];
        let streams = (None, output.as_fd(), errors.as_fd());
        let exit = wait(binary, &[option.into()], streams, deadline)?;
        drop((output, errors));
        Ok((exit, there(said)?, there(complaint)?))
    };
    match asked() {
        Ok((Exit::Code(0), said, _)) => Ok(said),
        Ok((exit, said, complaint)) => {
            let why = complaint.lines().last().or(said.lines().last());
            let why = why.map(|line| format!(": {line}")).unwrap_or_default();
            Err(lacks(format!("{name} {option} {exit}{why}")))
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Err(lacks(format!("{name} hangs when it is asked for {option}")))
        }
        Err(error) => Err(lacks(format!("{name}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;
    use std::time::Instant;

    use rustix::fs::{CWD, FileType, Mode, OFlags};

    use super::*;

    fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
        let file = dir.join(name);
        fs::write(&file, format!("#!/bin/sh\n{text}")).expect("written");
        fs::set_permissions(&file, Permissions::from_mode(0o755)).expect("set");
        file
    }

    #[test]
    fn a_program_that_does_not_answer_is_named_in_time() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // It leaves a process of its own behind when it is killed alone: this one's end is the end of
        // what is read here.
        let alive = dir.path().join("alive");
        rustix::fs::mknodat(CWD, &alive, FileType::Fifo, Mode::RWXU, 0).expect("made");
        let opened = rustix::fs::open(&alive, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
        let mut alive_of = fs::File::from(opened.expect("opened"));
        rustix::io::ioctl_fionbio(&alive_of, false).expect("set");
        let text = format!("sleep 1000 > {}\n", alive.display());
        let program = script(dir.path(), "vmm", &text);
        let begin = Instant::now();
        let deadline = Deadline::after(Duration::from_millis(200));
        let lacks = ask(&program, "--version", "reinstall it", deadline).expect_err("it hangs");
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
        assert!(lacks.what.ends_with("vmm hangs when it is asked for --version"), "{lacks}");
        assert_eq!(lacks.fix, "reinstall it");
        assert_eq!(alive_of.read(&mut [0]).expect("read"), 0);
    }

    #[test]
    fn what_a_program_says_is_told_if_it_ends_well() {
        let soon = || Deadline::after(PATIENCE);
        let said = ask(Path::new("/bin/echo"), "it is", "none", soon());
        assert_eq!(said, Ok("it is".to_owned()));
        let failed = ask(Path::new("/bin/false"), "--no", "none", soon()).expect_err("it fails");
        assert!(failed.what.ends_with("exited with code 1"), "{failed}");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let warns = "echo no display >&2; echo it is\n";
        let said = ask(&script(dir.path(), "warns", warns), "--version", "none", soon());
        assert_eq!(said, Ok("it is".to_owned()), "a warning is not what it is");
        let fails = script(dir.path(), "fails", "echo first; echo no such library >&2; exit 127\n");
        let failed = ask(&fails, "--version", "none", soon()).expect_err("it fails");
        assert!(failed.what.ends_with("exited with code 127: no such library"), "{failed}");
        let missing = ask(Path::new("/nonexistent/vmm"), "--no", "none", soon());
        assert!(missing.expect_err("missing").what.contains("No such file"));
    }
}
