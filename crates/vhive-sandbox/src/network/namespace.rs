//! Network namespaces: made and entered by a thread, kept alive by a bind mount.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const OWN: &str = "/proc/thread-self/ns/net";

/// The namespace that the calling thread is in.
pub(super) fn current() -> io::Result<OwnedFd> {
    Ok(File::open(OWN)?.into())
}

/// Moves the calling thread.
pub(super) fn enter(namespace: impl AsFd) -> io::Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Moves the calling thread into a new, empty namespace and pins it at `path`.
pub(super) fn create(path: &Path) -> io::Result<OwnedFd> {
    File::create_new(path)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    mount_bind(OWN, path)?;
    current()
}

/// Undoes [`create`]'s pinning; the namespace goes when nobody is in it any more. Nothing there
/// is fine.
pub(super) fn unpin(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Does something inside a namespace on a thread of its own, so that the caller's thread need
/// not move.
pub(super) fn inside<T: Send>(
    namespace: impl AsFd + Sync,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("vhive-netns".to_owned());
        let handle = thread.spawn_scoped(scope, || {
            enter(namespace.as_fd())?;
            work()
        })?;
        handle.join().unwrap_or_else(|_| Err(io::Error::other("thread in namespace panicked")))
    })
}
