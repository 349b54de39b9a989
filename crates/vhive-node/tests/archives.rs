//! Archives of snapshots that earlier versions have written, as users keep them.

mod scene;

use std::collections::BTreeMap;
use std::io::{self, Read};

use vhive_api::{Bytes, StartKind::Reap};
use vhive_node::ImportError;
use vhive_sandbox::snapshot::FORMAT;

use scene::{Scene, files, kinds, only, reap, register};

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

/// What nobody should read on to.
struct Beyond;

impl Read for Beyond {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("it has been read on"))
    }
}

/// An archive of this manifest, and whose rest cannot be read.
fn begun(manifest: &[u8]) -> impl Read {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(manifest.len() as u64);
    header.set_mode(0o600);
    archive.append_data(&mut header, "manifest.json", manifest).expect("written");
    // Without what ends an archive.
    let bytes = archive.get_ref().clone();
    io::Cursor::new(bytes).chain(Beyond)
}

#[tokio::test]
async fn what_cannot_be_taken_in_is_refused_before_its_memory_is_read() {
    let scene = Scene::new();
    let node = scene.node().await;
    let (_, golden) = GOLDEN[0];
    let manifest = content(golden).remove("manifest.json").expect("a manifest");
    let before = files(&scene);
    // Nothing speaks against it: it is read on.
    let refused = node.snapshots().import(begun(&manifest)).expect_err("it ends there");
    assert!(matches!(refused, ImportError::Read(_)), "{refused}");
    let text = String::from_utf8(manifest.clone()).expect("text");
    let foreign = text.replacen("\"sim\"", "\"runc\"", 1);
    assert_ne!(foreign, text);
    let refused = node.snapshots().import(begun(foreign.as_bytes())).expect_err("not portable");
    assert!(refused.to_string().contains("rights on the host"), "{refused}");
    assert_eq!(files(&scene), before, "nothing is left of them");
    let id = node.snapshots().import(golden).expect("sound").id();
    let refused = node.snapshots().import(begun(&manifest)).expect_err("there is one");
    assert!(matches!(refused, ImportError::Exists(known) if known == id), "{refused}");
}
