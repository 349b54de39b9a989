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
/// another one checked out, and when the crates' sources change: what is edited elsewhere, or undone,
/// is not seen until then.
fn described() -> Option<String> {
    let root = Path::new("../..").canonicalize().ok()?;
    if !root.join(".git").exists() {
        // Sources by themselves, whatever they have been unpacked in.
        return None;
    }
    let top = match git(&["rev-parse", "--show-toplevel"]) {
        Ok(top) => Path::new(&top).canonicalize().ok()?,
        Err(why) => {
            println!("cargo::warning=the revision is not known ({GIVEN} can tell it): {why}");
            return None;
        }
    };
    if top != root {
        return None;
    }
    // Without a log of HEAD, what it points to tells of commits.
    let branch = git(&["symbolic-ref", "-q", "HEAD"]).unwrap_or_else(|_| "HEAD".to_owned());
    for name in ["logs/HEAD", "HEAD", &branch, "packed-refs"] {
        let path = git(&["rev-parse", "--git-path", name]).ok();
        if let Some(path) = path.filter(|path| Path::new(path).is_file()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    for entry in std::fs::read_dir("..").ok()?.flatten() {
        let sources = entry.path().join("src");
        if sources.is_dir() {
            println!("cargo::rerun-if-changed={}", sources.display());
        }
    }
    git(&["describe", "--always", "--dirty", "--abbrev=12"]).ok()
}

/// What git says, in this crate's directory; or why it says nothing.
fn git(args: &[&str]) -> Result<String, String> {
    let done = Command::new("git").args(args).env("GIT_OPTIONAL_LOCKS", "0").output();
    let done = done.map_err(|error| format!("cannot run git: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !done.status.success() {
        let said = text(&done.stderr);
        return Err(said.lines().next().unwrap_or("git fails").to_owned());
    }
    let said = text(&done.stdout);
    if said.is_empty() { Err("git says nothing".to_owned()) } else { Ok(said) }
}
