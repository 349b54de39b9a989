//! Random trees through tar, layers and image, read back by an independent reader.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read as _, Seek as _};

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use proptest::prelude::*;

use super::*;
use crate::layer::Applier;
use crate::limits::Limits;
use crate::tar::{Entry, Kind};
use crate::tar_write;

/// What is known of a file, by whichever way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    kind: u8,
    mode: u16,
    owner: (u32, u32),
    mtime: (i64, u32),
    links: u32,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    device: Option<(u32, u32)>,
    content: Option<Vec<u8>>,
}

/// Content that tells sizes and places apart.
fn pattern(size: u64) -> Vec<u8> {
    let byte = |at: u64| u8::try_from((at * 31 + at / 4096 + size) % 251).expect("below 251");
    (0..size).map(byte).collect()
}

fn entry() -> impl Strategy<Value = Entry> {
    let name = prop_oneof![
        4 => "[ab]{1,2}",
        2 => "[!-.a-c]{1,3}".prop_filter("no dots alone", |name| name != "." && name != ".."),
        1 => "[a-z]{200,255}",
    ];
    let path = prop::collection::vec(name, 1..5).prop_map(|names| names.join("/").into_bytes());
    let size = prop_oneof![3 => 0..100_u64, 2 => 3900..4300_u64, 1 => 8000..30_000_u64];
    let kind = prop_oneof![
        4 => size.prop_map(|size| (Kind::File, size)),
        3 => Just((Kind::Directory, 0)),
        1 => "[a-z/.]{1,300}".prop_map(|target| (Kind::Symlink(target.into_bytes()), 0)),
        1 => "[ab]{1,2}".prop_map(|target| (Kind::HardLink(target.into_bytes()), 0)),
        1 => (0..0xfff_u32, 0..0xf_ffff_u32).prop_map(|(major, minor)| (Kind::Char(major, minor), 0)),
        1 => (0..0xfff_u32, 0..0xf_ffff_u32).prop_map(|(major, minor)| (Kind::Block(major, minor), 0)),
        1 => Just((Kind::Fifo, 0)),
    ];
    let key = prop_oneof![
        "user\\.[a-z]{1,30}",
        "trusted\\.[a-z]{1,9}",
        Just("security.capability".to_owned())
    ];
    let value = prop::collection::vec(any::<u8>(), 0..1500);
    let xattrs = prop::collection::btree_map(key, value, 0..4);
    let meta =
        (0..0o7777_u16, any::<u32>(), any::<u32>(), any::<i32>(), 0..1_000_000_000_u32, xattrs);
    (path, kind, meta).prop_map(|(path, (kind, size), (mode, uid, gid, mtime, nanos, xattrs))| {
        let xattr = |(name, value): (String, Vec<u8>)| Xattr { name: name.into_bytes(), value };
        let xattrs = xattrs.into_iter().map(xattr).collect();
        let meta = Meta { mode, uid, gid, mtime: mtime.into(), mtime_nsec: nanos, xattrs };
        Entry { path, kind, meta, size }
    })
}

/// Everything in a tree by its path; contents by the pattern.
fn of_tree(tree: &Tree) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = BTreeMap::new();
    let mut todo = vec![(Vec::new(), NodeId::ROOT)];
    while let Some((path, id)) = todo.pop() {
        let node = tree.node(id);
        let mut links = node.links;
        let (device, content) = match &node.body {
            Body::Directory(directory) => {
                links = 2;
                for (name, child) in &directory.children {
                    let below = matches!(tree.node(child.node).body, Body::Directory(_));
                    links += u32::from(below);
                    todo.push(([path.as_slice(), b"/", name].concat(), child.node));
                }
                (None, None)
            }
            Body::File { size, .. } => (None, Some(pattern(*size))),
            Body::Symlink(target) => (None, Some(target.clone())),
            Body::Char(major, minor) | Body::Block(major, minor) => (Some((*major, *minor)), None),
            Body::Fifo | Body::Gone => (None, None),
        };
        let meta = &node.meta;
        let xattrs = meta.xattrs.iter().map(|x| (x.name.clone(), x.value.clone())).collect();
        let seen = Seen {
            kind: file_type(&node.body),
            mode: meta.mode,
            owner: (meta.uid, meta.gid),
            mtime: (meta.mtime, meta.mtime_nsec),
            links,
            xattrs,
            device,
            content,
        };
        all.insert(path, seen);
    }
    all.remove(b"".as_slice());
    all
}

