//! Snapshots of gVisor's sandboxes.
//!
//! ```text
//!   PrepareSnapshot ─► Prepared ─► runsc checkpoint --leave-running ─► Resume
//!   runsc restore --detach = Restored ─► Resume{name} ─► Resumed
//! ```
//!
//! gVisor's own kernel keeps what the function has written (`--overlay2=root:memory`), so a
//! checkpoint is whole with the read-only image that its manifest names. It loads all memory before
//! the sandbox goes on: there is one memory mode, `file`.
//!
//! # Source
//! gVisor, `g3doc/user_guide/checkpoint_restore.md`; `runsc checkpoint`, `runsc restore`.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::Pid;
use vhive_api::{Digest, MemoryFigures, MemoryMode, RuntimeName};

use super::probe::Found;
use super::sandbox::OciSandbox;
use super::start::{Ground, resource};
use super::tool::Tool;
use super::{Oci, command};
use crate::contract::{
    self, Conversation, Supervised, become_clone, chain, own_words, time_to_go_on,
};
use crate::deadline::Deadline;
use crate::host::processor;
use crate::journal::{End, Milestone};
use crate::kernel::init_binary;
use crate::runtime::{
    BootError, Checkpoint, HostLacks, Memory, Paging, RecordingError, Restore, RestoreError,
    Sandbox, SandboxSpec, SnapshotError,
};
use crate::snapshot::{MEMORY, MemoryShape, Mismatch, Platform, Snapshot, SnapshotDraft, VM_STATE};

/// The pages' directory, which gVisor keeps apart from the kernel's state.
const PAGES_META: &str = "pages-meta";

/// gVisor's names of a checkpoint's files, and ours.
const FILES: [(&str, &str); 3] =
    [("checkpoint.img", VM_STATE), ("pages.img", MEMORY), ("pages_meta.img", PAGES_META)];

/// What a booted sandbox's snapshots have in common.
#[derive(Clone, Debug)]
pub(super) struct Gvisor {
    pub(super) tool: Tool,
    pub(super) platform: Platform,
    pub(super) shape: MemoryShape,
}

/// What snapshots are taken on: gVisor is the kernel, and init, which is running in a snapshot, is
/// a file of the root that it is restored with.
pub(super) fn platform(tool: &Tool, found: &Found) -> Platform {
    Platform {
        runtime: RuntimeName::Runsc,
        version: format!("{}, {}", found.version, tool.options().join(" ")),
        cpu: processor(),
        kernel: Some(Digest::of(init_binary())),
        page_size: u32::try_from(rustix::param::page_size()).unwrap_or(0),
    }
}

pub(super) fn shape(spec: &SandboxSpec) -> MemoryShape {
    MemoryShape { memory: spec.memory, vcpus: spec.cpu_millis.div_ceil(1000).max(1) }
}

impl Checkpoint for OciSandbox {
    fn snapshot_into(
        &mut self,
        draft: &mut SnapshotDraft,
        deadline: Deadline,
    ) -> Result<(), SnapshotError> {
        let Some(Gvisor { tool, platform, shape }) = self.gvisor.clone() else {
            let reason = "it is a clone".to_owned();
            return Err(SnapshotError::Runtime { step: "snapshot the sandbox", reason });
        };
        let guest_ns = contract::prepare(&self.supervised, deadline)?;
        let written = self.write(&tool, draft, deadline);
        let resumed = contract::go_on(&self.supervised, &self.id, time_to_go_on(deadline));
        // A sandbox that stands still is the worse news.
        resumed?;
        written?;
        let network = Some(self.network.guest().clone());
        draft.describe(platform, shape, network, guest_ns);
        Ok(())
    }
}

