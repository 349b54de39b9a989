use std::collections::BTreeMap;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::net::Ipv4Addr;

use vhive_api::guest::GuestNetwork;
use vhive_api::{Bytes, Digest, RuntimeName};

use super::*;

fn owner() -> Owner {
    Owner {
        revision: vhive_api::RevisionKey {
            namespace: "default".to_owned(),
            name: "hello-00001".to_owned(),
        },
        digest: Digest::of(b"revision"),
        image: Digest::of(b"image"),
    }
}

fn platform() -> Platform {
    Platform {
        runtime: RuntimeName::Sim,
        version: "1".to_owned(),
        cpu: "any".to_owned(),
        kernel: Some(Digest::of(b"kernel")),
        page_size: 4096,
    }
}

const SHAPE: MemoryShape = MemoryShape { memory: Bytes::mib(1), vcpus: 1 };

/// A snapshot whose memory has a page at its beginning, a hole, and a page behind it.
fn published(beside: &Path) -> Snapshot {
    let mut draft = SnapshotDraft::begin(beside, owner()).expect("begun");
    draft.file(VM_STATE).expect("made").write_all(b"state").expect("written");
    let mut memory = draft.file(MEMORY).expect("made");
    memory.write_all(&[1; 4096]).expect("written");
    memory.seek(SeekFrom::Start(1 << 19)).expect("sought");
    memory.write_all(&[2; 4096]).expect("written");
    memory.set_len(1 << 20).expect("extended");
    draft.describe(platform(), SHAPE, None, 7);
    draft.publish(&beside.join("final")).expect("published")
}

#[test]
fn a_snapshot_appears_whole_and_is_read_back() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let made = published(dir.path());
    let read = Snapshot::open(dir.path().join("final")).expect("opened");
    assert_eq!(read, made);
    read.verify().expect("sound");
    assert_eq!(read.manifest().files.keys().collect::<Vec<_>>(), [MEMORY, VM_STATE]);
    let names: Vec<_> = fs::read_dir(dir.path()).expect("listed").flatten().collect();
    assert_eq!(names.len(), 1, "no draft is left");
}

#[test]
fn a_dropped_or_incomplete_draft_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut draft = SnapshotDraft::begin(dir.path(), owner()).expect("begun");
    draft.file(MEMORY).expect("made");
    assert!(matches!(draft.publish(&dir.path().join("x")), Err(DraftError::Incomplete)));
    assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0);
}

#[test]
fn who_publishes_second_changes_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let first = published(dir.path());
    let mut draft = SnapshotDraft::begin(dir.path(), owner()).expect("begun");
    draft.file(MEMORY).expect("made");
    draft.describe(platform(), SHAPE, None, 8);
    let error = draft.publish(first.dir()).expect_err("taken");
    let DraftError::Write { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(Snapshot::open(first.dir()).expect("opened"), first);
}

#[test]
fn damage_is_named_by_file() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let made = published(dir.path());
    let path = made.dir().join(MEMORY);
    // A flipped bit in a page, and a bit set in a hole.
    for at in [100, 3 << 18] {
        let before = fs::read(&path).expect("read");
        let mut bytes = before.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).expect("written");
        let error = Snapshot::open(made.dir()).expect("lengths agree").verify();
        assert!(matches!(error, Err(OpenError::Damaged { path: p, .. }) if p == path));
        fs::write(&path, &before).expect("written");
    }
    made.verify().expect("written zeros are holes");
    fs::write(&path, b"short").expect("written");
    assert!(matches!(Snapshot::open(made.dir()), Err(OpenError::Damaged { .. })));
    fs::remove_file(&path).expect("removed");
    assert!(matches!(Snapshot::open(made.dir()), Err(OpenError::Read { .. })));
}

#[test]
fn a_restore_is_told_which_field_disagrees() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let manifest = published(dir.path()).manifest().clone();
    manifest.check(&owner(), &platform(), SHAPE).expect("agrees");
    let other = Platform { kernel: None, ..platform() };
    let error = manifest.check(&owner(), &other, SHAPE).expect_err("another kernel");
    assert_eq!(error.field, "platform.kernel");
    let larger = MemoryShape { memory: Bytes::mib(2), ..SHAPE };
    let error = manifest.check(&owner(), &platform(), larger).expect_err("another size");
    assert_eq!(error.to_string(), "shape.memory is 1MiB, wanted 2MiB");
    let other = Owner { image: Digest::of(b"other"), ..owner() };
    let error = manifest.check(&other, &platform(), SHAPE).expect_err("another image");
    assert_eq!(error.field, "owner.image");
    // A clock that runs at another rate than the guest was told; not one that was measured once more.
    let at = |khz: Option<u32>| Platform {
        cpu: khz.map_or("some".to_owned(), |khz| with_tsc("some", khz)),
        ..platform()
    };
    let taken = Manifest { platform: at(Some(2_600_000)), ..manifest.clone() };
    for (khz, same) in
        [(2_600_260, true), (2_598_800, true), (2_610_000, false), (2_595_000, false)]
    {
        let checked = taken.check(&owner(), &at(Some(khz)), SHAPE);
        assert_eq!(
            checked.map_err(|error| error.field),
            if same { Ok(()) } else { Err("platform.cpu") }
        );
    }
    taken.check(&owner(), &at(None), SHAPE).expect("none is told");
    let other = Platform { cpu: with_tsc("other", 2_600_000), ..platform() };
    assert_eq!(taken.check(&owner(), &other, SHAPE).expect_err("another").field, "platform.cpu");
    let mut other = owner();
    other.revision.namespace = "other".to_owned();
    let error = manifest.check(&other, &platform(), SHAPE).expect_err("another namespace");
    assert_eq!(error.field, "owner.namespace");
}

