//! `config.json`: a pure function of what is wanted.
//!
//! # Source
//! OCI runtime-spec 1.0.2, `config.md` and `config-linux.md`; the paths that are masked and the
//! capabilities are those of common container engines.

use std::path::Path;

use serde_json::{Value, json};
use vhive_api::Bytes;
use vhive_api::guest::Volume;

use super::layer::INIT;
use super::seccomp;

/// One container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Container<'a> {
    /// Its host name.
    pub(super) hostname: &'a str,
    /// Its control groups.
    pub(super) cgroup: &'a str,
    pub(super) limits: Option<Limits>,
    /// Most open files that the host lets anybody have.
    pub(super) open_files: u64,
    /// Where options of CRIU are; none for runtimes that it does not save.
    pub(super) criu: Option<&'a Path>,
    /// For gVisor, which has a kernel of its own.
    pub(super) gvisor: bool,
    /// Where the function's files are to be; init writes them.
    pub(super) volumes: &'a [Volume],
}

/// What it may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) memory: Bytes,
    pub(super) cpu_millis: u32,
    pub(super) tasks: u32,
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

/// Length of the period over which CPU time is limited, in microseconds: the kernel's default.
const PERIOD_US: u32 = 100_000;

/// Open files: the soft limit that old programs expect, and room for those that ask for more.
const OPEN_FILES: (u64, u64) = (1024, 1 << 19);

/// The file's content.
pub(super) fn config(container: &Container<'_>) -> Value {
    let Container { hostname, cgroup, limits, open_files, criu, gvisor, volumes } = container;
    let mut capabilities = CAPABILITIES.to_vec();
    capabilities.push("CAP_SYS_CHROOT");
    if *gvisor {
        // For init alone, which gives a clone its name: in gVisor's own kernel, not the host's.
        capabilities.push("CAP_SYS_ADMIN");
    }
    let hard = OPEN_FILES.1.min(*open_files);
    let namespaces = ["pid", "ipc", "uts", "mount"];
    let mut namespaces: Vec<Value> =
        namespaces.iter().map(|kind| json!({ "type": kind })).collect();
    if *gvisor {
        // The one that gVisor itself is started in. (The others take it without being told.)
        namespaces.push(json!({ "type": "network", "path": "/proc/self/ns/net" }));
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
    if let Some(limits) = limits {
        let quota = u64::from(limits.cpu_millis) * u64::from(PERIOD_US) / 1000;
        linux["resources"]["memory"] = json!({ "limit": limits.memory.0 });
        linux["resources"]["cpu"] = json!({ "quota": quota, "period": PERIOD_US });
        linux["resources"]["pids"] = json!({ "limit": limits.tasks });
    }
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": [INIT, "container"],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "rlimits": [
                { "type": "RLIMIT_NOFILE", "soft": OPEN_FILES.0.min(hard), "hard": hard },
            ],
            "noNewPrivileges": false,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": hostname,
        "mounts": mounts(volumes),
        "linux": linux,
    });
    if let Some(criu) = criu {
        config["annotations"] = json!({ "org.criu.config": criu });
    }
    config
}

fn mounts(volumes: &[Volume]) -> Value {
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
    // One may lie in another, which comes first.
    let mut paths: Vec<&str> = volumes.iter().map(|volume| volume.path.as_str()).collect();
    paths.sort_unstable();
    mounts.extend(paths.into_iter().map(|path| {
        json!({ "destination": path, "type": "tmpfs", "source": "tmpfs",
          "options": ["nosuid", "nodev", "mode=755"] })
    }));
    Value::Array(mounts)
}

/// No device but the harmless ones, which every runtime adds itself.
fn devices() -> Value {
    json!([{ "allow": false, "access": "rwm" }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> Container<'static> {
        let limits = Limits { memory: Bytes::mib(64), cpu_millis: 1500, tasks: 100 };
        Container {
            hostname: "abc",
            cgroup: "/vhive-1/abc",
            limits: Some(limits),
            open_files: 4096,
            criu: None,
            gvisor: false,
            volumes: &[],
        }
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
    fn a_container_has_the_hosts_network_namespace_only_if_it_was_started_in_it() {
        let config = config(&container());
        let kinds = config["linux"]["namespaces"].to_string();
        assert!(!kinds.contains("network") && kinds.contains("pid"), "{kinds}");
    }
}
