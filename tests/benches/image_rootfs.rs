//! `image-rootfs`: the root file system image of 60 MB of gzip layers in the store, digests
//! verified, against `zcat | tar -x` of the same layers and `mkfs.erofs` of the result.
//!
//! The layers hold files of this host's own `/usr`, so sizes and compressibility are real.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use vhive_api::Digest;
use vhive_image::ImageStore;
use vhive_tests::bench::{Bound, Row, median, spread};

const BOUND: Bound = Bound::AtMost { must: 1.2, goal: 0.7 };
const ROUNDS: usize = 9;
const LAYERS: usize = 3;
const TOTAL: u64 = 60_000_000;
/// Larger files would make the layers few and unlike those of functions.
const LARGEST: u64 = 4_000_000;

fn main() -> Result<()> {
    for program in ["tar", "gzip", "zcat", "mkfs.erofs"] {
        let mut version = Command::new(program);
        version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        if version.status().is_err() {
            Row::new("image-rootfs", "ms")
                .unmeasured(BOUND, format!("{program} is missing"))
                .emit();
            return Ok(());
        }
    }
    let dir = tempfile::tempdir()?;
    let layers = make_layers(dir.path())?;
    let layout = dir.path().join("layout");
    write_layout(&layout, &layers)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let store = ImageStore::open(dir.path().join("store"))?;
    let image = runtime.block_on(store.import(&layout, Some("dev.local/bench:1")))?;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let peer = peer(dir.path(), &layers)?;
        let started = Instant::now();
        let rootfs = runtime.block_on(store.rootfs(&image.digest))?;
        let own = started.elapsed().as_secs_f64() * 1e3;
        for extension in ["erofs", "json"] {
            fs::remove_file(rootfs.path.with_extension(extension))?;
        }
        // The first round warms the page cache for both.
        if round > 0 {
            ours.push(own);
            peers.push(peer);
        }
    }
    let note = format!("{}; peer {}", spread(&ours, "ms"), spread(&peers, "ms"));
    Row::new("image-rootfs", "ms")
        .ratio(BOUND, median(&ours), median(&peers))
        .peer(format!("zcat | tar -x, then mkfs.erofs: {:.0} ms", median(&peers)))
        .note(note)
        .emit();
    Ok(())
}

/// Unpacks the layers and makes an image of them with Debian's tools; milliseconds.
fn peer(dir: &Path, layers: &[PathBuf]) -> Result<f64> {
    let (tree, image) = (dir.join("peer"), dir.join("peer.erofs"));
    fs::create_dir(&tree)?;
    let script = r#"set -e; tree=$1; image=$2; shift 2
for layer; do zcat "$layer" | tar -x --numeric-owner -p -C "$tree"; done
mkfs.erofs --quiet -T0 -U 00000000-0000-0000-0000-000000000001 "$image" "$tree" >/dev/null"#;
    let started = Instant::now();
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(&tree).arg(&image).args(layers);
    let output = command.output()?;
    let took = started.elapsed().as_secs_f64() * 1e3;
    ensure!(output.status.success(), "peer: {}", String::from_utf8_lossy(&output.stderr));
    fs::remove_dir_all(&tree)?;
    fs::remove_file(&image)?;
    Ok(took)
}

/// Gzip layers of files of this host, in order of their paths.
fn make_layers(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for root in ["/usr/lib", "/usr/bin", "/usr/share"] {
        collect(Path::new(root), &mut files)?;
    }
    files.sort();
    let mut taken = 0;
    let mut lists = vec![Vec::new(); LAYERS];
    // Every n-th file, so that a big package does not make up a whole layer.
    let step = 7;
    for file in (0..step).flat_map(|from| files.iter().skip(from).step_by(step)) {
        let size = fs::metadata(file)?.len();
        if taken >= TOTAL {
            break;
        }
        let layer = usize::try_from(taken * LAYERS as u64 / TOTAL)?;
        lists[layer].push(file);
        taken += size;
    }
    ensure!(taken >= TOTAL, "this host has only {taken} bytes of files below /usr");
    let mut layers = Vec::new();
    for (number, list) in lists.iter().enumerate() {
        let layer = dir.join(format!("layer{number}.tar.gz"));
        let mut tar = Command::new("tar")
            .args(["-c", "-z", "--numeric-owner", "-C", "/", "--null", "-T", "-", "-f"])
            .arg(&layer)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut names = tar.stdin.take().context("piped")?;
        for file in list {
            let name = file.strip_prefix("/")?;
            names.write_all(name.as_os_str().as_encoded_bytes())?;
            names.write_all(b"\0")?;
        }
        drop(names);
        ensure!(tar.wait()?.success(), "tar failed");
        layers.push(layer);
    }
    Ok(layers)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            collect(&path, files)?;
        } else if kind.is_file() && entry.metadata()?.len() <= LARGEST {
            files.push(path);
        }
    }
    Ok(())
}

fn write_layout(dir: &Path, layers: &[PathBuf]) -> Result<()> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let put = |bytes: &[u8]| -> Result<(Digest, usize)> {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes)?;
        Ok((digest, bytes.len()))
    };
    let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in layers {
        let (digest, size) = put(&fs::read(layer)?)?;
        descriptors.push(serde_json::json!({ "digest": digest, "size": size }));
        let plain = Command::new("zcat").stdin(File::open(layer)?).output()?;
        diff_ids.push(Digest::of(&plain.stdout));
    }
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let (digest, size) = put(config.to_string().as_bytes())?;
    let manifest = serde_json::json!({
        "schemaVersion": 2, "layers": descriptors,
        "config": { "digest": digest, "size": size },
    });
    let (digest, size) = put(manifest.to_string().as_bytes())?;
    let index = serde_json::json!({
        "schemaVersion": 2, "manifests": [{ "digest": digest, "size": size }],
    });
    fs::write(dir.join("index.json"), index.to_string())?;
    Ok(())
}
