//! What all runtimes do alike with bare guests ([`Guest::Bare`]): how they are told their address,
//! what their digest is, and when they are ready.
//!
//! [`Guest::Bare`]: crate::Guest::Bare

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use vhive_api::Digest;
use vhive_api::guest::GuestNetwork;

use crate::deadline::Deadline;
use crate::journal::{Journal, Milestone, WaitError};
use crate::runtime::Guest;
use crate::snapshot::{Platform, page_digest};

/// Longest time for one try to connect; so long a guest's end may go unnoticed.
const ONE_TRY: Duration = Duration::from_secs(1);
/// Pause after the first refusal; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// The kernel command line of a bare guest.
pub(crate) fn command_line(network: &GuestNetwork, port: u16) -> String {
    let GuestNetwork { address, prefix, gateway, .. } = network;
    format!("nano.ip={address}/{prefix} nano.gw={gateway} nano.port={port}")
}

/// What identifies a bare guest.
pub(crate) fn digest(kernel: &Path) -> io::Result<Digest> {
    page_digest(&File::open(kernel)?)
}

impl Guest {
    /// The platform that snapshots of this guest are taken on and must agree with, where those of
    /// Linux guests are taken on `platform`: another program runs on it.
    ///
    /// # Errors
    /// Any error of reading a bare guest's file.
    pub fn platform(&self, platform: Platform) -> io::Result<Platform> {
        match self {
            Self::Linux => Ok(platform),
            Self::Bare { kernel } => Ok(Platform { kernel: Some(digest(kernel)?), ..platform }),
        }
    }
}

/// Waits until a guest without an init of ours listens, and writes that to the journal.
///
/// While the guest has no interface yet, the first packet waits for it in the tap device, so one
/// try is enough for a guest that listens before it has one. A try that is refused is followed by
/// another after a growing pause, in which the sandbox's end is waited for.
pub(crate) fn wait_listening(
    endpoint: SocketAddr,
    journal: &Journal,
    deadline: Deadline,
) -> Result<(), WaitError> {
    let wanted = Milestone::Listening;
    let mut pause = FIRST_PAUSE;
    loop {
        let left = deadline.or_after(ONE_TRY).left().max(Duration::from_millis(1));
        if TcpStream::connect_timeout(&endpoint, left).is_ok() {
            journal.reach(wanted, Instant::now());
            return Ok(());
        }
        if let Some(end) = journal.wait_end(deadline.or_after(pause)) {
            return Err(WaitError::Ended(end));
        }
        if deadline.passed() {
            let last = journal.milestones().iter().map(|(milestone, _)| *milestone).max();
            return Err(WaitError::Deadline { wanted, last });
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::journal::End;

    #[test]
    fn what_listens_is_noticed_and_what_ends_or_does_not_as_well() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let endpoint = listener.local_addr().expect("an address");
        let journal = Journal::new();
        let soon = || Deadline::after(Duration::from_secs(10));
        assert_eq!(wait_listening(endpoint, &journal, soon()), Ok(()));
        assert!(journal.reached(Milestone::Listening).is_some());
        drop(listener);
        let deadline = Deadline::after(Duration::from_millis(20));
        let late = wait_listening(endpoint, &Journal::new(), deadline);
        assert!(matches!(late, Err(WaitError::Deadline { last: None, .. })), "{late:?}");
        let ended = Journal::new();
        ended.end(End::Exited(1));
        let late = wait_listening(endpoint, &ended, soon());
        assert_eq!(late, Err(WaitError::Ended(End::Exited(1))));
    }
}
