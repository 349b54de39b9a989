//! Being told when a group's memory limit kills a process, while the others go on.
//!
//! Version 2 says so in `memory.events`, which polls as urgent when it changes. Version 1 tells an event
//! counter when the limit is hit, which is shortly before anybody is killed: so it is looked some
//! more times.
//!
//! # Source
//! Linux, `Documentation/admin-guide/cgroup-v1/memory.rst` (OOM Control) and `cgroup-v2.rst`.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFlags, eventfd};

use super::{OutOfMemory, kills_of};

/// How long after a notice it is looked again.
const AGAIN: Duration = Duration::from_millis(100);

/// How many times.
const LOOKS: u32 = 20;

/// What tells of kills.
#[derive(Debug)]
pub(crate) struct Kills {
    limit: OutOfMemory,
    notices: Vec<Notice>,
    /// Kills that have been told.
    told: u64,
    /// How many looks are left.
    looks: u32,
}

#[derive(Debug)]
enum Notice {
    Events(File),
    Counter(OwnedFd),
}

impl Notice {
    fn of(file: &Path) -> io::Result<Self> {
        let mut control = File::open(file)?;
        if file.ends_with(super::EVENTS) {
            // What is there by now is no news.
            control.read_to_string(&mut String::new())?;
            return Ok(Self::Events(control));
        }
        let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let words = format!("{} {}", counter.as_raw_fd(), control.as_raw_fd());
        fs::write(file.with_file_name("cgroup.event_control"), words)?;
        Ok(Self::Counter(counter))
    }

    /// Takes a notice; whether more can follow.
    fn taken(&mut self) -> bool {
        match self {
            Self::Events(file) => {
                let again = file.rewind().and_then(|()| file.read_to_string(&mut String::new()));
                // The group has gone.
                again.is_ok()
            }
            Self::Counter(counter) => {
                let _ = rustix::io::read(counter, &mut [0; 8]);
                true
            }
        }
    }
}

impl Kills {
    pub(super) fn of(limit: &OutOfMemory) -> Self {
        let notice = |file: &std::path::PathBuf| {
            let notice = Notice::of(file);
            notice.inspect_err(|error| tracing::debug!(%error, "kills are not noticed")).ok()
        };
        let notices = limit.files.iter().filter_map(notice).collect();
        Self { limit: limit.clone(), notices, told: kills_of(limit), looks: 0 }
    }

    /// What to wait for.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.notices.iter().map(|notice| match notice {
            Notice::Events(file) => (file.as_fd(), PollFlags::PRI),
            Notice::Counter(counter) => (counter.as_fd(), PollFlags::IN),
        })
    }

    /// After which time it is to be looked even if nothing is heard.
    pub(crate) fn again(&self) -> Option<Duration> {
        (self.looks > 0).then_some(AGAIN)
    }

    /// Looks, after [`Kills::sources`] have said something or not; whether somebody has been killed
    /// since.
    pub(crate) fn look(&mut self, heard: bool) -> bool {
        if heard {
            self.notices.retain_mut(Notice::taken);
            self.looks = LOOKS;
        } else if self.looks == 0 {
            return false;
        }
        self.looks -= 1;
        let now = kills_of(&self.limit);
        let more = now > self.told;
        if more {
            (self.told, self.looks) = (now, 0);
        }
        more
    }
}
