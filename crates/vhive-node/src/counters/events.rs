//! Perf events of processes: those of the kernel itself, and those of the processor where the host
//! offers any.
//!
//! Each thread that there is gets an event of its own; threads and processes that come later are
//! counted with the one that has made them. If there are more events than the processor counts at
//! a time, the kernel lets them take turns, and what is read here is the estimate for the whole
//! time.

use std::fs;
use std::io;
use std::path::Path;

use perf_event::events::{Hardware, Raw, Software};
use perf_event::{Builder, Counter as Event};
use rustix::io::Errno;
use rustix::process::Pid;
use serde::Serialize;
use vhive_api::{Counter, HostCounters};

use super::processes::threads;
use super::topdown::{self, Adds, Recipe};

/// Where the kernel describes the processor's events.
const PMU: &str = "/sys/bus/event_source/devices/cpu";

const SOFTWARE: [(Software, Adds); 2] = [
    (Software::CONTEXT_SWITCHES, &[(Counter::ContextSwitches, 1)]),
    (Software::CPU_MIGRATIONS, &[(Counter::Migrations, 1)]),
];

const HARDWARE: [(Hardware, Adds); 8] = [
    (Hardware::CPU_CYCLES, &[(Counter::Cycles, 1)]),
    (Hardware::INSTRUCTIONS, &[(Counter::Instructions, 1)]),
    (Hardware::CACHE_REFERENCES, &[(Counter::CacheReferences, 1)]),
    (Hardware::CACHE_MISSES, &[(Counter::CacheMisses, 1)]),
    (Hardware::BRANCH_INSTRUCTIONS, &[(Counter::Branches, 1)]),
    (Hardware::BRANCH_MISSES, &[(Counter::BranchMisses, 1)]),
    (Hardware::STALLED_CYCLES_FRONTEND, &[(Counter::FrontendStalls, 1)]),
    (Hardware::STALLED_CYCLES_BACKEND, &[(Counter::BackendStalls, 1)]),
];

/// What this host's perf events offer; an error says why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offered {
    /// Events of the kernel: switches, migrations.
    #[serde(serialize_with = "said")]
    pub software: Result<(), String>,
    /// Events of the processor: cycles, instructions, misses.
    #[serde(serialize_with = "said")]
    pub hardware: Result<(), String>,
    /// TopDown, and how many levels of it.
    #[serde(serialize_with = "levels")]
    pub topdown: Result<u8, String>,
}

fn said<S: serde::Serializer>(answer: &Result<(), String>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(answer.as_ref().map_or_else(String::as_str, |()| "yes"))
}

fn levels<S: serde::Serializer>(answer: &Result<u8, String>, to: S) -> Result<S::Ok, S::Error> {
    match answer {
        Ok(1) => to.serialize_str("yes, level 1"),
        Ok(_) => to.serialize_str("yes, levels 1 and 2"),
        Err(why) => to.serialize_str(why),
    }
}

/// Finds out by opening events of the calling thread.
#[must_use]
pub fn offered() -> Offered {
    let software = whether(|| Builder::new(Software::CONTEXT_SWITCHES));
    let hardware = whether(|| Builder::new(Hardware::CPU_CYCLES));
    let topdown = hardware.clone().and_then(|()| {
        let recipe = recipe()?;
        let own = Pid::from_raw(rustix::thread::gettid().as_raw_nonzero().get());
        let open = |pid: Pid| open_recipe(&recipe, pid.as_raw_nonzero().get());
        match own.map(open) {
            Some(Ok(_)) => {
                let second = |(_, _, adds): &(u64, i64, Adds)| adds[0].0 == Counter::FetchLatency;
                Ok(if recipe.events.iter().any(second) { 2 } else { 1 })
            }
            Some(Err(error)) => Err(why(&error)),
            None => Err("this thread has no number".to_owned()),
        }
    });
    Offered { software, hardware, topdown }
}

fn whether(event: impl Fn() -> Builder<'static>) -> Result<(), String> {
    event().include_kernel().build().map(drop).map_err(|error| why(&error))
}

/// Why the kernel refuses an event.
///
/// # Source
/// perf_event_open(2), "ERRORS".
fn why(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::OPNOTSUPP | Errno::NODEV) => {
            "the processor's counters cannot be used here; a virtual machine has them only if its \
             host lends them (a PMU)"
                .to_owned()
        }
        Some(Errno::ACCESS | Errno::PERM) => {
            let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
            let paranoid = paranoid.map_or_else(|_| "unknown".to_owned(), |t| t.trim().to_owned());
            format!(
                "perf_event_open is not allowed: it needs root or CAP_PERFMON \
                 (kernel.perf_event_paranoid is {paranoid})"
            )
        }
        Some(Errno::NOSYS) => "this kernel has no perf events".to_owned(),
        _ => format!("perf_event_open: {error}"),
    }
}

fn recipe() -> Result<Recipe, String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    topdown::recipe(Path::new(PMU), &cpuinfo)
}

/// Threads of an instance whose events are counted; each takes up to 20 descriptors of the node's.
const MOST_THREADS: usize = 64;

/// One kind of event, of every thread.
struct Kind {
    events: Vec<Event>,
    /// What one occurrence counts for, and times what.
    scale: i64,
    adds: Adds,
}

