//! A server that answers after a known time, to the microsecond: it never sleeps while it listens.
#![expect(clippy::print_stdout, reason = "it tells its parent where it listens")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::thread::{NanosleepRelativeResult, clock_nanosleep_relative};
use rustix::time::{ClockId, Timespec};

const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// How long before the end it stops sleeping and watches the clock: longer than a host that shares its
/// processors with others oversleeps, else the time would not be known.
const WATCH: Duration = Duration::from_millis(2);

/// Answers each head `delay` after its last byte was read, until killed.
pub(crate) fn run(delay: Duration) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        std::thread::spawn(move || serve(stream, delay));
    }
    Ok(())
}

fn serve(mut stream: TcpStream, delay: Duration) {
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
        let until = Instant::now() + delay;
        have = 0;
        wait(until);
        if stream.write_all(REPLY).is_err() {
            return;
        }
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
