//! Keeps the generator to some of the host's processors.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vhive_api::Cpus;

/// How often the list of threads may turn out to have grown.
const ROUNDS: usize = 100;

/// Why the process cannot be kept to some processors.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The host does not have one of them, or this process may not use it.
    #[error("CPU {cpu} cannot be used here; {known}")]
    NoSuchCpu {
        /// Which one.
        cpu: u32,
        /// Those that can, in words.
        known: String,
    },
    /// The kernel refuses.
    #[error("cannot keep thread {thread} to CPUs {cpus}")]
    Refused {
        /// Which thread.
        thread: i32,
        /// Where it was to run.
        cpus: Cpus,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The threads of this process cannot be listed.
    #[error("cannot list the threads of this process")]
    Threads(#[source] io::Error),
}

/// Keeps every thread of this process, and all that they will start, to these processors.
///
/// # Errors
/// [`PinError`]; when a processor cannot be used, nothing has changed.
pub fn pin(cpus: &Cpus) -> Result<(), PinError> {
    check(cpus)?;
    let mut set = CpuSet::new();
    for cpu in cpus.iter() {
        set.set(usize::try_from(cpu).unwrap_or(usize::MAX));
    }
    let mut pinned: Vec<i32> = Vec::new();
    // A thread that one of the last ones has started meanwhile may not have its processors from it.
    for _ in 0..ROUNDS {
        let threads = threads().map_err(PinError::Threads)?;
        let new: Vec<i32> = threads.into_iter().filter(|one| !pinned.contains(one)).collect();
        if new.is_empty() {
            return Ok(());
        }
        for thread in new {
            match sched_setaffinity(Pid::from_raw(thread), &set) {
                // It has ended.
                Ok(()) | Err(Errno::SRCH) => pinned.push(thread),
                Err(error) => {
                    let cpus = cpus.clone();
                    return Err(PinError::Refused { thread, cpus, source: error.into() });
                }
            }
        }
    }
    let ceaseless = io::Error::other("new ones keep appearing");
    Err(PinError::Threads(ceaseless))
}

fn check(cpus: &Cpus) -> Result<(), PinError> {
    let highest = u32::try_from(CpuSet::MAX_CPU).unwrap_or(u32::MAX);
    // All of the host's, not those that this process was kept to before.
    let online = fs::read_to_string("/sys/devices/system/cpu/online");
    let online = online.ok().and_then(|text| text.parse::<Cpus>().ok()).or_else(own);
    let known = || match &online {
        Some(online) => format!("this host's are {online}"),
        None => "the host's are not known".to_owned(),
    };
    let lacking = online.as_ref().and_then(|online| cpus.first_not_in(online));
    match lacking.or_else(|| cpus.iter().find(|cpu| *cpu >= highest)) {
        Some(cpu) => Err(PinError::NoSuchCpu { cpu, known: known() }),
        None => Ok(()),
    }
}

/// The processors that this thread may use.
fn own() -> Option<Cpus> {
    let set = sched_getaffinity(None).ok()?;
    let allowed = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu));
    Cpus::of(allowed.filter_map(|cpu| u32::try_from(cpu).ok()))
}

fn threads() -> io::Result<Vec<i32>> {
    let entries = fs::read_dir("/proc/self/task")?.filter_map(Result::ok);
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_that_is_not_there_is_named() {
        let cpus: Cpus = "0,8191".parse().expect("a list");
        let error = pin(&cpus).expect_err("no host has so many").to_string();
        assert!(error.starts_with("CPU 8191 cannot be used here"), "{error}");
    }
}
