//! Working sets in a snapshot's directory: published by rename, found by number.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use vhive_api::Digest;

use super::WorkingSet;

const PREFIX: &str = "working-set.";

/// Why a working set was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The directory cannot be read.
    #[error("cannot list {0}")]
    List(PathBuf, #[source] io::Error),
    /// No name for the draft.
    #[error("no random numbers for the draft's name")]
    Random(#[source] io::Error),
    /// The draft cannot be written, for instance on a full disk. Nothing of it is left.
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    /// The draft cannot get its name. Nothing of it is left.
    #[error("cannot publish {0}")]
    Rename(PathBuf, #[source] io::Error),
}

/// The number of a working set by its file name; `None` for drafts and all else.
#[must_use]
pub fn number_of(file_name: &str) -> Option<u32> {
    let digits = file_name.strip_prefix(PREFIX)?;
    let canonical = digits == "0" || !digits.starts_with('0');
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if canonical && plain { digits.parse().ok() } else { None }
}

/// Writes `bytes` (of [`super::create`]) into `directory` as the next `working-set.<n>`. It appears complete and on
/// disk, or not at all; several at once get different numbers.
///
/// # Errors
/// What could not be done; the directory is as before then.
pub fn publish(directory: &Path, bytes: &[u8]) -> Result<PathBuf, PublishError> {
    let list = |error| PublishError::List(directory.to_owned(), error);
    let taken = numbers(directory).map_err(list)?.into_iter().max();
    let mut number = taken.map_or(1, |taken| taken.saturating_add(1));
    let draft = Draft::create(directory, number)?;
    let write = |error| PublishError::Write(draft.path.clone(), error);
    (&draft.file).write_all(bytes).map_err(write)?;
    draft.file.sync_all().map_err(write)?;
    loop {
        let path = directory.join(format!("{PREFIX}{number}"));
        match renameat_with(CWD, &draft.path, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => {
                let synced = File::open(directory).and_then(|directory| directory.sync_all());
                synced.map_err(|error| PublishError::Rename(path.clone(), error))?;
                return Ok(path);
            }
            Err(rustix::io::Errno::EXIST) if number < u32::MAX => number += 1,
            Err(errno) => return Err(PublishError::Rename(path, errno.into())),
        }
    }
}

/// A file that is removed unless it got its final name.
struct Draft {
    path: PathBuf,
    file: File,
}

impl Draft {
    fn create(directory: &Path, number: u32) -> Result<Self, PublishError> {
        let random =
            getrandom::u64().map_err(|error| PublishError::Random(io::Error::other(error)))?;
        let path = directory.join(format!("{PREFIX}{number}.draft-{random:016x}"));
        match File::create_new(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(PublishError::Write(path, error)),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already if it was renamed.
        let _ = fs::remove_file(&self.path);
    }
}

/// The working set with the highest number that can be used with this memory: understood, complete in length, and
/// of this digest. Its page data is checked when it is read.
///
/// # Errors
/// If the directory cannot be read. A file that cannot be used is passed over and reported in the log.
pub fn newest_valid(directory: &Path, memory: Digest) -> io::Result<Option<(PathBuf, WorkingSet)>> {
    let mut numbers = numbers(directory)?;
    numbers.sort_unstable();
    for number in numbers.into_iter().rev() {
        let path = directory.join(format!("{PREFIX}{number}"));
        let opened = WorkingSet::open(&path);
        match opened.and_then(|set| set.belongs_to(memory).map(|()| set)) {
            Ok(set) => return Ok(Some((path, set))),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(path = %path.display(), error, "working set is passed over");
            }
        }
    }
    Ok(None)
}

fn numbers(directory: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        numbers.extend(entry?.file_name().to_str().and_then(number_of));
    }
    Ok(numbers)
}
