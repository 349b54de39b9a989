//! Where this host has its control groups, and how each version spells a limit.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Limits;

/// Length of the period over which CPU time is limited, in microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;
/// Least CPU time in a period that the kernel takes, in microseconds.
const LEAST_QUOTA_US: u64 = 1000;

/// CPU time in thousandths of a CPU as the kernel wants it: so much in a period of such a length,
/// both in microseconds.
///
/// # Source
/// Kernel documentation: `scheduler/sched-bwc.rst`; `kernel/sched/core.c`
/// (`min_cfs_quota_period`).
#[must_use]
pub fn quota_us(cpu_millis: u32) -> (u64, u64) {
    ((u64::from(cpu_millis) * PERIOD_US / 1000).max(LEAST_QUOTA_US), PERIOD_US)
}

/// A controller that we set limits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// CPU time.
    Cpu,
    /// Memory.
    Memory,
    /// Number of tasks.
    Pids,
}

impl Controller {
    pub(super) const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    /// The kernel's name of it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == name)
    }
}

/// The controllers of version 1 in which programs look for what they may use, and have used.
const LOOKED_AT: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "pids"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// One mounted tree of control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) mount: PathBuf,
    pub(super) version: Version,
    /// Those of [`LOOKED_AT`] in it, if it is one of version 1's.
    pub(super) names: Vec<&'static str>,
    /// Those of ours that it can limit.
    pub(super) controllers: Vec<Controller>,
    /// Whether it says which processors a group may use.
    pub(super) has_processors: bool,
}

/// Every hierarchy that holds a controller of ours, and the v2 one in any case.
pub(super) fn mounted() -> io::Result<Vec<Hierarchy>> {
    let mut all = every()?;
    all.retain(Hierarchy::is_ours);
    Ok(all)
}

/// Every hierarchy: container runtimes use those that we set nothing in as well.
pub(super) fn every() -> io::Result<Vec<Hierarchy>> {
    let mut all = parse(&fs::read_to_string("/proc/self/mountinfo")?);
    for hierarchy in all.iter_mut().filter(|h| h.version == Version::V2) {
        let offered = fs::read_to_string(hierarchy.mount.join("cgroup.controllers"));
        let offered = offered.unwrap_or_default();
        hierarchy.controllers = offered.split_whitespace().filter_map(Controller::named).collect();
        hierarchy.has_processors = offered.split_whitespace().any(|name| name == "cpuset");
    }
    Ok(all)
}

/// Reads the text of `/proc/<pid>/mountinfo`. The first mount of a hierarchy counts.
///
/// # Source
/// proc_pid_mountinfo(5)
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut all: Vec<Hierarchy> = Vec::new();
    let mut seen = BTreeSet::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(mount) = before.split(' ').nth(4) else { continue };
        let mut after = after.split(' ');
        let (kind, options) = (after.next(), after.nth(1).unwrap_or_default());
        let (version, controllers) = match kind {
            Some("cgroup2") => (Version::V2, Vec::new()),
            Some("cgroup") => {
                (Version::V1, options.split(',').filter_map(Controller::named).collect())
            }
            _ => continue,
        };
        // The options name what is in a hierarchy, besides read-only or not.
        let options = options.trim_start_matches("rw").trim_start_matches("ro");
        if !seen.insert((kind, options)) {
            continue;
        }
        let looked_at = |option| LOOKED_AT.into_iter().find(|name| *name == option);
        let names: Vec<_> = match version {
            Version::V1 => options.split(',').filter_map(looked_at).collect(),
            Version::V2 => Vec::new(),
        };
        let has_processors = names.contains(&"cpuset");
        all.push(Hierarchy { mount: mount.into(), version, names, controllers, has_processors });
    }
    all
}

impl Hierarchy {
    /// Whether every sandbox has a group in it.
    pub(super) fn is_ours(&self) -> bool {
        self.version == Version::V2 || !self.controllers.is_empty()
    }

