//! Archives of snapshots that earlier versions have written, as users keep them.

mod scene;

use std::collections::BTreeMap;
use std::io::Read as _;

use vhive_api::{Bytes, StartKind::Reap};
use vhive_sandbox::snapshot::FORMAT;

use scene::{Scene, kinds, only, reap, register};

/// One archive of each format, as its first version wrote it.
const GOLDEN: [(u32, &[u8]); 1] = [(1, include_bytes!("golden/archive-1.tar"))];

/// What an archive holds, by name. Times and owners of files are whoever's has written it.
fn content(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().expect("an archive").map(|entry| {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a name").to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("read");
        (name, bytes)
    });
    entries.collect()
}

#[tokio::test]
async fn archives_of_every_earlier_format_are_taken_in_and_started_from() {
    for format in 1..=FORMAT {
        assert!(GOLDEN.iter().any(|(of, _)| *of == format), "format {format} has no archive");
    }
    for (format, golden) in GOLDEN {
        let scene = Scene::new();
        let node = scene.node().await;
        let taken = node.snapshots().import(golden).expect("sound");
        assert_eq!(taken.revision.to_string(), "default/golden", "format {format}");
        assert_eq!((taken.memory, taken.working_sets), (Bytes::mib(1), vec![1]));
        let mut again = Vec::new();
        node.snapshots().export(&only(&node).id(), &mut again).expect("written");
        assert_eq!(content(&again), content(golden), "format {format}");
        // The revision that it was taken of has the digest that it had then.
        let key = register(&node, "golden", reap);
        assert_eq!(kinds(&node, &key, 2).await, [Reap, Reap], "format {format}");
    }
}
