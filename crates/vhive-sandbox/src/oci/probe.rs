//! Finds out whether a host can offer a runtime: by starting a container that says hello.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use vhive_api::SandboxId;

use super::container::Verb;
use super::criu_probe;
use super::layer::Layer;
use super::start::Wanted;
use super::tool::Tool;
use crate::cgroup::{self, Cgroup};
use crate::contract::{Conversation, chain, own_words};
use crate::deadline::Deadline;
use crate::journal::{Journal, Milestone};
use crate::run_dir::RunRoot;
use crate::runtime::HostLacks;

/// How long a probe may take. A container takes a fraction of a second; gVisor on a KVM that is
/// none hangs for ever.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a host has that offers a runtime.
#[derive(Debug)]
pub(super) struct Found {
    /// Name and version.
    pub(super) version: String,
    pub(super) layer: Layer,
    /// Version of the CRIU that saves its containers, or why none does; nothing of gVisor, which
    /// saves them itself.
    pub(super) criu: Result<String, HostLacks>,
}

/// Looks for everything, and starts a container without image and network.
pub(super) fn look(tool: &Tool, layer: Layer, cache: &Path) -> Result<Found, HostLacks> {
    if !rustix::process::geteuid().is_root() {
        let fix = "run vhive as root, e.g. with sudo; containers without root are out of scope";
        return Err(lacks("not run as root", fix));
    }
    let version = version(tool)?;
    file_systems()?;
    probe(tool, &layer, cache).map_err(|reason| {
        let what = format!("{} starts no container here: {reason}", tool.name);
        lacks(&what, "mend what it says, or use another runtime")
    })?;
    let criu = if tool.is_gvisor() {
        Err(lacks("gVisor is not saved by CRIU", "it saves itself"))
    } else {
        criu_probe::find(tool, (&version, &layer), cache)
    };
    Ok(Found { version, layer, criu })
}

fn version(tool: &Tool) -> Result<String, HostLacks> {
    let output = Command::new(&tool.binary).arg("--version").output();
    let output = output.map_err(|error| {
        let what = format!("no {} ({error})", tool.binary.display());
        lacks(&what, &format!("install the Debian package {}", tool.package))
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.lines().next().unwrap_or_default().split_whitespace();
    let version = words.filter(|word| *word != "version").collect::<Vec<_>>().join(" ");
    if !output.status.success() || version.is_empty() {
        let what = format!("{} does not tell its version", tool.binary.display());
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
fn probe(tool: &Tool, layer: &Layer, cache: &Path) -> Result<(), String> {
    let dir = tempfile::Builder::new().prefix("probe-").tempdir_in(cache);
    let dir = dir.map_err(|error| error.to_string())?;
    let (id, journal) = (SandboxId::random(), Journal::new());
    // The node's own tag: if it is killed now, its next sweep finds the groups.
    let root = RunRoot::below(dir.path(), cache.parent().unwrap_or(cache));
    let group = Cgroup::create_everywhere(&root, &id, &cgroup::Limits::default());
    let group = group.map_err(|error| error.to_string())?;
    let bundle = dir.path().join("bundle");
    fs::create_dir(&bundle).map_err(|error| error.to_string())?;
    let wanted = Wanted {
        tool,
        layer,
        id: &id,
        bundle: &bundle,
        journal: &journal,
        image: None,
        netns: None,
        verb: Verb::Run,
        cgroup: (Cgroup::name(&root, &id), &group),
        limits: None,
        volumes: &[],
        conversation: Conversation::new(Arc::clone(&journal), None),
    };
    let started = wanted.start().map_err(|error| chain(&error))?;
    let reached = journal.wait(Milestone::KernelUp, Deadline::after(PATIENCE));
    reached.map(drop).map_err(|error| own_words(&started.supervised, &journal, &error.to_string()))
}

fn lacks(what: &str, fix: &str) -> HostLacks {
    HostLacks { what: what.to_owned(), fix: fix.to_owned() }
}
