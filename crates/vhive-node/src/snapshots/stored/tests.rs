use std::io::Write as _;
use std::time::Duration;

use vhive_api::{Bytes, Digest, RevisionKey, RuntimeName};
use vhive_sandbox::SnapshotDraft;
use vhive_sandbox::snapshot::{MemoryShape, Owner, Platform};

use super::*;

const ID: fn() -> SnapshotId =
    || SnapshotId { digest: Digest::of(b"revision"), runtime: RuntimeName::Sim };

/// A snapshot with nothing in it, at its place in a store.
fn published(root: &Path) -> Snapshot {
    published_with(root, |_| {})
}

fn published_with(root: &Path, fill: impl FnOnce(&mut SnapshotDraft)) -> Snapshot {
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
    fill(&mut draft);
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
fn who_comes_from_a_removed_snapshot_touches_nothing_of_the_one_in_its_place() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let set = |of: &Path| of.join(format!("{WORKING_SET}1"));
    let old = stored(dir.path());
    fs::write(set(old.snapshot.dir()), "pages").expect("written");
    old.settle();
    old.doom().expect("doomed");
    let new = published(dir.path());
    assert_eq!(new.dir(), old.snapshot.dir(), "it has the place of the old one");
    fs::write(set(new.dir()), "pages").expect("written");
    let touched = || fs::metadata(new.dir()).and_then(|meta| meta.modified()).expect("there");
    let before = touched();
    old.forget_working_sets(Some(1));
    old.settle();
    assert!(set(new.dir()).exists(), "nobody but its own clones knows whether it is of use");
    assert_eq!(touched(), before, "nor has it been used");
}

#[test]
fn what_is_written_shows_also_when_its_time_is_set_back() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let snapshot = published_with(dir.path(), |draft| {
        let mut memory = draft.file("memory").expect("made");
        memory.write_all(b"as it was").expect("written");
    });
    let stored = Stored::new(ID(), snapshot, dir.path(), true).expect("looked at");
    stored.notice_writes();
    assert!(!stored.is_pending(), "nobody has written");
    let memory = stored.snapshot.dir().join("memory");
    let was = fs::metadata(&memory).and_then(|meta| meta.modified()).expect("there");
    // As whoever restores a backup over it does, in the same file.
    let file = File::options().write(true).open(&memory).expect("opened");
    (&file).write_all(b"something").expect("written");
    file.set_modified(was).expect("set");
    assert_eq!(fs::metadata(&memory).and_then(|meta| meta.modified()).expect("there"), was);
    stored.notice_writes();
    assert!(stored.is_pending(), "it is to be read again");
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
