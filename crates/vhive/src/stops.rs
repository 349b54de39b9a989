//! The signals that end a command in order: what it has changed is put back, what it has written is whole.

use std::fs;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that are heard; none for a command that does what it always does.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hang_up: Option<Signal>,
}

impl Stops {
    /// Ctrl-C, SIGTERM, and SIGHUP, which comes when a terminal is closed; that one not if this program was
    /// told to ignore it when it was started, as `nohup` does. A script's shell has what it starts with `&`
    /// ignore Ctrl-C, which ends it in order all the same.
    ///
    /// # Errors
    /// When they cannot be heard.
    pub(crate) fn heard() -> io::Result<Self> {
        Self::but(told_to_ignore() & 1)
    }

    /// The same, but none that this program was told to ignore.
    ///
    /// # Errors
    /// When they cannot be heard.
    pub(crate) fn unless_ignored() -> io::Result<Self> {
        Self::but(told_to_ignore())
    }

    fn but(ignored: u64) -> io::Result<Self> {
        let hear = |kind: SignalKind| {
            let heard = ignored >> (kind.as_raw_value() - 1) & 1 == 0;
            heard.then(|| signal(kind)).transpose()
        };
        Ok(Self {
            interrupt: hear(SignalKind::interrupt())?,
            terminate: hear(SignalKind::terminate())?,
            hang_up: hear(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them; says which.
    pub(crate) async fn came(&mut self) -> &'static str {
        tokio::select! {
            () = came(&mut self.interrupt) => "interrupted",
            () = came(&mut self.terminate) => "SIGTERM",
            () = came(&mut self.hang_up) => "SIGHUP",
        }
    }
}

/// The signals that this program was told to ignore; none if nobody can say.
fn told_to_ignore() -> u64 {
    ignored(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// The set of ignored signals in a process's `status`, the first one in the lowest bit.
///
/// # Source
/// `proc_pid_status(5)`, `SigIgn`.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// Waits for a signal; forever for one that is not heard.
async fn came(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_of_ignored_signals_is_read() {
        let status = "Name:\tvhive\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored(status), 1 | 1 << 12, "SIGHUP and SIGPIPE");
        assert_eq!((ignored(""), ignored("SigIgn:\tmany\n")), (0, 0));
    }
}
