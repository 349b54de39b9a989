//! What the kernel tells of single processes.

use std::fs;

use rustix::process::Pid;
use vhive_api::{Counter, HostCounters};

/// Page faults and I/O of these processes and of the children that they have waited for. A counter
/// that cannot be read of one of them is absent.
pub(super) fn read(processes: &[Pid]) -> HostCounters {
    let of = |pid: &Pid| {
        let file = |name: &str| {
            let path = format!("/proc/{}/{name}", pid.as_raw_nonzero());
            fs::read_to_string(path).unwrap_or_default()
        };
        let mut counts = HostCounters::default();
        counts.0.extend(faults(&file("stat")).into_iter().flatten());
        counts.0.extend(io(&file("io")));
        counts
    };
    processes.iter().map(of).reduce(|a, b| sum(&a, &b)).unwrap_or_default()
}

/// What both have, added.
fn sum(a: &HostCounters, b: &HostCounters) -> HostCounters {
    let both =
        a.0.iter().filter_map(|(counter, n)| Some((*counter, n.checked_add(b.get(*counter)?)?)));
    both.collect()
}

/// # Source
/// proc_pid_stat(5): fields 10 to 13, counted from 1; the second is the program's name in
/// brackets, which may itself hold brackets and spaces.
fn faults(stat: &str) -> Option<[(Counter, u64); 2]> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(7);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let (minor, of_children, major, major_of_children) = (next()?, next()?, next()?, next()?);
    Some([
        (Counter::MinorFaults, minor.checked_add(of_children)?),
        (Counter::MajorFaults, major.checked_add(major_of_children)?),
    ])
}

/// # Source
/// proc_pid_io(5); it includes children that were waited for.
fn io(text: &str) -> impl Iterator<Item = (Counter, u64)> {
    let field = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok())
    };
    let read = field("read_bytes").map(|n| (Counter::ReadBytes, n));
    let written = field("write_bytes").map(|n| (Counter::WrittenBytes, n));
    read.into_iter().chain(written)
}

/// CPU time of the processes' threads that still run, in microseconds: where no group counts.
///
/// # Source
/// `Documentation/scheduler/sched-stats.rst`, `/proc/<pid>/schedstat`: the first number is the time
/// on a CPU in nanoseconds, of one thread.
pub(super) fn cpu_us(processes: &[Pid]) -> Option<u64> {
    let mut total = 0_u64;
    for pid in processes {
        for thread in threads(*pid)? {
            let path = format!("/proc/{}/task/{thread}/schedstat", pid.as_raw_nonzero());
            // One that has ended meanwhile.
            let Ok(text) = fs::read_to_string(path) else { continue };
            let spent: u64 = text.split(' ').next()?.parse().ok()?;
            total = total.checked_add(spent)?;
        }
    }
    Some(total / 1000)
}

/// The threads of a process; none if it has ended.
pub(super) fn threads(pid: Pid) -> Option<Vec<i32>> {
    let entries = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).ok()?;
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    Some(entries.filter_map(Result::ok).filter_map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_behind_any_name() {
        let line = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 20 3 4 11 12 0 0 20 0 1 0 5 6 7";
        let read = faults(line).expect("fields are there");
        assert_eq!(read, [(Counter::MinorFaults, 120), (Counter::MajorFaults, 7)]);
        for strange in ["", "7 (a", "7 (a) S 1", "7 (a) S 1 7 7 0 -1 4194560 -1 0 0 0"] {
            assert_eq!(faults(strange), None, "{strange:?}");
        }
    }

    #[test]
    fn io_that_cannot_be_read_is_absent() {
        let text = "rchar: 9\nwchar: 9\nsyscr: 1\nsyscw: 1\nread_bytes: 4096\nwrite_bytes: 0\n\
                    cancelled_write_bytes: 0\n";
        let read: Vec<_> = io(text).collect();
        assert_eq!(read, [(Counter::ReadBytes, 4096), (Counter::WrittenBytes, 0)]);
        assert_eq!(io("").count(), 0);
    }

    #[test]
    fn a_counter_that_one_process_lacks_is_absent_of_all() {
        let of = |counts: &[(Counter, u64)]| counts.iter().copied().collect::<HostCounters>();
        let whole = of(&[(Counter::MinorFaults, 1), (Counter::ReadBytes, 2)]);
        assert_eq!(
            sum(&whole, &of(&[(Counter::MinorFaults, 4)])),
            of(&[(Counter::MinorFaults, 5)])
        );
    }

    #[test]
    fn this_process_is_counted() {
        let own = [rustix::process::getpid()];
        assert!(read(&own).get(Counter::MinorFaults).is_some_and(|n| n > 0));
        assert!(cpu_us(&own).is_some());
        let nobody = Pid::from_raw(i32::MAX).expect("above the kernel's limit");
        assert!(read(&[nobody]).is_empty());
        assert_eq!(cpu_us(&[nobody]), None);
    }
}
