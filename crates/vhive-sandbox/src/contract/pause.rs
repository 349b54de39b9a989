//! What is said to a guest's init around a snapshot.

use std::time::{Duration, Instant};

use vhive_api::SandboxId;
use vhive_api::guest::{Identity, ToGuest};

use super::{Answer, Supervised, entropy, own_words, unix_now_ns};
use crate::deadline::Deadline;
use crate::journal::Milestone;
use crate::network::NetworkSlot;
use crate::runtime::{BootError, SandboxSpec, SnapshotError};

/// How long a guest that stood still may take to go on.
const RESUME: Duration = Duration::from_secs(10);

/// Has the guest run the function's hook and fall silent; says its time.
///
/// # Errors
/// [`SnapshotError::Guest`] if it goes on as before, [`SnapshotError::Lost`] if nobody knows.
pub(crate) fn prepare(guest: &Supervised, deadline: Deadline) -> Result<u64, SnapshotError> {
    match guest.ask(ToGuest::PrepareSnapshot, deadline) {
        Some(Answer::Prepared { at_ns }) => Ok(at_ns),
        Some(Answer::Unprepared { reason }) => Err(SnapshotError::Guest(reason)),
        // A late answer to something else: whether it falls silent is not known.
        Some(Answer::Resumed | Answer::Ran(_)) => {
            Err(SnapshotError::Lost("it answered something else".to_owned()))
        }
        // It may fall silent later, and would then stay so.
        None => Err(SnapshotError::Lost("it did not answer in time".to_owned())),
    }
}

/// The deadline may be what went wrong; a guest that cannot be resumed at once never will.
pub(crate) fn time_to_go_on(deadline: Deadline) -> Deadline {
    Deadline::at(deadline.instant().max(Instant::now() + RESUME))
}

/// Ends the silence of a guest that goes on after its snapshot, with the right time.
///
/// # Errors
/// [`SnapshotError::Lost`].
pub(crate) fn go_on(
    guest: &Supervised,
    id: &SandboxId,
    deadline: Deadline,
) -> Result<(), SnapshotError> {
    let identity = Identity {
        clone: false,
        hostname: id.to_string(),
        network: None,
        now_unix_ns: unix_now_ns(),
        entropy: String::new(),
    };
    match guest.ask(ToGuest::Resume(Box::new(identity)), deadline) {
        Some(Answer::Resumed) => Ok(()),
        _ => Err(SnapshotError::Lost("its init does not answer".to_owned())),
    }
}

/// Tells a restored guest who it is now, and waits until it is: [`Milestone::Resumed`].
///
/// # Errors
/// [`BootError::Guest`].
pub(crate) fn become_clone(
    guest: &Supervised,
    spec: &SandboxSpec,
    network: &NetworkSlot,
    deadline: Deadline,
) -> Result<(), BootError> {
    let identity = Identity {
        clone: true,
        hostname: spec.id.to_string(),
        network: Some(network.guest().clone()),
        now_unix_ns: unix_now_ns(),
        entropy: entropy(),
    };
    let journal = &spec.journal;
    let answer = guest.ask(ToGuest::Resume(Box::new(identity)), deadline);
    if answer == Some(Answer::Resumed) {
        let now = Instant::now();
        journal.reach(Milestone::Resumed, now);
        // It listened when the snapshot was taken.
        journal.reach(Milestone::Listening, now);
        return Ok(());
    }
    let reason = own_words(guest, journal, "its init does not answer");
    Err(BootError::Guest { wanted: Milestone::Resumed, attempts: 1, reason })
}
