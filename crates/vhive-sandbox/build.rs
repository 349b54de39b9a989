//! Builds the guest's init with the same cargo, for embedding: one static program, whatever the
//! host's own build looks like. Why: `docs/decisions/0004-embedded-init.md`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What of the outer build must not reach the inner one: flags, wrappers (clippy, coverage) and
/// profiles change the binary, or put it somewhere else.
const CLEARED: [&str; 13] = [
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "LLVM_PROFILE_FILE",
];

fn main() {
    let root = path_in("CARGO_MANIFEST_DIR").join("../..");
    let root = root.canonicalize().expect("the workspace has this crate two levels down");
    for source in [
        "guest/vhive-init/src",
        "guest/vhive-init/Cargo.toml",
        "guest/vhive-init/Cargo.lock",
        "crates/vhive-api/src",
        "crates/vhive-api/Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let init = build_init(&root);
    println!("cargo::rustc-env=VHIVE_INIT={}", init.display());
}

fn build_init(root: &Path) -> PathBuf {
    let target_dir = path_in("OUT_DIR").join("guest");
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it for build scripts");
    let triple = format!("{architecture}-unknown-linux-gnu");
    let mut command = Command::new(env::var_os("CARGO").expect("cargo sets it"));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let profile = text.starts_with("CARGO_PROFILE_");
        let flags = text.starts_with("CARGO_TARGET_") && text.ends_with("_RUSTFLAGS");
        if profile || flags || CLEARED.contains(&&*text) {
            command.env_remove(&name);
        }
    }
    command
        .current_dir(root.join("guest/vhive-init"))
        .args(["build", "--release", "--locked", "--quiet", "--target", &triple, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(root));
    let status = command.status().expect("cargo runs: it is running this script");
    assert!(status.success(), "building guest/vhive-init failed: {status}");
    target_dir.join(triple).join("release/vhive-init")
}

/// Static, at a fixed address, and the same bytes wherever the sources and cargo's home lie.
fn rust_flags(root: &Path) -> OsString {
    let mut flags = OsString::from("-Ctarget-feature=+crt-static");
    flags.push("\u{1f}-Crelocation-model=static");
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    for (from, to) in [(Some(root.to_owned()), "/vhive"), (home, "/cargo")] {
        let Some(from) = from else { continue };
        flags.push("\u{1f}--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    flags
}

fn path_in(variable: &str) -> PathBuf {
    PathBuf::from(env::var_os(variable).expect("cargo sets it for build scripts"))
}
