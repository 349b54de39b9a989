//! `config.json`: a pure function of what is wanted.
//!
//! # Source
//! OCI runtime-spec 1.0.2, `config.md` and `config-linux.md`; the paths that are masked and the
//! capabilities are those of common container engines.

use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};
use vhive_api::guest::Volume;
use vhive_api::inside::{CORE, LOCKED, OPEN_FILES, STACK};

use super::function::Function;
use super::layer::INIT;
use super::{seccomp, volumes};
use crate::cgroup::{self, Limits};

/// One container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Container<'a> {
    /// Its host name.
    pub(super) hostname: &'a str,
    /// Its control groups.
    pub(super) cgroup: &'a str,
    /// What it may use: those limits that hold in them.
    pub(super) limits: Limits,
    /// The hard limits of the node, which are not raised.
    pub(super) most: Most,
    /// How readily the kernel ends it when the host runs out of memory.
    pub(super) expendable: i32,
    /// Where options of CRIU are; none for gVisor, which it does not save.
    pub(super) criu: Option<&'a Path>,
    /// For gVisor, which has a kernel of its own.
    pub(super) gvisor: bool,
    /// How its control groups are shown to it.
    pub(super) groups: Groups<'a>,
    pub(super) first: First<'a>,
    /// The bundle's directory, in which its files are (gVisor's init makes them inside).
    pub(super) bundle: &'a Path,
}

/// What the host lets anybody have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) open_files: u64,
    /// Bytes of a core dump.
    pub(super) core: u64,
    /// Bytes of a stack.
    pub(super) stack: u64,
    /// Bytes locked into memory.
    pub(super) locked: u64,
}

impl Most {
    pub(super) fn of_the_node() -> Self {
        let hard = |limit| getrlimit(limit).maximum.unwrap_or(u64::MAX);
        Self {
            open_files: hard(Resource::Nofile),
            core: hard(Resource::Core),
            stack: hard(Resource::Stack),
            locked: hard(Resource::Memlock),
        }
    }

    /// The limits of a container's processes, the same however the node was started, as far as it goes.
    /// No core dump: the host's kernel would write it, or hand it with all that was asked of the
    /// function to a program of the host's.
    fn limits(self) -> Value {
        let limit = |kind: &str, soft: u64, hard: u64| json!({ "type": kind, "soft": soft.min(hard), "hard": hard });
        json!([
            limit("RLIMIT_NOFILE", OPEN_FILES.0, OPEN_FILES.1.min(self.open_files)),
            limit("RLIMIT_CORE", CORE, CORE.min(self.core)),
            limit("RLIMIT_STACK", STACK, self.stack),
            limit("RLIMIT_MEMLOCK", LOCKED, LOCKED.min(self.locked)),
        ])
    }
}

/// How a container's control groups are shown to it, read-only: Java, Go, Node and others look in them
/// for what they may use.
#[derive(Clone, Copy, Debug)]
pub(super) enum Groups<'a> {
    /// Not at all: gVisor has a kernel of its own.
    Hidden,
    /// Version 2's, mounted by the runtime.
    Mounted,
    /// Version 1's, by their names, in a file system in memory: programs take its kind for the version.
    /// The runtime would mount every hierarchy of the host there, and all once more to close them.
    Bound(&'a [(String, &'a Path)]),
}

/// Its first process.
#[derive(Clone, Copy, Debug)]
pub(super) enum First<'a> {
    /// Init, and where the function's files are to be that it writes.
    Init(&'a [Volume]),
    /// The function itself.
    Function(&'a Function),
}

/// For init, whose threads live for a moment: each would have a heap of its own, which stays. The
/// function's variables are its own.
///
/// # Source
/// GNU C library, "Memory Allocation Tunables".
const ONE_HEAP: &str = "GLIBC_TUNABLES=glibc.malloc.arena_max=1";

/// Where programs look for control groups.
const GROUPS: &str = "/sys/fs/cgroup";

const CAPABILITIES: [&str; 13] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
];

