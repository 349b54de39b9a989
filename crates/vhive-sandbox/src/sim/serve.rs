//! One thread that serves every simulated sandbox: edge-triggered epoll, a heap of timers.
//!
//! All state is behind one lock, so that closing a sandbox takes effect before it returns. What a
//! journal is to be told is told after the lock is released.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::fault::{Fault, Plan};
use super::http::{self, Head, Progress, Reader};
use crate::deadline::Deadline;
use crate::journal::{End, Journal, Milestone};
use crate::runtime::SandboxSpec;

/// Names one sandbox within its server.
pub(super) type UnitNo = u64;
type ConnNo = u64;

/// The token of the wake-up descriptor.
const WAKE: u64 = 0;
/// Bytes read ahead while a reply is due.
const READ_AHEAD: usize = 64 << 10;

/// The thread and what it serves.
pub(super) struct Server {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    epoll: OwnedFd,
    wake: OwnedFd,
    state: Mutex<State>,
    /// Notified when connections have ended.
    fewer: Condvar,
}

#[derive(Default)]
struct State {
    quit: bool,
    last: u64,
    units: HashMap<UnitNo, Unit>,
    conns: HashMap<ConnNo, Conn>,
    timers: BinaryHeap<Reverse<(Instant, u64, Due)>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Listen,
    Reply,
}

/// One sandbox: its listener and what it does.
struct Unit {
    socket: OwnedFd,
    journal: Arc<Journal>,
    plan: Plan,
    tells: bool,
    text: String,
    begun: u64,
    replied: u64,
    conns: Vec<ConnNo>,
}

struct Conn {
    unit: UnitNo,
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    reader: Reader,
    head: Head,
    /// A reply is due; nothing more is read off the input before it is out.
    replying: bool,
    source: Source,
    /// Ends once the output is out.
    closing: bool,
}

/// What a socket may still give.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Perhaps something at once.
    More,
    /// Nothing before the next event.
    Drained,
    /// Nothing ever again.
    Ended,
}

/// Something to tell a journal once the lock is released.
enum Note {
    Listening(Arc<Journal>),
    End(Arc<Journal>, End),
}

impl Server {
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let (state, fewer) = (Mutex::default(), Condvar::new());
        let inner = Arc::new(Inner { epoll, wake, state, fewer });
        let of_thread = Arc::clone(&inner);
        let thread = std::thread::Builder::new().name("vhive-sim".to_owned());
        let thread = thread.spawn(move || of_thread.run())?;
        Ok(Arc::new(Self { inner, thread: Mutex::new(Some(thread)) }))
    }

    /// Binds the sandbox's address; nothing listens yet.
    pub(super) fn open(
        &self,
        at: SocketAddrV4,
        spec: &SandboxSpec,
        plan: &Plan,
        tells: bool,
    ) -> io::Result<(UnitNo, SocketAddr)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &at)?;
        let endpoint = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
        let text = format!(
            "{{\"runtime\":\"sim\",\"sandbox\":\"{}\",\"reply_ms\":{}}}\n",
            spec.id,
            plan.reply.as_millis()
        );
        let unit = Unit {
            socket,
            journal: Arc::clone(&spec.journal),
            plan: *plan,
            tells,
            text,
            begun: 0,
            replied: 0,
            conns: Vec::new(),
        };
        let mut state = self.inner.state();
        let no = state.next();
        state.units.insert(no, unit);
        Ok((no, endpoint))
    }

    /// The function has been started: it listens after this time.
    pub(super) fn begin(&self, no: UnitNo, after: Duration) {
        let mut state = self.inner.state();
        if after.is_zero() {
            let note = self.inner.listen(&mut state, no);
            drop(state);
            note.into_iter().for_each(Note::tell);
        } else if let Some(at) = Instant::now().checked_add(after) {
            state.timers.push(Reverse((at, no, Due::Listen)));
            drop(state);
            self.inner.wake();
        }
    }

    /// How many connections a sandbox has, once there is none or the deadline has passed.
    pub(super) fn connections(&self, no: UnitNo, deadline: Deadline) -> usize {
        let mut state = self.inner.state();
        loop {
            let open = state.units.get(&no).map_or(0, |unit| unit.conns.len());
            if open == 0 || deadline.passed() {
                return open;
            }
            let waited = self.inner.fewer.wait_timeout(state, deadline.left());
            state = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
    }

    /// Ends a sandbox, its listener and its connections. Does nothing if it has ended already.
    pub(super) fn close(&self, no: UnitNo, end: End) {
        let unit = self.inner.state().remove(no);
        if let Some(unit) = unit {
            unit.journal.end(end);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.inner.state().quit = true;
        self.inner.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // Its panic has been printed; there is nothing to add.
            let _ended = thread.join();
        }
    }
}

