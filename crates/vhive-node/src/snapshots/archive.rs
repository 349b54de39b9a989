//! A snapshot as a tar archive: `manifest.json` first, then its files, then its working sets.
//!
//! An archive may come from anywhere: only the names that its manifest lists are read, each once,
//! with the length that it says, and nothing is used before every digest agrees. Holes stay holes.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tar::{Archive, Builder, Entry, EntryType};
use vhive_api::{Bytes, RuntimeName, SandboxId};
use vhive_sandbox::Snapshot;
use vhive_sandbox::snapshot::{MANIFEST, Manifest, OpenError};

use super::owners::{Deleted, KEPT};
use super::room::NoRoom;
use super::stored::{TOMBSTONE, WORKING_SET, remove_any, working_set};
use super::{KeepError, SnapshotId, SnapshotInfo, Snapshots, open};

/// Beginning of the name of a directory that an archive is read into.
pub(super) const IMPORT: &str = "import-";

/// Longest manifest, in bytes.
const MOST_MANIFEST: u64 = 1 << 20;
/// Lengths of all files together, holes included, in bytes.
const MOST_LENGTH: u64 = 256 << 30;
/// Working sets in an archive, and the highest number of one: the next recording takes the one behind it.
const MOST_WORKING_SETS: usize = 16;
const MOST_NUMBER: u32 = 1000;
/// Bytes read at a time; whole pages of zeros in it become holes.
const PIECE: usize = 64 << 10;
const PAGE: usize = 4096;
/// Bytes written after which the disk is looked at again: others write to it as well.
const STRETCH: u64 = 1 << 20;

/// Why a snapshot could not be written out.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is none by this name.
    #[error("snapshot {0} not found")]
    Unknown(SnapshotId),
    /// It could not be read, or the archive not written.
    #[error("snapshot not written out")]
    Copy(#[from] io::Error),
}

/// Why an archive was not taken in. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It broke off, or is no tar archive.
    #[error("archive cannot be read")]
    Read(#[source] io::Error),
    /// It could not be written to the store.
    #[error("archive not written to {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not an archive of a snapshot.
    #[error("not a snapshot's archive: {0}")]
    Content(String),
    /// What came out of it is no sound snapshot.
    #[error("archive does not hold a sound snapshot")]
    Unsound(#[source] OpenError),
    /// It is larger than all snapshots may be.
    #[error("archive holds more than node.snapshots.max_bytes = {0}")]
    TooLarge(Bytes),
    /// The disk would be too full. How much more of it there is, an archive does not tell.
    #[error(
        "archive not taken in: no room for more than the {taken} written so far, of {free} still free on the \
         disk of the snapshots {reserve} have to stay free; remove snapshots, or make room on that disk, and \
         import it again"
    )]
    NoRoom {
        /// What of it had been written, in bytes; it has been removed again.
        taken: Bytes,
        /// What was free beside that, in bytes.
        free: Bytes,
        /// What has to stay free, in bytes.
        reserve: Bytes,
    },
    /// There is one already, or it is just being taken.
    #[error("snapshot {0} is already there; remove it first")]
    Exists(SnapshotId),
}

