//! QEMU's control socket: one JSON value per line, a command, its answer, events in between.
//! Descriptors travel beside a command as ancillary data.
//!
//! # Source
//! QEMU, `docs/interop/qmp-spec.txt`.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use crate::deadline::Deadline;

/// Longest line that we accept, in bytes.
const LONGEST_LINE: u64 = 1 << 20;

/// Events kept for whoever waits for one later; older ones are dropped.
const KEPT_EVENTS: usize = 64;

/// An open control connection.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
    events: VecDeque<Value>,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// The connection failed, ended, or did not answer in time.
    #[error("no answer from QEMU")]
    Connection(#[from] io::Error),
    /// Not what QEMU says.
    #[error("QEMU's answer is not understood")]
    Answer(#[from] serde_json::Error),
    /// Somebody else's greeting.
    #[error("that is not QEMU's control socket")]
    Greeting,
    /// QEMU's own words.
    #[error("QEMU refused {command}: {reason}")]
    Refused { command: String, reason: String },
}

impl Qmp {
    /// Waits for QEMU's greeting, which it sends once the machine has been built, and opens the
    /// connection for commands.
    pub(super) fn greet(stream: UnixStream, deadline: Deadline) -> Result<Self, QmpError> {
        let mut qmp = Self { reader: BufReader::new(stream), events: VecDeque::new() };
        if qmp.read(deadline)?.get("QMP").is_none() {
            return Err(QmpError::Greeting);
        }
        qmp.execute("qmp_capabilities", None, deadline)?;
        Ok(qmp)
    }

    /// Carries out one command and returns its answer; events that arrive before it are kept.
    pub(super) fn execute(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        deadline: Deadline,
    ) -> Result<Value, QmpError> {
        self.execute_with(command, arguments, None, deadline)
    }

    /// Gives QEMU a descriptor under a name, for commands that take `fd:<name>`.
    pub(super) fn give_fd(
        &mut self,
        name: &str,
        fd: BorrowedFd<'_>,
        deadline: Deadline,
    ) -> Result<(), QmpError> {
        let arguments = json!({ "fdname": name });
        self.execute_with("getfd", Some(arguments), Some(fd), deadline).map(drop)
    }

    /// Waits for an event of this name whose data is as wanted, and returns the data.
    pub(super) fn wait_event(
        &mut self,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
        deadline: Deadline,
    ) -> Result<Value, QmpError> {
        loop {
            while let Some(mut event) = self.events.pop_front() {
                if event["event"] == name && wanted(&event["data"]) {
                    return Ok(event["data"].take());
                }
            }
            let message = self.read(deadline)?;
            self.keep(message);
        }
    }

    fn keep(&mut self, message: Value) {
        if message.get("event").is_some() {
            if self.events.len() == KEPT_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(message);
        }
    }

    fn execute_with(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        fd: Option<BorrowedFd<'_>>,
        deadline: Deadline,
    ) -> Result<Value, QmpError> {
        let mut message = json!({ "execute": command });
        if let Some(arguments) = arguments {
            message["arguments"] = arguments;
        }
        let mut line = serde_json::to_vec(&message)?;
        line.push(b'\n');
        let stream = self.reader.get_mut();
        stream.set_write_timeout(Some(left(deadline)?))?;
        let sent = fd.map_or(Ok(0), |fd| send_with(stream, &line, fd))?;
        stream.write_all(&line[sent..])?;
        loop {
            let mut answer = self.read(deadline)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                let (command, reason) = (command.to_owned(), reason.to_owned());
                return Err(QmpError::Refused { command, reason });
            }
            self.keep(answer);
        }
    }

    fn read(&mut self, deadline: Deadline) -> Result<Value, QmpError> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            self.reader.get_ref().set_read_timeout(Some(left(deadline)?))?;
            let most = LONGEST_LINE.saturating_sub(line.len() as u64);
            match self.reader.by_ref().take(most).read_until(b'\n', &mut line) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(serde_json::from_slice(&line)?)
    }
}

/// Sends the beginning of a line with a descriptor beside it; says how much has left.
fn send_with(stream: &UnixStream, line: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    beside.push(SendAncillaryMessage::ScmRights(&fds));
    Ok(sendmsg(stream, &[IoSlice::new(line)], &mut beside, SendFlags::NOSIGNAL)?)
}

/// The time left, which a socket takes only if there is some.
fn left(deadline: Deadline) -> io::Result<std::time::Duration> {
    let left = deadline.left();
    if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;

    /// A connection to somebody who has already said all this.
    fn told(lines: &[&str]) -> (UnixStream, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        lines.iter().for_each(|line| writeln!(theirs, "{line}").expect("written"));
        (ours, theirs)
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(10))
    }

    #[test]
    fn events_are_passed_over_and_errors_told() {
        let event = r#"{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}}"#;
        let refused = r#"{"error": {"class": "CommandNotFound", "desc": "no such command"}}"#;
        let (ours, _theirs) =
            told(&[GREETING, event, r#"{"return": {}}"#, r#"{"return": {"a": 1}}"#, refused]);
        let mut qmp = Qmp::greet(ours, soon()).expect("greeted");
        let answer = qmp.execute("query-a", Some(json!({ "b": 2 })), soon()).expect("answered");
        assert_eq!(answer, json!({ "a": 1 }));
        let error = qmp.execute("nonsense", None, soon()).expect_err("refused");
        assert_eq!(error.to_string(), "QEMU refused nonsense: no such command");
    }

    #[test]
    fn an_event_is_found_whether_it_came_before_or_comes_later() {
        let event =
            |status: &str| format!(r#"{{"event": "MIGRATION", "data": {{"status": "{status}"}}}}"#);
        let (setup, done) = (event("setup"), event("completed"));
        let (ours, mut theirs) = told(&[
            GREETING,
            r#"{"return": {}}"#,
            &setup,
            r#"{"return": {}}"#,
            r#"{"event": "STOP"}"#,
            &done,
        ]);
        let mut qmp = Qmp::greet(ours, soon()).expect("greeted");
        qmp.execute("migrate", None, soon()).expect("answered");
        let wanted = |data: &Value| data["status"] == "completed";
        let data = qmp.wait_event("MIGRATION", wanted, soon()).expect("seen");
        assert_eq!(data, json!({ "status": "completed" }));
        let brief = Deadline::after(Duration::from_millis(20));
        assert!(qmp.wait_event("MIGRATION", wanted, brief).is_err());
        // A descriptor arrives beside its command.
        writeln!(theirs, r#"{{"return": {{}}}}"#).expect("written");
        let (file, other) = UnixStream::pair().expect("a socket pair");
        qmp.give_fd("state", std::os::fd::AsFd::as_fd(&file), soon()).expect("given");
        drop((file, other));
    }

    #[test]
    fn silence_and_nonsense_are_errors() {
        let (ours, _theirs) = told(&[]);
        let deadline = Deadline::after(Duration::from_millis(20));
        assert!(matches!(Qmp::greet(ours, deadline), Err(QmpError::Connection(_))));
        let (ours, _theirs) = told(&["hello"]);
        assert!(matches!(Qmp::greet(ours, soon()), Err(QmpError::Answer(_))));
        let (ours, _theirs) = told(&["{}"]);
        assert!(matches!(Qmp::greet(ours, soon()), Err(QmpError::Greeting)));
    }
}
