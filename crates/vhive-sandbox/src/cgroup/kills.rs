//! Being told when a group's memory limit kills a process, while the others go on.
//!
//! Version 2 says so in `memory.events`, which polls as urgent when it changes. Version 1 tells an event
//! counter when the limit is hit, which is shortly before anybody is killed: so it is looked for
//! some time.
//!
//! # Source
//! Linux, `Documentation/admin-guide/cgroup-v1/memory.rst` (OOM Control) and `cgroup-v2.rst`.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFlags, eventfd};

use super::{OutOfMemory, kills_of};

/// How often it is looked after a notice.
const AGAIN: Duration = Duration::from_millis(100);

/// For how long.
const WHILE: Duration = Duration::from_secs(2);

/// What tells of kills.
#[derive(Debug)]
pub(crate) struct Kills {
    limit: OutOfMemory,
    notices: Vec<Notice>,
    /// Kills that have been told.
    told: u64,
    /// When it is looked next, and until when after the last notice.
    looks: Option<(Instant, Instant)>,
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
        Self { limit: limit.clone(), notices, told: kills_of(limit), looks: None }
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
        let (next, _) = self.looks?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Looks, after [`Kills::sources`] have said something or not; whether somebody has been killed
    /// since.
    pub(crate) fn look(&mut self, heard: bool) -> bool {
        self.look_at(Instant::now(), heard)
    }

    fn look_at(&mut self, now: Instant, heard: bool) -> bool {
        let until = if heard {
            self.notices.retain_mut(Notice::taken);
            now + WHILE
        } else {
            match self.looks {
                Some((next, until)) if now >= next => until,
                // The supervisor has been woken by something else.
                _ => return false,
            }
        };
        self.looks = (now < until).then_some((now + AGAIN, until));
        let kills = kills_of(&self.limit);
        let more = kills > self.told;
        if more {
            (self.told, self.looks) = (kills, None);
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_that_follows_its_notice_is_told_whatever_wakes_the_supervisor_in_between() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let killed = |count: u32| {
            fs::write(file.path(), format!("oom_kill {count}\n")).expect("written");
        };
        killed(1);
        let limit = OutOfMemory { files: vec![file.path().to_owned()] };
        let mut kills = Kills { limit, notices: Vec::new(), told: 1, looks: None };
        let begin = Instant::now();
        assert!(kills.again().is_none() && !kills.look_at(begin, false), "nothing is heard");
        assert!(!kills.look_at(begin, true), "nobody has been killed yet");
        // The function prints.
        assert!((0..1000).all(|_| !kills.look_at(begin + AGAIN / 2, false)));
        assert!(!kills.look_at(begin + AGAIN, false));
        killed(2);
        assert!(!kills.look_at(begin + AGAIN * 3 / 2, false), "it is not time yet");
        assert!(kills.look_at(begin + AGAIN * 2, false));
        assert!(kills.again().is_none() && !kills.look_at(begin + AGAIN * 3, false), "it is told");
        // A notice that nothing follows is not waited for in vain.
        assert!(!kills.look_at(begin, true) && !kills.look_at(begin + WHILE, false));
        assert!(kills.again().is_none());
    }
}
