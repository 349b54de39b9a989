//! Layers of files from the recipe's directory.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::recipe::Copy;
use super::{BuildError, LayerWriter};
use crate::tar::{Entry, Kind};
use crate::tree::Meta;

/// Directories of the recipe's that are results rather than inputs.
const RESULTS: [&str; 2] = ["target", "__pycache__"];

/// What was found at the paths that decide a layer's content: names, modes and bytes.
///
/// With commands, that is the recipe's whole directory (but for hidden files and results) and
/// `inputs`; without, the copied files themselves.
pub(super) fn fingerprint(
    dir: &Path,
    commands: bool,
    inputs: &[String],
    copy: &[Copy],
) -> Result<Vec<u8>, BuildError> {
    let mut hash = Sha256::new();
    if commands {
        add(dir, Path::new(""), true, &mut hash)?;
    } else {
        for copy in copy {
            add(&dir.join(&copy.from), Path::new(&copy.from), false, &mut hash)?;
        }
    }
    for input in inputs {
        add(&dir.join(input), Path::new(input), true, &mut hash)?;
    }
    Ok(hash.finalize().to_vec())
}

fn add(path: &Path, name: &Path, sources: bool, hash: &mut Sha256) -> Result<(), BuildError> {
    visit(path, name, sources, &mut |path, name, found| {
        let bytes = if found.is_file() {
            fs::read(path).map_err(unreadable(path))?
        } else if found.is_symlink() {
            fs::read_link(path).map_err(unreadable(path))?.into_os_string().into_vec()
        } else {
            Vec::new()
        };
        let name = name.as_os_str().as_bytes();
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(found.permissions().mode().to_le_bytes());
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
        Ok(())
    })
}

/// Puts the copied files into the layer.
pub(super) fn fill(dir: &Path, copy: &[Copy], layer: &mut LayerWriter) -> Result<(), BuildError> {
    for copy in copy {
        let mode = copy.mode().expect("checked when parsed");
        put_tree(&dir.join(&copy.from), &copy.to, mode, layer)?;
    }
    Ok(())
}

/// Puts a file, or a directory with all in it, at `to` in the layer: owned by root, times zero.
pub(super) fn put_tree(
    from: &Path,
    to: &str,
    mode: Option<u16>,
    layer: &mut LayerWriter,
) -> Result<(), BuildError> {
    let to = Path::new(to.trim_start_matches('/'));
    visit(from, to, false, &mut |path, name, found| {
        let executable = found.permissions().mode() & 0o111 != 0;
        let usual = if executable || found.is_dir() { 0o755 } else { 0o644 };
        // A mode is meant for the files; a directory must stay passable.
        let mode = mode.filter(|_| found.is_file()).unwrap_or(usual);
        let mut entry = Entry {
            path: name.as_os_str().as_bytes().to_vec(),
            kind: Kind::Directory,
            meta: Meta::new(mode),
            size: 0,
        };
        if found.is_dir() {
            layer.append(&entry, &mut io::empty())?;
        } else if found.is_symlink() {
            let target = fs::read_link(path).map_err(unreadable(path))?;
            entry.kind = Kind::Symlink(target.into_os_string().into_vec());
            entry.meta.mode = 0o777;
            layer.append(&entry, &mut io::empty())?;
        } else {
            let mut file = File::open(path).map_err(unreadable(path))?;
            entry.kind = Kind::File;
            entry.size = file.metadata().map_err(unreadable(path))?.len();
            layer.append(&entry, &mut file)?;
        }
        Ok(())
    })
}

/// Calls `each` for a path and everything below it, sorted, with its name below `name`.
fn visit(
    path: &Path,
    name: &Path,
    sources: bool,
    each: &mut dyn FnMut(&Path, &Path, &Metadata) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    // The path itself may be a symbolic link to what is meant; links below it are kept.
    let found = fs::metadata(path).map_err(unreadable(path))?;
    let mut todo: Vec<(PathBuf, PathBuf, Metadata)> =
        vec![(path.to_owned(), name.to_owned(), found)];
    while let Some((path, name, found)) = todo.pop() {
        if !(found.is_file() || found.is_dir() || found.is_symlink()) {
            return Err(BuildError::FileType { path });
        }
        each(&path, &name, &found)?;
        if !found.is_dir() {
            continue;
        }
        let mut below = Vec::new();
        for entry in fs::read_dir(&path).map_err(unreadable(&path))? {
            let file_name = entry.map_err(unreadable(&path))?.file_name();
            let hidden = file_name.as_bytes().starts_with(b".");
            if sources && (hidden || RESULTS.iter().any(|result| file_name == *result)) {
                continue;
            }
            let path = path.join(&file_name);
            let found = fs::symlink_metadata(&path).map_err(unreadable(&path))?;
            below.push((path, name.join(&file_name), found));
        }
        below.sort_by(|a, b| b.0.cmp(&a.0));
        todo.extend(below);
    }
    Ok(())
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::Input { path, source }
}