/// The file's content.
pub(super) fn config(container: &Container<'_>) -> Value {
    let Container { hostname, cgroup, limits, most, expendable, gvisor, first, .. } = container;
    let (criu, bundle) = (container.criu, container.bundle);
    let namespaces = ["pid", "ipc", "uts", "mount"];
    let mut namespaces: Vec<Value> =
        namespaces.iter().map(|kind| json!({ "type": kind })).collect();
    if *gvisor {
        // The one that gVisor itself is started in. (The others take it without being told.)
        namespaces.push(json!({ "type": "network", "path": "/proc/self/ns/net" }));
    } else {
        // The container's own group is the root of those that it sees. (gVisor shows none.)
        namespaces.push(json!({ "type": "cgroup" }));
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "maskedPaths": [
            "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
            "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
            "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
        ],
        "readonlyPaths": [
            "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
        ],
        "resources": { "devices": devices() },
    });
    if !gvisor {
        linux["seccomp"] = seccomp::filter();
    }
    linux["cgroupsPath"] = json!(cgroup);
    let Limits { memory, tasks, cpu_millis } = limits;
    if let Some(memory) = memory {
        linux["resources"]["memory"] = json!({ "limit": memory.0 });
    }
    if let Some(millis) = cpu_millis {
        let (quota, period) = cgroup::quota_us(*millis);
        linux["resources"]["cpu"] = json!({ "quota": quota, "period": period });
    }
    if let Some(tasks) = tasks {
        linux["resources"]["pids"] = json!({ "limit": tasks });
    }
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": process(*first, *gvisor, (*most, *expendable)),
        "root": { "path": "rootfs", "readonly": false },
        "hostname": hostname,
        "mounts": match first {
            First::Init(volumes) => mounts(volumes, *gvisor, container.groups, bundle),
            First::Function(_) => mounts(&[], *gvisor, container.groups, bundle),
        },
        "linux": linux,
    });
    if let Some(criu) = criu {
        config["annotations"] = json!({ "org.criu.config": criu });
    }
    config
}

fn process(first: First<'_>, gvisor: bool, (most, expendable): (Most, i32)) -> Value {
    let mut capabilities = CAPABILITIES.to_vec();
    capabilities.push("CAP_SYS_CHROOT");
    let mut process = json!({
        "terminal": false,
        "rlimits": most.limits(),
        "noNewPrivileges": false,
        "oomScoreAdj": expendable,
    });
    let is_root = match first {
        First::Init(_) => {
            if gvisor {
                // For init alone, which gives a clone its name: in gVisor's own kernel, not the
                // host's.
                capabilities.push("CAP_SYS_ADMIN");
            }
            process["user"] = json!({ "uid": 0, "gid": 0 });
            process["args"] = json!([INIT, "container"]);
            process["env"] = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", ONE_HEAP]);
            process["cwd"] = json!("/");
            true
        }
        First::Function(Function { args, env, cwd, account, .. }) => {
            let (uid, gid) = (account.uid, account.gid);
            process["user"] = json!({ "uid": uid, "gid": gid, "additionalGids": account.groups });
            process["args"] = json!(args);
            process["env"] = json!(env);
            process["cwd"] = json!(cwd);
            uid == 0
        }
    };
    // Who is not root has none, as if root had become that user, and may get no more.
    let held = if is_root { capabilities.as_slice() } else { &[] };
    process["capabilities"] =
        json!({ "bounding": capabilities, "effective": held, "permitted": held });
    process
}

