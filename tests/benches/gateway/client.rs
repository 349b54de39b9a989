//! A closed-loop HTTP/1.1 client: each connection sends its next request when it has the reply.
#![expect(clippy::print_stdout, reason = "it tells its parent what it measured")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use vhive_tests::bench::quantile;

/// What a run measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

const REQUEST: &[u8] = b"GET /greet?name=vhive HTTP/1.1\r\nHost: bench.default.example.com\r\n\
    User-Agent: vhive-bench\r\nAccept: */*\r\n\r\n";

/// When a connection stops.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// So much time is over.
    Over(Duration),
    /// It has sent so many requests.
    Sent(usize),
}

/// Milliseconds, or requests if an `x` follows.
impl std::str::FromStr for Until {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_suffix('x') {
            Some(requests) => requests.parse().map(Self::Sent),
            None => text.parse().map(Duration::from_millis).map(Self::Over),
        }
    }
}

/// Sends until then and prints the figures.
pub(crate) fn run(address: &str, connections: usize, until: Until) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(async {
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            clients.spawn(client(stream, until));
        }
        let mut all = Vec::new();
        let mut seconds: f64 = 0.0;
        while let Some(one) = clients.join_next().await {
            let (latencies, took) = one??;
            all.extend(latencies);
            seconds = seconds.max(took);
        }
        anyhow::Ok(Measured {
            requests: all.len() as u64,
            seconds,
            p50_us: quantile(&all, 0.5),
            p99_us: quantile(&all, 0.99),
        })
    })?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

async fn client(mut stream: TcpStream, until: Until) -> anyhow::Result<(Vec<f64>, f64)> {
    let mut latencies = Vec::with_capacity(1 << 14);
    let mut buffer = vec![0; 8192];
    let begun = Instant::now();
    loop {
        let sent = Instant::now();
        stream.write_all(REQUEST).await?;
        read_reply(&mut stream, &mut buffer).await?;
        latencies.push(sent.elapsed().as_secs_f64() * 1e6);
        let took = begun.elapsed();
        let ends = match until {
            Until::Over(time) => took > time,
            Until::Sent(most) => latencies.len() >= most,
        };
        if ends {
            return Ok((latencies, took.as_secs_f64()));
        }
    }
}

async fn read_reply(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<()> {
    let mut have = 0;
    loop {
        let got = stream.read(&mut buffer[have..]).await?;
        if got == 0 {
            bail!("closed after {:?}", String::from_utf8_lossy(&buffer[..have]));
        }
        have += got;
        let Some(end) = buffer[..have].windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        if !buffer.starts_with(b"HTTP/1.1 200") {
            bail!("reply {:?}", String::from_utf8_lossy(&buffer[..have]));
        }
        if have - end - 4 >= content_length(&buffer[..end]).context("no Content-Length")? {
            return Ok(());
        }
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    let lines = head.split(|byte| *byte == b'\n');
    for line in lines {
        if line.len() > 16 && line[..15].eq_ignore_ascii_case(b"content-length:") {
            return std::str::from_utf8(&line[15..]).ok()?.trim().parse().ok();
        }
    }
    None
}
