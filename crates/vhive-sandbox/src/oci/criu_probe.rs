//! Finds out whether CRIU saves and restores containers here, by doing it once.
//!
//! A CRIU that is older than its kernel fails in ways that no version number tells. That it works
//! is remembered until something changes that it depends on; that it does not is asked anew by the
//! next node.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vhive_api::guest::{GuestConfig, Hooks, Process};
use vhive_api::{Digest, RuntimeName, SandboxId};

use super::command;
use super::container::Verb;
use super::criu::{self, Running};
use super::layer::INIT;
use super::probe::Found;
use super::start::{First, Started, Wanted};
use super::tool::Tool;
use crate::cgroup::{self, Cgroup};
use crate::contract::{self, Conversation, chain, own_words};
use crate::deadline::Deadline;
use crate::journal::{Journal, Milestone};
use crate::kernel::init_binary;
use crate::network::loopback_alone;
use crate::process::Exit;
use crate::remembered;
use crate::runtime::HostLacks;
use crate::trial::Trial;

/// How long the trial may take; a fit host takes less than a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the answer depends on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    /// The kernel, and what is mounted in a container.
    host: String,
    runtime: String,
    criu: String,
    init: Digest,
}

/// The version of the CRIU that works here with this runtime.
///
/// # Errors
/// [`HostLacks`]: why the runtime's containers cannot be snapshotted.
pub(super) fn find(found: &Found, cache: &Path) -> Result<String, HostLacks> {
    let tool = &found.tool;
    if tool.is_gvisor() {
        return Err(lacks("gVisor is not saved by CRIU".to_owned(), "it saves itself"));
    }
    if tool.name == RuntimeName::Crun && !is_built_with_criu(&tool.binary) {
        let what = format!("this crun ({}) is built without CRIU", found.version);
        let fix = "install one whose `crun --version` says +CRIU, or use runtimeClassName: runc or \
                   runsc";
        return Err(lacks(what, fix));
    }
    let criu = criu_version(tool)?;
    let question = Question {
        host: criu::surroundings(),
        runtime: found.version.clone(),
        criu: criu.clone(),
        init: Digest::of(init_binary()),
    };
    let file = cache.join(match tool.name {
        RuntimeName::Crun => "criu-crun.json",
        _ => "criu.json",
    });
    if remembered::recall(&question, &file, |works: &bool| *works) == Some(true) {
        return Ok(criu);
    }
    attempt(found, cache).map_err(|reason| {
        let what = format!("CRIU {criu} restores no container here: {reason}");
        lacks(what, &format!("install a CRIU that knows this kernel{}", place(tool)))
    })?;
    remembered::keep(&question, &true, &file);
    Ok(criu)
}

/// What crun says of itself; one that says nothing has been noticed before.
fn is_built_with_criu(crun: &Path) -> bool {
    let said = command::run(crun, &["--version".into()], Deadline::after(PATIENCE));
    said.is_ok_and(|(_, text)| text.split_whitespace().any(|word| word == "+CRIU"))
}

/// Where a CRIU is to be put.
fn place(tool: &Tool) -> &'static str {
    match tool.name {
        RuntimeName::Crun => " and its library libcriu, where crun finds them",
        _ => ", and name it in runc.criu",
    }
}

fn criu_version(tool: &Tool) -> Result<String, HostLacks> {
    let criu = &tool.criu;
    let said = command::run(criu, &["--version".into()], Deadline::after(PATIENCE));
    let (exit, text) = said.map_err(|error| {
        let fix = match tool.name {
            RuntimeName::Crun => "install CRIU (Debian package criu)",
            _ => "install CRIU (Debian package criu), or name it in runc.criu",
        };
        lacks(format!("no {} ({error})", criu.display()), fix)
    })?;
    // `Version: 4.2`, and perhaps a line with its commit.
    let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
    version.filter(|_| exit == Exit::Code(0)).map(str::to_owned).ok_or_else(|| {
        let what = format!("{} does not tell its version", criu.display());
        lacks(what, &format!("install CRIU's own program{}", place(tool)))
    })
}

