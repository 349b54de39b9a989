//! Our images against other programs: `tar -x` says what a layer means, the kernel and
//! `fsck.erofs` what an image is.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::{Layout, Mount, Pack, assert_same, lacks, lacks_root, run, walk};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use vhive_image::ImageStore;

/// A directory with one of everything.
fn odd_tree(root: &Path) {
    fs::create_dir(root).unwrap();
    let at = |name: &str| root.join(name);
    for (name, size) in [("empty", 0), ("small", 10), ("edge", 4032), ("over", 4033)] {
        fs::write(at(name), vec![b'x'; size]).unwrap();
    }
    for (name, size) in [("block", 4096), ("blocks", 8192), ("odd", 12_345), ("large", 3 << 20)] {
        let data: Vec<u8> =
            (0..size).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        fs::write(at(name), data).unwrap();
    }
    fs::create_dir_all(at("many")).unwrap();
    for n in 0..2000 {
        fs::write(at(&format!("many/{n:05}-{}", "n".repeat(n % 200))), n.to_string()).unwrap();
    }
    for name in ["!before-dot", "-before-dot", "...", "zz", "é", "space here", "new\nline"] {
        fs::write(at(name), name).unwrap();
    }
    let long = format!("deep/{0}/{0}/{0}", "d".repeat(200));
    fs::create_dir_all(at(&long)).unwrap();
    fs::write(at(&format!("{long}/{}", "f".repeat(255))), "long").unwrap();
    symlink("small", at("link")).unwrap();
    symlink("t".repeat(3000), at("long-link")).unwrap();
    symlink("/nowhere", at("dangling")).unwrap();
    fs::hard_link(at("odd"), at("many/also-odd")).unwrap();
    fs::hard_link(at("small"), at("zz-small")).unwrap();
    fs::hard_link(at("link"), at("link-again")).unwrap();
    fs::set_permissions(at("small"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::create_dir(at("sticky")).unwrap();
    fs::set_permissions(at("sticky"), fs::Permissions::from_mode(0o3777)).unwrap();
    chown(at("odd"), Some(1000), Some(65_534)).unwrap();
    chown(at("large"), Some(3_000_000_000), Some(70_000)).unwrap();
    lchown(at("link"), Some(12), Some(34)).unwrap();
    let node =
        |name: &str, kind, device| mknodat(CWD, at(name), kind, Mode::from(0o640), device).unwrap();
    node("null", FileType::CharacterDevice, makedev(1, 3));
    node("wide", FileType::BlockDevice, makedev(259, 70_000));
    node("pipe", FileType::Fifo, 0);
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let set = |name: &str, key, value: &[u8]| {
        lsetxattr(at(name), key, value, XattrFlags::empty()).unwrap()
    };
    set("block", "security.capability", capability);
    set("empty", "user.one", b"1");
    set("edge", "user.with.long.name", &[7; 200]);
    set("sticky", "trusted.dir", b"d");
    set("odd", "user.big", &[9; 3000]);
    set("odd", "user.bigger", &[8; 500]);
    for (name, when) in
        [("small", "@-86400.25"), ("odd", "@1700000000.123456789"), ("many", "@4294967299")]
    {
        run(Command::new("touch").args(["-h", "-d", when]).arg(at(name)));
    }
}

fn tar_of(root: &Path, format: &str) -> Vec<u8> {
    let mut tar = Command::new("tar");
    tar.args(["-c", "--numeric-owner", "--sort=name"]);
    if format == "pax" {
        tar.args(["--xattrs", "--xattrs-include=*"]);
    }
    run(tar.arg(format!("--format={format}")).arg("-C").arg(root).arg("."))
}

fn untar(tar: &[u8], to: &Path) {
    fs::create_dir_all(to).unwrap();
    let file = to.with_extension("tar");
    fs::write(&file, tar).unwrap();
    let mut command = Command::new("tar");
    command.args(["-x", "--numeric-owner", "-p", "--same-owner", "--xattrs", "--xattrs-include=*"]);
    run(command.arg("-f").arg(&file).arg("-C").arg(to));
}

fn fsck(image: &Path) {
    let output = run(Command::new("fsck.erofs").arg(image));
    let text = String::from_utf8_lossy(&output);
    assert!(text.contains("No errors found") || text.is_empty(), "{text}");
}

#[tokio::test]
async fn an_image_is_what_tar_makes_of_its_layer() {
    const TEST: &str = "an_image_is_what_tar_makes_of_its_layer";
    if lacks_root(TEST) || lacks(TEST, &["tar", "fsck.erofs", "mount"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    odd_tree(&dir.path().join("odd"));
    for (format, how) in [("pax", Pack::Gzip), ("gnu", Pack::Zstd), ("oldgnu", Pack::Plain)] {
        let tar = tar_of(&dir.path().join("odd"), format);
        let work = dir.path().join(format);
        let mut layout = Layout::new(&work.join("layout"));
        layout.layer(&tar, how);
        let digest = layout.finish("dev.local/odd:1");
        let store = ImageStore::open(work.join("store")).unwrap();
        let image = store.import(&layout.dir, None).await.unwrap();
        assert_eq!((image.name.as_str(), image.digest), ("dev.local/odd:1", digest));
        let rootfs = store.rootfs(&digest).await.unwrap();
        fsck(&rootfs.path);
        untar(&tar, &work.join("want"));
        let Some(mount) = Mount::erofs(&rootfs.path, &work.join("mnt")) else {
            eprintln!("SKIP {TEST}: EROFS in the kernel");
            return;
        };
        assert_same(&walk(&work.join("want")), &walk(&mount.0));
        assert!(store.verify_rootfs(&digest).unwrap());
        // Every name can be looked up, not only listed.
        for path in walk(&mount.0).keys() {
            assert!(
                mount.0.join(path).symlink_metadata().is_ok(),
                "{:?}",
                path.as_os_str().as_bytes()
            );
        }
    }
}