impl Snapshots {
    /// Writes a snapshot as an archive.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export(&self, id: &SnapshotId, to: impl Write) -> Result<(), ExportError> {
        let hold = self.find(id).and_then(|stored| stored.hold());
        let hold = hold.ok_or(ExportError::Unknown(*id))?;
        let dir = hold.snapshot().dir();
        let mut archive = Builder::new(to);
        let sets = super::stored::working_sets(dir)?;
        let files = hold.snapshot().manifest().files.keys().cloned();
        let sets = sets.iter().map(|number| format!("{WORKING_SET}{number}"));
        for name in std::iter::once(MANIFEST.to_owned()).chain(files).chain(sets) {
            archive.append_file(&name, &mut File::open(dir.join(&name))?)?;
        }
        archive.finish()?;
        archive.into_inner()?.flush()?;
        Ok(())
    }

    /// Takes in an archive that [`Snapshots::export`] has written, here or elsewhere. Whether it
    /// fits this node shows when it is used.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import(&self, from: impl Read) -> Result<SnapshotInfo, ImportError> {
        let dir = self.0.dir.join(format!("{IMPORT}{}", SandboxId::random().as_str()));
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| ImportError::Write { path, source }
        };
        open::make_dir(&dir).map_err(write(&dir))?;
        let draft = Draft { dir: dir.clone() };
        let room = |needed| self.0.reserved.look(&self.0.dir, needed);
        let limits = &mut Limits::new(self.0.max_bytes, &room);
        draft.fill(from, limits, &|manifest| self.expects(manifest))?;
        let snapshot = Snapshot::open(&dir).map_err(ImportError::Unsound)?;
        snapshot.verify().map_err(ImportError::Unsound)?;
        let manifest = snapshot.manifest();
        let id = SnapshotId::of_owner(&manifest.owner, manifest.platform.runtime);
        let taking = self.begin_for(id, manifest.owner.clone(), Deleted::default());
        let mut taking = taking.ok_or(ImportError::Exists(id))?;
        // A failure here is not the revision's.
        taking.done = true;
        // It may well be here before its revision.
        File::create_new(dir.join(KEPT)).map_err(write(&dir))?;
        let place = self.place(&id);
        let beside = place.parent().unwrap_or(&self.0.dir);
        // Which removes the directory that it was alone in.
        self.make_room(&id);
        open::make_dir(beside).map_err(write(beside))?;
        let here = rustix::fs::CWD;
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(here, &dir, here, &place, flags).map_err(
            |error| match error {
                rustix::io::Errno::EXIST => ImportError::Exists(id),
                error => ImportError::Write { path: place.clone(), source: error.into() },
            },
        )?;
        let snapshot = Snapshot::open(&place).map_err(ImportError::Unsound)?;
        let stored = self.enter(id, snapshot, &taking.deleted).map_err(|error| match error {
            KeepError::Read(source) => ImportError::Write { path: place.clone(), source },
            error => ImportError::Write { path: place.clone(), source: io::Error::other(error) },
        })?;
        tracing::info!(snapshot = %id, "snapshot imported");
        Ok(self.info(&stored))
    }

    /// Whether an archive with this manifest would be taken in if its content is sound, as it looks now:
    /// nobody sends gigabytes to be told so behind them.
    fn expects(&self, manifest: &Manifest) -> Result<(), ImportError> {
        if !is_portable(manifest.platform.runtime) {
            let what = "what it would restore has rights on the host; it is for where it was taken";
            return Err(ImportError::Content(what.to_owned()));
        }
        let id = SnapshotId::of_owner(&manifest.owner, manifest.platform.runtime);
        let state = self.state();
        let is_there = state.entries.get(&id).is_some_and(|stored| stored.is_of_use());
        if is_there || state.taking.contains(&id) {
            return Err(ImportError::Exists(id));
        }
        Ok(())
    }
}

/// Whether a snapshot from elsewhere can do no more than a function. CRIU gives a process back what
/// its image says it had, and the image could say anything.
const fn is_portable(runtime: RuntimeName) -> bool {
    !matches!(runtime, RuntimeName::Runc | RuntimeName::Crun)
}

/// A directory that an archive is being read into; gone with its value unless it has been renamed.
struct Draft {
    dir: PathBuf,
}

impl Drop for Draft {
    fn drop(&mut self) {
        match remove_any(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %self.dir.display(), %error, "import not removed");
            }
            _ => {}
        }
    }
}

/// How much of an archive may be written.
struct Limits<'a> {
    most: u64,
    /// Left of it.
    left: u64,
    /// Left of what the disk has been found to have room for.
    seen: u64,
    room: &'a dyn Fn(Bytes) -> Result<(), NoRoom>,
}

