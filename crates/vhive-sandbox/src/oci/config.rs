//! What can be configured about containers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The section `[runc]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerConfig {
    /// The program: a path, or a name that is looked up in `PATH`; absent = the runtime's name.
    pub binary: Option<PathBuf>,
    /// CRIU, with which containers are snapshotted and restored: a path, or a name that is looked up
    /// in `PATH`; absent = `criu`. Where there is none that works, they are booted.
    pub criu: Option<PathBuf>,
}

/// The section `[crun]`. Which CRIU it uses nobody tells it: it looks up `criu` in `PATH` itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CrunConfig {
    /// The program: a path, or a name that is looked up in `PATH`; absent = `crun`.
    pub binary: Option<PathBuf>,
}

/// The section `[runsc]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GvisorConfig {
    /// The program: a path, or a name that is looked up in `PATH`.
    pub binary: PathBuf,
    /// How system calls are caught.
    pub platform: Platform,
}

impl Default for GvisorConfig {
    fn default() -> Self {
        Self { binary: PathBuf::from("runsc"), platform: Platform::Systrap }
    }
}

/// gVisor's ways to catch the system calls of what it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// By seccomp and shared memory: works everywhere, since 2023.
    #[default]
    Systrap,
    /// By hardware virtualization; hangs on some virtual machines' KVM, which the probe notices.
    Kvm,
    /// By tracing: slow, and there in every version.
    Ptrace,
}

impl Platform {
    /// gVisor's name of it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Systrap => "systrap",
            Self::Kvm => "kvm",
            Self::Ptrace => "ptrace",
        }
    }
}
