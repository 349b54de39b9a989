//! Builds with the same cargo what the binary embeds, whatever the host's own build looks like: the
//! guest's init, one static program; the library that is preloaded into QEMU; and the bare-metal
//! test guest. Why: `docs/decisions/0004-embedded-init.md`.

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
        "guest/nano/src",
        "guest/nano/build.rs",
        "guest/nano/nano.ld",
        "guest/nano/Cargo.toml",
        "guest/nano/Cargo.lock",
        "crates/vhive-api/src",
        "crates/vhive-api/Cargo.toml",
        "crates/vhive-uffd-shim/src",
        "crates/vhive-uffd-shim/Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it for build scripts");
    let triple = format!("{architecture}-unknown-linux-gnu");
    let init = build_init(&root, &triple);
    println!("cargo::rustc-env=VHIVE_INIT={}", init.display());
    let shim = build_shim(&root, &triple);
    println!("cargo::rustc-env=VHIVE_UFFD_SHIM={}", shim.display());
    let nano = build_nano(&root, &triple);
    println!("cargo::rustc-env=VHIVE_NANO={}", nano.display());
}

fn build_init(root: &Path, triple: &str) -> PathBuf {
    let target_dir = path_in("OUT_DIR").join("guest");
    let mut command = cargo(triple, &target_dir);
    command
        .current_dir(root.join("guest/vhive-init"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, &INIT_FLAGS));
    run(command, "guest/vhive-init");
    target_dir.join(triple).join("release/vhive-init")
}

fn build_nano(root: &Path, triple: &str) -> PathBuf {
    let target_dir = path_in("OUT_DIR").join("nano");
    let mut command = cargo(triple, &target_dir);
    command
        .current_dir(root.join("guest/nano"))
        .arg("--bins")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, &NANO_FLAGS));
    run(command, "guest/nano");
    target_dir.join(triple).join("release/nano")
}

/// Small, and without anything that unwinds into QEMU.
fn build_shim(root: &Path, triple: &str) -> PathBuf {
    let target_dir = path_in("OUT_DIR").join("shim");
    let mut command = cargo(triple, &target_dir);
    command
        .current_dir(root.join("crates/vhive-uffd-shim"))
        .args(["--package", "vhive-uffd-shim"])
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, &[]));
    for (key, value) in [("PANIC", "abort"), ("STRIP", "true"), ("OPT_LEVEL", "s"), ("LTO", "true")]
    {
        command.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    run(command, "crates/vhive-uffd-shim");
    target_dir.join(triple).join("release/libvhive_uffd_shim.so")
}

fn cargo(triple: &str, target_dir: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").expect("cargo sets it"));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let profile = text.starts_with("CARGO_PROFILE_");
        let flags = text.starts_with("CARGO_TARGET_") && text.ends_with("_RUSTFLAGS");
        if profile || flags || CLEARED.contains(&&*text) {
            command.env_remove(&name);
        }
    }
    command.args(["build", "--release", "--locked", "--quiet", "--target", triple, "--target-dir"]);
    command.arg(target_dir);
    command
}

fn run(mut command: Command, what: &str) {
    let status = command.status().expect("cargo runs: it is running this script");
    assert!(status.success(), "building {what} failed: {status}");
}

/// Static, at a fixed address.
const INIT_FLAGS: [&str; 2] = ["-Ctarget-feature=+crt-static", "-Crelocation-model=static"];

/// At a fixed address, and without vector registers, which a processor that KVM emulates lacks: it
/// stops at the first `xorps`. The compiler warns of the second flag, since whoever passes floating
/// point numbers between functions must not use it; the guest has none.
const NANO_FLAGS: [&str; 2] = ["-Crelocation-model=static", "-Ctarget-feature=-sse,-sse2"];

/// These, and the same bytes wherever the sources and cargo's home lie.
fn flags(root: &Path, own: &[&str]) -> OsString {
    let mut flags = OsString::from("-Cdebuginfo=0");
    for flag in own {
        flags.push("\u{1f}");
        flags.push(flag);
    }
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
