//! A promise about a disk that gets full in the middle of a snapshot: others write to it, too, so that
//! it had room when the snapshot began.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vhive_api::MemoryMode;
use vhive_sandbox::SnapshotDraft;

use crate::restored;
use crate::site::{Site, get, soon};

/// Less than the function holds, and more than a runtime's first small files.
const SIZE: &str = "size=4m";

/// A web server beside ten mebibytes that are no zeros.
const SCRIPT: &str = "x=$(seq 1 1500000); (sleep 100000; echo $x) & exec httpd -f -p 8080 -h /srv";

/// A file system of its own, gone with its value.
struct Mounted(PathBuf);

impl Mounted {
    fn new(place: &Path) -> Self {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(place);
        assert!(mount.status().expect("mount runs").success(), "root may mount");
        Self(place.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

/// A snapshot for which the disk is too small says so and leaves nothing there; the original serves as
/// before, and can be snapshotted to another disk.
pub(crate) fn a_snapshot_on_a_full_disk_costs_itself(site: &Site) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (small, large) = (dir.path().join("small"), dir.path().join("large"));
    fs::create_dir(&small).expect("made");
    fs::create_dir(&large).expect("made");
    let mounted = Mounted::new(&small);
    let mut spec = site.spec(SCRIPT);
    spec.uses.snapshots = true;
    let mut original = site.boot(&spec);
    original.listening();
    let serves = |endpoint| assert_eq!(get(endpoint, "/index.html"), "hello from inside\n");
    // Twice: what one attempt has left in the way would be met by the next.
    for attempt in 1..=2 {
        let mut draft = SnapshotDraft::begin(&small, restored::owner()).expect("begun");
        let checkpoint = original.sandbox.checkpoint().expect("it can be snapshotted");
        let error = checkpoint.snapshot_into(&mut draft, soon()).expect_err("it does not fit");
        drop(draft);
        let told = chain(&error);
        assert!(told.to_lowercase().contains("no space left"), "attempt {attempt}: {told}");
        assert!(!error.is_lost(), "attempt {attempt}: {told}");
        let left = fs::read_dir(&small).expect("readable").flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "attempt {attempt}: {left:?}");
        serves(original.endpoint());
        assert_eq!(original.journal.ended(), None);
    }
    drop(mounted);
    let snapshot = restored::snapshot(&mut original, &large);
    snapshot.verify().expect("sound");
    serves(original.endpoint());
    let spec = site.spec("never run");
    serves(restored::clone(site, &spec, &snapshot, MemoryMode::File).endpoint());
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
