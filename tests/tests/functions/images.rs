//! The functions' images: built from their recipes, mounted, and run with nothing but their own
//! root file system.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use vhive_image::{Image, ImageStore, Progress, StepState};

use crate::process::{Running, functions, run};

/// Builds the image of a function and runs it there. An error is what this host lacks.
///
/// A second build must find everything there.
pub(crate) async fn start_in_image(name: &str) -> Result<Running, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("root, to mount and to change the root directory".to_owned());
    }
    if !is_there("mmdebstrap") {
        return Err("mmdebstrap (Debian package mmdebstrap)".to_owned());
    }
    // Kept between runs, so that packages are fetched once.
    let store = Path::new(env!("CARGO_TARGET_TMPDIR")).join("function-images");
    let store = ImageStore::open(store).expect("the target directory is writable");
    let dir = functions().join(name);
    let (image, _) = build(&store, &dir).await;
    let (again, made) = build(&store, &dir).await;
    assert_eq!((image.digest, made), (again.digest, 0), "{name}: the second build");
    assert_eq!(image.name, format!("dev.local/{name}:latest"));
    let root = store.rootfs(&image.digest).await.expect("its layers are in the store");
    let mounted = Mounted::new(&root.path)
        .map_err(|error| format!("EROFS images mounted through a loop device ({error})"))?;
    let mut command = tokio::process::Command::new("chroot");
    command.arg(mounted.0.path()).args(&root.config.entrypoint).args(&root.config.cmd);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs(root.config.env.iter().cloned());
    let mut function = run(name, command).await;
    function.root = Some(mounted);
    Ok(function)
}

/// Builds an image; returns also how many of its layers had to be made.
async fn build(store: &ImageStore, dir: &Path) -> (Image, usize) {
    let made = Arc::new(Mutex::new(0));
    let count = Arc::clone(&made);
    let progress = Progress::to(move |step| {
        if matches!(step.state, StepState::Done { .. }) {
            *count.lock().expect("nobody panics with it") += 1;
        }
    });
    let image = store.build(dir, None, progress).await;
    let image = image.unwrap_or_else(|error| panic!("{}: {}", dir.display(), chain(&error)));
    let made = *made.lock().expect("nobody panics with it");
    (image, made)
}

fn chain(mut error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    while let Some(source) = error.source() {
        text = format!("{text}: {source}");
        error = source;
    }
    text
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let here = |dir: PathBuf| dir.join(program).is_file();
    std::env::split_paths(&path).any(here)
}

/// A mounted root file system image; unmounted on drop.
#[derive(Debug)]
pub(crate) struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(image: &Path) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(dir.path());
        let output = mount.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(Self(dir)),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a failed test may leave a function in it, which is killed a moment later.
        let status = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.0.path().display());
        }
    }
}
