//! The rate of this host's time stamp counter, which an emulated guest cannot measure itself.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How long the counter is watched: both clocks are read within about 100 ns, so the error is a
/// few parts in a million.
const SPAN: Duration = Duration::from_millis(40);

/// What a rate must lie between, in kHz, to be believed.
const PLAUSIBLE: std::ops::RangeInclusive<u64> = 100_000..=10_000_000;

/// Why the rate is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TscError {
    /// The CPU has no counter with a constant rate.
    #[error("this CPU has no time stamp counter with a constant rate (no invariant_tsc)")]
    NotInvariant,
    /// The measured rate cannot be right.
    #[error("measured a time stamp counter of {0} kHz, which cannot be right")]
    Implausible(u64),
}

/// Measures the rate of the time stamp counter in kHz against `CLOCK_MONOTONIC_RAW`, which takes
/// 40 ms; good to 0.01 %. Ask once and keep the answer.
///
/// # Errors
/// [`TscError`]; an emulated guest may then hang while booting.
pub fn tsc_khz() -> Result<u32, TscError> {
    let cpu = raw_cpuid::CpuId::new();
    let invariant =
        cpu.get_advanced_power_mgmt_info().is_some_and(|power| power.has_invariant_tsc());
    if !invariant {
        return Err(TscError::NotInvariant);
    }
    let counter = quanta::Clock::new();
    let (from_ns, from) = read_both(&counter);
    wait();
    let (to_ns, to) = read_both(&counter);
    // Ticks per nanosecond, times a million, are kHz.
    let khz =
        u128::from(to.saturating_sub(from)) * 1_000_000 / u128::from((to_ns - from_ns).max(1));
    let khz = u64::try_from(khz).unwrap_or(u64::MAX);
    if !PLAUSIBLE.contains(&khz) {
        return Err(TscError::Implausible(khz));
    }
    u32::try_from(khz).map_err(|_| TscError::Implausible(khz))
}

/// Both clocks at the same moment: of several tries the one that was interrupted least.
fn read_both(counter: &quanta::Clock) -> (u64, u64) {
    let attempt = |_| {
        let before = raw_ns();
        let ticks = counter.raw();
        let after = raw_ns();
        (after - before, (before + (after - before) / 2, ticks))
    };
    (0..16).map(attempt).min().map_or((0, 0), |(_, pair)| pair)
}

fn raw_ns() -> u64 {
    let now = clock_gettime(ClockId::MonotonicRaw);
    // The clock counts from the host's start and is never negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Lets the span pass: a rate can only be measured over time.
fn wait() {
    let span = rustix::time::Timespec::try_from(SPAN).expect("a few milliseconds");
    // Ending early by a signal only makes the span shorter.
    let _ = rustix::event::poll(&mut [], Some(&span));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let Ok(first) = tsc_khz() else {
            eprintln!("SKIP two_measurements_agree: no invariant time stamp counter");
            return;
        };
        let second = tsc_khz().unwrap();
        let off = f64::from(first.abs_diff(second)) / f64::from(first);
        assert!(off < 0.000_5, "{first} and {second} kHz differ by {off}");
    }
}
