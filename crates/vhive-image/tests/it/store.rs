//! The store as a whole: sources, names, caches, concurrency, faults.

use std::fs;
use std::io::{Seek as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use vhive_api::Digest;
use vhive_image::{FindError, ImageStore, ImportError, RootFsError, StoreError};

use crate::support::{Layout, Mount, Pack, Tar, config_of, lacks, lacks_root, pack, run};

fn layout(dir: &Path, name: &str, text: &str) -> Layout {
    let mut layout = Layout::new(dir);
    layout.layer(&Tar::new().file("shared", &[5; 50_000]).end(), Pack::Gzip);
    layout.layer(&Tar::new().file("text", text.as_bytes()).end(), Pack::Gzip);
    layout.finish(name);
    layout
}

fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.ends_with(".lock") && name != ".lock");
    names.sort();
    names
}

#[tokio::test]
async fn names_move_and_images_stay_until_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let one = layout(&dir.path().join("one"), "dev.local/x:1", "one");
    let two = layout(&dir.path().join("two"), "dev.local/x:1", "two");
    let first = store.import(&one.dir, None).await.unwrap();
    let second = store.import(&two.dir, None).await.unwrap();
    assert_ne!(first.digest, second.digest);
    assert_eq!(store.find("dev.local/x:1").unwrap().digest, second.digest);
    let names: Vec<String> = store.list().unwrap().into_iter().map(|image| image.name).collect();
    assert_eq!(names, ["dev.local/x:1".to_owned(), first.digest.to_string()]);
    // A revision that pins the old one can still start.
    let rootfs = store.rootfs(&first.digest).await.unwrap();
    let open = fs::File::open(&rootfs.path).unwrap();
    let removed = store.remove(&first.digest.to_string()).unwrap();
    assert!(removed.names.is_empty() && removed.bytes > 0);
    assert!(!rootfs.path.exists());
    assert_eq!(open.metadata().unwrap().len(), rootfs.bytes.0, "a user of it keeps it");
    assert!(matches!(store.find(&first.digest.to_string()), Err(FindError::Unknown(_))));
    // The layer that both had is still there.
    store.rootfs(&second.digest).await.unwrap();
    let also = store.import(&two.dir, Some("dev.local/also")).await.unwrap();
    assert_eq!(store.remove("dev.local/x:1").unwrap().bytes, 0);
    assert_eq!(store.find(&also.name).unwrap().digest, second.digest);
    assert_eq!(store.remove("dev.local/also").unwrap().names, ["dev.local/also:latest"]);
    assert!(store.list().unwrap().is_empty());
    for below in ["blobs/sha256", "rootfs", "drafts"] {
        assert!(entries(&store.dir().join(below)).is_empty(), "{below}");
    }
    for name in ["dev.local/also", "sha256:0", &first.digest.to_string()] {
        assert!(store.remove(name).is_err(), "{name}");
    }
}

