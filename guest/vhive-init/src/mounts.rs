//! File systems: first init's own, then the function's root and what the OCI runtime
//! specification promises inside it.
//!
//! # Source
//! OCI runtime-spec `config-linux.md` (default filesystems, devices, symbolic links).

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::umask;
use vhive_api::inside::USUAL_DIRECTORIES;

use crate::failure::{Failure, Step as _};
use crate::uevent::Uevents;

const ROOT_DISK: &str = "/dev/vda";

const NOSUID: MountFlags = MountFlags::NOSUID;
const NOEXEC: MountFlags = MountFlags::NOEXEC;
const NODEV: MountFlags = MountFlags::NODEV;

/// Mounts what init itself needs, inside the initramfs.
pub(crate) fn mount_early() -> Result<(), Failure> {
    let hard = NOSUID.union(NOEXEC).union(NODEV);
    attach("proc", "/proc", "proc", hard, "")?;
    attach("sysfs", "/sys", "sysfs", hard, "")?;
    attach("devtmpfs", "/dev", "devtmpfs", NOSUID.union(NOEXEC), "mode=0755")
}

/// Puts the function's root in place: the read-only image below, memory above. Afterwards `/` is
/// the function's root for init as well, and nothing of the initramfs can be reached.
pub(crate) fn mount_root(uevents: &Uevents) -> Result<(), Failure> {
    uevents.until(|| Path::new(ROOT_DISK).exists().then_some(()))?;
    let read_only = MountFlags::RDONLY.union(NODEV);
    attach(ROOT_DISK, "/image", "erofs", read_only, "")?;
    attach("tmpfs", "/changes", "tmpfs", MountFlags::empty(), "mode=0755")?;
    make_dir("/changes/upper")?;
    make_dir("/changes/work")?;
    // `volatile`: what is written dies with the guest, so nobody ever needs it synced.
    let layers = "lowerdir=/image,upperdir=/changes/upper,workdir=/changes/work,volatile";
    attach("overlay", "/root", "overlay", MountFlags::empty(), layers)?;
    let step = "switch to the function's root";
    rustix::process::chdir("/root").step(step)?;
    mount_move(".", "/").step(step)?;
    rustix::process::chroot(".").step(step)?;
    rustix::process::chdir("/").step(step)?;
    mount_inside()
}

fn mount_inside() -> Result<(), Failure> {
    let hard = NOSUID.union(NOEXEC).union(NODEV);
    attach("proc", "/proc", "proc", hard, "")?;
    attach("sysfs", "/sys", "sysfs", hard.union(MountFlags::RDONLY), "")?;
    attach("tmpfs", "/dev", "tmpfs", NOSUID, "mode=0755,size=65536k")?;
    make_devices()?;
    let terminals = "newinstance,ptmxmode=0666,mode=0620,gid=5";
    attach("devpts", "/dev/pts", "devpts", NOSUID.union(NOEXEC), terminals)?;
    attach("shm", "/dev/shm", "tmpfs", hard, "mode=1777")?;
    attach("mqueue", "/dev/mqueue", "mqueue", hard, "")?;
    make_usual_directories()
}

/// Makes the directories that programs expect, where the image has none.
pub(crate) fn make_usual_directories() -> Result<(), Failure> {
    for (path, mode) in USUAL_DIRECTORIES {
        if !Path::new(path).exists() {
            make_dir(path)?;
            fs::set_permissions(path, Permissions::from_mode(mode)).step(format!("make {path}"))?;
        }
    }
    Ok(())
}

fn make_devices() -> Result<(), Failure> {
    let devices = [
        ("/dev/null", 1, 3),
        ("/dev/zero", 1, 5),
        ("/dev/full", 1, 7),
        ("/dev/random", 1, 8),
        ("/dev/urandom", 1, 9),
        ("/dev/tty", 5, 0),
    ];
    let mode = Mode::from_raw_mode(0o666);
    let usual = umask(Mode::empty());
    for (path, major, minor) in devices {
        mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(major, minor))
            .step(format!("make {path}"))?;
    }
    umask(usual);
    for (target, path) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ] {
        symlink(target, path).step(format!("make {path}"))?;
    }
    Ok(())
}

fn attach(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    data: &str,
) -> Result<(), Failure> {
    make_dir(target)?;
    let data = std::ffi::CString::new(data).step(format!("mount {target}"))?;
    mount(source, target, kind, flags, &*data).step(format!("mount {target}"))
}

fn make_dir(path: &str) -> Result<(), Failure> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.step(format!("make directory {path}"))
}
