//! Where one Firecracker lives: a root directory of its own, and the files that are lent to it.
//!
//! ```text
//!   <sandbox dir>/jail/<program>/<id>/root     becomes `/` (by the jailer)
//!        api.sock   uffd.sock   metrics        made in it; the host sees them too
//!        log                                   a pipe, if the guest's init has standard output
//!        kernel  initrd  rootfs  memory  vmstate  empty here; bound to the real files in there
//! ```
//!
//! What is bound is bound in a mount namespace of the thread that spawns Firecracker: it is seen
//! by nobody else, costs no copy, works across file systems, and goes with its last process. That
//! namespace also takes `nodev` and `noexec` off the directory, which the host's `/run` usually
//! has and the jailer's device nodes cannot do with.
//!
//! # Source
//! Firecracker, `docs/jailer.md`; mount_namespaces(7).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_bind,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use vhive_api::SandboxId;

use crate::userfaultfd;

/// A root directory and what is lent into it. It is below the sandbox's directory and goes with it.
#[derive(Debug)]
pub(super) struct Jail {
    /// Under which everything of it lies.
    base: PathBuf,
    /// As the host sees it.
    root: PathBuf,
    /// Whether it becomes Firecracker's `/`.
    chroot: bool,
    uid: u32,
    /// What is bound where.
    bound: Vec<Bound>,
}

#[derive(Debug)]
struct Bound {
    what: PathBuf,
    place: PathBuf,
    device: bool,
}

/// The devices that Firecracker opens. The jailer makes nodes of them in the root directory;
/// without it, nodes of its own are bound over the host's, which often only root may open.
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/net/tun", userfaultfd::DEVICE];

impl Jail {
    /// Makes the directory. With the name of the program that the jailer starts, it lies where the
    /// jailer looks for it.
    ///
    /// # Errors
    /// Any I/O error.
    pub(super) fn build(
        dir: &Path,
        id: &SandboxId,
        jailed: Option<&OsStr>,
        uid: u32,
    ) -> io::Result<Self> {
        let base = dir.join("jail");
        let root = match jailed {
            Some(program) => base.join(program).join(id.as_str()).join("root"),
            None => base.clone(),
        };
        fs::create_dir_all(&root)?;
        let mut jail = Self { base, root, chroot: jailed.is_some(), uid, bound: Vec::new() };
        jail.give(&jail.root, 0o700)?;
        if !jail.chroot {
            jail.make_devices()?;
        }
        Ok(jail)
    }

    fn make_devices(&mut self) -> io::Result<()> {
        for device in DEVICES {
            let Ok(status) = fs::metadata(device) else { continue };
            let node = self.host(&device.replace('/', "-"));
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(CWD, &node, FileType::CharacterDevice, mode, status.rdev())?;
            self.give(&node, 0o600)?;
            let place = PathBuf::from(device);
            self.bound.push(Bound { what: node, place, device: true });
        }
        Ok(())
    }

    /// The jailer's `--chroot-base-dir`.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// A file of it as the host sees it.
    pub(super) fn host(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A file of it as Firecracker sees it.
    pub(super) fn inside(&self, name: &str) -> String {
        if self.chroot { format!("/{name}") } else { self.host(name).display().to_string() }
    }

    /// Lends a file for reading; call it before Firecracker is spawned.
    ///
    /// # Errors
    /// `PermissionDenied` if not everybody may read it; any other I/O error.
    pub(super) fn lend(&mut self, name: &str, file: &Path) -> io::Result<()> {
        if fs::metadata(file)?.mode() & 0o004 == 0 {
            let what = "closed to Firecracker's user: make it readable for everybody (chmod a+r)";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        }
        let place = self.host(name);
        File::create_new(&place)?;
        self.bound.push(Bound { what: file.to_owned(), place, device: false });
        Ok(())
    }

    /// Makes a file, or takes one that has been made, that Firecracker may write.
    ///
    /// # Errors
    /// Any I/O error.
    pub(super) fn own(&self, name: &str) -> io::Result<()> {
        let path = self.host(name);
        if !fs::exists(&path)? {
            File::create_new(&path)?;
        }
        self.give(&path, 0o600)
    }

    /// Makes a pipe with a name, and opens it for reading.
    ///
    /// # Errors
    /// Any I/O error.
    pub(super) fn pipe(&self, name: &str) -> io::Result<io::PipeReader> {
        let path = self.host(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        self.give(&path, 0o600)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(openat(CWD, &path, flags, Mode::empty())?.into())
    }

    fn give(&self, path: &Path, mode: u32) -> io::Result<()> {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.uid))
    }

