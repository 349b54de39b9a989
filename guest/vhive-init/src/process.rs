//! Starts the function's process as the image's configuration says.
//!
//! # Source
//! OCI image-spec `config.md`, runtime-spec `config.md` (process).

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit};
use rustix::thread::{
    CapabilitySet, remove_capability_from_bounding_set, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use rustix_libc_wrappers::process::SignalExt as _;
use vhive_api::guest::Process;
use vhive_api::inside::{self, Account, CORE, LOCKED, OPEN_FILES, STACK, environment};

use crate::World;
use crate::failure::{Failure, Step as _};
use crate::user;

/// What a machine's function may have, as a container's has it from its runtime.
const LIMITS: [(Resource, Rlimit); 4] = [
    (Resource::Nofile, Rlimit { current: Some(OPEN_FILES.0), maximum: Some(OPEN_FILES.1) }),
    (Resource::Core, Rlimit { current: Some(CORE), maximum: Some(CORE) }),
    (Resource::Stack, Rlimit { current: Some(STACK), maximum: None }),
    (Resource::Memlock, Rlimit { current: Some(LOCKED), maximum: Some(LOCKED) }),
];

/// Bytes of the spawning thread's stack, ten times of what it needs. It stays with init.
const SPAWNER_STACK: usize = 128 << 10;

/// A process that has been started.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    /// The reading ends of its standard output and standard error.
    pub(crate) outputs: Option<[PipeReader; 2]>,
}

/// What is done with what a process writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Read,
    Lost,
}

/// What is to be spawned, in the system's terms.
struct Launch {
    program: CString,
    args: Vec<CString>,
    /// In the order in which the program finds them: the standard library would sort them.
    env: Vec<CString>,
    output: Output,
}

/// Starts the process with its output on pipes and nothing to read.
pub(crate) fn start(process: &Process, world: World) -> Result<Child, Failure> {
    run(process, &process.args, Output::Read, world)
}

/// Starts another program as the process' user, with its variables and nothing to read. Its output
/// is lost.
pub(crate) fn beside(process: &Process, args: &[String], world: World) -> Result<Child, Failure> {
    run(process, args, Output::Lost, world)
}

fn run(process: &Process, args: &[String], output: Output, world: World) -> Result<Child, Failure> {
    let name = args.first().map_or("", String::as_str);
    let step = || format!("start {name}");
    let user = user::look_up(&process.user).step(step())?;
    let env = environment(&process.env, &user.home);
    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    std::fs::create_dir_all(cwd).step(format!("make working directory {cwd}"))?;
    let path = env.iter().rev().find(|(name, _)| name == "PATH").map_or("", |(_, path)| path);
    let program = find_program(name, path, Path::new(cwd)).step(step())?;
    let strings = |words: &mut dyn Iterator<Item = Vec<u8>>| {
        words.map(CString::new).collect::<Result<Vec<_>, _>>().step(step())
    };
    let launch = Launch {
        program: CString::new(OsString::from(&program).into_vec()).step(step())?,
        args: strings(&mut args.iter().map(|arg| arg.as_bytes().to_vec()))?,
        env: strings(&mut env.iter().map(|(name, value)| format!("{name}={value}").into_bytes()))?,
        output,
    };
    let place = (PathBuf::from(cwd), world);
    spawn_as(launch, &user, place).map_err(|error| explain(&error, &program)).step(step())
}

/// Spawns from a thread that has the user's credentials and the working directory, so that the
/// child is born with them. (The standard library would drop the supplementary groups, or need an
/// unsafe hook; and for any of it, it would copy init's memory first, which takes gVisor 25 ms.)
fn spawn_as(launch: Launch, user: &Account, (cwd, world): (PathBuf, World)) -> io::Result<Child> {
    let user = user.clone();
    let spawner = thread::Builder::new().name("spawn".to_owned()).stack_size(SPAWNER_STACK);
    let spawner = spawner.spawn(move || {
        if world == World::Container {
            // What init may do that a container's function may not: give a clone its name.
            remove_capability_from_bounding_set(CapabilitySet::SYS_ADMIN)?;
        } else {
            LIMITS.into_iter().try_for_each(|(resource, limit)| setrlimit(resource, limit))?;
        }
        let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        rustix::process::chdir(&cwd)?;
        spawn(&launch)
    })?;
    let spawned = spawner.join();
    // The thread has moved all of init.
    rustix::process::chdir("/")?;
    spawned.unwrap_or_else(|_| Err(io::Error::other("init's spawning thread panicked")))
}

