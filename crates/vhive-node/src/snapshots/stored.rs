//! One snapshot of the store: whether it is sound, who uses it, and its end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::Notify;
use vhive_api::SandboxId;
use vhive_sandbox::snapshot::{Blame, MANIFEST, Mismatch, OpenError};
use vhive_sandbox::{Deadline, Snapshot};

use super::SnapshotId;
use super::owners::KEPT;
use crate::start::{Facts, panic_text};

/// Beginning of a working set's name.
pub(super) const WORKING_SET: &str = "working-set.";

/// Beginning of the name of what is about to be deleted.
pub(super) const REMOVED: &str = "removed-";

/// In a snapshot's directory: it is removed and only waits for its last user.
pub(super) const TOMBSTONE: &str = "removed";

/// Doubts in a row after which a snapshot is held to be at fault: three failures, or twelve that may as well be
/// the host's.
const MOST_DOUBTS: u32 = 12;

/// How much a failure makes a snapshot doubted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Something else would have gone well.
    Strong = 4,
    /// The host may have been too slow, or lacked something.
    Weak = 1,
}

/// A snapshot with what the node knows about it.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(super) id: SnapshotId,
    pub(super) snapshot: Snapshot,
    /// The store's directory, where it goes to be deleted.
    root: PathBuf,
    state: Mutex<State>,
    /// Notified when a verdict is there.
    judged: Condvar,
    /// Told of the same.
    told: Notify,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each holds or not, whatever the others do")]
pub(super) struct State {
    pub(super) verdict: Verdict,
    /// Of the files of which it is known that they are sound.
    stamps: Option<Stamps>,
    pub(super) stale: Option<Mismatch>,
    /// The runtime itself has said so when it was to restore it: no comparison takes that back.
    refused: bool,
    /// It may outlive its revision.
    pub(super) kept: bool,
    pub(super) working_sets: BTreeSet<u32>,
    /// Allocated on disk.
    pub(super) bytes: u64,
    pub(super) used: Timestamp,
    pub(super) missed: bool,
    /// Starts by prefetching that have missed too much since the last recording.
    misses: u32,
    pub(super) clones: u32,
    /// How often it has been read, and why that failed the last time it did.
    tried: u64,
    trouble: String,
    doubts: u32,
    /// When the last failure was counted.
    doubted: Option<Instant>,
    holds: u32,
    doomed: bool,
}

impl State {
    fn is_pending(&self) -> bool {
        matches!(self.verdict, Verdict::Unread | Verdict::Reading)
    }

    pub(super) fn is_held(&self) -> bool {
        self.holds > 0
    }
}

/// What is known of its files' content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has been there before this node.
    Unread,
    /// Somebody is reading it.
    Reading,
    /// It is what its manifest says.
    Sound,
    /// It is not.
    Damaged(String),
}

