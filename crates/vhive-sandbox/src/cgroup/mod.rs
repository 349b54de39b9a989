//! Resource limits of one sandbox, and the list of its processes that a sweep can trust.
//!
//! ```text
//!   v1    /sys/fs/cgroup/memory/vhive-<tag>/<sandbox id>   and likewise pids, cpu
//!   v2    /sys/fs/cgroup/vhive-<tag>/<sandbox id>          (or …/unified/… on a hybrid host)
//! ```
//!
//! All hosts are served the same way: a directory in every hierarchy that is there. A controller
//! that the host does not offer means a limit that is not applied; [`controllers`] tells. Only
//! processors that cannot be had are an error: who asks for them means it.

mod attach;
mod hierarchy;
mod kills;
mod members;
mod processors;
mod share;
mod usage;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::process::Pid;
use vhive_api::{Bytes, SandboxId};

use crate::deadline::Deadline;
use crate::run_dir::RunRoot;
use hierarchy::{Hierarchy, Version};

pub use hierarchy::{Controller, quota_us};
pub(crate) use kills::Kills;
pub use processors::{PinError, check_cpus};
pub(crate) use share::MachineShare;
pub use usage::{CpuTime, cpu_time};

/// How long killing and removing one group may take; a process that survives SIGKILL for so long
/// hangs in the kernel, and is reported.
const REMOVAL: std::time::Duration = std::time::Duration::from_secs(30);

/// `ESRCH`: no such process.
const ENDED: i32 = rustix::io::Errno::SRCH.raw_os_error();

/// What a sandbox's processes may use together; `None` = no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory including page cache, in bytes.
    pub memory: Option<Bytes>,
    /// Processes and threads.
    pub tasks: Option<u32>,
    /// CPU time in thousandths of a CPU.
    pub cpu_millis: Option<u32>,
}

/// The control groups of one sandbox. Dropping it kills what still runs in them and removes them.
#[derive(Debug)]
pub struct Cgroup {
    /// One per hierarchy.
    dirs: Vec<(Hierarchy, PathBuf)>,
}

/// The controllers that this host offers to us, of those that [`Limits`] need.
///
/// # Errors
/// Any error of reading `/proc/self/mountinfo`.
pub fn controllers() -> io::Result<Vec<Controller>> {
    let mut all: Vec<_> = hierarchy::mounted()?.into_iter().flat_map(|h| h.controllers).collect();
    all.sort_unstable();
    all.dedup();
    Ok(all)
}

/// The controllers without whose limits sandboxes have to do on this host.
///
/// # Errors
/// Any error of reading `/proc/self/mountinfo`.
pub(crate) fn missing() -> io::Result<Vec<Controller>> {
    let all: Vec<_> = hierarchy::mounted()?.iter().flat_map(Hierarchy::delegable).collect();
    let mut missing = Controller::ALL.to_vec();
    missing.retain(|controller| !all.contains(controller));
    Ok(missing)
}

/// Where a hybrid host has version 2's hierarchy, in which nothing of ours is limited.
///
/// # Errors
/// Any error of reading `/proc/self/mountinfo`.
pub(crate) fn beside_version_one() -> io::Result<Option<PathBuf>> {
    let all = hierarchy::every()?;
    let one = |h: &Hierarchy| h.version == Version::V1 && !h.controllers.is_empty();
    let two = |h: &Hierarchy| h.version == Version::V2 && h.controllers.is_empty();
    let hybrid = all.iter().any(one);
    Ok(all.into_iter().find(|h| hybrid && two(h)).map(|h| h.mount))
}

impl Cgroup {
    /// Lets its processes run, if somebody has frozen them.
    pub(crate) fn thaw(&self) {
        self.dirs.iter().for_each(|(_, dir)| members::thaw(dir));
    }

    /// Makes the groups and sets the limits.
    ///
    /// # Errors
    /// Any I/O error, e.g. `PermissionDenied` without root, `AlreadyExists` if the identifier is
    /// in use; nothing is left behind.
    pub fn create(root: &RunRoot, id: &SandboxId, limits: &Limits) -> io::Result<Self> {
        let mut wanted = hierarchy::every()?;
        let pinned = root.cpus().is_some();
        wanted.retain(|h| h.is_ours() || (pinned && h.has_processors));
        Self::create_in(wanted, root, id, limits)
    }

    /// Likewise in every hierarchy of the host: for a container runtime, which uses those as well
    /// that no limit is set in. Its name for the group is [`Cgroup::name`].
    ///
    /// # Errors
    /// As [`Cgroup::create`].
    pub fn create_everywhere(root: &RunRoot, id: &SandboxId, limits: &Limits) -> io::Result<Self> {
        Self::create_in(hierarchy::every()?, root, id, limits)
    }

