//! Finds out whether CRIU saves and restores containers here, by doing it once.
//!
//! A CRIU that is older than its kernel fails in ways that no version number tells. That it works
//! is remembered until something changes that it depends on; that it does not is asked anew by the
//! next node.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vhive_api::guest::{GuestConfig, Hooks, Process};
use vhive_api::{Digest, RuntimeName, SandboxId};

use super::container::Verb;
use super::criu::{self, Running};
use super::layer::{INIT, Layer};
use super::start::{Started, Wanted};
use super::tool::Tool;
use crate::cgroup::{self, Cgroup};
use crate::contract::{self, Conversation, chain, own_words};
use crate::deadline::Deadline;
use crate::journal::{Journal, Milestone};
use crate::kernel::init_binary;
use crate::linux::host_kernel;
use crate::network::loopback_alone;
use crate::remembered;
use crate::run_dir::RunRoot;
use crate::runtime::HostLacks;

/// How long the trial may take; a fit host takes less than a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the answer depends on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    host_kernel: String,
    runtime: String,
    criu: String,
    init: Digest,
}

/// The version of the CRIU that works here with this runtime.
///
/// # Errors
/// [`HostLacks`]: why the runtime's containers cannot be snapshotted.
pub(super) fn find(
    tool: &Tool,
    (version, layer): (&str, &Layer),
    cache: &Path,
) -> Result<String, HostLacks> {
    if tool.name != RuntimeName::Runc {
        let what = format!("no snapshots of {} containers have been seen to work", tool.name);
        return Err(lacks(what, "use runtimeClassName: runc or runsc"));
    }
    let criu = criu_version(&tool.criu)?;
    let question = Question {
        host_kernel: host_kernel(),
        runtime: version.to_owned(),
        criu: criu.clone(),
        init: Digest::of(init_binary()),
    };
    let file = cache.join("criu.json");
    if remembered::recall(&question, &file) == Some(true) {
        return Ok(criu);
    }
    attempt(tool, layer, cache).map_err(|reason| {
        let what = format!("CRIU {criu} restores no container here: {reason}");
        let fix = "install a CRIU that knows this kernel, and name it in runc.criu";
        lacks(what, fix)
    })?;
    remembered::keep(&question, &true, &file);
    Ok(criu)
}

fn criu_version(criu: &Path) -> Result<String, HostLacks> {
    let output = Command::new(criu).arg("--version").output();
    let output = output.map_err(|error| {
        let fix = "install CRIU (Debian package criu), or name it in runc.criu";
        lacks(format!("no {} ({error})", criu.display()), fix)
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `Version: 4.2`, and perhaps a line with its commit.
    let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
    version.map(str::to_owned).ok_or_else(|| {
        let what = format!("{} does not tell its version", criu.display());
        lacks(what, "name CRIU's own program in runc.criu")
    })
}

/// A container that is there for the trial. The fields are dropped in this order: first its
/// processes.
struct Guinea<'a> {
    started: Started,
    tool: &'a Tool,
    id: SandboxId,
    journal: Arc<Journal>,
    cgroup: Cgroup,
    bundle: tempfile::TempDir,
    netns: OwnedFd,
}

impl<'a> Guinea<'a> {
    fn start(
        tool: &'a Tool,
        layer: &Layer,
        cache: &Path,
        image: Option<&Path>,
    ) -> Result<Self, String> {
        let failed = |error: io::Error| error.to_string();
        let bundle = tempfile::Builder::new().prefix("probe-").tempdir_in(cache).map_err(failed)?;
        let (id, journal) = (SandboxId::random(), Journal::new());
        // The node's own tag: if it is killed now, its next sweep finds the groups.
        let root = RunRoot::below(bundle.path(), cache.parent().unwrap_or(cache));
        let limits = cgroup::Limits::default();
        let cgroup = Cgroup::create_everywhere(&root, &id, &limits).map_err(failed)?;
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
            tool,
            layer,
            id: &id,
            bundle: bundle.path(),
            journal: &journal,
            image: None,
            netns: Some(netns.try_clone().map_err(failed)?),
            verb,
            cgroup: (Cgroup::name(&root, &id), &cgroup),
            limits: None,
            volumes: &[],
            conversation,
        };
        let started = wanted.start().map_err(|error| chain(&error))?;
        Ok(Self { started, tool, id, journal, cgroup, bundle, netns })
    }

    fn save_into(&self, image: &Path, deadline: Deadline) -> Result<(), String> {
        let running = Running {
            tool: self.tool,
            id: &self.id,
            bundle: self.bundle.path(),
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
fn attempt(tool: &Tool, layer: &Layer, cache: &Path) -> Result<(), String> {
    let deadline = Deadline::after(PATIENCE);
    let dir = tempfile::Builder::new().prefix("probe-").tempdir_in(cache);
    let image = dir.map_err(|error| error.to_string())?;
    let image_dir = image.path().join("image");
    let original = Guinea::start(tool, layer, cache, None)?;
    let Guinea { started, journal, .. } = &original;
    let waited = journal.wait(Milestone::Started, deadline);
    waited.map_err(|error| own_words(&started.supervised, journal, &error.to_string()))?;
    let pid = started.wait_pid(journal, tool, deadline).map_err(|error| chain(&error))?;
    pid.ok_or("it has ended")?;
    contract::prepare(&started.supervised, deadline).map_err(|error| chain(&error))?;
    original.save_into(&image_dir, deadline)?;
    contract::go_on(&started.supervised, &original.id, deadline)
        .map_err(|error| format!("the original does not go on: {}", chain(&error)))?;
    let clone = Guinea::start(tool, layer, cache, Some(&image_dir))?;
    let Guinea { started, journal, .. } = &clone;
    let log = clone.bundle.path().join("criu/restore.log");
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
    use super::*;
    use crate::oci::ContainerConfig;

    #[test]
    fn a_criu_that_is_none_is_named() {
        let missing = criu_version(Path::new("/no/such/criu")).expect_err("missing");
        assert!(missing.what.contains("No such file") && missing.fix.contains("runc.criu"));
        let other = criu_version(Path::new("true")).expect_err("another program");
        assert_eq!(other.what, "true does not tell its version");
    }

    #[test]
    fn crun_offers_no_snapshots_and_says_why() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let layer = Layer::make(dir.path()).expect("made");
        let crun = Tool::crun(ContainerConfig::default());
        let lacks = find(&crun, ("crun 1", &layer), dir.path()).expect_err("none");
        assert!(lacks.what.contains("crun"), "{lacks}");
    }
}
