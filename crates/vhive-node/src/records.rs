//! Invocation records: kept in memory for the API, written as JSON Lines by a thread of their own.
//! A push never blocks; what the writer cannot keep up with is dropped and counted.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;
use vhive_api::{InvocationRecord, StartKind};

use crate::config::RecordsConfig;

/// Records that a follower may lag behind before it loses some.
const FOLLOW_BUFFER: usize = 1024;

/// Invocations with a cold start that are kept in memory for themselves: at a high rate warm ones
/// push them out of the others at once.
const KEPT_STARTS: usize = 16;

/// Where invocation records go.
#[derive(Debug)]
pub struct Records {
    recent: Mutex<VecDeque<Arc<InvocationRecord>>>,
    starts: Mutex<VecDeque<Arc<InvocationRecord>>>,
    keep: usize,
    followers: broadcast::Sender<Arc<InvocationRecord>>,
    writer: Mutex<Option<SyncSender<Arc<InvocationRecord>>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    pushed: AtomicU64,
    dropped: AtomicU64,
}

impl Records {
    /// Opens `records/invocations.jsonl` below `state_dir`, unless told not to write.
    ///
    /// # Errors
    /// Any I/O error of making the directory, the file or the thread.
    pub(crate) fn open(state_dir: &Path, config: &RecordsConfig) -> io::Result<Self> {
        let counts = Arc::new(Counts::default());
        let (mut writer, mut thread) = (None, None);
        if config.write {
            let dir = state_dir.join("records");
            fs::create_dir_all(&dir)?;
            let file = LogFile::open(&dir, config.file_size.0, config.files)?;
            let (send, receive) = sync_channel(config.buffer as usize);
            let counts = Arc::clone(&counts);
            let name = std::thread::Builder::new().name("vhive-records".to_owned());
            thread = Some(name.spawn(move || write(file, &receive, &counts))?);
            writer = Some(send);
        }
        Ok(Self {
            recent: Mutex::new(VecDeque::new()),
            starts: Mutex::default(),
            keep: config.recent as usize,
            followers: broadcast::Sender::new(FOLLOW_BUFFER),
            writer: Mutex::new(writer),
            thread: Mutex::new(thread),
            counts,
        })
    }

    /// Takes a record. Never blocks for I/O.
    pub fn push(&self, record: impl Into<Arc<InvocationRecord>>) {
        let record = record.into();
        self.counts.pushed.fetch_add(1, Ordering::Relaxed);
        if self.keep > 0 {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            if recent.len() == self.keep {
                recent.pop_front();
            }
            recent.push_back(Arc::clone(&record));
        }
        if record.start.is_some_and(|kind| kind != StartKind::Warm) {
            let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
            if starts.len() == KEPT_STARTS {
                starts.pop_front();
            }
            starts.push_back(Arc::clone(&record));
        }
        if self.followers.receiver_count() > 0 {
            // An error means that the last follower has just gone.
            drop(self.followers.send(Arc::clone(&record)));
        }
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.as_ref().is_some_and(|writer| writer.try_send(record).is_err()) {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The last `most` records that are kept in memory, oldest first.
    #[must_use]
    pub fn recent(&self, most: usize) -> Vec<Arc<InvocationRecord>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().skip(recent.len().saturating_sub(most)).cloned().collect()
    }

    /// The last records of invocations that waited for a cold start, oldest first; a few.
    #[must_use]
    pub fn recent_starts(&self) -> Vec<Arc<InvocationRecord>> {
        let starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        starts.iter().cloned().collect()
    }

    /// Every record pushed from now on; one who lags too far behind is told how many it lost.
    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<Arc<InvocationRecord>> {
        self.followers.subscribe()
    }

    /// Records taken so far.
    #[must_use]
    pub fn pushed(&self) -> u64 {
        self.counts.pushed.load(Ordering::Relaxed)
    }

    /// Records that never reached the file: the buffer was full, or writing failed.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }

    /// Writes out what is buffered and closes the file; later records only stay in memory. May
    /// block for I/O.
    pub(crate) fn close(&self) {
        drop(self.writer.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that writes records panicked");
        }
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        self.close();
    }
}

/// Writes until the other side closes; flushes whenever there is nothing more to do at once.
fn write(mut file: LogFile, records: &Receiver<Arc<InvocationRecord>>, counts: &Counts) {
    let mut failing = false;
    let mut note = |outcome: io::Result<()>, lost: u64| match outcome {
        Ok(()) => failing = false,
        Err(error) => {
            counts.dropped.fetch_add(lost, Ordering::Relaxed);
            if !failing {
                tracing::error!(%error, "invocation records cannot be written");
            }
            failing = true;
        }
    };
    let mut line = Vec::new();
    loop {
        let record = match records.try_recv() {
            Ok(record) => record,
            Err(TryRecvError::Empty) => {
                let unflushed = file.unflushed;
                note(file.flush(), unflushed);
                match records.recv() {
                    Ok(record) => record,
                    Err(RecvError) => break,
                }
            }
            Err(TryRecvError::Disconnected) => break,
        };
        line.clear();
        let written = serde_json::to_writer(&mut line, &*record).map_err(io::Error::from);
        line.push(b'\n');
        note(written.and_then(|()| file.line(&line)), 1);
    }
    let unflushed = file.unflushed;
    note(file.flush(), unflushed);
}

/// `invocations.jsonl`, and the closed ones before it: `invocations.1.jsonl` is the youngest.
#[derive(Debug)]
struct LogFile {
    dir: PathBuf,
    file: BufWriter<File>,
    size: u64,
    most: u64,
    files: u32,
    unflushed: u64,
}

impl LogFile {
    fn open(dir: &Path, most: u64, files: u32) -> io::Result<Self> {
        let (file, size) = Self::append_to(&dir.join("invocations.jsonl"))?;
        Ok(Self { dir: dir.to_owned(), file, size, most, files, unflushed: 0 })
    }

