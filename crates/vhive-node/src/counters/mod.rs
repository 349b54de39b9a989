//! What a sandbox's processes have used of the host, counted by the host.
//!
//! ```text
//!   control group     CPU time                                    exact, also of ended processes
//!   /proc/<pid>/…     page faults, I/O                            with the children waited for
//!   perf events       switches, cycles, cache misses, TopDown …   from when they are first asked for
//! ```
//!
//! Nothing is counted on an invocation's way: whoever wants to know what one has used asks before
//! and after it. What the host does not offer is absent, and [`offered`] says why.

mod events;
mod processes;
mod topdown;

use std::fmt;
use std::sync::{Mutex, PoisonError};

use rustix::process::Pid;
use vhive_api::{Counter, HostCounters, SandboxId};
use vhive_sandbox::RunRoot;
use vhive_sandbox::cgroup::cpu_time;

pub use events::{Offered, offered};

/// How much is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// What the kernel counts in any case. Costs tens of microseconds, when asked.
    Basic,
    /// Also by perf events, which slow each switch to and from the processes down from the first
    /// time on that they are asked for.
    All,
}

/// The perf events of an instance; it has none before the first [`Counting::All`].
#[derive(Default)]
pub(crate) struct Watch(Mutex<Option<events::Watched>>);

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// Whose counts are taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whose<'a> {
    pub(crate) root: &'a RunRoot,
    pub(crate) id: &'a SandboxId,
    pub(crate) processes: &'a [Pid],
    pub(crate) watch: &'a Watch,
}

/// Takes the counts of these processes; nothing if there are none.
pub(crate) fn take(whose: Whose<'_>, counting: Counting) -> HostCounters {
    if whose.processes.is_empty() {
        return HostCounters::default();
    }
    let mut counts = processes::read(whose.processes);
    if let Some(time) = cpu_time(whose.root, whose.id) {
        counts.0.insert(Counter::CpuUs, time.total_us);
        if let Some((user, system)) = time.parts_us {
            counts.0.insert(Counter::UserUs, user);
            counts.0.insert(Counter::SystemUs, system);
        }
    } else if let Some(total) = processes::cpu_us(whose.processes) {
        counts.0.insert(Counter::CpuUs, total);
    }
    if counting == Counting::All {
        // A reader that panicked has left whole counts behind.
        let mut watched = whose.watch.0.lock().unwrap_or_else(PoisonError::into_inner);
        let watched = watched.get_or_insert_with(|| events::Watched::open(whose.processes));
        counts.0.extend(watched.read().0);
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;

    /// A child that uses CPU time, faults pages in and writes a file when told to.
    #[test]
    fn what_a_process_does_is_counted_and_what_it_does_not_is_not() {
        use std::io::{BufRead as _, BufReader, Write as _};
        let dir = tempfile::tempdir().expect("a temporary directory");
        let script =
            "read go; i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; echo done; read end";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("spawned");
        let root = RunRoot::below(dir.path(), Path::new("/none"));
        let (id, watch) = (SandboxId::random(), Watch::default());
        let processes = [Pid::from_child(&child)];
        let whose = Whose { root: &root, id: &id, processes: &processes, watch: &watch };
        let before = take(whose, Counting::All);
        let (mut to, from) = (child.stdin.take().expect("piped"), child.stdout.take());
        to.write_all(b"go\n").expect("written");
        let mut line = String::new();
        BufReader::new(from.expect("piped")).read_line(&mut line).expect("read");
        let used = take(whose, Counting::All).since(&before);
        drop(to);
        child.wait().expect("reaped");

        assert!(used.get(Counter::CpuUs).is_some_and(|us| us > 1000), "{used:?}");
        assert!(used.get(Counter::MinorFaults).is_some(), "{used:?}");
        assert_eq!(used.get(Counter::UserUs), None, "no group divides the time: {used:?}");
        match offered().software {
            Err(why) => eprintln!("SKIP software events: {why}"),
            // It has waited for its input at least once.
            Ok(()) => {
                assert!(used.get(Counter::ContextSwitches).is_some_and(|n| n > 0), "{used:?}")
            }
        }
        match offered().hardware {
            Err(why) => {
                eprintln!("SKIP hardware events: {why}");
                assert_eq!(used.get(Counter::Cycles), None, "absent, not zero: {used:?}");
                assert_eq!(used.get(Counter::Instructions), None, "{used:?}");
            }
            Ok(()) => {
                assert!(used.get(Counter::Instructions).is_some_and(|n| n > 60_000), "{used:?}")
            }
        }
    }

    #[test]
    fn nobody_has_used_nothing_that_could_be_counted() {
        let root = RunRoot::below(Path::new("/none"), Path::new("/none"));
        let (id, watch) = (SandboxId::random(), Watch::default());
        let whose = Whose { root: &root, id: &id, processes: &[], watch: &watch };
        assert!(take(whose, Counting::All).is_empty());
    }
}
