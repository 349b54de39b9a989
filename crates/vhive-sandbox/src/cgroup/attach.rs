//! Makes moving a process into a group quick.
//!
//! The kernel lets every move wait until no processor forks any more, which takes a grace period of
//! RCU, 5 to 20 ms on an idle host; moves that follow shortly after are free. So the first one is
//! made ahead, while the sandbox's other things are made, and moves nothing: a thread goes to where
//! it is.
//!
//! # Source
//! `kernel/cgroup/cgroup.c` (`cgroup_attach_lock`), `kernel/rcu/sync.c`.

use std::fs;
use std::path::PathBuf;
use std::thread;

use super::hierarchy::{Hierarchy, Version};

/// Lets the grace period begin, and does not wait for its end. To be called once all groups are
/// there: the kernel makes none meanwhile. Where it cannot be done the move itself waits, so nothing
/// is reported.
pub(super) fn expect<'a>(mut hierarchies: impl Iterator<Item = &'a Hierarchy>) {
    let known = |h: &&Hierarchy| h.version == Version::V2 || !h.controllers.is_empty();
    let Some(hierarchy) = hierarchies.find(known).cloned() else { return };
    let thread = thread::Builder::new().name("vhive-cgroup".to_owned());
    // Dropping the handle lets the thread end by itself.
    let _ = thread.spawn(move || {
        let own = fs::read_to_string("/proc/thread-self/cgroup").ok()?;
        let file = threads_file(&hierarchy, &own)?;
        fs::write(file, rustix::thread::gettid().as_raw_nonzero().to_string()).ok()
    });
}

/// The file that takes threads into the group in which the calling thread is already.
fn threads_file(hierarchy: &Hierarchy, own: &str) -> Option<PathBuf> {
    let is_it = |controllers: &str| match hierarchy.version {
        Version::V2 => controllers.is_empty(),
        Version::V1 => {
            let wanted = hierarchy.controllers.first().map(|c| c.as_str());
            wanted.is_some_and(|wanted| controllers.split(',').any(|there| there == wanted))
        }
    };
    let mut groups = own.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        is_it(controllers).then_some(path)
    });
    let group = hierarchy.mount.join(groups.next()?.trim_start_matches('/'));
    Some(group.join(if hierarchy.version == Version::V1 { "tasks" } else { "cgroup.threads" }))
}

#[cfg(test)]
mod tests {
    use super::super::hierarchy::Controller;
    use super::*;

    const OWN: &str = "5:cpu,cpuacct:/a/b\n4:memory:/m:x\n1:name=systemd:/s\n0::/v2\n";

    fn of(version: Version, controllers: &[Controller]) -> Option<PathBuf> {
        look(version, controllers, OWN)
    }

    fn look(version: Version, controllers: &[Controller], own: &str) -> Option<PathBuf> {
        let (mount, controllers) = ("/sys/fs/cgroup/x".into(), controllers.to_vec());
        let names = Vec::new();
        let hierarchy = Hierarchy { mount, version, names, controllers, has_processors: false };
        threads_file(&hierarchy, own)
    }

    #[test]
    fn the_own_group_is_found_in_every_version() {
        let path = |end: &str| Some(PathBuf::from(format!("/sys/fs/cgroup/x/{end}")));
        assert_eq!(of(Version::V1, &[Controller::Cpu]), path("a/b/tasks"));
        assert_eq!(of(Version::V1, &[Controller::Memory]), path("m:x/tasks"));
        assert_eq!(of(Version::V2, &[Controller::Memory]), path("v2/cgroup.threads"));
        assert_eq!(of(Version::V1, &[Controller::Pids]), None);
        assert_eq!(of(Version::V1, &[]), None);
    }

    #[test]
    fn foreign_lines_are_left_out() {
        for own in ["", ":", "::", "nonsense\n\u{0}", "1:memory"] {
            assert_eq!(look(Version::V1, &[Controller::Memory], own), None, "{own:?}");
        }
    }
}
