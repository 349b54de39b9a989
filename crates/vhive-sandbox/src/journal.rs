//! What a sandbox has told so far: milestones, output lines, and how it ended.
//!
//! The one who starts a sandbox makes the journal and passes it in, so that milestones and the
//! console survive a failed start. Runtimes write, the node reads and waits.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use vhive_api::guest::Stream;

use crate::deadline::Deadline;

/// Lines kept; older ones are dropped and counted.
pub const KEPT_LINES: usize = 4096;

/// A step of a start that has been reached, in this order. A runtime without an init of ours
/// reports those that it can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Milestone {
    /// The VMM's (or runtime's) process exists and has been set up.
    Spawned,
    /// A restored guest's virtual CPUs run.
    Restored,
    /// A restored guest is itself again: clock, entropy, name and network are right.
    Resumed,
    /// The guest's kernel runs init.
    KernelUp,
    /// The root file system is in place.
    Mounted,
    /// The function's process has been started.
    Started,
    /// The function listens on its port.
    Listening,
}

/// One line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number, counting from 0 over the sandbox's life.
    pub number: u64,
    /// When the host received it.
    pub at: SystemTime,
    /// Where it came from.
    pub stream: Stream,
    /// Its text without the newline.
    pub text: String,
}

/// How a sandbox ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The function's process ended: exit code, or 128 + signal number.
    Exited(i32),
    /// The function was killed because it used more memory than it was given.
    OutOfMemory,
    /// The function's process ended so, after its memory limit had killed another one of its processes.
    ShortOfMemory(i32),
    /// Init, VMM or runtime failed at a step.
    Failed {
        /// The step, e.g. `mount root`.
        step: String,
        /// Why.
        reason: String,
    },
    /// The sandbox is gone without having said why, e.g. its VMM was killed.
    Vanished(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "the function exited with code {code}"),
            Self::ShortOfMemory(code) => write!(
                f,
                "the function exited with code {code}, after its memory limit had killed one of its \
                 processes (OOM); give it more"
            ),
            Self::OutOfMemory => f.write_str(
                "the function used more memory than its limit and was killed (OOM); give it more",
            ),
            Self::Failed { step, reason } => write!(f, "{step} failed: {reason}"),
            Self::Vanished(how) => f.write_str(how),
        }
    }
}

/// Why a milestone was not reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The sandbox ended first.
    #[error("{0}")]
    Ended(End),
    /// The deadline passed; `last` is what had been reached by then.
    #[error("not {wanted:?} in time (last: {last:?})")]
    Deadline {
        /// What was waited for.
        wanted: Milestone,
        /// The last milestone reached.
        last: Option<Milestone>,
    },
}

type Watcher = Box<dyn Fn() + Send + Sync>;

/// The journal of one sandbox. Shared by reference count; every method may be called from any
/// thread.
#[derive(Default)]
pub struct Journal {
    state: Mutex<State>,
    changed: Condvar,
    watchers: Mutex<Vec<Watcher>>,
}

#[derive(Default)]
struct State {
    milestones: Vec<(Milestone, Instant)>,
    clock_error: Option<Duration>,
    retries: u32,
    lines: VecDeque<Line>,
    next_line: u64,
    end: Option<End>,
}

impl Journal {
    /// An empty journal.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Notes that a milestone was reached at `at`. A milestone already noted keeps its first time.
    pub fn reach(&self, milestone: Milestone, at: Instant) {
        let mut state = self.state();
        if state.milestones.iter().all(|(m, _)| *m != milestone) {
            state.milestones.push((milestone, at));
        }
        drop(state);
        self.announce();
    }

    /// Begins another attempt at the same start: forgets the milestones, the clock error and the
    /// end of the one before, keeps its lines.
    pub fn retry(&self) {
        let mut state = self.state();
        state.milestones.clear();
        state.clock_error = None;
        state.end = None;
        state.retries += 1;
    }

