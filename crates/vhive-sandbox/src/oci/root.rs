//! Looking into a function's image from the host. It is hostile: no link in it leads out of it, no
//! special file holds anybody up, and no file is read beyond a bound.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat2};
use rustix::io::Errno;

/// A mounted image.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

/// What is at a path, if no link is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum There {
    Nothing,
    /// With its mode, user and group.
    Directory(Owned),
    /// A link on the way to it, or something that is no directory.
    Other,
}

/// Whose something is, and what its owner, the group and others may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Root {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(open(dir, flags, Mode::empty())?))
    }

    fn find(
        &self,
        path: &Path,
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> rustix::io::Result<OwnedFd> {
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // The kernel asks to try again when something is renamed meanwhile, which here nothing is.
        openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// What a path leads to, links followed as from inside.
    pub(super) fn stat(&self, path: &Path) -> io::Result<Stat> {
        Ok(fstat(self.find(path, OFlags::PATH, ResolveFlags::empty())?)?)
    }

    /// Whether a path leads to a directory; an error if it leads nowhere.
    pub(super) fn is_directory(&self, path: &Path) -> io::Result<bool> {
        Ok(FileType::from_raw_mode(self.stat(path)?.st_mode) == FileType::Directory)
    }

    /// What is at a path itself.
    pub(super) fn look(&self, path: &Path) -> io::Result<There> {
        let found = self.find(path, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS);
        let found = match found {
            Ok(found) => fstat(found)?,
            Err(Errno::NOENT) => return Ok(There::Nothing),
            Err(Errno::LOOP | Errno::NOTDIR) => return Ok(There::Other),
            Err(error) => return Err(error.into()),
        };
        Ok(match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => There::Directory(Owned {
                mode: found.st_mode & 0o7777,
                uid: found.st_uid,
                gid: found.st_gid,
            }),
            _ => There::Other,
        })
    }

    /// A directory in this one, to look into by its name alone.
    pub(super) fn enter(&self, name: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        Ok(Self(self.find(name, flags, ResolveFlags::NO_SYMLINKS)?))
    }

    /// Whether there is anything at a path, links followed as from inside.
    pub(super) fn has(&self, path: &Path) -> io::Result<bool> {
        match self.stat(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A file's text, or nothing: images without users have none.
    pub(super) fn text(&self, path: &Path, most: u64) -> String {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let Ok(file) = self.find(path, flags, ResolveFlags::empty()) else { return String::new() };
        let file = File::from(file);
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return String::new();
        }
        let mut bytes = Vec::new();
        match file.take(most).read_to_end(&mut bytes) {
            Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(_) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_leads_out_of_an_image_or_holds_anybody_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        fs::create_dir_all(image.join("etc/real")).expect("made");
        fs::write(dir.path().join("secret"), "secret").expect("written");
        fs::write(image.join("etc/passwd"), "root").expect("written");
        symlink("../secret", image.join("up")).expect("linked");
        symlink("/etc/passwd", image.join("absolute")).expect("linked");
        symlink("loop", image.join("loop")).expect("linked");
        symlink("etc", image.join("link")).expect("linked");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            image.join("fifo"),
            FileType::Fifo,
            Mode::from(0o666),
            0,
        )
        .expect("made");
        let root = Root::open(&image).expect("opened");
        let text = |path: &str| root.text(Path::new(path), 3);
        assert_eq!((text("/etc/passwd"), text("/absolute")), ("roo".to_owned(), "roo".to_owned()));
        for path in ["/up", "/../secret", "/loop", "/fifo", "/etc", "/missing"] {
            assert_eq!(text(path), "", "{path}");
        }
        let look = |path: &str| root.look(Path::new(path)).expect("looked");
        assert!(matches!(look("/etc/real"), There::Directory(Owned { mode: 0o755, .. })));
        for path in ["/link/real", "/link", "/etc/passwd/x", "/fifo", "/loop/x"] {
            assert_eq!(look(path), There::Other, "{path}");
        }
        assert_eq!(look("/etc/none/deeper"), There::Nothing);
        assert!(root.is_directory(Path::new("/link/real")).expect("there"));
        assert!(root.is_directory(Path::new("/up")).is_err());
    }
}