    /// Opens a file for appending whole lines: one that was cut off by a crash is ended first.
    fn append_to(path: &Path) -> io::Result<(BufWriter<File>, u64)> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut size = file.metadata()?.len();
        if size > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                size += 1;
            }
        }
        Ok((BufWriter::with_capacity(64 << 10, file), size))
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.most > 0 && self.size > 0 && self.size + length > self.most {
            self.rotate()?;
        }
        self.unflushed += 1;
        self.size += length;
        self.file.write_all(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unflushed = 0;
        self.file.flush()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.flush()?;
        let path = |n: u32| match n {
            0 => self.dir.join("invocations.jsonl"),
            n => self.dir.join(format!("invocations.{n}.jsonl")),
        };
        for n in (0..self.files.saturating_sub(1)).rev() {
            match fs::rename(path(n), path(n + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.files == 1 {
            fs::remove_file(path(0))?;
        }
        (self.file, self.size) = Self::append_to(&path(0))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::record;
    use vhive_api::Bytes;

    fn lines(path: &Path) -> Vec<u16> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let parse = |line: &str| serde_json::from_str::<InvocationRecord>(line).ok();
        text.lines().map(|line| parse(line).map_or(0, |record| record.status)).collect()
    }

    #[test]
    fn every_record_is_one_line_and_the_last_ones_stay_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let config = RecordsConfig { recent: 3, ..RecordsConfig::default() };
        let records = Records::open(dir.path(), &config).unwrap();
        let mut follower = records.follow();
        (1..=100).for_each(|status| records.push(record(status)));
        let recent = |most| records.recent(most).iter().map(|r| r.status).collect::<Vec<_>>();
        assert_eq!((recent(10), recent(2)), (vec![98, 99, 100], vec![99, 100]));
        assert_eq!(follower.try_recv().unwrap().status, 1);
        records.close();
        records.push(record(101));
        let path = dir.path().join("records/invocations.jsonl");
        assert_eq!(lines(&path), (1..=100).collect::<Vec<u16>>());
        assert_eq!((records.pushed(), records.dropped()), (101, 0));
    }

    #[test]
    fn files_rotate_by_size_and_only_so_many_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let length = serde_json::to_vec(&record(100)).unwrap().len() as u64 + 1;
        let config =
            RecordsConfig { file_size: Bytes(2 * length), files: 3, ..RecordsConfig::default() };
        let records = Records::open(dir.path(), &config).unwrap();
        (100..109).for_each(|status| records.push(record(status)));
        records.close();
        let file = |name: &str| lines(&dir.path().join("records").join(name));
        assert_eq!(file("invocations.jsonl"), [108]);
        assert_eq!(file("invocations.1.jsonl"), [106, 107]);
        assert_eq!(file("invocations.2.jsonl"), [104, 105]);
        assert_eq!(fs::read_dir(dir.path().join("records")).unwrap().count(), 3);
    }

    #[test]
    fn a_line_cut_off_by_a_crash_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records/invocations.jsonl");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let whole = serde_json::to_string(&record(1)).unwrap();
        fs::write(&path, format!("{whole}\n{}", &whole[..20])).unwrap();
        let records = Records::open(dir.path(), &RecordsConfig::default()).unwrap();
        records.push(record(2));
        records.close();
        assert_eq!(lines(&path), [1, 0, 2]);
    }

    #[test]
    fn what_the_writer_cannot_take_is_dropped_and_counted() {
        // A channel that nobody empties stands for a writer that is held up by its disk.
        let (send, _receive) = sync_channel(2);
        let records = Records {
            recent: Mutex::default(),
            starts: Mutex::default(),
            keep: 1,
            followers: broadcast::Sender::new(1),
            writer: Mutex::new(Some(send)),
            thread: Mutex::new(None),
            counts: Arc::default(),
        };
        (1..=5).for_each(|status| records.push(record(status)));
        assert_eq!((records.pushed(), records.dropped()), (5, 3));
    }

    #[test]
    fn starts_outlast_the_warm_ones_that_follow() {
        let dir = tempfile::tempdir().unwrap();
        let config = RecordsConfig { recent: 2, write: false, ..RecordsConfig::default() };
        let records = Records::open(dir.path(), &config).unwrap();
        for status in 1..=100 {
            let mut one = record(status);
            one.start = Some(if status <= 20 { StartKind::Boot } else { StartKind::Warm });
            records.push(one);
        }
        let status = |kept: Vec<Arc<InvocationRecord>>| -> Vec<u16> {
            kept.iter().map(|record| record.status).collect()
        };
        assert_eq!(status(records.recent(10)), [99, 100]);
        assert_eq!(status(records.recent_starts()), (5..=20).collect::<Vec<u16>>());
    }

    #[test]
    fn a_file_that_cannot_be_written_loses_records_but_no_request() {
        let dir = tempfile::tempdir().unwrap();
        let records = dir.path().join("records");
        fs::create_dir(&records).unwrap();
        // Every write to this device says that the disk is full.
        std::os::unix::fs::symlink("/dev/full", records.join("invocations.jsonl")).unwrap();
        let records = Records::open(dir.path(), &RecordsConfig::default()).unwrap();
        (1..=3).for_each(|status| records.push(record(status)));
        records.close();
        assert_eq!((records.pushed(), records.dropped()), (3, 3));
    }
}