/// A container that is there for the trial. The fields are dropped in this order: first its
/// processes.
struct Guinea<'a> {
    started: Started,
    found: &'a Found,
    id: SandboxId,
    journal: Arc<Journal>,
    cgroup: Cgroup,
    trial: Trial,
    netns: OwnedFd,
}

impl<'a> Guinea<'a> {
    fn start(found: &'a Found, cache: &Path, image: Option<&Path>) -> Result<Self, String> {
        let failed = |error: io::Error| error.to_string();
        let trial = Trial::begin(cache).map_err(failed)?;
        let bundle = trial.dir().join("bundle");
        fs::create_dir(&bundle).map_err(failed)?;
        let (id, journal) = (SandboxId::random(), Journal::new());
        let limits = cgroup::Limits::default();
        let cgroup = Cgroup::create_everywhere(trial.root(), &id, &limits).map_err(failed)?;
        let netns = loopback_alone().map_err(failed)?;
        let (verb, conversation) = match image {
            None => {
                let config = Some(idle(&id));
                (Verb::Run, Conversation::new(Arc::clone(&journal), config))
            }
            Some(image) => {
                let conversation = Conversation::with_clone(Arc::clone(&journal));
                (Verb::Restore(image.to_owned()), conversation)
            }
        };
        let wanted = Wanted {
            found,
            id: &id,
            bundle: &bundle,
            journal: &journal,
            image: None,
            netns: Some(netns.try_clone().map_err(failed)?),
            verb,
            cgroup: (Cgroup::name(trial.root(), &id), &cgroup),
            limits,
            first: First::Init(conversation, &[]),
        };
        let started = wanted.start().map_err(|error| chain(&error))?;
        Ok(Self { started, found, id, journal, cgroup, trial, netns })
    }

    fn bundle(&self) -> PathBuf {
        self.trial.dir().join("bundle")
    }

    fn save_into(&self, image: &Path, deadline: Deadline) -> Result<(), String> {
        let running = Running {
            tool: &self.found.tool,
            id: &self.id,
            bundle: &self.bundle(),
            netns: &self.netns,
            cgroup: &self.cgroup,
            changes: &self.started.changes,
        };
        running.save_into(image, deadline)
    }
}

/// A function that needs no image: init itself, which does nothing then.
fn idle(id: &SandboxId) -> GuestConfig {
    GuestConfig {
        process: Process { args: [INIT, "idle"].map(str::to_owned).to_vec(), ..Process::default() },
        hostname: id.to_string(),
        port: 1,
        network: None,
        now_unix_ns: 0,
        entropy: String::new(),
        hooks: Hooks::default(),
    }
}

/// Saves a container, and restores it twice: the original goes on, and so does a clone.
fn attempt(found: &Found, cache: &Path) -> Result<(), String> {
    let (tool, deadline) = (&found.tool, Deadline::after(PATIENCE));
    let trial = Trial::begin(cache).map_err(|error| error.to_string())?;
    let image_dir = trial.dir().join("image");
    let original = Guinea::start(found, cache, None)?;
    let Guinea { started, journal, .. } = &original;
    let waited = journal.wait(Milestone::Started, deadline);
    waited.map_err(|error| own_words(&started.supervised, journal, &error.to_string()))?;
    let pid = started.wait_pid(journal, tool, deadline).map_err(|error| chain(&error))?;
    pid.ok_or("it has ended")?;
    contract::prepare(&started.supervised, deadline).map_err(|error| chain(&error))?;
    original.save_into(&image_dir, deadline)?;
    contract::go_on(&started.supervised, &original.id, deadline)
        .map_err(|error| format!("the original does not go on: {}", chain(&error)))?;
    let clone = Guinea::start(found, cache, Some(&image_dir))?;
    let Guinea { started, journal, .. } = &clone;
    let log = clone.bundle().join("criu/restore.log");
    let pid = started.wait_pid(journal, tool, deadline).map_err(|error| chain(&error))?;
    if pid.is_none() {
        let said = own_words(&started.supervised, journal, "it does not start");
        return Err(criu::own_words(&log, said));
    }
    contract::go_on(&started.supervised, &clone.id, deadline)
        .map_err(|error| format!("a clone does not go on: {}", chain(&error)))
}