    /// The names under which programs look for it, wherever the host has it: of one with several
    /// controllers all of them (`cpu,cpuacct`), then each.
    pub(super) fn places(&self) -> Vec<String> {
        match self.names.as_slice() {
            [] | [_] => self.names.iter().map(|name| (*name).to_owned()).collect(),
            several => {
                let each = several.iter().map(|name| (*name).to_owned());
                std::iter::once(several.join(",")).chain(each).collect()
            }
        }
    }

    /// Lets children of `group` be limited (v2 only). What cannot be delegated, e.g. because the
    /// group holds processes, is a limit that will be missing from the children's files.
    pub(super) fn delegate(&self, group: &Path) {
        if self.version == Version::V1 {
            return;
        }
        for dir in [self.mount.as_path(), group] {
            let file = dir.join("cgroup.subtree_control");
            let enabled = fs::read_to_string(&file).unwrap_or_default();
            for controller in &self.controllers {
                let name = controller.as_str();
                if enabled.split_whitespace().any(|e| e == name) {
                    continue;
                }
                if let Err(error) = fs::write(&file, format!("+{name}")) {
                    tracing::debug!(path = %file.display(), name, %error, "controller not enabled");
                }
            }
        }
    }

    /// What can be limited in groups below its mount. In version 2 that is what has been enabled
    /// there; more can be only if no process is in it, or if it is the host's own root.
    ///
    /// # Source
    /// Kernel documentation: `admin-guide/cgroup-v2.rst`, "No Internal Process Constraint".
    pub(super) fn delegable(&self) -> Vec<Controller> {
        let read = |file| fs::read_to_string(self.mount.join(file)).unwrap_or_default();
        let is_root = || !self.mount.join("cgroup.type").exists();
        if self.version == Version::V1 || is_root() || read("cgroup.procs").trim().is_empty() {
            return self.controllers.clone();
        }
        let enabled = read("cgroup.subtree_control");
        let enabled = enabled.split_whitespace().filter_map(Controller::named);
        enabled.filter(|controller| self.controllers.contains(controller)).collect()
    }

    /// What it is in a group: there, version 2 limits only what has been delegated to it.
    pub(super) fn within(mut self, group: &Path) -> Self {
        if self.version == Version::V2 {
            let there = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
            let there: Vec<_> = there.split_whitespace().filter_map(Controller::named).collect();
            self.controllers.retain(|controller| there.contains(controller));
        }
        self
    }

    /// Gives a node's group, against the host's other processes, the weight of as many busy ones
    /// as there are CPUs: else all its sandboxes together would count as one process.
    pub(super) fn weigh(&self, group: &Path) {
        if !self.controllers.contains(&Controller::Cpu) {
            return;
        }
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let (file, weight) = match self.version {
            Version::V1 => ("cpu.shares", (1024 * cpus).min(262_144)),
            Version::V2 => ("cpu.weight", (100 * cpus).min(10_000)),
        };
        if let Err(error) = fs::write(group.join(file), weight.to_string()) {
            tracing::debug!(path = %group.display(), file, %error, "weight not set");
        }
    }

    /// Likewise so that a memory limit is one: what is over it is killed, and not swapped out. Not
    /// every kernel has the files. To be written after the limit itself.
    ///
    /// # Source
    /// Kernel documentation: `admin-guide/cgroup-v1/memory.rst`, `admin-guide/cgroup-v2.rst`.
    pub(super) fn without_swap(&self, limits: &Limits) -> Vec<(&'static str, String)> {
        let limited = limits.memory.filter(|_| self.controllers.contains(&Controller::Memory));
        match (limited, self.version) {
            (None, _) => Vec::new(),
            // The first counts both, and leaves room to swap to whoever is below it.
            (Some(memory), Version::V1) => vec![
                ("memory.memsw.limit_in_bytes", memory.0.to_string()),
                ("memory.swappiness", "0".to_owned()),
            ],
            (Some(_), Version::V2) => vec![("memory.swap.max", "0".to_owned())],
        }
    }

