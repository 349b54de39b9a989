//! In a process of its own, because it keeps the whole of it to one CPU.

use std::sync::mpsc;
use std::thread;

use vhive_api::Cpus;
use vhive_load::pin::pin;

/// The kernel's own account of where each thread of this process may run.
fn allowed() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("threads");
    let of = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        Some(line.trim().to_owned())
    };
    tasks.filter_map(Result::ok).filter_map(of).collect()
}

#[test]
fn threads_that_there_are_and_threads_to_come_run_where_they_are_told_to() {
    let before: Cpus = allowed().first().expect("this thread").parse().expect("the kernel's list");
    let Some(last) = before.iter().last().filter(|_| before.len() > 1) else {
        eprintln!("SKIP pin: only one CPU may be used here");
        return;
    };
    let (hold, held) = mpsc::channel::<()>();
    let older = thread::spawn(move || held.recv());
    let absent = pin(&"0,8191".parse().expect("a list")).expect_err("no host has so many");
    assert!(absent.to_string().contains("CPU 8191"), "{absent}");
    assert!(allowed().iter().all(|list| *list == before.to_string()), "nothing has changed");

    pin(&Cpus::of([last]).expect("one")).expect("may be used");
    let (keep, kept) = mpsc::channel::<()>();
    let younger = thread::spawn(move || kept.recv());
    let now = allowed();
    assert!(now.len() >= 3, "{now:?}");
    assert!(now.iter().all(|list| *list == last.to_string()), "{now:?}");
    drop((hold, keep));
    assert!(older.join().is_ok() && younger.join().is_ok());
}