    /// Does something in a mount namespace in which the directory is as it should be. The calling
    /// thread, which must be one of our own, leaves it again: it would keep alive whatever the host
    /// has mounted now, and unmounts later.
    ///
    /// # Errors
    /// Any I/O error; the thread is of no other use then.
    pub(super) fn within<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let outside = File::open("/proc/thread-self/ns/mnt")?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        self.mount()?;
        let done = work()?;
        move_into_link_name_space(outside.as_fd(), Some(LinkNameSpaceType::Mount))?;
        Ok(done)
    }

    /// Mounts what is wanted in the calling thread's new namespace.
    fn mount(&self) -> io::Result<()> {
        // What the host unmounts goes here too; what is mounted here stays here.
        let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", downstream)?;
        mount_bind(&self.base, &self.base)?;
        mount_remount(&self.base, MountFlags::BIND | MountFlags::NOSUID, "")?;
        for Bound { what, place, device } in &self.bound {
            mount_bind(what, place)?;
            if !device {
                let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOEXEC;
                mount_remount(place, MountFlags::BIND | MountFlags::NOSUID | flags, "")?;
            }
        }
        Ok(())
    }

    /// Has a Firecracker that runs already see a file under a name, and write it. The file becomes
    /// its own: it is to be copied and removed afterwards, since Firecracker may keep it open.
    ///
    /// # Errors
    /// Any I/O error; nothing is lent then.
    pub(super) fn lend_out(&self, to: Pid, name: &str, file: &Path) -> io::Result<Loan> {
        let place = self.host(name);
        if !fs::exists(&place)? {
            File::create_new(&place)?;
        }
        self.give(file, 0o600)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, file, flags)?;
        let (place, there) = (self.inside(name), self.inside(name));
        inside(to, move || {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            Ok(move_mount(tree.as_fd(), "", CWD, &there, flags)?)
        })?;
        Ok(Loan { to, place })
    }
}

/// A file lent for writing. Dropping it takes the name back.
#[derive(Debug)]
pub(super) struct Loan {
    to: Pid,
    place: String,
}

impl Drop for Loan {
    fn drop(&mut self) {
        let place = std::mem::take(&mut self.place);
        let back = inside(self.to, move || Ok(unmount(&place, UnmountFlags::DETACH)?));
        if let Err(error) = back {
            // It has ended, and with it the namespace.
            tracing::debug!(%error, "a file that was lent is not bound any more");
        }
    }
}

/// Does something in a process's mount namespace, where `/` is its own, on a thread of its own.
fn inside<T: Send + 'static>(
    pid: Pid,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{}/ns/mnt", pid.as_raw_nonzero()))?;
    let thread = std::thread::Builder::new().name("vhive-mount".to_owned()).spawn(move || {
        // A thread that shares its root directory with others may not change what it means.
        unshare(CloneFlags::CLONE_FS)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
        work()
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("thread in mount namespace panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_seen_under_the_name_that_firecracker_knows() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP a_file_is_seen_under_the_name_that_firecracker_knows: root");
            return;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let id = SandboxId::random();
        let jail = Jail::build(dir.path(), &id, Some(OsStr::new("firecracker")), 1_920_000_001);
        let jail = jail.expect("built");
        assert_eq!(jail.inside("memory"), "/memory");
        let root = format!("jail/firecracker/{id}/root");
        assert_eq!(jail.host("memory"), dir.path().join(root).join("memory"));
        let free = tempfile::tempdir().expect("a temporary directory");
        let free_jail = Jail::build(free.path(), &id, None, 1_920_000_001).expect("built");
        assert_eq!(free_jail.inside("memory"), free_jail.host("memory").display().to_string());
    }

    #[test]
    fn what_is_lent_is_seen_in_there_only_and_not_written() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP what_is_lent_is_seen_in_there_only_and_not_written: root");
            return;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let lent = dir.path().join("kernel-of-ours");
        fs::write(&lent, "content").expect("written");
        let mut jail =
            Jail::build(dir.path(), &SandboxId::random(), None, 1_920_000_001).expect("built");
        fs::set_permissions(&lent, fs::Permissions::from_mode(0o600)).expect("set");
        let error = jail.lend("kernel", &lent).expect_err("closed");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        fs::set_permissions(&lent, fs::Permissions::from_mode(0o644)).expect("set");
        jail.lend("kernel", &lent).expect("lent");
        let place = jail.host("kernel");
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let looked = jail.within(|| {
                    let read = fs::read_to_string(&place)?;
                    let written = fs::write(&place, "other").map_err(|error| error.kind());
                    Ok((read, written))
                })?;
                Ok::<_, io::Error>((looked, fs::read_to_string(&place)?))
            });
            let ((read, written), outside) = inside.join().expect("no panic").expect("mounted");
            assert_eq!((read.as_str(), outside.as_str()), ("content", ""));
            assert_eq!(written, Err(io::ErrorKind::ReadOnlyFilesystem));
        });
        assert_eq!(fs::read_to_string(&place).expect("readable"), "");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
        assert!(!mounts.contains(&dir.path().display().to_string()), "{mounts}");
    }
}
