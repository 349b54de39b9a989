//! `config.json`: a pure function of what is wanted.
//!
//! # Source
//! OCI runtime-spec 1.0.2, `config.md` and `config-linux.md`; the paths that are masked and the
//! capabilities are those of common container engines.

use std::path::Path;

use serde_json::{Value, json};
use vhive_api::guest::Volume;
use vhive_api::inside::OPEN_FILES;

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
    /// Most open files that the host lets anybody have.
    pub(super) open_files: u64,
    /// How readily the kernel ends it when the host runs out of memory.
    pub(super) expendable: i32,
    /// Where options of CRIU are; none for runtimes that it does not save.
    pub(super) criu: Option<&'a Path>,
    /// For gVisor, which has a kernel of its own.
    pub(super) gvisor: bool,
    /// How its control groups are shown to it.
    pub(super) groups: Groups<'a>,
    pub(super) first: First<'a>,
    /// The bundle's directory, in which its files are (gVisor's init makes them inside).
    pub(super) bundle: &'a Path,
}

/// Who shows a container its control groups, where Java, Go, Node and others look for what they may
/// use.
#[derive(Clone, Copy, Debug)]
pub(super) enum Groups<'a> {
    /// The runtime, which knows what they are.
    Runtime,
    /// We do, directory by directory, each with where its hierarchy is mounted: the directory in which
    /// crun mounts version 1's can be written.
    Each(&'a [(&'a Path, &'a Path)]),
    /// Nobody: gVisor's kernel has groups of its own, without the limits.
    Nobody,
}

/// Its first process.
#[derive(Clone, Copy, Debug)]
pub(super) enum First<'a> {
    /// Init, and where the function's files are to be that it writes.
    Init(&'a [Volume]),
    /// The function itself.
    Function(&'a Function),
}

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
    let Container { hostname, cgroup, limits, open_files, expendable, gvisor, first, .. } =
        container;
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
    if let (Groups::Runtime, Some(paths)) =
        (container.groups, linux["readonlyPaths"].as_array_mut())
    {
        // Version 1's groups are mounted in a directory that could be written. (crun would close that,
        // and open what is mounted in it.)
        paths.push(json!(CGROUPS));
    }
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
        "process": process(*first, *gvisor, (*open_files, *expendable)),
        "root": { "path": "rootfs", "readonly": false },
        "hostname": hostname,
        "mounts": match first {
            First::Init(volumes) => mounts(volumes, (*gvisor, container.groups), bundle),
            First::Function(_) => mounts(&[], (*gvisor, container.groups), bundle),
        },
        "linux": linux,
    });
    if let Some(criu) = criu {
        config["annotations"] = json!({ "org.criu.config": criu });
    }
    config
}

fn process(first: First<'_>, gvisor: bool, (open_files, expendable): (u64, i32)) -> Value {
    let mut capabilities = CAPABILITIES.to_vec();
    capabilities.push("CAP_SYS_CHROOT");
    let hard = OPEN_FILES.1.min(open_files);
    let mut process = json!({
        "terminal": false,
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": OPEN_FILES.0.min(hard), "hard": hard }],
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
            process["env"] = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
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

fn mounts(volumes: &[Volume], (gvisor, groups): (bool, Groups<'_>), bundle: &Path) -> Value {
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
        Groups::Runtime => mounts.push(json!({ "destination": CGROUPS, "type": "cgroup",
          "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] })),
        Groups::Each(dirs) => mounts.extend(each_group(dirs)),
        Groups::Nobody => {}
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

/// Where programs look for control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Each directory in the place that its hierarchy has by custom: in a directory of version 1's, or as
/// version 2's only one.
fn each_group(dirs: &[(&Path, &Path)]) -> Vec<Value> {
    let place = |mount: &Path| match mount.strip_prefix(CGROUPS) {
        Ok(name) if name.as_os_str().is_empty() => Path::new(CGROUPS).to_owned(),
        _ => Path::new(CGROUPS).join(mount.file_name().unwrap_or_default()),
    };
    let mut mounts = Vec::new();
    if dirs.iter().all(|(_, mount)| place(mount) != Path::new(CGROUPS)) {
        mounts.push(json!({ "destination": CGROUPS, "type": "tmpfs", "source": "tmpfs",
          "options": ["nosuid", "noexec", "nodev", "ro", "mode=755", "size=64k"] }));
    }
    mounts.extend(dirs.iter().map(|(dir, mount)| {
        json!({ "destination": place(mount), "type": "bind", "source": dir,
          "options": ["bind", "ro", "nosuid", "noexec", "nodev"] })
    }));
    mounts
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
            open_files: 4096,
            expendable: 500,
            criu: None,
            gvisor: false,
            groups: Groups::Runtime,
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
        assert_eq!(config["process"]["rlimits"][0]["hard"], 4096);
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
        let of = |gvisor| {
            let groups = if gvisor { Groups::Nobody } else { Groups::Runtime };
            config(&Container { gvisor, groups, ..container() })
        };
        let plain = of(false);
        assert!(plain["linux"]["namespaces"].to_string().contains("cgroup"));
        let mounts = plain["mounts"].as_array().expect("a list");
        let groups = mounts.iter().find(|mount| mount["destination"] == "/sys/fs/cgroup");
        let options = &groups.expect("mounted")["options"];
        assert!(options.as_array().expect("a list").contains(&json!("ro")), "{options}");
        assert!(!of(true)["mounts"].to_string().contains("/sys/fs/cgroup"));
    }

    #[test]
    fn groups_that_we_show_are_each_in_its_place_and_read_only() {
        let shown = |dirs: &[(&str, &str)]| {
            let dirs: Vec<_> = dirs.iter().map(|(d, m)| (Path::new(d), Path::new(m))).collect();
            let mounts = each_group(&dirs);
            let told = mounts.iter().map(|mount| {
                let bound = mount["type"] == "bind";
                assert!(!bound || mount["options"].to_string().contains("\"ro\""), "{mount}");
                let place = mount["destination"].as_str().expect("text").to_owned();
                (place, mount["source"].as_str().expect("text").to_owned())
            });
            told.collect::<Vec<_>>()
        };
        let pair = |place: &str, from: &str| (place.to_owned(), from.to_owned());
        let two = [
            ("/sys/fs/cgroup/memory/v/x", "/sys/fs/cgroup/memory"),
            ("/cg/cpu,cpuacct/v/x", "/cg/cpu,cpuacct"),
        ];
        let wanted = vec![
            pair(CGROUPS, "tmpfs"),
            pair("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/v/x"),
            pair("/sys/fs/cgroup/cpu,cpuacct", "/cg/cpu,cpuacct/v/x"),
        ];
        assert_eq!(shown(&two), wanted);
        let one = [("/sys/fs/cgroup/v/x", "/sys/fs/cgroup")];
        assert_eq!(shown(&one), [pair(CGROUPS, "/sys/fs/cgroup/v/x")]);
    }

    #[test]
    fn a_container_has_the_hosts_network_namespace_only_if_it_was_started_in_it() {
        let config = config(&container());
        let kinds = config["linux"]["namespaces"].to_string();
        assert!(!kinds.contains("network") && kinds.contains("pid"), "{kinds}");
    }
}