#[tokio::test]
async fn archives_of_both_styles_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let layers = [Tar::new().file("a", b"1").end(), Tar::new().file("b", b"2").end()];
    let config = config_of(&layers.iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>());
    let manifest = r#"[{"Config":"c.json","RepoTags":["dev.local/saved:1"],"Layers":["1/layer.tar","2/layer.tar"]},
        {"Config":"c.json","RepoTags":["dev.local/other:1"],"Layers":["1/layer.tar","2/layer.tar"]}]"#;
    let old = |manifest: &str| {
        Tar::new()
            .dir("1/")
            .file("1/layer.tar", &layers[0])
            .file("0/layer.tar", &layers[1])
            .symlink("2/layer.tar", "../0/layer.tar")
            .file("c.json", config.as_bytes())
            .file("manifest.json", manifest.as_bytes())
            .end()
    };
    let write = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let both = write("old.tar", &old(manifest));
    let error = store.import(&both, Some("dev.local/third")).await.unwrap_err();
    assert!(error.to_string().contains("dev.local/saved:1, dev.local/other:1"), "{error}");
    let image = store.import(&both, Some("dev.local/other:1")).await.unwrap();
    assert_eq!(image.layers.len(), 2);
    store.rootfs(&image.digest).await.unwrap();
    let zipped = write("old.tar.gz", &pack(&old(&manifest.replace("other", "saved")), Pack::Gzip));
    let again = store.import(&zipped, Some("dev.local/saved:1")).await.unwrap();
    assert_eq!(again.digest, image.digest);

    let layout = layout(&dir.path().join("layout"), "dev.local/in-archive:1", "x");
    let archive = dir.path().join("new.tar");
    if !lacks("archives_of_both_styles_are_imported", &["tar"]) {
        run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout.dir).arg("."));
        let image = store.import(&archive, None).await.unwrap();
        assert_eq!(image.name, "dev.local/in-archive:1");
    }

    let missing = write("missing.tar", &old(&manifest.replace("2/layer", "3/layer")));
    let error = store.import(&missing, Some("dev.local/saved:1")).await.unwrap_err();
    assert!(matches!(&error, ImportError::Missing(name) if name == "3/layer.tar"), "{error}");
    let escape = Tar::new()
        .symlink("1/layer.tar", "../../../etc/passwd")
        .file("manifest.json", manifest.as_bytes());
    let escape = write("escape.tar", &escape.file("c.json", config.as_bytes()).end());
    let error = store.import(&escape, Some("dev.local/saved:1")).await.unwrap_err();
    assert!(matches!(error, ImportError::Missing(_)), "{error}");
    let empty = write("empty.tar", &Tar::new().end());
    assert!(matches!(store.import(&empty, None).await, Err(ImportError::NoIndex(_))));
    let noise = write("noise", &[42; 5000]);
    assert!(matches!(store.import(&noise, None).await, Err(ImportError::Archive { .. })));
    assert!(matches!(store.import("/no/such", None).await, Err(ImportError::Read { .. })));
    assert!(entries(&store.dir().join("drafts")).is_empty());
}

#[tokio::test]
async fn wrong_layouts_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let broken = |number: usize, change: &dyn Fn(&mut Layout)| {
        let mut layout = Layout::new(&dir.path().join(number.to_string()));
        layout.layer(&Tar::new().file("x", &[3; 9000]).end(), Pack::Gzip);
        change(&mut layout);
        layout
    };
    let no_name = broken(0, &|layout| {
        layout.finish("latest");
    });
    assert!(matches!(store.import(&no_name.dir, None).await, Err(ImportError::NameNeeded)));
    store.import(&no_name.dir, Some("dev.local/named")).await.unwrap();
    // Out of the store again, so that its blobs cannot stand in for what comes.
    store.remove("dev.local/named").unwrap();
    let first_blob = |layout: &Layout| {
        let hex = layout.layers[0]["digest"].as_str().unwrap().replace("sha256:", "");
        layout.dir.join("blobs/sha256").join(hex)
    };
    let flipped = broken(1, &|layout| {
        layout.finish("dev.local/x:1");
        let mut bytes = fs::read(first_blob(layout)).unwrap();
        bytes[20] ^= 1;
        fs::write(first_blob(layout), bytes).unwrap();
    });
    assert!(matches!(store.import(&flipped.dir, None).await, Err(ImportError::Damaged { .. })));
    let longer = broken(2, &|layout| {
        layout.finish("dev.local/x:1");
        let mut bytes = fs::read(first_blob(layout)).unwrap();
        bytes.push(0);
        fs::write(first_blob(layout), bytes).unwrap();
    });
    assert!(matches!(store.import(&longer.dir, None).await, Err(ImportError::Size { .. })));
    let gone = broken(3, &|layout| {
        layout.finish("dev.local/x:1");
        fs::remove_file(first_blob(layout)).unwrap();
    });
    assert!(matches!(store.import(&gone.dir, None).await, Err(ImportError::Missing(_))));
    let counts = broken(4, &|layout| {
        layout.diff_ids.push(Digest::of(b"one too many"));
        layout.finish("dev.local/x:1");
    });
    assert!(matches!(store.import(&counts.dir, None).await, Err(ImportError::Document { .. })));
    let huge = broken(5, &|layout| {
        layout.layers[0]["size"] = serde_json::json!(u64::MAX);
        layout.finish("dev.local/x:1");
    });
    assert!(matches!(store.import(&huge.dir, None).await, Err(ImportError::Size { .. })));
    assert!(store.list().unwrap().is_empty());
    assert!(entries(&store.dir().join("drafts")).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_ask_and_one_builds() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(&dir.path().join("layout"), "dev.local/x:1", "x");
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let image = store.import(&layout.dir, None).await.unwrap();
    // Half of them through a store of their own, as another process would.
    let mut asked = tokio::task::JoinSet::new();
    for n in 0..20 {
        let other = || ImageStore::open(dir.path().join("store")).unwrap();
        let store = if n % 2 == 0 { store.clone() } else { other() };
        asked.spawn(async move {
            let rootfs = store.rootfs(&image.digest).await.unwrap();
            use std::os::unix::fs::MetadataExt as _;
            (fs::metadata(&rootfs.path).unwrap().ino(), rootfs)
        });
    }
    let got = asked.join_all().await;
    assert!(got.iter().all(|each| *each == got[0]), "one file, by its inode");
}

