//! The function: answers HTTP on its port, several connections at a time.
//!
//! Work goes in slices, so that nobody waits for another's. When every socket is taken, the
//! connection that has been idle longest makes room.

use core::fmt::Write as _;

use heapless::{String, Vec};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};

use crate::http::{self, After, Command, MOST_BODY, MOST_HEAD, MOST_REPLY, Request, Status};
use crate::pages::{Area, Job};

/// Connections at a time, with the sockets that wait for one.
pub const CONNECTIONS: usize = 16;

/// Bytes that TCP keeps for a connection in each direction.
pub const WINDOW: usize = 2048;

/// How long nothing must have come from a connection before it makes room for another.
const IDLE: Duration = Duration::from_secs(1);

/// How long a peer may say nothing at all …
const SILENCE: Duration = Duration::from_secs(10);

/// … though it is asked so often whether it is still there: one that waits for its reply is.
const ASKED: Duration = Duration::from_secs(3);

/// The server. Its sockets live in a set that the network stack polls.
#[derive(Debug)]
pub struct Server {
    port: u16,
    /// Pages that hold the pattern.
    filled: u64,
    connections: Vec<Connection, CONNECTIONS>,
}

/// One socket's conversation.
#[derive(Debug)]
struct Connection {
    socket: SocketHandle,
    input: Vec<u8, MOST_HEAD>,
    output: String<MOST_REPLY>,
    /// How much of the output has been handed to TCP.
    sent: usize,
    /// What is being done, and for which request.
    work: Option<(Request, Job)>,
    /// It is to be closed after the output, or has been.
    closing: bool,
    /// When something last came.
    since: Instant,
}

impl Server {
    /// A server without port and sockets: nobody reaches it.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is made at compile time")]
    pub const fn new() -> Self {
        Self { port: 0, filled: 0, connections: Vec::new() }
    }

    /// Sets the port; to be called before anything else.
    pub const fn listen(&mut self, port: u16) {
        self.port = port;
    }

    /// Adds a socket with two buffers of TCP; one too many is left out.
    pub fn add<'a>(
        &mut self,
        sockets: &mut SocketSet<'a>,
        receive: &'a mut [u8],
        send: &'a mut [u8],
    ) {
        if self.connections.is_full() {
            return;
        }
        let mut socket = Socket::new(SocketBuffer::new(receive), SocketBuffer::new(send));
        socket.set_nagle_enabled(false);
        // Clients that send a request in pieces wait for it.
        socket.set_ack_delay(None);
        socket.set_timeout(Some(SILENCE));
        socket.set_keep_alive(Some(ASKED));
        let connection = Connection {
            socket: sockets.add(socket),
            input: Vec::new(),
            output: String::new(),
            sent: 0,
            work: None,
            closing: false,
            since: Instant::ZERO,
        };
        // There is room.
        let _ = self.connections.push(connection);
    }

    /// Does what can be done now. If there is more to do, says so instead of doing it.
    pub fn serve(
        &mut self,
        sockets: &mut SocketSet<'_>,
        area: &mut impl Area,
        now: Instant,
    ) -> bool {
        let mut busy = false;
        for connection in &mut self.connections {
            let socket = sockets.get_mut(connection.socket);
            busy |= connection.go_on(socket, self.port, (area, &mut self.filled), now);
        }
        self.make_room(sockets, now);
        busy
    }

    /// Gives up the connection that has been idle longest, if no socket is left for another.
    fn make_room(&self, sockets: &mut SocketSet<'_>, now: Instant) {
        let mut idlest: Option<&Connection> = None;
        for connection in &self.connections {
            let socket: &Socket<'_> = sockets.get(connection.socket);
            if !socket.is_open() || socket.is_listening() {
                return;
            }
            let is_idle = connection.work.is_none() && now - connection.since >= IDLE;
            if is_idle && idlest.is_none_or(|other| connection.since < other.since) {
                idlest = Some(connection);
            }
        }
        if let Some(connection) = idlest {
            sockets.get_mut::<Socket<'_>>(connection.socket).abort();
        }
    }
}

