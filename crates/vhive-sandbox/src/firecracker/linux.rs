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
use crate::runtime::{BootError, Guest, HostLacks, SandboxSpec, Uses};
use crate::snapshot::{Platform, with_tsc};
use crate::trial::Trial;

/// How long a guest may take from Firecracker's start to its init; a fit host takes a fraction.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is said of a Firecracker that somebody has killed before it had its guest.
const KILLED: &str = "was killed by signal 9";

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
        let known = remembered::recall(&question, &file, is_good);
        let (answer, counts) = known.map_or_else(
            || {
                let tried = match probe(config, ground, (&linux, cache), PATIENCE) {
                    Ok(()) => (Answer::Boots, true),
                    Err(Failed { reason, of_kvm }) => (Answer::Fails(reason), of_kvm),
                };
                tracing::info!(answer = ?tried.0, "a Linux guest was tried on Firecracker");
                if tried.1 {
                    remembered::keep(&question, &tried.0, &file);
                }
                tried
            },
            |answer| (answer, true),
        );
        match answer {
            Answer::Boots => Ok(linux),
            Answer::Fails(reason) if counts => {
                let until = remembered::until(&file);
                Err(refusal(config, &format!("{reason}; {until}")))
            }
            Answer::Fails(reason) => {
                let what = format!("a trial of Firecracker came to nothing: {reason}");
                Err(lacks(&what, "try again"))
            }
        }
    }
}

/// What is said of a trial in which no guest said hello. A template is for some models of processor
/// only, and which these are is Firecracker's to know: where there is one it is the first suspect.
fn refusal(config: &FirecrackerConfig, reason: &str) -> HostLacks {
    match config.cpu_template {
        Some(template) => {
            let with = format!("firecracker.cpu_template = {template:?}");
            lacks(&format!("no Linux guest boots with {with}: {reason}"), "leave the template out")
        }
        None => lacks(
            &format!("KVM here does not boot a Linux guest: {reason}"),
            "use runtimeClassName: qemu, or a bare-metal host",
        ),
    }
}

/// Why a guest did not say hello.
#[derive(Debug)]
struct Failed {
    reason: String,
    /// Whether it says something of KVM here: not what the host was short of, nor a trial that somebody
    /// has killed, e.g. a node's sweep.
    of_kvm: bool,
}

/// Boots a guest that says hello, and ends it.
fn probe(
    config: &FirecrackerConfig,
    ground: &Ground,
    (linux, cache): (&Linux, &Path),
    most: Duration,
) -> Result<(), Failed> {
    let trial = Trial::begin(cache).map_err(|error| {
        let reason = format!("no directory for a trial: {error}");
        Failed { reason, of_kvm: false }
    })?;
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
    let vm = boot::launch(&wanted, &booted, deadline).map_err(|error| {
        let reason = chain(&error);
        let spawned = matches!(error, BootError::Spawn { .. });
        Failed { of_kvm: spawned && !reason.contains(KILLED), reason }
    })?;
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
            let reason = last.map_or(what.clone(), |last| format!("{what}; {last}"));
            Err(Failed { reason, of_kvm: !vm.supervised.was_killed() })
        }
    }
}

fn lacks(what: &str, fix: &str) -> HostLacks {
    HostLacks { what: what.to_owned(), fix: fix.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::firecracker::CpuTemplate;

    #[test]
    fn a_template_is_the_first_suspect() {
        let with = |cpu_template| FirecrackerConfig { cpu_template, ..Default::default() };
        let plain = refusal(&with(None), "why").to_string();
        assert!(plain.starts_with("KVM here does not boot a Linux guest: why; use "), "{plain}");
        let other = refusal(&with(Some(CpuTemplate::T2CL)), "why").to_string();
        assert!(other.contains("cpu_template = T2CL: why; leave the template out"), "{other}");
    }

    #[test]
    fn a_trial_that_somebody_kills_says_nothing_of_kvm() {
        let test = "a_trial_that_somebody_kills_says_nothing_of_kvm";
        let dir = tempfile::tempdir().expect("a temporary directory");
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
        };
        open(dir.path(), 0o755);
        let binary = dir.path().join("firecracker");
        for (end, of_kvm) in [("kill -9 $$", false), ("exit 1", true)] {
            let script = format!(
                "#!/bin/sh\ncase $1 in --version) echo Firecracker v1.14.0; exit;;\n\
                 --snapshot-version) echo v8.0.0; exit;; esac\n{end}\n"
            );
            fs::write(&binary, script).expect("written");
            open(&binary, 0o755);
            let config = FirecrackerConfig {
                binary: binary.clone(),
                use_jailer: false,
                ..FirecrackerConfig::default()
            };
            let ground = match Ground::find(&config) {
                Ok(ground) => ground,
                Err(lacks) => return eprintln!("SKIP {test}: {lacks}"),
            };
            let linux = Linux {
                digest: Digest::of(b"guest"),
                vmlinux: binary.clone(),
                initramfs: binary.clone(),
                command_line: String::new(),
                tsc_khz: 0,
            };
            let cache = dir.path().join("host");
            let failed = probe(&config, &ground, (&linux, &cache), Duration::from_secs(10));
            let failed = failed.expect_err("it runs nothing");
            assert_eq!(failed.of_kvm, of_kvm, "{failed:?}");
        }
    }
}
