//! The host's side of the guest channel: what a message means for the journal, and what to answer.
//!
//! Guest times are placed on the host's clock by the moment at which `Hello` arrived. The guest is
//! hostile: whatever it claims, a milestone lies between that moment and the moment at which it
//! was reported, in order, and the journal stays bounded.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vhive_api::guest::{FromGuest, GuestConfig, MAX_LINE, ToGuest, VERSION};

use crate::cgroup::OutOfMemory;
use crate::journal::{End, Journal, Milestone};

/// Longest text of a failure that is kept, in bytes.
const LONGEST_REASON: usize = 4 << 10;

/// What the guest did that no init of ours does.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misbehaviour {
    /// The image of init and the host disagree.
    #[error("guest speaks version {0} of the guest contract, this host {VERSION}")]
    Version(u32),
    /// A message that is not expected at this point.
    #[error("guest sent {0} out of turn")]
    OutOfTurn(&'static str),
}

/// What follows from a message.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    /// Go on listening.
    Listen,
    /// Send this.
    Send(Box<ToGuest>),
    /// It answers what the host has asked.
    Answer(Answer),
    /// Nothing of interest follows: the virtual machine can be ended.
    Over,
}

/// What a guest answers when it is asked to get ready for a snapshot, to go on, or to run a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is ready to be snapshotted; its own time.
    Prepared { at_ns: u64 },
    /// It is not.
    Unprepared { reason: String },
    /// It goes on.
    Resumed,
    /// A command has ended with this code, or what went wrong.
    Ran(Result<i32, String>),
}

/// One guest's conversation.
#[derive(Debug)]
pub(crate) struct Conversation {
    journal: Arc<Journal>,
    /// Sent in answer to `Hello`; without one the conversation is over then.
    config: Option<Box<GuestConfig>>,
    hello: Option<Hello>,
    started: bool,
    /// The limit on the function's own memory, where that is the host's.
    limit: Option<OutOfMemory>,
}

/// The exit code of a function that was killed.
const KILLED: i32 = 128 + 9;

/// What the console says when a process of the function's has been killed and the function goes on.
pub(super) const KILLED_ONE: &str =
    "a process of the function's went over the memory limit and was killed (OOM); give it more";

/// How a function has ended whose limit has killed one of its processes or not.
pub(super) const fn end_of(code: i32, out_of_memory: bool) -> End {
    match (code, out_of_memory) {
        (KILLED, true) => End::OutOfMemory,
        (code, true) => End::ShortOfMemory(code),
        (code, false) => End::Exited(code),
    }
}

#[derive(Clone, Copy, Debug)]
struct Hello {
    received: Instant,
    at_ns: u64,
}

impl Conversation {
    pub(crate) fn new(journal: Arc<Journal>, config: Option<GuestConfig>) -> Self {
        Self { journal, config: config.map(Box::new), hello: None, started: false, limit: None }
    }

    /// Says which limit of the host's the function may have exceeded when it was killed.
    pub(crate) fn limited_by(mut self, limit: OutOfMemory) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The conversation with a clone, which has said hello and started its function in the life
    /// before the snapshot. Its times are placed once it goes on: see [`Answer::Resumed`].
    pub(crate) fn with_clone(journal: Arc<Journal>) -> Self {
        Self { journal, config: None, hello: None, started: true, limit: None }
    }

