//! What the image tests share: layouts made by hand, mounts, and trees as they are on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use vhive_api::Digest;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pack {
    Plain,
    Gzip,
    Zstd,
}

pub(crate) fn pack(tar: &[u8], how: Pack) -> Vec<u8> {
    match how {
        Pack::Plain => tar.to_vec(),
        Pack::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(tar).unwrap();
            out.finish().unwrap()
        }
        Pack::Zstd => zstd::encode_all(tar, 1).unwrap(),
    }
}

/// An image under construction in an OCI layout directory.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) layers: Vec<serde_json::Value>,
    pub(crate) diff_ids: Vec<Digest>,
}

impl Layout {
    pub(crate) fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir: dir.to_owned(), layers: Vec::new(), diff_ids: Vec::new() }
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> (Digest, usize) {
        let digest = Digest::of(bytes);
        fs::write(self.dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        (digest, bytes.len())
    }

    pub(crate) fn layer(&mut self, tar: &[u8], how: Pack) -> Digest {
        let (digest, size) = self.blob(&pack(tar, how));
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        self.layers
            .push(serde_json::json!({ "mediaType": media_type, "digest": digest, "size": size }));
        self.diff_ids.push(Digest::of(tar));
        digest
    }

    /// Writes configuration, manifest and index; returns the manifest's digest.
    pub(crate) fn finish(&self, name: &str) -> Digest {
        let config = config_of(&self.diff_ids);
        let (config, config_size) = self.blob(config.as_bytes());
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
            "layers": self.layers,
        });
        let (manifest, size) = self.blob(manifest.to_string().as_bytes());
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": size,
                "annotations": { "org.opencontainers.image.ref.name": name },
            }],
        });
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
        manifest
    }
}

pub(crate) fn config_of(diff_ids: &[Digest]) -> String {
    serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Entrypoint": ["/bin/app"], "Env": ["A=1"], "ExposedPorts": { "80/tcp": {}, "53/udp": {} } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
}

/// A tar stream made entry by entry, also of entries that no sane program writes.
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// One entry with header fields as given; the checksum is right.
    pub(crate) fn raw(mut self, path: &[u8], kind: u8, link: &[u8], data: &[u8]) -> Self {
        let mut block = [0_u8; 512];
        block[..path.len()].copy_from_slice(path);
        let mode: &[u8] = if kind == b'5' { b"0000755" } else { b"0000644" };
        block[100..107].copy_from_slice(mode);
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        block[136..147].copy_from_slice(b"00000000000");
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        self.0.extend(with_checksum(block));
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.raw(path.as_bytes(), b'0', b"", data)
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.raw(path.as_bytes(), b'5', b"", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(path.as_bytes(), b'2', target.as_bytes(), b"")
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Self {
        self.raw(path.as_bytes(), b'1', target.as_bytes(), b"")
    }

    /// A PAX header for the entry that follows.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|n| rest + n.to_string().len() == *n).unwrap();
            text.extend(format!("{length} {key}=").into_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.raw(b"pax", b'x', b"", &text)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

pub(crate) fn with_checksum(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Whether a program can be run; if not, says that the test is skipped.
pub(crate) fn lacks(test: &str, programs: &[&str]) -> bool {
    for program in programs {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
        if !found.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIP {test}: {program}");
            return true;
        }
    }
    false
}

pub(crate) fn lacks_root(test: &str) -> bool {
    let lacks = !rustix::process::geteuid().is_root();
    if lacks {
        eprintln!("SKIP {test}: root");
    }
    lacks
}

pub(crate) fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    let text = [output.stdout.clone(), output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&text));
    output.stdout
}

/// A mount that ends with the value.
pub(crate) struct Mount(pub(crate) PathBuf);

impl Mount {
    /// Mounts an EROFS image with the kernel's driver; `None` if there is no such driver.
    pub(crate) fn erofs(image: &Path, at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let output = Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro"])
            .args([image, at])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if text.contains("unknown filesystem type") || text.contains("loop device") {
            return None;
        }
        assert!(output.status.success(), "mount: {text}");
        Some(Self(at.to_owned()))
    }

    pub(crate) fn tmpfs(at: &Path, bytes: u64) -> Self {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={bytes}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "umount {}", self.0.display());
    }
}

/// Everything that `stat`, `readlink`, `listxattr` and `read` tell of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) device: u64,
    pub(crate) links: u64,
    /// First path with the same inode, for what has several names.
    pub(crate) same_as: Option<PathBuf>,
    pub(crate) target: Option<PathBuf>,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    pub(crate) content: Option<Digest>,
}

/// All files below `root` by their path in it.
pub(crate) fn walk(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut all, mut first) = (BTreeMap::new(), BTreeMap::new());
    let mut todo = vec![root.to_owned()];
    let mut paths = Vec::new();
    while let Some(path) = todo.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        paths.push(path);
    }
    paths.sort();
    for path in paths {
        let found = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let several = !found.is_dir() && found.nlink() > 1;
        let same_as =
            several.then(|| first.entry(found.ino()).or_insert_with(|| name.clone()).clone());
        let content = found.is_file().then(|| {
            let mut bytes = Vec::new();
            fs::File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, found.len());
            Digest::of(&bytes)
        });
        let seen = Seen {
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            mtime: (found.mtime(), found.mtime_nsec()),
            device: if found.mode() & 0o020_000 != 0 { found.rdev() } else { 0 },
            links: if found.is_dir() { 0 } else { found.nlink() },
            same_as,
            target: found.is_symlink().then(|| fs::read_link(&path).unwrap()),
            xattrs: xattrs(&path),
            content,
        };
        all.insert(name, seen);
    }
    all
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names) else { return BTreeMap::new() };
    let names = String::from_utf8(names[..length].to_vec()).unwrap();
    let value = |name: &str| {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
        (name.to_owned(), value[..length].to_vec())
    };
    names.split('\0').filter(|name| !name.is_empty()).map(value).collect()
}

/// The first difference between two trees, in words.
pub(crate) fn assert_same(want: &BTreeMap<PathBuf, Seen>, got: &BTreeMap<PathBuf, Seen>) {
    for (path, seen) in want {
        assert_eq!(got.get(path), Some(seen), "{}", path.display());
    }
    let extra: Vec<_> = got.keys().filter(|path| !want.contains_key(*path)).collect();
    assert!(extra.is_empty(), "not wanted: {extra:?}");
}
