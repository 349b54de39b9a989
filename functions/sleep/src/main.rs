//! `sleep`: uses a stated amount of CPU time and memory, then says what it really used.
//!
//! The load generator's probe: an invocation from a trace has a duration and a memory size, and
//! this function has them.
//!
//! # Source
//! invitro's `Executor.Execute`, which spins for a time but leaves memory alone; here both are real.

mod work;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vhive_function::{Done, Function, Reply, Request, Work, host};

/// Longest CPU and idle time of one request.
const MAX_MS: u64 = 600_000;

struct Sleep;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    /// CPU time to use up.
    #[serde(default)]
    cpu_ms: u64,
    /// Memory to touch and to hold until the reply.
    #[serde(default)]
    memory_mib: u64,
    /// Time to wait without using the CPU.
    #[serde(default)]
    idle_ms: u64,
}

#[derive(Serialize)]
struct Output {
    /// As asked for.
    cpu_ms: u64,
    /// As asked for.
    memory_mib: u64,
    /// As asked for.
    idle_ms: u64,
    /// CPU time that the work's thread has used, in ms: never less than asked for; 0 if there was no work.
    measured_cpu_ms: f64,
    /// From the start of the work to its end, in ms.
    measured_wall_ms: f64,
    /// Bytes of the pages that were written to.
    touched_bytes: u64,
}

impl Function for Sleep {
    const NAME: &'static str = "sleep";
    const HELP: &'static str = r#"POST / with {"cpu_ms":50,"memory_mib":16,"idle_ms":0}, or GET /?cpu_ms=50&memory_mib=16, uses that much and replies with what it measured; faas.Executor/Execute does the same over gRPC"#;

    async fn call(&self, request: Request) -> Reply {
        let input: Input = match request.numbers() {
            Ok(input) => input,
            Err(reply) => return reply,
        };
        match use_up(input).await {
            Ok(output) => Reply::json(&output),
            Err(reply) => reply,
        }
    }

    async fn execute(&self, work: Work) -> Option<Result<Done, String>> {
        let input = Input {
            cpu_ms: work.runtime_in_milli_sec.into(),
            memory_mib: work.memory_in_mebi_bytes.into(),
            idle_ms: 0,
        };
        let micros = |ms: f64| {
            let span = Duration::try_from_secs_f64(ms / 1e3).unwrap_or(Duration::MAX);
            u32::try_from(span.as_micros()).unwrap_or(u32::MAX)
        };
        let done = use_up(input).await.map(|output| Done {
            message: Self::NAME.to_owned(),
            duration_in_micro_sec: micros(output.measured_wall_ms),
            memory_usage_in_kb: u32::try_from(output.touched_bytes >> 10).unwrap_or(u32::MAX),
        });
        Some(done.map_err(|reply| String::from_utf8_lossy(&reply.body).trim().to_owned()))
    }
}

async fn use_up(input: Input) -> Result<Output, Reply> {
    if input.cpu_ms > MAX_MS || input.idle_ms > MAX_MS {
        let reason = format!("cpu_ms and idle_ms must be at most {MAX_MS}");
        return Err(Reply::bad_request(&reason));
    }
    if input.memory_mib > 0 {
        fits(input.memory_mib)?;
    }
    let begun = Instant::now();
    // A thread per request: two requests at a time share the CPU as two processes would, and the
    // clock of the thread counts one request only.
    let cpu = Duration::from_millis(input.cpu_ms);
    let memory = input.memory_mib << 20;
    let is_nothing = input.cpu_ms == 0 && input.memory_mib == 0;
    let (done, used) = if is_nothing {
        // Not even a thread: what only waits is to cost nothing.
        (host::touch(0).map_err(|error| Reply::internal(&error))?, Duration::ZERO)
    } else {
        match tokio::task::spawn_blocking(move || work::spend(cpu, memory)).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => return Err(Reply::bad_request(&error)),
            Err(error) => return Err(Reply::internal(&error)),
        }
    };
    if input.idle_ms > 0 {
        tokio::time::sleep(Duration::from_millis(input.idle_ms)).await;
    }
    let touched_bytes = done.touched_bytes();
    drop(done);
    Ok(Output {
        cpu_ms: input.cpu_ms,
        memory_mib: input.memory_mib,
        idle_ms: input.idle_ms,
        measured_cpu_ms: used.as_secs_f64() * 1e3,
        measured_wall_ms: begun.elapsed().as_secs_f64() * 1e3,
        touched_bytes,
    })
}

/// Whether so much memory can be had.
fn fits(memory_mib: u64) -> Result<(), Reply> {
    match host::free_memory_mib() {
        Ok(free) if memory_mib <= free => Ok(()),
        Ok(free) => Err(Reply::bad_request(&format!("memory_mib must be at most {free} here"))),
        Err(error) => Err(Reply::internal(&format!("cannot read /proc/meminfo: {error}"))),
    }
}

fn main() -> ExitCode {
    vhive_function::run(Sleep)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_only_waits_uses_nothing() {
        let input = Input { cpu_ms: 0, memory_mib: 0, idle_ms: 3 };
        let output = use_up(input).await.expect("it is little");
        assert_eq!(
            (output.touched_bytes, output.measured_cpu_ms.to_bits()),
            (0, 0.0_f64.to_bits())
        );
        assert!(output.measured_wall_ms >= 3.0);
    }

    #[tokio::test]
    async fn work_of_a_trace_is_really_done() {
        let work = Work { runtime_in_milli_sec: 20, memory_in_mebi_bytes: 3, ..Work::default() };
        let done = Sleep.execute(work).await.expect("it is implemented").expect("it fits");
        assert!(done.duration_in_micro_sec >= 20_000, "{done:?}");
        assert_eq!(done.memory_usage_in_kb, 3 << 10);
        let work = Work { memory_in_mebi_bytes: u32::MAX, ..Work::default() };
        let refused = Sleep.execute(work).await.expect("it is implemented").unwrap_err();
        assert!(refused.contains("memory_mib must be at most"), "{refused}");
    }
}
