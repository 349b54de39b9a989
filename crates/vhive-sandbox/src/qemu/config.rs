//! What can be configured about QEMU.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vhive_api::{Bytes, SandboxId, Span};

use crate::process::UIDS;

use super::command::Accelerator;

/// The section `[qemu]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QemuConfig {
    /// QEMU's program: a path, or a name that is looked up in `PATH`.
    pub binary: PathBuf,
    /// How guests' instructions are run.
    pub accelerator: Choose,
    /// How long a guest's kernel may take to reach init before the start is tried once more.
    pub hello_deadline: Span,
    /// First of the 16,777,216 user and group numbers of which each QEMU gets one. No user may
    /// have a number in that range.
    #[serde(deserialize_with = "crate::process::first_uid")]
    pub first_uid: u32,
    /// Memory that a QEMU may use besides its guest's; it is ended if it needs more.
    pub overhead: Bytes,
}

/// Which accelerator is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choose {
    /// KVM if the installed guest kernel boots under it, else TCG.
    #[default]
    Auto,
    /// Always KVM.
    Kvm,
    /// Always TCG.
    Tcg,
}

impl Default for QemuConfig {
    fn default() -> Self {
        Self {
            binary: PathBuf::from("qemu-system-x86_64"),
            accelerator: Choose::Auto,
            hello_deadline: Span(Duration::from_secs(20)),
            // systemd's map of user numbers (UIDS-GIDS.md) leaves 1,879,048,192 to 2,147,483,647
            // to nobody.
            first_uid: 1_900_000_000,
            overhead: Bytes::mib(256),
        }
    }
}

impl QemuConfig {
    /// The user number of a sandbox's QEMU: derived from its random identifier, so two that run
    /// at the same time share one with a chance of one in sixteen million.
    pub(super) fn uid_of(&self, id: &SandboxId) -> u32 {
        let digits = id.as_str().get(..6).unwrap_or_default();
        let offset = u32::from_str_radix(digits, 16).unwrap_or_default();
        self.first_uid.saturating_add(offset % UIDS)
    }

    /// The accelerator, if it is not to be found out.
    pub(super) fn forced(&self) -> Option<Accelerator> {
        match self.accelerator {
            Choose::Auto => None,
            Choose::Kvm => Some(Accelerator::Kvm),
            Choose::Tcg => Some(Accelerator::Tcg),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_of_somebody_elses_is_configured() {
        let read = |first: u64| {
            let text = format!(r#"{{ "first_uid": {first} }}"#);
            serde_json::from_str::<QemuConfig>(&text).map_err(|error| error.to_string())
        };
        let last = u64::from(u32::MAX);
        for first in [65_536, 1_900_000_000, last - (1 << 24)] {
            assert_eq!(read(first).map(|config| u64::from(config.first_uid)), Ok(first));
        }
        for first in [0, 1, 65_535, last - (1 << 24) + 1, last] {
            let refused = read(first).expect_err("not a range of nobody's");
            assert!(refused.contains("must be from 65536 to 4278190079"), "{refused}");
        }
    }

    #[test]
    fn each_sandbox_has_a_user_of_its_own_in_the_range() {
        let config = QemuConfig::default();
        let uids: Vec<u32> = (0..50).map(|_| config.uid_of(&SandboxId::random())).collect();
        assert!(uids.iter().all(|uid| (config.first_uid..config.first_uid + UIDS).contains(uid)));
        assert!(uids.iter().any(|uid| *uid != uids[0]));
    }
}
