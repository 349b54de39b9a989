//! Incremental snapshots: Firecracker writes only what has changed, and what is published is whole.

use std::fs;
use std::path::Path;

use vhive_api::{MemoryMode, PrefetchPolicy};
use vhive_sandbox::firecracker::{Firecracker, FirecrackerConfig, GivenBack, WaitingFirecracker};
use vhive_sandbox::snapshot::MEMORY;
use vhive_sandbox::{Memory, Restore as _, Sandbox, Snapshot, SnapshotDraft};

use crate::site::{firecracker_config as config, get, soon};
use crate::{Lab, TOUCH, owner};

/// Changes every page that [`TOUCH`] reads.
const WRITE: &str = "/touch?pages=200&seed=7&write=1";

fn snapshot(lab: &Lab, sandbox: &mut dyn Sandbox, name: &str) -> Snapshot {
    let mut draft = SnapshotDraft::begin(lab.dir.path(), owner()).expect("begun");
    let checkpoint = sandbox.checkpoint().expect("it can be snapshotted");
    checkpoint.snapshot_into(&mut draft, soon()).expect("written");
    let snapshot = draft.publish(&lab.dir.path().join(name)).expect("published");
    snapshot.verify().expect("whole");
    snapshot
}

/// What a clone of it reads, in every mode.
fn reads(lab: &Lab, from: &Snapshot) -> Vec<String> {
    let modes = lab.firecracker.memory_modes().to_vec();
    let read = modes.into_iter().map(|mode| {
        let spec = lab.spec();
        let clone = lab.restore(&spec, from, mode);
        let sums = get(clone.endpoint(), TOUCH);
        clone.paging().expect("it is a clone").finish_recording().expect("written");
        sums
    });
    read.collect()
}

fn all_read(lab: &Lab, from: &Snapshot, sums: &str) {
    let read = reads(lab, from);
    assert!(read.iter().all(|its| its == sums), "{read:?}, wanted {sums}");
}

#[test]
fn one_snapshot_after_another_is_whole() {
    let name = "one_snapshot_after_another_is_whole";
    let config = FirecrackerConfig { diff_snapshots: true, ..config() };
    let Some(lab) = Lab::open(name, config) else { return };
    let spec = lab.spec();
    let mut original = lab.boot(&spec);
    get(original.endpoint(), "/fill?pages=300");
    let before = get(original.endpoint(), TOUCH);
    let first = snapshot(&lab, &mut *original, "first");
    get(original.endpoint(), WRITE);
    let after = get(original.endpoint(), TOUCH);
    assert_ne!(after, before);
    let second = snapshot(&lab, &mut *original, "second");
    // The pages of the first that nobody has changed are in it as well.
    get(original.endpoint(), "/fill?pages=300");
    assert_eq!(get(original.endpoint(), TOUCH), before);
    drop((original, spec));
    all_read(&lab, &first, &before);
    all_read(&lab, &second, &after);
    lab.expect_no_traces();
}

#[test]
fn a_clone_is_snapshotted_like_its_original() {
    let name = "a_clone_is_snapshotted_like_its_original";
    let config = FirecrackerConfig { diff_snapshots: true, ..config() };
    let Some(lab) = Lab::open(name, config) else { return };
    let spec = lab.spec();
    let mut original = lab.boot(&spec);
    get(original.endpoint(), "/fill?pages=300");
    let before = get(original.endpoint(), TOUCH);
    let first = snapshot(&lab, &mut *original, "first");
    drop((original, spec));
    for mode in lab.firecracker.memory_modes() {
        let spec = lab.spec();
        let mut clone = lab.restore(&spec, &first, *mode);
        get(clone.endpoint(), "/touch?pages=50&seed=7&write=1");
        let after = get(clone.endpoint(), TOUCH);
        assert_ne!(after, before, "{mode}");
        let second = snapshot(&lab, &mut *clone, &format!("of-{mode}"));
        assert_eq!(get(clone.endpoint(), TOUCH), after, "{mode}: it goes on");
        clone.paging().expect("it is a clone").finish_recording().expect("written");
        drop((clone, spec));
        all_read(&lab, &second, &after);
    }
    all_read(&lab, &first, &before);
    lab.expect_no_traces();
}

