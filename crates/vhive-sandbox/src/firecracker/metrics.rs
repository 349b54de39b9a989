//! What Firecracker says it has measured.
//!
//! It writes one JSON object per line into a file, when told to and every minute. Of the several
//! hundred figures here are those that nobody else can know.
//!
//! # Source
//! Firecracker, `src/vmm/src/logger/metrics.rs` (`PerformanceMetrics`).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use serde::Deserialize;

/// How much of the file's end is looked at, in bytes; a line has some ten thousand.
const MOST: u64 = 128 << 10;

/// How long Firecracker took for what it was asked for, by its own clock. Zero = it was not asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// A snapshot's load, from the request's arrival to its answer, with the resumption if it was
    /// asked for.
    pub load: Duration,
    /// Making a snapshot with all of the memory.
    pub create: Duration,
    /// Making an incremental one.
    pub create_diff: Duration,
    /// Letting a paused machine run.
    pub resume: Duration,
}

#[derive(Deserialize)]
struct Written {
    latencies_us: Latencies,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Latencies {
    load_snapshot: u64,
    full_create_snapshot: u64,
    diff_create_snapshot: u64,
    resume_vm: u64,
}

/// Reads the last line of the file that is complete. The file is in Firecracker's own directory: it
/// may have put there a link out of it, or a pipe that nobody writes to.
pub(super) fn read(path: &Path) -> io::Result<Metrics> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let (mut text, mut file) = (Vec::new(), File::from(open(path, flags, Mode::empty())?));
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no regular file"));
    }
    file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(MOST)))?;
    file.take(MOST).read_to_end(&mut text)?;
    last(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no metrics in it"))
}

fn last(text: &[u8]) -> Option<Metrics> {
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    // After the last newline is nothing, or half a line.
    lines.pop();
    let line = lines.into_iter().rev().find_map(|line| serde_json::from_slice(line).ok());
    let Written { latencies_us: it } = line?;
    let micros = Duration::from_micros;
    Some(Metrics {
        load: micros(it.load_snapshot),
        create: micros(it.full_create_snapshot),
        create_diff: micros(it.diff_create_snapshot),
        resume: micros(it.resume_vm),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hostile_vmm_puts_in_the_files_place_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let line = b"{\"latencies_us\":{\"load_snapshot\":9}}\n";
        let file = dir.path().join("metrics");
        std::fs::write(&file, line).expect("written");
        assert_eq!(read(&file).expect("read").load, Duration::from_micros(9));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        let pipe = dir.path().join("pipe");
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, Mode::from(0o600), 0).expect("made");
        for path in [link.as_path(), &pipe, dir.path()] {
            assert!(read(path).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn the_last_complete_line_counts() {
        let text = b"{\"latencies_us\":{\"load_snapshot\":1}}\nnonsense\n\
            {\"utc_timestamp_ms\":5,\"latencies_us\":{\"load_snapshot\":900,\"resume_vm\":7}}\n{\"lat";
        let metrics = last(text).expect("metrics");
        assert_eq!(metrics.load, Duration::from_micros(900));
        assert_eq!((metrics.resume, metrics.create), (Duration::from_micros(7), Duration::ZERO));
        for text in [b"".as_slice(), b"{}", b"{}\n", b"{\"latencies_us\":{\"resume_vm\":-1}}\n"] {
            assert_eq!(last(text), None);
        }
    }
}
