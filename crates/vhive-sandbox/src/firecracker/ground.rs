//! What all Firecrackers on this host have in common: programs, versions, devices, pager.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use object::read::elf::ElfFile64;
use object::{Endianness, ReadCache, elf};
use vhive_api::RuntimeName;
use vhive_pager::{Pager, PagerConfig, PagerError};

use super::config::FirecrackerConfig;
use super::version::{self, Version};
use crate::host::features;
use crate::runtime::HostLacks;
use crate::snapshot::Platform;

/// Number of the machine that [`super::boot`] configures: to be raised when devices or their order
/// change.
const MACHINE: u32 = 1;

/// Where releases are.
const RELEASES: &str = "put firecracker and jailer of one release from \
                        https://github.com/firecracker-microvm/firecracker/releases into PATH, or \
                        configure firecracker.binary and firecracker.jailer";

/// The ground on which guests are started.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) binary: PathBuf,
    /// None if it is not to be used.
    pub(super) jailer: Option<PathBuf>,
    pub(super) version: Version,
    /// What snapshots are taken on.
    pub(super) platform: Platform,
    /// Started by the first clone that it serves; its threads are shared by all.
    pager: Mutex<Option<Arc<Pager>>>,
}

impl Ground {
    /// Looks for everything that guests without an operating system need.
    ///
    /// # Errors
    /// [`HostLacks`] names the first thing that is missing.
    pub(super) fn find(config: &FirecrackerConfig) -> Result<Self, HostLacks> {
        if !rustix::process::geteuid().is_root() {
            return Err(lacks("not run as root", "run vhive as root, e.g. with sudo"));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let binary = program(&config.binary, &path)?;
        let version = version::of_program(&binary)?;
        let format = version::snapshot_format(&binary)?;
        let jailer = config.use_jailer.then(|| jailer(config, version, &path)).transpose()?;
        if jailer.is_some() && is_dynamic(&binary)? {
            let what = format!("{} is linked dynamically", binary.display());
            return Err(lacks(&what, "use a release, or set firecracker.use_jailer = false"));
        }
        if jailer.is_none() {
            program(Path::new("setpriv"), &path)
                .map_err(|lacks| HostLacks { fix: "install util-linux".to_owned(), ..lacks })?;
        }
        if let Err(error) = File::options().read(true).write(true).open(KVM) {
            let fix = "use a bare-metal host, or one with nested virtualisation";
            return Err(lacks(&format!("{KVM}: {error}"), fix));
        }
        let cpu = cpu(config)?;
        let bus = if config.pci { "pci" } else { "mmio" };
        let devices = match (config.entropy, config.balloon) {
            (false, false) => "",
            (true, false) => ", entropy",
            (false, true) => ", balloon with statistics",
            (true, true) => ", entropy, balloon with statistics",
        };
        let platform = Platform {
            runtime: RuntimeName::Firecracker,
            version: format!(
                "Firecracker {version}, format {format}, {bus}{devices}, machine {MACHINE}"
            ),
            cpu,
            kernel: None,
            page_size: u32::try_from(rustix::param::page_size()).unwrap_or(0),
        };
        let pager = Mutex::default();
        Ok(Self { binary, jailer, version, platform, pager })
    }

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

const KVM: &str = "/dev/kvm";

fn jailer(
    config: &FirecrackerConfig,
    version: Version,
    path: &OsStr,
) -> Result<PathBuf, HostLacks> {
    let jailer = program(&config.jailer, path)?;
    let its = version::of_program(&jailer)?;
    if its != version {
        let what = format!("the jailer is of version {its}, Firecracker of {version}");
        return Err(lacks(&what, RELEASES));
    }
    // Its own rule, and a good one: the mistake is easily made.
    let name = config.binary.file_name().unwrap_or_default().to_string_lossy();
    if !name.contains("firecracker") {
        let what = format!("the jailer starts no program called {name}");
        return Err(lacks(&what, "let the name of firecracker.binary contain `firecracker`"));
    }
    Ok(jailer)
}

/// Whether a program needs files besides its own: in the jailer's root directory there are none.
fn is_dynamic(binary: &Path) -> Result<bool, HostLacks> {
    let unreadable = |error: &dyn std::error::Error| {
        lacks(&format!("{}: {error}", binary.display()), "reinstall Firecracker")
    };
    let cache = ReadCache::new(File::open(binary).map_err(|error| unreadable(&error))?);
    let elf = ElfFile64::<Endianness, _>::parse(&cache).map_err(|error| unreadable(&error))?;
    let endian = elf.endian();
    Ok(elf.elf_program_headers().iter().any(|header| header.p_type.get(endian) == elf::PT_INTERP))
}

/// What guests see of the processor.
fn cpu(config: &FirecrackerConfig) -> Result<String, HostLacks> {
    let id = raw_cpuid::CpuId::new();
    let name = id.get_processor_brand_string();
    let name = name.map_or_else(|| "unnamed".to_owned(), |name| name.as_str().trim().to_owned());
    let Some(template) = config.cpu_template else {
        return Ok(format!("host on {name}, features {}", features()));
    };
    let vendor = id.get_vendor_info().map(|vendor| vendor.as_str().to_owned()).unwrap_or_default();
    if vendor != template.vendor() {
        let what = format!("firecracker.cpu_template is {template:?}, and the processor {vendor}");
        return Err(lacks(&what, "leave the template out"));
    }
    Ok(format!("{template:?} on {name}"))
}

/// The program as `exec` would find it, by its absolute path.
fn program(program: &Path, path: &OsStr) -> Result<PathBuf, HostLacks> {
    let found = if program.components().count() > 1 {
        program.is_file().then(|| program.to_owned())
    } else {
        std::env::split_paths(path).map(|dir| dir.join(program)).find(|file| file.is_file())
    };
    let found = found.ok_or_else(|| lacks(&format!("no {}", program.display()), RELEASES))?;
    std::path::absolute(&found).map_err(|e| lacks(&format!("{}: {e}", found.display()), RELEASES))
}

fn lacks(what: &str, fix: &str) -> HostLacks {
    HostLacks { what: what.to_owned(), fix: fix.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::firecracker::CpuTemplate;

    #[test]
    fn a_missing_firecracker_names_the_place_to_get_one() {
        let config =
            FirecrackerConfig { binary: "no-such-vmm".into(), ..FirecrackerConfig::default() };
        let lacks = Ground::find(&config).expect_err("missing");
        if lacks.what == "not run as root" {
            eprintln!("SKIP a_missing_firecracker_names_the_place_to_get_one: root");
            return;
        }
        assert_eq!(lacks.what, "no no-such-vmm");
        assert!(lacks.fix.contains("releases"), "{lacks}");
    }

    #[test]
    fn a_program_that_needs_others_files_is_told_from_one_that_does_not() {
        assert_eq!(is_dynamic(Path::new("/bin/sh")), Ok(true));
        assert!(is_dynamic(Path::new("/etc/passwd")).is_err());
        let ours = tempfile::NamedTempFile::new().expect("a file");
        fs::write(ours.path(), vhive_init()).expect("written");
        assert_eq!(is_dynamic(ours.path()), Ok(false));
    }

    /// A static program that is at hand.
    fn vhive_init() -> &'static [u8] {
        include_bytes!(env!("VHIVE_INIT"))
    }

    #[test]
    fn a_template_is_for_its_vendors_processors_only() {
        let with =
            |cpu_template| FirecrackerConfig { cpu_template, ..FirecrackerConfig::default() };
        assert!(cpu(&with(None)).expect("no template").starts_with("host on "));
        let templates = [CpuTemplate::T2, CpuTemplate::T2A];
        let fit: Vec<bool> =
            templates.iter().map(|template| cpu(&with(Some(*template))).is_ok()).collect();
        assert!(fit != [true, true], "an Intel template on AMD or the other way round");
        let refused = templates.iter().find_map(|template| cpu(&with(Some(*template))).err());
        assert!(refused.expect("one of them").what.contains("cpu_template is T2"));
    }
}
