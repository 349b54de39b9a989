//! Waits until a started function is ready, the same way for every runtime.
//!
//! Where an init of ours runs in the guest, it pushes the moment in which something listens on the
//! port, and one connect (or GET) confirms it from outside. Elsewhere the port is tried, at
//! growing intervals. Nothing here sleeps: between two tries it waits for the sandbox's end.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use vhive_api::{HttpProbe, Readiness};
use vhive_sandbox::{Deadline, End, Journal, Milestone, WaitError};

/// Pause after the first failed try; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// Longest time for one try.
const ONE_TRY: Duration = Duration::from_secs(2);
/// Longest head of a reply to a probe, in bytes.
const LONGEST_HEAD: usize = 16 << 10;

/// Why a function is not ready.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The sandbox ended before.
    #[error("the sandbox ended before the function was ready: {0}")]
    Ended(End),
    /// Nothing listened on the port in time.
    #[error(
        "nothing listened on port {port} within {} s; the function must listen on $PORT, on all \
         addresses", after.as_secs()
    )]
    NotListening {
        /// The port.
        port: u16,
        /// Time since the function's process was started.
        after: Duration,
    },
    /// Something listens, yet the port accepts no connection from outside.
    #[error(
        "port {port} accepts no connection from outside within {} s; the function must listen on \
         all addresses, not on localhost", after.as_secs()
    )]
    NotAccepting {
        /// The port.
        port: u16,
        /// Time since the function's process was started.
        after: Duration,
        /// The last refusal.
        #[source]
        source: io::Error,
    },
    /// The readiness probe's GET was not answered by 200 to 399.
    #[error("readiness probe GET {path} was answered by {answer} after {} s", after.as_secs())]
    NotReady {
        /// The probe's path.
        path: String,
        /// The last answer, or why there was none.
        answer: String,
        /// Time since the function's process was started.
        after: Duration,
    },
}

/// What to wait for.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// Where the function will listen, as seen from here.
    pub endpoint: SocketAddr,
    /// The port as the function knows it: for messages.
    pub port: u16,
    /// How readiness is confirmed.
    pub readiness: &'a Readiness,
}

impl ProbeError {
    /// Whether waiting longer could help.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        !matches!(self, Self::Ended(_))
    }
}