impl<'a> Limits<'a> {
    fn new(most: u64, room: &'a dyn Fn(Bytes) -> Result<(), NoRoom>) -> Self {
        Self { most, left: most, seen: 0, room }
    }

    /// Counts what is about to be written, at most a stretch. What an archive takes up is not known before: it
    /// does not tell where pages of zeros are.
    fn take(&mut self, bytes: u64) -> Result<(), ImportError> {
        let left = self.left.checked_sub(bytes);
        let left = left.ok_or(ImportError::TooLarge(Bytes(self.most)))?;
        if self.seen < bytes {
            let taken = Bytes(self.most - self.left);
            (self.room)(Bytes(STRETCH)).map_err(|NoRoom { free, reserve, .. }| {
                ImportError::NoRoom { taken, free, reserve }
            })?;
            self.seen = STRETCH;
        }
        self.left = left;
        self.seen -= bytes;
        Ok(())
    }
}

impl Draft {
    /// Unpacks, never more than the archive's own manifest announces.
    /// `accept` is asked of that before anything else is read.
    fn fill(
        &self,
        from: impl Read,
        limits: &mut Limits<'_>,
        accept: &dyn Fn(&Manifest) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let bad = |what: String| Err(ImportError::Content(what));
        let mut archive = Archive::new(from);
        let mut manifest: Option<Manifest> = None;
        let mut sets = 0;
        for entry in archive.entries().map_err(ImportError::Read)? {
            let entry = entry.map_err(ImportError::Read)?;
            let name = name(&entry)?;
            let length = entry.size();
            let Some(known) = &manifest else {
                if name != MANIFEST || length > MOST_MANIFEST {
                    return bad(format!("it begins with {name:?} instead of {MANIFEST}"));
                }
                self.copy(entry, &name, limits)?;
                let read =
                    Manifest::read(&self.dir.join(MANIFEST)).map_err(ImportError::Unsound)?;
                let all = read.files.values().try_fold(0_u64, |all, f| all.checked_add(f.bytes));
                if read.files.keys().any(|name| name == KEPT || name == TOMBSTONE) {
                    return bad("it lists a file with the name of a mark".to_owned());
                }
                if all.is_none_or(|all| all > MOST_LENGTH) {
                    return bad("its files are too long".to_owned());
                }
                accept(&read)?;
                manifest = Some(read);
                continue;
            };
            if let Some(file) = known.files.get(&name) {
                if file.bytes != length {
                    return bad(format!("{name} has {length} bytes instead of {}", file.bytes));
                }
            } else if let Some(number) = working_set(&name) {
                if number > MOST_NUMBER {
                    return bad(format!("{name} has a number above {MOST_NUMBER}"));
                }
                sets += 1;
                if sets > MOST_WORKING_SETS || length > known.shape.memory.0.saturating_mul(2) {
                    return bad(format!("{name} is one working set too many, or too long"));
                }
            } else {
                return bad(format!("nobody needs {name:?}"));
            }
            self.copy(entry, &name, limits)?;
        }
        match manifest {
            Some(_) => Ok(()),
            None => bad("it is empty".to_owned()),
        }
    }

    /// Copies one file; pages of zeros become holes and count for nothing.
    fn copy(
        &self,
        mut from: impl Read,
        name: &str,
        limits: &mut Limits<'_>,
    ) -> Result<(), ImportError> {
        let path = self.dir.join(name);
        let failed = |source| ImportError::Write { path: path.clone(), source };
        // A name that comes twice is refused here.
        let mut file = File::create_new(&path).map_err(failed)?;
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        loop {
            let got = read_full(&mut from, &mut piece).map_err(ImportError::Read)?;
            if got == 0 {
                break;
            }
            for page in piece[..got].chunks(PAGE) {
                if page.iter().any(|byte| *byte != 0) {
                    limits.take(page.len() as u64)?;
                    file.seek(SeekFrom::Start(at)).map_err(failed)?;
                    file.write_all(page).map_err(failed)?;
                }
                at += page.len() as u64;
            }
        }
        file.set_len(at).and_then(|()| file.sync_all()).map_err(failed)
    }
}

