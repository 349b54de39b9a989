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

/// Time for the first try to connect; doubles with each.
const FIRST_TRY: Duration = Duration::from_millis(10);
/// Longest time for one try; so long a guest's end may go unnoticed.
const LONGEST_TRY: Duration = Duration::from_secs(1);

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

/// A restored guest runs again: it is told nothing, so it is itself at once, and it listened when the
/// snapshot was taken.
pub(crate) fn resumed(journal: &Journal) {
    let now = Instant::now();
    journal.reach(Milestone::Resumed, now);
    journal.reach(Milestone::Listening, now);
}

/// Waits until a guest without an init of ours listens, and writes that to the journal.
///
/// Nobody tells when that is, so the port is tried. A guest that has no interface yet does not refuse:
/// what is sent to it waits in the tap device, or is lost when the device is reset (QEMU), and
/// would be sent again only after a second. So each try has twice the time of the one before, and
/// the guest's way to its port takes at most twice as long as it must. What is left of the time of a
/// try that was refused at once is spent waiting for the sandbox's end.
pub(crate) fn wait_listening(
    endpoint: SocketAddr,
    journal: &Journal,
    deadline: Deadline,
) -> Result<(), WaitError> {
    let wanted = Milestone::Listening;
    let mut time = FIRST_TRY;
    loop {
        let limit = deadline.or_after(time);
        let left = limit.left().max(Duration::from_millis(1));
        if TcpStream::connect_timeout(&endpoint, left).is_ok() {
            journal.reach(wanted, Instant::now());
            return Ok(());
        }
        if let Some(end) = journal.wait_end(limit) {
            return Err(WaitError::Ended(end));
        }
        if deadline.passed() {
            let last = journal.milestones().iter().map(|(milestone, _)| *milestone).max();
            return Err(WaitError::Deadline { wanted, last });
        }
        time = (time * 2).min(LONGEST_TRY);
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
