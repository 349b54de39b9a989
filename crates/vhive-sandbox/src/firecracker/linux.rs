//! Whether Linux guests run here: found out by booting one, and remembered.
//!
//! `/dev/kvm` may open and run guests without an operating system, and yet fail with Linux (nested
//! or paravirtual KVM); so only a guest kernel that reaches its init proves anything.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vhive_api::guest::Process;
use vhive_api::{Bytes, Digest, SandboxId};

use super::boot::{self, Booted};
use super::config::FirecrackerConfig;
use super::ground::Ground;
use super::vm::{Port, Wanted};
use crate::contract::chain;
use crate::deadline::Deadline;
use crate::journal::{Journal, Milestone, WaitError};
use crate::kernel::{self, KernelStore};
use crate::linux;
use crate::remembered;
use crate::runtime::{Guest, HostLacks, SandboxSpec, Uses};
use crate::snapshot::{Platform, with_tsc};
use crate::trial::Trial;

/// How long a guest may take from Firecracker's start to its init; a fit host takes a fraction.
const PATIENCE: Duration = Duration::from_secs(15);

/// Memory of that guest.
const MEMORY: Bytes = Bytes::mib(256);

/// The installed guest kernel, and what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Linux {
    pub(super) digest: Digest,
    pub(super) vmlinux: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) command_line: String,
    /// Rate of the time stamp counter, which guests are told.
    tsc_khz: u32,
}

/// What an answer depends on; if any of it changes, it is found out anew.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    host_kernel: String,
    /// Firecracker's version, and how it is configured.
    firecracker: String,
    cpu: String,
    guest: Digest,
}

/// Whether a guest reached its init, or why not.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Boots,
    Fails(String),
}

impl Linux {
    /// The platform with what its guests know of it besides.
    pub(super) fn on(&self, platform: &Platform) -> Platform {
        let cpu = with_tsc(&platform.cpu, self.tsc_khz);
        Platform { kernel: Some(self.digest), cpu, ..platform.clone() }
    }

    /// Looks for everything that functions need besides `ground`, and boots a guest, if none has
    /// been booted before; keeps what comes of that in a file.
    ///
    /// # Errors
    /// [`HostLacks`] names the first thing that is missing.
    pub(super) fn find(
        config: &FirecrackerConfig,
        ground: &Ground,
        (kernels, cache): (&KernelStore, &Path),
    ) -> Result<Self, HostLacks> {
        if ground.jailer.is_none() {
            // A snapshot says where the root file system is: without a root directory of its own
            // that is another place for each clone.
            let what = "functions on Firecracker need its jailer";
            return Err(lacks(what, "set firecracker.use_jailer = true"));
        }
        if config.pci {
            let what = "the guest's first file system has no driver for PCI";
            return Err(lacks(what, "set firecracker.pci = false"));
        }
        let (kernel, tsc_khz) = linux::kernel(kernels, "Firecracker")?;
        let command_line = kernel::serial_command_line(tsc_khz);
        let kernel::GuestKernel { digest, vmlinux, initramfs, .. } = kernel;
        let linux = Self { digest, vmlinux, initramfs, command_line, tsc_khz };
        let question = Question {
            host_kernel: linux::host_kernel(),
            firecracker: ground.platform.version.clone(),
            cpu: ground.platform.cpu.clone(),
            guest: digest,
        };
        let file = cache.join("firecracker.json");
        let is_good = |answer: &Answer| matches!(answer, Answer::Boots);
        let answer = remembered::recall(&question, &file, is_good).unwrap_or_else(|| {
            let answer = match probe(config, ground, (&linux, cache), PATIENCE) {
                Ok(()) => Answer::Boots,
                Err(reason) => Answer::Fails(reason),
            };
            tracing::info!(?answer, "a Linux guest was tried on Firecracker");
            remembered::keep(&question, &answer, &file);
            answer
        });
        match answer {
            Answer::Boots => Ok(linux),
            Answer::Fails(reason) => {
                let until = remembered::until(&file);
                let what = format!("KVM here does not boot a Linux guest: {reason}; {until}");
                Err(lacks(&what, "use runtimeClassName: qemu, or a bare-metal host"))
            }
        }
    }
}

/// Boots a guest that says hello, and ends it.
fn probe(
    config: &FirecrackerConfig,
    ground: &Ground,
    (linux, cache): (&Linux, &Path),
    most: Duration,
) -> Result<(), String> {
    let trial =
        Trial::begin(cache).map_err(|error| format!("no directory for a trial: {error}"))?;
    let journal = Journal::new();
    let spec = SandboxSpec {
        id: SandboxId::random(),
        guest: Guest::Linux,
        rootfs: PathBuf::new(),
        process: Process::default(),
        hooks: vhive_api::guest::Hooks::default(),
        uses: Uses::default(),
        port: 0,
        cpu_millis: 1000,
        memory: MEMORY,
        network: None,
        run_root: trial.root().clone(),
        journal: journal.clone(),
    };
    let booted = Booted::linux(linux, None);
    let wanted = Wanted {
        spec: &spec,
        network: None,
        ground,
        config,
        dir: trial.dir(),
        lent: &booted.lent,
        served: false,
        port: Port::Init(None),
    };
    let deadline = Deadline::after(most);
    let vm = boot::launch(&wanted, &booted, deadline).map_err(|error| chain(&error))?;
    match journal.wait(Milestone::KernelUp, deadline) {
        Ok(_) => Ok(()),
        Err(error) => {
            vm.supervised.abandon();
            let what = match error {
                WaitError::Ended(end) => end.to_string(),
                WaitError::Deadline { .. } => {
                    format!("it did not reach its init within {} s", most.as_secs())
                }
            };
            // Firecracker's own last word, if it has logged any.
            let last = journal.tail(1).pop();
            Err(last.map_or(what.clone(), |last| format!("{what}; {last}")))
        }
    }
}

fn lacks(what: &str, fix: &str) -> HostLacks {
    HostLacks { what: what.to_owned(), fix: fix.to_owned() }
}
