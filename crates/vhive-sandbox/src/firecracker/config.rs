//! What can be configured about Firecracker.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vhive_api::{Bytes, SandboxId};

use crate::process::UIDS;

/// The section `[firecracker]`.
#[expect(clippy::struct_excessive_bools, reason = "switches that are independent of each other")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FirecrackerConfig {
    /// Firecracker's program: a path, or a name that is looked up in `PATH`.
    pub binary: PathBuf,
    /// Its jailer, likewise.
    pub jailer: PathBuf,
    /// Whether each Firecracker is started by the jailer, in a root directory of its own. Without
    /// it, it sees the host's files, as a user who owns none.
    pub use_jailer: bool,
    /// First of the 16,777,216 user and group numbers of which each Firecracker gets one. No user
    /// may have a number in that range.
    #[serde(deserialize_with = "crate::process::first_uid")]
    pub first_uid: u32,
    /// Memory that a Firecracker may use besides its guest's; it is ended if it needs more.
    pub overhead: Bytes,
    /// Firecracker's static template that hides features of the processor; absent = none.
    pub cpu_template: Option<CpuTemplate>,
    /// Whether guests see their devices on a PCI bus instead of as `virtio-mmio`.
    pub pci: bool,
    /// Whether guests get a device that gives random bytes.
    pub entropy: bool,
    /// Whether guests get a device by which they give memory back, if they have a driver for it:
    /// what is free before each snapshot, and where Firecracker's can, by itself.
    pub balloon: bool,
    /// Whether snapshots are incremental: Firecracker writes only the pages that the guest has
    /// written, into a copy of what it began with, so that the guest stands still for less time.
    /// What is published is whole all the same, and clones can be snapshotted as well. Each first
    /// write to a page then costs the guest an exit, and the host maps no huge pages for it.
    pub diff_snapshots: bool,
    /// Whether each Firecracker writes down what it measures, for [`super::Metrics`]: some ten
    /// thousand bytes a minute, in memory.
    pub metrics: bool,
}

/// A static CPU template of Firecracker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuTemplate {
    /// Intel, all guests alike as on C3 instances.
    C3,
    /// Intel, likewise as on T2 instances.
    T2,
    /// Intel, with what hides Skylake's differences from Cascade Lake.
    T2S,
    /// Intel, from Cascade Lake on.
    T2CL,
    /// AMD, like T2 from Milan on.
    T2A,
}

impl CpuTemplate {
    /// The `CPUID` vendor of the processors that it is for.
    pub(super) const fn vendor(self) -> &'static str {
        match self {
            Self::C3 | Self::T2 | Self::T2S | Self::T2CL => "GenuineIntel",
            Self::T2A => "AuthenticAMD",
        }
    }
}

impl Default for FirecrackerConfig {
    fn default() -> Self {
        Self {
            binary: PathBuf::from("firecracker"),
            jailer: PathBuf::from("jailer"),
            use_jailer: true,
            // Behind QEMU's range, in what systemd's map of user numbers (UIDS-GIDS.md) leaves to
            // nobody.
            first_uid: 1_920_000_000,
            overhead: Bytes::mib(128),
            cpu_template: None,
            pci: false,
            entropy: true,
            balloon: false,
            diff_snapshots: false,
            metrics: false,
        }
    }
}

impl FirecrackerConfig {
    /// The user number of a sandbox's Firecracker: derived from its random identifier, so two that
    /// run at the same time share one with a chance of one in sixteen million.
    pub(super) fn uid_of(&self, id: &SandboxId) -> u32 {
        let digits = id.as_str().get(..6).unwrap_or_default();
        let offset = u32::from_str_radix(digits, 16).unwrap_or_default();
        self.first_uid.saturating_add(offset % UIDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::QemuConfig;

    #[test]
    fn each_sandbox_has_a_user_of_its_own_beyond_qemus() {
        let (config, qemu) = (FirecrackerConfig::default(), QemuConfig::default());
        let uids: Vec<u32> = (0..50).map(|_| config.uid_of(&SandboxId::random())).collect();
        assert!(uids.iter().all(|uid| (config.first_uid..config.first_uid + UIDS).contains(uid)));
        assert!(uids.iter().any(|uid| *uid != uids[0]));
        assert!(qemu.first_uid + UIDS <= config.first_uid);
    }

    #[test]
    fn templates_are_written_as_firecracker_names_them() {
        let word = |template| serde_json::to_string(&template).expect("serializable");
        assert_eq!(word(CpuTemplate::T2CL), "\"T2CL\"");
        assert_eq!(CpuTemplate::T2A.vendor(), "AuthenticAMD");
    }
}
