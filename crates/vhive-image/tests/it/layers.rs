//! What layers do to each other, and what hostile ones may not do.

use std::path::Path;
use std::sync::Arc;

use vhive_api::Digest;
use vhive_image::{
    Image, ImageStore, LayerError, Limits, PathError, RootFs, RootFsError, StoreError, TarError,
};

use crate::support::{Layout, Mount, Pack, Tar, lacks, lacks_root, pack, walk, with_checksum};

/// Imports layers and builds their root file system in `dir`.
async fn build(dir: &Path, layers: &[Vec<u8>], limits: Limits) -> Result<RootFs, Arc<RootFsError>> {
    let (store, image) = import(dir, layers, limits).await;
    store.rootfs(&image.digest).await
}

async fn import(dir: &Path, layers: &[Vec<u8>], limits: Limits) -> (ImageStore, Image) {
    let mut layout = Layout::new(&dir.join("layout"));
    for layer in layers {
        layout.layer(layer, Pack::Gzip);
    }
    layout.finish("dev.local/x:1");
    let store = ImageStore::open_with(dir.join("store"), limits).unwrap();
    let image = store.import(&layout.dir, None).await.unwrap();
    (store, image)
}

/// Builds the layers, mounts the result and describes it: `path`, `path -> target`, `path = text`.
async fn contents(test: &str, layers: Vec<Tar>) -> Option<Vec<String>> {
    if lacks_root(test) || lacks(test, &["mount"]) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<Vec<u8>> = layers.into_iter().map(Tar::end).collect();
    let rootfs = build(dir.path(), &layers, Limits::default()).await.unwrap();
    let Some(mount) = Mount::erofs(&rootfs.path, &dir.path().join("mnt")) else {
        eprintln!("SKIP {test}: EROFS in the kernel");
        return None;
    };
    let describe = |(path, seen): (std::path::PathBuf, crate::support::Seen)| {
        let name = path.display().to_string();
        if let Some(target) = seen.target {
            return format!("{name} -> {}", target.display());
        }
        match seen.content {
            Some(_) => {
                format!("{name} = {}", std::fs::read_to_string(mount.0.join(&path)).unwrap())
            }
            None => name,
        }
    };
    Some(walk(&mount.0).into_iter().skip(1).map(describe).collect())
}

#[tokio::test]
async fn whiteouts_hide_what_is_below() {
    const TEST: &str = "whiteouts_hide_what_is_below";
    let layers = vec![
        Tar::new()
            .file("a", b"1")
            .dir("d/")
            .file("d/x", b"1")
            .file("d/y", b"1")
            .file("d/sub/z", b"1")
            .dir("o/")
            .file("o/old", b"1")
            .dir("o/keep/")
            .file("o/keep/old", b"1"),
        Tar::new()
            .file(".wh.a", b"")
            .file("d/.wh.x", b"")
            .file("no/such/.wh.dir", b"")
            .file("d/.wh.missing", b"")
            .file("o/new", b"2")
            .dir("o/keep/")
            .file("o/keep/new", b"2")
            .file("o/.wh..wh..opq", b"")
            .file(".wh..wh.plnk/1.2", b"aufs"),
    ];
    let Some(found) = contents(TEST, layers).await else { return };
    let want =
        ["d", "d/sub", "d/sub/z = 1", "d/y = 1", "o", "o/keep", "o/keep/new = 2", "o/new = 2"];
    assert_eq!(found, want);
}

#[tokio::test]
async fn a_whiteout_never_hides_its_own_layer() {
    const TEST: &str = "a_whiteout_never_hides_its_own_layer";
    let layers = vec![
        Tar::new().file("f", b"1").dir("d/").file("d/old", b"1"),
        Tar::new()
            .file("f", b"2")
            .file(".wh.f", b"")
            .dir("d/")
            .file("d/new", b"2")
            .file(".wh.d", b""),
    ];
    let Some(found) = contents(TEST, layers).await else { return };
    assert_eq!(found, ["d", "d/new = 2", "f = 2"]);
}

