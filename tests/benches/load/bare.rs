//! A client with nothing in it: what the machine and its loopback add to a known time, whoever measures.
#![expect(clippy::print_stdout, reason = "it tells its parent what it measured")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use vhive_tests::bench::median;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench.default.example.com\r\n\r\n";

/// Sends at a fixed rate over one connection, never asleep, and prints the median time of a request, in µs.
pub(crate) fn run(address: &str, rate: f64, millis: u64) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let (begun, every) = (Instant::now(), Duration::from_secs_f64(1.0 / rate));
    let mut took = Vec::new();
    let mut next = begun;
    while next.duration_since(begun) < Duration::from_millis(millis) {
        while Instant::now() < next {
            std::hint::spin_loop();
        }
        took.push(ask(&mut stream)?.as_secs_f64() * 1e6);
        next += every;
    }
    if took.is_empty() {
        bail!("nothing was sent");
    }
    println!("{}", median(&took));
    Ok(())
}

fn ask(stream: &mut TcpStream) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    stream.write_all(REQUEST).context("request")?;
    let (mut buffer, mut have) = ([0; 4096], 0);
    while !buffer[..have].ends_with(b"\r\n\r\nok") {
        match stream.read(&mut buffer[have..]) {
            Ok(got @ 1..) => have += got,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Ok(0) => bail!("no reply"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(begun.elapsed())
}
