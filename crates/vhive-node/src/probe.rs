//! Waits until a started function is ready, the same way for every runtime.
//!
//! The sandbox tells the moment in which something listens on the port (an init of ours in the guest
//! notices it; where there is none, the runtime's code looks), and one connect (or GET) confirms it
//! from here. A clone's port is tried, at growing intervals. Nothing here sleeps: between two tries it waits for the sandbox's end.

#[cfg(test)]
mod exec;
mod grpc;

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use vhive_api::{HttpProbe, ProbeTiming, Readiness, TimedProbe};
use vhive_sandbox::{Deadline, End, Journal, Milestone, Sandbox, WaitError};

/// Pause after the first failed try; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// Longest pause between two tries, unless the probe's period is shorter.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// Longest time for one try, unless the probe says another.
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
    /// The probe was answered by something else than success.
    #[error("{stage} probe {what} was answered by {answer} after {} s", after.as_secs())]
    NotReady {
        /// `readiness` or `startup`.
        stage: &'static str,
        /// What was asked, e.g. `GET /healthz`.
        what: String,
        /// The last answer, or why there was none.
        answer: String,
        /// Time since the function's process was started.
        after: Duration,
    },
    /// The startup probe did not succeed within its `failureThreshold` periods.
    #[error("startup probe {what} was answered by {answer} {failures} times, its failureThreshold")]
    NotStarted {
        /// What was asked.
        what: String,
        /// The last answer, or why there was none.
        answer: String,
        /// The threshold.
        failures: u32,
    },
}

/// What to wait for.
#[derive(Debug)]
pub struct Probe<'a> {
    /// Where the function will listen, as seen from here.
    pub endpoint: SocketAddr,
    /// The port as the function knows it: for messages.
    pub port: u16,
    /// How readiness is confirmed.
    pub readiness: &'a Readiness,
    /// When.
    pub timing: ProbeTiming,
    /// What must hold before.
    pub startup: Option<&'a TimedProbe>,
    /// Where commands are run.
    pub sandbox: Option<&'a mut dyn Sandbox>,
}

impl ProbeError {
    /// Whether waiting longer could help.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        !matches!(self, Self::Ended(_) | Self::NotStarted { .. })
    }
}

/// Tries once, without the help of a sandbox; the error is what was answered instead.
pub(crate) fn check(
    check: &Readiness,
    endpoint: SocketAddr,
    limit: Deadline,
) -> Result<(), String> {
    let mut probe = Probe {
        endpoint,
        port: endpoint.port(),
        readiness: check,
        timing: ProbeTiming::default(),
        startup: None,
        sandbox: None,
    };
    once(check, &mut probe, limit).map(drop).map_err(|failed| failed.text())
}

/// One of the two things that are waited for.
#[derive(Clone, Copy)]
struct Stage<'a> {
    name: &'static str,
    check: &'a Readiness,
    timing: ProbeTiming,
    began: Instant,
    /// The sandbox has told that the port is listened on.
    listening: bool,
}

/// That a function is ready.
#[derive(Debug)]
pub struct Passed {
    /// Since when.
    pub at: Instant,
    /// The connection that showed it, if nothing has been said on it: whoever asks the function next
    /// may go on with it.
    pub connection: Option<TcpStream>,
}

/// Waits until the function, whose process was started at `began`, is ready, and says when that
/// was. After a deadline it may be called again with a later one. A clone was ready when its snapshot
/// was taken: it is only asked whether it still is.
///
/// # Errors
/// [`ProbeError`], at the deadline or when the sandbox ended.
pub fn wait(
    mut probe: Probe<'_>,
    journal: &Journal,
    began: Instant,
    deadline: Deadline,
) -> Result<Passed, ProbeError> {
    let mut listening = false;
    let is_clone = journal.reached(Milestone::Resumed).is_some();
    let startup = probe.startup.filter(|_| !is_clone);
    if journal.reached(Milestone::Started).is_some() {
        // What does not listen has failed its startup probe as well.
        let limit = startup.filter(|startup| startup.timing.failures > 0).map(|startup| {
            let timing = startup.timing;
            let failed = timing.period.saturating_mul(timing.failures);
            Deadline::at(began + timing.initial_delay + failed)
        });
        let first = limit.map_or(deadline, |limit| limit.min(deadline));
        // Who tells this tells the rest as well.
        match journal.wait(Milestone::Listening, first) {
            Ok(_) => listening = true,
            Err(WaitError::Ended(end)) => return Err(ProbeError::Ended(end)),
            Err(WaitError::Deadline { .. }) => {
                if let Some(startup) = startup.filter(|_| first < deadline) {
                    let (what, failures) = (what(&startup.check), startup.timing.failures);
                    let answer = format!("nothing listens on port {}", probe.port);
                    return Err(ProbeError::NotStarted { what, answer, failures });
                }
                let after = began.elapsed();
                return Err(ProbeError::NotListening { port: probe.port, after });
            }
        }
    }
    if let Some(startup) = startup {
        let (check, timing) = (&startup.check, startup.timing);
        let stage = Stage { name: "startup", check, timing, began, listening };
        pass(stage, &mut probe, journal, deadline)?;
    }
    let mut stage =
        Stage { name: "readiness", check: probe.readiness, timing: probe.timing, began, listening };
    if is_clone {
        stage.timing = ProbeTiming { timeout: probe.timing.timeout, ..ProbeTiming::default() };
    }
    pass(stage, &mut probe, journal, deadline)
}