    /// What a container runtime calls the groups of a sandbox (`cgroupsPath`).
    #[must_use]
    pub fn name(root: &RunRoot, id: &SandboxId) -> String {
        format!("/vhive-{}/{id}", root.tag())
    }

    fn create_in(
        hierarchies: Vec<Hierarchy>,
        root: &RunRoot,
        id: &SandboxId,
        limits: &Limits,
    ) -> io::Result<Self> {
        let mut group = Self { dirs: Vec::new() };
        for hierarchy in hierarchies {
            let dir = parent_of(root, &hierarchy).join(id.as_str());
            make_both(root, &hierarchy, &dir).map_err(|e| naming(&dir, &e))?;
            group.dirs.push((hierarchy.within(&dir), dir));
        }
        if group.dirs.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "no cgroup file system is mounted",
            ));
        }
        group.limit(limits)?;
        attach::expect(group.dirs.iter().map(|(hierarchy, _)| hierarchy));
        Ok(group)
    }

    /// Sets limits anew; those that are `None` stay as they are.
    ///
    /// # Errors
    /// Any I/O error.
    pub fn limit(&self, limits: &Limits) -> io::Result<()> {
        for (hierarchy, dir) in &self.dirs {
            for (file, value) in hierarchy.settings(limits) {
                let path = dir.join(file);
                fs::write(&path, value).map_err(|e| naming(&path, &e))?;
            }
            for (file, value) in hierarchy.without_swap(limits) {
                let path = dir.join(file);
                if path.exists() {
                    fs::write(&path, value).map_err(|e| naming(&path, &e))?;
                }
            }
        }
        Ok(())
    }

    /// Moves a process into the groups; its later children are born there. Only for a child that
    /// the caller has not reaped yet: the number of any other may have become somebody else's.
    ///
    /// # Errors
    /// Any I/O error. A child that has ended already is none.
    pub fn add(&self, pid: Pid) -> io::Result<()> {
        for (_, dir) in &self.dirs {
            let path = dir.join("cgroup.procs");
            match fs::write(&path, pid.as_raw_nonzero().to_string()) {
                Err(error) if error.raw_os_error() == Some(ENDED) => return Ok(()),
                moved => moved.map_err(|e| naming(&path, &e))?,
            }
        }
        Ok(())
    }

    /// Those of the limits that hold in them.
    pub(crate) fn of_these(&self, limits: &Limits) -> Limits {
        let has = |controller| self.dirs.iter().any(|(h, _)| h.controllers.contains(&controller));
        Limits {
            memory: limits.memory.filter(|_| has(Controller::Memory)),
            tasks: limits.tasks.filter(|_| has(Controller::Pids)),
            cpu_millis: limits.cpu_millis.filter(|_| has(Controller::Cpu)),
        }
    }

    /// What tells whether the memory limit has killed a process of the groups.
    #[must_use]
    pub fn out_of_memory(&self) -> OutOfMemory {
        // The first is version 1's, the second version 2's.
        let files = ["memory.oom_control", EVENTS];
        let all = self.dirs().flat_map(|dir| files.map(|file| dir.join(file)));
        OutOfMemory { files: all.filter(|file| file.exists()).collect() }
    }

    /// A directory whose `cgroup.procs` lists every process: that of the memory limit, if there is
    /// one. Not every runtime uses version 2's hierarchy on a hybrid host.
    #[must_use]
    pub fn members(&self) -> Option<&Path> {
        let limits = |h: &Hierarchy| h.controllers.contains(&Controller::Memory);
        let found = self.dirs.iter().find(|(hierarchy, _)| limits(hierarchy));
        found.or_else(|| self.dirs.first()).map(|(_, dir)| dir.as_path())
    }

    /// Version 1's groups in which programs look for what they may use, by the names that they look
    /// for (`memory`, `cpu,cpuacct`), and version 2's where that has some of the limits; none where it
    /// has all.
    pub(crate) fn shown(&self) -> Vec<(String, &Path)> {
        shown(self.dirs.iter().map(|(hierarchy, dir)| (hierarchy, dir.as_path())))
    }

    /// The directories, one per hierarchy.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.dirs.iter().map(|(_, dir)| dir.as_path())
    }
}

/// Where a host with both versions has version 2's.
const BESIDE: &str = "unified";

fn shown<'a, T: Clone>(all: impl Iterator<Item = (&'a Hierarchy, T)> + Clone) -> Vec<(String, T)> {
    let places =
        |(h, at): (&Hierarchy, T)| h.places().into_iter().map(move |name| (name, at.clone()));
    let mut shown: Vec<_> = all.clone().flat_map(places).collect();
    let limits = |h: &Hierarchy| h.version == Version::V2 && !h.controllers.is_empty();
    if !shown.is_empty() {
        let two = all.filter(|(h, _)| limits(h));
        shown.extend(two.map(|(_, at)| (BESIDE.to_owned(), at)));
    }
    shown
}

