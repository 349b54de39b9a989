//! `syscalls`: makes a stated number of cheap system calls, then says how long each kind took.
//!
//! Isolations differ most in what a system call costs: a container's goes to the host's kernel, a
//! microVM's to its own, and gVisor intercepts each.

use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::parent_id;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vhive_function::{Function, Reply, Request};

/// Most rounds of one request.
const MAX_ROUNDS: u64 = 1_000_000;
/// System calls in a round: `getppid`, `stat`, `write` and `read`.
const CALLS: u64 = 4;

struct Syscalls;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    #[serde(default = "rounds")]
    rounds: u64,
}

const fn rounds() -> u64 {
    2000
}

#[derive(Serialize)]
struct Output {
    /// As asked for.
    rounds: u64,
    /// System calls made, those of the measurement itself not counted.
    calls: u64,
    /// Nanoseconds per call.
    getppid_ns: f64,
    /// Nanoseconds per call.
    stat_ns: f64,
    /// Nanoseconds per call, writes and reads together.
    pipe_ns: f64,
    /// From the first call to the last, in ms.
    measured_wall_ms: f64,
}

impl Function for Syscalls {
    const NAME: &'static str = "syscalls";
    const HELP: &'static str = r#"POST / with {"rounds":2000}, or GET /?rounds=2000, makes four system calls per round and replies with the time per call"#;

    async fn call(&self, request: Request) -> Reply {
        let input: Input = match request.numbers() {
            Ok(input) => input,
            Err(reply) => return reply,
        };
        if !(1..=MAX_ROUNDS).contains(&input.rounds) {
            return Reply::bad_request(&format!("rounds must be from 1 to {MAX_ROUNDS}"));
        }
        // A thread per request, as in `sleep`.
        match tokio::task::spawn_blocking(move || make(input.rounds)).await {
            Ok(Ok(output)) => Reply::json(&output),
            Ok(Err(error)) => Reply::internal(&format!("a system call failed: {error}")),
            Err(error) => Reply::internal(&error),
        }
    }
}

fn make(rounds: u64) -> io::Result<Output> {
    let begun = Instant::now();
    let getppid = timed(rounds, || {
        black_box(parent_id());
        Ok(())
    })?;
    let stat = timed(rounds, || std::fs::metadata("/").map(|found| _ = black_box(found)))?;
    let (mut reader, mut writer) = io::pipe()?;
    let mut byte = [0];
    let pipe = timed(rounds, || {
        writer.write_all(&byte)?;
        reader.read_exact(&mut byte)
    })?;
    let per_call = |took: Duration, calls: u64| took.as_nanos() as f64 / calls as f64;
    Ok(Output {
        rounds,
        calls: rounds * CALLS,
        getppid_ns: per_call(getppid, rounds),
        stat_ns: per_call(stat, rounds),
        pipe_ns: per_call(pipe, rounds * 2),
        measured_wall_ms: begun.elapsed().as_secs_f64() * 1e3,
    })
}

fn timed(rounds: u64, mut call: impl FnMut() -> io::Result<()>) -> io::Result<Duration> {
    let begun = Instant::now();
    for _ in 0..rounds {
        call()?;
    }
    Ok(begun.elapsed())
}

fn main() -> ExitCode {
    vhive_function::run(Syscalls)
}
