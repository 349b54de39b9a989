use std::time::Duration;

use vhive_api::{Bytes, Digest, RevisionKey, RuntimeName};
use vhive_sandbox::SnapshotDraft;
use vhive_sandbox::snapshot::{MemoryShape, Owner, Platform};

use super::*;

const ID: fn() -> SnapshotId =
    || SnapshotId { digest: Digest::of(b"revision"), runtime: RuntimeName::Sim };

/// A snapshot with nothing in it, at its place in a store.
fn published(root: &Path) -> Snapshot {
    let owner = Owner {
        revision: RevisionKey::new("default", "one"),
        digest: Digest::of(b"revision"),
        image: Digest::of(b"image"),
    };
    let beside = root.join("beside");
    let mut draft = SnapshotDraft::begin(&beside, owner).expect("begun");
    let platform = Platform {
        runtime: RuntimeName::Sim,
        version: "1".to_owned(),
        cpu: "any".to_owned(),
        kernel: None,
        page_size: 4096,
    };
    draft.describe(platform, MemoryShape { memory: Bytes::mib(1), vcpus: 1 }, None, 0);
    draft.publish(&beside.join("sim")).expect("its place is free")
}

fn stored(root: &Path) -> Arc<Stored> {
    Stored::new(ID(), published(root), root, true).expect("looked at")
}

#[test]
fn who_is_late_forgets_no_working_set_that_others_have_recorded_since() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let stored = stored(dir.path());
    let set = |number: u32| stored.snapshot.dir().join(format!("{WORKING_SET}{number}"));
    for number in [1, 2] {
        fs::write(set(number), "pages").expect("written");
    }
    stored.settle();
    let used = Some(1);
    assert!(!stored.set_missed(used, true), "of what it has used nobody wants to know any more");
    stored.forget_working_sets(used);
    assert_eq!((stored.newest(), set(1).exists(), set(2).exists()), (Some(2), false, true));
    stored.forget_working_sets(None);
    assert_eq!(stored.newest(), Some(2));
    assert!(stored.set_missed(Some(2), true) && stored.facts().missed);
    stored.forget_working_sets(Some(2));
    assert_eq!((stored.newest(), set(2).exists()), (None, false));
}

#[test]
fn a_mark_is_put_into_no_snapshot_but_the_one_that_goes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for round in 0..200 {
        let stored = stored(dir.path());
        let hold = stored.hold().expect("it is there");
        let place = stored.snapshot.dir().to_owned();
        let last = std::thread::spawn(move || drop(hold));
        stored.doom().expect("doomed");
        last.join().expect("it does not panic");
        assert!(!place.exists(), "round {round}");
        // Before it was done, another may have been put there; here it is now.
        let next = published(dir.path());
        assert!(!next.dir().join(TOMBSTONE).exists(), "round {round}");
        fs::remove_dir_all(next.dir()).expect("removed");
    }
}

#[test]
fn doubts_add_up_in_a_row_and_of_what_overlaps_one_counts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let stored = stored(dir.path());
    let early = Instant::now();
    assert!(!stored.failed(Instant::now(), Doubt::Strong));
    for _ in 0..20 {
        assert!(!stored.failed(early, Doubt::Strong), "it had begun before");
    }
    assert!(!stored.failed(Instant::now(), Doubt::Strong));
    stored.succeeded();
    for _ in 0..2 {
        assert!(!stored.failed(Instant::now(), Doubt::Strong));
    }
    for _ in 0..3 {
        assert!(!stored.failed(Instant::now(), Doubt::Weak));
    }
    assert!(stored.failed(Instant::now(), Doubt::Weak));
}

#[test]
fn nobody_waits_for_a_verdict_longer_than_he_says() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let stored = Stored::new(ID(), published(dir.path()), dir.path(), false).expect("looked at");
    let soon = || Deadline::after(Duration::from_millis(20));
    // Nobody reads it.
    let tried = stored.tried();
    assert!(matches!(stored.verdict(tried, soon()), Err(Unsound::NotYet)));
    // It cannot be read now.
    let read = stored.read(&|| false);
    assert!(matches!(read, Some(Read::Sound)), "there is nothing to read: {read:?}");
    stored.judge(Read::Failed(Blame::Host, "too many open files".to_owned()));
    let later = Deadline::after(Duration::from_secs(20));
    let told = stored.verdict(tried, later);
    assert!(matches!(&told, Err(Unsound::Unread(why)) if why == "too many open files"), "{told:?}");
    assert!(stored.is_unread(), "the next one tries again");
    stored.judge(Read::Sound);
    stored.verdict(stored.tried(), soon()).expect("sound");
}
