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
    sockets: BTreeSet<String>,
    /// Processes, whosever children, by number and name: their command line, control groups or
    /// mounts are of this node. What holds a namespace of a sandbox's is one of them.
    pub(crate) processes: BTreeSet<String>,
}

/// What a process has open and running, which is not to grow with the sandboxes that it has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
}

impl Held {
    pub(crate) fn now() -> Self {
        let count = |dir| fs::read_dir(dir).expect("readable").count();
        Self { descriptors: count("/proc/self/fd"), threads: count("/proc/self/task") }
    }

    /// Whether it is no more than that, but for what some slots that are being removed hold.
    pub(crate) fn is_within(self, most: Self) -> bool {
        self.descriptors <= most.descriptors + 4 && self.threads <= most.threads + 2
    }
}

impl Traces {
    /// Whether each kind has grown that a running sandbox must show in.
    pub(crate) fn is_more_than(&self, before: &Self) -> bool {
        let grown = |now: &BTreeSet<String>, then: &BTreeSet<String>| now.len() > then.len();
        grown(&self.cgroups, &before.cgroups)
            && grown(&self.files, &before.files)
            && grown(&self.processes, &before.processes)
    }

    /// What there was not before. What was still going then may be gone.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let new = |now: &BTreeSet<String>, then: &BTreeSet<String>| now - then;
        Self {
            children: new(&self.children, &before.children),
            cgroups: new(&self.cgroups, &before.cgroups),
            mounts: new(&self.mounts, &before.mounts),
            files: new(&self.files, &before.files),
            sockets: new(&self.sockets, &before.sockets),
            processes: new(&self.processes, &before.processes),
        }
    }

    pub(crate) fn of(root: &RunRoot) -> Self {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let tagged = |line: &&str| line.contains(root.tag());
        let cgroups = mountinfo.lines().filter(|line| line.contains(" - cgroup"));
        let cgroups = cgroups.filter_map(|line| line.split(' ').nth(4));
        let cgroups = cgroups.map(|mount| format!("{mount}/vhive-{}", root.tag()));
        let listed = |dir: std::path::PathBuf| {
            let entries = fs::read_dir(dir).into_iter().flatten();
            entries.map(|e| e.expect("readable").path().display().to_string())
        };
        let sockets = fs::read_to_string("/proc/thread-self/net/unix").expect("readable");
        let place = root.dir().display().to_string();
        let ours = |line: &&str| line.contains(root.tag()) || line.contains(&place);
        Self {
            children: children(),
            cgroups: cgroups.filter(|dir| fs::exists(dir).expect("readable")).collect(),
            mounts: mountinfo
                .lines()
                .filter(tagged)
                .filter(|l| !l.contains("netns"))
                .map(str::to_owned)
                .collect(),
            files: listed(root.sandboxes()).collect(),
            sockets: sockets.lines().filter(ours).map(str::to_owned).collect(),
            processes: processes(root),
        }
    }
}

fn processes(root: &RunRoot) -> BTreeSet<String> {
    let place = root.dir().display().to_string();
    let tag = format!("vhive-{}", root.tag());
    let own = std::process::id();
    let mounts = fs::read_link("/proc/self/ns/mnt").expect("readable");
    let all = fs::read_dir("/proc").expect("readable").filter_map(Result::ok);
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // A process may end while it is looked at.
    let mentions = |pid: &u32, file: &str| {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.contains(&place) || text.contains(&tag)
    };
    // Those of the host's are looked at once, as this process sees them.
    let elsewhere =
        |pid: &u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|its| its != mounts);
    let found = all.filter(|pid| *pid != own).filter(|pid| {
        mentions(pid, "cmdline")
            || mentions(pid, "cgroup")
            || (elsewhere(pid) && mentions(pid, "mountinfo"))
    });
    let found: BTreeSet<u32> = found.collect();
    let mut heirs = vec![1];
    let mut next = own;
    while let Some(parent) = parent_of(next).filter(|parent| *parent > 1) {
        heirs.push(parent);
        next = parent;
    }
    // Whose child it is tells it from the processes of another test, which see a mount of this one's if
    // they were started while it was there: this one's are its own, or were left to whoever inherits.
    let is_ours = |pid: &&u32| {
        let mut top = **pid;
        loop {
            match parent_of(top) {
                Some(parent) if parent == own => return true,
                Some(parent) if !heirs.contains(&parent) => top = parent,
                Some(_) => return found.contains(&top),
                // It has just ended.
                None => return false,
            }
        }
    };
    let name = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("{pid} {}", name.trim())
    };
    found.iter().filter(is_ours).map(name).collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

fn children() -> BTreeSet<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("readable");
    let children =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    children
        .flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}
