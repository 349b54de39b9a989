//! Which processors a node's sandboxes run on: those of the node's own group, which every
//! sandbox's group is below.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vhive_api::Cpus;

use super::hierarchy::{self, Hierarchy, Version};
use super::naming;

/// Why sandboxes cannot be kept to some processors.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The host does not have one of them.
    #[error("CPU {cpu} cannot be used here; this host's are {offered}")]
    NoSuchCpu {
        /// Which one.
        cpu: u32,
        /// Those that the host's root group may use.
        offered: Cpus,
    },
    /// Nothing keeps processes to processors.
    #[error("no control group here keeps processes to CPUs: the controller cpuset is not mounted")]
    NoController,
    /// The kernel's answer cannot be read.
    #[error("cannot find out which CPUs there are")]
    Look(#[source] io::Error),
}

/// Whether sandboxes can be kept to these processors.
///
/// # Errors
/// [`PinError`].
pub fn check_cpus(cpus: &Cpus) -> Result<(), PinError> {
    let all = hierarchy::every().map_err(PinError::Look)?;
    let found = all.iter().find(|hierarchy| hierarchy.has_processors);
    let root = found.ok_or(PinError::NoController)?;
    let offered = offered(&root.mount).map_err(PinError::Look)?;
    match cpus.first_not_in(&offered) {
        Some(cpu) => Err(PinError::NoSuchCpu { cpu, offered }),
        None => Ok(()),
    }
}

/// The processors of a hierarchy's root.
///
/// # Source
/// Kernel documentation: `cgroup-v1/cpusets.rst`, `cgroup-v2.rst`.
fn offered(root: &Path) -> io::Result<Cpus> {
    let files = ["cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"];
    for file in files {
        if let Ok(text) = fs::read_to_string(root.join(file))
            && let Ok(cpus) = text.parse()
        {
            return Ok(cpus);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("nothing in {}", root.display())))
}

/// Keeps a node's group to these processors. To be called before a group is made below it, by
/// whoever makes one: version 1's groups get what their parent has when they are made.
pub(super) fn pin(hierarchy: &Hierarchy, group: &Path, cpus: &Cpus) -> io::Result<()> {
    if hierarchy.version == Version::V2 {
        // Without it the group has no such file; below it nothing needs to be set.
        enable(&hierarchy.mount.join("cgroup.subtree_control"))?;
    }
    let file: PathBuf = group.join("cpuset.cpus");
    fs::write(&file, cpus.to_string()).map_err(|error| naming(&file, &error))
}

fn enable(file: &Path) -> io::Result<()> {
    let enabled = fs::read_to_string(file).unwrap_or_default();
    if enabled.split_whitespace().any(|name| name == "cpuset") {
        return Ok(());
    }
    fs::write(file, "+cpuset").map_err(|error| naming(file, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_the_host_lacks_is_named() {
        let absent: Cpus = "0,8191".parse().expect("a list");
        match check_cpus(&absent) {
            Err(PinError::NoController) => eprintln!("SKIP check_cpus: no controller cpuset"),
            Err(error) => assert!(error.to_string().starts_with("CPU 8191 "), "{error}"),
            Ok(()) => unreachable!("a host with 8192 processors"),
        }
    }

    #[test]
    fn the_roots_processors_are_read_in_either_version() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(offered(dir.path()).is_err());
        fs::write(dir.path().join("cpuset.cpus"), "0-1\n").expect("written");
        assert_eq!(offered(dir.path()).expect("read").to_string(), "0-1");
        fs::write(dir.path().join("cpuset.cpus.effective"), "1\n").expect("written");
        assert_eq!(offered(dir.path()).expect("read").to_string(), "1");
    }
}
