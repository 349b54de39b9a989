//! A node with a tiny image and a service of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use serde_json::Value;
use vhive_tests::node::{TestNode, vhive};

/// A temporary directory that is kept when the test fails, so that its logs can be read.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new(test: &str) -> Self {
        let name = format!("vhive-e2e-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("the temporary directory can be made");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for inspection: {}", self.0.display());
        } else {
            fs::remove_dir_all(&self.0).expect("the test's own directory can be removed");
        }
    }
}

/// Whether the test can run at all; says why not.
pub(crate) fn skip(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIP {test}: root");
    }
    !root
}

/// A node in `dir` that has the image `dev.local/tiny:latest`.
pub(crate) fn node(dir: &Dir, config: &str) -> TestNode {
    tiny_image(dir.path());
    TestNode::start(dir.path(), config).expect("the node starts")
}

/// Builds an image of one file: enough for `sim`, which runs nothing.
pub(crate) fn tiny_image(dir: &Path) {
    let recipe = dir.join("recipe");
    fs::create_dir_all(&recipe).expect("made");
    fs::write(recipe.join("file"), "content").expect("written");
    let text = "name = \"dev.local/tiny:latest\"\n[[layer]]\n\
                copy = [{ from = \"file\", to = \"/file\", mode = \"0755\" }]\n\
                [config]\nentrypoint = [\"/file\"]\n";
    fs::write(recipe.join("image.toml"), text).expect("written");
    let built = vhive(dir, &["image", "build", &recipe.to_string_lossy()]).expect("runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

/// A service on `sim`. `env` are `NAME=value`; `extra` is more YAML of the pod's spec, each line
/// indented by six spaces.
pub(crate) fn service(name: &str, env: &[&str], extra: &str) -> String {
    let env: String = env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| format!("            - {{ name: {name}, value: {value:?} }}\n"))
        .collect();
    let env = if env.is_empty() { env } else { format!("          env:\n{env}") };
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{ name: {name} }}\n\
         spec:\n  template:\n    metadata:\n      annotations:\n        \
         autoscaling.knative.dev/window: \"6s\"\n    spec:\n      runtimeClassName: sim\n{extra}\
         \x20     containers:\n        - image: dev.local/tiny:latest\n{env}"
    )
}

/// Applies YAML and expects success.
pub(crate) fn apply(node: &TestNode, dir: &Dir, yaml: &str) {
    let done = try_apply(node, dir, yaml);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Applies YAML.
pub(crate) fn try_apply(node: &TestNode, dir: &Dir, yaml: &str) -> Output {
    let file = dir.path().join("service.yaml");
    fs::write(&file, yaml).expect("written");
    node.vhive(&["apply", "-f", &file.to_string_lossy()]).expect("vhive runs")
}

/// Invokes a service; the answer has `status`, `body` and `record`.
pub(crate) fn invoke(node: &TestNode, name: &str) -> Value {
    let done = node.vhive(&["-o", "json", "invoke", name]).expect("vhive runs");
    let answer = serde_json::from_slice(&done.stdout);
    assert!(answer.is_ok(), "{answer:?}: {}", said(&done));
    answer.expect("just checked")
}

/// The exit code.
pub(crate) fn code(done: &Output) -> i32 {
    done.status.code().expect("not killed")
}

/// What a command wrote to standard error.
pub(crate) fn said(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// A file system of its own, gone with its value.
pub(crate) struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

/// Mounts one in memory, of a size like `8m`, or says why that cannot be done.
pub(crate) fn mount(place: &Path, size: &str) -> Result<Mounted, String> {
    fs::create_dir_all(place).expect("made");
    let size = format!("size={size}");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
        .arg(place)
        .output()
        .expect("mount runs");
    if mounted.status.success() {
        Ok(Mounted(place.to_owned()))
    } else {
        Err(format!("mounting a tmpfs ({})", said(&mounted).trim()))
    }
}

/// Leaves so many bytes of the disk free, or less: others write to it meanwhile.
#[expect(clippy::panic, reason = "the helpers of a test fail by panicking")]
pub(crate) fn fill(disk: &Path, left: u64) -> PathBuf {
    const TRIES: usize = 100;
    let filler = disk.join("filler");
    let file = fs::File::create(&filler).expect("made");
    for _ in 0..TRIES {
        let room = statvfs(disk).map(|disk| disk.f_bavail * disk.f_frsize).expect("its size");
        if room <= left {
            return filler;
        }
        match fallocate(&file, FallocateFlags::empty(), 0, room - left) {
            Ok(()) => return filler,
            Err(Errno::NOSPC) => {}
            Err(error) => panic!("{} cannot be filled: {error}", disk.display()),
        }
    }
    panic!("{} cannot be filled: its room changes all the time", disk.display());
}
