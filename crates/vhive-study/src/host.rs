//! What a reader must know of the host to judge the figures.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vhive_api::Cpus;

/// Facts that do not change during a study.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// `model name` of `/proc/cpuinfo`.
    pub cpu: Option<String>,
    /// Whether the processor says that it is virtual.
    pub virtual_machine: bool,
    /// CPUs that this process may use.
    pub cores: usize,
    /// The CPUs that the measuring process kept itself to, if it was told to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_to: Option<Cpus>,
    /// Physical memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Release of the host's kernel.
    pub kernel: Option<String>,
    /// Readahead in KiB by block device, before the study changed any.
    pub readahead_kib: BTreeMap<String, u64>,
    /// Revision that the program was built from, `-dirty` if there were changes; absent outside of a
    /// checkout.
    pub git: Option<String>,
}

/// The one-minute load average.
#[must_use]
pub fn load_average() -> Option<f64> {
    read("/proc/loadavg")?.split(' ').next()?.parse().ok()
}

impl Host {
    /// Looks at the host; `revision` is the program's. What cannot be read is absent.
    #[must_use]
    pub fn look(revision: Option<&str>) -> Self {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = read("/proc/meminfo").and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            Some(line.trim().split(' ').next()?.parse::<u64>().ok()? * 1024)
        });
        let flags = field("flags").unwrap_or_default();
        Self {
            cpu: field("model name"),
            virtual_machine: flags.split(' ').any(|flag| flag == "hypervisor"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kept_to: None,
            memory_bytes: memory,
            kernel: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            readahead_kib: readahead(),
            git: revision.map(str::to_owned),
        }
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn readahead() -> BTreeMap<String, u64> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let with_size = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size: u64 = read(entry.path().join("size"))?.trim().parse().ok()?;
        let kib = read(entry.path().join("queue/read_ahead_kb"))?.trim().parse().ok()?;
        (size > 0).then_some((name, kib))
    };
    devices.filter_map(with_size).collect()
}

/// Why the host does not do what the plan says.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file of the kernel's refuses.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is nothing to limit memory with.
    #[error("no memory controller is mounted (cgroup version 1 or 2)")]
    NoMemoryController,
    /// There is no such device.
    #[error("no block device with a readahead is behind {}", path.display())]
    NoDevice {
        /// The directory.
        path: PathBuf,
    },
}

/// Writes back and drops the host's page cache. Blocks.
///
/// # Errors
/// Without root, or where the kernel's file is not offered.
///
/// # Source
/// `Documentation/admin-guide/sysctl/vm.rst`, `drop_caches`: 1 is the page cache.
pub fn drop_page_cache() -> Result<(), HostError> {
    rustix::fs::sync();
    let path = PathBuf::from("/proc/sys/vm/drop_caches");
    fs::write(&path, "1").map_err(|source| HostError::Write { path, source })
}

/// Drops the files below a directory from the page cache; says how many. Blocks.
///
/// # Errors
/// When the directory cannot be listed or a file not be opened.
pub fn drop_files(dir: &Path) -> io::Result<usize> {
    let mut dropped = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            dropped += match drop_files(&entry.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                dropped => dropped?,
            };
        } else if kind.is_file() {
            let file = match fs::File::open(entry.path()) {
                Ok(file) => file,
                // Snapshots come and go.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            rustix::fs::fdatasync(&file)?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            dropped += 1;
        }
    }
    Ok(dropped)
}

/// A changed readahead; dropping it puts the old one back.
#[derive(Debug)]
pub struct Readahead {
    file: PathBuf,
    before: String,
    /// The device's name.
    pub device: String,
}

impl Readahead {
    /// Sets the readahead of the device that holds `dir`.
    ///
    /// # Errors
    /// When there is no such device, or without root.
    pub fn set(dir: &Path, kib: u32) -> Result<Self, HostError> {
        let none = || HostError::NoDevice { path: dir.to_owned() };
        let file = readahead_file(dir).ok_or_else(none)?;
        let before = read(&file).ok_or_else(none)?.trim().to_owned();
        let device = file.parent().and_then(Path::parent).and_then(Path::file_name);
        let device = device.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let written = fs::write(&file, kib.to_string());
        written.map_err(|source| HostError::Write { path: file.clone(), source })?;
        Ok(Self { file, before, device })
    }
}

impl Drop for Readahead {
    fn drop(&mut self) {
        // Nobody is left to tell; the value before is in the study's host facts.
        drop(fs::write(&self.file, &self.before));
    }
}

/// The file with the readahead of the device behind a directory.
///
/// # Source
/// `Documentation/ABI/stable/sysfs-block`: a partition shares the queue of its disk.
fn readahead_file(dir: &Path) -> Option<PathBuf> {
    let device = fs::metadata(dir).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let real = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let places = [real.join("queue/read_ahead_kb"), real.parent()?.join("queue/read_ahead_kb")];
    places.into_iter().find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_cores_and_a_kernel() {
        let host = Host::look(Some("abc-dirty"));
        assert_eq!(host.git.as_deref(), Some("abc-dirty"));
        assert!(host.cores >= 1);
        assert!(host.kernel.is_some_and(|kernel| !kernel.is_empty()));
        assert!(load_average().is_some_and(|load| load >= 0.0));
    }

    #[test]
    fn files_are_dropped_below_a_directory() {
        let dir = tempfile::tempdir().expect("made");
        fs::create_dir(dir.path().join("below")).expect("made");
        fs::write(dir.path().join("below/file"), "content").expect("written");
        assert_eq!(drop_files(dir.path()).expect("dropped"), 1);
        assert!(drop_files(&dir.path().join("absent")).is_err());
    }
}
