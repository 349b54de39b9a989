//! Waiting for what happens to files, without polling: a test that must act at a certain step of another
//! process waits for the file that this step makes, changes or reads.

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

/// Longer than any step takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Made,
    Written,
    Read,
}

/// Everything below a directory, new directories included.
pub(crate) struct Watch {
    fd: OwnedFd,
    dirs: BTreeMap<i32, PathBuf>,
    /// What was made in a new directory before that was watched.
    found: Vec<PathBuf>,
    seen: Vec<(PathBuf, What)>,
}

impl Watch {
    /// From now on; what is there already is not told.
    pub(crate) fn below(dir: &Path) -> Self {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).expect("inotify");
        let mut watch = Self { fd, dirs: BTreeMap::new(), found: Vec::new(), seen: Vec::new() };
        watch.add(dir);
        watch.found.clear();
        watch
    }

    fn add(&mut self, dir: &Path) {
        let flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MODIFY
            | WatchFlags::ACCESS
            | WatchFlags::ONLYDIR;
        // It may be gone again.
        let Ok(number) = inotify::add_watch(&self.fd, dir, flags) else { return };
        self.dirs.insert(number, dir.to_owned());
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            self.found.push(entry.path());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add(&entry.path());
            }
        }
    }

    /// Waits until something has happened that `wanted` is true of.
    pub(crate) fn until(&mut self, step: &str, wanted: impl Fn(&Path, What) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (path, what) in self.next() {
                let is_it = wanted(&path, what);
                self.seen.push((path, what));
                if is_it {
                    return;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{step} did not happen; what did: {:?}", self.seen);
            let left = Timespec::try_from(left).expect("a minute");
            let mut ready = [PollFd::new(&self.fd, PollFlags::IN)];
            let polled = poll(&mut ready, Some(&left));
            assert!(matches!(polled, Ok(_) | Err(Errno::INTR)), "{polled:?}");
        }
    }

    fn next(&mut self) -> Vec<(PathBuf, What)> {
        let (mut told, mut new) = (Vec::new(), Vec::new());
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
            let (Some(dir), Some(name)) = (self.dirs.get(&event.wd()), name) else { continue };
            let (path, flags) = (dir.join(name), event.events());
            let what = if flags.contains(ReadFlags::ACCESS) {
                What::Read
            } else if flags.contains(ReadFlags::MODIFY) {
                What::Written
            } else {
                What::Made
            };
            if what == What::Made && flags.contains(ReadFlags::ISDIR) {
                new.push(path.clone());
            }
            told.push((path, what));
        }
        for dir in new {
            self.add(&dir);
        }
        told.extend(self.found.drain(..).map(|path| (path, What::Made)));
        told
    }
}
