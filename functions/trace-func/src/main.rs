//! `trace-func`: does what an invocation of a trace does: so many milliseconds of work, so much memory.
//!
//! The amount of work of a millisecond is calibrated before the function listens, and corrected by work that is
//! faster. A CPU that is slower later, or shared, then takes longer for the same work, as a real function would;
//! by how much is in the reply. `functions/sleep` looks at the clock instead and stops in time.
//!
//! # Source
//! invitro's `trace-func-go`: the same messages and variables; there the pace is that of one machine of
//! CloudLab's, and memory is echoed, not touched.

mod spin;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use spin::{Pace, drift_percent};
use vhive_function::{Done, Function, Reply, Request, Work, host};

/// Longest CPU time of one request, in ms.
const MAX_MS: u64 = 600_000;
/// Longest work before it listens, in ms.
const MAX_START_MS: u64 = 60_000;

struct TraceFunc {
    pace: Arc<Pace>,
    /// Whether it replies at once, whatever is asked for.
    is_empty: bool,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    /// CPU time whose amount of work is done.
    #[serde(default)]
    cpu_ms: u64,
    /// Memory to touch and to hold until the reply.
    #[serde(default)]
    memory_mib: u64,
}

#[derive(Debug, Serialize)]
struct Output {
    /// As asked for.
    cpu_ms: u64,
    /// As asked for.
    memory_mib: u64,
    /// CPU time that the work took, in ms, by a clock whose ticks are 10 ms under gVisor.
    measured_cpu_ms: f64,
    /// From the request's beginning to its end, in ms.
    measured_wall_ms: f64,
    /// Bytes of the pages that were written to.
    touched_bytes: u64,
    /// How much longer than asked for the work took, in per cent of CPU time, within a tick of its clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    drift_percent: Option<f64>,
}

impl Function for TraceFunc {
    const NAME: &'static str = "trace-func";
    const HELP: &'static str = r#"POST / with {"cpu_ms":50,"memory_mib":16}, or GET /?cpu_ms=50&memory_mib=16, does the work of 50 ms and touches 16 MiB; faas.Executor/Execute does the same over gRPC"#;

    async fn call(&self, request: Request) -> Reply {
        let input: Input = match request.numbers() {
            Ok(input) => input,
            Err(reply) => return reply,
        };
        match self.work(input).await {
            Ok(output) => Reply::json(&output),
            Err(reply) => reply,
        }
    }

    async fn execute(&self, work: Work) -> Option<Result<Done, String>> {
        let input = Input {
            cpu_ms: work.runtime_in_milli_sec.into(),
            memory_mib: work.memory_in_mebi_bytes.into(),
        };
        let micros = |ms: f64| {
            let span = Duration::try_from_secs_f64(ms / 1e3).unwrap_or(Duration::MAX);
            u32::try_from(span.as_micros()).unwrap_or(u32::MAX)
        };
        let done = self.work(input).await.map(|output| Done {
            message: match output.drift_percent {
                Some(drift) => format!("OK - {} - drift {drift:+.2} %", Self::NAME),
                None => format!("OK - {}", Self::NAME),
            },
            duration_in_micro_sec: micros(output.measured_wall_ms),
            memory_usage_in_kb: u32::try_from(output.touched_bytes >> 10).unwrap_or(u32::MAX),
        });
        Some(done.map_err(|reply| String::from_utf8_lossy(&reply.body).trim().to_owned()))
    }
}

impl TraceFunc {
    async fn work(&self, input: Input) -> Result<Output, Reply> {
        let begun = Instant::now();
        if self.is_empty {
            let nothing = output(input, Duration::ZERO, 0, begun);
            return Ok(Output { drift_percent: None, ..nothing });
        }
        if input.cpu_ms > MAX_MS {
            return Err(Reply::bad_request(&format!("cpu_ms must be at most {MAX_MS}")));
        }
        match host::free_memory_mib() {
            Ok(free) if input.memory_mib <= free => {}
            Ok(free) => {
                return Err(Reply::bad_request(&format!("memory_mib must be at most {free} here")));
            }
            Err(error) => {
                return Err(Reply::internal(&format!("cannot read /proc/meminfo: {error}")));
            }
        }
        let pace = Arc::clone(&self.pace);
        // A thread per request: the clock of the thread counts one request only.
        let spent = tokio::task::spawn_blocking(move || {
            let touched = host::touch(input.memory_mib << 20)?;
            let took = pace.spin(input.cpu_ms);
            Ok((touched.touched_bytes(), took))
        });
        match spent.await {
            Ok(Ok((bytes, took))) => Ok(output(input, took, bytes, begun)),
            Ok(Err(error)) => {
                let error: String = error;
                Err(Reply::bad_request(&error))
            }
            Err(error) => Err(Reply::internal(&error)),
        }
    }
}

fn output(input: Input, took: Duration, touched_bytes: u64, begun: Instant) -> Output {
    Output {
        cpu_ms: input.cpu_ms,
        memory_mib: input.memory_mib,
        measured_cpu_ms: took.as_secs_f64() * 1e3,
        measured_wall_ms: begun.elapsed().as_secs_f64() * 1e3,
        touched_bytes,
        drift_percent: drift_percent(input.cpu_ms, took),
    }
}

