//! The pager with guests that are no VMs: child processes that map memory, hand it over as Firecracker
//! does, and touch it in any order. Their memory must be the file, byte for byte.

#![expect(
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and tell why they skip"
)]

mod guest;
mod host;

use std::os::unix::fs::FileExt as _;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use vhive_pager::{
    AttachError, FaultTrace, Mode, Pager, PagerConfig, PrefetchPolicy, PrepareError, ServeError,
    WorkingSet, WorkingSetError, working_set,
};

use guest::{Answer, Command};
use host::{Guest, Memory, Random, serve, soon};

const SEEDS: u64 = 12;
/// Set for a process that does what needs one of its own.
const ALONE: &str = "VHIVE_PAGER_TEST_ALONE";

const TESTS: &[(&str, fn())] = &[
    ("lazy_memory_is_the_file_in_any_order_of_touches", lazy_memory_is_the_file),
    ("what_was_recorded_is_prefetched_and_leaves_no_fault", no_fault_is_left),
    ("a_policy_of_windows_records_no_more", windows_bring_no_more),
    ("memory_is_the_file_while_prefetch_and_touches_race", races),
    ("what_the_guest_wrote_stays_written", writes_stay),
    ("what_was_given_back_reads_as_zeros", given_back_is_zero),
    ("a_working_set_from_the_page_cache_is_prefetched", page_cache),
    ("a_damaged_working_set_is_named_and_does_no_harm", damaged_working_set),
    ("a_working_set_changed_after_it_was_found_right_is_noticed", changed_working_set),
    ("a_memory_file_that_shrank_kills_the_guest", shrunk_memory),
    ("a_pager_that_stops_kills_its_guests", stopped_pager),
    ("a_pager_that_stops_while_it_prefetches_kills_its_guests", stopped_in_between),
    ("a_guest_that_dies_harms_nobody", dead_guest),
    ("many_guests_share_few_threads", many_guests),
    ("a_guest_that_does_not_fit_is_refused_and_killed", misfit),
    ("recording_ends_and_serving_goes_on", recording_ends),
    ("windows_come_as_before_when_the_recording_has_ended", windows_without_a_recording),
    ("a_discarded_recording_grows_no_more_and_serving_goes_on", recording_is_discarded),
];

