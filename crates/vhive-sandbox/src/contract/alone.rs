//! A function that is its container's first process: its two outputs are its own, and its parent on
//! the host (`vhive-init reap`) says when it runs.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use rustix::process::Pid;
use vhive_api::guest::Stream;
use vhive_api::inside::Lines;

use crate::journal::{Journal, Milestone};

/// Bytes of standard error that are kept until it is known whose they are; more waits in the pipe.
const HELD: usize = 64 << 10;

/// Longest that the parent has to say, in bytes: a number and a newline.
const LONGEST_REPORT: usize = 32;

/// What has been heard of it.
#[derive(Debug)]
pub(crate) struct Alone {
    journal: Arc<Journal>,
    /// Told the sandbox's process once it runs.
    tell: Sender<Pid>,
    report: Vec<u8>,
    running: bool,
    out: Lines,
    err: Lines,
    /// Standard error from before it ran: the runtime's, if it never does.
    held: Vec<u8>,
}

impl Alone {
    pub(crate) fn new(journal: Arc<Journal>, tell: Sender<Pid>) -> Self {
        Self {
            journal,
            tell,
            report: Vec::new(),
            running: false,
            out: Lines::default(),
            err: Lines::default(),
            held: Vec::new(),
        }
    }

    /// Whether it has been started.
    pub(crate) const fn is_running(&self) -> bool {
        self.running
    }

    /// Whether no more of its standard error can be kept now.
    pub(crate) const fn is_full(&self) -> bool {
        !self.running && self.held.len() >= HELD
    }

    /// Takes a piece of what its parent says.
    pub(crate) fn reported(&mut self, piece: &[u8], now: Instant) {
        let room = LONGEST_REPORT.saturating_sub(self.report.len());
        self.report.extend_from_slice(&piece[..piece.len().min(room)]);
        let Some((b'\n', number)) = self.report.split_last() else { return };
        let number = std::str::from_utf8(number).ok().and_then(|text| text.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw) else { return };
        if self.running {
            return;
        }
        self.running = true;
        // Nobody listens any more when a start has been given up.
        let _ = self.tell.send(pid);
        self.journal.reach(Milestone::Started, now);
        let held = std::mem::take(&mut self.held);
        self.errors(&held);
    }

    /// Takes a piece of standard output.
    pub(crate) fn output(&mut self, piece: &[u8]) {
        let journal = &self.journal;
        self.out.push(piece, |line| journal.line(Stream::Stdout, line));
    }

    /// Takes a piece of standard error.
    pub(crate) fn errors(&mut self, piece: &[u8]) {
        if !self.running {
            self.held.extend_from_slice(piece);
            return;
        }
        let journal = &self.journal;
        self.err.push(piece, |line| journal.line(Stream::Stderr, line));
    }

    /// It has ended: tells what is left, and gives what the runtime has said if that never got it to
    /// run.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let journal = &self.journal;
        for (lines, stream) in [(&mut self.out, Stream::Stdout), (&mut self.err, Stream::Stderr)] {
            lines.finish().into_iter().for_each(|line| journal.line(stream, line));
        }
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn told(journal: &Journal, stream: Stream) -> Vec<String> {
        let lines = journal.lines_from(0).into_iter();
        lines.filter(|line| line.stream == stream).map(|line| line.text).collect()
    }

    #[test]
    fn what_is_said_before_it_runs_is_its_own_if_it_runs_and_the_runtimes_if_not() {
        let (tell, pid) = mpsc::channel();
        let journal = Journal::new();
        let mut alone = Alone::new(Arc::clone(&journal), tell.clone());
        alone.errors(b"first\nsec");
        alone.output(b"out\n");
        assert_eq!(told(&journal, Stream::Stderr), [""; 0]);
        let now = Instant::now();
        alone.reported(b"12", now);
        assert!(!alone.is_running() && pid.try_recv().is_err());
        alone.reported(b"3\n", now);
        assert_eq!(pid.try_recv(), Ok(Pid::from_raw(123).expect("a number")));
        assert_eq!(journal.reached(Milestone::Started), Some(now));
        alone.errors(b"ond\nlast");
        assert_eq!(alone.finish(), b"");
        assert_eq!(told(&journal, Stream::Stderr), ["first", "second", "last"]);
        assert_eq!(told(&journal, Stream::Stdout), ["out"]);

        let mut alone = Alone::new(Arc::clone(&journal), tell);
        alone.errors(&vec![b'x'; HELD]);
        assert!(alone.is_full());
        alone.reported(&[b'9'; 2 * LONGEST_REPORT], now);
        alone.reported(b"\n", now);
        assert!(!alone.is_running());
        assert_eq!(alone.finish().len(), HELD);
    }
}