#[tokio::test]
async fn later_entries_replace_earlier_ones() {
    const TEST: &str = "later_entries_replace_earlier_ones";
    let layers = vec![
        Tar::new()
            .file("f", &[b'x'; 9000])
            .file("f", b"second")
            .dir("was-dir/")
            .file("was-dir/x", b"1")
            .file("was-file", b"1")
            .symlink("was-link", "elsewhere")
            .dir("elsewhere/")
            .dir("kept/")
            .file("kept/x", b"1"),
        Tar::new()
            .file("was-dir", b"now a file")
            .dir("was-file/")
            .file("was-file/y", b"2")
            .dir("was-link/")
            .file("was-link/z", b"2")
            .dir("kept/"),
    ];
    let Some(found) = contents(TEST, layers).await else { return };
    let want = [
        "elsewhere",
        "f = second",
        "kept",
        "kept/x = 1",
        "was-dir = now a file",
        "was-file",
        "was-file/y = 2",
        "was-link",
        "was-link/z = 2",
    ];
    assert_eq!(found, want);
}

#[tokio::test]
async fn hard_links_reach_lower_layers_and_outlive_them() {
    const TEST: &str = "hard_links_reach_lower_layers_and_outlive_them";
    let big = "b".repeat(10_000);
    let layers = vec![
        Tar::new().file("dir/a", big.as_bytes()).symlink("l", "nowhere"),
        Tar::new().hardlink("b", "dir/a").hardlink("b", "b").hardlink("l2", "l"),
        Tar::new().file("dir/.wh.a", b"").file(".wh.l", b""),
    ];
    let Some(found) = contents(TEST, layers).await else { return };
    assert_eq!(found, [format!("b = {big}"), "dir".to_owned(), "l2 -> nowhere".to_owned()]);
}

#[tokio::test]
async fn links_lead_nowhere_but_into_the_image() {
    const TEST: &str = "links_lead_nowhere_but_into_the_image";
    let layers = vec![
        Tar::new()
            .symlink("lib", "usr/lib")
            .dir("usr/")
            .dir("usr/lib/")
            .symlink("abs", "/etc")
            .symlink("up", "../../../../tmp")
            .symlink("swap", "/"),
        Tar::new()
            .file("lib/a.so", b"1")
            .file("abs/passwd", b"2")
            .file("up/left-the-image", b"3")
            .file("/rooted", b"4")
            .file("swap/swapped", b"5")
            .file("./././dots", b"6")
            .file("usr//lib/./b.so", b"7"),
    ];
    let Some(found) = contents(TEST, layers).await else { return };
    let want = [
        "abs -> /etc",
        "dots = 6",
        "etc",
        "etc/passwd = 2",
        "lib -> usr/lib",
        "rooted = 4",
        "swap -> /",
        "swapped = 5",
        "tmp",
        "tmp/left-the-image = 3",
        "up -> ../../../../tmp",
        "usr",
        "usr/lib",
        "usr/lib/a.so = 1",
        "usr/lib/b.so = 7",
    ];
    assert_eq!(found, want);
    assert!(!Path::new("/tmp/left-the-image").exists() && !Path::new("/swapped").exists());
}

/// What a refusal says, all the way down.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(error) = at {
        text = format!("{text}: {error}");
        at = error.source();
    }
    text
}

