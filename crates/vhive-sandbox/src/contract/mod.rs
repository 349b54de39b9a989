//! The host's side of the guest contract: one thread per sandbox that supervises its process and
//! talks to the init inside, or hears the function itself where there is none. The page is
//! `docs/design/guest-contract.md`.

mod alone;
mod conversation;
mod pause;
mod streams;
mod supervisor;

use conversation::{Answer, unix_now_ns};

pub(crate) use alone::Alone;
pub(crate) use conversation::Conversation;
pub(crate) use pause::{become_clone, go_on, prepare, time_to_go_on};
pub(crate) use supervisor::{Outputs, Subject, Supervised, Voice, Words, start};

use std::time::Duration;

use vhive_api::guest::ToGuest;

use crate::deadline::Deadline;
use crate::journal::Journal;
use crate::runtime::RunError;

/// How long after a failure a process that dies of it may take to do so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Of the time for stopping, what is kept for killing the function and reporting.
const RESERVE: Duration = Duration::from_millis(500);

/// If the sandbox has ended, its own words say more than what was noticed of it.
pub(crate) fn own_words(supervised: &Supervised, journal: &Journal, error: &str) -> String {
    let end = journal.wait_end(Deadline::after(LAST_WORDS));
    supervised.abandon();
    end.map_or_else(|| error.to_owned(), |end| end.to_string())
}

/// How long a function that is to be gone by a deadline may take after its stop signal.
pub(crate) fn grace(deadline: Deadline) -> Duration {
    let left = deadline.left();
    left.saturating_sub(RESERVE.min(left / 2))
}

/// Asks the function to end by its stop signal and waits until the sandbox has ended or the
/// deadline passed.
pub(crate) fn stop(supervised: &Supervised, journal: &Journal, deadline: Deadline) {
    let grace = grace(deadline);
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    supervised.send(ToGuest::Stop { grace_ms });
    journal.wait_end(deadline);
}

/// Runs a command beside the function and says its exit code.
pub(crate) fn run(
    supervised: &Supervised,
    command: &[String],
    deadline: Deadline,
) -> Result<i32, RunError> {
    // The guest's own deadline comes first, so that it is free again when ours passes.
    let timeout_ms = u64::try_from(deadline.left().as_millis()).unwrap_or(u64::MAX);
    let answer_by = Deadline::at(deadline.instant() + LAST_WORDS);
    match supervised.ask(ToGuest::Run { command: command.to_vec(), timeout_ms }, answer_by) {
        Some(Answer::Ran(ran)) => ran.map_err(RunError::Failed),
        Some(_) => Err(RunError::Failed("its init answered something else".to_owned())),
        None => Err(RunError::Failed("its init does not answer".to_owned())),
    }
}

/// Random bytes for a guest's pool, hexadecimal.
pub(crate) fn entropy() -> String {
    let mut bytes = [0; 64];
    // The host's pool is ready long before any of this runs; a short answer is only less.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    hex::encode(bytes)
}

/// An error with its causes in one line.
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