#[tokio::test]
async fn who_gives_up_does_not_stop_the_build() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(&dir.path().join("layout"), "dev.local/x:1", "x");
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let image = store.import(&layout.dir, None).await.unwrap();
    {
        let asked = store.rootfs(&image.digest);
        let gave_up = tokio::time::timeout(std::time::Duration::ZERO, asked).await;
        assert!(gave_up.is_err());
    }
    let rootfs = store.rootfs(&image.digest).await.unwrap();
    assert!(rootfs.path.exists());
}

#[tokio::test]
async fn failures_are_shared_and_do_not_stick() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(&dir.path().join("layout"), "dev.local/x:1", "x");
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let image = store.import(&layout.dir, None).await.unwrap();
    let blob = store.dir().join("blobs/sha256").join(image.layers[0].digest.hex());
    let kept = fs::read(&blob).unwrap();
    fs::remove_file(&blob).unwrap();
    let (a, b) = tokio::join!(store.rootfs(&image.digest), store.rootfs(&image.digest));
    assert!(Arc::ptr_eq(&a.unwrap_err(), &b.unwrap_err()));
    fs::write(&blob, kept).unwrap();
    store.rootfs(&image.digest).await.unwrap();
}

#[tokio::test]
async fn a_damaged_cache_is_noticed_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(&dir.path().join("layout"), "dev.local/x:1", "x");
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let image = store.import(&layout.dir, None).await.unwrap();
    let rootfs = store.rootfs(&image.digest).await.unwrap();
    let sound = fs::read(&rootfs.path).unwrap();
    let damages: [fn(&Path); 5] = [
        |path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap(),
        |path| fs::write(path, vec![0; fs::read(path).unwrap().len()]).unwrap(),
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path.with_extension("json"), "{").unwrap(),
        |path| fs::remove_file(path.with_extension("json")).unwrap(),
    ];
    for damage in damages {
        damage(&rootfs.path);
        assert_eq!(store.rootfs(&image.digest).await.unwrap(), rootfs);
        assert_eq!(fs::read(&rootfs.path).unwrap(), sound, "the same bytes every time");
    }
    // A flipped bit deep inside is found by reading everything.
    assert!(store.verify_rootfs(&image.digest).unwrap());
    let mut file = fs::OpenOptions::new().write(true).open(&rootfs.path).unwrap();
    file.seek(std::io::SeekFrom::Start(5000)).unwrap();
    file.write_all(&[0xff]).unwrap();
    assert!(!store.verify_rootfs(&image.digest).unwrap());
    store.rootfs(&image.digest).await.unwrap();
    assert!(store.verify_rootfs(&image.digest).unwrap());
    assert!(!store.verify_rootfs(&Digest::of(b"other")).unwrap());
}

