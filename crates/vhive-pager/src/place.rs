//! Where a thread that serves faults runs: on the CPU of the guest that waits, which is free until it is served.
//! Woken on another CPU, it takes three times as long.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Faults between two looks at where the guest runs.
const FAULTS_PER_LOOK: u32 = 64;

/// The place of one thread; it is that thread's alone.
pub(crate) struct Place {
    /// Where the thread may run; none if its place is fixed.
    may: Option<CpuSet>,
    now: Option<usize>,
    until_look: u32,
}

impl Place {
    /// Of the calling thread: `fixed`, or near its guests within where it may run now.
    pub(crate) fn of_this_thread(fixed: bool) -> Self {
        let may = if fixed { None } else { sched_getaffinity(None).ok() };
        Self { may, now: None, until_look: 0 }
    }

    /// A fault of this thread of a guest is to be served (0: the kernel does not tell which).
    pub(crate) fn near(&mut self, guest_thread: u32) {
        let Some(may) = &self.may else { return };
        if guest_thread == 0 {
            return;
        }
        if self.until_look > 0 {
            self.until_look -= 1;
            return;
        }
        self.until_look = FAULTS_PER_LOOK;
        let Some(cpu) = last_cpu(guest_thread).filter(|cpu| *cpu < CpuSet::MAX_CPU) else { return };
        if self.now == Some(cpu) || !may.is_set(cpu) {
            return;
        }
        let mut there = CpuSet::new();
        there.set(cpu);
        if sched_setaffinity(None, &there).is_ok() {
            self.now = Some(cpu);
        }
    }
}

/// The CPU that a thread ran on last.
///
/// # Source
/// `proc_pid_stat(5)`, field 39.
fn last_cpu(thread: u32) -> Option<usize> {
    processor(&std::fs::read_to_string(format!("/proc/{thread}/stat")).ok()?)
}

fn processor(stat: &str) -> Option<usize> {
    // The name may hold anything; what follows its last parenthesis begins with field 3.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(39 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_moves_to_its_guest() {
        let before = sched_getaffinity(None).expect("told");
        let mut place = Place::of_this_thread(false);
        let me = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).expect("positive");
        place.near(0);
        assert_eq!(place.now, None);
        place.near(me);
        let cpu = place.now.expect("found");
        let now = sched_getaffinity(None).expect("told");
        assert!(before.is_set(cpu) && now.is_set(cpu) && now.count() == 1);
        sched_setaffinity(None, &before).expect("set back");
        let mut fixed = Place::of_this_thread(true);
        fixed.near(me);
        assert_eq!(sched_getaffinity(None).expect("told").count(), before.count());
    }

    #[test]
    fn the_processor_is_read_behind_any_name() {
        let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("17 (a) 1 2 (b) S {}\n", fields.join(" "));
        assert_eq!(processor(&stat), Some(39));
        assert_eq!(processor("17 (a) S 4 5"), None);
        assert_eq!(processor(""), None);
    }
}
