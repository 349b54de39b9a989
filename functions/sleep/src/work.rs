//! The work itself: touching pages, and spinning against the thread's own CPU clock.

use std::fs;
use std::hint::black_box;
use std::io;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

const PAGE: usize = 4096;

/// Memory that is held; every page of it has been written to.
pub(crate) struct Touched(Vec<u8>);

impl Touched {
    pub(crate) fn touched_bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Why memory could not be had.
pub(crate) type NoMemory = String;

/// Touches `bytes` of memory, then spins until this thread has used `cpu` in all. Returns the
/// memory and the CPU time used.
pub(crate) fn spend(cpu: Duration, bytes: u64) -> Result<(Touched, Duration), NoMemory> {
    let begun = thread_cpu_time();
    let touched = touch(bytes)?;
    let mut turns = 0_u64;
    loop {
        let used = thread_cpu_time().saturating_sub(begun);
        if used >= cpu {
            return Ok((touched, used));
        }
        // Some microseconds between looks at the clock, so that most of the time is spent here.
        for _ in 0..2_000 {
            turns = black_box(turns.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

fn touch(bytes: u64) -> Result<Touched, NoMemory> {
    let refuse = || format!("cannot have {bytes} bytes of memory");
    let size = usize::try_from(bytes).map_err(|_| refuse())?;
    let mut memory = Vec::new();
    memory.try_reserve_exact(size).map_err(|_| refuse())?;
    memory.resize(size, 0);
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    Ok(Touched(black_box(memory)))
}

fn thread_cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}

/// Memory that can be had without swapping, in MiB.
///
/// # Source
/// Linux, `Documentation/filesystems/proc.rst`, `MemAvailable`.
pub(crate) fn free_memory_mib() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    kib.map(|kib| kib >> 10)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no MemAvailable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_memory_are_really_used() {
        let (touched, used) = spend(Duration::from_millis(20), 3 << 20).expect("3 MiB are there");
        assert_eq!(touched.touched_bytes(), 3 << 20);
        assert!(used >= Duration::from_millis(20) && used < Duration::from_millis(40), "{used:?}");
    }

    #[test]
    fn memory_that_no_host_has_is_refused() {
        assert!(spend(Duration::ZERO, u64::MAX >> 1).is_err());
    }

    #[test]
    fn free_memory_is_known() {
        assert!(free_memory_mib().expect("the test runs on Linux") > 0);
    }
}