/// Everything in an image by its path, by the independent reader.
fn of_image(image: &[u8]) -> BTreeMap<Vec<u8>, Seen> {
    let fs = EroFS::new(SliceImage::new(image)).expect("a sound superblock");
    let mut all = BTreeMap::new();
    for entry in fs.walk_dir("/").expect("a root directory") {
        let entry = entry.expect("a sound entry");
        let inode = entry.inode;
        let content = if inode.is_file() {
            let mut content = Vec::new();
            let file = fs.open_inode_file(inode).expect("a file");
            let mut buffer = vec![0; 10_000];
            loop {
                let got = file.read_at(&mut buffer, content.len() as u64).expect("readable");
                if got == 0 {
                    break;
                }
                content.extend_from_slice(&buffer[..got]);
            }
            Some(content)
        } else if inode.is_symlink() {
            Some(fs.read_link_inode(inode).expect("a target").into_vec())
        } else {
            None
        };
        let kind = entry.dir_entry.file_type() as u8;
        let seen = Seen {
            kind,
            mode: inode.permissions(),
            owner: (inode.uid(), inode.gid()),
            mtime: inode.modified_unix(),
            links: inode.nlink(),
            xattrs: fs.xattrs_inode(inode).expect("sound attributes"),
            device: inode.device(),
            content,
        };
        all.insert(entry.dir_entry.path().into_vec(), seen);
    }
    all
}

/// Applies each entry as a layer and makes the image.
fn make(entries: &[Entry]) -> (Tree, Vec<u8>) {
    let file = tempfile::tempfile().expect("a temporary file");
    let mut image = ImageWriter::new(file).expect("writable");
    let mut applier = Applier::new(&mut image, &Limits::default());
    for entry in entries {
        let mut layer = Vec::new();
        let data = pattern(entry.size);
        tar_write::append(&mut layer, entry, &mut data.as_slice()).expect("in memory");
        tar_write::end(&mut layer).expect("in memory");
        // What is refused (a file as a directory, a link to nothing) changes nothing that counts.
        let _ = applier.apply(BufReader::new(layer.as_slice()));
    }
    let tree = applier.tree;
    let (mut file, bytes) = image.finish(&tree, [7; 16]).expect("writable");
    let mut image = Vec::new();
    file.seek(io::SeekFrom::Start(0)).expect("seekable");
    file.read_to_end(&mut image).expect("readable");
    assert_eq!(image.len() as u64, bytes);
    (tree, image)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn an_independent_reader_finds_the_same_tree(entries in prop::collection::vec(entry(), 0..40)) {
        let (tree, image) = make(&entries);
        let (want, got) = (of_tree(&tree), of_image(&image));
        prop_assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
        for (path, seen) in &want {
            prop_assert_eq!(&got[path], seen, "{}", String::from_utf8_lossy(path));
        }
        prop_assert_eq!(make(&entries).1, image, "the same bytes every time");
    }
}

#[test]
fn large_directories_are_found_whole() {
    let entry = |n: u32| Entry {
        path: format!("d/{}{n}", "x".repeat((n % 230) as usize)).into_bytes(),
        kind: Kind::Fifo,
        meta: Meta::new(0o600),
        size: 0,
    };
    let entries: Vec<Entry> = (0..3000).map(entry).collect();
    let (tree, image) = make(&entries);
    assert_eq!(of_image(&image), of_tree(&tree));
}

#[test]
fn the_header_is_recognised_and_only_it() {
    let (_, image) = make(&[]);
    let block0: [u8; BLOCK] = image[..BLOCK].try_into().expect("one block");
    let bytes = image.len() as u64;
    assert!(is_header_of(&block0, [7; 16], bytes));
    assert!(!is_header_of(&block0, [8; 16], bytes));
    assert!(!is_header_of(&block0, [7; 16], bytes + BLOCK_U64));
    for at in [SUPER_OFFSET, SUPER_OFFSET + 5, SUPER_OFFSET + 40, BLOCK - 1] {
        let mut changed = block0;
        changed[at] ^= 1;
        assert!(!is_header_of(&changed, [7; 16], bytes), "byte {at}");
    }
}

#[test]
fn the_checksum_is_crc32c() {
    // Check value of CRC-32C, without the final inversion.
    assert_eq!(crc32c(b"123456789"), !0xe306_9283);
}
