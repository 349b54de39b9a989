//! Tells the function of a snapshot: by a POST on its own port, or by a command of its image.
//!
//! A POST is made by a thread of its own: meanwhile init goes on reading what the function prints, which
//! would otherwise stand still as soon as its pipe is full.

use std::io::{self, PipeReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::failure::{Failure, Step as _};

/// How long a hook may take altogether.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// What begins a hook that is a command.
const COMMAND: &str = "exec:";

/// Bytes of a reply's head that are read at the most.
const MOST: usize = 4096;

/// The command that a hook is, if it is one: the words behind `exec:`.
pub(crate) fn command(hook: &str) -> Option<Vec<String>> {
    Some(hook.strip_prefix(COMMAND)?.split_ascii_whitespace().map(str::to_owned).collect())
}

/// What a hook's command came to.
pub(crate) fn ran(hook: &str, code: i32, killed: bool) -> Result<(), Failure> {
    match code {
        _ if killed => Err(format!("it took longer than {} s", PATIENCE.as_secs())),
        0 => Ok(()),
        code => Err(format!("it ended with {code}")),
    }
    .step(format!("tell the function by {hook}"))
}

/// A POST under way. Its descriptor is readable once it is over.
#[derive(Debug)]
pub(crate) struct Call {
    over: PipeReader,
    outcome: JoinHandle<Result<(), Failure>>,
}

impl AsFd for Call {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.over.as_fd()
    }
}

impl Call {
    /// Begins to send a POST without content.
    pub(crate) fn begin(port: u16, path: &str) -> Result<Self, Failure> {
        let step = "begin to tell the function";
        let (over, end) = io::pipe().step(step)?;
        let path = path.to_owned();
        let until = Instant::now() + PATIENCE;
        let thread = std::thread::Builder::new().name("hook".to_owned());
        let outcome = thread.spawn(move || {
            let outcome = call(port, &path, until);
            drop(end);
            outcome
        });
        Ok(Self { over, outcome: outcome.step(step)? })
    }

    /// Whether it is.
    pub(crate) fn is_over(&self) -> bool {
        let mut over = [PollFd::new(&self.over, PollFlags::IN)];
        poll(&mut over, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// How it went; waits until it is over.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        let panicked = |_| Err("its thread panicked".to_owned()).step("tell the function");
        self.outcome.join().unwrap_or_else(panicked)
    }
}

/// Sends a POST without content; any status from 200 to 299 is success.
fn call(port: u16, path: &str, until: Instant) -> Result<(), Failure> {
    let step = format!("tell the function by POST {path}");
    let status = post(port, path, until).step(&step)?;
    if (200..300).contains(&status) {
        return Ok(());
    }
    Err(format!("it answered {status}")).step(step)
}

fn post(port: u16, path: &str, until: Instant) -> Result<u16, String> {
    let plain = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    if !plain {
        return Err(format!("{path:?} is no path"));
    }
    let late = || format!("it took longer than {} s", PATIENCE.as_secs());
    let head = exchange(port, path, until).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => late(),
        _ => error.to_string(),
    });
    head.and_then(|head| status(&head))
}

/// What is left until then.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn exchange(port: u16, path: &str, until: Instant) -> io::Result<Vec<u8>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, left(until)?)?;
    stream.set_write_timeout(Some(left(until)?))?;
    // In one piece: a server may answer and close as soon as it has read the first of several.
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut piece = [0; 512];
    while head.len() < MOST && !head.contains(&b'\n') {
        // However many pieces it comes in.
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(&mut piece)? {
            0 => break,
            got => head.extend_from_slice(&piece[..got]),
        }
    }
    Ok(head)
}

/// The status in a reply's first line.
fn status(head: &[u8]) -> Result<u16, String> {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let text = String::from_utf8_lossy(line);
    let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    let status = status.and_then(|code| code.trim().parse().ok());
    let other = "its answer is not HTTP/1.1; a function that speaks HTTP/2 alone needs a command, \
                 `exec:/PROGRAM ARG …`";
    status.ok_or_else(|| other.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_and_nonsense_is_not() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n"), Ok(204));
        assert_eq!(status(b"HTTP/1.0 500\r\n"), Ok(500));
        for bad in [&b""[..], b"HTTP/1.1", b"HTTP/2 200", b"HTTP/1.1 abc x", b"SSH-2.0"] {
            assert!(status(bad).is_err());
        }
    }

    #[test]
    fn a_hook_is_called_and_a_refusal_is_told() {
        for (reply, good) in [("HTTP/1.1 200 OK\r\n\r\n", true), ("HTTP/1.1 500 X\r\n\r\n", false)]
        {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut piece = [0; 1024];
                    let got = stream.read(&mut piece).unwrap();
                    assert!(got > 0, "the request ends within its head");
                    head.extend_from_slice(&piece[..got]);
                }
                stream.write_all(reply.as_bytes()).unwrap();
                String::from_utf8(head).unwrap()
            });
            let call = Call::begin(port, "/vhive/after-restore").unwrap();
            assert_eq!(call.finish().is_ok(), good);
            assert!(server.join().unwrap().starts_with("POST /vhive/after-restore HTTP/1.1\r\n"));
        }
        let failure = Call::begin(1, "no path").unwrap().finish().unwrap_err();
        assert!(failure.reason.contains("is no path"), "{failure:?}");
    }

    #[test]
    fn a_hook_is_bounded_as_a_whole_however_slowly_its_answer_drips() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // Until the other side has had enough.
            while stream.write_all(b"x").is_ok() {
                std::thread::park_timeout(Duration::from_millis(5));
            }
        });
        let began = Instant::now();
        let bound = Duration::from_millis(200);
        let failure = call(port, "/hook", began + bound).unwrap_err();
        assert!(failure.reason.contains("it took longer"), "{failure:?}");
        assert!(began.elapsed() >= bound && began.elapsed() < PATIENCE, "{:?}", began.elapsed());
        server.join().unwrap();
    }

    #[test]
    fn a_hook_may_be_a_command() {
        assert_eq!(command("/path"), None);
        assert_eq!(
            command("exec:/bin/x  -a b"),
            Some(["/bin/x", "-a", "b"].map(str::to_owned).into())
        );
        assert!(ran("exec:x", 0, false).is_ok());
        for (code, killed, why) in [(3, false, "ended with 3"), (137, true, "longer than 5 s")] {
            let failure = ran("exec:x", code, killed).unwrap_err();
            assert!(failure.reason.contains(why) && failure.step.contains("exec:x"), "{failure:?}");
        }
    }
}
