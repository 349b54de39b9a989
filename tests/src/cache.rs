//! What decides how fast the host reads files: its page cache and its settings.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise, fdatasync};

/// Drops the files below a directory from the page cache, so that they are read from the disk
/// again. Files that are mapped at the time stay.
///
/// # Errors
/// When a directory cannot be listed or a file not be opened.
pub fn drop_files(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            match drop_files(&entry.path()) {
                // Snapshots come and go.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                dropped => dropped?,
            }
        } else if kind.is_file() {
            let file = match File::open(entry.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            fdatasync(&file)?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// A file of the kernel's with one value, put back when this is dropped.
#[derive(Debug)]
pub struct Setting {
    file: PathBuf,
    before: String,
}

impl Setting {
    /// Remembers what is set.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn keep(file: PathBuf) -> io::Result<Self> {
        let before = fs::read_to_string(&file)?.trim().to_owned();
        Ok(Self { file, before })
    }

    /// The readahead in KiB of the device that holds `dir`.
    ///
    /// # Errors
    /// When there is no such device.
    ///
    /// # Source
    /// `Documentation/ABI/stable/sysfs-block`: a partition shares the queue of its disk.
    pub fn readahead(dir: &Path) -> io::Result<Self> {
        let device = fs::metadata(dir)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let real = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))?;
        let whole = real.parent().unwrap_or(&real);
        let places = [&real, whole].map(|place| place.join("queue/read_ahead_kb"));
        let found = places.into_iter().find(|path| path.is_file());
        Self::keep(found.ok_or(io::ErrorKind::NotFound)?)
    }

    /// What was set before.
    #[must_use]
    pub fn before(&self) -> &str {
        &self.before
    }

    /// Sets a value.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses it.
    pub fn set(&self, value: &str) -> io::Result<()> {
        fs::write(&self.file, value)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = self.set(&self.before) {
            eprintln!("{} is not put back to {}: {error}", self.file.display(), self.before);
        }
    }
}