impl Inner {
    fn run(&self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
        loop {
            let next = self.state().timers.peek().map(|Reverse((at, ..))| *at);
            let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = timeout.and_then(|span| Timespec::try_from(span).ok());
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the simulator's thread cannot go on");
                    return;
                }
            }
            let mut notes = Vec::new();
            let mut state = self.state();
            if state.quit {
                return;
            }
            for event in &events {
                self.ready(&mut state, event.data.u64(), &mut notes);
            }
            self.expire(&mut state, &mut notes);
            drop(state);
            self.fewer.notify_all();
            notes.into_iter().for_each(Note::tell);
        }
    }

    fn ready(&self, state: &mut State, token: u64, notes: &mut Vec<Note>) {
        if token == WAKE {
            // Level-triggered: reading it resets it; nothing to read means someone else did.
            let _count = rustix::io::read(&self.wake, &mut [0_u8; 8]);
        } else if state.units.contains_key(&token) {
            self.accept(state, token, notes);
        } else if let Some(conn) = state.conns.get_mut(&token) {
            if conn.source == Source::Drained {
                conn.source = Source::More;
            }
            self.advance(state, token, notes);
        }
    }

    fn expire(&self, state: &mut State, notes: &mut Vec<Note>) {
        let now = Instant::now();
        while let Some(Reverse((at, no, due))) = state.timers.peek().copied() {
            if at > now {
                return;
            }
            state.timers.pop();
            match due {
                Due::Listen => notes.extend(self.listen(state, no)),
                Due::Reply => {
                    state.reply(no, notes);
                    self.advance(state, no, notes);
                }
            }
        }
    }

    fn listen(&self, state: &mut State, no: UnitNo) -> Option<Note> {
        let unit = state.units.get(&no)?;
        if matches!(unit.plan.fault, Some(Fault::NeverListen | Fault::ExitAtOnce(_))) {
            return None;
        }
        let listening = rustix::net::listen(&unit.socket, 1024).and_then(|()| {
            let data = EventData::new_u64(no);
            epoll::add(&self.epoll, &unit.socket, data, EventFlags::IN | EventFlags::ET)
        });
        if let Err(error) = listening {
            let (step, reason) = ("listen".to_owned(), error.to_string());
            let journal = Arc::clone(&unit.journal);
            return Some(Note::End(journal, End::Failed { step, reason }));
        }
        unit.tells.then(|| Note::Listening(Arc::clone(&unit.journal)))
    }

    fn accept(&self, state: &mut State, no: UnitNo, notes: &mut Vec<Note>) {
        loop {
            let Some(unit) = state.units.get(&no) else { return };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let stream = match rustix::net::accept_with(&unit.socket, flags) {
                Ok(fd) => TcpStream::from(fd),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(error) => {
                    tracing::warn!(%error, "a simulated sandbox cannot accept");
                    return;
                }
            };
            let conn_no = state.next();
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            let data = EventData::new_u64(conn_no);
            if let Err(error) = epoll::add(&self.epoll, stream.as_fd(), data, flags) {
                tracing::warn!(%error, "a simulated sandbox cannot serve a connection");
                continue;
            }
            state.conns.insert(conn_no, Conn::new(no, stream));
            if let Some(unit) = state.units.get_mut(&no) {
                unit.conns.push(conn_no);
            }
            self.advance(state, conn_no, notes);
        }
    }

    /// Reads, answers and writes as far as it goes without waiting.
    fn advance(&self, state: &mut State, no: ConnNo, notes: &mut Vec<Note>) {
        loop {
            let Some(conn) = state.conns.get_mut(&no) else { return };
            if !conn.flush() {
                return state.drop_conn(no);
            }
            if conn.output.is_empty() && conn.closing {
                return state.drop_conn(no);
            }
            if conn.replying || !conn.output.is_empty() {
                return;
            }
            match conn.reader.read(&mut conn.input) {
                Progress::Wait => {
                    if !conn.fill() {
                        return state.drop_conn(no);
                    }
                    if conn.source == Source::Drained {
                        return;
                    }
                }
                Progress::Head(head) => {
                    conn.head = head;
                    if head.expects_continue {
                        conn.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                    }
                }
                Progress::Bad(status) => {
                    let head = Head { closes: true, ..conn.head };
                    conn.output.extend_from_slice(&http::reply(status, head, "{}\n"));
                    conn.closing = true;
                }
                Progress::Whole => {
                    conn.replying = true;
                    state.answer(no, notes);
                }
            }
        }
    }

    fn wake(&self) {
        // The counter cannot overflow in practice; a full one wakes just as well.
        let _written = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// A whole request has come in.
    fn answer(&mut self, no: ConnNo, notes: &mut Vec<Note>) {
        let Some(unit_no) = self.conns.get(&no).map(|conn| conn.unit) else { return };
        let Some(unit) = self.units.get_mut(&unit_no) else { return };
        unit.begun += 1;
        match unit.plan.fault {
            Some(Fault::Mute) => {}
            Some(Fault::CrashAt(n)) if unit.begun >= n => self.crash(no, unit_no, notes),
            _ if unit.plan.reply.is_zero() => self.reply(no, notes),
            _ => {
                let at = Instant::now() + unit.plan.reply;
                self.timers.push(Reverse((at, no, Due::Reply)));
            }
        }
    }

    fn reply(&mut self, no: ConnNo, notes: &mut Vec<Note>) {
        let Some(conn) = self.conns.get_mut(&no) else { return };
        let unit_no = conn.unit;
        let Some(unit) = self.units.get_mut(&unit_no) else { return };
        unit.replied += 1;
        conn.output.extend_from_slice(&http::reply(200, conn.head, &unit.text));
        conn.closing |= conn.head.closes;
        conn.replying = false;
        if matches!(unit.plan.fault, Some(Fault::ExitAfter(n)) if unit.replied >= n) {
            conn.flush();
            if let Some(unit) = self.remove(unit_no) {
                notes.push(Note::End(unit.journal, End::Exited(0)));
            }
        }
    }

    /// Half a reply, then nothing more of the whole sandbox.
    fn crash(&mut self, no: ConnNo, unit_no: UnitNo, notes: &mut Vec<Note>) {
        if let (Some(conn), Some(unit)) = (self.conns.get_mut(&no), self.units.get(&unit_no)) {
            let whole = http::reply(200, conn.head, &unit.text);
            conn.output.extend_from_slice(&whole[..whole.len() - unit.text.len() / 2]);
            conn.flush();
        }
        if let Some(unit) = self.remove(unit_no) {
            let how = End::Vanished("the sandbox crashed as told".to_owned());
            notes.push(Note::End(unit.journal, how));
        }
    }

    fn remove(&mut self, no: UnitNo) -> Option<Unit> {
        let unit = self.units.remove(&no)?;
        for conn in &unit.conns {
            self.conns.remove(conn);
        }
        Some(unit)
    }

    fn drop_conn(&mut self, no: ConnNo) {
        let Some(conn) = self.conns.remove(&no) else { return };
        if let Some(unit) = self.units.get_mut(&conn.unit) {
            unit.conns.retain(|known| *known != no);
        }
    }
}

impl Conn {
    fn new(unit: UnitNo, stream: TcpStream) -> Self {
        Self {
            unit,
            stream,
            input: Vec::new(),
            output: Vec::new(),
            reader: Reader::default(),
            head: Head { expects_continue: false, closes: false, head_only: false },
            replying: false,
            source: Source::More,
            closing: false,
        }
    }

    /// Reads what there is, up to a bound; false when nothing more will come.
    fn fill(&mut self) -> bool {
        if self.source == Source::Ended {
            return false;
        }
        let mut chunk = [0; 8 << 10];
        while self.input.len() < READ_AHEAD {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.source = Source::Ended;
                    // What was read before the end may still hold a request.
                    return !self.input.is_empty();
                }
                Ok(n) => {
                    self.input.extend_from_slice(&chunk[..n]);
                    if n < chunk.len() {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.source = Source::Drained;
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Writes what it can; false when the connection is broken.
    fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

impl Note {
    fn tell(self) {
        match self {
            Self::Listening(journal) => journal.reach(Milestone::Listening, Instant::now()),
            Self::End(journal, end) => journal.end(end),
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("units", &self.inner.state().units.len()).finish()
    }
}