    /// How many attempts the start has taken so far, at least 1.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.state().retries + 1
    }

    /// Notes by how much guest times may be off against the host's clock.
    pub fn set_clock_error(&self, error: Duration) {
        self.state().clock_error = Some(error);
    }

    /// Adds a line of output.
    pub fn line(&self, stream: Stream, text: impl Into<String>) {
        let mut state = self.state();
        let number = state.next_line;
        state.next_line += 1;
        if state.lines.len() == KEPT_LINES {
            state.lines.pop_front();
        }
        let line = Line { number, at: SystemTime::now(), stream, text: text.into() };
        state.lines.push_back(line);
        drop(state);
        self.announce();
    }

    /// Notes how the sandbox ended; only the first end counts.
    pub fn end(&self, end: End) {
        self.state().end.get_or_insert(end);
        self.announce();
    }

    /// The milestones so far with the host's times.
    #[must_use]
    pub fn milestones(&self) -> Vec<(Milestone, Instant)> {
        self.state().milestones.clone()
    }

    /// When a milestone was reached.
    #[must_use]
    pub fn reached(&self, milestone: Milestone) -> Option<Instant> {
        self.state().reached(milestone)
    }

    /// By how much guest times may be off, once known.
    #[must_use]
    pub fn clock_error(&self) -> Option<Duration> {
        self.state().clock_error
    }

    /// How the sandbox ended, once it has.
    #[must_use]
    pub fn ended(&self) -> Option<End> {
        self.state().end.clone()
    }

    /// The lines from number `from` on that are still kept.
    #[must_use]
    pub fn lines_from(&self, from: u64) -> Vec<Line> {
        self.state().lines.iter().filter(|line| line.number >= from).cloned().collect()
    }

    /// The last `most` lines of any stream, as text: what an error shows.
    #[must_use]
    pub fn tail(&self, most: usize) -> Vec<String> {
        let state = self.state();
        let skip = state.lines.len().saturating_sub(most);
        state.lines.iter().skip(skip).map(|line| line.text.clone()).collect()
    }

    /// Waits until a milestone is reached and says when that was.
    ///
    /// # Errors
    /// [`WaitError`]; the journal is unchanged and may be waited on again.
    pub fn wait(&self, wanted: Milestone, deadline: Deadline) -> Result<Instant, WaitError> {
        let mut state = self.state();
        loop {
            if let Some(at) = state.reached(wanted) {
                return Ok(at);
            }
            if let Some(end) = &state.end {
                return Err(WaitError::Ended(end.clone()));
            }
            let left = deadline.left();
            if left.is_zero() {
                let last = state.milestones.iter().map(|(m, _)| *m).max();
                return Err(WaitError::Deadline { wanted, last });
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }

    /// Waits until the sandbox has ended; `None` when the deadline passed first.
    pub fn wait_end(&self, deadline: Deadline) -> Option<End> {
        let mut state = self.state();
        loop {
            let left = deadline.left();
            if state.end.is_some() || left.is_zero() {
                return state.end.clone();
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }

    /// Calls `watcher` after every change, on the thread that made it. It must not block and must
    /// not call back into the journal's writers. Kept as long as the journal.
    pub fn watch(&self, watcher: impl Fn() + Send + Sync + 'static) {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(watcher));
    }

    fn announce(&self) {
        self.changed.notify_all();
        for watcher in self.watchers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            watcher();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No method panics while it holds the lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn reached(&self, milestone: Milestone) -> Option<Instant> {
        self.milestones.iter().find(|(m, _)| *m == milestone).map(|(_, at)| *at)
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Journal")
            .field("milestones", &state.milestones)
            .field("lines", &state.next_line)
            .field("end", &state.end)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_wakes_on_the_milestone_and_on_the_end() {
        let journal = Journal::new();
        let writer = Arc::clone(&journal);
        let at = Instant::now();
        let thread = std::thread::spawn(move || {
            writer.reach(Milestone::Started, at);
            writer.end(End::Exited(3));
        });
        let deadline = Deadline::after(Duration::from_secs(10));
        assert_eq!(journal.wait(Milestone::Started, deadline), Ok(at));
        let never = journal.wait(Milestone::Listening, deadline);
        assert_eq!(never, Err(WaitError::Ended(End::Exited(3))));
        thread.join().expect("the writer does not panic");
    }

    #[test]
    fn a_deadline_names_the_last_milestone() {
        let journal = Journal::new();
        journal.reach(Milestone::KernelUp, Instant::now());
        let error = journal.wait(Milestone::Mounted, Deadline::at(Instant::now()));
        let wanted = Milestone::Mounted;
        assert_eq!(error, Err(WaitError::Deadline { wanted, last: Some(Milestone::KernelUp) }));
    }

    #[test]
    fn lines_are_bounded_and_numbered() {
        let journal = Journal::new();
        for n in 0..KEPT_LINES + 5 {
            journal.line(Stream::Stdout, n.to_string());
        }
        let kept = journal.lines_from(0);
        assert_eq!(kept.len(), KEPT_LINES);
        assert_eq!(kept[0].number, 5);
        assert_eq!(journal.tail(1), [(KEPT_LINES + 4).to_string()]);
    }
}
