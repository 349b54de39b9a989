//! Images from recipes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use vhive_image::{BuildError, ImageStore, Progress, StepState};

use crate::support::{lacks, lacks_root, run};

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const FILES: &str = r#"
name = "dev.local/files"
[[layer]]
run = [["sh", "-c", "mkdir -p target; echo made >> target/count; cp source.txt target/out"]]
copy = [{ from = "target/out", to = "/srv/out", mode = "0600" }, { from = "data", to = "/srv/data" }]
[config]
entrypoint = ["/srv/out"]
env = ["A=b"]
working_dir = "/srv"
exposed_ports = [8080]
"#;

#[tokio::test]
async fn a_recipe_runs_its_commands_only_when_its_sources_change() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("recipe");
    write(&recipe.join("image.toml"), FILES);
    write(&recipe.join("source.txt"), "one");
    write(&recipe.join("data/a"), "a");
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let first = store.build(&recipe, None, Progress::default()).await.unwrap();
    assert_eq!(first.name, "dev.local/files:latest");
    assert_eq!(first.config.exposed_ports, [8080]);
    assert_eq!(first.config.env, [("A".to_owned(), "b".to_owned())]);

    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&steps);
    let progress = Progress::to(move |step| seen.lock().unwrap().push(step.state));
    let again = store.build(&recipe, Some("dev.local/other:1"), progress).await.unwrap();
    assert_eq!(again.digest, first.digest);
    assert_eq!(again.name, "dev.local/other:1");
    assert_eq!(*steps.lock().unwrap(), [StepState::Cached]);
    assert_eq!(fs::read_to_string(recipe.join("target/count")).unwrap(), "made\n");

    write(&recipe.join("source.txt"), "two");
    let changed = store.build(&recipe, None, Progress::default()).await.unwrap();
    assert_ne!(changed.digest, first.digest);
    assert_eq!(fs::read_to_string(recipe.join("target/count")).unwrap(), "made\nmade\n");
    // The earlier image stays for those who hold its digest.
    assert_eq!(store.find(&first.digest.to_string()).unwrap().digest, first.digest);
    assert_eq!(store.list().unwrap().len(), 2);

    let rootfs = store.rootfs(&changed.digest).await.unwrap();
    assert_eq!(fs::metadata(&rootfs.path).unwrap().len(), rootfs.bytes.0);
}

#[tokio::test]
async fn a_failing_command_shows_its_output_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("recipe");
    let text = "name = \"dev.local/x\"\n[[layer]]\nrun = [[\"sh\", \"-c\", \"echo because; exit 3\"]]\ncopy = [{ from = \"a\", to = \"/a\" }]";
    write(&recipe.join("image.toml"), text);
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let error = store.build(&recipe, None, Progress::default()).await.unwrap_err();
    assert!(matches!(&error, BuildError::Command { tail, .. } if tail == "because"), "{error}");
    assert_eq!(fs::read_dir(dir.path().join("store/blobs/sha256")).unwrap().count(), 0);
    assert!(store.list().unwrap().is_empty());
    let missing = text.replace("sh", "no-such-program");
    write(&recipe.join("image.toml"), &missing);
    let error = store.build(&recipe, None, Progress::default()).await.unwrap_err();
    assert!(error.to_string().starts_with("cannot run no-such-program"), "{error}");
}

#[tokio::test]
async fn debian_packages_become_a_layer_that_is_shared() {
    const TEST: &str = "debian_packages_become_a_layer_that_is_shared";
    if lacks(TEST, &["mmdebstrap", "tar"]) || lacks_root(TEST) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let mut images = Vec::new();
    for name in ["one", "two"] {
        let recipe = dir.path().join(name);
        let text = format!(
            "name = \"dev.local/{name}\"\n[[layer]]\ndebian = [\"python3-minimal\"]\n[[layer]]\ncopy = [{{ from = \"f\", to = \"/f\" }}]"
        );
        write(&recipe.join("image.toml"), &text);
        write(&recipe.join("f"), name);
        let image = match store.build(&recipe, None, Progress::default()).await {
            Err(BuildError::NoPackageLists { suite }) => {
                eprintln!("SKIP {TEST}: apt package lists of {suite}");
                return;
            }
            built => built.unwrap(),
        };
        images.push(image);
    }
    assert_eq!(images[0].layers[0], images[1].layers[0]);
    assert_ne!(images[0].layers[1], images[1].layers[1]);
    // Python is compiled, and nothing of this host is in it.
    let blob = store.dir().join("blobs/sha256").join(images[0].layers[0].digest.hex());
    let listing = run(Command::new("tar").arg("-tf").arg(blob));
    let listing = String::from_utf8(listing).unwrap();
    let lines: Vec<&str> = listing.lines().collect();
    assert!(lines.iter().any(|line| line.contains("/__pycache__/os.cpython-")));
    for gone in ["./etc/hostname", "./etc/resolv.conf", "./etc/apt/sources.list", "./dev/null"] {
        assert!(!lines.contains(&gone), "{gone}");
    }
    let started = std::time::Instant::now();
    let again = store.build(dir.path().join("one"), None, Progress::default()).await.unwrap();
    assert_eq!(again.digest, images[0].digest);
    assert!(started.elapsed().as_millis() < 500, "{:?}", started.elapsed());
}

#[tokio::test]
async fn python_packages_become_a_layer() {
    const TEST: &str = "python_packages_become_a_layer";
    if lacks(TEST, &["python3", "tar"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "six==1.16.0", "-d"])
        .arg(dir.path());
    if !pip.output().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIP {TEST}: pip with a package index");
        return;
    }
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let text = "name = \"dev.local/p\"\n[[layer]]\npip = [\"six==1.16.0\"]\nto = \"/opt/site\"";
    write(&dir.path().join("image.toml"), text);
    let image = store.build(dir.path(), None, Progress::default()).await.unwrap();
    let blob = store.dir().join("blobs/sha256").join(image.layers[0].digest.hex());
    let listing = String::from_utf8(run(Command::new("tar").arg("-tvf").arg(blob))).unwrap();
    assert!(listing.contains(" opt/site/six.py\n"), "{listing}");
    assert!(listing.contains(" opt/site/__pycache__/six.cpython-"), "{listing}");
    assert!(listing.lines().all(|line| line.contains(" 0/0 ") && line.contains("1970-01-01")));
    let wrong = text.replace("1.16.0", "0.0.1.no");
    write(&dir.path().join("image.toml"), &wrong);
    let error = store.build(dir.path(), None, Progress::default()).await.unwrap_err();
    assert!(matches!(error, BuildError::Command { .. }), "{error}");
}
