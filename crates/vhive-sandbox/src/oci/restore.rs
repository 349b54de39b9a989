//! Starting a clone of a snapshot of gVisor's, or of one that CRIU has taken of a container.
//!
//! ```text
//!   runsc restore --detach                                  ─► Restored ─► Resume{name} ─► Resumed
//!   runsc create, may wait here ─► runsc restore --detach   ─► likewise, without its start
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::process::Pid;
use vhive_api::{MemoryFigures, MemoryMode};

use super::container::Verb;
use super::gvisor::{self, FILES};
use super::start::{First, Ground, Started, resource};
use super::tool::Tool;
use super::{Oci, blame, command, criu};
use crate::contract::{Conversation, Supervised, become_clone, chain, own_words};
use crate::deadline::Deadline;
use crate::journal::{End, Milestone};
use crate::runtime::{
    BootError, Guest, HostLacks, Memory, Paging, Prespawned, RecordingError, Restore, RestoreError,
    Sandbox, SandboxSpec,
};
use crate::snapshot::{Mismatch, Platform, Snapshot};

impl Restore for Oci {
    fn memory_modes(&self) -> &[MemoryMode] {
        &[MemoryMode::File]
    }

    fn lacks(&self, mode: MemoryMode) -> Option<HostLacks> {
        (mode != MemoryMode::File).then(|| HostLacks {
            what: format!("{} reads a container's memory by itself", self.tool.name),
            fix: "use the runtime qemu or firecracker, or the snapshot policy vanilla".to_owned(),
        })
    }

    fn platform(&self, _: &Guest) -> Result<Platform, HostLacks> {
        let found = self.found()?;
        if self.tool.is_gvisor() {
            return Ok(gvisor::platform(&found));
        }
        let criu = found.criu.clone()?;
        Ok(criu::platform(&found, &criu))
    }

    fn prespawn(
        &self,
        spec: &SandboxSpec,
        from: &Snapshot,
        mode: MemoryMode,
        deadline: Deadline,
    ) -> Result<Option<Box<dyn Prespawned>>, RestoreError> {
        check_mode(mode)?;
        if !self.tool.is_gvisor() {
            // CRIU becomes what it restores.
            return Ok(None);
        }
        let (ground, image) = self.lay_out(spec, from)?;
        let started = self.start(&ground, spec, Verb::Create, deadline);
        let (started, pid) = started.inspect_err(|error| failed(spec, error))?;
        let (tool, spec) = (self.found().map_err(self.host())?.tool.clone(), spec.clone());
        Ok(Some(Box::new(Waiting { started, pid, tool, image, spec, ground })))
    }

    fn restore(
        &self,
        spec: &SandboxSpec,
        from: &Snapshot,
        memory: Memory,
        deadline: Deadline,
    ) -> Result<Box<dyn Sandbox>, RestoreError> {
        check_mode(memory.mode)?;
        let (ground, image) = self.lay_out(spec, from)?;
        let restored = self.start(&ground, spec, Verb::Restore(image), deadline);
        let restored = restored.and_then(|(started, pid)| {
            self.name(pid, spec)?;
            go_on(&started.supervised, &ground, spec, deadline).map(|()| (started, pid))
        });
        let (started, pid) = restored.inspect_err(|error| failed(spec, error))?;
        Ok(clone(ground, started, pid, spec))
    }
}

fn check_mode(mode: MemoryMode) -> Result<(), RestoreError> {
    if mode == MemoryMode::File {
        return Ok(());
    }
    let reason = "a container's memory is loaded before it goes on".to_owned();
    Err(RestoreError::Mode { mode, reason })
}

fn failed(spec: &SandboxSpec, error: &RestoreError) {
    let (step, reason) = ("restore".to_owned(), chain(error));
    spec.journal.end(End::Failed { step, reason });
}

impl Oci {
    fn host(&self) -> impl FnOnce(HostLacks) -> BootError {
        let runtime = self.tool.name;
        move |lacks| BootError::Host { runtime, lacks }
    }

    /// What a clone stands on, and a directory in which the snapshot's files have the names that
    /// gVisor looks for.
    fn lay_out(
        &self,
        spec: &SandboxSpec,
        from: &Snapshot,
    ) -> Result<(Ground, PathBuf), RestoreError> {
        let ground = Ground::make(&self.tool, &self.images, spec)?;
        if let Some(was) = &from.manifest().network
            && was != ground.network().guest()
        {
            let (has, wanted) = (format!("{was:?}"), format!("{:?}", ground.network().guest()));
            return Err(RestoreError::Mismatch(Mismatch { field: "network", has, wanted }));
        }
        let image = ground.dir().join("checkpoint");
        if self.tool.is_gvisor() {
            resource("lay out the checkpoint", || link_files(from, &image))?;
        } else {
            criu::lay_out(from, &image).map_err(|reason| {
                let program = self.tool.criu.display().to_string();
                RestoreError::State { program, reason }
            })?;
        }
        Ok((ground, image))
    }

