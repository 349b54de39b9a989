//! Function images on the host: each is mounted once, for as long as a container uses it.
//!
//! A mount outlives a killed node; the next one's sweep removes it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use vhive_api::SandboxId;

use super::command;
use crate::deadline::Deadline;
use crate::process::Exit;
use crate::run_dir::RunRoot;

/// The images that are mounted now.
#[derive(Debug, Default)]
pub(super) struct Images {
    mounted: Mutex<HashMap<PathBuf, Weak<Mounted>>>,
}

/// An image that is mounted. Dropping the last reference unmounts it.
#[derive(Debug)]
pub(super) struct Mounted {
    dir: PathBuf,
}

impl Images {
    /// Mounts a root file system, unless it is mounted.
    ///
    /// # Errors
    /// Whatever mounting fails with; nothing is left behind.
    pub(super) fn mount(&self, rootfs: &Path, root: &RunRoot) -> io::Result<Arc<Mounted>> {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = mounted.get(rootfs).and_then(Weak::upgrade) {
            return Ok(known);
        }
        mounted.retain(|_, image| image.strong_count() > 0);
        let image = Arc::new(Mounted::new(rootfs, &place(root))?);
        mounted.insert(rootfs.to_owned(), Arc::downgrade(&image));
        Ok(image)
    }
}

fn place(root: &RunRoot) -> PathBuf {
    root.dir().join("images")
}

impl Mounted {
    /// Under a name that nobody else uses, so that one that is being unmounted is not in the way.
    fn new(rootfs: &Path, place: &Path) -> io::Result<Self> {
        fs::create_dir_all(place)?;
        let dir = place.join(SandboxId::random().as_str());
        fs::create_dir(&dir)?;
        // From here on dropping it undoes what there is.
        let image = Self { dir };
        let flags = MountFlags::RDONLY.union(MountFlags::NODEV);
        match mount(rootfs, &image.dir, "erofs", flags, None) {
            Ok(()) => Ok(image),
            // Before Linux 6.12 a file cannot be mounted without a loop device.
            Err(Errno::NOTBLK) => loop_mount(rootfs, &image.dir).map(|()| image),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// How long `mount` may take, which looks for a free loop device.
const MOUNT: Duration = Duration::from_secs(15);

fn loop_mount(rootfs: &Path, dir: &Path) -> io::Result<()> {
    let options = ["-t", "erofs", "-o", "loop,ro,nodev"].map(OsString::from);
    let words = [&options[..], &[rootfs.into(), dir.into()]].concat();
    match command::run(Path::new("mount"), &words, Deadline::after(MOUNT))? {
        (Exit::Code(0), _) => Ok(()),
        (_, text) => Err(io::Error::other(text)),
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "image not unmounted");
        }
    }
}

/// Unmounts and removes one place.
fn remove(dir: &Path) -> io::Result<()> {
    match unmount(dir, UnmountFlags::DETACH) {
        // Not mounted.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what a killed node with this run root left mounted. Only for a node that holds the lock
/// on its state directory, before it starts anything.
///
/// # Errors
/// The first error; the other mounts have been dealt with nevertheless.
pub fn sweep(root: &RunRoot) -> io::Result<()> {
    let entries = match fs::read_dir(place(root)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut result = Ok(());
    for entry in entries {
        let removed = entry.and_then(|entry| remove(&entry.path()));
        result = result.and(removed);
    }
    result
}
