//! CPU time that a sandbox's processes have used, by its groups' account: also that of processes
//! that have ended, and exact where the processes' own account counts ticks of 10 ms.

use std::fs;
use std::path::Path;

use vhive_api::SandboxId;

use super::hierarchy::{self, Version};
use super::parent_of;
use crate::run_dir::RunRoot;

/// CPU time of a group since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuTime {
    /// In microseconds.
    pub total_us: u64,
    /// Of that, outside the kernel and in it, where the group tells. The kernel samples which it
    /// is at its ticks; the two add up to the whole.
    pub parts_us: Option<(u64, u64)>,
}

/// CPU time of a sandbox's processes, where one of its groups counts it: version 2's always does,
/// version 1's if the controller `cpuacct` has one.
#[must_use]
pub fn cpu_time(root: &RunRoot, id: &SandboxId) -> Option<CpuTime> {
    let read = |hierarchy: hierarchy::Hierarchy| {
        let dir = parent_of(root, &hierarchy).join(id.as_str());
        match hierarchy.version {
            Version::V1 => version_1(&dir),
            Version::V2 => version_2(&fs::read_to_string(dir.join("cpu.stat")).ok()?),
        }
    };
    // On a hybrid host a container is in version 1's groups only, and version 2's says 0.
    hierarchy::every().ok()?.into_iter().filter_map(read).max()
}

/// # Source
/// `Documentation/admin-guide/cgroup-v1/cpuacct.rst`; nanoseconds.
fn version_1(dir: &Path) -> Option<CpuTime> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok()
    };
    let total = number("cpuacct.usage")?;
    let parts = number("cpuacct.usage_user").zip(number("cpuacct.usage_sys"));
    let parts_us = parts.and_then(|(user, system)| divide(total / 1000, user, system));
    Some(CpuTime { total_us: total / 1000, parts_us })
}

/// Divides a total as two samples are to each other; not at all if one of them has seen nothing.
fn divide(total: u64, user: u64, system: u64) -> Option<(u64, u64)> {
    let sum = u128::from(user) + u128::from(system);
    if user == 0 || system == 0 {
        return None;
    }
    let user = u64::try_from(u128::from(total) * u128::from(user) / sum).ok()?;
    Some((user, total - user))
}

/// # Source
/// `Documentation/admin-guide/cgroup-v2.rst`, `cpu.stat`; the first three lines are there with and
/// without the controller.
fn version_2(text: &str) -> Option<CpuTime> {
    let field = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    };
    let total_us = field("usage_usec")?;
    let parts_us = field("user_usec").zip(field("system_usec"));
    Some(CpuTime { total_us, parts_us: parts_us.filter(|(user, system)| *user > 0 && *system > 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_twos_text_is_read() {
        let text = "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnice_usec 0\nnr_periods 3\n";
        let read = version_2(text);
        assert_eq!(read, Some(CpuTime { total_us: 1500, parts_us: Some((1000, 500)) }));
        let whole = version_2("usage_usec 7\n");
        assert_eq!(whole, Some(CpuTime { total_us: 7, parts_us: None }));
        for strange in ["", "usage_usec\n", "usage_usec x\n", "usage_usecs 1\n"] {
            assert_eq!(version_2(strange), None, "{strange:?}");
        }
    }

    #[test]
    fn samples_divide_the_exact_total() {
        assert_eq!(divide(1000, 3, 1), Some((750, 250)));
        assert_eq!(divide(10, 0, 0), None, "no tick has been seen");
        assert_eq!(divide(10, 0, 3), None, "too few to tell");
        assert_eq!(divide(u64::MAX, u64::MAX, u64::MAX), Some((u64::MAX / 2, u64::MAX / 2 + 1)));
    }

    #[test]
    fn version_ones_files_are_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let write =
            |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("written");
        assert_eq!(version_1(dir.path()), None, "a host without the controller");
        write("cpuacct.usage", "2000500\n");
        assert_eq!(version_1(dir.path()), Some(CpuTime { total_us: 2000, parts_us: None }));
        write("cpuacct.usage_user", "10000000\n");
        write("cpuacct.usage_sys", "30000000\n");
        let parts_us = Some((500, 1500));
        assert_eq!(version_1(dir.path()), Some(CpuTime { total_us: 2000, parts_us }));
    }
}
