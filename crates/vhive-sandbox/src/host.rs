//! What this host can and cannot do, for `vhive doctor`.
//!
//! Each fact is read from the kernel, never guessed from a distribution's name. What a runtime
//! needs is that runtime's own check; here are the facts that several of them, or their users,
//! stumble over.

use std::fs;
use std::path::Path;

use vhive_api::Bytes;

use crate::cgroup::{self, Controller};
use crate::runtime::HostLacks;
use crate::userfaultfd;

/// How a fact concerns the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, with a consequence that one should know.
    Limited,
    /// Something does not work because of it.
    Missing,
}

/// One thing about the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is about, e.g. `cgroups`.
    pub name: &'static str,
    /// How it concerns the user.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What follows from it, or what to do; empty when nothing.
    pub follows: String,
}

impl Fact {
    fn new(
        name: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        follows: impl Into<String>,
    ) -> Self {
        Self { name, verdict, found: found.into(), follows: follows.into() }
    }
}

/// Looks at the host. `state_dir` need not exist yet.
#[must_use]
pub fn facts(state_dir: &Path) -> Vec<Fact> {
    vec![
        user(),
        capabilities(&read("/proc/self/status")),
        cgroups(&read("/proc/self/mountinfo"), &cgroup::missing().unwrap_or_default()),
        device("tun", "/dev/net/tun", "network slots need it: `modprobe tun`"),
        pager(userfaultfd::lacks()),
        kvm(Path::new("/dev/kvm").exists()),
        clock(&read("/proc/cpuinfo")),
        memory(),
        disk(state_dir),
        kubectl(std::env::var_os("PATH").unwrap_or_default().as_os_str()),
    ]
}

/// The processor's own name.
pub(crate) fn processor() -> String {
    let brand = raw_cpuid::CpuId::new().get_processor_brand_string();
    brand.map_or_else(|| "an unnamed processor".to_owned(), |name| name.as_str().trim().to_owned())
}

