//! Finds out whether a host can offer a runtime: by starting a container that says hello.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vhive_api::SandboxId;

use super::command;
use super::container::Verb;
use super::criu_probe;
use super::layer::Layer;
use super::start::{First, Wanted};
use super::tool::Tool;
use crate::cgroup::{self, Cgroup};
use crate::contract::{Conversation, chain, own_words};
use crate::deadline::Deadline;
use crate::journal::{Journal, Milestone};
use crate::process::Exit;
use crate::runtime::HostLacks;
use crate::trial::Trial;

/// How long a probe may take. A container takes a fraction of a second; gVisor on a KVM that is
/// none hangs for ever.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a host has that offers a runtime.
#[derive(Debug)]
pub(super) struct Found {
    /// The program, as it is to be run here.
    pub(super) tool: Tool,
    /// Name and version.
    pub(super) version: String,
    pub(super) layer: Layer,
    /// Version of the CRIU that saves its containers, or why none does; nothing of gVisor, which
    /// saves them itself.
    pub(super) criu: Result<String, HostLacks>,
}

/// Looks for everything, and starts a container without image and network.
pub(super) fn look(tool: &Tool, layer: Layer, cache: &Path) -> Result<Found, HostLacks> {
    look_for(tool, layer, cache, PATIENCE)
}

fn look_for(
    tool: &Tool,
    layer: Layer,
    cache: &Path,
    patience: Duration,
) -> Result<Found, HostLacks> {
    if !rustix::process::geteuid().is_root() {
        let fix = "run vhive as root, e.g. with sudo; containers without root are out of scope";
        return Err(lacks("not run as root", fix));
    }
    let version = version(tool, Deadline::after(patience))?;
    let tool = tool.fitted(Deadline::after(patience)).map_err(|reason| {
        let what = format!("{} does not tell its options: {reason}", tool.binary.display());
        lacks(&what, &format!("reinstall the Debian package {}", tool.package))
    })?;
    file_systems()?;
    let criu = Err(lacks("CRIU has not been tried out yet", "try again"));
    let mut found = Found { tool, version, layer, criu };
    probe(&found, cache, patience).map_err(|reason| {
        let what = format!("{} starts no container here: {reason}", found.tool.name);
        lacks(&what, "mend what it says, or use another runtime")
    })?;
    found.criu = criu_probe::find(&found, cache);
    Ok(found)
}

fn version(tool: &Tool, deadline: Deadline) -> Result<String, HostLacks> {
    let binary = tool.binary.display();
    let said = command::run(&tool.binary, &["--version".into()], deadline);
    let (exit, text) = said.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => {
            let fix = format!("reinstall the Debian package {}", tool.package);
            lacks(&format!("{binary} hangs when it is asked for its version"), &fix)
        }
        _ => {
            let fix = format!("install the Debian package {}", tool.package);
            lacks(&format!("no {binary} ({error})"), &fix)
        }
    })?;
    let words = text.lines().next().unwrap_or_default().split_whitespace();
    let version = words.filter(|word| *word != "version").collect::<Vec<_>>().join(" ");
    if exit != Exit::Code(0) || version.is_empty() {
        let what = format!("{binary} does not tell its version");
        return Err(lacks(&what, &format!("reinstall the Debian package {}", tool.package)));
    }
    Ok(version)
}

