//! What QEMU maps as guest memory.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use vhive_api::Bytes;

use crate::userfaultfd;

/// A file that QEMU opens as its guest's memory, and what makes QEMU treat it as wanted.
#[derive(Debug)]
pub(super) struct Backing {
    pub(super) file: OwnedFd,
    /// Whether what the guest writes goes into the file.
    pub(super) shared: bool,
    pub(super) environment: Vec<OsString>,
    pub(super) inherit: Vec<OwnedFd>,
}

impl Backing {
    /// Empty memory; for us it is the guest's memory as a file.
    ///
    /// # Errors
    /// Any error of making the file.
    pub(super) fn fresh(size: Bytes) -> io::Result<Self> {
        Ok(Self {
            file: in_memory(size)?,
            shared: true,
            environment: Vec::new(),
            inherit: Vec::new(),
        })
    }

    /// A snapshot's memory, copied on write; the host's kernel pages it in. QEMU can only read the
    /// file.
    ///
    /// # Errors
    /// Any error of making what is needed.
    pub(super) fn mapped(size: Bytes, memory: File, shim: &Shim) -> io::Result<Self> {
        let mut backing = Self::shimmed(size, shim)?;
        backing.give("VHIVE_UFFD_MAP_FD", memory.into());
        Ok(backing)
    }

    /// Memory that a pager serves: QEMU sends its userfaultfd over the other end of `socket`.
    ///
    /// # Errors
    /// Any error of making what is needed.
    pub(super) fn served(size: Bytes, socket: OwnedFd, shim: &Shim) -> io::Result<Self> {
        let mut backing = Self::shimmed(size, shim)?;
        backing.give("VHIVE_UFFD_DEV_FD", File::open(userfaultfd::DEVICE)?.into());
        backing.give("VHIVE_UFFD_SOCK_FD", socket);
        Ok(backing)
    }

    /// A file that QEMU opens in vain: the preloaded library puts something else in its place.
    fn shimmed(size: Bytes, shim: &Shim) -> io::Result<Self> {
        let file = in_memory(size)?;
        let status = rustix::fs::fstat(&file)?;
        let library = shim.0.try_clone()?;
        let environment = vec![
            format!("LD_PRELOAD=/proc/self/fd/{}", library.as_raw_fd()).into(),
            format!("VHIVE_UFFD_MEM_INODE={}:{}", status.st_dev, status.st_ino).into(),
        ];
        Ok(Self { file, shared: false, environment, inherit: vec![library] })
    }

    /// Lets QEMU inherit a descriptor, and tells the library its number.
    fn give(&mut self, name: &str, fd: OwnedFd) {
        self.environment.push(format!("{name}={}", fd.as_raw_fd()).into());
        self.inherit.push(fd);
    }
}

/// The library that is preloaded into QEMU, in memory: no path of it could be replaced.
#[derive(Debug)]
pub(super) struct Shim(OwnedFd);

impl Shim {
    /// # Errors
    /// Any error of making the file.
    pub(super) fn new() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(rustix::fs::memfd_create("vhive-uffd-shim", flags)?);
        file.write_all(include_bytes!(env!("VHIVE_UFFD_SHIM")))?;
        let all = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, all)?;
        Ok(Self(file.into()))
    }
}

/// A file in memory of that size, without content.
fn in_memory(size: Bytes) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("vhive-guest", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, size.0)?;
    Ok(file)
}