    /// Takes a message that arrived at `now`.
    pub(crate) fn receive(
        &mut self,
        message: FromGuest,
        now: Instant,
    ) -> Result<Next, Misbehaviour> {
        let Some(hello) = self.hello else {
            return match message {
                FromGuest::Hello { version, at_ns } if !self.started => {
                    self.greet(version, Hello { received: now, at_ns })
                }
                FromGuest::Resumed { at_ns } if self.started => {
                    self.hello = Some(Hello { received: now, at_ns });
                    Ok(Next::Answer(Answer::Resumed))
                }
                FromGuest::Failed { step, reason, .. } if self.started => {
                    self.fail(step, reason);
                    Ok(Next::Over)
                }
                FromGuest::Exited { code, out_of_memory, .. } if self.started => {
                    self.exited(code, out_of_memory);
                    Ok(Next::Over)
                }
                FromGuest::Output { stream, line, .. } if self.started => {
                    self.journal.line(stream, cut(line, MAX_LINE));
                    Ok(Next::Listen)
                }
                _ => Err(Misbehaviour::OutOfTurn("a message before hello")),
            };
        };
        let at = |at_ns: u64| {
            let since = Duration::from_nanos(at_ns.saturating_sub(hello.at_ns));
            hello.received.checked_add(since).map_or(now, |at| at.min(now))
        };
        let journal = &self.journal;
        match message {
            FromGuest::Hello { .. } => return Err(Misbehaviour::OutOfTurn("a second hello")),
            FromGuest::Mounted { at_ns, handshake_ns } => {
                // It cannot have taken longer than we saw it take.
                let seen = now.duration_since(hello.received);
                journal.set_clock_error(Duration::from_nanos(handshake_ns).min(seen));
                journal.reach(Milestone::Mounted, at(at_ns));
            }
            FromGuest::Started { at_ns, .. } => {
                self.started = true;
                journal.reach(Milestone::Started, at(at_ns));
            }
            FromGuest::Listening { .. } if !self.started => {
                return Err(Misbehaviour::OutOfTurn("listening before started"));
            }
            FromGuest::Listening { at_ns } => journal.reach(Milestone::Listening, at(at_ns)),
            FromGuest::Output { stream, line, .. } => journal.line(stream, cut(line, MAX_LINE)),
            FromGuest::Exited { code, out_of_memory, .. } => {
                self.exited(code, out_of_memory);
                return Ok(Next::Over);
            }
            FromGuest::Failed { step, reason, .. } => {
                self.fail(step, reason);
                return Ok(Next::Over);
            }
            FromGuest::Prepared { at_ns } => return Ok(Next::Answer(Answer::Prepared { at_ns })),
            FromGuest::Unprepared { reason, .. } => {
                let reason = cut(reason, LONGEST_REASON);
                return Ok(Next::Answer(Answer::Unprepared { reason }));
            }
            FromGuest::Resumed { .. } => return Ok(Next::Answer(Answer::Resumed)),
            FromGuest::Ran { code, reason, .. } => {
                let nothing = || "it could not be run".to_owned();
                let ran = match (code, reason) {
                    (Some(code), None) => Ok(code),
                    (_, reason) => Err(cut(reason.unwrap_or_else(nothing), LONGEST_REASON)),
                };
                return Ok(Next::Answer(Answer::Ran(ran)));
            }
        }
        Ok(Next::Listen)
    }

    fn exited(&self, code: i32, out_of_memory: bool) {
        let by_limit = || self.limit.as_ref().is_some_and(OutOfMemory::happened);
        self.journal.end(end_of(code, out_of_memory || by_limit()));
    }

    fn fail(&self, step: String, reason: String) {
        let (step, reason) = (cut(step, LONGEST_REASON), cut(reason, LONGEST_REASON));
        self.journal.end(End::Failed { step, reason });
    }

    fn greet(&mut self, version: u32, hello: Hello) -> Result<Next, Misbehaviour> {
        if version != VERSION {
            return Err(Misbehaviour::Version(version));
        }
        self.hello = Some(hello);
        let answer = self.config.take().map(|mut config| {
            config.now_unix_ns = unix_now_ns();
            ToGuest::Start(config)
        });
        self.journal.reach(Milestone::KernelUp, hello.received);
        Ok(answer.map_or(Next::Over, |start| Next::Send(Box::new(start))))
    }
}

pub(crate) fn unix_now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // 64 bits of nanoseconds last until the year 2554.
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Shortens a text to at most so many bytes, at a character's boundary.
pub(crate) fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

#[cfg(test)]
mod tests {
    use vhive_api::guest::{Process, Stream};

    use super::*;
    use crate::journal::KEPT_LINES;

    fn config() -> GuestConfig {
        GuestConfig {
            process: Process::default(),
            hostname: "h".to_owned(),
            port: 8080,
            network: None,
            now_unix_ns: 0,
            entropy: String::new(),
            hooks: vhive_api::guest::Hooks::default(),
        }
    }

    fn greeted(journal: &Arc<Journal>, now: Instant) -> Conversation {
        let mut talk = Conversation::new(Arc::clone(journal), Some(config()));
        let hello = FromGuest::Hello { version: VERSION, at_ns: 1_000_000 };
        let Ok(Next::Send(start)) = talk.receive(hello, now) else { panic!("no start") };
        let ToGuest::Start(start) = *start else { panic!("no start") };
        assert!(start.now_unix_ns > 1_700_000_000_000_000_000);
        talk
    }

