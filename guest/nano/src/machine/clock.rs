//! Time since the start, by the time stamp counter, whose rate is measured against the local
//! APIC's timer: that counts nanoseconds in KVM and in QEMU.

use smoltcp::time::Instant;

use super::cpu;
use super::interrupts;

/// How long the counters are compared, in nanoseconds.
const COMPARED: u32 = 100_000;

/// How often the timer is asked meanwhile; one that stands still is not waited for.
const PATIENCE: u32 = 1 << 20;

/// Used where the rate cannot be measured, in ticks of a millisecond.
const USUAL: u64 = 2_000_000;

/// The clock. It never goes back, whatever becomes of the counter in a clone.
#[derive(Debug)]
pub(crate) struct Clock {
    last: u64,
    micros: u64,
    ticks_per_milli: u64,
}

impl Clock {
    /// Begins at 0.
    pub(crate) fn start() -> Self {
        let ticks_per_milli = measure().filter(|ticks| *ticks > 0).unwrap_or(USUAL);
        Self { last: cpu::time_stamp(), micros: 0, ticks_per_milli }
    }

    /// The time now.
    pub(crate) fn now(&mut self) -> Instant {
        let now = cpu::time_stamp();
        let micros = now.saturating_sub(self.last).saturating_mul(1000) / self.ticks_per_milli;
        self.micros = self.micros.saturating_add(micros);
        // What is less than a microsecond counts the next time.
        let counted = micros.saturating_mul(self.ticks_per_milli) / 1000;
        self.last = self.last.saturating_add(counted).min(now);
        Instant::from_micros(i64::try_from(self.micros).unwrap_or(i64::MAX))
    }
}

fn measure() -> Option<u64> {
    interrupts::set_timer(u32::MAX);
    let begin = cpu::time_stamp();
    let mut tries = (0..PATIENCE).map(|_| u32::MAX - interrupts::timer());
    let passed = tries.find(|passed| *passed >= COMPARED);
    let ticks = cpu::time_stamp().saturating_sub(begin);
    interrupts::set_timer(0);
    Some(ticks.saturating_mul(1_000_000) / u64::from(passed?))
}