/// The names that a container sees of its control groups here, as [`Cgroup::shown`] gives them.
///
/// # Errors
/// Any error of reading `/proc/self/mountinfo`.
pub(crate) fn names_shown() -> io::Result<Vec<String>> {
    let all = hierarchy::every()?;
    Ok(shown(all.iter().map(|h| (h, ()))).into_iter().map(|(name, ())| name).collect())
}

/// Tells whether a group's memory limit has killed one of its processes, as long as the group is
/// there.
#[derive(Clone, Debug)]
pub struct OutOfMemory {
    files: Vec<PathBuf>,
}

impl OutOfMemory {
    /// Whether it has.
    #[must_use]
    pub fn happened(&self) -> bool {
        kills_of(self) > 0
    }

    /// What tells of each that follows.
    pub(crate) fn watch(&self) -> Kills {
        Kills::of(self)
    }
}

/// Version 2's file of what has happened to a group's memory.
const EVENTS: &str = "memory.events";

/// How many it has killed.
fn kills_of(limit: &OutOfMemory) -> u64 {
    let texts = limit.files.iter().filter_map(|file| fs::read_to_string(file).ok());
    let kills = |text: String| {
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse::<u64>().ok())
    };
    texts.filter_map(kills).max().unwrap_or(0)
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Deadline::after(REMOVAL);
        self.dirs.iter().for_each(|(_, dir)| members::close(dir));
        self.thaw();
        for (_, dir) in &self.dirs {
            if let Err(error) = members::remove(dir, deadline) {
                tracing::warn!(path = %dir.display(), %error, "cgroup not removed");
            }
            // The last one of a node takes the node's own group along; others are simply still there.
            if let Some(parent) = dir.parent() {
                let _ = fs::remove_dir(parent);
            }
        }
    }
}

/// Kills everything in the groups of a node with this run root, and removes them. Only for a node
/// that holds the lock on its state directory, before it starts anything.
///
/// Returns the sandboxes whose groups were found.
///
/// # Errors
/// The first error; the other groups have been dealt with nevertheless.
pub fn sweep(root: &RunRoot) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut first_error = None;
    // Before any is killed: which hierarchy has frozen one is not known.
    for hierarchy in hierarchy::every()? {
        let entries = fs::read_dir(parent_of(root, &hierarchy)).into_iter().flatten();
        entries.filter_map(Result::ok).for_each(|entry| {
            members::close(&entry.path());
            members::thaw(&entry.path());
        });
    }
    for hierarchy in hierarchy::every()? {
        let parent = parent_of(root, &hierarchy);
        let entries = match fs::read_dir(&parent) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(naming(&parent, &error)),
        };
        for entry in entries.filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        if let Err(error) = members::remove(&parent, Deadline::after(REMOVAL)) {
            first_error.get_or_insert(naming(&parent, &error));
        }
    }
    found.sort_unstable();
    found.dedup();
    first_error.map_or(Ok(found), Err)
}

fn parent_of(root: &RunRoot, hierarchy: &Hierarchy) -> PathBuf {
    hierarchy.mount.join(format!("vhive-{}", root.tag()))
}

/// Makes a node's group if it is not there, and a sandbox's group in it.
fn make_both(root: &RunRoot, hierarchy: &Hierarchy, dir: &Path) -> io::Result<()> {
    let parent = &parent_of(root, hierarchy);
    // In version 2 a new group has those of its parent by itself.
    let inherits = hierarchy.has_processors && hierarchy.version == Version::V1;
    // Another sandbox's end may remove the node's empty group between the two steps.
    for _ in 0..100 {
        let made = make_open(parent);
        hierarchy.delegate(parent);
        match made {
            Ok(()) => hierarchy.weigh(parent),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        }
        if inherits {
            inherit_processors(parent)?;
        }
        if let Some(cpus) = root.cpus().filter(|_| hierarchy.has_processors) {
            match processors::pin(hierarchy, parent, cpus) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                pinned => pinned?,
            }
        }
        match make_open(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(()) if inherits => return inherit_processors(dir),
            made => return made,
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "its parent keeps vanishing"))
}

/// Makes a group that everybody may look into, whatever the node's own mask is: it is shown to its
/// function, which need not be root.
fn make_open(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o755))
}

/// In version 1, a new group of the hierarchy `cpuset` has no processor, and takes no process
/// before it has been given some: those of its parent.
fn inherit_processors(dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, parent) = (dir.join(file), dir.join("..").join(file));
        if fs::read_to_string(&own).is_ok_and(|text| text.trim().is_empty())
            && let Ok(inherited) = fs::read_to_string(&parent)
            && !inherited.trim().is_empty()
        {
            fs::write(&own, inherited.trim()).map_err(|error| naming(&own, &error))?;
        }
    }
    Ok(())
}

fn naming(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