/// Tries until it succeeds.
fn pass(
    stage: Stage<'_>,
    probe: &mut Probe<'_>,
    journal: &Journal,
    deadline: Deadline,
) -> Result<Passed, ProbeError> {
    let timing = stage.timing;
    let first = stage.began + timing.initial_delay;
    if first > Instant::now() {
        if let Some(end) = journal.wait_end(deadline.or_after(first - Instant::now())) {
            return Err(ProbeError::Ended(end));
        }
        // Who waits may look again later; to try before its time would be to be wrong.
        if first > Instant::now() {
            let answer = "it is not asked yet: initialDelaySeconds".to_owned();
            return Err(Failed::Answer(answer).error(stage, probe.port));
        }
    }
    let most = if timing.period.is_zero() { LONGEST_PAUSE } else { timing.period };
    // Sooner than a period later, so that readiness is seen when it comes.
    let longest = most.min(LONGEST_PAUSE);
    let give_up = (timing.failures > 0 && stage.name == "startup")
        .then(|| first + most.saturating_mul(timing.failures));
    let one_try = if timing.timeout.is_zero() { ONE_TRY } else { timing.timeout };
    let (mut pause, mut successes) = (FIRST_PAUSE, 0);
    loop {
        let tried = match once(stage.check, probe, deadline.or_after(one_try)) {
            Ok(connection) if successes + 1 >= timing.successes.max(1) => {
                return Ok(Passed { at: Instant::now(), connection });
            }
            tried => tried.map(drop),
        };
        let wait = match &tried {
            Ok(()) => {
                successes += 1;
                timing.period
            }
            Err(_) => {
                successes = 0;
                pause
            }
        };
        if let Some(end) = journal.wait_end(deadline.or_after(wait)) {
            return Err(ProbeError::Ended(end));
        }
        let late = give_up.is_some_and(|at| at <= Instant::now());
        if let Err(failed) = tried {
            if late {
                let (what, answer) = (what(stage.check), failed.text());
                let failures = timing.failures;
                return Err(ProbeError::NotStarted { what, answer, failures });
            }
            if deadline.passed() {
                return Err(failed.error(stage, probe.port));
            }
            pause = (pause * 2).min(longest);
        } else if deadline.passed() {
            let answer = format!("{successes} successes in a row");
            return Err(Failed::Answer(answer).error(stage, probe.port));
        }
    }
}

enum Failed {
    Connect(io::Error),
    Answer(String),
}

impl Failed {
    fn text(&self) -> String {
        match self {
            Self::Connect(error) => error.to_string(),
            Self::Answer(answer) => answer.clone(),
        }
    }

    fn error(self, stage: Stage<'_>, port: u16) -> ProbeError {
        let after = stage.began.elapsed();
        match self {
            Self::Connect(source) if stage.listening => {
                ProbeError::NotAccepting { port, after, source }
            }
            Self::Connect(_) => ProbeError::NotListening { port, after },
            Self::Answer(answer) => {
                ProbeError::NotReady { stage: stage.name, what: what(stage.check), answer, after }
            }
        }
    }
}

/// What is asked, in words.
pub(crate) fn what(check: &Readiness) -> String {
    match check {
        Readiness::Tcp => "of the port".to_owned(),
        Readiness::Http(HttpProbe { path, .. }) => format!("GET {path}"),
        Readiness::Grpc(service) => format!("grpc.health.v1.Health/Check of {service:?}"),
        Readiness::Exec(command) => format!("exec {command:?}"),
    }
}