fn main() -> ExitCode {
    if let Ok(layout) = std::env::var(host::GUEST) {
        return match guest::run(&layout) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("guest: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if std::env::var_os(ALONE).is_some() {
        many_guests_alone();
        return ExitCode::SUCCESS;
    }
    let can = vhive_pager::sys::open_device();
    let trial = |(name, test): &(&'static str, fn())| {
        let (name, test) = (*name, *test);
        let lacks = can.as_ref().err().map(|error| format!("/dev/userfaultfd: {error}"));
        Trial::test(name, move || {
            if let Some(lacks) = lacks {
                println!("SKIP {name}: {lacks}");
                return Ok(());
            }
            std::panic::catch_unwind(test).map_err(|_| Failed::from("see its panic above"))
        })
    };
    libtest_mimic::run(&Arguments::from_args(), TESTS.iter().map(trial).collect()).exit_code()
}

fn pager() -> Pager {
    Pager::start(&PagerConfig::default()).expect("started")
}

fn record(policy: PrefetchPolicy) -> Mode {
    Mode::Record { policy }
}

/// Records the touches of these pages; also the pages of the faults.
fn recorded(
    pager: &Pager,
    memory: &Memory,
    order: &[guest::Spot],
    policy: PrefetchPolicy,
) -> (FaultTrace, Vec<u32>) {
    let mut served = serve(pager, memory, record(policy));
    served.guest.touch(order, 1);
    let faults = served.session.stats().timeline;
    let faulted = faults.faults().iter().map(|fault| fault.page).collect();
    (served.session.finish_recording().expect("recorded"), faulted)
}

fn lazy_memory_is_the_file() {
    let pager = pager();
    for seed in 0..SEEDS {
        let memory = Memory::new(seed);
        let mut random = Random::new(seed);
        let mut served = serve(&pager, &memory, Mode::Lazy);
        served.session.may_resume(soon()).expect("at once");
        served.guest.touch(&memory.shuffled(&mut random), 1 + random.below(4));
        assert_eq!(served.guest.sums(), memory.sums(), "seed {seed}");
        let stats = served.session.stats();
        let pages = (memory.bytes.len() / 4096) as u64;
        assert_eq!((stats.fault_pages, stats.prefetched_pages), (pages, 0));
        assert!(stats.faults >= pages && stats.residual_faults == stats.faults);
        assert!(stats.zero_pages > 0 && stats.wait > Duration::ZERO);
        assert!(stats.first_fault <= stats.last_fault);
        assert_eq!(served.deaths.try_recv().ok(), None);
        assert!(served.session.finish_recording().is_none());
    }
}

fn no_fault_is_left() {
    let pager = pager();
    for seed in 0..SEEDS {
        for policy in
            [PrefetchPolicy::ReapSerial, PrefetchPolicy::ReapPipelined, PrefetchPolicy::FaultAround]
        {
            let memory = Memory::new(seed);
            let mut random = Random::new(seed);
            let mut order = memory.shuffled(&mut random);
            order.truncate(1 + random.below(order.len()));
            let (trace, faulted) = recorded(&pager, &memory, &order, policy);
            assert!(trace.pages().len() >= order.len());
            let page_of = |(region, page): &guest::Spot| memory.layout[*region].1 + page;
            if vhive_pager::policy::pages_per_fault(policy) == 1 {
                // Zeros bring zeros, and a streak what it leads to; the rest comes when it is touched.
                let mut touched =
                    order.iter().map(|spot| u32::try_from(page_of(spot)).expect("small"));
                assert!(touched.clone().all(|page| trace.holds(page)));
                assert!(faulted.iter().all(|page| touched.any(|other| other == *page)), "in order");
                assert_eq!(trace.pages().first(), faulted.first());
            }
            let working_set = memory.publish(&trace);
            let mode = Mode::Prefetch { working_set: working_set.clone(), policy };
            let mut served = serve(&pager, &memory, mode);
            served.session.may_resume(soon()).expect("in time");
            if policy == PrefetchPolicy::ReapSerial {
                assert!(served.session.stats().prefetch_done.is_some(), "all of it first");
            }
            served.session.wait_installed(soon()).expect("in time");
            served.guest.touch(&order, 1);
            let stats = served.session.stats();
            let set = WorkingSet::open(&working_set).expect("valid");
            assert_eq!((stats.faults, stats.prefetched_pages), (0, set.pages()), "{policy} {seed}");
            assert_eq!(stats.prefetched_bytes, set.data_bytes());
            assert_eq!(served.guest.sums(), memory.sums(), "{policy} {seed}");
            assert!(served.session.prefetch_failure().is_none());
        }
    }
}

fn windows_bring_no_more() {
    let (pager, memory) = (pager(), Memory::new(0));
    let policy = PrefetchPolicy::FaultAround;
    let window = vhive_pager::policy::pages_per_fault(policy) as usize;
    for (region, (pages, first)) in memory.layout.iter().enumerate() {
        // One window after the other, as a streak would be; the last one is left out.
        let begin = first.next_multiple_of(window) - first;
        let mut order: Vec<guest::Spot> =
            (begin..*pages).step_by(window).map(|page| (region, page)).collect();
        let Some((_, left_out)) = order.pop() else { continue };
        let (trace, _) = recorded(&pager, &memory, &order, policy);
        let beyond = |page: &&u32| **page as usize >= first + left_out;
        assert_eq!(trace.pages().iter().find(beyond), None, "{order:?}");
    }
}

fn windows_without_a_recording() {
    let (pager, memory) = (pager(), Memory::new(0));
    let policy = PrefetchPolicy::FaultAround;
    let window = vhive_pager::policy::pages_per_fault(policy) as usize;
    let faults = |ends: bool| {
        let mut served = serve(&pager, &memory, record(policy));
        served.guest.touch(&[(0, 0)], 1);
        if ends {
            assert!(served.session.discard_recording());
        }
        let all = memory.spots();
        served.guest.touch(&all, 1);
        assert_eq!(served.guest.sums(), memory.sums());
        (served.session.stats().faults, all.len() as u64)
    };
    let (with, pages) = faults(false);
    let (without, _) = faults(true);
    assert!(without <= 2 * with, "{without} faults, and {with} while it recorded");
    assert!(without < pages / window as u64 * 4, "{without} faults for {pages} pages");
}

fn races() {
    let pager = pager();
    for seed in 0..SEEDS {
        for policy in PrefetchPolicy::ALL {
            let memory = Memory::new(seed);
            let mut random = Random::new(seed);
            let mut trace =
                FaultTrace::below(u32::try_from(memory.bytes.len() / 4096).expect("small"));
            for page in 0..trace.bound() {
                if random.below(3) > 0 {
                    trace.record(page);
                }
            }
            let mode = Mode::Prefetch { working_set: memory.publish(&trace), policy };
            let mut served = serve(&pager, &memory, mode);
            served.guest.touch(&memory.shuffled(&mut random), 3);
            assert_eq!(served.guest.sums(), memory.sums(), "{policy} {seed}");
            served.session.wait_installed(soon()).expect("in time");
            let stats = served.session.stats();
            let pages = stats.fault_pages + stats.prefetched_pages;
            assert_eq!(pages, memory.bytes.len() as u64 / 4096, "each page came once");
        }
    }
}

fn writes_stay() {
    let pager = pager();
    for seed in 0..SEEDS {
        let mut memory = Memory::new(seed);
        let mut random = Random::new(seed);
        let order = memory.shuffled(&mut random);
        let (trace, _) = recorded(&pager, &memory, &order, PrefetchPolicy::ReapPipelined);
        let policy = PrefetchPolicy::ReapPipelined;
        let mode = Mode::Prefetch { working_set: memory.publish(&trace), policy };
        let mut served = serve(&pager, &memory, mode);
        served.guest.tell(&Command::Write { order: order.clone(), byte: 0xa5 });
        served.session.wait_installed(soon()).expect("in time");
        for (region, page) in order {
            let at = memory.layout[region].1 + page;
            memory.bytes[at * 4096 + 1] = 0xa5;
        }
        assert_eq!(served.guest.sums(), memory.sums(), "{seed}");
    }
}

fn given_back_is_zero() {
    let pager = pager();
    for seed in 0..SEEDS {
        for prefetched in [false, true] {
            let memory = Memory::new(seed);
            let mut random = Random::new(seed);
            let last = memory.layout[2].0;
            let mode = if prefetched {
                let bound = u32::try_from(memory.bytes.len() / 4096).expect("small");
                let mut trace = FaultTrace::below(bound);
                (0..bound).rev().for_each(|page| {
                    trace.record(page);
                });
                let policy = PrefetchPolicy::ReapPipelined;
                Mode::Prefetch { working_set: memory.publish(&trace), policy }
            } else {
                record(PrefetchPolicy::FaultAround)
            };
            let mut discards = Vec::new();
            for _ in 0..40 {
                let from = random.below(last);
                discards.push((from, from + 1 + random.below(last - from).min(4)));
            }
            let mut expected = memory.sums();
            for (from, to) in &discards {
                expected[2][*from..*to].fill(0);
            }
            let mut served = serve(&pager, &memory, mode);
            let touches = memory.shuffled(&mut random);
            let answer = served.guest.tell(&Command::Churn { discards, touches, threads: 2 });
            let Answer::NotZero(not_zero) = answer else { panic!("{answer:?}") };
            assert_eq!(not_zero, Vec::<usize>::new(), "{seed}");
            served.session.wait_installed(soon()).expect("in time");
            assert_eq!(served.guest.sums(), expected, "{seed}");
            assert!(served.session.failure().is_none());
        }
    }
}

fn page_cache() {
    let memory = Memory::new(1);
    let pager = pager();
    let refused = pager.prepare(memory.prepared(record(PrefetchPolicy::Mincore)));
    assert!(matches!(refused, Err(PrepareError::DoesNotRecord(PrefetchPolicy::Mincore))));
    let trace = working_set::from_page_cache(&memory.file).expect("mapped");
    assert_eq!(trace.pages().len(), memory.bytes.len() / 4096, "it was just written");
    let policy = PrefetchPolicy::Mincore;
    let mode = Mode::Prefetch { working_set: memory.publish(&trace), policy };
    let mut served = serve(&pager, &memory, mode);
    served.session.wait_installed(soon()).expect("in time");
    assert_eq!(served.guest.sums(), memory.sums());
    assert_eq!(served.session.stats().faults, 0);
}

fn damaged_working_set() {
    let pager = pager();
    let memory = Memory::new(3);
    let policy = PrefetchPolicy::ReapPipelined;
    let trace = working_set::from_page_cache(&memory.file).expect("mapped");
    let good = memory.publish(&trace);
    let length = std::fs::metadata(&good).expect("there").len();
    let cut = good.with_extension("cut");
    std::fs::copy(&good, &cut).expect("copied");
    std::fs::File::options()
        .write(true)
        .open(&cut)
        .expect("opened")
        .set_len(length - 1)
        .expect("cut");
    let other = Memory::new(4);
    let foreign = other.publish(&working_set::from_page_cache(&other.file).expect("mapped"));
    let cases = [
        (memory.flip(&good, 3), "not a working set"),
        (memory.flip(&good, 20), "checksum of the working set's header"),
        (memory.flip(&good, 130), "checksum of the working set's tables"),
        (memory.flip(&good, 8192), "checksum of the working set's chunk 0"),
        (memory.flip(&good, length - 1), "checksum of the working set's chunk"),
        (cut, "bytes instead of"),
        (foreign, "belongs to memory"),
        (good.with_extension("absent"), "cannot read the working set"),
    ];
    for (path, expected) in cases {
        for policy in [policy, PrefetchPolicy::ReapSerial] {
            let mode = Mode::Prefetch { working_set: path.clone(), policy };
            let mut served = serve(&pager, &memory, mode);
            served.session.may_resume(soon()).expect("it does without");
            served.session.wait_installed(soon()).expect("it does without");
            let failure = served.session.prefetch_failure().expect(expected);
            let is_named = failure.to_string().contains(expected);
            assert!(is_named, "{failure} instead of {expected}");
            assert_eq!(served.guest.sums(), memory.sums(), "{expected}");
            assert_eq!(served.deaths.try_recv().ok(), None);
        }
    }
    let chunk = memory.flip(&good, length - 1);
    let set = WorkingSet::open(&chunk).expect("its head is good");
    let verified = set.verify(&std::fs::File::open(&chunk).expect("opened"));
    assert!(matches!(verified, Err(WorkingSetError::Checksum(_))));
}

fn changed_working_set() {
    let pager = pager();
    let memory = Memory::new(8);
    let trace = working_set::from_page_cache(&memory.file).expect("mapped");
    let path = memory.publish(&trace);
    // Until it has not been changed for so long that the pager remembers having checked it.
    let (_hold, never) = std::sync::mpsc::channel::<()>();
    let _ = never.recv_timeout(Duration::from_millis(2100));
    let prefetched = || {
        let policy = PrefetchPolicy::ReapPipelined;
        let mode = Mode::Prefetch { working_set: path.clone(), policy };
        let mut served = serve(&pager, &memory, mode);
        served.session.wait_installed(soon()).expect("it comes, or does without");
        assert_eq!(served.guest.sums(), memory.sums());
        served.session.prefetch_failure()
    };
    for _ in 0..2 {
        assert!(prefetched().is_none());
    }
    let file = std::fs::File::options().read(true).write(true).open(&path).expect("opened");
    let last = file.metadata().expect("there").len() - 1;
    let mut byte = [0];
    file.read_exact_at(&mut byte, last).expect("read");
    file.write_all_at(&[!byte[0]], last).expect("written");
    for _ in 0..2 {
        let failure = prefetched().expect("a changed file is checked again");
        assert!(failure.to_string().contains("checksum of the working set's chunk"), "{failure}");
    }
}

fn shrunk_memory() {
    let pager = pager();
    let memory = Memory::new(5);
    let mut served = serve(&pager, &memory, Mode::Lazy);
    memory.file.set_len(4096 * 4).expect("cut");
    served.guest.send(&Command::Sums);
    assert!(served.guest.answer().is_none(), "it was killed, and told nothing wrong");
    let told = served.deaths.recv_timeout(Duration::from_secs(30)).expect("told");
    assert!(told.starts_with("the memory file ends before page "), "{told}");
    let failure = served.session.failure().expect("known");
    assert!(matches!(*failure, ServeError::Ended(_)), "{failure}");
    assert!(served.session.may_resume(soon()).is_err());
}

fn stopped_pager() {
    let pager = pager();
    let memory = Memory::new(6);
    let mut served = serve(&pager, &memory, Mode::Lazy);
    let trace = working_set::from_page_cache(&memory.file).expect("mapped");
    let policy = PrefetchPolicy::ReapPipelined;
    let mode = Mode::Prefetch { working_set: memory.publish(&trace), policy };
    let waiting = pager.prepare(memory.prepared(mode)).expect("prepared");
    served.guest.touch(&[(0, 1)], 1);
    drop(pager);
    let told = served.deaths.recv_timeout(Duration::from_secs(30)).expect("told");
    assert_eq!(told, "the pager was stopped");
    assert!(served.deaths.recv().is_err(), "once");
    served.guest.send(&Command::Sums);
    assert!(served.guest.answer().is_none(), "killed before it could see zeros");
    let guest = Guest::start(&memory);
    let killed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = std::sync::Arc::clone(&killed);
    let on_death =
        Box::new(move |_: &ServeError| flag.store(true, std::sync::atomic::Ordering::SeqCst));
    let refused = waiting.attach(guest.handoff(&memory), on_death);
    assert!(matches!(refused, Err(AttachError::Watch(_))));
    assert!(killed.load(std::sync::atomic::Ordering::SeqCst));
}

fn stopped_in_between() {
    for seed in 0..SEEDS {
        let policy = PrefetchPolicy::ALL[usize::try_from(seed % 2).expect("small")];
        let pager = pager();
        let memory = Memory::new(seed);
        let trace = working_set::from_page_cache(&memory.file).expect("mapped");
        let mode = Mode::Prefetch { working_set: memory.publish(&trace), policy };
        let mut served = serve(&pager, &memory, mode);
        // Reading and installing have begun, and are anywhere.
        served.guest.send(&Command::Touch { order: memory.spots(), threads: 2 });
        drop(pager);
        served.deaths.recv_timeout(Duration::from_secs(30)).expect("told");
        assert!(served.session.wait_installed(soon()).is_err(), "nobody waits for ever");
        served.guest.send(&Command::Sums);
        while let Some(answer) = served.guest.answer() {
            assert!(matches!(answer, Answer::Done), "it told of memory that nobody served");
        }
    }
}

fn dead_guest() {
    let pager = pager();
    for seed in 0..SEEDS {
        let memory = Memory::new(seed);
        let trace = working_set::from_page_cache(&memory.file).expect("mapped");
        let policy = PrefetchPolicy::ReapPipelined;
        let mode = Mode::Prefetch { working_set: memory.publish(&trace), policy };
        let dead = serve(&pager, &memory, mode.clone());
        dead.guest.kill();
        dead.session.wait_installed(soon()).expect("nothing is left to wait for");
        let mut alive = serve(&pager, &memory, mode);
        assert_eq!(alive.guest.sums(), memory.sums());
    }
}

/// Counts threads in a process of its own, where no other test has a pager.
fn many_guests() {
    let status = std::process::Command::new(std::env::current_exe().expect("this program"))
        .env(ALONE, "many guests")
        .status();
    assert!(status.expect("runs").success(), "see its panic above");
}

fn many_guests_alone() {
    let pager =
        Pager::start(&PagerConfig { handlers: 1, ..PagerConfig::default() }).expect("started");
    let memory = Memory::new(8);
    let trace = working_set::from_page_cache(&memory.file).expect("mapped");
    let working_set = memory.publish(&trace);
    let prefetch = |number: usize| {
        let policy = PrefetchPolicy::ALL[number % 4];
        Mode::Prefetch { working_set: working_set.clone(), policy }
    };
    // Whatever is made for the first guest is there.
    let mut first = serve(&pager, &memory, prefetch(1));
    assert_eq!(first.guest.sums(), memory.sums());
    let before = every_thread();
    let mut all = Vec::new();
    for number in 0..24 {
        let mode = if number % 3 == 0 { Mode::Lazy } else { prefetch(number) };
        all.push(serve(&pager, &memory, mode));
    }
    for served in &mut all {
        served.guest.send(&Command::Sums);
    }
    for served in &mut all {
        let Some(Answer::Sums(sums)) = served.guest.answer() else { panic!("sums") };
        assert_eq!(sums, memory.sums());
    }
    assert_eq!(every_thread(), before, "24 guests have added some");
}

fn every_thread() -> usize {
    std::fs::read_dir("/proc/self/task").expect("there").count()
}

fn misfit() {
    let pager = pager();
    let (memory, small) = (Memory::new(9), Memory::new(10));
    small.file.set_len(4096).expect("cut");
    let prepared = pager.prepare(small.prepared(Mode::Lazy)).expect("prepared");
    let guest = Guest::start(&memory);
    let (told, deaths) = std::sync::mpsc::channel();
    let on_death = Box::new(move |_: &ServeError| told.send(()).expect("heard"));
    let refused = prepared.attach(guest.handoff(&memory), on_death);
    assert!(matches!(refused, Err(AttachError::Regions(_))));
    deaths.try_recv().expect("told before the descriptor was closed");
}

fn recording_is_discarded() {
    let pager = pager();
    let memory = Memory::new(12);
    let mut served = serve(&pager, &memory, record(PrefetchPolicy::ReapPipelined));
    served.guest.touch(&[(0, 5)], 1);
    assert!(served.session.discard_recording());
    assert_eq!(served.guest.sums(), memory.sums());
    assert!(!served.session.discard_recording(), "nothing was added to it");
    assert!(served.session.finish_recording().is_none());
}

fn recording_ends() {
    let pager = pager();
    let memory = Memory::new(11);
    let mut served = serve(&pager, &memory, record(PrefetchPolicy::ReapPipelined));
    served.guest.touch(&[(0, 5), (1, 0)], 1);
    let trace = served.session.finish_recording().expect("recorded");
    assert_eq!(trace.pages().len(), 2);
    assert_eq!(served.guest.sums(), memory.sums());
    assert!(served.session.finish_recording().is_none());
    let stats = served.session.stats();
    let timeline = stats.timeline.faults();
    assert_eq!((stats.timeline.every(), timeline.len() as u64), (1, stats.faults));
    assert!(timeline.iter().all(|fault| fault.residual), "there is no working set");
    assert!(timeline.is_sorted_by_key(|fault| fault.micros));
}
