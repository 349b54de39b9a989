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

/// Waits until the function is ready and says when that was.
///
/// # Errors
/// [`ProbeError`], at the deadline or when the sandbox ended.
pub fn wait(
    probe: Probe<'_>,
    journal: &Journal,
    deadline: Deadline,
) -> Result<Instant, ProbeError> {
    let began = Instant::now();
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