/// The one plain name that an entry has.
fn name(entry: &Entry<'_, impl Read>) -> Result<String, ImportError> {
    let bad = |what: String| ImportError::Content(what);
    if !matches!(entry.header().entry_type(), EntryType::Regular | EntryType::GNUSparse) {
        return Err(bad("it holds something other than files".to_owned()));
    }
    let path = entry.path_bytes();
    let name = std::str::from_utf8(&path).ok().filter(|name| {
        !name.is_empty() && name.len() <= 64 && !name.starts_with('.') && !name.contains('/')
    });
    name.map(str::to_owned).ok_or_else(|| bad("it holds a file with a path".to_owned()))
}

/// Reads until the buffer is full or nothing more comes.
fn read_full(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match from.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::stored::allocated;
    use super::*;

    #[test]
    fn what_would_have_rights_on_the_host_is_not_taken_from_elsewhere() {
        let portable = [RuntimeName::Qemu, RuntimeName::Firecracker, RuntimeName::Runsc];
        assert!(portable.into_iter().all(is_portable));
        assert!(!is_portable(RuntimeName::Runc) && !is_portable(RuntimeName::Crun));
    }

    #[test]
    fn zeros_become_holes_and_count_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let draft = Draft { dir: dir.path().join("draft") };
        fs::create_dir(&draft.dir).unwrap();
        let mut bytes = vec![0; 1 << 20];
        bytes[5000] = 1;
        let mut limits = Limits::new(5000, &|_| Ok(()));
        draft.copy(&bytes[..], "memory", &mut limits).unwrap();
        assert_eq!(limits.left, 5000 - 4096);
        assert_eq!(fs::read(draft.dir.join("memory")).unwrap(), bytes);
        assert!(allocated(&draft.dir).unwrap() < 64 << 10);
        bytes.fill(1);
        let error = draft.copy(&bytes[..], "more", &mut limits).unwrap_err();
        assert!(matches!(error, ImportError::TooLarge(Bytes(5000))), "{error}");
    }

    #[test]
    fn an_archive_leaves_the_disk_the_room_that_others_need() {
        let dir = tempfile::tempdir().unwrap();
        let draft = Draft { dir: dir.path().join("draft") };
        fs::create_dir(&draft.dir).unwrap();
        // A disk with room for two stretches.
        let (asked, free) = (std::cell::Cell::new(0), 2 * STRETCH);
        let room = |needed: Bytes| {
            asked.set(asked.get() + needed.0);
            let (free, reserved, reserve) = (Bytes(free), Bytes(0), Bytes(0));
            let full = NoRoom { needed, free, reserved, reserve };
            if asked.get() <= free.0 { Ok(()) } else { Err(full) }
        };
        let mut limits = Limits::new(1 << 40, &room);
        let zeros = io::repeat(0).take(STRETCH);
        draft.copy(zeros, "zeros", &mut limits).unwrap();
        assert_eq!(asked.get(), 0, "they take up nothing");
        draft.copy(io::repeat(1).take(STRETCH), "first", &mut limits).unwrap();
        let error = draft.copy(io::repeat(1).take(2 * STRETCH), "memory", &mut limits).unwrap_err();
        let taken = Bytes(2 * STRETCH);
        assert!(matches!(error, ImportError::NoRoom { taken: t, .. } if t == taken), "{error}");
        let text = error.to_string();
        for part in ["no room", "2MiB written so far", "have to stay free", "import it again"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let written = fs::metadata(draft.dir.join("memory")).unwrap().len();
        assert_eq!(written, STRETCH, "nothing is written that there is no room for");
    }
}
