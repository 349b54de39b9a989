//! What functions use up of the machine that they run on: memory and CPU time.

use std::fs;
use std::hint::black_box;
use std::io;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

const PAGE: usize = 4096;

/// Memory that is held; every page of it has been written to.
#[derive(Debug)]
pub struct Touched(Vec<u8>);

impl Touched {
    /// Bytes of the pages that were written to.
    #[must_use]
    pub fn touched_bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Takes memory and writes to every page of it.
///
/// # Errors
/// When there is not so much.
pub fn touch(bytes: u64) -> Result<Touched, String> {
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

/// CPU time that this thread has used.
#[must_use]
pub fn thread_cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}

/// Does so many steps of arithmetic, each needing the one before.
pub fn turn(times: u64) {
    let mut state = 0_u64;
    for _ in 0..times {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

/// Memory that can be had without swapping, in MiB.
///
/// # Errors
/// When the kernel does not tell.
///
/// # Source
/// Linux, `Documentation/filesystems/proc.rst`, `MemAvailable`.
pub fn free_memory_mib() -> io::Result<u64> {
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
    fn memory_is_had_or_refused() {
        assert_eq!(touch(3 << 20).expect("3 MiB are there").touched_bytes(), 3 << 20);
        assert!(touch(u64::MAX >> 1).is_err());
        assert!(free_memory_mib().expect("the test runs on Linux") > 0);
    }

    #[test]
    fn the_threads_clock_runs_with_its_work() {
        let begun = thread_cpu_time();
        turn(1_000_000);
        assert!(thread_cpu_time() > begun);
    }
}