#[tokio::test]
async fn a_damaged_list_of_names_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    fs::write(dir.path().join("names.json"), "{\"format\": 1").unwrap();
    let error = store.list().unwrap_err();
    assert!(matches!(&error, StoreError::Names { path, .. } if path.ends_with("names.json")));
}

/// Tells a run of the next test that it is the child, and where its store is.
const CHILD: &str = "VHIVE_IMAGE_TEST_STORE";

#[tokio::test]
async fn a_killed_build_leaves_no_half_image() {
    if let Ok(dir) = std::env::var(CHILD) {
        // This is the child that will be killed.
        let store = ImageStore::open(dir).unwrap();
        let image = store.find("dev.local/big:1").unwrap();
        store.rootfs(&image.digest).await.unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut big = Layout::new(&dir.path().join("layout"));
    let mut word = 1_u32;
    let mut data = vec![0; 12 << 20];
    data.fill_with(|| {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (word >> 24) as u8
    });
    big.layer(&Tar::new().file("noise", &data).end(), Pack::Gzip);
    big.finish("dev.local/big:1");
    let path = dir.path().join("store");
    let image = ImageStore::open(&path).unwrap().import(&big.dir, None).await.unwrap();
    let blob = path.join("blobs/sha256").join(image.layers[0].digest.hex());
    let packed = fs::read(&blob).unwrap();
    for bytes in [1, 1 << 20, packed.len() - 1] {
        // The layer comes through a pipe, so that the child is surely in the middle of it.
        fs::remove_file(&blob).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &blob, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::a_killed_build_leaves_no_half_image", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut pipe = fs::OpenOptions::new().write(true).open(&blob).unwrap();
        pipe.write_all(&packed[..bytes]).unwrap();
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        drop(pipe);
        assert!(entries(&path.join("rootfs")).is_empty(), "nothing that looks finished");
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, &packed).unwrap();
        let store = ImageStore::open(&path).unwrap();
        assert!(entries(&path.join("drafts")).is_empty(), "swept");
        let rootfs = store.rootfs(&image.digest).await.unwrap();
        assert!(store.verify_rootfs(&image.digest).unwrap());
        fs::remove_file(&rootfs.path).unwrap();
        fs::remove_file(rootfs.path.with_extension("json")).unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_is_named_and_left_as_it_was() {
    const TEST: &str = "a_full_disk_is_named_and_left_as_it_was";
    if lacks_root(TEST) || lacks(TEST, &["mount"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut big = Layout::new(&dir.path().join("layout"));
    // It fits as an archive, but not unpacked beside it.
    big.layer(&Tar::new().file("zeros", &vec![0; 6 << 20]).end(), Pack::Gzip);
    big.finish("dev.local/big:1");
    let disk = Mount::tmpfs(&dir.path().join("disk"), 4 << 20);
    let store = ImageStore::open(disk.0.join("store")).unwrap();
    let image = store.import(&big.dir, None).await.unwrap();
    let error = store.rootfs(&image.digest).await.unwrap_err();
    assert!(matches!(&*error, RootFsError::Store(StoreError::DiskFull { .. })), "{error:?}");
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(entries(&store.dir().join("rootfs")).is_empty());
    assert!(entries(&store.dir().join("drafts")).is_empty());
    assert_eq!(store.list().unwrap(), [image], "what was there is still there");

    let mut huge = Layout::new(&dir.path().join("second"));
    huge.layer(&Tar::new().file("zeros", &vec![0; 6 << 20]).end(), Pack::Plain);
    huge.finish("dev.local/huge:1");
    let error = store.import(&huge.dir, None).await.unwrap_err();
    assert!(matches!(error, ImportError::Store(StoreError::DiskFull { .. })), "{error:?}");
    assert!(entries(&store.dir().join("drafts")).is_empty());
    assert!(matches!(store.find("dev.local/huge:1"), Err(FindError::Unknown(_))));
    drop(store);
    drop(disk);
}
