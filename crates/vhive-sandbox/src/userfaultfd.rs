//! The device that makes userfaultfds: without one no pager serves a clone's memory.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::io::Errno;
use vhive_api::MemoryMode;

use crate::runtime::HostLacks;

/// Makes userfaultfds for whoever has it open.
///
/// # Source
/// Linux `Documentation/admin-guide/mm/userfaultfd.rst`: it is there from 6.1 on.
pub(crate) const DEVICE: &str = "/dev/userfaultfd";

/// The modes of a runtime whose clones a pager can serve, as the host is now.
pub(crate) fn memory_modes() -> &'static [MemoryMode] {
    let all = &[MemoryMode::File, MemoryMode::Lazy, MemoryMode::Record, MemoryMode::Prefetch];
    if lacks().is_none() { all } else { &all[..1] }
}

/// Why such a runtime does not offer this mode, if so.
pub(crate) fn lacks_for(mode: MemoryMode) -> Option<HostLacks> {
    if mode == MemoryMode::File { None } else { lacks() }
}

/// Why no userfaultfd can be made here, if so. Found out each time: a device may come, and that this process
/// had too many files open a moment ago says nothing of the host.
pub(crate) fn lacks() -> Option<HostLacks> {
    lacks_at(Path::new(DEVICE))
}

fn lacks_at(device: &Path) -> Option<HostLacks> {
    let error = File::open(device).err()?;
    let what = format!("{} cannot be opened: {error}", device.display());
    Some(HostLacks { what, fix: fix(&error).to_owned() })
}

fn fix(error: &io::Error) -> &'static str {
    let errno = Errno::from_io_error(error);
    if errno == Some(Errno::MFILE) || errno == Some(Errno::NFILE) {
        return "raise the limit of open files (`ulimit -n`, or LimitNOFILE of the service)";
    }
    if errno == Some(Errno::NXIO) || errno == Some(Errno::NODEV) {
        return "use Linux 6.1 or newer with CONFIG_USERFAULTFD: this kernel has no such device";
    }
    match error.kind() {
        ErrorKind::NotFound => {
            "use Linux 6.1 or newer with CONFIG_USERFAULTFD; in a container, pass the device to it \
             (`--device /dev/userfaultfd`)"
        }
        ErrorKind::PermissionDenied => {
            "allow root to open it; in a container, pass the device to it \
             (`--device /dev/userfaultfd`)"
        }
        _ => "look what lies there: it has to be the device of Linux 6.1 or newer",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_device_that_comes_is_noticed_and_one_that_goes_as_well() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let device = dir.path().join("userfaultfd");
        for _ in 0..2 {
            let lacks = lacks_at(&device).expect("missing");
            assert!(lacks.what.starts_with(&device.display().to_string()), "{lacks}");
            assert!(lacks.what.contains("No such file"), "{lacks}");
            assert!(lacks.fix.contains("--device"), "{lacks}");
            fs::write(&device, b"").expect("written");
            assert_eq!(lacks_at(&device), None);
            fs::remove_file(&device).expect("removed");
        }
    }

    #[test]
    fn each_reason_has_its_fix() {
        let cases = [
            (Errno::NOENT, "pass the device"),
            (Errno::ACCESS, "allow root"),
            (Errno::PERM, "allow root"),
            (Errno::MFILE, "limit of open files"),
            (Errno::NFILE, "limit of open files"),
            (Errno::NXIO, "CONFIG_USERFAULTFD"),
            (Errno::NODEV, "CONFIG_USERFAULTFD"),
            (Errno::LOOP, "look what lies there"),
        ];
        for (errno, part) in cases {
            let fix = fix(&errno.into());
            assert!(fix.contains(part), "{errno}: {fix}");
        }
    }
}
