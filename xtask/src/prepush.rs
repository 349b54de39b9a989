//! `cargo xtask prepush`: CI without its slow part.

use std::process::Stdio;

use crate::shell::cargo;
use crate::{check_docs, check_shape, shell};

fn run_all(steps: &[&[&str]]) -> anyhow::Result<()> {
    for args in steps {
        println!("prepush: cargo {}", args.join(" "));
        shell::run(&mut cargo(args))?;
    }
    Ok(())
}

pub(crate) fn run() -> anyhow::Result<()> {
    run_all(&[
        &["fmt", "--all", "--check"],
        &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
    ])?;
    for nested in ["guest/vhive-init/Cargo.toml", "guest/nano/Cargo.toml", "functions/Cargo.toml"] {
        let manifest = shell::root().join(nested).to_string_lossy().into_owned();
        let common = ["--manifest-path", &manifest];
        shell::run(cargo(&["fmt", "--check"]).args(common))?;
        shell::run(
            cargo(&["clippy", "--all-targets"]).args(common).args(["--", "-D", "warnings"]),
        )?;
    }
    println!("prepush: cargo doc");
    shell::run(
        cargo(&["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    check_docs::run()?;
    check_shape::run()?;
    deny()?;
    run_all(&[&["test", "--workspace", "--lib", "--bins", "--quiet"]])
}

/// Licences, advisories and sources of what we depend on, by `deny.toml`.
fn deny() -> anyhow::Result<()> {
    let there = cargo(&["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !there {
        println!("SKIP deny: cargo-deny is not installed (`cargo install cargo-deny`)");
        return Ok(());
    }
    run_all(&[&["deny", "check"]])
}
