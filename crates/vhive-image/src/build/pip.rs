//! Layers of Python packages.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::files::put_tree;
use super::{BuildError, LayerWriter, run_command};
use crate::draft::Scratch;
use crate::store::{Inner, StoreError};

const HINT: &str = "install it with `apt-get install python3 python3-pip`";

/// Installs the packages (nothing that they depend on: a recipe lists what it wants) into the
/// directory `to` of the layer.
pub(super) fn fill(
    store: &Inner,
    requirements: &[String],
    to: &str,
    layer: &mut LayerWriter,
) -> Result<(), BuildError> {
    let drafts = store.drafts();
    let scratch = Scratch::new(&drafts).map_err(StoreError::io(&drafts))?;
    let site = scratch.path().join("site");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    pip.args(["--no-deps", "--no-compile", "--only-binary=:all:", "--root-user-action=ignore"]);
    pip.arg("--target").arg(&site).args(requirements);
    run_command(&mut pip, HINT)?;
    refuse_compiled(&site)?;
    // Compiled here, so that a guest does not do it at every start. The files carry no times,
    // hence "unchecked".
    let mut compile = Command::new("python3");
    compile.args(["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]);
    compile.args(["-s"]).arg(&site).arg("-p").arg(to).arg(&site).env("PYTHONHASHSEED", "0");
    run_command(&mut compile, HINT)?;
    put_tree(&site, to, None, layer)
}

fn refuse_compiled(dir: &Path) -> Result<(), BuildError> {
    let unreadable = |source| BuildError::Input { path: dir.to_owned(), source };
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() {
            refuse_compiled(&path)?;
        } else if path.extension() == Some(OsStr::new("so")) {
            return Err(BuildError::Compiled { path });
        }
    }
    Ok(())
}