/// What the processor lets a program see of its features, shortened: what guests see that run on it
/// without emulation. Hypervisors show processors of one name differently.
///
/// # Source
/// Intel SDM, CPUID: leaves 1 (but for EBX, which tells processors apart), 7, 0xd and 0x80000001.
pub(crate) fn features() -> String {
    let leaf = raw_cpuid::native_cpuid::cpuid_count;
    let (basic, more) = (leaf(1, 0), leaf(7, 0));
    let (saved, ways, extended) = (leaf(0xd, 0), leaf(0xd, 1), leaf(0x8000_0001, 0));
    let registers = [
        [basic.eax, basic.ecx, basic.edx],
        [more.ebx, more.ecx, more.edx],
        [saved.eax, saved.edx, ways.eax],
        [extended.ecx, extended.edx, leaf(7, 1).eax],
    ];
    let bytes: Vec<u8> = registers.into_iter().flatten().flat_map(u32::to_le_bytes).collect();
    vhive_api::Digest::of(&bytes).hex().chars().take(16).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn user() -> Fact {
    if rustix::process::geteuid().is_root() {
        return Fact::new("user", Verdict::Good, "root", "");
    }
    let follows =
        "namespaces, taps and cgroups need root: run `sudo vhive …`; rootless is not supported";
    Fact::new("user", Verdict::Missing, "not root", follows)
}

/// Bit of CAP_SYS_RESOURCE in the effective set.
///
/// # Source
/// `include/uapi/linux/capability.h`.
const CAP_SYS_RESOURCE: u32 = 24;

fn capabilities(status: &str) -> Fact {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    match set {
        None => Fact::new("capabilities", Verdict::Limited, "cannot be read", ""),
        Some(set) if set & (1 << CAP_SYS_RESOURCE) == 0 => Fact::new(
            "capabilities",
            Verdict::Limited,
            "no CAP_SYS_RESOURCE",
            "oom_score_adj cannot be lowered, nor hard limits raised; vHive does neither, but \
             containerd needs `restrict_oom_score_adj = true` here",
        ),
        Some(_) => Fact::new("capabilities", Verdict::Good, "CAP_SYS_RESOURCE is there", ""),
    }
}

fn cgroups(mountinfo: &str, missing: &[Controller]) -> Fact {
    // `… - <type> <source> <options>` after the optional fields.
    let kinds = mountinfo.lines().filter_map(|line| line.split_once(" - ")).map(|(_, rest)| rest);
    let (mut v1, mut v2) = (false, false);
    for kind in kinds {
        v1 |= kind.starts_with("cgroup ");
        v2 |= kind.starts_with("cgroup2 ");
    }
    let found = match (v1, v2) {
        (false, true) => "v2",
        (true, false) => "v1",
        (true, true) => "hybrid (v1 controllers beside a v2 hierarchy)",
        (false, false) => {
            let follows = "limits of sandboxes need them: mount cgroup2 on /sys/fs/cgroup";
            return Fact::new("cgroups", Verdict::Missing, "none mounted", follows);
        }
    };
    if missing.is_empty() {
        return Fact::new("cgroups", Verdict::Good, found, "");
    }
    let names: Vec<_> = missing.iter().map(|controller| controller.as_str()).collect();
    let found = format!("{found}, without {}", names.join(", "));
    let follows = "sandboxes have no such limits: enable it in cgroup.subtree_control; in a \
                   container, first move all processes of /sys/fs/cgroup into a group below it";
    Fact::new("cgroups", Verdict::Limited, found, follows)
}

fn device(name: &'static str, path: &str, fix: &str) -> Fact {
    match fs::metadata(path) {
        Ok(_) => Fact::new(name, Verdict::Good, path, ""),
        Err(error) => Fact::new(name, Verdict::Missing, format!("{path}: {error}"), fix),
    }
}

/// Whether clones' memory can be served, recorded and prefetched.
fn pager(lacks: Option<HostLacks>) -> Fact {
    let name = "userfaultfd";
    let Some(HostLacks { what, fix }) = lacks else {
        return Fact::new(name, Verdict::Good, userfaultfd::DEVICE, "");
    };
    let follows = format!(
        "no REAP and no lazy snapshots of microVMs: their clones map the memory file instead; {fix}"
    );
    Fact::new(name, Verdict::Missing, what, follows)
}

fn kvm(there: bool) -> Fact {
    if there {
        let follows = "whether it runs a Linux guest is tried by booting one: see qemu above";
        return Fact::new("kvm", Verdict::Good, "/dev/kvm is there", follows);
    }
    let follows = "guests run on an emulated CPU, 10 to 30 times slower; use a bare-metal host or \
                   one with nested virtualisation for KVM";
    Fact::new("kvm", Verdict::Limited, "no /dev/kvm", follows)
}

fn clock(cpuinfo: &str) -> Fact {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    if has("constant_tsc") && has("nonstop_tsc") {
        return Fact::new("clock", Verdict::Good, "TSC is constant and does not stop", "");
    }
    let follows = "emulated guests are told the TSC's rate; if it changes, their clocks drift";
    Fact::new("clock", Verdict::Limited, "TSC is not constant", follows)
}

fn memory() -> Fact {
    let info = rustix::system::sysinfo();
    let total = Bytes(info.totalram.saturating_mul(u64::from(info.mem_unit)));
    let found = format!("{} MiB", total.mib_ceil());
    if total < Bytes::mib(2048) {
        let follows = "a microVM takes 128 to 512 MiB: expect room for few";
        return Fact::new("memory", Verdict::Limited, found, follows);
    }
    Fact::new("memory", Verdict::Good, found, "")
}

fn disk(state_dir: &Path) -> Fact {
    let there = state_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let Ok(stat) = rustix::fs::statvfs(there) else {
        return Fact::new("disk", Verdict::Limited, "cannot be measured", "");
    };
    let free = Bytes(stat.f_bavail.saturating_mul(stat.f_frsize));
    let found = format!("{} MiB free for {}", free.0 >> 20, state_dir.display());
    if free < Bytes::mib(2048) {
        let follows =
            "the demo's kernel and images take about 1 GiB: free some, or give --state-dir";
        return Fact::new("disk", Verdict::Limited, found, follows);
    }
    Fact::new("disk", Verdict::Good, found, "")
}

fn kubectl(path: &std::ffi::OsStr) -> Fact {
    let found = std::env::split_paths(path).map(|dir| dir.join("kubectl")).find(|f| f.is_file());
    match found {
        Some(file) => Fact::new(
            "kubectl",
            Verdict::Good,
            file.display().to_string(),
            "Debian's package kubernetes-client would clash with one that no package owns",
        ),
        None => Fact::new("kubectl", Verdict::Good, "not installed", "not needed: `vhive` does it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_capability_is_named() {
        let fact = capabilities("Name:\tx\nCapEff:\t000001fffeffffff\n");
        assert_eq!((fact.verdict, fact.found.as_str()), (Verdict::Limited, "no CAP_SYS_RESOURCE"));
        assert_eq!(capabilities("CapEff:\t000001ffffffffff").verdict, Verdict::Good);
        assert_eq!(capabilities("CapEff:\tzz").verdict, Verdict::Limited);
    }

    #[test]
    fn cgroup_modes_are_told_apart() {
        let v1 = "30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        let v2 = "31 23 0:27 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw";
        let told = |mounts: &str, missing: &[Controller]| cgroups(mounts, missing);
        assert_eq!(told(v1, &[]).found, "v1");
        assert_eq!(told(v2, &[]).found, "v2");
        assert!(told(&format!("{v1}\n{v2}"), &[]).found.starts_with("hybrid"));
        assert_eq!(told("", &[]).verdict, Verdict::Missing);
        let lacking = told(v2, &[Controller::Memory, Controller::Pids]);
        assert_eq!(lacking.verdict, Verdict::Limited);
        assert_eq!(lacking.found, "v2, without memory, pids");
    }

    #[test]
    fn without_a_userfaultfd_what_follows_and_the_fix_are_told() {
        let (what, fix) = ("it cannot be opened".to_owned(), "open it".to_owned());
        let fact = pager(Some(HostLacks { what, fix }));
        assert_eq!((fact.verdict, fact.found.as_str()), (Verdict::Missing, "it cannot be opened"));
        assert!(fact.follows.contains("no REAP") && fact.follows.ends_with("open it"), "{fact:?}");
        assert_eq!(pager(None).verdict, Verdict::Good);
    }

    #[test]
    fn every_problem_says_what_follows() {
        for fact in facts(Path::new("/nonexistent/state")) {
            assert!(fact.verdict == Verdict::Good || !fact.follows.is_empty(), "{fact:?}");
            assert!(!fact.found.is_empty(), "{fact:?}");
        }
    }
}