#[tokio::test]
async fn hostile_layers_are_refused_by_name() {
    let long = "n".repeat(256);
    let deep = "d/".repeat(3000);
    let wide = "x".repeat(70_000);
    let mut table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("climbing path", Tar::new().file("../../etc/passwd", b"x").end(), "climbs"),
        ("climbing in the middle", Tar::new().file("a/../../b", b"x").end(), "climbs"),
        ("climbing hard link", Tar::new().hardlink("a", "../../etc/shadow").end(), "climbs"),
        (
            "hard link to the host",
            Tar::new().hardlink("a", "/etc/shadow").end(),
            "not a file of the image",
        ),
        (
            "hard link through a link",
            Tar::new().symlink("e", "/etc").hardlink("a", "e/shadow").end(),
            "not a file",
        ),
        (
            "hard link to a directory",
            Tar::new().dir("d/").hardlink("a", "d").end(),
            "not a file of the image",
        ),
        (
            "symbolic links in a ring",
            Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"").end(),
            "symbolic links",
        ),
        ("a file as directory", Tar::new().file("f", b"").file("f/x", b"").end(), "no directory"),
        ("the root as file", Tar::new().file("./", b"x").end(), "root"),
        ("an empty link", Tar::new().symlink("a", "").end(), "path none"),
        ("a whiteout of dots", Tar::new().file("d/.wh...", b"").end(), "path none"),
        ("a long name", Tar::new().pax(&[("path", long.as_bytes())]).file("x", b"").end(), "255"),
        ("a deep path", Tar::new().pax(&[("path", deep.as_bytes())]).file("x", b"").end(), "4095"),
        ("a name with NUL", Tar::new().pax(&[("path", b"a\0b")]).file("x", b"").end(), "bad path"),
        (
            "a large attribute",
            Tar::new().pax(&[("SCHILY.xattr.user.x", wide.as_bytes())]).file("x", b"").end(),
            "attributes",
        ),
        (
            "a broken record",
            Tar::new().raw(b"p", b'x', b"", b"99 path=x\n").file("x", b"").end(),
            "PAX record",
        ),
        ("a negative size", Tar::new().pax(&[("size", b"-1")]).file("x", b"").end(), "size"),
        (
            "a huge size",
            Tar::new().pax(&[("size", b"18446744073709551615")]).file("x", b"").end(),
            "size",
        ),
        (
            "a sparse file",
            Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("x", b"").end(),
            "sparse",
        ),
        ("an old sparse file", Tar::new().raw(b"s", b'S', b"", b"").end(), "type \"S\""),
        ("an unknown type", Tar::new().raw(b"s", b'Z', b"", b"").end(), "type \"Z\""),
        (
            "huge records",
            Tar::new().raw(b"p", b'x', b"", &vec![0; 2 << 20]).end(),
            "bytes of names",
        ),
        ("no tar at all", b"hello".repeat(300), "checksum"),
    ];
    let mut half = Tar::new().file("x", &[1; 5000]).0;
    half.truncate(3000);
    table.push(("a cut archive", half, "ends in the middle"));
    let mut wrong = [0; 512];
    wrong[..1].copy_from_slice(b"x");
    wrong[124..135].copy_from_slice(b"9999999999z");
    table.push(("letters for a size", with_checksum(wrong).to_vec(), "bad size"));
    for (what, layer, part) in table {
        let dir = tempfile::tempdir().unwrap();
        let error = build(dir.path(), &[layer], Limits::default()).await.expect_err(what);
        let text = chain(&error);
        assert!(text.contains(part), "{what}: {text}");
        assert_nothing_left(dir.path());
    }
}

