//! Files of a trace that are there whole, or not at all: one that is cut at a line's end would be read as a
//! smaller trace.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file under another name, `<name>.part`, until it is whole. One that is dropped before is removed.
#[derive(Debug)]
pub(super) struct Whole {
    out: BufWriter<File>,
    draft: Draft,
}

/// Its names, without the file being open.
#[derive(Debug)]
pub(super) struct Draft {
    path: PathBuf,
    /// None of what is no file, such as a pipe: that is written to as it is.
    draft: Option<PathBuf>,
}

impl Whole {
    pub(super) fn begin(path: &Path) -> io::Result<Self> {
        let is_link = fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink());
        // Such as `/dev/stdout`: whoever opened that file holds it, not its name.
        let is_open = is_link && ["/dev", "/proc"].iter().any(|dir| path.starts_with(dir));
        let is_file = !is_open && fs::metadata(path).map_or(true, |there| there.is_file());
        // A link stays one: what it leads to is replaced.
        let target = (is_link && is_file).then(|| fs::canonicalize(path));
        let path = &target.and_then(Result::ok).unwrap_or_else(|| path.to_owned());
        let draft = is_file.then(|| {
            let mut name = path.as_os_str().to_owned();
            name.push(OsString::from(".part"));
            PathBuf::from(name)
        });
        let out = BufWriter::new(File::create(draft.as_deref().unwrap_or(path))?);
        Ok(Self { out, draft: Draft { path: path.to_owned(), draft } })
    }

    /// All of it is written; its name it has not yet.
    pub(super) fn written(mut self) -> io::Result<Draft> {
        self.out.flush()?;
        Ok(self.draft)
    }

    /// It is whole: gives it its name.
    pub(super) fn done(self) -> io::Result<()> {
        self.written()?.name()
    }
}

impl Draft {
    fn name(mut self) -> io::Result<()> {
        if let Some(draft) = &self.draft {
            fs::rename(draft, &self.path)?;
        }
        self.draft = None;
        Ok(())
    }
}

impl Write for Whole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(draft) = &self.draft {
            let _ = fs::remove_file(draft);
        }
    }
}

/// Several are whole, of which `last` makes a trace of the others: there is none, rather than one of old and
/// new files.
pub(super) fn all_done(others: impl IntoIterator<Item = Whole>, last: Whole) -> io::Result<()> {
    let others: io::Result<Vec<Draft>> = others.into_iter().map(Whole::written).collect();
    name_all(others?, last.written()?)
}

/// As [`all_done`], for more than may be open at a time.
pub(super) fn name_all(others: impl IntoIterator<Item = Draft>, last: Draft) -> io::Result<()> {
    if last.draft.is_some() {
        match fs::remove_file(&last.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    others.into_iter().try_for_each(Draft::name)?;
    last.name()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let mut names: Vec<String> = fs::read_dir(dir).unwrap().flatten().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_that_is_not_whole_is_not_there_and_hurts_no_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        fs::write(&path, "old").unwrap();
        let mut cut = Whole::begin(&path).unwrap();
        cut.write_all(&[b'x'; 100_000]).unwrap();
        assert_eq!(names(dir.path()), ["a.csv", "a.csv.part"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        drop(cut);
        assert_eq!(names(dir.path()), ["a.csv"]);
        let mut whole = Whole::begin(&path).unwrap();
        whole.write_all(b"new").unwrap();
        whole.done().unwrap();
        assert_eq!(
            (names(dir.path()), fs::read_to_string(&path).unwrap()),
            (vec!["a.csv".to_owned()], "new".to_owned())
        );
    }

    #[test]
    fn a_trace_is_there_once_all_its_files_are() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "last"] {
            fs::write(dir.path().join(name), "old").unwrap();
        }
        let begin = |name: &str| Whole::begin(&dir.path().join(name)).unwrap();
        // Its name is taken by a directory meanwhile: it cannot be given it.
        let stuck = begin("b");
        fs::create_dir(dir.path().join("b")).unwrap();
        assert!(all_done([begin("a"), stuck], begin("last")).is_err());
        assert_eq!(names(dir.path()), ["a", "b"], "no trace of old and new files");
        fs::remove_dir(dir.path().join("b")).unwrap();
        all_done([begin("a"), begin("b")], begin("last")).unwrap();
        assert_eq!(names(dir.path()), ["a", "b", "last"]);
    }

    #[test]
    fn a_link_stays_one_and_what_it_leads_to_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let [link, target] = ["link", "target"].map(|name| dir.path().join(name));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink("target", &link).unwrap();
        let mut out = Whole::begin(&link).unwrap();
        out.write_all(b"new").unwrap();
        assert_eq!(names(dir.path()), ["link", "target", "target.part"]);
        out.done().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        // A file that is open, by the name of its descriptor: as standard output may be.
        let open = File::options().write(true).truncate(true).open(&target).unwrap();
        let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open));
        let mut out = Whole::begin(Path::new(&name)).unwrap();
        out.write_all(b"more").unwrap();
        assert_eq!(names(dir.path()), ["link", "target"]);
        out.done().unwrap();
        assert_eq!(open.metadata().unwrap().len(), 4, "it is the very file that was open");
    }

    #[test]
    fn what_is_no_file_is_written_to_as_it_is() {
        let mut out = Whole::begin(Path::new("/dev/null")).unwrap();
        out.write_all(b"x").unwrap();
        out.done().unwrap();
    }
}