    /// gVisor's init has its own host name changed; others may not.
    fn name(&self, pid: Pid, spec: &SandboxSpec) -> Result<(), RestoreError> {
        if self.tool.is_gvisor() {
            return Ok(());
        }
        Ok(resource("name the clone", || criu::name(pid, spec.id.as_str()))?)
    }

    /// Runs the command and waits until it has done its work.
    fn start(
        &self,
        ground: &Ground,
        spec: &SandboxSpec,
        verb: Verb,
        deadline: Deadline,
    ) -> Result<(Started, Pid), RestoreError> {
        let found = self.found().map_err(self.host())?;
        let loads = matches!(verb, Verb::Restore(_));
        let conversation = Conversation::with_clone(Arc::clone(&spec.journal));
        let first = First::Init(conversation, &spec.process.volumes);
        let started = ground.start(&found, spec, (verb, first))?;
        if let Some(pid) = started.wait_pid(&spec.journal, &self.tool, deadline)? {
            if loads {
                spec.journal.reach(Milestone::Restored, Instant::now());
            }
            return Ok((started, pid));
        }
        let said = own_words(&started.supervised, &spec.journal, "it does not start");
        let reason = criu::own_words(&ground.dir().join("criu/restore.log"), said);
        let program = self.tool.binary.display().to_string();
        if !loads || started.supervised.was_killed() {
            // By whomever, it says nothing of the state.
            return Err(BootError::Spawn { program, reason }.into());
        }
        Err(blame::failed(&self.tool, reason, ground.out_of_memory()))
    }
}

fn link_files(from: &Snapshot, image: &Path) -> io::Result<()> {
    fs::create_dir(image)?;
    for (theirs, ours) in FILES {
        symlink(from.dir().join(ours), image.join(theirs))?;
    }
    Ok(())
}

/// Tells a restored sandbox who it is now.
fn go_on(
    guest: &Supervised,
    ground: &Ground,
    spec: &SandboxSpec,
    deadline: Deadline,
) -> Result<(), RestoreError> {
    Ok(become_clone(guest, spec, ground.network(), deadline)?)
}

fn clone(ground: Ground, started: Started, pid: Pid, spec: &SandboxSpec) -> Box<dyn Sandbox> {
    let mut sandbox = ground.sandbox((started.supervised, Some(pid)), spec);
    sandbox.clone = true;
    Box::new(sandbox)
}

/// A sandbox without anything in it. The fields are dropped in this order: first the process.
#[derive(Debug)]
struct Waiting {
    started: Started,
    pid: Pid,
    tool: Tool,
    image: PathBuf,
    spec: SandboxSpec,
    ground: Ground,
}

impl Prespawned for Waiting {
    fn restore(
        self: Box<Self>,
        memory: Memory,
        deadline: Deadline,
    ) -> Result<Box<dyn Sandbox>, RestoreError> {
        self.spec.journal.reach(Milestone::Spawned, Instant::now());
        check_mode(memory.mode)?;
        self.load(deadline).inspect_err(|error| failed(&self.spec, error))?;
        let Self { started, pid, spec, ground, .. } = *self;
        Ok(clone(ground, started, pid, &spec))
    }
}

impl Waiting {
    fn load(&self, deadline: Deadline) -> Result<(), RestoreError> {
        let journal = &self.spec.journal;
        let (bundle, image) = (self.ground.dir().to_string_lossy(), self.image.to_string_lossy());
        let restore = ["restore", "--detach", "--bundle", &bundle, "--image-path", &image];
        let mut command = [&restore[..], self.tool.restore_options()].concat();
        command.push(self.spec.id.as_str());
        let words = self.tool.words(&self.ground.dir().join("runtime"), &command);
        let loaded = command::run_inside(&self.ground.netns, &self.tool, &words, deadline);
        loaded.map_err(|reason| {
            if journal.ended().is_some() || deadline.passed() {
                // It did not live to see the state.
                let program = self.tool.binary.display().to_string();
                return BootError::Spawn { program, reason }.into();
            }
            blame::failed(&self.tool, reason, self.ground.out_of_memory())
        })?;
        journal.reach(Milestone::Restored, Instant::now());
        go_on(&self.started.supervised, &self.ground, &self.spec, deadline)
    }
}

/// All memory has been there from the beginning.
#[derive(Debug)]
pub(super) struct Loaded;

impl Paging for Loaded {
    fn figures(&self) -> MemoryFigures {
        MemoryFigures::new(MemoryMode::File, None)
    }

    fn finish_recording(&self) -> Result<Option<u32>, RecordingError> {
        Ok(None)
    }
}
