//! Taking a snapshot of a running microVM.
//!
//! ```text
//!   PrepareSnapshot ─► Prepared ─► stop ─► migrate (devices, 60 KB) ─► copy memory ─► cont ─► Resume
//! ```
//!
//! Guest memory is a file that the host shares with QEMU, so QEMU saves devices only
//! (`x-ignore-shared`) and the memory is copied from the file while the guest stands still.
//!
//! # Source
//! QEMU, `docs/devel/migration.rst`, `qapi/migration.json` (`migrate`, `x-ignore-shared`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde_json::{Value, json};

use super::qmp::{Qmp, QmpError};
use super::sandbox::QemuSandbox;
use crate::contract::{self, time_to_go_on};
use crate::deadline::Deadline;
use crate::runtime::{Checkpoint, SnapshotError};
use crate::snapshot::{DraftError, MEMORY, MemoryShape, Platform, SnapshotDraft, VM_STATE};

/// Name under which QEMU is given the file for its state.
const STATE: &str = "vhive-state";

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

/// The unit in which zeros become holes.
const PAGE: usize = 4096;

/// What a booted microVM's snapshots have in common.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) platform: Platform,
    pub(super) shape: MemoryShape,
}

impl Checkpoint for QemuSandbox {
    fn snapshot_into(
        &mut self,
        draft: &mut SnapshotDraft,
        deadline: Deadline,
    ) -> Result<(), SnapshotError> {
        let Some(taken) = self.taken.clone() else {
            let reason = "it is a clone, whose memory is not shared".to_owned();
            return Err(SnapshotError::Runtime { step: "snapshot the microVM", reason });
        };
        let guest_ns = self.prepare(deadline)?;
        let written = self.write(draft, deadline);
        let resumed = self.go_on(deadline);
        // A sandbox that stands still is the worse news.
        resumed?;
        written?;
        let network = Some(self.network.guest().clone());
        draft.describe(taken.platform, taken.shape, network, guest_ns);
        Ok(())
    }
}

impl QemuSandbox {
    /// Has the guest get ready, and says its time. A bare guest does neither.
    fn prepare(&self, deadline: Deadline) -> Result<u64, SnapshotError> {
        if self.is_bare {
            return Ok(0);
        }
        contract::prepare(&self.vm.supervised, deadline)
    }

    /// Stops the guest and writes both files.
    fn write(
        &mut self,
        draft: &mut SnapshotDraft,
        deadline: Deadline,
    ) -> Result<(), SnapshotError> {
        let (state, memory) = (draft.file(VM_STATE)?, draft.file(MEMORY)?);
        let qmp = &mut self.vm.qmp;
        let refused = |step| {
            move |error: QmpError| SnapshotError::Runtime { step, reason: super::chain(&error) }
        };
        qmp.execute("stop", None, deadline).map_err(refused("stop the guest"))?;
        save(qmp, state.as_fd(), deadline).map_err(refused("save the devices"))?;
        let Some(guest) = &self.vm.memory else {
            let reason = "its memory is not shared".to_owned();
            return Err(SnapshotError::Runtime { step: "copy guest memory", reason });
        };
        let guest = guest.try_clone().map(File::from);
        let copied = guest.and_then(|guest| copy_sparse(&guest, &memory));
        let path = draft.dir().join(MEMORY);
        copied.map_err(|source| DraftError::Write { path, source })?;
        Ok(())
    }

    /// Lets the guest run again, with the right time.
    fn go_on(&mut self, deadline: Deadline) -> Result<(), SnapshotError> {
        let deadline = time_to_go_on(deadline);
        let cont = self.vm.qmp.execute("cont", None, deadline);
        cont.map_err(|error| SnapshotError::Lost(super::chain(&error)))?;
        if self.is_bare {
            return Ok(());
        }
        contract::go_on(&self.vm.supervised, &self.id, deadline)
    }
}

/// What saving and loading have in common: memory is not in the stream, and the end is told.
pub(super) fn set_capabilities(qmp: &mut Qmp, deadline: Deadline) -> Result<(), QmpError> {
    let on = |name: &str| json!({ "capability": name, "state": true });
    let capabilities = json!({ "capabilities": [on("events"), on("x-ignore-shared")] });
    qmp.execute("migrate-set-capabilities", Some(capabilities), deadline).map(drop)
}

/// Waits until saving or loading has ended.
pub(super) fn wait_migration(qmp: &mut Qmp, deadline: Deadline) -> Result<(), QmpError> {
    let over = |data: &Value| data["status"] == "completed" || data["status"] == "failed";
    let data = qmp.wait_event("MIGRATION", over, deadline)?;
    if data["status"] == "completed" {
        return Ok(());
    }
    let state = qmp.execute("query-migrate", None, deadline)?;
    let reason = state["error-desc"].as_str().unwrap_or("no reason given").to_owned();
    Err(QmpError::Refused { command: "migrate".to_owned(), reason })
}

fn save(qmp: &mut Qmp, state: BorrowedFd<'_>, deadline: Deadline) -> Result<(), QmpError> {
    set_capabilities(qmp, deadline)?;
    qmp.give_fd(STATE, state, deadline)?;
    qmp.execute("migrate", Some(json!({ "uri": format!("fd:{STATE}") })), deadline)?;
    wait_migration(qmp, deadline)
}

/// Copies what is not zero; the rest becomes holes.
fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let most = usize::try_from(length - at).unwrap_or(PIECE).min(PIECE);
        from.read_exact_at(&mut piece[..most], at)?;
        write_non_zero(&piece[..most], to, at)?;
        at += most as u64;
    }
    Ok(())
}

/// Writes runs of pages that are not all zero.
fn write_non_zero(piece: &[u8], to: &File, at: u64) -> io::Result<()> {
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let mut begin = 0;
    while begin < piece.len() {
        let end = piece.len().min(begin + PAGE);
        if is_zero(&piece[begin..end]) {
            begin = end;
            continue;
        }
        let rest = piece[begin..].chunks(PAGE);
        let run: usize = rest.take_while(|page| !is_zero(page)).map(<[u8]>::len).sum();
        to.write_all_at(&piece[begin..begin + run], at + begin as u64)?;
        begin += run;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]
        #[test]
        fn a_sparse_copy_is_equal_and_no_larger(pages: Vec<Option<u8>>, tail in 0_usize..PAGE) {
            let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            let length = pages.len() * PAGE + tail;
            from.set_len(length as u64).unwrap();
            for (at, byte) in pages.iter().enumerate() {
                if let Some(byte) = byte {
                    from.write_all_at(&[*byte; PAGE], (at * PAGE) as u64).unwrap();
                }
            }
            copy_sparse(&from, &to).unwrap();
            let read = |file: &File| {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            };
            assert_eq!(read(&from), read(&to));
            let blocks = |file: &File| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
            assert!(blocks(&to) <= blocks(&from));
        }
    }
}