fn lacks(what: String, fix: &str) -> HostLacks {
    HostLacks { what, fix: fix.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::layer::Layer;
    use super::super::probe;
    use super::*;
    use crate::oci::{ContainerConfig, CrunConfig};

    #[test]
    fn a_criu_that_is_none_is_named() {
        let version = |criu: &str| {
            let criu = Some(PathBuf::from(criu));
            criu_version(&Tool::runc(ContainerConfig { binary: None, criu }))
        };
        let missing = version("/no/such/criu").expect_err("missing");
        assert!(missing.what.contains("No such file") && missing.fix.contains("runc.criu"));
        let other = version("true").expect_err("another program");
        assert_eq!(other.what, "true does not tell its version");
    }

    /// What is found of a crun whose `--version` says this and which starts nothing.
    fn find_of_crun(says: &str, criu: &str) -> HostLacks {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let program = |name: &str, script: &str| {
            let file = dir.path().join(name);
            fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("written");
            fs::set_permissions(&file, Permissions::from_mode(0o755)).expect("set");
            file
        };
        let binary =
            program("crun", &format!("[ $1 = --version ] && echo '{says}' && exit; exit 1"));
        let mut tool = Tool::crun(CrunConfig { binary: Some(binary) });
        tool.criu = program("criu", criu);
        let layer = Layer::make(&dir.path().join("host")).expect("made");
        let criu = Err(lacks(String::new(), ""));
        let found = Found { tool, version: "crun 1".to_owned(), layer, criu };
        let lacks = find(&found, &dir.path().join("host")).expect_err("it starts nothing");
        assert!(!dir.path().join("host/criu-crun.json").exists(), "only what works is kept");
        lacks
    }

    /// What of a snapshot a crun without CRIU can do as well.
    #[test]
    fn a_container_of_cruns_is_paused_and_goes_on() {
        let test = "a_container_of_cruns_is_paused_and_goes_on";
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache = dir.path().join("host");
        let layer = Layer::make(&cache).expect("made");
        let found = match probe::look(&Tool::crun(CrunConfig::default()), layer, &cache) {
            Ok(found) => found,
            Err(lacks) => return eprintln!("SKIP {test}: {lacks}"),
        };
        let guinea = Guinea::start(&found, &cache, None).expect("started");
        let deadline = Deadline::after(PATIENCE);
        guinea.journal.wait(Milestone::Started, deadline).expect("it starts");
        let supervised = &guinea.started.supervised;
        guinea.started.wait_pid(&guinea.journal, &found.tool, deadline).expect("written down");
        contract::prepare(supervised, deadline).expect("prepared");
        let pause = ["pause", guinea.id.as_str()];
        let words = found.tool.words(&guinea.bundle().join("runtime"), &pause);
        command::run_inside(&guinea.netns, &found.tool, &words, deadline).expect("paused");
        guinea.cgroup.thaw();
        contract::go_on(supervised, &guinea.id, deadline).expect("it runs again");
    }

    #[test]
    fn a_crun_is_asked_whether_it_is_built_with_criu_and_then_tried() {
        let without = find_of_crun("crun 1\n+SYSTEMD +CAP", "echo Version: 4.2");
        assert_eq!(without.what, "this crun (crun 1) is built without CRIU");
        let broken = find_of_crun("crun 1\n+SYSTEMD +CRIU +CAP", "exit 1");
        assert!(broken.what.ends_with("does not tell its version"), "{broken}");
        let fails = find_of_crun("crun 1\n+SYSTEMD +CRIU +CAP", "echo Version: 4.2");
        assert!(fails.what.starts_with("CRIU 4.2 restores no container here: "), "{fails}");
        for lacks in [without, broken, fails] {
            assert!(!lacks.fix.contains("runc.criu"), "{lacks}");
        }
    }
}