/// `FUNC_TYPE_ENV` and `COLD_START_BUSY_LOOP_MS`, as the original has them.
fn from_environment() -> Result<(bool, u64), String> {
    let is_empty = match std::env::var("FUNC_TYPE_ENV").as_deref() {
        Ok("EMPTY") => true,
        Ok("TRACE" | "") | Err(_) => false,
        Ok(other) => return Err(format!("FUNC_TYPE_ENV={other:?} is neither TRACE nor EMPTY")),
    };
    let start_ms = match std::env::var("COLD_START_BUSY_LOOP_MS").as_deref() {
        Ok("") | Err(_) => 0,
        Ok(text) => text.parse().ok().filter(|ms| *ms <= MAX_START_MS).ok_or_else(|| {
            format!("COLD_START_BUSY_LOOP_MS={text} is no number up to {MAX_START_MS}")
        })?,
    };
    Ok((is_empty, start_ms))
}

fn main() -> ExitCode {
    match from_environment() {
        Ok((is_empty, start_ms)) => {
            let pace = Pace::find();
            pace.spin(start_ms);
            vhive_function::run(TraceFunc { pace: Arc::new(pace), is_empty })
        }
        Err(error) => {
            eprintln!("{}: {error}", TraceFunc::NAME);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(is_empty: bool) -> TraceFunc {
        TraceFunc { pace: Arc::new(Pace::find()), is_empty }
    }

    #[tokio::test]
    async fn work_of_a_trace_is_really_done() {
        let work = Work { runtime_in_milli_sec: 20, memory_in_mebi_bytes: 3, ..Work::default() };
        let done =
            function(false).execute(work.clone()).await.expect("it is there").expect("it fits");
        assert!(done.duration_in_micro_sec >= 10_000, "{done:?}");
        assert_eq!(done.memory_usage_in_kb, 3 << 10);
        assert!(done.message.contains("drift"), "{done:?}");
        let huge = Work { memory_in_mebi_bytes: u32::MAX, ..Work::default() };
        let refused = function(false).execute(huge).await.expect("it is there").unwrap_err();
        assert!(refused.contains("memory_mib must be at most"), "{refused}");
    }

    /// Of this process, in bytes.
    ///
    /// # Source
    /// Linux, `Documentation/filesystems/proc.rst`, `VmRSS`.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let kib = status.lines().find_map(|line| {
            line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        });
        kib.expect("it is told") << 10
    }

    /// What is greatest of the memory while a request is worked on.
    async fn greatest_while(work: impl Future<Output = Result<Output, Reply>>) -> (Output, u64) {
        let (done, ticks) = std::sync::mpsc::channel::<()>();
        let look = std::thread::spawn(move || {
            let mut greatest = 0;
            while ticks.recv_timeout(Duration::from_millis(5))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                greatest = greatest.max(resident());
            }
            greatest
        });
        let output = work.await.expect("it fits");
        drop(done);
        (output, look.join().expect("it looks"))
    }

    #[tokio::test]
    async fn memory_is_held_until_the_work_is_done_and_then_given_back() {
        const MIB: u64 = 96;
        let before = resident();
        let function = function(false);
        let input = Input { cpu_ms: 150, memory_mib: MIB };
        let (output, greatest) = greatest_while(function.work(input)).await;
        let after = resident();
        assert_eq!(output.touched_bytes, MIB << 20);
        // Other tests of this process have a few MiB besides.
        let (held, left) = (greatest.saturating_sub(before), after.saturating_sub(before));
        assert!(held >= (MIB << 20) * 9 / 10, "{held} bytes more while it worked");
        assert!(held <= (MIB << 20) * 5 / 4 + (16 << 20), "{held} bytes more while it worked");
        assert!(left <= 16 << 20, "{left} bytes more after it");
    }

    #[tokio::test]
    async fn the_work_is_neither_much_less_nor_much_more_than_asked_for() {
        const MS: u64 = 100;
        // Whatever shares the CPU's core makes the same work longer, and nothing makes it shorter: the least
        // of a few tells.
        let mut least = f64::MAX;
        for _ in 0..5 {
            let input = Input { cpu_ms: MS, memory_mib: 0 };
            let output = function(false).work(input).await.expect("it fits");
            let drift = output.drift_percent.expect("work was asked for");
            let told = (output.measured_cpu_ms / MS as f64 - 1.0) * 100.0;
            assert!((drift - told).abs() < 1e-6, "{drift} is what is told of {output:?}");
            assert!(output.measured_wall_ms >= output.measured_cpu_ms * 0.9, "{output:?}");
            least = least.min(output.measured_cpu_ms);
        }
        assert!((95.0..=200.0).contains(&least), "{least} ms of CPU time for {MS} ms");
    }

    #[tokio::test]
    async fn the_empty_one_does_nothing_and_says_so() {
        let output = function(true).work(Input { cpu_ms: 600_001, memory_mib: 1 << 40 }).await;
        let output = output.expect("nothing is looked at");
        assert_eq!(
            (output.touched_bytes, output.measured_cpu_ms, output.drift_percent),
            (0, 0.0, None)
        );
    }
}