/// Events that have been opened for some processes.
pub(super) struct Watched(Vec<Kind>);

impl Watched {
    /// Opens every event that the host offers, for every thread of these processes. A kind that
    /// cannot be opened for one of them is left out.
    pub(super) fn open(processes: &[Pid]) -> Self {
        let all: Vec<i32> = processes.iter().filter_map(|pid| threads(*pid)).flatten().collect();
        if all.len() > MOST_THREADS {
            tracing::debug!(threads = all.len(), "too many threads to count events of each");
            return Self(Vec::new());
        }
        let mut kinds = Vec::new();
        for (event, adds) in SOFTWARE {
            kinds.extend(each(&all, |thread| open(Builder::new(event), thread), adds));
        }
        for (event, adds) in HARDWARE {
            kinds.extend(each(&all, |thread| open(Builder::new(event), thread), adds));
        }
        if let Ok(recipe) = recipe()
            && let Some(opened) = every(&all, |thread| open_recipe(&recipe, thread))
        {
            let mut of_threads: Vec<_> = opened.into_iter().map(Vec::into_iter).collect();
            for (_, scale, adds) in &recipe.events {
                let events = of_threads.iter_mut().filter_map(Iterator::next).collect();
                kinds.push(Kind { events, scale: *scale, adds });
            }
        }
        Self(kinds)
    }

    /// What has been counted since they were opened. What could not be read, or had no turn on the
    /// processor, is absent.
    pub(super) fn read(&mut self) -> HostCounters {
        let mut sums: Vec<(Counter, Option<i128>)> = Vec::new();
        for kind in &mut self.0 {
            let counts: Option<Vec<u64>> = kind.events.iter_mut().map(count).collect();
            let count = counts.map(|all| all.into_iter().map(i128::from).sum::<i128>());
            for (counter, times) in kind.adds {
                let part = count.map(|n| n * i128::from(kind.scale) * i128::from(*times));
                match sums.iter_mut().find(|(known, _)| known == counter) {
                    Some((_, sum)) => *sum = sum.zip(part).map(|(a, b)| a + b),
                    None => sums.push((*counter, part)),
                }
            }
        }
        // An estimate of a difference may be a little below 0.
        let whole = |sum: i128| u64::try_from(sum.max(0)).unwrap_or(u64::MAX);
        sums.into_iter().filter_map(|(counter, sum)| Some((counter, whole(sum?)))).collect()
    }
}

fn each(threads: &[i32], open: impl Fn(i32) -> io::Result<Event>, adds: Adds) -> Option<Kind> {
    Some(Kind { events: every(threads, open)?, scale: 1, adds })
}

/// Of every thread that still runs; none if one of them is refused, or none runs.
fn every<T>(threads: &[i32], open: impl Fn(i32) -> io::Result<T>) -> Option<Vec<T>> {
    let mut opened = Vec::new();
    for thread in threads {
        match open(*thread) {
            Ok(event) => opened.push(event),
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
            Err(error) => {
                tracing::debug!(thread, %error, "perf event not opened");
                return None;
            }
        }
    }
    (!opened.is_empty()).then_some(opened)
}

fn open(mut event: Builder<'_>, thread: i32) -> io::Result<Event> {
    for_thread(&mut event, thread).build()
}

fn for_thread<'a, 'b>(event: &'a mut Builder<'b>, thread: i32) -> &'a mut Builder<'b> {
    event.observe_pid(thread).any_cpu().include_kernel().inherit(true).enabled(true)
}

/// The events of one thread, in the order of the recipe.
fn open_recipe(recipe: &Recipe, thread: i32) -> io::Result<Vec<Event>> {
    let mut opened: Vec<Event> = Vec::new();
    for (config, ..) in &recipe.events {
        let mut event = Builder::new(Raw::new(*config));
        let event = for_thread(&mut event, thread);
        let event = match opened.first_mut().filter(|_| recipe.grouped) {
            Some(leader) => event.build_with_group(leader)?,
            None => event.build()?,
        };
        opened.push(event);
    }
    Ok(opened)
}

/// What an event has counted, estimated for the time in which it had no turn.
fn count(event: &mut Event) -> Option<u64> {
    let read = event.read_count_and_time().ok()?;
    if read.time_running == read.time_enabled {
        return Some(read.count);
    }
    if read.time_running == 0 {
        return None;
    }
    let whole =
        u128::from(read.count) * u128::from(read.time_enabled) / u128::from(read.time_running);
    u64::try_from(whole).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_said_in_words() {
        let of = |errno: Errno| why(&io::Error::from_raw_os_error(errno.raw_os_error()));
        assert!(of(Errno::NOENT).contains("PMU"));
        assert!(of(Errno::ACCESS).contains("perf_event_paranoid"));
        assert!(of(Errno::NOSYS).contains("no perf events"));
        assert!(of(Errno::MFILE).contains("perf_event_open"));
    }

    #[test]
    fn what_is_not_offered_has_a_reason_for_people() {
        let offered = offered();
        let said = serde_json::to_value(&offered).expect("serialises");
        for name in ["software", "hardware", "topdown"] {
            assert!(said[name].as_str().is_some_and(|text| text.len() > 2), "{said}");
        }
        if offered.hardware.is_err() {
            assert!(offered.topdown.is_err(), "{said}");
        }
    }
}
