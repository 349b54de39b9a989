//! The work itself: touching pages, and spinning against the thread's own CPU clock.

use std::time::Duration;

use vhive_function::host::{Touched, thread_cpu_time, touch, turn};

/// Turns between two looks at the clock: some microseconds, so that most of the time is spent in them.
const TURNS: u64 = 2_000;

/// Touches `bytes` of memory, then spins until this thread has used `cpu` in all. Returns the
/// memory and the CPU time used.
pub(crate) fn spend(cpu: Duration, bytes: u64) -> Result<(Touched, Duration), String> {
    let begun = thread_cpu_time();
    let touched = touch(bytes)?;
    loop {
        let used = thread_cpu_time().saturating_sub(begun);
        if used >= cpu {
            return Ok((touched, used));
        }
        turn(TURNS);
    }
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
}
