//! What VMMs have in common that boot Linux guests.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::contract::chain;
use crate::kernel::{self, GuestKernel, KernelStore, StoreError};
use crate::runtime::HostLacks;

/// The installed guest kernel, open to VMMs without privileges, and the rate of this host's time
/// stamp counter in kHz.
///
/// # Errors
/// [`HostLacks`] names the first thing that is missing.
pub(crate) fn kernel(kernels: &KernelStore, vmm: &str) -> Result<(GuestKernel, u32), HostLacks> {
    let kernel = kernels.current().map_err(|error| match &error {
        StoreError::None(_) => lacks("no guest kernel".to_owned(), "run `vhive kernel install`"),
        _ => lacks(chain(&error), "run `vhive kernel install`"),
    })?;
    for file in [&kernel.vmlinux, &kernel.initramfs] {
        make_readable(file).map_err(|error| {
            let what = format!("{} is closed to {vmm}'s user ({error})", file.display());
            lacks(what, "make it readable for everybody: chmod a+r")
        })?;
    }
    let tsc_khz = kernel::tsc_khz().map_err(|error| {
        lacks(error.to_string(), "use a host whose time stamp counter is constant")
    })?;
    Ok((kernel, tsc_khz))
}

/// Lets everybody read a file, whatever umask it was made under: a VMM opens it as another user.
pub(crate) fn make_readable(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.mode();
    if mode & 0o004 == 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o444))?;
    }
    Ok(())
}

/// Whose `/dev/kvm` is and who may open it: another one once it has come, gone, or been given to
/// somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvmDevice(Option<(u64, u32, u32, u32)>);

impl KvmDevice {
    /// As it is now.
    pub(crate) fn now() -> Self {
        Self::at(Path::new("/dev/kvm"))
    }

    fn at(path: &Path) -> Self {
        let meta = fs::metadata(path).ok();
        Self(meta.map(|it| (it.rdev(), it.mode(), it.uid(), it.gid())))
    }
}

/// The release of the kernel that this host runs.
pub(crate) fn host_kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn lacks(what: String, fix: &str) -> HostLacks {
    HostLacks { what, fix: fix.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_comes_goes_or_is_opened_is_another_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("kvm");
        let gone = KvmDevice::at(&path);
        fs::write(&path, "").expect("written");
        let mode =
            |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        mode(0o600);
        let closed = KvmDevice::at(&path);
        mode(0o660);
        let open = KvmDevice::at(&path);
        assert!(gone != closed && closed != open && open == KvmDevice::at(&path));
        fs::remove_file(&path).expect("removed");
        assert_eq!(KvmDevice::at(&path), gone);
    }
}