    #[test]
    fn guest_times_are_placed_on_the_hosts_clock() {
        let (journal, t0) = (Journal::new(), Instant::now());
        let mut talk = greeted(&journal, t0);
        let ms = Duration::from_millis;
        let mounted = FromGuest::Mounted { at_ns: 6_000_000, handshake_ns: 500_000 };
        assert_eq!(talk.receive(mounted, t0 + ms(9)), Ok(Next::Listen));
        assert_eq!(journal.reached(Milestone::KernelUp), Some(t0));
        assert_eq!(journal.reached(Milestone::Mounted), Some(t0 + ms(5)));
        assert_eq!(journal.clock_error(), Some(Duration::from_micros(500)));
        let exited = FromGuest::Exited { at_ns: 0, code: 3, out_of_memory: false };
        assert_eq!(talk.receive(exited, t0 + ms(9)), Ok(Next::Over));
        assert_eq!(journal.ended(), Some(End::Exited(3)));
    }

    #[test]
    fn an_end_says_whether_memory_was_short_whoever_was_killed_for_it() {
        for (code, out_of_memory, end) in [
            (137, true, End::OutOfMemory),
            (137, false, End::Exited(137)),
            (1, true, End::ShortOfMemory(1)),
            (1, false, End::Exited(1)),
        ] {
            let (journal, now) = (Journal::new(), Instant::now());
            let mut talk = greeted(&journal, now);
            let exited = FromGuest::Exited { at_ns: 0, code, out_of_memory };
            assert_eq!(talk.receive(exited, now), Ok(Next::Over));
            assert_eq!(journal.ended(), Some(end));
        }
    }

    #[test]
    fn a_clone_goes_on_before_anything_else() {
        let (journal, now) = (Journal::new(), Instant::now());
        let mut talk = Conversation::with_clone(Arc::clone(&journal));
        let hello = FromGuest::Hello { version: VERSION, at_ns: 0 };
        assert!(matches!(talk.receive(hello, now), Err(Misbehaviour::OutOfTurn(_))));
        let resumed = talk.receive(FromGuest::Resumed { at_ns: 9 }, now);
        assert_eq!(resumed, Ok(Next::Answer(Answer::Resumed)));
        let late = FromGuest::Listening { at_ns: 10 };
        assert_eq!(talk.receive(late, now), Ok(Next::Listen));
        assert_eq!(journal.reached(Milestone::Listening), Some(now));
    }

    #[test]
    fn another_version_or_order_is_refused() {
        let (journal, now) = (Journal::new(), Instant::now());
        let mut talk = Conversation::new(Arc::clone(&journal), Some(config()));
        let strange = FromGuest::Hello { version: VERSION + 1, at_ns: 0 };
        assert_eq!(talk.receive(strange, now), Err(Misbehaviour::Version(VERSION + 1)));
        let early = FromGuest::Started { at_ns: 0, pid: 2 };
        assert!(matches!(talk.receive(early, now), Err(Misbehaviour::OutOfTurn(_))));
        let mut talk = greeted(&journal, now);
        let again = FromGuest::Hello { version: VERSION, at_ns: 0 };
        assert!(matches!(talk.receive(again, now), Err(Misbehaviour::OutOfTurn(_))));
        let early = FromGuest::Listening { at_ns: 0 };
        assert!(matches!(talk.receive(early, now), Err(Misbehaviour::OutOfTurn(_))));
    }

    #[test]
    fn a_flood_of_long_lines_stays_bounded() {
        let (journal, now) = (Journal::new(), Instant::now());
        let mut talk = greeted(&journal, now);
        for _ in 0..KEPT_LINES + 1 {
            let line = "ä".repeat(MAX_LINE);
            let output = FromGuest::Output { at_ns: 0, stream: Stream::Stdout, line };
            assert_eq!(talk.receive(output, now), Ok(Next::Listen));
        }
        assert_eq!(journal.lines_from(0).len(), KEPT_LINES);
        assert!(journal.lines_from(0).iter().all(|line| line.text.len() <= MAX_LINE));
    }

    proptest::proptest! {
        #[test]
        fn no_claimed_time_leaves_the_observed_span(at_ns: u64, handshake_ns: u64) {
            let (journal, t0) = (Journal::new(), Instant::now());
            let mut talk = greeted(&journal, t0);
            let now = t0 + Duration::from_millis(7);
            talk.receive(FromGuest::Mounted { at_ns, handshake_ns }, now).unwrap();
            let at = journal.reached(Milestone::Mounted).unwrap();
            assert!(t0 <= at && at <= now);
            assert!(journal.clock_error().unwrap() <= Duration::from_millis(7));
        }
    }
}