/// Containers are made of these two by the host's kernel, which loads them at the first mount if
/// they are modules; whether it can shows then.
fn file_systems() -> Result<(), HostLacks> {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(kernel()).exists();
    for wanted in ["overlay", "erofs"] {
        let has = known.lines().any(|line| line.split_whitespace().last() == Some(wanted));
        if !has && !modules {
            let what = format!("the host's kernel has no {wanted} file system");
            return Err(lacks(&what, "use a kernel that has it, or runtimeClassName: qemu"));
        }
    }
    Ok(())
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Starts a container that says hello, and ends it.
fn probe(found: &Found, cache: &Path, patience: Duration) -> Result<(), String> {
    let trial = Trial::begin(cache).map_err(|error| error.to_string())?;
    let (id, journal) = (SandboxId::random(), Journal::new());
    let group = Cgroup::create_everywhere(trial.root(), &id, &cgroup::Limits::default());
    let group = group.map_err(|error| error.to_string())?;
    let bundle = trial.dir().join("bundle");
    fs::create_dir(&bundle).map_err(|error| error.to_string())?;
    let wanted = Wanted {
        found,
        id: &id,
        bundle: &bundle,
        journal: &journal,
        image: None,
        netns: None,
        verb: Verb::Run,
        cgroup: (Cgroup::name(trial.root(), &id), &group),
        limits: cgroup::Limits::default(),
        first: First::Init(Conversation::new(Arc::clone(&journal), None), &[]),
    };
    let started = wanted.start().map_err(|error| chain(&error))?;
    let reached = journal.wait(Milestone::KernelUp, Deadline::after(patience));
    reached.map(drop).map_err(|error| own_words(&started.supervised, &journal, &error.to_string()))
}

fn lacks(what: &str, fix: &str) -> HostLacks {
    HostLacks { what: what.to_owned(), fix: fix.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;
    use std::time::Instant;

    use super::super::config::{ContainerConfig, GvisorConfig, Platform};
    use super::*;

    /// Whether something runs with this word.
    fn runs(word: &str) -> bool {
        let all = fs::read_dir("/proc").expect("readable");
        let lines = all.filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
        lines.into_iter().any(|line| line.split(|byte| *byte == 0).any(|w| w == word.as_bytes()))
    }

    fn program(dir: &Path, script: &str) -> PathBuf {
        let binary = dir.join("program");
        fs::write(&binary, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&binary, Permissions::from_mode(0o755)).expect("set");
        binary
    }

    fn look_briefly(tool: &Tool, cache: &Path) -> Result<Found, HostLacks> {
        let layer = Layer::make(cache).expect("made");
        look_for(tool, layer, cache, Duration::from_millis(700))
    }

    fn is_root(test: &str) -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("SKIP {test}: root");
        }
        root
    }

    #[test]
    fn a_runtime_that_hangs_is_ended_in_time_and_leaves_nothing() {
        if !is_root("a_runtime_that_hangs_is_ended_in_time_and_leaves_nothing") {
            return;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache = dir.path().join("host");
        let version = "[ $1 = --version ] && { echo runc version 1; exit; }";
        let long = format!("1000.{}", std::process::id());
        for (script, wanted) in [
            (format!("exec sleep {long}"), "hangs when it is asked for its version"),
            (format!("{version}; exec sleep {long}"), "starts no container here"),
            (format!("{version}; echo broken >&2; exit 3"), "broken"),
        ] {
            let binary = Some(program(dir.path(), &script));
            let tool = Tool::runc(ContainerConfig { binary, criu: None });
            let begin = Instant::now();
            let lacks = look_briefly(&tool, &cache).expect_err("it is no runtime");
            assert!(lacks.what.contains(wanted), "{lacks}");
            assert!(begin.elapsed() < Duration::from_secs(5));
            assert!(!runs(&long));
            let left = fs::read_dir(&cache).expect("readable").map(|e| e.expect("read").path());
            let left: Vec<_> = left.filter(|p| !p.to_string_lossy().contains("init-")).collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }

    #[test]
    fn a_missing_runtime_names_the_package() {
        if !is_root("a_missing_runtime_names_the_package") {
            return;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let binary = Some(dir.path().join("runc"));
        let lacks = look_briefly(&Tool::runc(ContainerConfig { binary, criu: None }), dir.path());
        let lacks = lacks.expect_err("it is missing");
        assert!(lacks.fix.contains("package runc"), "{lacks}");
    }

    #[test]
    fn an_old_gvisor_is_run_with_what_it_has() {
        let test = "an_old_gvisor_is_run_with_what_it_has";
        if !is_root(test) {
            return;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache = dir.path().join("host");
        // The real one, which says less of itself, and takes no option that it does not tell.
        let script = "real=$(command -v runsc)
            case $* in
                *--net-disconnect-ok*|*systrap*) echo flag provided but not defined; exit 2;;
                flags) $real flags 2>&1 | grep -v net-disconnect | sed s/systrap/none/g;;
                'help checkpoint') $real help checkpoint | grep -v compression;;
                *) exec $real \"$@\";;
            esac";
        let config = |binary| GvisorConfig { binary, platform: Platform::Systrap };
        let layer = Layer::make(&cache).expect("made");
        let real = look(&Tool::runsc(config("runsc".into())), layer.clone(), &cache);
        let real = match real {
            Ok(real) => real,
            Err(lacks) => return eprintln!("SKIP {test}: {lacks}"),
        };
        let old = Tool::runsc(config(program(dir.path(), script)));
        let old = look(&old, layer, &cache).expect("it starts a container");
        assert!(!old.tool.restores());
        assert!(old.tool.options().contains(&"--platform=ptrace".to_owned()));
        assert_eq!(real.version, old.version);
    }
}
