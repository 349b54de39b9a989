//! `cargo xtask check-shape`: the crates depend on each other as drawn, the hands are synchronous,
//! lints are not switched off, files stay small.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::shell::{cargo, output, root};

/// Every edge between our crates that `ARCHITECTURE.md` draws, without those to `vhive-api`.
const EDGES: &[(&str, &str)] = &[
    ("vhive", "vhive-image"),
    ("vhive", "vhive-load"),
    ("vhive", "vhive-node"),
    ("vhive", "vhive-sandbox"),
    ("vhive", "vhive-serving"),
    ("vhive", "vhive-study"),
    ("vhive-node", "vhive-image"),
    ("vhive-node", "vhive-policy"),
    ("vhive-node", "vhive-sandbox"),
    ("vhive-sandbox", "vhive-pager"),
    ("vhive-serving", "vhive-node"),
    ("vhive-serving", "vhive-policy"),
    ("vhive-study", "vhive-load"),
    ("vhive-study", "vhive-policy"),
    ("vhive-uffd-shim", "vhive-pager"),
];

/// Crates that use the product rather than make it: they may depend on any.
const USERS: &[&str] = &["vhive-tests", "xtask"];

/// Where unsafe code of the host's crates lives.
const UNSAFE: &[&str] = &["crates/vhive-pager/src/sys.rs", "crates/vhive-uffd-shim/src/lib.rs"];
/// The pager's may not grow beyond so many lines.
const MOST_UNSAFE_LINES: usize = 350;

/// No file may have more lines than this; those above two thirds of it are listed.
const MOST_LINES: usize = 900;

pub(crate) fn run() -> anyhow::Result<()> {
    let mut wrong = edges()?;
    for runtime in ["tokio", "async-std", "smol"] {
        let args = ["tree", "--package", "vhive-sandbox", "--edges", "normal", "--prefix", "none"];
        let tree = output(&mut cargo(&args))?;
        if tree.lines().any(|line| line.split(' ').next() == Some(runtime)) {
            wrong.push(format!("vhive-sandbox depends on {runtime}; the hands are synchronous"));
        }
    }
    for dir in ["crates", "examples", "tests", "xtask", "guest", "functions"] {
        look(&root().join(dir), &mut wrong)?;
    }
    if !wrong.is_empty() {
        bail!("the code has lost its shape:\n  {}", wrong.join("\n  "));
    }
    println!("check-shape: the code has the shape that ARCHITECTURE.md draws");
    Ok(())
}

fn edges() -> anyhow::Result<Vec<String>> {
    let text = output(&mut cargo(&["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&text)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists packages")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ours: BTreeSet<String> = packages.iter().map(|package| text(&package["name"])).collect();
    let mut wrong = Vec::new();
    for package in packages {
        let from = text(&package["name"]);
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for dependency in dependencies.filter(|d| d["kind"].is_null()) {
            let to = text(&dependency["name"]);
            let allowed = to == "vhive-api"
                || USERS.contains(&from.as_str())
                || EDGES.contains(&(from.as_str(), to.as_str()));
            if ours.contains(&to) && !allowed {
                wrong.push(format!("{from} → {to} is not drawn in ARCHITECTURE.md"));
            }
        }
    }
    Ok(wrong)
}

fn look(dir: &Path, wrong: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" {
                look(&path, wrong)?;
            }
        } else if name == "Cargo.toml" {
            let manifest = fs::read_to_string(&path)?;
            if manifest.contains("[package]") && !manifest.contains("[lints") {
                wrong.push(format!("{} does not take the workspace's lints", path.display()));
            }
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path)?;
            let lines = text.lines().count();
            look_for_unsafe(&path, &text, wrong);
            if lines > MOST_LINES {
                wrong.push(format!("{} has {lines} lines; at most {MOST_LINES}", path.display()));
            } else if lines > MOST_LINES * 2 / 3 {
                println!("check-shape: {} has {lines} lines", path.display());
            }
        }
    }
    Ok(())
}

fn look_for_unsafe(path: &Path, text: &str, wrong: &mut Vec<String>) {
    let Ok(name) = path.strip_prefix(root()) else { return };
    let is_allowed = UNSAFE.iter().any(|allowed| name == Path::new(allowed));
    if !name.starts_with("crates") || is_allowed {
        if name == Path::new(UNSAFE[0]) && text.lines().count() > MOST_UNSAFE_LINES {
            wrong.push(format!("{} has more than {MOST_UNSAFE_LINES} lines", name.display()));
        }
        return;
    }
    let code = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let begins = [concat!("un", "safe {"), concat!("un", "safe fn"), concat!("un", "safe impl")];
    for line in code.filter(|line| begins.iter().any(|begin| line.contains(begin))) {
        wrong.push(format!("{} has unsafe code: {line}", name.display()));
    }
}
