//! What all boots on this host have in common: program, kernel, clock, accelerator.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::accelerator::{self, AcceleratorChoice, Question};
use super::command::{self, Accelerator};
use super::config::QemuConfig;
use super::memory::Shim;
use super::vm::Guest;
use vhive_api::RuntimeName;
use vhive_pager::{Pager, PagerConfig, PagerError};

use crate::command as asked;
use crate::deadline::Deadline;
use crate::host::{features, processor};
use crate::kernel::{self, KernelStore};
use crate::linux;
use crate::runtime::HostLacks;
use crate::snapshot::{Platform, with_tsc};

/// The ground on which guests are booted.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) guest: Guest,
    pub(super) choice: AcceleratorChoice,
    /// What snapshots are taken on.
    pub(super) platform: Platform,
    pub(super) shim: Shim,
    /// Started by the first clone that it serves; its threads are shared by all.
    pager: Mutex<Option<Arc<Pager>>>,
}

impl Ground {
    /// Looks for everything; the accelerator, if it has not been found out before, takes seconds.
    pub(super) fn find(
        config: &QemuConfig,
        kernels: &KernelStore,
        cache: &Path,
    ) -> Result<Self, HostLacks> {
        if !rustix::process::geteuid().is_root() {
            return Err(lacks("not run as root", "run vhive as root, e.g. with sudo"));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        find(&config.binary, &path).ok_or_else(|| {
            let what = format!("no {}", config.binary.display());
            lacks(&what, "install the Debian package qemu-system-x86")
        })?;
        find(Path::new("setpriv"), &path)
            .ok_or_else(|| lacks("no setpriv", "install the Debian package util-linux"))?;
        let (kernel, tsc_khz) = linux::kernel(kernels, "QEMU")?;
        let guest = Guest {
            digest: kernel.digest,
            vmlinux: kernel.vmlinux,
            initramfs: Some(kernel.initramfs),
            command_line: kernel::command_line(tsc_khz),
        };
        let qemu = version(&config.binary)?;
        let question =
            Question { host_kernel: linux::host_kernel(), qemu: qemu.clone(), guest: guest.digest };
        let file = cache.join("accelerator.json");
        let choice = accelerator::choose(config, &guest, &question, &file);
        let accelerator = choice.accelerator.as_str();
        let platform = Platform {
            runtime: RuntimeName::Qemu,
            version: format!("{qemu}, {accelerator}, machine {}", command::MACHINE),
            cpu: cpu(choice.accelerator, tsc_khz),
            kernel: Some(guest.digest),
            page_size: u32::try_from(rustix::param::page_size()).unwrap_or(0),
        };
        let shim = Shim::new()
            .map_err(|error| lacks(&format!("no file in memory ({error})"), "free some memory"))?;
        let pager = Mutex::default();
        Ok(Self { guest, choice, platform, shim, pager })
    }
}

/// What a guest's memory knows of the processor: what it sees of it, and at what rate its time stamp
/// counter runs.
fn cpu(accelerator: Accelerator, tsc_khz: u32) -> String {
    let features = match accelerator {
        Accelerator::Kvm => format!(", features {}", features()),
        // An emulated processor has those of its emulator's version.
        Accelerator::Tcg => String::new(),
    };
    with_tsc(&format!("{} on {}{features}", accelerator.cpu(), processor()), tsc_khz)
}

impl Ground {
    /// The pager.
    ///
    /// # Errors
    /// Whatever keeps its threads from being started.
    pub(super) fn pager(&self) -> Result<Arc<Pager>, PagerError> {
        let mut pager = self.pager.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pager) = &*pager {
            return Ok(Arc::clone(pager));
        }
        Ok(Arc::clone(pager.insert(Arc::new(Pager::start(&PagerConfig::default())?))))
    }
}

fn lacks(what: &str, fix: &str) -> HostLacks {
    HostLacks { what: what.to_owned(), fix: fix.to_owned() }
}

/// The program as `exec` would find it.
fn find(program: &Path, path: &OsStr) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    std::env::split_paths(path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The first line of what QEMU says about itself.
fn version(binary: &Path) -> Result<String, HostLacks> {
    let fix = "reinstall the Debian package qemu-system-x86";
    let said = asked::ask(binary, "--version", fix, Deadline::after(asked::PATIENCE))?;
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_exec_finds_it() {
        let path = OsStr::new("/nonexistent:/usr/bin:/bin");
        assert!(find(Path::new("sh"), path).is_some());
        assert_eq!(find(Path::new("no-such-program"), path), None);
        assert_eq!(find(Path::new("/no/such/program"), path), None);
    }

    #[test]
    fn a_missing_qemu_names_the_package() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let kernels = KernelStore::open(dir.path()).expect("a store");
        let config = QemuConfig { binary: "no-such-qemu".into(), ..QemuConfig::default() };
        let lacks = Ground::find(&config, &kernels, dir.path()).expect_err("missing");
        if lacks.what == "not run as root" {
            eprintln!("SKIP a_missing_qemu_names_the_package: root");
            return;
        }
        assert_eq!(
            lacks.to_string(),
            "no no-such-qemu; install the Debian package qemu-system-x86"
        );
    }
}