/// Spawns as the calling thread's user. Of that user are the pipes as well, or the program could not
/// open its own `/dev/stdout` by name.
fn spawn(launch: &Launch) -> io::Result<Child> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let mut actions = PosixSpawnFileActions::init()?;
    actions.add_dup2(null.as_raw_fd(), 0)?;
    // All of these are closed in the program.
    let (outputs, _writers) = match launch.output {
        Output::Read => {
            let [(out, out_writer), (err, err_writer)] = [io::pipe()?, io::pipe()?];
            actions.add_dup2(out_writer.as_raw_fd(), 1)?;
            actions.add_dup2(err_writer.as_raw_fd(), 2)?;
            (Some([out, err]), Some([out_writer, err_writer]))
        }
        Output::Lost => {
            actions.add_dup2(null.as_raw_fd(), 1)?;
            actions.add_dup2(null.as_raw_fd(), 2)?;
            (None, None)
        }
    };
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETPGROUP
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF
            | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK,
    )?;
    attributes.set_pgroup(Pid::from_raw(0))?;
    // Init ignores the one and blocks others; a program expects neither.
    let mut default = SigSet::empty();
    default.add(Signal::SIGPIPE);
    attributes.set_sigdefault(&default)?;
    attributes.set_sigmask(&SigSet::empty())?;
    let Launch { program, args, env, .. } = launch;
    let pid = posix_spawn(program.as_c_str(), &actions, &attributes, args, env)?;
    Ok(Child { pid, outputs })
}

fn explain(error: &io::Error, program: &Path) -> String {
    let program = program.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{program} is there, but its interpreter or dynamic loader is not in the image")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{program} (or the working directory) may not be used by this user")
        }
        _ => format!("{program}: {error}"),
    }
}

/// The program's file: as given if its name has a slash (then below the working directory unless
/// absolute), else the first executable of that name in `PATH`.
fn find_program(name: &str, path: &str, cwd: &Path) -> Result<PathBuf, String> {
    if name.is_empty() {
        return Err("the image names no program (no entrypoint and no command)".to_owned());
    }
    if name.contains('/') {
        let file = cwd.join(name);
        return match file.metadata() {
            Ok(_) => Ok(file),
            Err(error) => Err(format!("{} is not in the image ({error})", file.display())),
        };
    }
    let executable = |file: &PathBuf| {
        file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let found = path.split(':').map(|dir| cwd.join(dir).join(name)).find(executable);
    found.ok_or_else(|| format!("{name} is in no directory of PATH ({path})"))
}

/// The image's stop signal: a name with or without `SIG`, or a number.
pub(crate) fn stop_signal(text: &str) -> Result<rustix::process::Signal, Failure> {
    let signal = inside::stop_signal(text).and_then(rustix::process::Signal::from_raw);
    signal.ok_or_else(|| format!("unknown signal {text:?}")).step("read the stop signal")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn programs_are_looked_up_as_a_shell_does() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for (file, mode) in [("bin/tool", 0o755), ("first/tool", 0o644), ("app/run", 0o755)] {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = format!("{0}/none:{0}/first:{0}/bin", root.display());
        assert_eq!(find_program("tool", &path, root), Ok(root.join("bin/tool")));
        assert_eq!(find_program("app/run", &path, root), Ok(root.join("app/run")));
        let absolute = root.join("app/run");
        let found = find_program(absolute.to_str().unwrap(), "", Path::new("/"));
        assert_eq!(found, Ok(absolute));
        for missing in ["run", "./run", "/no/such/program", ""] {
            assert!(find_program(missing, &path, root).is_err(), "{missing:?}");
        }
    }
}
