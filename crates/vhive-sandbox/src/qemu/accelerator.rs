//! Which accelerator is fit for guests: found out by booting one, and remembered.
//!
//! `/dev/kvm` may open and run tiny guests, and yet hang on Linux (nested or paravirtual KVM); so
//! only a guest kernel that reaches its init proves anything.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vhive_api::{Bytes, Digest, SandboxId};

use super::command::Accelerator;
use super::config::QemuConfig;
use super::memory::Backing;
use super::vm::{Guest, Vm, Wanted};
use crate::deadline::Deadline;
use crate::journal::{Journal, Milestone, WaitError};
use crate::remembered;

/// How long a guest may take under KVM from QEMU's start to its init; a fit one takes a tenth.
const PROBE: Duration = Duration::from_secs(5);

/// Memory of that guest.
const MEMORY: Bytes = Bytes::mib(256);

/// An accelerator, and why it is that one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceleratorChoice {
    /// Which one.
    pub accelerator: Accelerator,
    /// Why, for `vhive doctor`.
    pub reason: String,
}

/// What an answer depends on; if any of it changes, it is found out anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    pub(super) host_kernel: String,
    pub(super) qemu: String,
    pub(super) guest: Digest,
}

/// Looks the answer up in `file`, or finds it out and writes it there.
pub(super) fn choose(
    config: &QemuConfig,
    guest: &Guest,
    question: &Question,
    file: &Path,
) -> AcceleratorChoice {
    if let Some(accelerator) = config.forced() {
        let reason = "the configuration says so (qemu.accelerator)".to_owned();
        return AcceleratorChoice { accelerator, reason };
    }
    // Cheap to ask, and what a user changes between two tries; so it is not remembered.
    if let Err(reason) = device(Path::new("/dev/kvm")) {
        return AcceleratorChoice { accelerator: Accelerator::Tcg, reason };
    }
    let is_kvm = |choice: &AcceleratorChoice| choice.accelerator == Accelerator::Kvm;
    if let Some(choice) = remembered::recall(question, file, is_kvm) {
        return choice;
    }
    let choice = match probe(config, guest, PROBE) {
        Ok(took) => AcceleratorChoice {
            accelerator: Accelerator::Kvm,
            reason: format!("a guest under KVM reached its init in {} ms", took.as_millis()),
        },
        Err(reason) => {
            let reason = format!("{reason}; {}", remembered::until(file));
            AcceleratorChoice { accelerator: Accelerator::Tcg, reason }
        }
    };
    tracing::info!(accelerator = choice.accelerator.as_str(), reason = %choice.reason, "accelerator chosen");
    remembered::keep(question, &choice, file);
    choice
}

/// Whether an unprivileged QEMU may open the device.
fn device(path: &Path) -> Result<(), String> {
    let device = match fs::metadata(path) {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err("this host has no /dev/kvm".to_owned());
        }
        Err(error) => return Err(format!("/dev/kvm: {error}")),
    };
    let group = device.mode() & 0o060 == 0o060 && device.gid() != 0;
    let everybody = device.mode() & 0o006 == 0o006;
    if group || everybody {
        return Ok(());
    }
    Err(format!(
        "/dev/kvm (mode {:o}, group {}) does not admit QEMU's unprivileged user; to try it: \
         `chgrp kvm /dev/kvm && chmod 660 /dev/kvm` with any group but root's",
        device.mode() & 0o777,
        device.gid()
    ))
}

/// Boots the guest kernel under KVM and says how long it took to reach its init.
fn probe(config: &QemuConfig, guest: &Guest, most: Duration) -> Result<Duration, String> {
    let (id, journal) = (SandboxId::random(), Journal::new());
    let begin = std::time::Instant::now();
    let deadline = Deadline::at(begin + most);
    let backing = Backing::fresh(MEMORY).map_err(|error| format!("no guest memory: {error}"))?;
    let wanted = Wanted {
        id: &id,
        run_root: None,
        journal: &journal,
        binary: &config.binary,
        accelerator: Accelerator::Kvm,
        uid: config.uid_of(&id),
        guest,
        cpu_millis: 1000,
        memory: MEMORY,
        backing,
        incoming: None,
        overhead: config.overhead,
        rootfs: None,
        network: None,
        config: None,
    };
    let failed = |error: &dyn std::error::Error| format!("KVM is not fit: {}", super::chain(error));
    let vm = Vm::start(wanted, deadline).map_err(|error| failed(&error))?;
    match journal.wait(Milestone::KernelUp, deadline) {
        Ok(at) => Ok(at.saturating_duration_since(begin)),
        Err(error) => {
            vm.supervised.abandon();
            Err(match error {
                WaitError::Ended(end) => format!("KVM is not fit: {end}"),
                WaitError::Deadline { .. } => {
                    let most = most.as_secs_f32();
                    format!("KVM is not fit: a guest did not reach its init within {most} s")
                }
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_that_hangs_is_ended_in_time() {
        use std::os::unix::fs::PermissionsExt as _;
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP a_qemu_that_hangs_is_ended_in_time: root");
            return;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("set");
        let binary = dir.path().join("qemu");
        fs::write(&binary, "#!/bin/sh\necho it hangs >&2\nexec sleep 1000\n").expect("written");
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("set");
        let config = QemuConfig { binary: binary.clone(), ..QemuConfig::default() };
        let guest = Guest {
            digest: Digest::of(b"guest"),
            vmlinux: binary.clone(),
            initramfs: Some(binary),
            command_line: String::new(),
        };
        let begin = std::time::Instant::now();
        let reason = probe(&config, &guest, Duration::from_millis(300)).expect_err("it hangs");
        assert!(reason.contains("no answer from QEMU"), "{reason}");
        assert!(begin.elapsed() < Duration::from_secs(5));
        let me = std::process::id();
        let children = fs::read_to_string(format!("/proc/{me}/task/{me}/children"));
        assert_eq!(children.expect("readable"), "");
    }

    #[test]
    fn a_device_that_only_root_may_open_is_no_good() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mode = |mode| fs::set_permissions(file.path(), fs::Permissions::from_mode(mode));
        mode(0o600).expect("set");
        assert!(device(file.path()).is_err());
        mode(0o666).expect("set");
        assert_eq!(device(file.path()), Ok(()));
        assert!(device(Path::new("/nonexistent")).is_err());
    }
}