#[test]
fn a_base_that_is_removed_is_still_there_for_who_runs_on_it() {
    let name = "a_base_that_is_removed_is_still_there_for_who_runs_on_it";
    let config = FirecrackerConfig { diff_snapshots: true, ..config() };
    let Some(lab) = Lab::open(name, config) else { return };
    let spec = lab.spec();
    let mut original = lab.boot(&spec);
    get(original.endpoint(), "/fill?pages=300");
    let sums = get(original.endpoint(), TOUCH);
    let first = snapshot(&lab, &mut *original, "first");
    drop((original, spec));
    let spec = lab.spec();
    let mut clone = lab.restore(&spec, &first, MemoryMode::File);
    fs::remove_dir_all(first.dir()).expect("removed");
    let second = snapshot(&lab, &mut *clone, "second");
    drop((clone, spec));
    all_read(&lab, &second, &sums);
    lab.expect_no_traces();
}

/// How much room its memory takes.
fn room(snapshot: &Snapshot) -> u64 {
    let blocks =
        |path: &Path| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).expect("there"));
    blocks(&snapshot.dir().join(MEMORY)) * 512
}

#[test]
fn it_is_firecracker_that_writes_less() {
    let name = "it_is_firecracker_that_writes_less";
    let mut took = Vec::new();
    let mut rooms = Vec::new();
    for diff_snapshots in [false, true] {
        let config = FirecrackerConfig { diff_snapshots, metrics: true, ..config() };
        let Some(lab) = Lab::open(name, config) else { return };
        let spec = lab.spec();
        let mut original = lab.boot(&spec);
        get(original.endpoint(), "/fill?pages=300");
        let first = snapshot(&lab, &mut *original, "first");
        drop((original, spec));
        rooms.push(room(&first));
        let spec = lab.spec();
        let mut clone = waiting(&lab.firecracker, &spec, &first)
            .load(Memory::new(MemoryMode::File, PrefetchPolicy::default()), soon())
            .expect("loaded");
        get(clone.endpoint(), TOUCH);
        assert_eq!(clone.checkpoint().is_some(), diff_snapshots);
        if diff_snapshots {
            snapshot(&lab, &mut clone, "second");
            let metrics = clone.metrics(soon()).expect("measured");
            assert!(metrics.create.is_zero() && !metrics.create_diff.is_zero(), "{metrics:?}");
            took.push(metrics);
        }
        drop((clone, spec));
        lab.expect_no_traces();
    }
    // Zeros are no part of either.
    assert!(rooms[1] <= rooms[0] + (1 << 20), "{rooms:?}");
    eprintln!("{name}: {took:?}, {rooms:?}");
}

#[test]
fn a_guest_without_a_driver_gives_nothing_and_is_snapshotted() {
    let name = "a_guest_without_a_driver_gives_nothing_and_is_snapshotted";
    for balloon in [true, false] {
        let config = FirecrackerConfig { balloon, ..config() };
        let Some(lab) = Lab::open(name, config) else { return };
        let spec = lab.spec();
        let mut original = lab.boot(&spec);
        get(original.endpoint(), "/fill?pages=300");
        let sums = get(original.endpoint(), TOUCH);
        // Which asks it for its free memory first, if it has a balloon.
        let first = snapshot(&lab, &mut *original, "first");
        drop((original, spec));
        let spec = lab.spec();
        let mut clone = waiting(&lab.firecracker, &spec, &first)
            .load(Memory::new(MemoryMode::File, PrefetchPolicy::default()), soon())
            .expect("loaded");
        let given = clone.give_back(soon());
        if balloon {
            assert_eq!(given.expect("it is asked"), GivenBack::default());
        } else {
            given.expect_err("it has no balloon");
        }
        assert_eq!(get(clone.endpoint(), TOUCH), sums);
        drop((clone, spec));
        lab.expect_no_traces();
    }
}

fn waiting(
    firecracker: &Firecracker,
    spec: &vhive_sandbox::SandboxSpec,
    from: &Snapshot,
) -> WaitingFirecracker {
    firecracker.spawn_waiting(spec, from, MemoryMode::File, soon()).expect("it waits")
}