/// Waits until the function, whose process was started at `began`, is ready, and says when that
/// was. After a deadline it may be called again with a later one.
///
/// # Errors
/// [`ProbeError`], at the deadline or when the sandbox ended.
pub fn wait(
    probe: Probe<'_>,
    journal: &Journal,
    began: Instant,
    deadline: Deadline,
) -> Result<Instant, ProbeError> {
    let mut listening = false;
    if journal.reached(Milestone::KernelUp).is_some() {
        // Only an init of ours tells this; so it will tell the rest as well.
        match journal.wait(Milestone::Listening, deadline) {
            Ok(_) => listening = true,
            Err(WaitError::Ended(end)) => return Err(ProbeError::Ended(end)),
            Err(WaitError::Deadline { .. }) => {
                let after = began.elapsed();
                return Err(ProbeError::NotListening { port: probe.port, after });
            }
        }
    }
    let mut pause = FIRST_PAUSE;
    loop {
        let tried = once(probe, deadline);
        let failed = match tried {
            Ok(()) => return Ok(Instant::now()),
            Err(failed) => failed,
        };
        if let Some(end) = journal.wait_end(deadline.or_after(pause)) {
            return Err(ProbeError::Ended(end));
        }
        if deadline.passed() {
            let (port, after) = (probe.port, began.elapsed());
            return Err(match (failed, probe.readiness) {
                (Failed::Connect(source), _) if listening => {
                    ProbeError::NotAccepting { port, after, source }
                }
                (Failed::Connect(_), _) | (Failed::Answer(_), Readiness::Tcp) => {
                    ProbeError::NotListening { port, after }
                }
                (Failed::Answer(answer), Readiness::Http(HttpProbe { path, .. })) => {
                    ProbeError::NotReady { path: path.clone(), answer, after }
                }
            });
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Failed {
    Connect(io::Error),
    Answer(String),
}

fn once(probe: Probe<'_>, deadline: Deadline) -> Result<(), Failed> {
    let limit = deadline.or_after(ONE_TRY);
    let left = limit.left().max(Duration::from_millis(1));
    let stream = TcpStream::connect_timeout(&probe.endpoint, left).map_err(Failed::Connect)?;
    let Readiness::Http(http) = probe.readiness else { return Ok(()) };
    let status = get(&stream, http, probe.endpoint, limit);
    match status {
        Ok(200..=399) => Ok(()),
        Ok(status) => Err(Failed::Answer(format!("status {status}"))),
        Err(error) => Err(Failed::Answer(error.to_string())),
    }
}

/// Sends one GET and returns the status of its answer.
fn get(
    mut stream: &TcpStream,
    http: &HttpProbe,
    endpoint: SocketAddr,
    limit: Deadline,
) -> io::Result<u16> {
    let mut request = format!("GET {} HTTP/1.1\r\n", http.path);
    let named = |name: &str| http.headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    if !named("host") {
        request.push_str(&format!("Host: {endpoint}\r\n"));
    }
    if !named("user-agent") {
        request.push_str("User-Agent: vhive-probe\r\n");
    }
    for (name, value) in &http.headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("Connection: close\r\n\r\n");
    stream.set_write_timeout(Some(limit.left().max(Duration::from_millis(1))))?;
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        stream.set_read_timeout(Some(limit.left().max(Duration::from_millis(1))))?;
        let n = stream.read(&mut chunk)?;
        head.extend_from_slice(&chunk[..n]);
        let mut headers = [httparse::EMPTY_HEADER; 128];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&head) {
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            Ok(_) if response.code.is_some_and(|code| code >= 200) => {
                return Ok(response.code.unwrap_or_default());
            }
            Ok(_) if n == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if head.len() > LONGEST_HEAD || limit.passed() => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A listener that answers its connections in turn with these bytes, then closes.
    fn answering(answers: Vec<&'static [u8]>) -> (SocketAddr, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let n = stream.read(&mut request).unwrap();
                assert!(request[..n].starts_with(b"GET /ready?x=1 HTTP/1.1\r\n"));
                assert!(String::from_utf8_lossy(&request[..n]).contains("\r\nX-A: b\r\n"));
                // The prober may hang up on nonsense before it has all of it.
                let _sent = stream.write_all(answer);
            }
        });
        (endpoint, thread)
    }

    fn http() -> Readiness {
        let headers = vec![("X-A".to_owned(), "b".to_owned())];
        Readiness::Http(HttpProbe { path: "/ready?x=1".to_owned(), headers })
    }

    fn run(endpoint: SocketAddr, journal: &Journal, span: Duration) -> Result<Instant, ProbeError> {
        let probe = Probe { endpoint, port: 8080, readiness: &http() };
        wait(probe, journal, Instant::now(), Deadline::after(span))
    }

    #[test]
    fn a_get_is_repeated_until_it_is_answered_well() {
        let (endpoint, thread) = answering(vec![
            b"HTTP/1.1 503 no\r\n\r\n",
            b"SSH-2.0-nonsense\r\n",
            b"",
            b"HTTP/1.1 404 no\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 302 elsewhere\r\n\r\n",
        ]);
        run(endpoint, &Journal::new(), PATIENCE).expect("ready in the end");
        thread.join().expect("every answer was asked for");
    }

    #[test]
    fn the_last_bad_answer_is_told() {
        let answers = vec![b"HTTP/1.1 500 no\r\n\r\n".as_slice(); 1000];
        let listener = answering(answers).0;
        let error = run(listener, &Journal::new(), Duration::from_millis(100));
        match error {
            Err(ProbeError::NotReady { path, answer, .. }) => {
                assert_eq!((path.as_str(), answer.as_str()), ("/ready?x=1", "status 500"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_endless_head_ends() {
        let endless: &[u8] = Box::leak(vec![b'x'; 1 << 20].into_boxed_slice());
        let head = b"HTTP/1.1 200 OK\r\nX: ";
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _sent = stream.write_all(head).and_then(|()| stream.write_all(endless));
        });
        let limit = Deadline::after(PATIENCE);
        let stream = TcpStream::connect(endpoint).unwrap();
        let Readiness::Http(probe) = http() else { unreachable!("it is one") };
        // The status is known before the head is too long; nothing beyond the bound is read.
        let status = get(&stream, &probe, endpoint, limit);
        assert!(matches!(status, Ok(200)), "{status:?}");
        drop(stream);
        thread.join().expect("it does not panic");
    }

    #[test]
    fn the_sandboxs_end_ends_the_wait_at_once() {
        let journal = Journal::new();
        let ends = Arc::clone(&journal);
        // Bound, so that nobody else answers there, and never listening.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let endpoint = socket.local_addr().unwrap();
        let thread = std::thread::spawn(move || ends.end(End::Exited(3)));
        let error = run(endpoint, &journal, PATIENCE).expect_err("ended");
        assert!(matches!(error, ProbeError::Ended(End::Exited(3))) && !error.may_pass());
        thread.join().expect("it does not panic");
    }

    #[test]
    fn a_guest_that_tells_is_not_disturbed_before_it_listens() {
        let journal = Journal::new();
        journal.reach(Milestone::KernelUp, Instant::now());
        let (endpoint, _thread) = answering(vec![b"HTTP/1.1 200 OK\r\n\r\n"]);
        let error = run(endpoint, &journal, Duration::from_millis(50)).expect_err("not told");
        assert!(matches!(error, ProbeError::NotListening { port: 8080, .. }), "{error}");
        journal.reach(Milestone::Listening, Instant::now());
        run(endpoint, &journal, PATIENCE).expect("the one answer was not used up");
    }
}
