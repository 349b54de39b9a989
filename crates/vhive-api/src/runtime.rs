//! The names of the ways to isolate a function.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A way to isolate a function, as in Kubernetes' `runtimeClassName`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeName {
    /// QEMU's `microvm` machine, under KVM where it is fit, else emulated.
    Qemu,
    /// Firecracker; needs a usable `/dev/kvm`.
    Firecracker,
    /// gVisor; `gvisor` is an alias.
    #[serde(alias = "gvisor")]
    Runsc,
    /// A plain container by runc.
    Runc,
    /// A plain container by crun.
    Crun,
    /// Isolates nothing: answers after stated times. For tests and dry runs.
    Sim,
}

impl RuntimeName {
    /// Every name, in the order in which `vhive doctor` prints them.
    pub const ALL: [Self; 6] =
        [Self::Qemu, Self::Firecracker, Self::Runsc, Self::Runc, Self::Crun, Self::Sim];

    /// The name as written in manifests, records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
            Self::Runsc => "runsc",
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Sim => "sim",
        }
    }

    /// Another name that is understood wherever this one is, and written nowhere.
    #[must_use]
    pub const fn alias(self) -> Option<&'static str> {
        match self {
            Self::Runsc => Some("gvisor"),
            _ => None,
        }
    }

    /// Whether its sandboxes are virtual machines, which boot what they are given.
    #[must_use]
    pub const fn is_machine(self) -> bool {
        matches!(self, Self::Qemu | Self::Firecracker)
    }
}

/// What runs in a sandbox, below the function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestName {
    /// Linux, with the function of the image.
    #[default]
    Linux,
    /// The guest without an operating system that vhive brings, in the image's place. Only virtual
    /// machines boot it.
    Nano,
}

impl GuestName {
    /// Whether it is [`Self::Linux`].
    #[must_use]
    pub const fn is_linux(&self) -> bool {
        matches!(self, Self::Linux)
    }
}

impl fmt::Display for RuntimeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown runtime {0:?}; known: qemu, firecracker, runsc (gvisor), runc, crun, sim")]
pub struct ParseRuntimeError(pub String);

impl FromStr for RuntimeName {
    type Err = ParseRuntimeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_it = |name: &Self| name.as_str() == text || name.alias() == Some(text);
        let found = Self::ALL.into_iter().find(is_it);
        found.ok_or_else(|| ParseRuntimeError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_known_by_its_names_wherever_it_is_written() {
        for name in RuntimeName::ALL {
            let json = serde_json::to_string(&name).expect("a word");
            assert_eq!(json, format!("{:?}", name.as_str()));
            assert_eq!(serde_json::from_str::<RuntimeName>(&json).expect("read"), name);
            assert_eq!(name.as_str().parse(), Ok(name));
        }
        assert_eq!("gvisor".parse(), Ok(RuntimeName::Runsc));
        let read = serde_json::from_str::<RuntimeName>("\"gvisor\"").expect("an alias");
        assert_eq!(read, RuntimeName::Runsc);
        assert!(serde_json::from_str::<RuntimeName>("\"gVisor\"").is_err());
    }
}
