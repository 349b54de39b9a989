//! What sandboxes leave on a host if they leave anything.

use std::collections::BTreeSet;
use std::fs;

use vhive_sandbox::RunRoot;

/// Everything on the host that carries a node's tag or is a child of this process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Traces {
    children: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    mounts: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Traces {
    /// Whether each kind has grown that a running sandbox must show in.
    pub(crate) fn is_more_than(&self, before: &Self) -> bool {
        let grown = |now: &BTreeSet<String>, then: &BTreeSet<String>| now.len() > then.len();
        grown(&self.cgroups, &before.cgroups) && grown(&self.files, &before.files)
    }

    /// What there was not before. What was still going then may be gone.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let new = |now: &BTreeSet<String>, then: &BTreeSet<String>| now - then;
        Self {
            children: new(&self.children, &before.children),
            cgroups: new(&self.cgroups, &before.cgroups),
            mounts: new(&self.mounts, &before.mounts),
            files: new(&self.files, &before.files),
        }
    }

    pub(crate) fn of(root: &RunRoot) -> Self {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let tagged = |line: &&str| line.contains(root.tag());
        let cgroups = mountinfo.lines().filter(|line| line.contains(" - cgroup"));
        let cgroups = cgroups.filter_map(|line| line.split(' ').nth(4));
        let cgroups = cgroups.map(|mount| format!("{mount}/vhive-{}", root.tag()));
        let sandboxes = fs::read_dir(root.sandboxes()).into_iter().flatten();
        Self {
            children: children(),
            cgroups: cgroups.filter(|dir| fs::exists(dir).expect("readable")).collect(),
            mounts: mountinfo
                .lines()
                .filter(tagged)
                .filter(|l| !l.contains("netns"))
                .map(str::to_owned)
                .collect(),
            files: sandboxes.map(|e| e.expect("readable").path().display().to_string()).collect(),
        }
    }
}

fn children() -> BTreeSet<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("readable");
    let children =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    children
        .flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}