fn assert_nothing_left(dir: &Path) {
    let names = |below: &str| -> Vec<String> {
        let entries = std::fs::read_dir(dir.join("store").join(below)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let rootfs: Vec<_> =
        names("rootfs").into_iter().filter(|name| !name.ends_with(".lock")).collect();
    assert!(rootfs.is_empty(), "{rootfs:?}");
    assert_eq!(names("drafts"), [".lock"]);
}

#[tokio::test]
async fn bombs_are_stopped_by_the_limits() {
    let refused = async |layers: &[Vec<u8>], limits: Limits| {
        let dir = tempfile::tempdir().unwrap();
        let error = build(dir.path(), layers, limits).await.unwrap_err();
        assert_nothing_left(dir.path());
        chain(&error)
    };
    let usual = Limits::default();
    let zeros = Tar::new().file("zeros", &vec![0; 3 << 20]).end();
    let text = refused(std::slice::from_ref(&zeros), Limits { unpacked: 1 << 20, ..usual }).await;
    assert!(text.contains("more than the 1048576 bytes"), "{text}");
    // The limit is for all layers together.
    let text = refused(&[zeros.clone(), zeros], Limits { unpacked: 5 << 20, ..usual }).await;
    assert!(text.contains("unpacks to more"), "{text}");
    let many = (0..200).fold(Tar::new(), |tar, n| tar.file(&n.to_string(), b"")).end();
    let text = refused(&[many], Limits { files: 100, ..usual }).await;
    assert!(text.contains("more than 100 files"), "{text}");
    // One entry may ask for very many directories.
    let path = "d/".repeat(1500);
    let deep = Tar::new().pax(&[("path", path.as_bytes())]).dir("x").end();
    let text = refused(&[deep], Limits { files: 1000, ..usual }).await;
    assert!(text.contains("more than 1000 files"), "{text}");
    let name = "x".repeat(1000);
    let attributes = (0..50)
        .fold(Tar::new(), |tar, n| {
            tar.pax(&[("SCHILY.xattr.user.x", name.as_bytes())]).file(&n.to_string(), b"")
        })
        .end();
    let text = refused(&[attributes], Limits { metadata: 10_000, ..usual }).await;
    assert!(text.contains("exceed 10000 bytes"), "{text}");
}

#[tokio::test]
async fn directories_cannot_be_nested_without_end() {
    // Each entry begins where a link to the deepest directory so far leads.
    let mut tar = Tar::new();
    let path = "d/".repeat(100);
    let mut at = String::new();
    for n in 0..30 {
        tar = tar.pax(&[("path", format!("{at}{path}").as_bytes())]).dir("x");
        let target = format!("{at}{path}");
        tar = tar.pax(&[("linkpath", target.as_bytes())]).raw(
            format!("l{n}").as_bytes(),
            b'2',
            b"",
            b"",
        );
        at = format!("l{n}/");
    }
    let dir = tempfile::tempdir().unwrap();
    let error = build(dir.path(), &[tar.end()], Limits::default()).await.unwrap_err();
    let RootFsError::Layer { source: LayerError::Refused { source, .. }, .. } = &*error else {
        panic!("{error}")
    };
    assert!(matches!(source, PathError::Depth | PathError::Links), "{source}");
}

#[tokio::test]
async fn damaged_blobs_are_told_from_bad_layers() {
    let good = Tar::new().file("x", &[7; 100_000]).end();
    let dir = tempfile::tempdir().unwrap();
    let (store, image) = import(dir.path(), std::slice::from_ref(&good), Limits::default()).await;
    let blob = dir.path().join("store/blobs/sha256").join(image.layers[0].digest.hex());
    let packed = std::fs::read(&blob).unwrap();
    // A flipped bit, a blob cut short, another blob in its place: each is damage of the store.
    let mut flipped = packed.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let other = pack(&Tar::new().file("y", b"").end(), Pack::Gzip);
    for damage in [flipped, packed[..packed.len() / 2].to_vec(), other] {
        std::fs::write(&blob, damage).unwrap();
        let error = store.rootfs(&image.digest).await.unwrap_err();
        assert!(matches!(&*error, RootFsError::Store(StoreError::BlobDamaged { .. })), "{error}");
        assert_nothing_left(dir.path());
    }
    std::fs::remove_file(&blob).unwrap();
    let error = store.rootfs(&image.digest).await.unwrap_err();
    assert!(matches!(&*error, RootFsError::Store(StoreError::BlobMissing(_))), "{error}");
    std::fs::write(&blob, packed).unwrap();
    store.rootfs(&image.digest).await.unwrap();
}

#[tokio::test]
async fn truncated_or_lying_layers_are_refused() {
    // The blob is as its digest says, but is no whole gzip stream.
    let dir = tempfile::tempdir().unwrap();
    let tar = Tar::new().file("x", &[7; 100_000]).end();
    let mut packed = pack(&tar, Pack::Gzip);
    packed.truncate(packed.len() - 20);
    let mut layout = Layout::new(&dir.path().join("layout"));
    layout.layer(&packed, Pack::Plain);
    layout.diff_ids[0] = Digest::of(&tar);
    layout.finish("dev.local/x:1");
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let image = store.import(&layout.dir, None).await.unwrap();
    let error = store.rootfs(&image.digest).await.unwrap_err();
    let is_read = |error: &RootFsError| {
        matches!(error, RootFsError::Layer { source: LayerError::Archive(TarError::Read(_)), .. })
    };
    assert!(is_read(&error), "{}", chain(&error));

    // It unpacks to something else than the configuration says.
    let mut layout = Layout::new(&dir.path().join("second"));
    layout.layer(&tar, Pack::Zstd);
    layout.diff_ids[0] = Digest::of(b"something else");
    layout.finish("dev.local/x:2");
    let image = store.import(&layout.dir, None).await.unwrap();
    let error = store.rootfs(&image.digest).await.unwrap_err();
    assert!(matches!(&*error, RootFsError::DiffId { .. }), "{error}");
    assert_nothing_left(dir.path());
}
