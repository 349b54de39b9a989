//! Snapshots of gVisor's sandboxes.
//!
//! ```text
//!   PrepareSnapshot ─► Prepared ─► runsc checkpoint --leave-running ─► Resume
//! ```
//!
//! gVisor's own kernel keeps what the function has written (`--overlay2=root:memory`), so a
//! checkpoint is whole with the read-only image that its manifest names. It loads all memory before
//! the sandbox goes on: there is one memory mode, `file`.
//!
//! # Source
//! gVisor, `g3doc/user_guide/checkpoint_restore.md`; `runsc checkpoint`, `runsc restore`.

use std::fs;

use vhive_api::{Digest, RuntimeName};

use super::command;
use super::probe::Found;
use super::sandbox::OciSandbox;
use super::tool::Tool;
use crate::contract::{self, time_to_go_on};
use crate::deadline::Deadline;
use crate::host::processor;
use crate::kernel::init_binary;
use crate::runtime::{Checkpoint, SandboxSpec, SnapshotError};
use crate::snapshot::{MEMORY, MemoryShape, Platform, SnapshotDraft, VM_STATE};

/// The pages' directory, which gVisor keeps apart from the kernel's state.
const PAGES_META: &str = "pages-meta";

/// gVisor's names of a checkpoint's files, and ours.
pub(super) const FILES: [(&str, &str); 3] =
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
pub(super) fn platform(found: &Found) -> Platform {
    Platform {
        runtime: RuntimeName::Runsc,
        version: format!("{}, {}", found.version, found.tool.options().join(" ")),
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
        if let Some(criu) = self.criu.clone() {
            return criu.snapshot(self, draft, deadline);
        }
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
        command::run_inside(&self.netns, tool, &words, deadline).map_err(failed)?;
        for (theirs, ours) in FILES {
            draft.adopt(ours, &image.join(theirs))?;
        }
        // Empty, and no part of a snapshot.
        let _ = fs::remove_dir_all(&image);
        Ok(())
    }
}