    /// The files to write for these limits, and what to write.
    ///
    /// # Source
    /// Kernel documentation: `admin-guide/cgroup-v1/{memory,pids}.rst`, `scheduler/sched-bwc.rst`,
    /// `admin-guide/cgroup-v2.rst`.
    pub(super) fn settings(&self, limits: &Limits) -> Vec<(&'static str, String)> {
        let mut files = Vec::new();
        let has = |controller| self.controllers.contains(&controller);
        if let Some(memory) = limits.memory.filter(|_| has(Controller::Memory)) {
            match self.version {
                Version::V1 => files.push(("memory.limit_in_bytes", memory.0.to_string())),
                Version::V2 => files.push(("memory.max", memory.0.to_string())),
            }
        }
        if let Some(tasks) = limits.tasks.filter(|_| has(Controller::Pids)) {
            files.push(("pids.max", tasks.to_string()));
        }
        if let Some(millis) = limits.cpu_millis.filter(|_| has(Controller::Cpu)) {
            let (quota, period) = quota_us(millis);
            match self.version {
                Version::V1 => {
                    files.push(("cpu.cfs_period_us", period.to_string()));
                    files.push(("cpu.cfs_quota_us", quota.to_string()));
                }
                Version::V2 => files.push(("cpu.max", format!("{quota} {period}"))),
            }
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use vhive_api::Bytes;

    use super::*;

    const SEPARATE_V1_AND_UNIFIED: &str = "\
25 20 0:22 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
27 25 0:24 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
28 25 0:25 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
29 25 0:26 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
30 25 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
31 25 0:24 / /mnt/again rw,relatime - cgroup cgroup rw,memory
";

    #[test]
    fn a_hybrid_host_is_understood() {
        let mut all = parse(SEPARATE_V1_AND_UNIFIED);
        assert!(all.iter().any(|h| h.controllers.is_empty() && h.version == Version::V1));
        let processors = all.iter().filter(|h| h.has_processors).map(|h| h.mount.as_path());
        assert_eq!(processors.collect::<Vec<_>>(), [Path::new("/sys/fs/cgroup/cpuset")]);
        all.retain(Hierarchy::is_ours);
        let mounts: Vec<_> = all.iter().map(|h| h.mount.to_str().unwrap()).collect();
        let expected = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"];
        assert_eq!(mounts, expected);
        assert_eq!(all[0].controllers, [Controller::Cpu]);
    }

    #[test]
    fn only_what_tells_limits_is_looked_at() {
        let text = format!(
            "{SEPARATE_V1_AND_UNIFIED}\
             32 25 0:32 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n\
             33 25 0:33 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
        );
        let names: Vec<_> = parse(&text).iter().flat_map(Hierarchy::places).collect();
        assert_eq!(names, ["cpu", "cpuset", "memory", "cpuacct"]);
    }

    #[test]
    fn joint_controllers_are_found_under_every_name_wherever_they_are_mounted() {
        let of = |line: &str| parse(line).iter().flat_map(Hierarchy::places).collect::<Vec<_>>();
        let joint = of("1 1 0:1 / /dev/mine rw - cgroup cgroup rw,cpu,cpuacct,xattr,name=a\n");
        assert_eq!(joint, ["cpu,cpuacct", "cpu", "cpuacct"]);
        assert_eq!(of("1 1 0:1 / /dev/mine rw - cgroup cgroup ro,cpuacct\n"), ["cpuacct"]);
        assert_eq!(of("1 1 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,net_cls\n"), [""; 0]);
    }

    #[test]
    fn joint_v1_controllers_are_one_hierarchy() {
        let all = parse("1 1 0:1 / /cg rw - cgroup cgroup rw,cpu,cpuacct,memory\n");
        assert_eq!(all[0].controllers, [Controller::Cpu, Controller::Memory]);
        let limits = Limits { memory: Some(Bytes(4096)), tasks: Some(9), cpu_millis: Some(1500) };
        let expected = [
            ("memory.limit_in_bytes", "4096".to_owned()),
            ("cpu.cfs_period_us", "100000".to_owned()),
            ("cpu.cfs_quota_us", "150000".to_owned()),
        ];
        assert_eq!(all[0].settings(&limits), expected);
    }

    #[test]
    fn version_two_spells_its_limits_otherwise() {
        let controllers = Controller::ALL.to_vec();
        let (mount, version, names) = ("/cg".into(), Version::V2, Vec::new());
        let two = Hierarchy { mount, version, names, controllers, has_processors: false };
        let limits = Limits { memory: Some(Bytes(1)), tasks: Some(2), cpu_millis: Some(500) };
        let settings = two.settings(&limits);
        assert!(settings.contains(&("cpu.max", "50000 100000".to_owned())));
        assert!(settings.contains(&("memory.max", "1".to_owned())));
        // What is asked for in less than the kernel divides is the least that there is.
        let sliver = Limits { cpu_millis: Some(1), ..Limits::default() };
        assert_eq!(two.settings(&sliver), [("cpu.max", "1000 100000".to_owned())]);
    }

    #[test]
    fn what_is_limited_is_not_swapped_out() {
        let of = |version, controllers: &[Controller], memory: Option<u64>| {
            let (mount, controllers) = ("/cg".into(), controllers.to_vec());
            let limits = Limits { memory: memory.map(Bytes), ..Limits::default() };
            let names = Vec::new();
            Hierarchy { mount, version, names, controllers, has_processors: false }
                .without_swap(&limits)
        };
        let memory = [Controller::Memory];
        assert_eq!(of(Version::V2, &memory, Some(7)), [("memory.swap.max", "0".to_owned())]);
        let both = of(Version::V1, &memory, Some(7));
        assert_eq!(both[0], ("memory.memsw.limit_in_bytes", "7".to_owned()));
        assert_eq!(of(Version::V1, &memory, None), []);
        assert_eq!(of(Version::V2, &[Controller::Pids], Some(7)), []);
    }

    #[test]
    fn version_two_limits_in_a_group_what_was_delegated_to_it() {
        let group = tempfile::tempdir().expect("a temporary directory");
        let of = |version| {
            let (mount, controllers) = ("/cg".into(), Controller::ALL.to_vec());
            let names = Vec::new();
            let all = Hierarchy { mount, version, names, controllers, has_processors: false };
            all.within(group.path()).controllers
        };
        assert_eq!(of(Version::V2), []);
        fs::write(group.path().join("cgroup.controllers"), "cpuset pids\n").expect("written");
        assert_eq!(of(Version::V2), [Controller::Pids]);
        assert_eq!(of(Version::V1), Controller::ALL);
    }

    #[test]
    fn a_group_with_processes_in_it_delegates_nothing_more() {
        let mount = tempfile::tempdir().expect("a temporary directory");
        let write = |file: &str, text: &str| {
            fs::write(mount.path().join(file), text).expect("written");
        };
        let look = || {
            let (controllers, has_processors) = (Controller::ALL.to_vec(), false);
            let (mount, version, names) = (mount.path().to_owned(), Version::V2, Vec::new());
            Hierarchy { mount, version, names, controllers, has_processors }.delegable()
        };
        write("cgroup.procs", "1\n17\n");
        write("cgroup.subtree_control", "cpu hugetlb\n");
        assert_eq!(look(), Controller::ALL, "the host's own root");
        write("cgroup.type", "domain\n");
        assert_eq!(look(), [Controller::Cpu], "a container's");
        write("cgroup.procs", "");
        assert_eq!(look(), Controller::ALL, "nobody is in the way");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_survived(text: String) {
            parse(&text);
        }
    }
}