#[test]
fn hostile_manifests_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let made = published(dir.path());
    let path = made.dir().join(MANIFEST);
    let good: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    let mut later = good.clone();
    later["format"] = (FORMAT + 1).into();
    later["new"] = true.into();
    let mut outside = good.clone();
    outside["files"]["../../etc/passwd"] = good["files"][MEMORY].clone();
    let mut unknown = good.clone();
    unknown["surprise"] = 1.into();
    for (value, wanted) in [(later, "format"), (outside, "lists a file"), (unknown, "no snapshot")]
    {
        fs::write(&path, value.to_string()).expect("written");
        let error = Snapshot::open(made.dir()).expect_err("refused").to_string();
        assert!(error.contains(wanted), "{error}");
    }
    for text in ["", "{", "[]", "null", "{\"format\": -1}"] {
        fs::write(&path, text).expect("written");
        assert!(matches!(Snapshot::open(made.dir()), Err(OpenError::Manifest { .. })), "{text}");
    }
}

#[test]
fn what_the_host_lacks_is_no_damage() {
    let read = |source: io::Error| OpenError::Read { path: PathBuf::from("memory"), source };
    let of = |errno: Errno| read(errno.into()).blame();
    for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::ACCESS, Errno::PERM, Errno::INTR]
    {
        assert_eq!(of(errno), Blame::Host, "{errno}");
    }
    assert_eq!(of(Errno::IO), Blame::Either, "the medium, or the way to it");
    for errno in [Errno::NOENT, Errno::NOTDIR, Errno::ISDIR] {
        assert_eq!(of(errno), Blame::Snapshot, "{errno}");
    }
    assert_eq!(read(io::ErrorKind::UnexpectedEof.into()).blame(), Blame::Snapshot);
    // Words of another version are left to it; half a manifest is nobody's.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let made = published(dir.path());
    let path = made.dir().join(MANIFEST);
    let good = fs::read_to_string(&path).expect("read");
    let other = good.replacen("\"vcpus\"", "\"cores\"", 1);
    for (text, wanted) in [
        (other.as_str(), Blame::Host),
        ("{\"format\": 99}", Blame::Host),
        (&good[..good.len() / 2], Blame::Snapshot),
        ("", Blame::Snapshot),
    ] {
        fs::write(&path, text).expect("written");
        let error = Snapshot::open(made.dir()).expect_err("refused");
        assert_eq!(error.blame(), wanted, "{error}");
    }
    fs::write(&path, good).expect("written");
    let memory = File::options().write(true).open(made.dir().join(MEMORY));
    memory.expect("opened").set_len(1).expect("cut");
    assert_eq!(Snapshot::open(made.dir()).expect_err("refused").blame(), Blame::Snapshot);
}

#[test]
fn what_is_not_wanted_any_more_is_not_read() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let made = published(dir.path());
    let error = made.verify_while(&|| false).expect_err("given up");
    assert_eq!(error.blame(), Blame::Host);
}

/// Published manifests of each format: as its first version wrote them, then in the words that have come to be used
/// since. Earlier words stay, and are still read.
const GOLDEN: [(u32, &str); 4] = [
    (1, include_str!("golden/manifest-1.json")),
    (1, include_str!("golden/manifest-1-network.json")),
    // The rate of the time stamp counter.
    (1, include_str!("golden/manifest-1-rate.json")),
    // Containers: more files than a machine has.
    (1, include_str!("golden/manifest-1-processes.json")),
];

#[test]
fn golden_manifests_are_read_and_written_byte_for_byte() {
    let file = |bytes, digest: &[u8]| FileEntry { bytes, digest: Digest::of(digest) };
    let bare = Manifest {
        format: 1,
        owner: owner(),
        platform: Platform { kernel: None, ..platform() },
        shape: SHAPE,
        network: None,
        at: "2026-03-01T12:00:00.123456789Z".to_owned(),
        guest_ns: 0,
        files: BTreeMap::from([
            (MEMORY.to_owned(), file(1 << 20, b"memory")),
            (VM_STATE.to_owned(), file(5, b"state")),
        ]),
    };
    let network = GuestNetwork {
        address: Ipv4Addr::new(10, 0, 0, 2),
        prefix: 30,
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        dns: vec![Ipv4Addr::new(9, 9, 9, 9)],
    };
    let linux = Manifest {
        platform: platform(),
        network: Some(network),
        guest_ns: 1_234_567_890,
        ..bare.clone()
    };
    let rate = Manifest {
        platform: Platform { cpu: with_tsc("any", 2_600_000), ..platform() },
        ..linux.clone()
    };
    let mut processes = bare.clone();
    processes.platform.runtime = RuntimeName::Runc;
    for name in ["changes", "pages-2"] {
        processes.files.insert(name.to_owned(), file(5, b"state"));
    }
    // What told no rate fits a host that does.
    assert_eq!(linux.check(&owner(), &rate.platform, SHAPE), Ok(()));
    for format in 1..=FORMAT {
        assert!(GOLDEN.iter().any(|(of, _)| *of == format), "format {format} has no manifest");
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (manifest, (_, golden)) in [bare, linux, rate, processes].iter().zip(GOLDEN) {
        let path = dir.path().join(MANIFEST);
        draft::write_manifest(&path, manifest).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), golden);
        assert_eq!(Manifest::read(&path).expect("read"), *manifest);
    }
}
