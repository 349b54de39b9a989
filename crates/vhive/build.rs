//! Tells the binary which revision it is built from, where it is built in a checkout; results and
//! `--version` name it. `VHIVE_REVISION` in the environment goes before, for sources without one.

use std::env;
use std::path::Path;
use std::process::Command;

const GIVEN: &str = "VHIVE_REVISION";

fn main() {
    println!("cargo::rerun-if-env-changed={GIVEN}");
    println!("cargo::rerun-if-changed=build.rs");
    let revision = env::var(GIVEN).ok().filter(|text| !text.is_empty()).or_else(described);
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    match revision {
        Some(revision) => {
            println!("cargo::rustc-env={GIVEN}={revision}");
            println!("cargo::rustc-env=VHIVE_VERSION={version} ({revision})");
        }
        None => println!("cargo::rustc-env=VHIVE_VERSION={version}"),
    }
}

/// The checkout's revision, `-dirty` if it has changes. Looked at again when a commit is made or
/// another one checked out, and when sources change, all of which the binary is built from anyway.
fn described() -> Option<String> {
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if !Path::new(&log).is_file() {
        return None;
    }
    println!("cargo::rerun-if-changed={log}");
    for entry in std::fs::read_dir("..").ok()?.flatten() {
        let sources = entry.path().join("src");
        if sources.is_dir() {
            println!("cargo::rerun-if-changed={}", sources.display());
        }
    }
    git(&["describe", "--always", "--dirty", "--abbrev=12"])
}

/// What git says, in this crate's directory.
fn git(args: &[&str]) -> Option<String> {
    let done = Command::new("git").args(args).env("GIT_OPTIONAL_LOCKS", "0").output().ok()?;
    let text = String::from_utf8_lossy(&done.stdout).trim().to_owned();
    (done.status.success() && !text.is_empty()).then_some(text)
}