impl Stored {
    /// A snapshot at its place. `sound`: this process has written it.
    pub(super) fn new(
        id: SnapshotId,
        snapshot: Snapshot,
        root: &Path,
        sound: bool,
    ) -> io::Result<Arc<Self>> {
        let modified = fs::metadata(snapshot.dir())?.modified()?;
        let state = State {
            stamps: sound.then(|| stamps(&snapshot)).flatten(),
            verdict: if sound { Verdict::Sound } else { Verdict::Unread },
            stale: None,
            refused: false,
            kept: snapshot.dir().join(KEPT).exists(),
            working_sets: working_sets(snapshot.dir())?,
            bytes: allocated(snapshot.dir())?,
            used: Timestamp::try_from(modified).unwrap_or(Timestamp::UNIX_EPOCH),
            missed: false,
            misses: 0,
            clones: 0,
            tried: 0,
            trouble: String::new(),
            doubts: 0,
            doubted: None,
            holds: 0,
            doomed: false,
        };
        let (state, judged, told) = (Mutex::new(state), Condvar::new(), Notify::new());
        Ok(Arc::new(Self { id, snapshot, root: root.to_owned(), state, judged, told }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn facts(&self) -> Facts {
        let state = self.state();
        let working_sets = u32::try_from(state.working_sets.len()).unwrap_or(u32::MAX);
        Facts { working_sets, missed: state.missed, misses: state.misses }
    }

    /// Whether a start may still come from it, as far as is known.
    pub(crate) fn is_of_use(&self) -> bool {
        let state = self.state();
        !state.doomed && state.stale.is_none()
    }

    /// Keeps the files in place while the value lives; none if they are about to go.
    pub(crate) fn hold(self: &Arc<Self>) -> Option<Hold> {
        let mut state = self.state();
        if state.doomed {
            return None;
        }
        state.holds += 1;
        drop(state);
        Some(Hold(Arc::clone(self)))
    }

    /// Counts a living clone.
    pub(crate) fn clone_token(self: &Arc<Self>) -> CloneToken {
        self.state().clones += 1;
        CloneToken(Arc::clone(self))
    }

    /// Whether the content is what the manifest says, as far as a [`Readers`](super::readers::Readers) finds
    /// out before the deadline. `tried` is what [`Stored::tried`] said before it was asked to.
    ///
    /// # Errors
    /// What is damaged; or that it is not known (yet), and why.
    pub(super) fn verdict(&self, tried: u64, deadline: Deadline) -> Result<(), Unsound> {
        let mut state = self.state();
        loop {
            match &state.verdict {
                Verdict::Sound => return Ok(()),
                Verdict::Damaged(what) => return Err(Unsound::Damaged(what.clone())),
                Verdict::Unread if state.tried != tried => {
                    return Err(Unsound::Unread(state.trouble.clone()));
                }
                Verdict::Unread | Verdict::Reading if state.doomed => {
                    return Err(Unsound::Unread("it is being removed".to_owned()));
                }
                Verdict::Unread | Verdict::Reading if deadline.passed() => {
                    return Err(Unsound::NotYet);
                }
                Verdict::Unread | Verdict::Reading => {
                    let waited = self.judged.wait_timeout(state, deadline.left());
                    state = waited.map_or_else(|e| e.into_inner().0, |(state, _)| state);
                }
            }
        }
    }

    /// How often it has been read.
    pub(super) fn tried(&self) -> u64 {
        self.state().tried
    }

    /// Looks whether a file has been written since it was read: then it is to be read again.
    pub(super) fn notice_writes(&self) {
        let found = stamps(&self.snapshot);
        let mut state = self.state();
        if state.verdict == Verdict::Sound && state.stamps != found {
            tracing::warn!(snapshot = %self.id, "its files have been written; reading them");
            state.verdict = Verdict::Unread;
        }
    }

    /// Whether it has not been read and nobody is at it.
    pub(super) fn is_unread(&self) -> bool {
        self.state().verdict == Verdict::Unread
    }

    /// Whether it has not been read to its end.
    pub(super) fn is_pending(&self) -> bool {
        self.state().is_pending()
    }

    /// Resolves when it has been read, or tried to be since `tried`, or is about to go.
    pub(super) async fn judged(&self, tried: u64) {
        loop {
            let told = self.told.notified();
            {
                let state = self.state();
                if !state.is_pending() || state.tried != tried || state.doomed {
                    return;
                }
            }
            told.await;
        }
    }

    /// Reads it as long as that is wanted. It may go meanwhile: nobody whose place it has waits for a reader.
    /// To be followed by [`Stored::judge`]; none if somebody has read it, or it is about to go.
    pub(super) fn read(&self, wanted: &dyn Fn() -> bool) -> Option<Read> {
        // From before it is read: what is written meanwhile shows next time.
        let found = stamps(&self.snapshot);
        {
            let mut state = self.state();
            if state.doomed || state.verdict != Verdict::Unread {
                return None;
            }
            state.verdict = Verdict::Reading;
            state.stamps = found;
        }
        let wanted = || wanted() && !self.state().doomed;
        let read = catch_unwind(AssertUnwindSafe(|| self.snapshot.verify_while(&wanted)));
        if self.state().doomed {
            // Whatever it has seen may have been another's.
            return Some(Read::Failed(Blame::Host, "it is being removed".to_owned()));
        }
        Some(match read {
            Ok(Ok(())) => Read::Sound,
            Ok(Err(error)) if error.blame() == Blame::Snapshot => Read::Damaged(chain(&error)),
            Ok(Err(error)) => Read::Failed(error.blame(), chain(&error)),
            Err(panic) => Read::Failed(Blame::Either, panic_text(&*panic)),
        })
    }

    /// Tells whoever waits what has been read.
    pub(super) fn judge(&self, read: Read) {
        let mut state = self.state();
        state.tried += 1;
        state.verdict = match read {
            Read::Sound => Verdict::Sound,
            Read::Damaged(why) => Verdict::Damaged(why),
            Read::Failed(_, why) => {
                state.trouble = why;
                Verdict::Unread
            }
        };
        drop(state);
        self.judged.notify_all();
        self.told.notify_waiters();
    }

    /// Whether every file is still there and as long as it was; costs a few system calls.
    pub(super) fn look(&self) -> Result<(), OpenError> {
        let found = Snapshot::open(self.snapshot.dir())?;
        if found.manifest() == self.snapshot.manifest() {
            return Ok(());
        }
        let path = self.snapshot.dir().join(MANIFEST);
        Err(OpenError::Damaged { path, what: "it has been replaced".to_owned() })
    }

    /// Notes in what it does not fit this node now, if in anything; true if it is of use no more, or again.
    pub(super) fn set_fit(&self, found: Option<Mismatch>) -> bool {
        let mut state = self.state();
        if state.refused {
            return false;
        }
        let news = state.stale.is_some() != found.is_some();
        match &found {
            Some(mismatch) if news => {
                tracing::warn!(snapshot = %self.id, %mismatch, "snapshot is stale");
            }
            None if news => tracing::info!(snapshot = %self.id, "snapshot fits again"),
            _ => {}
        }
        state.stale = found;
        news
    }

    /// The runtime says that it does not fit: it is not used any more.
    pub(crate) fn refuse(&self, mismatch: Mismatch) {
        tracing::warn!(snapshot = %self.id, %mismatch, "snapshot is stale");
        let mut state = self.state();
        state.refused = true;
        state.stale = Some(mismatch);
    }

    /// A restore succeeded.
    pub(crate) fn succeeded(&self) {
        let mut state = self.state();
        state.doubts = 0;
        state.used = Timestamp::now();
    }

    /// Something that began then has failed for a reason that need not be the snapshot's. True when that
    /// has happened too often in a row. What began before an earlier failure had been counted does not count: of
    /// many at once, one does.
    pub(crate) fn failed(&self, began: Instant, doubt: Doubt) -> bool {
        let mut state = self.state();
        if state.doubted.is_none_or(|counted| counted <= began) {
            state.doubted = Some(Instant::now());
            state.doubts += doubt as u32;
        }
        state.doubts >= MOST_DOUBTS
    }

    /// The number of the newest working set.
    pub(crate) fn newest(&self) -> Option<u32> {
        self.state().working_sets.last().copied()
    }

    /// Notes whether a start by prefetching missed too many pages; true if that is news. `newest` was the
    /// newest working set when that start was decided: of an older one nobody wants to know any more.
    pub(crate) fn set_missed(&self, newest: Option<u32>, missed: bool) -> bool {
        let mut state = self.state();
        if missed && newest < state.working_sets.last().copied() {
            return false;
        }
        let news = missed && !state.missed;
        state.missed = missed;
        state.misses = state.misses.saturating_add(missed.into());
        news
    }

    /// It has been recorded (again): what has missed before says nothing of that.
    pub(crate) fn recorded(&self) {
        let mut state = self.state();
        (state.missed, state.misses) = (false, 0);
    }

    /// Notes on disk, for the next node, that it was used now; and how large it has become.
    pub(crate) fn settle(self: &Arc<Self>) {
        // Once it has gone, another may lie in its place.
        let Some(hold) = self.hold() else { return };
        let dir = hold.snapshot().dir();
        let touched =
            File::open(dir).and_then(|dir| dir.set_modified(std::time::SystemTime::now()));
        let sets = touched.and_then(|()| Ok((working_sets(dir)?, allocated(dir)?)));
        match sets {
            Ok((sets, bytes)) => {
                let mut state = self.state();
                (state.working_sets, state.bytes) = (sets, bytes);
            }
            Err(error) => tracing::debug!(dir = %dir.display(), %error, "snapshot not looked at"),
        }
    }

    /// Removes its working sets up to this one, so that the next start records afresh. What others have
    /// recorded since that one was used stays.
    pub(crate) fn forget_working_sets(self: &Arc<Self>, newest: Option<u32>) {
        let Some(newest) = newest else { return };
        // Once it has gone, another may lie in its place, with working sets of the same numbers.
        let Some(_hold) = self.hold() else { return };
        let gone = {
            let mut state = self.state();
            state.misses = 0;
            let later = state.working_sets.split_off(&(newest.saturating_add(1)));
            std::mem::replace(&mut state.working_sets, later)
        };
        for number in gone {
            let path = self.snapshot.dir().join(format!("{WORKING_SET}{number}"));
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "working set not removed");
            }
        }
    }

    /// Removes it: at once, or when its last user is done. From now on nobody gets hold of it.
    pub(super) fn doom(&self) -> io::Result<()> {
        let mut state = self.state();
        if std::mem::replace(&mut state.doomed, true) {
            return Ok(());
        }
        // Whoever waits for a reader would wait in vain.
        self.judged.notify_all();
        self.told.notify_waiters();
        if state.holds > 0 {
            // Should this process be killed, the next one does the rest. The last user cannot give the place
            // free before the lock is: what it takes for a mark would be another snapshot's then.
            return File::create(self.snapshot.dir().join(TOMBSTONE)).map(drop);
        }
        drop(state);
        fs::remove_dir_all(self.step_aside()?)
    }

    /// Gives the place in the store free.
    fn step_aside(&self) -> io::Result<PathBuf> {
        let aside = self.root.join(format!("{REMOVED}{}", SandboxId::random().as_str()));
        fs::rename(self.snapshot.dir(), &aside)?;
        if let Some(parent) = self.snapshot.dir().parent() {
            // Others may keep theirs in it.
            let _in_use = fs::remove_dir(parent);
        }
        Ok(aside)
    }
}

/// Why a snapshot's content cannot be trusted.
#[derive(Debug)]
pub(super) enum Unsound {
    Damaged(String),
    /// It could not be read, which need not be its fault.
    Unread(String),
    NotYet,
}

/// What reading a snapshot has shown.
#[derive(Debug)]
pub(super) enum Read {
    Sound,
    Damaged(String),
    /// Nothing, since it could not be read.
    Failed(Blame, String),
}

/// Keeps a snapshot's files where they are.
#[derive(Debug)]
pub(crate) struct Hold(Arc<Stored>);

impl Hold {
    pub(crate) fn stored(&self) -> &Arc<Stored> {
        &self.0
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.0.snapshot
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.holds -= 1;
        let last = state.holds == 0 && state.doomed;
        drop(state);
        if !last {
            return;
        }
        let dir = self.0.snapshot.dir().to_owned();
        let failed = move |error: io::Error| {
            tracing::warn!(dir = %dir.display(), %error, "removed snapshot not deleted");
        };
        match self.0.step_aside() {
            // Deleting large files takes time, and this may be a request's thread.
            Ok(aside) => {
                let thread = std::thread::Builder::new().name("vhive-snapshot".to_owned());
                let spawned = thread.spawn(move || fs::remove_dir_all(aside).map_err(failed));
                if let Err(error) = spawned {
                    tracing::warn!(%error, "removed snapshot is deleted by the next node");
                }
            }
            Err(error) => failed(error),
        }
    }
}

/// A living clone of a snapshot.
#[derive(Debug)]
pub(crate) struct CloneToken(Arc<Stored>);

impl Drop for CloneToken {
    fn drop(&mut self) {
        self.0.state().clones -= 1;
    }
}

/// By what it shows that files have been written or replaced: device, inode, length, and when the inode was changed
/// last. That time can be set by nobody, unlike the content's, which whoever puts a copy back sets to what it was.
/// What a disk does to them by itself does not show.
type Stamps = Vec<(u64, u64, u64, i64, i64)>;

/// None if a file is not there: that is noticed otherwise.
fn stamps(snapshot: &Snapshot) -> Option<Stamps> {
    let stamp = |name: &String| {
        let meta = fs::metadata(snapshot.dir().join(name)).ok()?;
        Some((meta.dev(), meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
    };
    snapshot.manifest().files.keys().map(stamp).collect()
}

/// Numbers of the working sets in a directory.
pub(super) fn working_sets(dir: &Path) -> io::Result<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        numbers.extend(entry?.file_name().to_str().and_then(working_set));
    }
    Ok(numbers)
}

/// The number in a working set's name.
pub(super) fn working_set(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(WORKING_SET)?;
    let number: u32 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

/// What a directory's files take up on the disk, in bytes.
pub(super) fn allocated(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}

/// An error and its causes, joined by colons.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Removes a file or a directory with everything in it.
pub(super) fn remove_any(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

#[cfg(test)]
mod tests;
