//! Snapshots of real microVMs: what a clone is, and what it is not.
#![expect(
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and tell why they skip"
)]
#![expect(dead_code, reason = "the conformance suite uses the rest")]

#[path = "conformance/site.rs"]
mod site;
#[path = "conformance/traces.rs"]
mod traces;

use vhive_api::{Digest, MemoryMode, PrefetchPolicy, RevisionKey};
use vhive_sandbox::qemu::QemuConfig;
use vhive_sandbox::snapshot::Owner;
use vhive_sandbox::{Memory, Snapshot, SnapshotDraft};

use site::{Booted, Site, get, qemu_with, soon};

fn site(test: &str) -> Option<Site> {
    match qemu_with(QemuConfig::default()).and_then(|qemu| Site::of(qemu, true)) {
        Ok(site) => Some(site),
        Err(missing) => {
            eprintln!("SKIP {test}: {missing}");
            None
        }
    }
}

fn owner() -> Owner {
    Owner {
        revision: RevisionKey { namespace: "default".to_owned(), name: "test-00001".to_owned() },
        digest: Digest::of(b"revision"),
        image: Digest::of(b"image"),
    }
}

fn snapshot(booted: &mut Booted, dir: &std::path::Path) -> Snapshot {
    let mut draft = SnapshotDraft::begin(dir, owner()).expect("begun");
    let checkpoint = booted.sandbox.checkpoint().expect("a booted microVM can be snapshotted");
    checkpoint.snapshot_into(&mut draft, soon()).expect("snapshotted");
    draft.publish(&dir.join("final")).expect("published")
}

const WEB: &str = "mkdir -p /srv/cgi-bin; echo before > /srv/file; httpd -f -p 8080 -h /srv";

#[test]
fn qemu_clone_answers_and_is_somebody_else() {
    let Some(site) = site("qemu_clone_answers_and_is_somebody_else") else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let spec = site.spec(WEB);
    let mut original = site.boot(&spec);
    original.listening();
    assert_eq!(get(original.endpoint(), "/file"), "before\n");
    let began = std::time::Instant::now();
    let snapshot = snapshot(&mut original, dir.path());
    eprintln!("snapshot took {:?}", began.elapsed());
    assert_eq!(get(original.endpoint(), "/file"), "before\n");
    let restores = site.runtime.restores().expect("it restores");
    for mode in [MemoryMode::File] {
        let memory = Memory { mode, policy: PrefetchPolicy::default() };
        let spec = site.spec("never run");
        let began = std::time::Instant::now();
        let clone = restores.restore(&spec, &snapshot, memory, soon()).unwrap_or_else(|error| {
            panic!("{error:?}; console:\n{}", spec.journal.tail(50).join("\n"))
        });
        eprintln!(
            "restore {mode} took {:?} {:?}",
            began.elapsed(),
            spec.journal.milestones().iter().map(|(m, at)| (*m, *at - began)).collect::<Vec<_>>()
        );
        assert_eq!(get(clone.endpoint(), "/file"), "before\n");
        eprintln!("reply after {:?}", began.elapsed());
    }
}