fn mounts(volumes: &[Volume], gvisor: bool, groups: Groups<'_>, bundle: &Path) -> Value {
    let hard = ["nosuid", "noexec", "nodev"];
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": hard }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
          "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
          "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
          "options": ["nosuid", "noexec", "nodev", "mode=1777"] }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
          "options": hard }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
          "options": ["nosuid", "noexec", "nodev", "ro"] }),
    ];
    match groups {
        Groups::Hidden => {}
        Groups::Mounted => {
            mounts.push(json!({ "destination": GROUPS, "type": "cgroup",
              "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }));
        }
        Groups::Bound(dirs) => {
            // The runtime makes the places in it, and closes it then.
            mounts.push(json!({ "destination": GROUPS, "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "noexec", "nodev", "ro", "mode=755", "size=64k"] }));
            mounts.extend(dirs.iter().map(|(name, dir)| {
                json!({ "destination": format!("{GROUPS}/{name}"), "type": "bind", "source": dir,
                  "options": ["bind", "ro", "nosuid", "noexec", "nodev"] })
            }));
        }
    }
    mounts.extend(volumes::places(volumes, bundle).map(|(volume, place)| {
        if gvisor {
            return json!({ "destination": volume.path, "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "nodev", "mode=755"] });
        }
        json!({ "destination": volume.path, "type": "bind", "source": place,
          "options": ["bind", "ro", "nosuid", "nodev"] })
    }));
    Value::Array(mounts)
}

/// No device but the harmless ones, which every runtime adds itself.
fn devices() -> Value {
    json!([{ "allow": false, "access": "rwm" }])
}

#[cfg(test)]
mod tests {
    use vhive_api::Bytes;

    use super::*;

    fn container() -> Container<'static> {
        let memory = Some(Bytes::mib(64));
        let limits = Limits { memory, cpu_millis: Some(1500), tasks: Some(100) };
        Container {
            hostname: "abc",
            cgroup: "/vhive-1/abc",
            limits,
            most: Most { open_files: 4096, core: u64::MAX, stack: u64::MAX, locked: 64 << 10 },
            expendable: 500,
            criu: None,
            gvisor: false,
            groups: Groups::Mounted,
            first: First::Init(&[]),
            bundle: Path::new("/bundle"),
        }
    }

    #[test]
    fn volumes_are_closed_before_a_container_is_made_but_for_gvisor() {
        let volume = |path: &str| Volume { path: path.to_owned(), files: Vec::new() };
        let both = [volume("/etc/app/own"), volume("/etc/app")];
        let of = |gvisor| {
            let config = config(&Container { gvisor, first: First::Init(&both), ..container() });
            let mounts = config["mounts"].as_array().expect("a list").clone();
            let ours = mounts.into_iter().filter(|mount| {
                mount["destination"].as_str().is_some_and(|path| path.starts_with("/etc/app"))
            });
            ours.collect::<Vec<Value>>()
        };
        let plain = of(false);
        assert_eq!(plain[0]["destination"], "/etc/app", "the outer one comes first");
        assert_eq!(plain[1]["source"], "/bundle/volumes/1");
        assert!(plain.iter().all(|mount| mount["options"].to_string().contains("\"ro\"")));
        assert!(of(true).iter().all(|mount| mount["type"] == "tmpfs"));
    }

    #[test]
    fn limits_are_in_the_specifications_units() {
        let config = config(&container());
        let resources = &config["linux"]["resources"];
        assert_eq!(resources["memory"]["limit"], 64 << 20);
        assert_eq!(resources["cpu"], json!({ "quota": 150_000, "period": 100_000 }));
        let limits = config["process"]["rlimits"].as_array().expect("a list");
        let soft_and_hard = |kind: &str| {
            let limit = limits.iter().find(|limit| limit["type"] == kind).expect(kind);
            (limit["soft"].as_u64(), limit["hard"].as_u64())
        };
        assert_eq!(soft_and_hard("RLIMIT_NOFILE"), (Some(1024), Some(4096)));
        assert_eq!(soft_and_hard("RLIMIT_CORE"), (Some(1), Some(1)));
        assert_eq!(soft_and_hard("RLIMIT_STACK"), (Some(8 << 20), Some(u64::MAX)));
        assert_eq!(soft_and_hard("RLIMIT_MEMLOCK"), (Some(64 << 10), Some(64 << 10)));
    }

    #[test]
    fn a_limit_that_the_host_cannot_set_is_not_asked_for() {
        let limits = Limits { tasks: Some(100), ..Limits::default() };
        let config = config(&Container { limits, ..container() });
        let resources = &config["linux"]["resources"];
        assert_eq!(resources["pids"]["limit"], 100);
        assert!(resources.get("memory").is_none() && resources.get("cpu").is_none());
    }

    #[test]
    fn criu_finds_its_options() {
        let with = |criu| config(&Container { criu, ..container() });
        assert_eq!(with(None).get("annotations"), None);
        let config = with(Some(Path::new("/b/criu.conf")));
        assert_eq!(config["annotations"]["org.criu.config"], "/b/criu.conf");
    }

    #[test]
    fn only_gvisors_init_may_administer_its_kernel() {
        let admin = |gvisor| {
            let config = config(&Container { gvisor, ..container() });
            config["process"]["capabilities"]["bounding"].to_string().contains("SYS_ADMIN")
        };
        assert!(admin(true) && !admin(false));
    }

    #[test]
    fn a_container_sees_its_own_control_groups_only_and_cannot_write_them() {
        let (memory, cpu) = (Path::new("/cg/memory/own"), Path::new("/cg/cpu,cpuacct/own"));
        let dirs = [("memory".to_owned(), memory), ("cpu,cpuacct".to_owned(), cpu)];
        let shown = |groups| {
            let config = config(&Container { groups, ..container() });
            assert!(config["linux"]["namespaces"].to_string().contains("cgroup"));
            let mounts = config["mounts"].as_array().expect("a list").clone();
            let groups = mounts.into_iter().filter_map(|mount| {
                let place = mount["destination"].as_str()?.strip_prefix("/sys/fs/cgroup")?;
                let options = mount["options"].as_array().expect("a list");
                assert!(options.contains(&json!("ro")), "{mount}");
                Some((place.to_owned(), mount["source"].as_str()?.to_owned()))
            });
            groups.collect::<Vec<_>>()
        };
        let pairs = |all: &[(&str, &str)]| -> Vec<(String, String)> {
            all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        assert_eq!(shown(Groups::Mounted), pairs(&[("", "cgroup")]));
        let bound = shown(Groups::Bound(&dirs));
        let wanted =
            [("", "tmpfs"), ("/memory", "/cg/memory/own"), ("/cpu,cpuacct", "/cg/cpu,cpuacct/own")];
        assert_eq!(bound, pairs(&wanted), "the places come first");
        assert_eq!(shown(Groups::Hidden), []);
    }

    #[test]
    fn a_container_has_the_hosts_network_namespace_only_if_it_was_started_in_it() {
        let config = config(&container());
        let kinds = config["linux"]["namespaces"].to_string();
        assert!(!kinds.contains("network") && kinds.contains("pid"), "{kinds}");
    }
}
