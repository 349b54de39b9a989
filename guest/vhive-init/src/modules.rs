//! Loads kernel modules from the initramfs, in the order that the host has worked out.
//!
//! `/modules/list` has one line per module: `channel <file>` for those needed before the host can
//! be spoken to, `root <file>` for the others, which load while the host prepares its answer.

use std::ffi::CStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::failure::{Failure, Step as _};

const DIRECTORY: &str = "/modules";

/// When a module is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Before the first message to the host.
    Channel,
    /// Before the root file system and the network are set up.
    Root,
}

/// The modules to load, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Modules(Vec<(Stage, String)>);

impl Modules {
    /// Reads the list; a guest kernel with everything built in has none.
    pub(crate) fn of_initramfs() -> Result<Self, Failure> {
        match fs::read_to_string(Path::new(DIRECTORY).join("list")) {
            Ok(text) => Self::parse(&text).step("read /modules/list"),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).step("read /modules/list"),
        }
    }

    /// What is no longer needed once everything has been loaded.
    pub(crate) fn into_files(self) -> Files {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, DIRECTORY, flags, Mode::empty()).ok();
        Files { dir, names: self.0.into_iter().map(|(_, file)| file).collect() }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let line = |line: &str| {
            let (stage, file) = line.split_once(' ').ok_or("a line without a stage")?;
            let stage = match stage {
                "channel" => Stage::Channel,
                "root" => Stage::Root,
                other => return Err(format!("unknown stage {other:?}")),
            };
            if file.is_empty() || file.contains('/') {
                return Err(format!("{file:?} is no file name"));
            }
            Ok((stage, file.to_owned()))
        };
        text.lines().map(line).collect::<Result<_, _>>().map(Self)
    }

    /// Loads those of one stage. A module that is already there is fine.
    pub(crate) fn load(&self, wanted: Stage) -> Result<(), Failure> {
        for (_, file) in self.0.iter().filter(|(stage, _)| *stage == wanted) {
            let step = || format!("load module {file}");
            let image = File::open(Path::new(DIRECTORY).join(file)).step(step())?;
            match rustix::system::finit_module(&image, no_parameters(), 0) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).step(step()),
            }
        }
        Ok(())
    }
}

/// The files of the initramfs' modules, to be removed when there is time: they are memory. Can be
/// used after the root has been switched.
#[derive(Debug)]
pub(crate) struct Files {
    dir: Option<OwnedFd>,
    names: Vec<String>,
}

impl Files {
    /// Removes them. Only memory is at stake, so a failure is not worth a word.
    pub(crate) fn remove(self) {
        let Some(dir) = self.dir else { return };
        for name in self.names {
            let _ = unlinkat(&dir, name, AtFlags::empty());
        }
    }
}

const fn no_parameters() -> &'static CStr {
    c""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_in_order() {
        let list = Modules::parse("channel virtio.ko\nroot erofs.ko\n").unwrap();
        let expected =
            [(Stage::Channel, "virtio.ko".to_owned()), (Stage::Root, "erofs.ko".to_owned())];
        assert_eq!(list.0, expected);
    }

    #[test]
    fn odd_lists_are_refused() {
        for text in ["virtio.ko", "late x.ko", "root ", "root ../x.ko", "root /x.ko", "\n"] {
            assert!(Modules::parse(text).is_err(), "{text:?}");
        }
    }
}