impl OciSandbox {
    fn write(
        &self,
        tool: &Tool,
        draft: &mut SnapshotDraft,
        deadline: Deadline,
    ) -> Result<(), SnapshotError> {
        let image = draft.dir().join("image");
        let failed = |reason| SnapshotError::Runtime { step: "checkpoint the sandbox", reason };
        fs::create_dir(&image).map_err(|error| failed(error.to_string()))?;
        let path = image.to_string_lossy();
        let command =
            ["checkpoint", "--compression=none", "--leave-running", "--image-path", &path];
        let mut command = command.to_vec();
        command.push(self.id.as_str());
        let words = tool.words(&self.dir.path().join("runtime"), &command);
        command::run_inside(&self.netns, &tool.binary, &words, deadline).map_err(failed)?;
        for (theirs, ours) in FILES {
            draft.adopt(ours, &image.join(theirs))?;
        }
        // Empty, and no part of a snapshot.
        let _ = fs::remove_dir_all(&image);
        Ok(())
    }
}

impl Restore for Oci {
    fn memory_modes(&self) -> &[MemoryMode] {
        &[MemoryMode::File]
    }

    fn platform(&self) -> Result<Platform, HostLacks> {
        Ok(platform(&self.tool, &*self.found()?))
    }

    fn restore(
        &self,
        spec: &SandboxSpec,
        from: &Snapshot,
        memory: Memory,
        deadline: Deadline,
    ) -> Result<Box<dyn Sandbox>, RestoreError> {
        if memory.mode != MemoryMode::File {
            let reason = "gVisor loads all memory before it goes on".to_owned();
            return Err(RestoreError::Mode { mode: memory.mode, reason });
        }
        let host = |lacks| BootError::Host { runtime: RuntimeName::Runsc, lacks };
        let found = self.found().map_err(host)?;
        let ground = Ground::make(&self.tool, &self.images, spec)?;
        if let Some(was) = &from.manifest().network
            && was != ground.network().guest()
        {
            let (has, wanted) = (format!("{was:?}"), format!("{:?}", ground.network().guest()));
            return Err(RestoreError::Mismatch(Mismatch { field: "network", has, wanted }));
        }
        let restored = self.bring_back(&ground, &found, spec, from, deadline);
        let running = restored.inspect_err(|error| {
            let (step, reason) = ("restore".to_owned(), chain(error));
            spec.journal.end(End::Failed { step, reason });
        })?;
        let mut sandbox = ground.sandbox(running, spec);
        sandbox.clone = true;
        Ok(Box::new(sandbox))
    }
}

impl Oci {
    fn bring_back(
        &self,
        ground: &Ground,
        found: &Found,
        spec: &SandboxSpec,
        from: &Snapshot,
        deadline: Deadline,
    ) -> Result<(Supervised, Option<Pid>), RestoreError> {
        let journal = &spec.journal;
        let image = ground.dir().join("checkpoint");
        let lay_out = || link_files(from, &image);
        resource("lay out the checkpoint", lay_out)?;
        let conversation = Conversation::with_clone(Arc::clone(journal));
        let started = ground.start(&self.tool, found, spec, (Some(image), conversation))?;
        let program = || self.tool.binary.display().to_string();
        let pid = started.wait_pid(journal, &self.tool, deadline)?;
        if pid.is_none() {
            let guest = &started.supervised;
            let reason = own_words(guest, journal, "it does not start");
            if guest.was_killed() {
                // By whomever, it says nothing of the state.
                let wanted = Milestone::Restored;
                return Err(BootError::Guest { wanted, attempts: 1, reason }.into());
            }
            return Err(RestoreError::State { program: program(), reason });
        }
        journal.reach(Milestone::Restored, Instant::now());
        become_clone(&started.supervised, spec, ground.network(), deadline)?;
        Ok((started.supervised, pid))
    }
}

/// A directory in which the snapshot's files have the names that gVisor looks for.
fn link_files(from: &Snapshot, image: &Path) -> io::Result<()> {
    fs::create_dir(image)?;
    for (theirs, ours) in FILES {
        symlink(from.dir().join(ours), image.join(theirs))?;
    }
    Ok(())
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
