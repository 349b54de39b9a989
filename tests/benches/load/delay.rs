//! A server that answers after a known time, to the microsecond: it never sleeps while it listens, and it
//! knows how long it has really taken. After tens of milliseconds the path of a reply through the kernel is
//! cold, and to send one takes a tenth of a millisecond that is not the client's.
#![expect(clippy::print_stdout, reason = "it tells its parent where it listens")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::thread::{NanosleepRelativeResult, clock_nanosleep_relative};
use rustix::time::{ClockId, Timespec};
use vhive_tests::bench::median;

const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Asks how long the others have taken.
const TAKEN: &[u8] = b"GET /taken ";
/// How long before the end it stops sleeping and watches the clock: longer than a host that shares its
/// processors with others oversleeps, else the time would not be known.
const WATCH: Duration = Duration::from_millis(2);

/// Times from the last byte of a request to the end of its reply's sending, in µs.
type Taken = Arc<Mutex<Vec<f64>>>;

/// Answers each head `delay` after its last byte was read, until killed.
pub(crate) fn run(delay: Duration) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let taken = Taken::default();
    for stream in listener.incoming() {
        let stream = stream?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let taken = Arc::clone(&taken);
        std::thread::spawn(move || serve(stream, delay, &taken));
    }
    Ok(())
}

/// The median of the times that the requests until now have taken, in µs; they are forgotten.
pub(crate) fn taken_us(address: &str) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&[TAKEN, b"HTTP/1.1\r\n\r\n"].concat())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    text.trim().parse().context("the server's own time")
}

fn serve(mut stream: TcpStream, delay: Duration, taken: &Taken) {
    let mut buffer = [0; 4096];
    let mut have = 0;
    loop {
        // Awake, so that no wake-up comes before the time that is known.
        match stream.read(&mut buffer[have..]) {
            Ok(got @ 1..) => have += got,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::hint::spin_loop();
                continue;
            }
            Ok(0) | Err(_) => return,
        }
        if !buffer[..have].ends_with(b"\r\n\r\n") {
            continue;
        }
        let begun = Instant::now();
        if buffer.starts_with(TAKEN) {
            // Nobody panics who has the lock.
            let all = std::mem::take(&mut *taken.lock().unwrap_or_else(PoisonError::into_inner));
            drop(stream.write_all(median(&all).to_string().as_bytes()));
            return;
        }
        have = 0;
        wait(begun + delay);
        // Over loopback it is with the client when this returns.
        if stream.write_all(REPLY).is_err() {
            return;
        }
        let us = begun.elapsed().as_secs_f64() * 1e6;
        taken.lock().unwrap_or_else(PoisonError::into_inner).push(us);
    }
}

fn wait(until: Instant) {
    let sleep = until.saturating_duration_since(Instant::now()).saturating_sub(WATCH);
    if !sleep.is_zero() {
        let tv_sec = i64::try_from(sleep.as_secs()).unwrap_or(i64::MAX);
        let time = Timespec { tv_sec, tv_nsec: sleep.subsec_nanos().into() };
        // A signal makes the watching longer, nothing else.
        let _woken: NanosleepRelativeResult = clock_nanosleep_relative(ClockId::Monotonic, &time);
    }
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}