impl Connection {
    fn go_on(
        &mut self,
        socket: &mut Socket<'_>,
        port: u16,
        (area, filled): (&mut impl Area, &mut u64),
        now: Instant,
    ) -> bool {
        if !socket.is_open() {
            // One that was given up has a peer until that has been told.
            if socket.state() == State::TimeWait || socket.remote_endpoint().is_none() {
                self.forget();
                // Neither open nor on port 0.
                let _ = socket.listen(port);
            }
            return false;
        }
        if socket.is_listening() {
            self.since = now;
            return false;
        }
        self.send(socket);
        if self.closing {
            // What still comes is of no interest.
            let _ = socket.recv(|bytes| (bytes.len(), ()));
        }
        if self.closing || !self.output.is_empty() {
            return false;
        }
        if let Some((request, mut job)) = self.work.take() {
            if job.go_on(area) {
                self.finish(&request, job, filled);
            } else {
                self.work = Some((request, job));
            }
            return true;
        }
        self.receive(socket, now);
        if let Some(request) = http::parse(&self.input) {
            let rest = self.input.get(request.length..).unwrap_or_default();
            self.input = Vec::from_slice(rest).unwrap_or_default();
            self.begin(request, (area.begin(), area.pages()), *filled);
            return true;
        }
        if socket.state() == State::CloseWait {
            // Nothing can complete the request any more.
            self.close(socket);
        }
        false
    }

    fn forget(&mut self) {
        self.input.clear();
        self.output.clear();
        (self.sent, self.work, self.closing) = (0, None, false);
    }

    fn close(&mut self, socket: &mut Socket<'_>) {
        socket.close();
        self.closing = true;
    }

    fn send(&mut self, socket: &mut Socket<'_>) {
        let left = self.output.as_bytes().get(self.sent..).unwrap_or_default();
        if left.is_empty() || !socket.can_send() {
            return;
        }
        self.sent += socket.send_slice(left).unwrap_or(0);
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
            if self.closing {
                socket.close();
            }
        }
    }

    fn receive(&mut self, socket: &mut Socket<'_>, now: Instant) {
        let room = self.input.capacity() - self.input.len();
        let taken = socket.recv(|bytes| {
            let piece = bytes.get(..room).unwrap_or(bytes);
            let taken = self.input.extend_from_slice(piece).map_or(0, |()| piece.len());
            (taken, taken)
        });
        if taken.is_ok_and(|taken| taken > 0) {
            self.since = now;
        }
    }

    fn begin(&mut self, request: Request, (begin, pages): (u64, u64), filled: u64) {
        let mut body: String<MOST_BODY> = String::new();
        let status = match request.command {
            Ok(Command::Hello) => {
                // Each body is far shorter than its room.
                let _ = body.push_str("hello from nano\n");
                Status::Ok
            }
            Ok(Command::Memory) => {
                let _ = writeln!(body, "pages {pages} filled {filled} begin {begin:#x}");
                Status::Ok
            }
            Ok(Command::Fill { pages: wanted }) if wanted <= pages => {
                self.work = Some((request, Job::fill(wanted)));
                return;
            }
            Ok(Command::Fill { .. }) => {
                let _ = writeln!(body, "only {pages} pages");
                Status::Conflict
            }
            Ok(Command::Touch { pages: wanted, seed, write }) if wanted <= filled => {
                self.work = Some((request, Job::touch((seed, filled), wanted, write)));
                return;
            }
            Ok(Command::Touch { .. }) => {
                let _ = writeln!(body, "only {filled} pages are filled");
                Status::Conflict
            }
            Err(status) => {
                let _ = writeln!(body, "{}", status.as_str());
                status
            }
        };
        self.answer(&request, status, &body);
    }

    fn finish(&mut self, request: &Request, job: Job, filled: &mut u64) {
        let mut body: String<MOST_BODY> = String::new();
        match job {
            Job::Fill { pages, .. } => {
                *filled = pages;
                let _ = writeln!(body, "pages {pages}");
            }
            Job::Touch { pages, checksum, .. } => {
                let _ = writeln!(body, "pages {pages} checksum {checksum:016x}");
            }
        }
        self.answer(request, Status::Ok, &body);
    }

    fn answer(&mut self, request: &Request, status: Status, body: &str) {
        self.output = http::reply(request, status, body);
        self.closing = request.after == After::Close;
    }
}