/// Tries once; the connection is one on which nothing was said.
fn once(
    check: &Readiness,
    probe: &mut Probe<'_>,
    limit: Deadline,
) -> Result<Option<TcpStream>, Failed> {
    let left = limit.left().max(Duration::from_millis(1));
    let connect = || TcpStream::connect_timeout(&probe.endpoint, left).map_err(Failed::Connect);
    let passed = match check {
        Readiness::Tcp => return connect().map(Some),
        Readiness::Http(http) => match get(&connect()?, http, probe.endpoint, limit) {
            Ok(200..=399) => Ok(()),
            Ok(status) => Err(Failed::Answer(format!("status {status}"))),
            Err(error) => Err(Failed::Answer(error.to_string())),
        },
        Readiness::Grpc(service) => {
            // Who does not even accept has another error.
            drop(connect()?);
            grpc::check(probe.endpoint, service, limit).map_err(Failed::Answer)
        }
        Readiness::Exec(command) => {
            // Requests will come to the port, whatever the command says.
            drop(connect()?);
            let ran = probe.sandbox.as_mut().map(|sandbox| sandbox.run(command, limit));
            match ran {
                Some(Ok(0)) => Ok(()),
                Some(Ok(code)) => Err(Failed::Answer(format!("exit code {code}"))),
                Some(Err(error)) => Err(Failed::Answer(error.to_string())),
                None => Err(Failed::Answer("nobody who could run it".to_owned())),
            }
        }
    };
    passed.map(|()| None)
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

    fn run(endpoint: SocketAddr, journal: &Journal, span: Duration) -> Result<Passed, ProbeError> {
        let readiness = http();
        let probe = Probe {
            endpoint,
            port: 8080,
            readiness: &readiness,
            timing: ProbeTiming::default(),
            startup: None,
            sandbox: None,
        };
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
            Err(ProbeError::NotReady { stage, what, answer, .. }) => {
                let told = (stage, what.as_str(), answer.as_str());
                assert_eq!(told, ("readiness", "GET /ready?x=1", "status 500"));
            }
            other => panic!("{other:?}"),
        }
    }

    /// Waits for a probe of a port that accepts everything, and says how long that took.
    fn accepting(timing: ProbeTiming, startup: Option<&TimedProbe>) -> Duration {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap();
        let readiness = Readiness::Tcp;
        let probe =
            Probe { endpoint, port: 1, readiness: &readiness, timing, startup, sandbox: None };
        let began = Instant::now();
        wait(probe, &Journal::new(), began, Deadline::after(PATIENCE)).expect("ready");
        began.elapsed()
    }

    #[test]
    fn delay_and_successes_in_a_row_are_waited_for() {
        let period = Duration::from_millis(40);
        assert!(accepting(ProbeTiming::default(), None) < PATIENCE);
        let timing = ProbeTiming { initial_delay: period, ..ProbeTiming::default() };
        assert!(accepting(timing, None) >= period);
        let timing = ProbeTiming { period, successes: 4, ..ProbeTiming::default() };
        assert!(accepting(timing, None) >= period * 3, "three periods between four successes");
        let startup = TimedProbe {
            check: Readiness::Tcp,
            timing: ProbeTiming { initial_delay: period, ..ProbeTiming::default() },
        };
        assert!(accepting(ProbeTiming::default(), Some(&startup)) >= period);
    }

    #[test]
    fn a_startup_probe_that_fails_long_enough_gives_up() {
        let (endpoint, _thread) = answering(vec![b"HTTP/1.1 500 no\r\n\r\n".as_slice(); 1000]);
        let period = Duration::from_millis(20);
        let timing = ProbeTiming { period, failures: 3, ..ProbeTiming::default() };
        let startup = TimedProbe { check: http(), timing };
        let readiness = Readiness::Tcp;
        let probe = Probe {
            endpoint,
            port: 1,
            readiness: &readiness,
            timing: ProbeTiming::default(),
            startup: Some(&startup),
            sandbox: None,
        };
        let error = wait(probe, &Journal::new(), Instant::now(), Deadline::after(PATIENCE));
        let error = error.expect_err("given up");
        assert!(matches!(error, ProbeError::NotStarted { failures: 3, .. }), "{error}");
        assert!(!error.may_pass() && error.to_string().contains("status 500"), "{error}");
    }

    #[test]
    fn a_delay_beyond_the_first_wait_is_kept_in_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = listener.local_addr().unwrap();
        let delay = Duration::from_millis(150);
        let timing = ProbeTiming { initial_delay: delay, ..ProbeTiming::default() };
        let (began, journal) = (Instant::now(), Journal::new());
        let wait = |span| {
            let readiness = &Readiness::Tcp;
            let probe =
                Probe { endpoint, port: 1, readiness, timing, startup: None, sandbox: None };
            wait(probe, &journal, began, Deadline::after(span))
        };
        // As when a start's turn ends before the delay does: it gives its turn up and waits on.
        let error = wait(Duration::from_millis(20)).expect_err("it is not its time yet");
        assert!(error.may_pass() && error.to_string().contains("initialDelaySeconds"), "{error}");
        assert!(listener.accept().is_err(), "nobody has asked");
        let ready = wait(PATIENCE).expect("ready").at;
        assert!(ready >= began + delay, "{:?}", ready - began);
        assert!(listener.accept().is_ok());
    }

    #[test]
    fn what_does_not_listen_has_failed_its_startup_probe() {
        let journal = Journal::new();
        // Its sandbox would tell.
        journal.reach(Milestone::Started, Instant::now());
        let timing = ProbeTiming {
            initial_delay: Duration::from_millis(10),
            period: Duration::from_millis(20),
            failures: 3,
            ..ProbeTiming::default()
        };
        let startup = TimedProbe { check: Readiness::Tcp, timing };
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let probe = Probe {
            endpoint: socket.local_addr().unwrap(),
            port: 8080,
            readiness: &Readiness::Tcp,
            timing: ProbeTiming::default(),
            startup: Some(&startup),
            sandbox: None,
        };
        let began = Instant::now();
        let error = wait(probe, &journal, began, Deadline::after(PATIENCE)).expect_err("given up");
        let text = error.to_string();
        assert!(matches!(error, ProbeError::NotStarted { failures: 3, .. }), "{text}");
        assert!(text.contains("nothing listens on port 8080") && !error.may_pass(), "{text}");
        assert!((Duration::from_millis(70)..PATIENCE / 2).contains(&began.elapsed()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_health_check_is_repeated_until_it_says_serving() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap();
        let asked = Arc::new(std::sync::atomic::AtomicU8::new(0));
        let counts = Arc::clone(&asked);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counts = Arc::clone(&counts);
                let serve =
                    hyper::service::service_fn(move |request| answer(request, counts.clone()));
                let io = hyper_util::rt::TokioIo::new(stream);
                let executor = hyper_util::rt::TokioExecutor::new();
                let http = hyper::server::conn::http2::Builder::new(executor);
                tokio::spawn(http.serve_connection(io, serve));
            }
        });
        let waited = tokio::task::spawn_blocking(move || {
            let readiness = Readiness::Grpc("shop".to_owned());
            let probe = Probe {
                endpoint,
                port: 8080,
                readiness: &readiness,
                timing: ProbeTiming::default(),
                startup: None,
                sandbox: None,
            };
            wait(probe, &Journal::new(), Instant::now(), Deadline::after(PATIENCE))
        });
        waited.await.unwrap().expect("ready in the end");
        assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 3);
        server.abort();
    }

    type Framed = http_body_util::StreamBody<
        futures_util::stream::Iter<
            std::vec::IntoIter<
                Result<hyper::body::Frame<hyper::body::Bytes>, std::convert::Infallible>,
            >,
        >,
    >;

    /// First not serving, then an error, then serving.
    async fn answer(
        request: http::Request<hyper::body::Incoming>,
        counts: Arc<std::sync::atomic::AtomicU8>,
    ) -> Result<http::Response<Framed>, std::convert::Infallible> {
        use http_body_util::BodyExt as _;
        use hyper::body::{Bytes, Frame};
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&body[..], b"\0\0\0\0\x06\x0a\x04shop");
        let turn = counts.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let mut trailers = http::HeaderMap::new();
        let code = if turn == 1 { "5" } else { "0" };
        trailers.insert("grpc-status", http::HeaderValue::from_static(code));
        let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, if turn == 0 { 2 } else { 1 }]);
        let frames = vec![Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
        Ok(http::Response::new(body))
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
        journal.reach(Milestone::Started, Instant::now());
        let (endpoint, _thread) = answering(vec![b"HTTP/1.1 200 OK\r\n\r\n"]);
        let error = run(endpoint, &journal, Duration::from_millis(50)).expect_err("not told");
        assert!(matches!(error, ProbeError::NotListening { port: 8080, .. }), "{error}");
        journal.reach(Milestone::Listening, Instant::now());
        run(endpoint, &journal, PATIENCE).expect("the one answer was not used up");
    }
}
